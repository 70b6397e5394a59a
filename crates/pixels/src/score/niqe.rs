//! NIQE (Mittal, Soundararajan, Bovik 2013): how far the statistics of a picture are from those of pristine
//! photographs.
//!
//! The luma, as whole numbers, is cropped at the top left to multiples of 96 and normalised, (Y - mu) / (sigma + 1)
//! with 7 x 7 Gaussian windows of sigma 7/6 and replicated edges. Each 96 x 96 block gives 18 features: the AGGD of
//! its samples (shape, mean width), and of their products with the neighbour to the right, below, and on both
//! diagonals, wrapping inside the block (shape, mean, two widths). The same on half the size (MATLAB's bicubic
//! `imresize` with antialiasing, in `f32`) in blocks of 48 gives 36 in all. With their mean m and covariance S over
//! the blocks, and those of the pristine set, score = sqrt(d^T pinv((S + S_p) / 2) d), d = m_p - m.
//!
//! `niqe_pristine.f64` holds m_p (36) and S_p (36 x 36) as little-endian `f64`, from
//! `basicsr/metrics/niqe_pris_params.npz` of BasicSR 1.4.2 (Copyright 2018-2022 BasicSR Authors, Apache-2.0, text in
//! `niqe_pristine.LICENSE`; sha256 2a7c182a...c4296). A 512 x 512 picture has only 25 blocks for 36 features: expect jumps between near-equal
//! pictures.

use nalgebra::{DMatrix, DVector, SymmetricEigen};
use rayon::prelude::*;

use super::aggd::Aggd;
use super::rounded_planes;
use crate::colour::Luma;
use crate::{Error, Image};

const BLOCK: usize = 96;
const FEATURES: usize = 36;
const PRISTINE: &[u8; (FEATURES + FEATURES * FEATURES) * 8] = include_bytes!("niqe_pristine.f64");

/// NIQE; lower is better, photographs score about 3 to 6.
///
/// # Errors
/// `Mismatch` for [`Luma::Rgb`], a side below 96 pixels, or a picture without any texture.
pub fn niqe(image: &Image, luma: Luma) -> Result<f64, Error> {
    let mismatch = |expected: &str, got: String, advice| Error::Mismatch {
        what: "NIQE".to_owned(),
        expected: expected.to_owned(),
        got,
        advice,
    };
    if luma == Luma::Rgb {
        return Err(mismatch("a luma", "RGB".to_owned(), "choose yiq or ycbcr"));
    }
    let (columns, rows) = (image.width / BLOCK, image.height / BLOCK);
    if columns == 0 || rows == 0 {
        let got = format!("{}x{}", image.width, image.height);
        return Err(mismatch(
            "a picture of at least 96x96 pixels",
            got,
            "score a larger picture",
        ));
    }
    let image = image.crop(0, 0, columns * BLOCK, rows * BLOCK);
    let full = Plane {
        width: image.width,
        samples: rounded_planes(&image, luma).remove(0),
    };
    let half = full.halved();
    let mut features = full.features(BLOCK);
    for (row, more) in features.iter_mut().zip(half.features(BLOCK / 2)) {
        row.extend(more);
    }
    let score = distance(&features);
    if score.is_nan() {
        return Err(mismatch(
            "a picture with texture",
            "a flat one".to_owned(),
            "score a photograph",
        ));
    }
    Ok(score)
}

/// A plane of luma, 0 to 255.
struct Plane {
    width: usize,
    samples: Vec<f64>,
}

impl Plane {
    /// 18 features of each block, blocks row by row.
    fn features(&self, side: usize) -> Vec<Vec<f64>> {
        let normalised = self.normalised();
        let (columns, rows) = (self.width / side, self.samples.len() / self.width / side);
        let block = |i: usize| {
            let (top, left) = (i / columns * side, i % columns * side);
            let samples =
                (top..top + side).flat_map(|y| &normalised[y * self.width + left..][..side]);
            block_features(&samples.copied().collect::<Vec<f64>>(), side)
        };
        (0..rows * columns).into_par_iter().map(block).collect()
    }

