//! Memory whose end is the end of the world: every vector of 16- or 32-bit values that a test allocates, or a kernel under
//! test, ends where an unmapped page begins, so that a read or write past it kills the test.

#![expect(unsafe_code, reason = "an allocator")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    ptr,
};

/// The system's allocator, and pages of their own for values of tensors.
struct Guard;

#[global_allocator]
static GUARD: Guard = Guard;

/// Values are told from everything else by their alignment.
fn is_values(layout: Layout) -> bool {
    matches!(layout.align(), 2 | 4) && layout.size() >= 32
}

fn page() -> usize {
    // SAFETY: no arguments to get wrong.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// Bytes of whole pages that hold `size`, without the unmapped one.
fn room(size: usize) -> usize {
    size.next_multiple_of(page())
}

// SAFETY: memory is from mmap, large enough, as aligned as its size is, and returned to munmap.
unsafe impl GlobalAlloc for Guard {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A size that is no multiple of the alignment cannot end at the page.
        if !is_values(layout) || !layout.size().is_multiple_of(layout.align()) {
            // SAFETY: the caller's promise.
            return unsafe { System.alloc(layout) };
        }
        let room = room(layout.size());
        // SAFETY: a new mapping; its last page loses its rights.
        unsafe {
            let (rights, flags) = (
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            );
            let start = libc::mmap(ptr::null_mut(), room + page(), rights, flags, -1, 0);
            if start == libc::MAP_FAILED {
                return ptr::null_mut();
            }
            let end = start.cast::<u8>().add(room);
            if libc::mprotect(end.cast(), page(), libc::PROT_NONE) != 0 {
                return ptr::null_mut();
            }
            end.sub(layout.size())
        }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if !is_values(layout) || !layout.size().is_multiple_of(layout.align()) {
            // SAFETY: the caller's promise.
            return unsafe { System.dealloc(at, layout) };
        }
        let room = room(layout.size());
        // SAFETY: this is the mapping that `alloc` made.
        unsafe { libc::munmap(at.add(layout.size()).sub(room).cast(), room + page()) };
    }
}

#[test]
fn values_end_at_an_unmapped_page() {
    for n in [8, 100, 1024, 5000] {
        let values = vec![1.0f32; n];
        let end = values.as_ptr_range().end;
        assert!((end as usize).is_multiple_of(page()));
        let mut there = 0u8;
        // SAFETY: asks about a page's rights by having the kernel copy from it.
        let read = unsafe {
            let mut pipe = [0; 2];
            assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
            let read = [
                end.cast::<libc::c_void>(),
                (&raw mut there).cast_const().cast(),
            ]
            .map(|from| libc::write(pipe[1], from, 1));
            libc::close(pipe[0]);
            libc::close(pipe[1]);
            read
        };
        assert_eq!(read, [-1, 1], "the page after {n} values");
    }
}
