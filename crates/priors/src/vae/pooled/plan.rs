//! Where the whole feature is kept, and the tiles between: the cheapest way that keeps no more than a budget.
//!
//! Features can be kept before norms, around what needs the whole, and at both ends. Going from one to another costs the steps between, and for
//! every norm between the steps up to it once more. Two neighbours are in memory together, so the sum of their sizes is held against the
//! budget. The cheapest path is found by dynamic programming over the few dozen places.

use std::ops::Range;

use super::step::{Chain, Step};

/// Rows and columns of a plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rect {
    pub(super) top: usize,
    pub(super) left: usize,
    pub(super) height: usize,
    pub(super) width: usize,
}

impl Rect {
    pub(super) fn whole(height: usize, width: usize) -> Self {
        Self {
            top: 0,
            left: 0,
            height,
            width,
        }
    }

    pub(super) fn map(self, f: impl Fn(usize) -> usize) -> Self {
        let Self {
            top,
            left,
            height,
            width,
        } = self;
        Self {
            top: f(top),
            left: f(left),
            height: f(height),
            width: f(width),
        }
    }
}

/// A tile at a stage's beginning.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    /// What it is given, halo and all.
    pub(super) grown: Rect,
    /// What is its own.
    core: Rect,
}

impl Tile {
    /// What is its own where what it covers has become `grown`.
    pub(super) fn core_at(&self, grown: Rect) -> Rect {
        let (now, then) = (grown.height, self.grown.height);
        self.core.map(|side| side * now / then)
    }
}

/// Tiles from one kept feature to the next.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The step it begins with.
    pub(super) from: usize,
    /// The step that it ends before.
    pub(super) to: usize,
    /// Norms between whose statistics need a run of their own.
    pub(super) inner: Vec<usize>,
    /// Where the tiles are.
    pub(super) tiles: Vec<Tile>,
    /// Shape of the feature it makes.
    pub(super) out: [usize; 3],
    /// Channels that are remembered beside it.
    pub(super) residual_channels: Option<usize>,
}

impl Stage {
    /// How many tiles it has.
    pub fn tiles(&self) -> usize {
        self.tiles.len()
    }
}

/// How a picture is encoded or decoded.
#[derive(Clone, Debug)]
pub struct Plan {
    /// One after the other.
    pub stages: Vec<Stage>,
    /// The most that kept features take at once, bytes.
    pub kept_bytes: usize,
    /// What the features of one tile take besides, bytes, about.
    pub tile_bytes: usize,
    /// What the features of the whole at once would take, bytes, about.
    pub whole_bytes: usize,
    /// Multiplications, repeated ones and halos included.
    pub work: f64,
    /// Multiplications of the whole at once.
    pub least_work: f64,
}

impl Plan {
    /// Whether the whole at once takes no more memory than tiles and what they keep.
    pub fn is_whole_as_small(&self) -> bool {
        self.whole_bytes <= self.kept_bytes + self.tile_bytes
    }
}

/// Features of a size that are in memory at once: a convolution's input and output, and what is remembered.
const LIVE: usize = 3;

/// A place between steps.
#[derive(Clone, Copy, Debug)]
struct Place {
    channels: usize,
    residual: Option<usize>,
    height: usize,
    width: usize,
    /// Multiplications of the steps before.
    work: f64,
}

impl Place {
    fn bytes(&self) -> usize {
        4 * (self.channels + self.residual.unwrap_or(0)) * self.height * self.width
    }
}

