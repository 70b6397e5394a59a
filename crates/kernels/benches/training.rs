//! Speed of training's operations beside burn's own: `cargo bench --workspace --profile release --bench training [-- --plain]`
//! (`-p kernels` would compile burn once more with other features).
//!
//! Prints the best of several runs, forward and forward with all gradients, in GFLOP/s (10^9 multiplications and
//! additions a second, a gradient counted like the forward) or GB/s (values read and written once).
//! `--plain` adds burn's operations, `RAYON_NUM_THREADS=1` measures one core.

#![expect(clippy::print_stdout, reason = "the table is the result")]

mod timing;

use std::time::Duration;

use burn::tensor::{Device, Distribution, Tensor, module, ops::ConvOptions};
use kernels::{Activation, Padding, Products, conv2d, group_norm, silu, with_products};
use timing::{best, peak};

/// `[batch, c_in, c_out, size, kernel, stride]`.
const CONVOLUTIONS: [[usize; 6]; 26] = [
    [16, 64, 64, 24, 3, 1],
    [16, 96, 96, 12, 3, 1],
    [16, 160, 160, 6, 3, 1],
    [16, 160, 64, 24, 3, 1],
    [16, 64, 64, 32, 3, 1],
    [16, 128, 128, 16, 3, 1],
    [16, 192, 192, 8, 3, 1],
    [16, 128, 64, 32, 3, 1],
    [16, 192, 64, 32, 3, 1],
    [16, 320, 128, 16, 3, 1],
    [16, 384, 192, 8, 3, 1],
    [16, 16, 64, 32, 3, 1],
    [16, 64, 16, 32, 3, 1],
    [16, 64, 64, 32, 3, 2],
    [16, 128, 128, 16, 3, 2],
    [8, 3, 32, 128, 3, 1],
    [8, 32, 3, 128, 3, 1],
    [8, 16, 16, 128, 3, 1],
    [8, 32, 32, 128, 3, 1],
    [8, 32, 32, 128, 3, 2],
    [8, 64, 64, 64, 3, 1],
    [8, 128, 128, 32, 3, 1],
    [16, 128, 64, 32, 1, 1],
    [16, 384, 192, 8, 1, 1],
    [1, 64, 64, 128, 3, 1],
    [1, 192, 192, 8, 3, 1],
];

