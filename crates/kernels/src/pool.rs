//! The threads that operations share.

use crate::{plain, products};

/// Runs `f` on one of the threads that operations share (rayon's global pool, or the pool of the calling thread), with
/// what was chosen for the calling thread ([`crate::with_products`], [`crate::with_plain_operations`]).
///
/// An operation that is called from another thread is handed to the pool and waited for, which costs small networks a tenth
/// of their time.
pub fn in_pool<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    let (products, plain) = (products::chosen(), plain::asked_for());
    rayon::scope(|_| products::with_chosen(products, || plain::with_asked(plain, f)))
}

#[cfg(test)]
mod tests {
    use super::in_pool;
    use crate::{Products, plain, products, with_plain_operations, with_products};

    #[test]
    fn what_a_thread_chose_goes_along() {
        let chosen = || in_pool(|| (products::chosen(), plain::asked_for()));
        assert_eq!(chosen(), (None, false));
        let inside = with_products(Products::F16, || with_plain_operations(chosen));
        assert_eq!(inside, (Some(Products::F16), true));
        assert!(in_pool(|| rayon::current_thread_index().is_some()));
        assert_eq!(chosen(), (None, false));
    }
}
