//! What holds for every operation: the same bits for any number of threads, no number that hides a NaN, no empty tensor.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::{DType, Device, Tensor};
use kernels::{
    Activation, Mask, Padding, Products, attention, conv2d, group_norm, layer_norm, linear,
    rms_norm, with_products,
};

use super::{gradient, random, values};

/// The bits of the results that `run` makes on so many threads.
fn bits(threads: usize, run: &(dyn Fn() -> Vec<Vec<f32>> + Sync)) -> Vec<Vec<u32>> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .expect("a pool");
    let results = pool.install(run);
    results
        .into_iter()
        .map(|values| values.into_iter().map(f32::to_bits).collect())
        .collect()
}

fn same_for_any_number_of_threads(what: &str, run: &(dyn Fn() -> Vec<Vec<f32>> + Sync)) {
    let one = bits(1, run);
    for threads in [2, 3, 5] {
        assert!(bits(threads, run) == one, "{what} with {threads} threads");
    }
}

#[test]
fn products_and_rows_have_the_same_bits_for_any_number_of_threads() {
    // Few rows are not packed; the others are, in one block and in many.
    for (rows, d_in, out) in [(3, 130, 70), (77, 96, 200), (300, 520, 260)] {
        let (x, w, dy) = (
            random([rows, d_in]),
            random([out, d_in]),
            random([rows, out]),
        );
        for products in [Products::F32, Products::Bf16] {
            same_for_any_number_of_threads(
                &format!("linear {rows} x {d_in} x {out}, {products:?}"),
                &|| {
                    let (x, w) = (
                        x.clone().autodiff().require_grad(),
                        w.clone().autodiff().require_grad(),
                    );
                    let y = with_products(products, || linear(x.clone(), w.clone(), None));
                    let grads = (y.clone() * dy.clone().autodiff()).sum().backward();
                    vec![
                        values(y.without_autodiff()),
                        values(gradient(&x, &grads)),
                        values(gradient(&w, &grads)),
                    ]
                },
            );
        }
        let narrow = w.clone().cast(DType::BF16);
        same_for_any_number_of_threads("linear with a bf16 weight", &|| {
            vec![values(linear(x.clone(), narrow.clone(), None))]
        });
        same_for_any_number_of_threads("row norms", &|| {
            let x = x.clone().autodiff().require_grad();
            let y = layer_norm(x.clone(), None, None, 1e-5) + rms_norm(x.clone(), None, 1e-6);
            let grads = y.clone().powi_scalar(3).sum().backward();
            vec![values(y.without_autodiff()), values(gradient(&x, &grads))]
        });
    }
}

#[test]
fn attention_has_the_same_bits_for_any_number_of_threads() {
    for (heads, n, m, d) in [(1, 70, 70, 32), (3, 200, 77, 64), (2, 33, 300, 40)] {
        let (q, k, v) = (
            random([1, n, heads * d]),
            random([1, m, heads * d]),
            random([1, m, heads * d]),
        );
        same_for_any_number_of_threads(&format!("attention {heads} x {n} x {m} x {d}"), &|| {
            let [q, k, v] = [&q, &k, &v].map(|t| t.clone().autodiff().require_grad());
            let operands = (q.clone(), k.clone(), v.clone());
            let y = attention(
                operands.0,
                operands.1,
                operands.2,
                heads,
                0.3,
                Mask::None,
                DType::F32,
            );
            let grads = y.clone().powi_scalar(2).sum().backward();
            let of = |t: &Tensor<3>| values(gradient(t, &grads));
            vec![values(y.without_autodiff()), of(&q), of(&k), of(&v)]
        });
    }
}

/// `x` with one value replaced.
fn with_nan<const D: usize>(x: &Tensor<D>, at: usize) -> Tensor<D> {
    let mut all = values(x.clone());
    all[at] = f32::NAN;
    Tensor::<1>::from_floats(all.as_slice(), &Device::flex()).reshape(x.dims())
}

#[test]
fn a_nan_reaches_its_row_and_no_other() {
    for rows in [2, 40] {
        let (x, w) = (random([rows, 50]), random([33, 50]));
        let bad = with_nan(&x, 50 + 7);
        for (what, y) in [
            ("linear", linear(bad.clone(), w, None)),
            ("layer_norm", layer_norm(bad.clone(), None, None, 1e-5)),
            ("rms_norm", rms_norm(bad, None, 1e-6)),
        ] {
            let width = y.dims()[1];
            for (i, y) in values(y).into_iter().enumerate() {
                assert_eq!(y.is_nan(), i / width == 1, "{what} of {rows} rows at {i}");
            }
        }
    }
    // A query's NaN is its own; a key's or a value's is its whole head's (a value's in one column).
    let (q, k, v) = (
        random([1, 40, 64]),
        random([1, 70, 64]),
        random([1, 70, 64]),
    );
    let at = |head: usize, row: usize| row * 64 + head * 32 + 5;
    let nan = |q: &Tensor<3>, k: &Tensor<3>, v: &Tensor<3>| {
        values(attention(
            q.clone(),
            k.clone(),
            v.clone(),
            2,
            0.2,
            Mask::None,
            DType::F32,
        ))
    };
    let place = |i: usize| (i / 32 % 2, i / 64, i % 32);
    for (i, y) in nan(&with_nan(&q, at(1, 9)), &k, &v).into_iter().enumerate() {
        let (head, row, _) = place(i);
        assert_eq!(y.is_nan(), (head, row) == (1, 9), "query at {i}");
    }
    for (i, y) in nan(&q, &with_nan(&k, at(0, 66)), &v)
        .into_iter()
        .enumerate()
    {
        assert_eq!(y.is_nan(), place(i).0 == 0, "key at {i}");
    }
    for (i, y) in nan(&q, &k, &with_nan(&v, at(0, 66)))
        .into_iter()
        .enumerate()
    {
        let (head, _, column) = place(i);
        assert_eq!(y.is_nan(), (head, column) == (0, 5), "value at {i}");
    }
}

#[test]
fn empty_tensors_are_refused() {
    let zeros = |shape: [usize; 4]| Tensor::<4>::zeros(shape, &Device::flex());
    let refused = |what: &str, run: &dyn Fn()| {
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err(), "{what}");
    };
    refused("conv2d", &|| {
        conv2d(
            zeros([0, 3, 8, 8]),
            zeros([4, 3, 3, 3]),
            None,
            1,
            Padding::same(1),
        );
    });
    refused("linear", &|| {
        linear(random([0, 8]), random([4, 8]), None);
    });
    let nothing = Tensor::<3>::zeros([1, 0, 8], &Device::flex());
    refused("attention", &|| {
        attention(
            random([1, 4, 8]),
            nothing.clone(),
            nothing.clone(),
            2,
            1.0,
            Mask::None,
            DType::F32,
        );
    });
    refused("group_norm", &|| {
        group_norm(
            zeros([0, 4, 2, 2]),
            2,
            random([4]),
            random([4]),
            1e-5,
            Activation::None,
        );
    });
    refused("layer_norm", &|| {
        layer_norm(random([0, 4]), None, None, 1e-5);
    });
}
