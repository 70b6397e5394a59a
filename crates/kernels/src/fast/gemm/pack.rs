//! Operands in the order in which the kernels read them.

use std::ops::Range;

use super::{
    super::{
        amx::{DEPTH, SIDE, TILE},
        simd::{Job, Simd},
        stored::Stored,
    },
    Operand,
};

/// The order of packed elements.
#[derive(Clone, Copy)]
pub(in super::super) enum Layout {
    /// `[elements, rows]` for so many rows; those that are missing are zero.
    Interleaved(usize),
    /// Tiles `[rows / 16, elements / 16, 16, 16]`.
    Tiles,
}

/// Packs rows `first..first + rows` of an operand, from element `skip` on, as `elements` of packed rows, with zeros after
/// the operand's end.
pub(in super::super) struct Pack<'a> {
    pub(in super::super) from: Operand<'a>,
    /// Values before the operand's first.
    pub(in super::super) offset: usize,
    pub(in super::super) first: usize,
    pub(in super::super) rows: usize,
    /// All values of a row.
    pub(in super::super) k: usize,
    /// Elements of the operand before the first that is packed.
    pub(in super::super) skip: usize,
    /// Values of an element, 1 or 2.
    pub(in super::super) values: usize,
    pub(in super::super) layout: Layout,
    pub(in super::super) elements: Range<usize>,
    /// Elements of a packed row.
    pub(in super::super) padded: usize,
    pub(in super::super) to: &'a mut [f32],
}

/// Most lanes.
const MOST: usize = 16;

/// Bytes of a row between what is packed and what is fetched.
const AHEAD: usize = 512;

/// A square of elements.
#[repr(C, align(64))]
struct Square([f32; MOST * MOST]);

impl Job for Pack<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let lanes = S::LANES;
        let mut first = Square([0.0; MOST * MOST]);
        let mut second = Square([0.0; MOST * MOST]);
        let room = match self.layout {
            Layout::Interleaved(rows) => rows,
            Layout::Tiles => self.rows.next_multiple_of(SIDE),
        };
        // By rows: a vector is elements of a row. By elements: a vector is rows of an element.
        let by_rows = self.from.k_stride == 1;
        let turned = by_rows != matches!(self.layout, Layout::Tiles);
        let to = std::mem::take(&mut self.to);
        for e0 in (0..self.elements.len()).step_by(lanes) {
            for r0 in (0..room).step_by(lanes) {
                let rows = self.rows.saturating_sub(r0).min(lanes);
                let pairs = if turned {
                    self.pairs(s, r0, rows, self.skip + e0)
                } else {
                    None
                };
                // No closures: they would not be compiled for the set.
                match (pairs, by_rows) {
                    (Some(_), _) => {}
                    (None, true) => self.rows_of(s, r0, rows, self.skip + e0, &mut first),
                    (None, false) => self.elements_of(s, r0, rows, self.skip + e0, &mut first),
                }
                if !turned {
                    self.put(s, &first, to, room, r0, e0);
                    continue;
                }
                let (from, from_stride) = pairs.unwrap_or((first.0.as_ptr(), lanes));
                let place = self.place(lanes, to, room, r0, e0);
                let (at, stride) = place.unwrap_or((second.0.as_mut_ptr(), lanes));
                // SAFETY: all are `lanes` rows of `lanes`.
                unsafe { s.transpose(from, from_stride, at, stride) };
                if place.is_none() {
                    self.put(s, &second, to, room, r0, e0);
                }
            }
        }
    }
}

