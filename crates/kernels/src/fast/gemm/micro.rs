//! The innermost loops: a block of packed rows times a packed panel.

use super::super::{
    isa::Isa,
    pairs::{Kernel, Pair, Product, Single},
    simd::{Job, Simd, dispatch, dispatch_pairs},
};

use std::marker::PhantomData;

/// What a block of the result starts from.
#[derive(Clone, Copy)]
pub(in super::super) enum Start<'a> {
    /// Zero.
    Zero,
    /// A value for each row.
    Row(&'a [f32]),
    /// A value for each column.
    Column(&'a [f32]),
    /// What the result holds (the chunks before).
    Output,
}

/// Rows of `a` and where their products go.
pub(in super::super) struct Block<'a> {
    /// `[depth, rows]`.
    pub(in super::super) a: &'a [f32],
    /// Rows.
    pub(in super::super) rows: usize,
    /// The first row's first column.
    pub(in super::super) c: *mut f32,
    /// What it starts from.
    pub(in super::super) start: Start<'a>,
}

/// Blocks times a panel.
pub(in super::super) struct Micro<'a> {
    /// Blocks of rows.
    pub(in super::super) blocks: &'a [Block<'a>],
    /// `[depth, width]`.
    pub(in super::super) b: &'a [f32],
    /// Two vectors.
    pub(in super::super) width: usize,
    /// Columns of the result, up to `width`.
    pub(in super::super) columns: usize,
    /// Floats between rows of the result.
    pub(in super::super) c_stride: usize,
    /// Elements of the chunk.
    pub(in super::super) depth: usize,
    /// The panel that comes next, of the same size: it is fetched while this one is used.
    pub(in super::super) next: *const f32,
}

/// Multiplies.
///
/// # Safety
/// `columns` values from `c` on in each of a block's rows are valid, and no one else uses them.
pub(in super::super) unsafe fn run(isa: Isa, kernel: Kernel, micro: &Micro<'_>) {
    match kernel {
        Kernel::Single => dispatch(isa, Vectors::<Single>(micro, PhantomData)),
        Kernel::Pair => dispatch_pairs(isa, Vectors::<Pair>(micro, PhantomData)),
        Kernel::Tiles => unreachable!("tiles have tasks of their own"),
    }
}

struct Vectors<'a, P>(&'a Micro<'a>, PhantomData<P>);

impl<P: Product> Job for Vectors<'_, P> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let micro = self.0;
        let share = micro.b.len().div_ceil(micro.blocks.len());
        for (i, block) in micro.blocks.iter().enumerate() {
            let next = micro.next.wrapping_add(i * share);
            macro_rules! pick {
                ($($m:literal)*) => {
                    match block.rows {
                        // SAFETY: `run`'s caller promised the result.
                        $($m if $m <= S::ROWS => unsafe {
                            if micro.columns > S::LANES {
                                tile::<S, P, $m, 2>(s, micro, block, next, share)
                            } else {
                                tile::<S, P, $m, 1>(s, micro, block, next, share)
                            }
                        },)*
                        rows => unreachable!("a block of {rows} rows"),
                    }
                };
            }
            pick!(1 2 3 4 5 6 7 8 9 10 11 12 13);
        }
    }
}

/// `M` rows by `N` vectors.
///
/// # Safety
/// As `run`.
#[inline(always)]
unsafe fn tile<S: Simd, P: Product, const M: usize, const N: usize>(
    s: S,
    micro: &Micro<'_>,
    block: &Block<'_>,
    mut next: *const f32,
    share: usize,
) {
    let Micro {
        depth,
        columns,
        c_stride,
        ..
    } = *micro;
    assert_eq!(micro.width, 2 * S::LANES);
    assert_eq!(micro.b.len(), depth * micro.width);
    assert_eq!(block.a.len(), depth * M);
    let mut sums = [[s.splat(0.0); N]; M];
    let step = share.div_ceil(depth);
    let (mut a, mut b) = (block.a.as_ptr(), micro.b.as_ptr());
    for _ in 0..depth {
        s.prefetch(next);
        next = next.wrapping_add(step);
        // SAFETY: the lengths were just checked.
        unsafe {
            let mut x = [s.splat(0.0); N];
            for (n, x) in x.iter_mut().enumerate() {
                *x = s.load(b.add(n * S::LANES));
            }
            for (m, sums) in sums.iter_mut().enumerate() {
                let w = s.splat(*a.add(m));
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum = P::accumulate(s, w, x, *sum);
                }
            }
            a = a.add(M);
            b = b.add(2 * S::LANES);
        }
    }
    for (m, sums) in sums.iter().enumerate() {
        for (n, &sum) in sums.iter().enumerate() {
            let valid = (columns - n * S::LANES).min(S::LANES);
            // SAFETY: `valid` values of this row are the caller's promise.
            unsafe {
                let c = block.c.add(m * c_stride + n * S::LANES);
                let from = begin(s, block.start, m, n * S::LANES, c, valid);
                put(s, c, s.add(from, sum), valid);
            }
        }
    }
}

/// What the vector of row `m` at `column` starts from.
///
/// # Safety
/// `valid` values at `c` may be read.
#[inline(always)]
pub(super) unsafe fn begin<S: Simd>(
    s: S,
    start: Start<'_>,
    m: usize,
    column: usize,
    c: *const f32,
    valid: usize,
) -> S::V {
    let get = |p: *const f32| {
        // SAFETY: `valid` values are inside the bias or the result.
        unsafe {
            if valid == S::LANES {
                s.load(p)
            } else {
                s.load_part(p, valid)
            }
        }
    };
    match start {
        Start::Zero => s.splat(0.0),
        Start::Row(bias) => s.splat(bias[m]),
        Start::Column(bias) => get(bias[column..column + valid].as_ptr()),
        Start::Output => get(c),
    }
}

/// Stores the first `valid` lanes.
///
/// # Safety
/// They may be written.
#[inline(always)]
pub(super) unsafe fn put<S: Simd>(s: S, c: *mut f32, v: S::V, valid: usize) {
    // SAFETY: by the caller's promise.
    unsafe {
        if valid == S::LANES {
            s.store(c, v);
        } else {
            s.store_part(c, v, valid);
        }
    }
}