    /// (Y - mu) / (sigma + 1).
    fn normalised(&self) -> Vec<f64> {
        let mu = self.window_means(&self.samples);
        let squares = self.window_means(&self.samples.iter().map(|y| y * y).collect::<Vec<f64>>());
        let pixels = self.samples.iter().zip(mu).zip(squares);
        pixels
            .map(|((y, mu), square)| (y - mu) / ((square - mu * mu).abs().sqrt() + 1.0))
            .collect()
    }

    /// Gaussian means, edges replicated; 2-D taps rounded to `f32`, because sigma is a small difference of large
    /// numbers.
    fn window_means(&self, samples: &[f64]) -> Vec<f64> {
        let gaussian = |i: usize, j: usize| {
            let (y, x) = (i as f64 - 3.0, j as f64 - 3.0);
            (-(x * x + y * y) / (2.0 * (7.0f64 / 6.0).powi(2))).exp()
        };
        let sum: f64 = (0..49).map(|k| gaussian(k / 7, k % 7)).sum();
        let taps: Vec<f64> = (0..49)
            .map(|k| f64::from((gaussian(k / 7, k % 7) / sum) as f32))
            .collect();
        let (width, height) = (self.width, samples.len() / self.width);
        let mut out = vec![0.0; samples.len()];
        out.par_chunks_exact_mut(width)
            .enumerate()
            .for_each(|(y, target)| {
                for i in 0..7 {
                    let row =
                        &samples[(y + i).saturating_sub(3).min(height - 1) * width..][..width];
                    let mut padded = vec![row[0]; 3];
                    padded.extend_from_slice(row);
                    padded.extend([row[width - 1]; 3]);
                    for j in 0..7 {
                        for (sum, v) in target.iter_mut().zip(&padded[j..]) {
                            *sum += taps[i * 7 + j] * v;
                        }
                    }
                }
            });
        out
    }

    /// `imresize(Y / 255, 0.5) * 255`: the cubic with a = -1/2 stretched to eight taps, edges mirrored, in `f32`.
    fn halved(&self) -> Self {
        let samples: Vec<f32> = self.samples.iter().map(|&v| (v / 255.0) as f32).collect();
        let height = samples.len() / self.width;
        let down = transposed(
            &halved_rows(&transposed(&samples, self.width), height),
            height / 2,
        );
        let across = halved_rows(&down, self.width);
        Self {
            width: self.width / 2,
            samples: across.iter().map(|&v| f64::from(v) * 255.0).collect(),
        }
    }
}

fn halved_rows(samples: &[f32], width: usize) -> Vec<f32> {
    let cubic = |x: f64| match x.abs() {
        x if x <= 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
        x if x <= 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
        _ => 0.0,
    };
    // The centre of output i lies between inputs 2 i and 2 i + 1: taps at distances 3.5, 2.5, .. -3.5.
    let taps: Vec<f32> = (0..8)
        .map(|k| (0.5 * cubic(0.5 * (3.5 - f64::from(k)))) as f32)
        .collect();
    let mirrored = |i: isize| {
        let i = i.rem_euclid(2 * width as isize);
        i.min(2 * width as isize - 1 - i) as usize
    };
    let at = |row: &[f32], i: usize| -> f32 {
        taps.iter()
            .enumerate()
            .map(|(k, tap)| tap * row[mirrored((2 * i + k) as isize - 3)])
            .sum()
    };
    samples
        .chunks_exact(width)
        .flat_map(|row| (0..width / 2).map(move |i| at(row, i)))
        .collect()
}

fn transposed(samples: &[f32], width: usize) -> Vec<f32> {
    (0..width)
        .flat_map(|x| samples.iter().skip(x).step_by(width).copied())
        .collect()
}