impl Pack<'_> {
    /// Where value `k` of row `r` lies.
    #[inline(always)]
    fn at(&self, r: usize, k: usize) -> usize {
        self.offset + (self.first + r) * self.from.row_stride + k * self.from.k_stride
    }

    /// A square of pairs as they lie in the operand, and the elements between its rows.
    #[inline(always)]
    fn pairs<S: Simd>(
        &self,
        s: S,
        r0: usize,
        rows: usize,
        e0: usize,
    ) -> Option<(*const f32, usize)> {
        let (Stored::Bf16(bits), 2) = (self.from.values, self.values) else {
            return None;
        };
        let stride = self.from.row_stride;
        let whole = rows == S::LANES && (e0 + S::LANES) * 2 <= self.k;
        if !whole || self.from.k_stride != 1 || !stride.is_multiple_of(2) {
            return None;
        }
        let last = self.at(r0 + rows - 1, e0 * 2);
        let pairs: *const f32 = bits[self.at(r0, e0 * 2)..last + 2 * S::LANES]
            .as_ptr()
            .cast();
        for r in 0..rows {
            s.prefetch(pairs.wrapping_add(r * stride / 2).wrapping_byte_add(AHEAD));
        }
        Some((pairs, stride / 2))
    }

    /// Where a square belongs that is whole, and the elements between its rows.
    #[inline(always)]
    fn place(
        &self,
        lanes: usize,
        to: &mut [f32],
        room: usize,
        r0: usize,
        e0: usize,
    ) -> Option<(*mut f32, usize)> {
        match self.layout {
            Layout::Tiles => {
                let to = &mut to[self.tile(r0, e0)..][..TILE];
                Some((to.as_mut_ptr(), DEPTH))
            }
            Layout::Interleaved(_) => {
                if e0 + lanes > self.elements.len() || r0 + lanes > room {
                    return None;
                }
                let at = (self.elements.start + e0) * room + r0;
                let to = &mut to[at..at + (lanes - 1) * room + lanes];
                Some((to.as_mut_ptr(), room))
            }
        }
    }

    /// Where the tile of row `r0` and element `e0` begins.
    #[inline(always)]
    fn tile(&self, r0: usize, e0: usize) -> usize {
        (r0 / SIDE * (self.padded / DEPTH) + (self.elements.start + e0) / DEPTH) * TILE
    }

    /// `square[row][element]`.
    #[inline(always)]
    fn rows_of<S: Simd>(&self, s: S, r0: usize, rows: usize, e0: usize, square: &mut Square) {
        let lanes = S::LANES;
        let k0 = e0 * self.values;
        let count = self.k.saturating_sub(k0).min(lanes * self.values);
        let whole = count == lanes * self.values;
        for (r, to) in square.0.chunks_exact_mut(lanes).take(lanes).enumerate() {
            if r >= rows {
                to.fill(0.0);
                continue;
            }
            let values = self.from.values.part(self.at(r0 + r, k0), count);
            // So many rows are too many streams for the machine to follow by itself.
            s.prefetch(values.start().wrapping_byte_add(AHEAD));
            let mut wide = [0.0; 2 * MOST];
            // SAFETY: the part holds `count` values, `wide` two vectors and `to` one.
            unsafe {
                let v = match (self.values, whole) {
                    (1, true) => values.vector(s, 0),
                    (1, false) => {
                        values.widen(s, &mut wide[..count]);
                        s.load(wide.as_ptr())
                    }
                    (_, true) => match values {
                        // The bits already are pairs.
                        Stored::Bf16(bits) => s.load(bits.as_ptr().cast()),
                        _ => s.pairs_within(values.vector(s, 0), values.vector(s, lanes)),
                    },
                    _ => {
                        values.widen(s, &mut wide[..count]);
                        s.pairs_within(s.load(wide.as_ptr()), s.load(wide.as_ptr().add(lanes)))
                    }
                };
                s.store(to.as_mut_ptr(), v);
            }
        }
    }

    /// `square[element][row]`.
    #[inline(always)]
    fn elements_of<S: Simd>(&self, s: S, r0: usize, rows: usize, e0: usize, square: &mut Square) {
        let lanes = S::LANES;
        for (e, to) in square.0.chunks_exact_mut(lanes).take(lanes).enumerate() {
            let k = (e0 + e) * self.values;
            if k >= self.k || rows == 0 {
                to.fill(0.0);
                continue;
            }
            let v = match self.values {
                1 => self.column(s, r0, rows, k),
                _ if k + 1 < self.k => {
                    let next = self.column(s, r0, rows, k + 1);
                    s.pairs_across(self.column(s, r0, rows, k), next)
                }
                _ => s.pairs_across(self.column(s, r0, rows, k), s.splat(0.0)),
            };
            // SAFETY: `to` holds a vector.
            unsafe { s.store(to.as_mut_ptr(), v) };
        }
    }

    /// Value `k` of `rows` rows, zero after them.
    #[inline(always)]
    fn column<S: Simd>(&self, s: S, r0: usize, rows: usize, k: usize) -> S::V {
        let part = self.from.values.part(self.at(r0, k), rows);
        // SAFETY: the part holds `rows` values, the copy a vector.
        unsafe {
            if rows == S::LANES {
                return part.vector(s, 0);
            }
            let mut wide = [0.0; MOST];
            part.widen(s, &mut wide[..rows]);
            s.load(wide.as_ptr())
        }
    }

    /// Writes a square, whose elements are counted from the first of [`Self::elements`], in the layout.
    #[inline(always)]
    fn put<S: Simd>(
        &self,
        s: S,
        square: &Square,
        to: &mut [f32],
        room: usize,
        r0: usize,
        e0: usize,
    ) {
        let lanes = S::LANES;
        match self.layout {
            Layout::Tiles => {
                assert_eq!(lanes, DEPTH);
                to[self.tile(r0, e0)..][..TILE].copy_from_slice(&square.0);
            }
            Layout::Interleaved(_) => {
                let e0 = self.elements.start + e0;
                let count = lanes.min(self.elements.end - e0);
                let width = lanes.min(room - r0);
                let rows = square.0.chunks_exact(lanes).take(count);
                let to = &mut to[e0 * room..(e0 + count) * room];
                if width == lanes {
                    for (row, to) in rows.zip(to.chunks_exact_mut(room)) {
                        // SAFETY: `lanes` values from `r0` lie in a row of `room`.
                        unsafe { s.store(to[r0..r0 + lanes].as_mut_ptr(), s.load(row.as_ptr())) };
                    }
                    return;
                }
                for (row, to) in rows.zip(to.chunks_exact_mut(room)) {
                    // SAFETY: `width` values from `r0` lie in a row of `room`.
                    unsafe {
                        let v = s.load(row.as_ptr());
                        s.store_part(to[r0..].as_mut_ptr(), v, width);
                    }
                }
            }
        }
    }
}

impl Stored<'_> {
    /// The vector of values from `at` on.
    ///
    /// # Safety
    /// There are `LANES` of them.
    #[inline(always)]
    unsafe fn vector<S: Simd>(self, s: S, at: usize) -> S::V {
        // SAFETY: by the caller's promise; the 16-bit types are their bits.
        unsafe {
            match self {
                Stored::F32(values) => s.load(values.as_ptr().add(at)),
                Stored::Bf16(values) => s.load_bf16(values.as_ptr().add(at).cast()),
                Stored::F16(values) => s.load_f16(values.as_ptr().add(at).cast()),
            }
        }
    }
}
