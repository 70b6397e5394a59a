//! `torch.nn.functional.interpolate(align_corners=False, antialias=False)` on pictures, for parity with pipelines
//! that call it.
//!
//! With the step `s` (input pixels per output pixel) output `i` reads around `s (i + 1/2) - 1/2`: linearly between
//! two pixels (the position clamped at 0), or by the cubic of Keys with A = -0.75 over four. `s` is `in / out` when
//! a size was asked for, but `1 / factor` when a factor was, although the size is then `floor(in * factor)`: torch
//! does not recompute it. `area` is `adaptive_avg_pool2d` and knows only the sizes. Positions and weights are `f32`,
//! as in torch.

use serde::{Deserialize, Serialize};

use crate::Image;

/// How [`interpolate`] reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The mean of the input pixels an output pixel touches.
    Area,
    /// Linear between neighbours, aliasing when it shrinks.
    Bilinear,
    /// Cubic, A = -0.75, aliasing when it shrinks; overshoots and is not clamped.
    Bicubic,
}

/// What [`interpolate`] is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// A size in pixels (`size=`).
    Size {
        /// Pixels per row.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// A factor for both sides (`scale_factor=`), rounded down, at least one pixel.
    Factor(f64),
}

/// The picture, and its alpha, resampled exactly as torch does it; values may leave `[0, 1]`.
///
/// # Panics
/// If the size asked for has a zero side.
pub fn interpolate(image: &Image, target: Target, mode: Mode) -> Image {
    let (width, height, step_x, step_y) = match target {
        Target::Size { width, height } => {
            assert!(
                width > 0 && height > 0,
                "a picture has pixels: got {width}x{height}"
            );
            (
                width,
                height,
                image.width as f32 / width as f32,
                image.height as f32 / height as f32,
            )
        }
        Target::Factor(factor) => {
            let side = |n: usize| ((n as f64 * factor).floor() as usize).max(1);
            (
                side(image.width),
                side(image.height),
                (1.0 / factor) as f32,
                (1.0 / factor) as f32,
            )
        }
    };
    if (width, height) == (image.width, image.height) && mode != Mode::Bicubic {
        return image.clone();
    }
    match mode {
        Mode::Area => image.with_planes(width, height, |plane| area(plane, image, width, height)),
        Mode::Bilinear => {
            let (columns, rows) = (
                linear_taps(image.width, width, step_x),
                linear_taps(image.height, height, step_y),
            );
            image.with_planes(width, height, |plane| {
                sample(plane, image.width, &columns, &rows)
            })
        }
        Mode::Bicubic => {
            let (columns, rows) = (
                cubic_taps(image.width, width, step_x),
                cubic_taps(image.height, height, step_y),
            );
            image.with_planes(width, height, |plane| {
                sample(plane, image.width, &columns, &rows)
            })
        }
    }
}

/// Where an output pixel reads, and with which weights.
type Taps<const N: usize> = ([usize; N], [f32; N]);

fn linear_taps(input: usize, output: usize, step: f32) -> Vec<Taps<2>> {
    let tap = |i: usize| {
        if input == output {
            return ([i, i], [1.0, 0.0]); // torch copies a side that keeps its size, whatever the factor
        }
        let position = (step * (i as f32 + 0.5) - 0.5).max(0.0);
        let first = (position as usize).min(input - 1);
        let t = (position - first as f32).clamp(0.0, 1.0);
        ([first, (first + 1).min(input - 1)], [1.0 - t, t])
    };
    (0..output).map(tap).collect()
}

fn cubic_taps(input: usize, output: usize, step: f32) -> Vec<Taps<4>> {
    const A: f32 = -0.75;
    let near = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let last = input as isize - 1;
    let tap = |i: usize| {
        let position = step * (i as f32 + 0.5) - 0.5;
        let first = (position.floor() as isize).min(last);
        let t = (position - first as f32).clamp(0.0, 1.0);
        let indices = [-1, 0, 1, 2].map(|k| (first + k).clamp(0, last) as usize);
        (
            indices,
            [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)],
        )
    };
    (0..output).map(tap).collect()
}

