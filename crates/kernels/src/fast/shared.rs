//! Memory that tasks share: an output they write disjoint parts of, and scratch they keep.

#![expect(
    unsafe_code,
    reason = "tasks write interleaved, disjoint parts of one output"
)]

use std::{cell::RefCell, ops::Range};

use rayon::prelude::*;

use super::pairs::pair;

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

/// A vector of `len` values that hold anything: zeros cost a pass over memory, on one thread.
///
/// # Safety
/// `T` has no invalid bits, and every value is written before it is read.
#[expect(clippy::uninit_vec, reason = "what the caller promises")]
pub(super) unsafe fn unwritten<T: Copy>(len: usize) -> Vec<T> {
    let mut values = Vec::with_capacity(len);
    // SAFETY: the capacity was just reserved; for the rest the caller answers.
    unsafe { values.set_len(len) };
    values
}

/// Rows of `len` values of `from`, from each of `starts` on, one after the other.
pub(crate) fn gather(from: &[f32], starts: &[usize], len: usize) -> Vec<f32> {
    let rows = (GATHERED / len).max(1);
    // SAFETY: every row is written below.
    let mut to = unsafe { unwritten(starts.len() * len) };
    to.par_chunks_mut(rows * len)
        .zip(starts.par_chunks(rows))
        .for_each(|(to, starts)| {
            for (to, &start) in to.chunks_exact_mut(len).zip(starts) {
                to.copy_from_slice(&from[start..start + len]);
            }
        });
    to
}

/// An equal part of each operand in turn, so many times: `[images, first]` and `[images, second]` as `[images, first + second]`.
pub(crate) fn interleaved(images: usize, operands: [&[f32]; 2]) -> Vec<f32> {
    let whole: usize = operands.iter().map(|x| x.len()).sum();
    // SAFETY: every part is written below.
    let mut to = unsafe { unwritten(whole) };
    let mut rest: &mut [f32] = &mut to;
    let mut parts = Vec::with_capacity(2 * images);
    for image in 0..images {
        for x in operands {
            let size = x.len() / images;
            let (part, tail) = rest.split_at_mut(size);
            parts.push((part, &x[image * size..][..size]));
            rest = tail;
        }
    }
    parts.into_par_iter().for_each(|(to, from)| {
        to.par_chunks_mut(GATHERED)
            .zip(from.par_chunks(GATHERED))
            .for_each(|(to, from)| to.copy_from_slice(from));
    });
    to
}

/// Values that a task gathers.
const GATHERED: usize = 16 * 1024;

/// Which of a thread's scratch buffers.
#[derive(Clone, Copy)]
pub(super) enum Scratch {
    /// Padded or expanded input rows.
    Input,
    /// Transposed output gradients.
    Gradient,
    /// Products of transformed tiles.
    Products,
    /// Packed weights.
    Weights,
}

/// Lends `f` this thread's buffer of `len` floats, with whatever it last held.
pub(super) fn with_scratch<R>(which: Scratch, len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local! {
        static BUFFERS: [RefCell<Vec<f32>>; 4] = const { [const { RefCell::new(Vec::new()) }; 4] };
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
#[inline(always)]
pub(super) fn copy_row(to: &mut [f32], row: Option<&[f32]>, first: isize, step: usize) {
    copy_as(to, row, first, step, |x| x);
}

/// As [`copy_row`], each value through `convert`.
#[inline(always)]
pub(super) fn copy_as<T: Copy + Default>(
    to: &mut [T],
    row: Option<&[f32]>,
    first: isize,
    step: usize,
    convert: impl Fn(f32) -> T,
) {
    let row = row.unwrap_or(&[]);
    place(to, row.len(), first, step, |from| {
        row[from..].iter().map(|x| convert(*x))
    });
}

/// As [`copy_row`], of pairs of the values of two rows of the same length, the second of which may be missing.
#[inline(always)]
pub(super) fn copy_pairs(
    to: &mut [f32],
    row: Option<&[f32]>,
    second: Option<&[f32]>,
    first: isize,
    step: usize,
) {
    let Some(second) = second else {
        copy_as(to, row, first, step, |x| pair(x, 0.0));
        return;
    };
    let row = row.unwrap_or(&[]);
    place(to, row.len(), first, step, |from| {
        let values = row[from..].iter().zip(&second[from..]);
        values.map(|(a, b)| pair(*a, *b))
    });
}

/// Values of a row of `len` from column `first` in steps of `step`, with zeros where that is outside; `values(from)`
/// are the row's from column `from` on.
#[inline(always)]
fn place<T: Copy + Default, I: Iterator<Item = T>>(
    to: &mut [T],
    len: usize,
    first: isize,
    step: usize,
    values: impl FnOnce(usize) -> I,
) {
    let (inside, from) = overlap(to.len(), len, first, step);
    to[..inside.start].fill(T::default());
    to[inside.end..].fill(T::default());
    if inside.is_empty() {
        return;
    }
    let inside = to[inside].iter_mut();
    if step == 1 {
        inside.zip(values(from)).for_each(|(to, x)| *to = x);
    } else {
        let values = values(from).step_by(step);
        inside.zip(values).for_each(|(to, x)| *to = x);
    }
}

/// The columns, of `width`, whose source lies inside a row of `len`, and the first of these sources.
#[inline(always)]
fn overlap(width: usize, len: usize, first: isize, step: usize) -> (Range<usize>, usize) {
    let step_i = step as isize;
    let lo = if first < 0 {
        ((-first) as usize).div_ceil(step)
    } else {
        0
    };
    let lo = lo.min(width);
    let hi = (len as isize - first + step_i - 1)
        .div_euclid(step_i)
        .max(lo as isize);
    let hi = (hi as usize).min(width);
    (lo..hi, (first + (lo * step) as isize).max(0) as usize)
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
