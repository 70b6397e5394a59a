//! Blocks that compression left: how much larger steps at one place of a grid of 8 pixels are than at the next strongest.
//!
//! A step is `|d(x) - (d(x-1) + d(x+1)) / 2|` with `d(x) = p(x+1) - p(x)`, so that slopes cancel. Steps are averaged for
//! each `x mod 8` and `y mod 8`; the score is the largest mean over the second largest, averaged over both
//! directions. A grid that was shifted by a crop is found too.

/// Pictures with a shorter side say nothing.
const SHORTEST: usize = 64;

/// Steps are cut off here, so that a few hard edges do not decide.
const LARGEST: f32 = 0.1;

/// The score of a luma plane `[h, w]`: about 1 where nothing was compressed; none for small or flat pictures.
pub fn blockiness(luma: &[f32], width: usize, height: usize) -> Option<f64> {
    if width.min(height) < SHORTEST {
        return None;
    }
    let across = direction(luma, width, height, width, 1)?;
    let down = direction(luma, height, width, 1, width)?;
    Some(0.5 * (across + down))
}

/// The score along lines of `length` values `step` apart, of which there are `lines`, `next` apart.
fn direction(luma: &[f32], length: usize, lines: usize, next: usize, step: usize) -> Option<f64> {
    let (mut sums, mut counts) = ([0.0_f64; 8], [0_usize; 8]);
    for line in 0..lines {
        let p = |x: usize| luma[line * next + x * step];
        for x in 1..length - 2 {
            let d = p(x + 1) - p(x);
            let around = 0.5 * (p(x) - p(x - 1) + p(x + 2) - p(x + 1));
            sums[x % 8] += f64::from((d - around).abs().min(LARGEST));
            counts[x % 8] += 1;
        }
    }
    let mut means: [f64; 8] = std::array::from_fn(|i| sums[i] / counts[i] as f64);
    means.sort_by(f64::total_cmp);
    // Twice enlarged, every second mean is large; blocks make one.
    (means[6] > 1e-4).then(|| means[7] / means[6])
}

#[cfg(test)]
mod tests {
    use super::*;
    use pixels::{
        Image,
        colour::Luma,
        degrade::{Channels, gaussian_noise, jpeg},
        random::stream,
    };

    #[test]
    fn compression_raises_it_even_behind_a_crop() {
        let mut clean = Image::from_fn(192, 160, |_, y, x| {
            0.5 + 0.2 * (x as f32 / 11.0).sin() + 0.2 * (y as f32 / 7.0 + x as f32 / 23.0).cos()
        });
        gaussian_noise(&mut clean, 4.0, Channels::Shared, &mut stream(1, "grain"));
        let score = |image: &Image| {
            let luma = &Luma::Yiq.planes(image)[0];
            blockiness(luma, image.width, image.height).expect("large enough")
        };
        let low = jpeg(&clean, 20);
        assert!(score(&clean) < 1.1, "{}", score(&clean));
        assert!(score(&low) > 1.3, "{}", score(&low));
        let cropped = low.crop(3, 5, 150, 140);
        assert!(score(&cropped) > 1.3, "{}", score(&cropped));
        assert_eq!(blockiness(&[0.5; 64 * 64], 64, 64), None, "flat");
    }
}