fn main() {
    let plain = std::env::args().any(|arg| arg == "--plain");
    let only = std::env::args().nth(1).filter(|arg| !arg.starts_with("--"));
    println!(
        "{} threads, peak {:.0} GFLOP/s a thread",
        rayon::current_num_threads(),
        peak()
    );
    println!(
        "{:32} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "conv2d", "forward", "training", "bf16 fwd", "training", "plain fwd", "training"
    );
    for [b, c_in, c_out, size, k, stride] in CONVOLUTIONS {
        let name = format!("{b} x {c_in:3} -> {c_out:3} @{size:3} {k}x{k} /{stride}");
        if only
            .as_ref()
            .is_some_and(|only| !name.contains(only.as_str()))
        {
            continue;
        }
        let out = size.div_ceil(stride);
        let flops = (2 * b * c_in * c_out * out * out * k * k) as f64;
        let run = |x: Tensor<4>, w: Tensor<4>, bias: Tensor<1>| {
            conv2d(x, w, Some(bias), stride, Padding::same(k / 2))
        };
        let burn = |x: Tensor<4>, w: Tensor<4>, bias: Tensor<1>| {
            let options = ConvOptions::new([stride; 2], [k / 2; 2], [1; 2], 1);
            module::conv2d(x, w, Some(bias), options)
        };
        let shape = [b, c_in, c_out, size, k];
        print!("{name:32}");
        for time in measure(shape, run) {
            print!(" {:9.1}", flops * time.1 / time.0.as_secs_f64() / 1e9);
        }
        for time in with_products(Products::Bf16, || measure(shape, run)) {
            print!(" {:9.1}", flops * time.1 / time.0.as_secs_f64() / 1e9);
        }
        if plain {
            for time in measure(shape, burn) {
                print!(" {:9.1}", flops * time.1 / time.0.as_secs_f64() / 1e9);
            }
        }
        println!();
    }
    if only.is_some() {
        return;
    }
    println!(
        "{:32} {:>9} {:>9} {:>9} {:>9}  (ms)",
        "pointwise", "forward", "training", "plain fwd", "training"
    );
    for (name, activation) in [
        ("group norm", Activation::None),
        ("group norm, SiLU", Activation::Silu),
    ] {
        for [b, c, size] in [[16, 64, 32], [16, 192, 8], [8, 32, 128]] {
            let run = |x: Tensor<4>, _: Tensor<4>, w: Tensor<1>| {
                group_norm(x, 8, w.clone(), w, 1e-5, activation)
            };
            let burn = |x: Tensor<4>, _: Tensor<4>, w: Tensor<1>| {
                let rows = x.reshape([b * 8, c / 8 * size * size]);
                let centred = rows.clone() - rows.mean_dim(1);
                let variance = centred.clone().square().mean_dim(1);
                let normal = (centred / (variance + 1e-5).sqrt()).reshape([b, c, size, size]);
                let w = w.reshape([1, c, 1, 1]);
                let y = normal * w.clone() + w;
                if activation == Activation::Silu {
                    burn::tensor::activation::silu(y)
                } else {
                    y
                }
            };
            milliseconds(
                &format!("{name} {b}x{c}@{size}"),
                [b, c, c, size, 1],
                plain,
                run,
                burn,
            );
        }
    }
    milliseconds(
        "silu 8x32@128",
        [8, 32, 1, 128, 1],
        plain,
        |x, _, _| silu(x),
        |x, _, _| burn::tensor::activation::silu(x),
    );
    milliseconds(
        "gelu 8x32@128",
        [8, 32, 1, 128, 1],
        plain,
        |x, _, _| kernels::gelu(x),
        |x, _, _| burn::tensor::activation::gelu(x),
    );
    milliseconds(
        "add 8x32@128",
        [8, 32, 1, 128, 1],
        plain,
        |x, _, _| kernels::add(x.clone(), x),
        |x, _, _| x.clone() + x,
    );
}

fn milliseconds(
    name: &str,
    shape: [usize; 5],
    plain: bool,
    run: impl Fn(Tensor<4>, Tensor<4>, Tensor<1>) -> Tensor<4>,
    burn: impl Fn(Tensor<4>, Tensor<4>, Tensor<1>) -> Tensor<4>,
) {
    print!("{name:32}");
    for (time, _) in measure(shape, run) {
        print!(" {:9.2}", time.as_secs_f64() * 1e3);
    }
    if plain {
        for (time, _) in measure(shape, burn) {
            print!(" {:9.2}", time.as_secs_f64() * 1e3);
        }
    }
    println!();
}

/// The best time of the forward, and of the forward with its gradients; with the work of each in forwards.
fn measure(
    [b, c_in, c_out, size, k]: [usize; 5],
    f: impl Fn(Tensor<4>, Tensor<4>, Tensor<1>) -> Tensor<4>,
) -> [(Duration, f64); 2] {
    let device = Device::flex();
    let x = Tensor::<4>::random([b, c_in, size, size], Distribution::Default, &device);
    let w = Tensor::<4>::random([c_out, c_in, k, k], Distribution::Default, &device);
    let bias = Tensor::<1>::random([c_out], Distribution::Default, &device);
    let dy = f(x.clone(), w.clone(), bias.clone());
    let forward = best(|| drop(f(x.clone(), w.clone(), bias.clone())));
    // The product with dy would be part of the measurement, so its time is taken off.
    let y = dy.clone().autodiff().require_grad();
    let seed = best(|| drop((y.clone() * dy.clone()).sum().backward()));
    let (x, w, bias) = (
        x.autodiff().require_grad(),
        w.autodiff().require_grad(),
        bias.autodiff().require_grad(),
    );
    let training = best(|| {
        let y = f(x.clone(), w.clone(), bias.clone());
        drop((y * dy.clone()).sum().backward());
    });
    [(forward, 1.0), (training.saturating_sub(seed), 3.0)]
}
