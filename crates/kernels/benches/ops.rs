//! Speed of single operations at the big priors' sizes: `cargo bench --workspace --profile release --bench ops [-- PART]`.
//!
//! Prints a row per operation: name, GFLOP/s (or GB/s, values read and written once) over all threads, and for products
//! the fraction of what an FMA loop reaches on one thread in the same run, times the threads. `PART` selects rows whose
//! name contains it. `benches/peers/ops.py` sets PyTorch beside it.

#![expect(clippy::print_stdout, reason = "the table is the result")]

mod timing;

use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};
use kernels::{
    Activation, Mask, Padding, Products, attention, conv2d, group_norm, layer_norm, linear,
    with_products,
};
use timing::{best, peak};

/// Name, rows, inputs, outputs.
const LINEAR: [(&str, usize, usize, usize); 8] = [
    ("matmul 2048", 2048, 2048, 2048),
    ("linear 1024 x 1280 -> 1280", 1024, 1280, 1280),
    ("linear 1024 x 1280 -> 10240", 1024, 1280, 10240),
    ("linear 256 x 1280 -> 1280", 256, 1280, 1280),
    ("linear 256 x 1280 -> 10240", 256, 1280, 10240),
    ("linear 4096 x 640 -> 640", 4096, 640, 640),
    ("linear 77 x 2048 -> 1280", 77, 2048, 1280),
    ("linear 1 x 1280 -> 1280", 1, 1280, 1280),
];

/// Channels in, channels out, side, kernel, stride.
const CONVOLUTIONS: [[usize; 5]; 7] = [
    [320, 320, 64, 3, 1],
    [640, 640, 32, 3, 1],
    [1280, 1280, 16, 3, 1],
    [128, 128, 128, 3, 1],
    [512, 512, 64, 3, 1],
    [320, 320, 64, 3, 2],
    [960, 640, 32, 1, 1],
];

/// Heads, queries, keys, width.
const ATTENTIONS: [[usize; 4]; 7] = [
    [10, 1024, 1024, 64],
    [10, 4096, 4096, 64],
    [20, 1024, 77, 64],
    [8, 1024, 1024, 40],
    [8, 1024, 1024, 80],
    [8, 1024, 1024, 32],
    [1, 4096, 4096, 512],
];

struct Table {
    only: Option<String>,
    peak: f64,
}

impl Table {
    fn wants(&self, name: &str) -> bool {
        (self.only.as_ref()).is_none_or(|only| name.contains(only.as_str()))
    }

    /// Whether a row of this name, in any precision, is wanted.
    fn wants_any(&self, name: &str) -> bool {
        (["f32", "bf16", "f16"].iter()).any(|kind| self.wants(&format!("{name} {kind}")))
    }

    fn products(&self, name: &str, flops: f64, f: impl FnMut()) {
        if self.wants(name) {
            let rate = flops / best(f).as_secs_f64() / 1e9;
            println!("{name:44} {rate:9.1} GFLOP/s {:6.2}", rate / self.peak);
        }
    }

    fn bytes(&self, name: &str, bytes: f64, f: impl FnMut()) {
        if self.wants(name) {
            let rate = bytes / best(f).as_secs_f64() / 1e9;
            println!("{name:44} {rate:9.1} GB/s");
        }
    }
}