/// Rows first, then columns of the result, as torch nests its sums.
fn sample<const N: usize>(
    plane: &[f32],
    width: usize,
    columns: &[Taps<N>],
    rows: &[Taps<N>],
) -> Vec<f32> {
    let narrow: Vec<f32> = plane
        .chunks_exact(width)
        .flat_map(|row| {
            columns
                .iter()
                .map(|(at, weight)| (0..N).map(|k| row[at[k]] * weight[k]).sum::<f32>())
        })
        .collect();
    let mut out = vec![0.0; rows.len() * columns.len()];
    for (row, (at, weight)) in out.chunks_exact_mut(columns.len()).zip(rows) {
        for k in 0..N {
            let source = &narrow[at[k] * columns.len()..][..columns.len()];
            for (o, v) in row.iter_mut().zip(source) {
                *o += weight[k] * v;
            }
        }
    }
    out
}

/// Adaptive average pooling: output `o` is the mean of inputs `floor(o in/out) .. ceil((o + 1) in/out)`.
fn area(plane: &[f32], image: &Image, width: usize, height: usize) -> Vec<f32> {
    let span = |o: usize, input: usize, output: usize| {
        (o * input / output, ((o + 1) * input).div_ceil(output))
    };
    let mut out = Vec::with_capacity(width * height);
    for oy in 0..height {
        let (top, bottom) = span(oy, image.height, height);
        for ox in 0..width {
            let (left, right) = span(ox, image.width, width);
            let rows = plane[top * image.width..bottom * image.width].chunks_exact(image.width);
            let sum: f32 = rows.flat_map(|row| &row[left..right]).sum();
            out.push(sum / (bottom - top) as f32 / (right - left) as f32);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODES: [Mode; 3] = [Mode::Area, Mode::Bilinear, Mode::Bicubic];

    fn picture() -> Image {
        Image::from_fn(13, 11, |c, y, x| {
            ((x * 7 + y * 13 + c * 29) % 32) as f32 / 31.0
        })
    }

    #[test]
    fn the_same_size_is_the_same_picture() {
        for mode in MODES {
            assert_eq!(
                interpolate(
                    &picture(),
                    Target::Size {
                        width: 13,
                        height: 11
                    },
                    mode
                ),
                picture(),
                "{mode:?}"
            );
            assert_eq!(
                interpolate(&picture(), Target::Factor(1.0), mode),
                picture(),
                "{mode:?}"
            );
        }
    }

    #[test]
    fn a_constant_stays_constant() {
        let grey = Image::from_fn(13, 11, |_, _, _| 0.7);
        for mode in MODES {
            for target in [
                Target::Factor(0.31),
                Target::Factor(1.47),
                Target::Size {
                    width: 3,
                    height: 40,
                },
            ] {
                let out = interpolate(&grey, target, mode);
                assert!(
                    out.rgb.iter().all(|v| (v - 0.7).abs() < 3e-6),
                    "{mode:?} {target:?}"
                );
            }
        }
    }

    #[test]
    fn a_factor_rounds_the_size_down_but_never_to_nothing() {
        let out = interpolate(&picture(), Target::Factor(0.5), Mode::Area);
        assert_eq!((out.width, out.height), (6, 5));
        let out = interpolate(&picture(), Target::Factor(0.01), Mode::Bicubic);
        assert_eq!((out.width, out.height), (1, 1));
    }

    #[test]
    fn area_by_a_whole_factor_is_the_mean_of_blocks() {
        let image = Image::from_fn(4, 2, |_, y, x| (y * 4 + x) as f32);
        let out = interpolate(
            &image,
            Target::Size {
                width: 2,
                height: 1,
            },
            Mode::Area,
        );
        assert_eq!(out.plane(0), [2.5, 4.5]);
    }
}
