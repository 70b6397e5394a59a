//! Mean and variance of a norm's groups, pooled over tiles.

use rayon::prelude::*;

use super::plan::Rect;

/// Number, mean and sum of squared distances to it, of each group of channels.
#[derive(Clone, Debug)]
pub(super) struct Moments {
    channels: usize,
    groups: Vec<Group>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Group {
    n: f64,
    mean: f64,
    m2: f64,
}

impl Group {
    /// Those of both together (Chan, Golub, LeVeque 1983).
    fn with(self, other: Self) -> Self {
        let n = self.n + other.n;
        if n == 0.0 {
            return self;
        }
        let d = other.mean - self.mean;
        Self {
            n,
            mean: self.mean + d * other.n / n,
            m2: self.m2 + other.m2 + d * d * self.n * other.n / n,
        }
    }
}

impl Moments {
    /// Of nothing yet.
    pub(super) fn new(channels: usize, groups: usize) -> Self {
        Self {
            channels,
            groups: vec![Group::default(); groups],
        }
    }

    /// Adds the part `core` of a tile's values `[c, h, w]`, which cover `grown`.
    pub(super) fn add(&mut self, tile: &[f32], grown: Rect, core: Rect) {
        let per_group = self.channels / self.groups.len();
        let row = |channel: usize, y: usize| {
            let at = (channel * grown.height + core.top - grown.top + y) * grown.width + core.left
                - grown.left;
            &tile[at..at + core.width]
        };
        self.groups
            .par_iter_mut()
            .enumerate()
            .for_each(|(i, group)| {
                let rows = || {
                    let channels = i * per_group..(i + 1) * per_group;
                    channels.flat_map(|channel| (0..core.height).map(move |y| row(channel, y)))
                };
                let n = (per_group * core.height * core.width) as f64;
                let mean = rows().map(sum).sum::<f64>() / n;
                let centre = mean as f32;
                let squares = rows().map(|row| squares(row, centre)).sum::<f64>();
                let off = mean - f64::from(centre);
                *group = group.with(Group {
                    n,
                    mean,
                    m2: squares - n * off * off,
                });
            });
    }

    /// Each channel's mean and reciprocal standard deviation.
    pub(super) fn per_channel(&self, eps: f64) -> impl Iterator<Item = (f64, f64)> + '_ {
        let per_group = self.channels / self.groups.len();
        self.groups.iter().flat_map(move |group| {
            let rstd = 1.0 / (group.m2 / group.n + eps).sqrt();
            std::iter::repeat_n((group.mean, rstd), per_group)
        })
    }
}

/// Eight f32 sums side by side within a row, f64 across rows.
fn sum(row: &[f32]) -> f64 {
    lanes(row, |x| x)
}

fn squares(row: &[f32], centre: f32) -> f64 {
    lanes(row, |x| (x - centre) * (x - centre))
}

fn lanes(row: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let mut sums = [0.0f32; 8];
    let (blocks, rest) = row.as_chunks::<8>();
    for block in blocks {
        for (sum, &x) in sums.iter_mut().zip(block) {
            *sum += f(x);
        }
    }
    let whole: f64 = sums.iter().map(|&sum| f64::from(sum)).sum();
    whole + rest.iter().map(|&x| f64::from(f(x))).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_pool_to_the_moments_of_the_whole() {
        let (c, h, w) = (4, 6, 20);
        // A mean that differs from tile to tile: the variances' average would miss most of it.
        let values: Vec<f32> = (0..c * h * w)
            .map(|i| 100.0 + (i % w) as f32 + (i * 7 % 5) as f32)
            .collect();
        let mut whole = Moments::new(c, 2);
        whole.add(&values, Rect::whole(h, w), Rect::whole(h, w));
        let mut pooled = Moments::new(c, 2);
        for left in [0, 8, 16] {
            let core = Rect {
                top: 0,
                left,
                height: h,
                width: 8.min(w - left),
            };
            pooled.add(&values, Rect::whole(h, w), core);
        }
        for (a, b) in whole.per_channel(0.0).zip(pooled.per_channel(0.0)) {
            assert!(
                (a.0 - b.0).abs() < 1e-9 && (a.1 / b.1 - 1.0).abs() < 1e-6,
                "{a:?} {b:?}"
            );
        }
        let n = (2 * h * w) as f64;
        let exact = values[..2 * h * w]
            .iter()
            .map(|&v| f64::from(v))
            .collect::<Vec<_>>();
        let mean = exact.iter().sum::<f64>() / n;
        let variance = exact.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        let (got, rstd) = pooled.per_channel(0.0).next().expect("a channel");
        assert!((got - mean).abs() < 1e-9 && (rstd * variance.sqrt() - 1.0).abs() < 1e-6);
    }
}
