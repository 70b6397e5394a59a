//! Whether a picture has the fine detail its size promises: an enlarged one has not.
//!
//! Squares of 64 pixels are Fourier-transformed along rows and columns (Hann window, mean removed). Of each square that
//! has any texture, the power at 0.66 to 0.94 of the Nyquist frequency is divided by that at 0.19 to 0.38; the
//! score is the value that a tenth of the squares exceed, because a photograph may be sharp in a small part only. Twice
//! enlarged, nothing is left above half of the Nyquist frequency.

/// Side of a square.
const SIDE: usize = 64;

/// Frequencies, in waves a square.
const COARSE: std::ops::Range<usize> = 6..12;
const FINE: std::ops::Range<usize> = 21..30;

/// Squares in each direction.
const ACROSS: usize = 12;

/// A square with less power a frequency has no texture. White noise of 2/255 has about this.
const TEXTURE: f64 = 1.5e-3;

/// Fewer squares with texture say nothing.
const ENOUGH: usize = 4;

/// The score of a luma plane `[h, w]`; none for pictures too small or too plain to tell.
pub fn fineness(luma: &[f32], width: usize, height: usize) -> Option<f64> {
    if width.min(height) < SIDE {
        return None;
    }
    let waves = waves();
    let places = |length: usize| {
        let room = length - SIDE;
        let count = (length / SIDE).min(ACROSS);
        (0..count).map(move |i| (room * i).checked_div(count - 1).unwrap_or(0))
    };
    let mut scores = Vec::new();
    for top in places(height) {
        for left in places(width) {
            let at = top * width + left;
            scores.extend(square(luma, at, width, &waves));
        }
    }
    if scores.len() < ENOUGH {
        return None;
    }
    scores.sort_by(f64::total_cmp);
    Some(scores[scores.len() - 1 - scores.len() / 10])
}

/// Windowed cosine and sine of each frequency that is used.
fn waves() -> Vec<(usize, [[f64; 2]; SIDE])> {
    let turn = |k: usize, x: usize| std::f64::consts::TAU * (k * x) as f64 / SIDE as f64;
    let window = |x: usize| 0.5 - 0.5 * turn(1, x).cos();
    let wave = |k: usize| {
        std::array::from_fn(|x| [turn(k, x).cos() * window(x), turn(k, x).sin() * window(x)])
    };
    COARSE.chain(FINE).map(|k| (k, wave(k))).collect()
}

/// The fine power of the square at `at` over its coarse power.
fn square(
    luma: &[f32],
    at: usize,
    width: usize,
    waves: &[(usize, [[f64; 2]; SIDE])],
) -> Option<f64> {
    let (mut coarse, mut fine) = (0.0, 0.0);
    for line in 0..SIDE {
        for (start, step) in [(at + line * width, 1), (at + line, width)] {
            let values: [f64; SIDE] = std::array::from_fn(|x| f64::from(luma[start + x * step]));
            let mean = values.iter().sum::<f64>() / SIDE as f64;
            for (k, wave) in waves {
                let (mut re, mut im) = (0.0, 0.0);
                for (value, [cos, sin]) in values.iter().zip(wave) {
                    re += (value - mean) * cos;
                    im += (value - mean) * sin;
                }
                let power = re * re + im * im;
                if COARSE.contains(k) {
                    coarse += power;
                } else {
                    fine += power;
                }
            }
        }
    }
    let mean = |sum: f64, range: std::ops::Range<usize>| sum / (2 * SIDE * range.len()) as f64;
    let coarse = mean(coarse, COARSE);
    (coarse > TEXTURE).then(|| mean(fine, FINE) / coarse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pixels::{
        Image,
        colour::Luma,
        degrade::{Channels, gaussian_noise},
        random::stream,
        resize::{Filter, scale},
    };

    fn score(image: &Image) -> Option<f64> {
        fineness(&Luma::Yiq.planes(image)[0], image.width, image.height)
    }

    #[test]
    fn enlarging_takes_the_finest_detail() {
        let grey = Image::from_fn(256, 192, |_, _, _| 0.5);
        let mut white = grey.clone();
        gaussian_noise(
            &mut white,
            40.0,
            Channels::Shared,
            &mut stream(2, "texture"),
        );
        assert!((score(&white).expect("textured") - 1.0).abs() < 0.3);
        for factor in [2, 3] {
            let large = scale(&white, 256 * factor, 192 * factor, Filter::CatmullRom);
            let score = score(&large).expect("textured");
            assert!(score < 0.03, "{factor}: {score}");
        }
        assert_eq!(score(&grey), None, "plain");
        assert_eq!(score(&white.crop(0, 0, 63, 192)), None, "small");
    }
}