impl Chain<'_> {
    /// For an input of shape `[c, h, w]`; `tile` is the side of a tile where the chain is finest.
    pub(super) fn plan(&self, shape: [usize; 3], tile: usize, budget: usize) -> Plan {
        let places = self.places(shape);
        let n = self.steps.len();
        let is_norm = |i: usize| matches!(self.steps.get(i), Some(Step::Norm(..)));
        let is_whole = |i: usize| matches!(self.steps.get(i), Some(Step::Whole(_)));
        let stop = |i: &usize| {
            *i == 0 || *i == n || is_whole(*i) || is_whole(*i - 1) || self.entry_norm(*i).is_some()
        };
        let stops: Vec<usize> = (0..=n).filter(stop).collect();
        // All places' finest height says how many pixels of the chain's tile one of theirs has.
        let finest = places.iter().map(|place| place.height).max().unwrap_or(1);
        // The statistics of the first are made with the feature.
        let inner = |from: usize, to: usize| {
            let known = self.entry_norm(from).filter(|_| from > 0);
            (from..to).filter(move |&i| is_norm(i) && Some(i) != known)
        };
        let stage = |from: usize, to: usize| {
            self.stage(from, to, inner(from, to).collect(), &places, tile, finest)
        };
        let cost = |from: usize, to: usize| {
            let work = |to: usize| places[to].work - places[from].work;
            let inner: f64 = inner(from, to).map(work).sum();
            (work(to) + inner) * self.halo_factor(from, to, &places, tile, finest)
        };
        let allowed = |from: usize, to: usize| !(from..to).any(is_whole) || to == from + 1;
        // Ends are there anyway.
        let together = |from: usize, to: usize| places[from].bytes() + places[to].bytes();
        let mut limit = budget;
        let path = loop {
            let mut best: Vec<(f64, usize)> = vec![(f64::INFINITY, 0); n + 1];
            best[0] = (0.0, 0);
            for (j, &to) in stops.iter().enumerate().skip(1) {
                for &from in &stops[..j] {
                    let ends = from == 0 && to == n;
                    if best[from].0.is_finite()
                        && allowed(from, to)
                        && (ends || together(from, to) <= limit)
                    {
                        let sum = best[from].0 + cost(from, to);
                        if sum < best[to].0 {
                            best[to] = (sum, from);
                        }
                    }
                }
            }
            if best[n].0.is_finite() {
                let mut path = vec![n];
                while path[path.len() - 1] != 0 {
                    path.push(best[path[path.len() - 1]].1);
                }
                path.reverse();
                break path;
            }
            limit = limit.max(1) * 2;
        };
        let steps: Vec<(usize, usize)> = path.windows(2).map(|pair| (pair[0], pair[1])).collect();
        let largest = |places: &[Place]| {
            let bytes = |place: &Place| LIVE * 4 * place.channels * place.height * place.width;
            places.iter().map(bytes).max().unwrap_or(0)
        };
        let stages: Vec<Stage> = steps.iter().map(|&(a, b)| stage(a, b)).collect();
        let of_a_tile = |stage: &Stage| {
            let Place { height, width, .. } = places[stage.from];
            let area = |tile: &Tile| tile.grown.height * tile.grown.width;
            let part = stage.tiles.iter().map(area).max().unwrap_or(0);
            largest(&places[stage.from..=stage.to]) / (height * width) * part
        };
        Plan {
            tile_bytes: stages.iter().map(of_a_tile).max().unwrap_or(0),
            whole_bytes: largest(&places),
            kept_bytes: steps
                .iter()
                .map(|&(a, b)| together(a, b))
                .max()
                .unwrap_or(0),
            work: steps.iter().map(|&(a, b)| cost(a, b)).sum(),
            least_work: places[n].work,
            stages,
        }
    }

    /// The norm whose input is the feature before step `i`. A feature is kept before it is remembered, and not twice.
    pub(super) fn entry_norm(&self, i: usize) -> Option<usize> {
        let remembered = |i: usize| matches!(self.steps.get(i), Some(Step::Keep));
        let norm = if remembered(i) { i + 1 } else { i };
        let at = matches!(self.steps.get(norm), Some(Step::Norm(..)));
        (at && (i == 0 || !remembered(i - 1))).then_some(norm)
    }

    /// Shapes and work at each place.
    fn places(&self, [channels, height, width]: [usize; 3]) -> Vec<Place> {
        let mut at = Place {
            channels,
            residual: None,
            height,
            width,
            work: 0.0,
        };
        let mut places = vec![at];
        for step in &self.steps {
            let conv = |place: &Place, conv: &crate::nn::Conv2d| {
                let [out, inside, k, _] = conv.shape();
                (
                    out,
                    (out * inside * k * k) as f64 * (place.height * place.width) as f64,
                )
            };
            match step {
                Step::Conv(c) => {
                    let (out, work) = conv(&at, c);
                    (at.channels, at.work) = (out, at.work + work);
                }
                Step::Down(c) => {
                    (at.height, at.width) = (at.height / 2, at.width / 2);
                    let (out, work) = conv(&at, c);
                    (at.channels, at.work) = (out, at.work + work);
                }
                Step::Up => (at.height, at.width) = (2 * at.height, 2 * at.width),
                // A norm moves as much memory as some dozens of multiplications a value take time.
                Step::Norm(..) => at.work += 32.0 * (at.channels * at.height * at.width) as f64,
                Step::Keep => at.residual = Some(at.channels),
                Step::Add(shortcut) => {
                    let before = Place {
                        channels: at.residual.unwrap_or(at.channels),
                        ..at
                    };
                    at.work += shortcut.map_or(0.0, |c| conv(&before, c).1);
                    at.residual = None;
                }
                Step::Whole(_) => {
                    let tokens = (at.height * at.width) as f64;
                    let d = at.channels as f64;
                    at.work += 4.0 * tokens * d * d + 2.0 * tokens * tokens * d;
                }
            }
            places.push(at);
        }
        places
    }

    /// How many rows and columns beyond its own the first of `steps` must be given.
    fn halo(&self, steps: Range<usize>) -> usize {
        steps.rev().fold(0, |need: usize, i| match &self.steps[i] {
            Step::Conv(conv) => need + conv.shape()[2] / 2,
            Step::Down(_) => 2 * need + 1,
            Step::Up => need.div_ceil(2),
            // The shortcut's convolution is 1x1, and what is added was given as much.
            Step::Norm(..) | Step::Keep | Step::Add(_) | Step::Whole(_) => need,
        })
    }

    /// Side of a tile at place `i`, and its halo there, both multiples of what is halved until `to`.
    fn sides(
        &self,
        from: usize,
        to: usize,
        places: &[Place],
        tile: usize,
        finest: usize,
    ) -> (usize, usize) {
        let unit = (places[from].height / places[to].height).max(1);
        let side = (tile * places[from].height / finest)
            .max(8)
            .next_multiple_of(unit);
        (side, self.halo(from..to).next_multiple_of(unit))
    }

    fn halo_factor(
        &self,
        from: usize,
        to: usize,
        places: &[Place],
        tile: usize,
        finest: usize,
    ) -> f64 {
        let (side, halo) = self.sides(from, to, places, tile, finest);
        let factor = |plane: usize| {
            let side = side.min(plane);
            (side + 2 * halo).min(plane) as f64 / side as f64
        };
        factor(places[from].height) * factor(places[from].width)
    }

    fn stage(
        &self,
        from: usize,
        to: usize,
        inner: Vec<usize>,
        places: &[Place],
        tile: usize,
        finest: usize,
    ) -> Stage {
        let (side, halo) = self.sides(from, to, places, tile, finest);
        let (height, width) = (places[from].height, places[from].width);
        let (rows, columns) = (cuts(height, side, halo), cuts(width, side, halo));
        let mut tiles = Vec::new();
        for &[top, bottom, above, below] in &rows {
            for &[left, right, before, after] in &columns {
                tiles.push(Tile {
                    grown: Rect {
                        top: above,
                        left: before,
                        height: below - above,
                        width: after - before,
                    },
                    core: Rect {
                        top,
                        left,
                        height: bottom - top,
                        width: right - left,
                    },
                });
            }
        }
        Stage {
            from,
            to,
            inner,
            tiles,
            out: [places[to].channels, places[to].height, places[to].width],
            residual_channels: places[to].residual,
        }
    }
}

/// Pieces of a side of `length`: begin and end of each, and the same with the halo.
fn cuts(length: usize, side: usize, halo: usize) -> Vec<[usize; 4]> {
    let piece = |start: usize| {
        let end = (start + side).min(length);
        [
            start,
            end,
            start.saturating_sub(halo),
            (end + halo).min(length),
        ]
    };
    (0..length).step_by(side).map(piece).collect()
}
