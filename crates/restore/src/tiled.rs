//! Overlapping tiles with smooth weights: any size in bounded memory.
//!
//! Every position's result is the weighted mean over the tiles that hold it. A tile's weight rises
//! over its overlap along half a cosine and is 1 inside, at the picture's border it stays 1; or it is a Gaussian about the
//! tile's middle. Tiles begin at multiples of a grid, the last one flush with the border.

use std::f64::consts::PI;

use burn::tensor::{DType, Device, Tensor, TensorData};
use serde::Serialize;

/// A rectangle of rows and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

/// What a tile weighs where it overlaps others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TileWeights {
    /// Half a cosine over the overlap, 1 inside.
    Cosine,
    /// `exp(-(x - mid)^2 / (2 (0.1 side)^2))` in both directions, as Mixture of Diffusers and SUPIR weigh; theirs sets the rows'
    /// middle half a row lower than the columns'.
    Gaussian,
}

/// The Gaussian's deviation as a part of the tile's side: a variance of 0.01.
const DEVIATION: f64 = 0.1;

/// How a plane is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Rows of the plane.
    pub height: usize,
    /// Columns of the plane.
    pub width: usize,
    /// Side of a tile.
    pub tile: usize,
    /// How much neighbours share.
    pub overlap: usize,
    /// Tiles begin at multiples of this; plane, tile and overlap are multiples too.
    pub grid: usize,
    /// What they weigh.
    pub weights: TileWeights,
}

impl Tiling {
    /// The whole plane as one tile.
    pub fn whole(height: usize, width: usize) -> Self {
        Self {
            height,
            width,
            tile: height.max(width),
            overlap: 0,
            grid: 1,
            weights: TileWeights::Cosine,
        }
    }

    /// All tiles, row by row.
    pub fn tiles(&self) -> Vec<Tile> {
        let rows = self.starts(self.height);
        let columns = self.starts(self.width);
        let tile = |(&top, &left): (&usize, &usize)| Tile {
            top,
            left,
            height: self.tile.min(self.height),
            width: self.tile.min(self.width),
        };
        rows.iter()
            .flat_map(|top| columns.iter().map(move |left| (top, left)))
            .map(tile)
            .collect()
    }

    fn starts(&self, side: usize) -> Vec<usize> {
        if side <= self.tile {
            return vec![0];
        }
        let stride = self.tile - self.overlap;
        let count = (side - self.overlap).div_ceil(stride);
        let last = side - self.tile;
        // Evenly spread, so that no two tiles share much more than the others.
        let at = |i: usize| last * i / (count - 1) / self.grid * self.grid;
        (0..count)
            .map(|i| if i + 1 == count { last } else { at(i) })
            .collect()
    }

    /// The weight of position `i` of a tile of `length` that starts at `start` on a side of `side`.
    fn ramp(&self, start: usize, length: usize, side: usize, i: usize) -> f32 {
        if self.weights == TileWeights::Gaussian {
            let from_middle = (i as f64 + 0.5) / length as f64 - 0.5;
            return (-0.5 * (from_middle / DEVIATION).powi(2)).exp() as f32;
        }
        let rise = |distance: usize| {
            let at = (distance as f64 + 0.5) / self.overlap.max(1) as f64;
            if at >= 1.0 {
                1.0
            } else {
                0.5 - 0.5 * (PI * at).cos()
            }
        };
        let before = if start == 0 { 1.0 } else { rise(i) };
        let after = if start + length == side {
            1.0
        } else {
            rise(length - 1 - i)
        };
        (before * after) as f32
    }

    /// The weights of a tile, row-major.
    pub fn weights(&self, tile: Tile) -> Vec<f32> {
        let rows: Vec<f32> = (0..tile.height)
            .map(|y| self.ramp(tile.top, tile.height, self.height, y))
            .collect();
        let columns: Vec<f32> = (0..tile.width)
            .map(|x| self.ramp(tile.left, tile.width, self.width, x))
            .collect();
        rows.iter()
            .flat_map(|row| columns.iter().map(move |column| row * column))
            .collect()
    }
}

/// A weighted mean that grows tile by tile.
#[derive(Debug)]
pub struct Blend {
    tiling: Tiling,
    channels: usize,
    sum: Vec<f32>,
    weight: Vec<f32>,
}

impl Blend {
    /// An empty mean of `channels` planes.
    pub fn new(tiling: Tiling, channels: usize) -> Self {
        let area = tiling.height * tiling.width;
        Self {
            tiling,
            channels,
            sum: vec![0.0; channels * area],
            weight: vec![0.0; area],
        }
    }

