//! How convolutions make their products, chosen for a stretch of code.

use std::cell::Cell;

pub use crate::fast::pairs::Products;

thread_local! {
    static CURRENT: Cell<Products> = const { Cell::new(Products::F32) };
}

/// Runs `f`; the convolutions that it calls on this thread, and their gradients, make their products so.
///
/// On `flex` only, and not for 1x1 convolutions; elsewhere products are the backend's own. With [`Products::Bf16`] a
/// result is off by less than 0.5 % of its norm in the tests, and its bits depend on the machine's instruction set. Number of threads and
/// repetition change nothing, as always.
pub fn with_products<R>(products: Products, f: impl FnOnce() -> R) -> R {
    struct Restore(Products);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.set(self.0);
        }
    }
    let _restore = Restore(CURRENT.replace(products));
    f()
}

/// The choice in force.
pub(crate) fn current() -> Products {
    CURRENT.get()
}
