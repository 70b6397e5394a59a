//! Convolution of a picture with a small kernel, edges reflected (torch's `conv2d` after `pad(mode="reflect")`).
//!
//! Direct: an output row is a sum of shifted input rows, in chunks that stay in registers. No FFT: at 21 x 21 taps
//! and training crops this is a few milliseconds.

use super::Kernel;
use crate::Image;
use crate::image::reflect;

/// Output samples summed at once: eight 4-lane registers.
const CHUNK: usize = 32;

/// The picture correlated with `kernel` (all kernels here are symmetric about the centre); alpha is kept as it is.
pub fn filter2d(image: &Image, kernel: &Kernel) -> Image {
    let mut out = image.clone();
    for c in 0..3 {
        let filtered = correlate(
            image.plane(c),
            image.width,
            &kernel.taps,
            kernel.size,
            kernel.size,
        );
        out.plane_mut(c).copy_from_slice(&filtered);
    }
    out
}

/// A plane filtered by `taps` along its rows and then along its columns.
pub(crate) fn separable(plane: &[f32], width: usize, taps: &[f32]) -> Vec<f32> {
    let across = correlate(plane, width, taps, taps.len(), 1);
    correlate(&across, width, taps, 1, taps.len())
}

/// A plane correlated with taps `[rows, columns]`, both odd.
fn correlate(plane: &[f32], width: usize, taps: &[f32], columns: usize, rows: usize) -> Vec<f32> {
    let height = plane.len() / width;
    // Reflected copy, its rows rounded up to whole chunks (what lies beyond is computed and dropped).
    let chunks = width.div_ceil(CHUNK);
    let stride = chunks * CHUNK + columns - 1;
    let mut padded = vec![0.0f32; stride * (height + rows - 1)];
    for (y, row) in padded.chunks_exact_mut(stride).enumerate() {
        let source = &plane[reflect(y as isize - (rows / 2) as isize, height) * width..][..width];
        let left = columns / 2;
        row[left..left + width].copy_from_slice(source);
        for x in (0..left).chain(left + width..width + columns - 1) {
            row[x] = source[reflect(x as isize - left as isize, width)];
        }
    }

    let mut out = vec![0.0; plane.len()];
    for (y, target) in out.chunks_exact_mut(width).enumerate() {
        for (i, target) in target.chunks_mut(CHUNK).enumerate() {
            let mut sums = [0.0f32; CHUNK];
            for ky in 0..rows {
                let row = &padded[(y + ky) * stride + i * CHUNK..][..CHUNK + columns - 1];
                for (kx, &tap) in taps[ky * columns..(ky + 1) * columns].iter().enumerate() {
                    for (sum, v) in sums.iter_mut().zip(&row[kx..kx + CHUNK]) {
                        *sum += tap * v;
                    }
                }
            }
            target.copy_from_slice(&sums[..target.len()]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::degrade::kernel::Shape;

    fn picture(width: usize, height: usize) -> Image {
        Image::from_fn(width, height, |c, y, x| {
            ((x * 7 + y * 13 + c * 29) % 32) as f32 / 31.0
        })
    }

    #[test]
    fn a_delta_changes_nothing() {
        for (width, height) in [(40, 33), (3, 2), (1, 1), (64, 1)] {
            let delta = Kernel::new(
                21,
                Shape::Gaussian {
                    sigma: [0.0; 2],
                    rotation: 0.0,
                },
            );
            assert_eq!(
                filter2d(&picture(width, height), &delta),
                picture(width, height)
            );
        }
    }

    #[test]
    fn a_round_gaussian_is_a_row_and_a_column() {
        let image = picture(45, 37);
        let whole = filter2d(
            &image,
            &Kernel::new(
                13,
                Shape::Gaussian {
                    sigma: [1.6; 2],
                    rotation: 0.0,
                },
            ),
        );
        let line: Vec<f64> = (-6..=6)
            .map(|i| (-0.5 * (f64::from(i) / 1.6).powi(2)).exp())
            .collect();
        let sum: f64 = line.iter().sum();
        let line: Vec<f32> = line.iter().map(|tap| (tap / sum) as f32).collect();
        let parts = separable(image.plane(1), 45, &line);
        let worst = whole
            .plane(1)
            .iter()
            .zip(&parts)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(worst < 1e-6, "{worst}");
    }

    #[test]
    fn an_off_centre_tap_reads_the_neighbour_and_reflects() {
        let mut kernel = Kernel {
            size: 3,
            taps: vec![0.0; 9],
        };
        kernel.taps[5] = 1.0; // one to the right
        let (image, out) = (picture(40, 5), filter2d(&picture(40, 5), &kernel));
        assert_eq!(out.plane(0)[..39], image.plane(0)[1..40]);
        assert_eq!(out.plane(0)[39], image.plane(0)[38]);
    }
}