fn main() {
    let one = peak();
    let threads = rayon::current_num_threads();
    println!("{threads} threads, peak {one:.0} GFLOP/s a thread");
    let table = Table {
        only: std::env::args().nth(1).filter(|arg| !arg.starts_with("--")),
        peak: one * threads as f64,
    };
    let device = Device::flex();
    let random4 = |dims: [usize; 4]| Tensor::<4>::random(dims, Distribution::Default, &device);
    let random1 = |n: usize| Tensor::<1>::random([n], Distribution::Default, &device);
    for (name, n, d_in, d_out) in LINEAR {
        if !table.wants_any(name) {
            continue;
        }
        let x = Tensor::<2>::random([n, d_in], Distribution::Default, &device);
        let w = Tensor::<2>::random([d_out, d_in], Distribution::Default, &device);
        let bias = random1(d_out);
        let flops = (2 * n * d_in * d_out) as f64;
        for (kind, dtype) in [
            ("f32", None),
            ("bf16", Some(FloatDType::BF16)),
            ("f16", Some(FloatDType::F16)),
        ] {
            let w = dtype.map_or(w.clone(), |dtype| w.clone().cast(dtype));
            table.products(&format!("{name} {kind}"), flops, || {
                drop(linear(x.clone(), w.clone(), Some(bias.clone())));
            });
        }
    }
    for [c_in, c_out, size, k, stride] in CONVOLUTIONS {
        let name = format!("conv{k}x{k} {c_in}->{c_out} @{size} /{stride}");
        if !table.wants_any(&name) {
            continue;
        }
        let x = random4([1, c_in, size, size]);
        let w = random4([c_out, c_in, k, k]);
        let bias = random1(c_out);
        let out = size.div_ceil(stride);
        let flops = (2 * c_in * c_out * out * out * k * k) as f64;
        for dtype in [DType::F32, DType::BF16] {
            let w = if dtype == DType::F32 {
                w.clone()
            } else {
                w.clone().cast(FloatDType::BF16)
            };
            let kind = if dtype == DType::F32 { "f32" } else { "bf16" };
            table.products(&format!("{name} {kind}"), flops, || {
                let bias = Some(bias.clone());
                drop(conv2d(
                    x.clone(),
                    w.clone(),
                    bias,
                    stride,
                    Padding::same(k / 2),
                ));
            });
        }
    }
    for [heads, n, m, d] in ATTENTIONS {
        let name = format!("attention {heads} x {n} x {m}, {d}");
        if !table.wants_any(&name) {
            continue;
        }
        let of = |rows: usize| random4([1, 1, rows, heads * d]).squeeze_dim::<3>(0);
        let (q, k, v) = (of(n), of(m), of(m));
        let flops = (4 * heads * n * m * d) as f64;
        for (kind, weights) in [("f32", DType::F32), ("bf16", DType::BF16)] {
            table.products(&format!("{name} {kind}"), flops, || {
                let scale = (d as f64).sqrt().recip();
                let (q, k, v) = (q.clone(), k.clone(), v.clone());
                drop(attention(q, k, v, heads, scale, Mask::None, weights));
            });
        }
    }
    training(&table, &device);
    for [c, size] in [[320, 64], [128, 512]] {
        let name = format!("group norm + SiLU 1x{c}x{size}x{size}");
        if !table.wants(&name) {
            continue;
        }
        let (x, w) = (random4([1, c, size, size]), random1(c));
        table.bytes(&name, (8 * c * size * size) as f64, || {
            drop(group_norm(
                x.clone(),
                32,
                w.clone(),
                w.clone(),
                1e-5,
                Activation::Silu,
            ));
        });
    }
    let (x, w) = (random4([1, 1, 1024, 1280]), random1(1280));
    table.bytes("layer norm 1024x1280", (8 * 1024 * 1280) as f64, || {
        drop(layer_norm(
            x.clone(),
            Some(w.clone()),
            Some(w.clone()),
            1e-5,
        ));
    });
}

/// Forward and both gradients of the last row of the list that PyTorch is measured on.
fn training(table: &Table, device: &Device) {
    let [b, c, size] = [8, 64, 64];
    let x = Tensor::<4>::random([b, c, size, size], Distribution::Default, device);
    let w = Tensor::<4>::random([c, c, 3, 3], Distribution::Default, device);
    let (x, w) = (x.autodiff().require_grad(), w.autodiff().require_grad());
    let flops = 54.0 * (b * c * c * size * size) as f64;
    for (kind, products) in [("f32", Products::F32), ("bf16", Products::Bf16)] {
        table.products(&format!("conv training 8x64->64 @64 {kind}"), flops, || {
            with_products(products, || {
                let y = conv2d(x.clone(), w.clone(), None, 1, Padding::same(1));
                drop(y.sum().backward());
            });
        });
    }
}
