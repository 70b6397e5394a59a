//! The allocator of programs that work with tensors.

/// mimalloc, to be a program's `#[global_allocator]`: large, short-lived buffers are the rule here, each of which the
/// system's allocator returns to the kernel at once. This one keeps what is freed for a second.
pub use mimalloc::MiMalloc as Allocator;

/// Returns to the kernel what is free and kept: when much has been dropped and other sizes are wanted next, which would
/// otherwise stand beside it for a second. Does nothing where [`Allocator`] is not the program's.
#[expect(unsafe_code, reason = "a function of C; see SAFETY")]
pub fn give_back() {
    // SAFETY: it takes no addresses and may be called at any time, by any thread.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