    /// Adds a tile's values `[c, h, w]`.
    pub fn add(&mut self, tile: Tile, values: &[f32]) {
        let Tiling { height, width, .. } = self.tiling;
        let weights = self.tiling.weights(tile);
        assert_eq!(
            values.len(),
            self.channels * weights.len(),
            "a tile of {} channels",
            self.channels
        );
        for y in 0..tile.height {
            let row = &weights[y * tile.width..(y + 1) * tile.width];
            let at = (tile.top + y) * width + tile.left;
            self.weight[at..at + tile.width]
                .iter_mut()
                .zip(row)
                .for_each(|(sum, w)| *sum += w);
            for c in 0..self.channels {
                let from = (c * tile.height + y) * tile.width;
                let to = c * height * width + at;
                let values = &values[from..from + tile.width];
                let sums = &mut self.sum[to..to + tile.width];
                sums.iter_mut()
                    .zip(values)
                    .zip(row)
                    .for_each(|((sum, v), w)| *sum += v * w);
            }
        }
    }

    /// The mean, `[c, h, w]`.
    pub fn finish(mut self) -> Vec<f32> {
        for plane in self.sum.chunks_mut(self.weight.len()) {
            plane
                .iter_mut()
                .zip(&self.weight)
                .for_each(|(sum, w)| *sum /= w);
        }
        self.sum
    }
}

/// The part of `x` `[1, c, h, w]` under `tile`.
pub fn cut(x: &Tensor<4>, tile: Tile) -> Tensor<4> {
    let [b, c, _, _] = x.dims();
    x.clone().slice([
        0..b,
        0..c,
        tile.top..tile.top + tile.height,
        tile.left..tile.left + tile.width,
    ])
}

/// Host values of a tensor.
pub(crate) fn host(x: Tensor<4>) -> Vec<f32> {
    x.into_data()
        .convert::<f32>()
        .try_into_vec()
        .expect("converted to f32")
}

/// A tensor `[1, c, h, w]` of host values.
pub(crate) fn device_tensor(values: Vec<f32>, shape: [usize; 3], device: &Device) -> Tensor<4> {
    let [c, h, w] = shape;
    Tensor::from_data(TensorData::new(values, [1, c, h, w]), (device, DType::F32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_the_plane_and_keep_to_the_grid() {
        for (height, width) in [(96, 200), (64, 64), (60, 132), (16, 500)] {
            let tiling = Tiling {
                height,
                width,
                tile: 64,
                overlap: 16,
                grid: 4,
                weights: TileWeights::Cosine,
            };
            let mut covered = vec![false; height * width];
            for tile in tiling.tiles() {
                assert!(tile.top % 4 == 0 && tile.left % 4 == 0, "{tile:?}");
                for y in tile.top..tile.top + tile.height {
                    covered[y * width + tile.left..y * width + tile.left + tile.width].fill(true);
                }
            }
            assert!(covered.into_iter().all(|c| c), "{height}x{width}");
        }
    }

    #[test]
    fn neighbours_share_at_least_the_overlap() {
        let tiling = Tiling {
            height: 64,
            width: 500,
            tile: 64,
            overlap: 16,
            grid: 4,
            weights: TileWeights::Cosine,
        };
        let tiles = tiling.tiles();
        for pair in tiles.windows(2) {
            assert!(pair[0].left + 64 >= pair[1].left + 16, "{pair:?}");
        }
    }

    #[test]
    fn blending_the_pieces_of_a_plane_gives_the_plane() {
        for weights in [TileWeights::Cosine, TileWeights::Gaussian] {
            let tiling = Tiling {
                height: 96,
                width: 132,
                tile: 64,
                overlap: 16,
                grid: 4,
                weights,
            };
            let plane: Vec<f32> = (0..2 * 96 * 132).map(|i| (i % 97) as f32 / 97.0).collect();
            let x = device_tensor(plane.clone(), [2, 96, 132], &Device::flex());
            let mut blend = Blend::new(tiling, 2);
            for tile in tiling.tiles() {
                blend.add(tile, &host(cut(&x, tile)));
            }
            let worst = blend
                .finish()
                .iter()
                .zip(&plane)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            assert!(worst < 1e-6, "{weights:?} {worst}");
        }
    }

    #[test]
    fn a_gaussian_is_that_of_its_formula_and_symmetric() {
        let tiling = Tiling {
            weights: TileWeights::Gaussian,
            ..Tiling::whole(8, 10)
        };
        let tile = tiling.tiles()[0];
        let weights = tiling.weights(tile);
        assert!(
            weights
                .iter()
                .zip(weights.iter().rev())
                .all(|(a, b)| (a / b - 1.0).abs() < 1e-5)
        );
        // Row 2 of 8 and column 9 of 10: middles 3.5 and 4.5.
        let of =
            |x: f64, mid: f64, side: f64| (-(x - mid).powi(2) / (2.0 * 0.01 * side * side)).exp();
        let want = of(2.0, 3.5, 8.0) * of(9.0, 4.5, 10.0);
        assert!((f64::from(weights[2 * 10 + 9]) / want - 1.0).abs() < 1e-5);
    }
}
