//! Memory that tasks share: an output they write disjoint parts of, and scratch they keep.

#![expect(
    unsafe_code,
    reason = "tasks write interleaved, disjoint parts of one output"
)]

use std::cell::RefCell;

/// An output that several tasks write, each its own elements.
pub(super) struct Shared {
    start: *mut f32,
    len: usize,
}

// SAFETY: access is only through `at`, whose callers promise disjoint elements.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Shares `out` until the last use of the result.
    pub(super) fn new(out: &mut [f32]) -> Self {
        Self {
            start: out.as_mut_ptr(),
            len: out.len(),
        }
    }

    /// The address of element `index`, of which `count` elements may be used.
    ///
    /// # Safety
    /// The slice is still borrowed, and no other task touches what is written through this.
    pub(super) unsafe fn at(&self, index: usize, count: usize) -> *mut f32 {
        assert!(
            index + count <= self.len,
            "{index} + {count} > {}",
            self.len
        );
        // SAFETY: within the slice, as just checked.
        unsafe { self.start.add(index) }
    }
}

/// Which of a thread's scratch buffers.
#[derive(Clone, Copy)]
pub(super) enum Scratch {
    /// Padded or expanded input rows.
    Input,
    /// Transposed output gradients.
    Gradient,
}

/// Lends `f` this thread's buffer of `len` floats, with whatever it last held.
pub(super) fn with_scratch<R>(which: Scratch, len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local! {
        static BUFFERS: [RefCell<Vec<f32>>; 2] = const { [const { RefCell::new(Vec::new()) }; 2] };
    }
    BUFFERS.with(|buffers| {
        let mut buffer = buffers[which as usize].borrow_mut();
        if buffer.len() < len + 16 {
            *buffer = vec![0.0; len + 16];
        }
        let skip = buffer.as_ptr().align_offset(64).min(16);
        f(&mut buffer[skip..skip + len])
    })
}

/// Copies `row` from column `first` in steps of `step`, with zeros where that is outside.
pub(super) fn copy_row(to: &mut [f32], row: Option<&[f32]>, first: isize, step: usize) {
    let Some(row) = row else {
        to.fill(0.0);
        return;
    };
    // Output columns lo..hi have their source inside the row.
    let step_i = step as isize;
    let lo = if first < 0 {
        ((-first) as usize).div_ceil(step)
    } else {
        0
    };
    let lo = lo.min(to.len());
    let hi = (row.len() as isize - first + step_i - 1)
        .div_euclid(step_i)
        .max(lo as isize);
    let hi = (hi as usize).min(to.len());
    to[..lo].fill(0.0);
    to[hi..].fill(0.0);
    if lo == hi {
        return;
    }
    let from = (first + (lo * step) as isize) as usize;
    if step == 1 {
        to[lo..hi].copy_from_slice(&row[from..from + hi - lo]);
    } else {
        for (to, x) in to[lo..hi].iter_mut().zip(row[from..].iter().step_by(step)) {
            *to = *x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copied_rows_are_zero_outside() {
        let row: Vec<f32> = (1..=7).map(|x| x as f32).collect();
        for first in -9..12isize {
            for step in 1..4usize {
                let mut to = [9.0; 6];
                copy_row(&mut to, Some(&row), first, step);
                for (i, &x) in to.iter().enumerate() {
                    let at = first + (i * step) as isize;
                    let want = if (0..7).contains(&at) {
                        row[at as usize]
                    } else {
                        0.0
                    };
                    assert_eq!(x, want, "first {first} step {step} i {i}");
                }
            }
        }
    }
}
