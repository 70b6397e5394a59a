//! burn's own operations in place of the fast ones, chosen for a stretch of code.

use std::cell::Cell;

thread_local! {
    static PLAIN: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`; the operations that it calls on this thread, and their gradients, are burn's own, as with `RECLAIR_KERNELS=off`.
pub fn with_plain_operations<R>(f: impl FnOnce() -> R) -> R {
    with_asked(true, f)
}

/// As [`with_plain_operations`] where `plain`.
pub(crate) fn with_asked<R>(plain: bool, f: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            PLAIN.set(self.0);
        }
    }
    let _restore = Restore(PLAIN.replace(plain));
    f()
}

/// Whether they are asked for here.
pub(crate) fn asked_for() -> bool {
    PLAIN.get()
}