fn block_features(block: &[f64], side: usize) -> Vec<f64> {
    let own = Aggd::fit(block.iter().copied());
    let mut features = vec![own.alpha, (own.left + own.right) / 2.0];
    for (down, right) in [(0, 1), (1, 0), (1, 1), (1, side - 1)] {
        let shifted =
            |i: usize| (i / side + side - down) % side * side + (i % side + side - right) % side;
        let fit = Aggd::fit((0..block.len()).map(|i| block[i] * block[shifted(i)]));
        features.extend([fit.alpha, fit.mean(), fit.left, fit.right]);
    }
    features
}

/// sqrt(d^T pinv((S + S_p) / 2) d); means skip what is no number, S skips its whole block, and is 0 for a single
/// block.
fn distance(features: &[Vec<f64>]) -> f64 {
    let mut pristine = PRISTINE
        .as_chunks()
        .0
        .iter()
        .map(|&bytes| f64::from_le_bytes(bytes));
    let pristine_mean: Vec<f64> = pristine.by_ref().take(FEATURES).collect();
    let mut matrix = DMatrix::from_iterator(FEATURES, FEATURES, pristine); // symmetric: order is no matter

    let d = DVector::from_fn(FEATURES, |f, _| {
        let numbers = features.iter().map(|row| row[f]).filter(|v| !v.is_nan());
        let (sum, count) = numbers.fold((0.0, 0.0), |(sum, count), v| (sum + v, count + 1.0));
        pristine_mean[f] - sum / count
    });
    if d.iter().any(|v| v.is_nan()) {
        return f64::NAN;
    }
    let whole: Vec<&Vec<f64>> = features
        .iter()
        .filter(|row| row.iter().all(|v| !v.is_nan()))
        .collect();
    if whole.len() > 1 {
        let n = whole.len() as f64;
        let mean = |f: usize| whole.iter().map(|row| row[f]).sum::<f64>() / n;
        let centred = DMatrix::from_fn(whole.len(), FEATURES, |i, f| whole[i][f] - mean(f));
        matrix += centred.tr_mul(&centred) / (n - 1.0);
    }
    matrix /= 2.0;

    let eigen = SymmetricEigen::new(matrix);
    let largest = eigen.eigenvalues.amax();
    let along = eigen.eigenvectors.tr_mul(&d);
    let kept = along
        .iter()
        .zip(&eigen.eigenvalues)
        .filter(|(_, value)| value.abs() > FEATURES as f64 * f64::EPSILON * largest);
    kept.map(|(v, value)| v * v / value).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::synthetic;

    #[test]
    fn pyiqa_gives_the_same() {
        let (reference, distorted) = synthetic::pair();
        for (image, expected) in [(distorted, 27.754_409), (reference, 21.206_951)] {
            let got = niqe(&image, Luma::Yiq).expect("large enough");
            assert!(
                (got / expected - 1.0).abs() < 1e-3,
                "{got}, expected {expected}"
            );
        }
    }

    #[test]
    fn what_cannot_be_scored_is_an_error() {
        let flat = Image::from_fn(100, 100, |_, _, _| 0.5);
        assert!(
            niqe(&flat, Luma::Yiq)
                .expect_err("flat")
                .to_string()
                .contains("flat")
        );
        assert!(
            niqe(&flat.crop(0, 0, 95, 100), Luma::Yiq)
                .expect_err("small")
                .to_string()
                .contains("95x100")
        );
        assert!(niqe(&flat, Luma::Rgb).is_err());
    }

    #[test]
    fn halving_keeps_constants_and_reads_matlabs_taps() {
        let flat = Plane {
            width: 6,
            samples: vec![51.0; 24],
        };
        assert!(
            flat.halved()
                .samples
                .iter()
                .all(|v| (v - 51.0).abs() < 1e-4)
        );
        let mut impulse = Plane {
            width: 16,
            samples: vec![0.0; 256],
        };
        impulse.samples[8 * 16 + 8] = 255.0;
        let half = impulse.halved();
        // MATLAB: w(0.25)^2 / 4 with w the cubic; 0.8671875^2 / 4 * 255.
        assert!((half.samples[4 * 8 + 4] - 0.867_187_5f64.powi(2) / 4.0 * 255.0).abs() < 1e-3);
    }
}
