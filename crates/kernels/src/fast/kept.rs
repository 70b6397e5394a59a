//! Memory that a thread keeps between operations: fresh pages cost more than filling them.

#![expect(unsafe_code, reason = "memory that is not zeroed")]

use std::cell::RefCell;

use super::shared::unwritten;

thread_local! {
    static KEPT: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Pieces that a thread keeps.
const MOST: usize = 2;

/// A packed operand or a part of one; it starts on a cache line.
pub(super) struct Kept {
    values: Vec<f32>,
    /// Values before the cache line.
    skip: usize,
}

impl Kept {
    /// At least `len` values that hold anything.
    ///
    /// # Safety
    /// Every value is written before it is read.
    pub(super) unsafe fn new(len: usize) -> Self {
        let kept = KEPT.with_borrow_mut(|kept| {
            let fits = kept.iter().position(|values| values.len() >= len + 32);
            fits.map(|i| kept.swap_remove(i))
        });
        // SAFETY: the caller's promise.
        let values = kept.unwrap_or_else(|| unsafe { unwritten::<f32>(len + 32) });
        let skip = values.as_ptr().align_offset(64).min(16);
        Self { values, skip }
    }

    /// The values.
    pub(super) fn get(&self) -> &[f32] {
        &self.values[self.skip..]
    }

    /// The values, to be written.
    pub(super) fn get_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.skip..]
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        // At the end of a thread there is nothing to keep it in.
        let _ = KEPT.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            kept.push(values);
            kept.sort_by_key(|values| std::cmp::Reverse(values.len()));
            kept.truncate(MOST);
        });
    }
}
