//! How convolutions, linear maps and attention make their products, chosen for a stretch of code.

use std::cell::Cell;

use burn::tensor::DType;

use crate::fast::isa::Isa;

pub use crate::fast::pairs::Products;

thread_local! {
    static CURRENT: Cell<Option<Products>> = const { Cell::new(None) };
}

/// Runs `f`; the convolutions and linear maps that it calls on this thread, and their gradients, make their products so, and
/// with [`Products::Bf16`] on matrix tiles attention without a mask does, not its gradients.
///
/// Without it products are of bfloat16 values where the weight is stored so and the machine has instructions for them,
/// and of f32 values everywhere else. On `flex` only; elsewhere products are the backend's own. With [`Products::Bf16`] a
/// result is off by less than 0.5 % of its norm in the tests, and its bits depend on the machine's instruction set. Up to
/// sixteen rows a linear map multiplies f32 values all the same. [`Products::F16`] rounds their operands too. Number of threads and repetition change nothing, as always.
pub fn with_products<R>(products: Products, f: impl FnOnce() -> R) -> R {
    with_chosen(Some(products), f)
}

/// Runs `f` with nothing chosen, inside [`with_products`] too: products are as the weights are stored. For networks whose
/// values leave the range of half precision.
pub fn with_stored_products<R>(f: impl FnOnce() -> R) -> R {
    with_chosen(None, f)
}

/// What is chosen for this thread.
pub(crate) fn chosen() -> Option<Products> {
    CURRENT.get()
}

/// As [`with_products`], or with nothing chosen.
pub(crate) fn with_chosen<R>(products: Option<Products>, f: impl FnOnce() -> R) -> R {
    struct Restore(Option<Products>);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.set(self.0);
        }
    }
    let _restore = Restore(CURRENT.replace(products));
    f()
}

/// The choice in force for a weight stored as `dtype`.
pub(crate) fn of(dtype: DType) -> Products {
    CURRENT.get().unwrap_or_else(|| {
        if dtype == DType::BF16 && Isa::current().multiplies_bf16() {
            Products::Bf16
        } else {
            Products::F32
        }
    })
}
