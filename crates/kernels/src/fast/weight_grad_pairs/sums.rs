//! The sums of a task, by matrix tiles or by vectors.

#![expect(
    unsafe_code,
    reason = "raw addresses keep the inner loop free of bounds checks"
)]

use super::{
    super::{
        amx::{self, DEPTH, Next, SIDE, TILE, Tiles},
        simd::{Job, Simd},
    },
    PIXELS, RUN,
    grid::Operands,
};

/// One task: up to 32 input by 32 output channels, some taps.
pub(super) struct Block<'a> {
    pub(super) operands: &'a Operands,
    /// Their places on the grid, as in [`Operands::taps`].
    pub(super) taps: &'a [usize],
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) ci0: usize,
    pub(super) co0: usize,
}

/// Sums for each tap, input channels by output channels.
pub(super) type Sums = Vec<amx::Results>;

impl Block<'_> {
    fn zeros(&self) -> Sums {
        vec![amx::Results::ZERO; self.taps.len()]
    }

    pub(super) fn by_tiles(&self) -> Sums {
        let operands = self.operands;
        let tiles = Tiles::new().expect("the set has tiles");
        let mut sums = self.zeros();
        let steps: Vec<usize> = (0..RUN).map(|step| 4 * TILE * step).collect();
        let (rows, columns) = (self.inputs.div_ceil(SIDE), self.outputs.div_ceil(SIDE));
        for (image, run) in operands.runs() {
            let dy = operands.dy(image, self.co0 / SIDE, run.start);
            for (tap, sums) in self.taps.iter().zip(&mut sums) {
                let tile = amx::Operands {
                    a: (operands.x(image, self.ci0, run.start * PIXELS + tap)).cast(),
                    a_second: 2 * SIDE * operands.channel,
                    a_stride: 2 * operands.channel,
                    a_step: 2 * PIXELS,
                    b: dy,
                    b_second: 4 * operands.tiles * TILE,
                    b_stride: 4 * SIDE,
                    steps: &steps[..run.len()],
                    start: sums.place(),
                    out: sums.place(),
                    next: Next::nothing(dy),
                };
                // SAFETY: `x` has whole tiles of channels and, from any tap, whole tiles of pixels; `dy` has whole
                // tiles of both.
                unsafe { tiles.run([rows, columns], &tile) };
            }
        }
        sums
    }
}

/// A block's sums by vectors.
pub(super) struct ByVectors<'a>(pub(super) &'a Block<'a>);

impl Job for ByVectors<'_> {
    type Out = Sums;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Sums {
        let block = self.0;
        let operands = block.operands;
        let mut sums = block.zeros();
        let places: Vec<Place> = (0..block.outputs.div_ceil(SIDE))
            .flat_map(|group| (0..SIDE).step_by(S::LANES).map(move |lane| [group, lane]))
            .collect();
        let wide = S::GRAD_SUMS >= 24;
        for (image, run) in operands.runs() {
            let pairs = run.len() * DEPTH;
            let dy = |[group, lane]: Place| {
                let dy = operands.dy(image, block.co0 / SIDE + group, run.start);
                dy.wrapping_add(lane)
            };
            for (tap, sums) in block.taps.iter().zip(&mut sums) {
                let from = |c: usize| operands.x(image, block.ci0 + c, run.start * PIXELS + tap);
                let mut rest = &places[..];
                // SAFETY: as in `by_tiles`; channels past the block's inputs are not read.
                unsafe {
                    while let ([a, b, tail @ ..], true) = (rest, wide) {
                        let to = [(*a, dy(*a)), (*b, dy(*b))];
                        each::<S, 12, 2>(s, block.inputs, &from, to, pairs, sums);
                        rest = tail;
                    }
                    for &place in rest {
                        let to = [(place, dy(place))];
                        if wide {
                            each::<S, 16, 1>(s, block.inputs, &from, to, pairs, sums);
                        } else if S::GRAD_SUMS >= 8 {
                            each::<S, 8, 1>(s, block.inputs, &from, to, pairs, sums);
                        } else {
                            each::<S, 1, 1>(s, block.inputs, &from, to, pairs, sums);
                        }
                    }
                }
            }
        }
        sums
    }
}

/// A vector of a block's output channels: which sixteen, and the first lane.
type Place = [usize; 2];

/// Adds the products of all input channels with some vectors of output channels, `C` input channels at a time.
///
/// # Safety
/// `from` and the vectors are valid for `pairs` pairs.
#[inline(always)]
unsafe fn each<S: Simd, const C: usize, const N: usize>(
    s: S,
    inputs: usize,
    from: &impl Fn(usize) -> *const u16,
    to: [(Place, *const f32); N],
    pairs: usize,
    sums: &mut amx::Results,
) {
    let mut c = 0;
    // SAFETY: by the caller's promise.
    unsafe {
        while c + C <= inputs {
            add::<S, C, N>(s, from, to, pairs, sums, c);
            c += C;
        }
        while C > 4 && c + 4 <= inputs {
            add::<S, 4, N>(s, from, to, pairs, sums, c);
            c += 4;
        }
        while c < inputs {
            add::<S, 1, N>(s, from, to, pairs, sums, c);
            c += 1;
        }
    }
}

/// Adds the products of `C` input channels from `c` with `N` vectors of output channels.
///
/// # Safety
/// As [`each`].
#[inline(always)]
unsafe fn add<S: Simd, const C: usize, const N: usize>(
    s: S,
    from: &impl Fn(usize) -> *const u16,
    to: [(Place, *const f32); N],
    pairs: usize,
    sums: &mut amx::Results,
    c: usize,
) {
    let x: [*const u16; C] = std::array::from_fn(|i| from(c + i));
    let mut acc = [[s.splat(0.0); N]; C];
    for q in 0..pairs {
        // SAFETY: by the caller's promise.
        unsafe {
            let mut dy = [s.splat(0.0); N];
            for (v, (_, dy)) in dy.iter_mut().zip(to) {
                *v = s.load(dy.add(q * SIDE));
            }
            for (acc, x) in acc.iter_mut().zip(x) {
                let x = s.splat(x.add(2 * q).cast::<f32>().read_unaligned());
                for (acc, dy) in acc.iter_mut().zip(dy) {
                    *acc = s.dot2(x, dy, *acc);
                }
            }
        }
    }
    for (i, acc) in acc.iter().enumerate() {
        let c = c + i;
        for (&acc, ([group, lane], _)) in acc.iter().zip(to) {
            let to = &mut sums.0[c][group * SIDE + lane..][..S::LANES];
            // SAFETY: `to` is one vector.
            unsafe { s.store(to.as_mut_ptr(), s.add(s.load(to.as_ptr()), acc)) };
        }
    }
}
