//! AdamW, gradient clipping, the learning rate and averaged weights, on host values keyed by name.
//!
//! ```text
//! theta <- theta (1 - lr wd)
//! m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2
//! theta <- theta - lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)
//! ```
//!
//! Source: Loshchilov and Hutter, 1711.05101; the arithmetic of PyTorch's `AdamW`.

use std::collections::{BTreeMap, btree_map::Entry};

use rayon::prelude::*;

use crate::config::Optimise;

/// Values by tensor name.
pub type Named = BTreeMap<String, Vec<f32>>;

/// Adds `more` of the same tensors to `sum`.
pub(crate) fn add_to(sum: &mut Named, more: Named) {
    for (name, values) in more {
        match sum.entry(name) {
            Entry::Vacant(entry) => {
                entry.insert(values);
            }
            Entry::Occupied(mut entry) => {
                let sum = entry.get_mut().par_iter_mut();
                sum.zip(values).for_each(|(sum, value)| *sum += value);
            }
        }
    }
}

/// Values a thread works on at a time.
const CHUNK: usize = 1 << 14;

/// Optimiser state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdamW {
    /// First moments.
    pub m: Named,
    /// Second moments.
    pub v: Named,
    /// Steps taken.
    pub step: usize,
}

impl AdamW {
    /// One step on `values`, in place; a tensor without a gradient stays as it is.
    pub fn step(&mut self, values: &mut Named, gradients: &Named, lr: f64, config: &Optimise) {
        self.step += 1;
        let (b1, b2) = (config.beta1, config.beta2);
        let rate = (lr / (1.0 - b1.powi(self.step as i32))) as f32;
        let root = (1.0 - b2.powi(self.step as i32)).sqrt() as f32;
        let keep = (1.0 - lr * config.weight_decay) as f32;
        let (b1, b2, eps) = (b1 as f32, b2 as f32, config.eps as f32);
        for (name, g) in gradients {
            let theta = values.get_mut(name).expect("a gradient belongs to a value");
            let m = self
                .m
                .entry(name.clone())
                .or_insert_with(|| vec![0.0; g.len()]);
            let v = self
                .v
                .entry(name.clone())
                .or_insert_with(|| vec![0.0; g.len()]);
            let update = |(((theta, m), v), g): (((&mut f32, &mut f32), &mut f32), &f32)| {
                *m += (g - *m) * (1.0 - b1);
                *v = *v * b2 + g * g * (1.0 - b2);
                *theta = *theta * keep - rate * *m / (v.sqrt() / root + eps);
            };
            theta
                .par_chunks_mut(CHUNK)
                .zip(m.par_chunks_mut(CHUNK))
                .zip(v.par_chunks_mut(CHUNK))
                .zip(g.par_chunks(CHUNK))
                .for_each(|(((theta, m), v), g)| {
                    theta
                        .iter_mut()
                        .zip(m.iter_mut())
                        .zip(v.iter_mut())
                        .zip(g)
                        .for_each(update);
                });
        }
    }
}

/// The global norm of all gradients together.
pub fn norm(gradients: &Named) -> f64 {
    // Sums of chunks, added in order: the same for any number of threads.
    let square = |g: &[f32]| g.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
    let sums = |g: &Vec<f32>| -> f64 {
        let sums: Vec<f64> = g.par_chunks(CHUNK).map(square).collect();
        sums.into_iter().sum()
    };
    gradients.values().map(sums).sum::<f64>().sqrt()
}

/// Scales the gradients so that their global norm is at most `most`; returns the norm before.
pub fn clip(gradients: &mut Named, most: f64) -> f64 {
    let norm = norm(gradients);
    if most > 0.0 && norm > most {
        let factor = (most / (norm + 1e-6)) as f32;
        let scale = |g: &mut [f32]| g.iter_mut().for_each(|g| *g *= factor);
        gradients
            .values_mut()
            .for_each(|g| g.par_chunks_mut(CHUNK).for_each(scale));
    }
    norm
}

/// The learning rate of step `step` (from 0): a linear warm-up, then half a cosine to the final rate.
pub fn learning_rate(config: &Optimise, step: usize) -> f64 {
    if step < config.warmup {
        return config.lr * (step + 1) as f64 / config.warmup as f64;
    }
    let length = config.steps.saturating_sub(config.warmup).max(1);
    let at = ((step - config.warmup) as f64 / length as f64).min(1.0);
    let fall = 0.5 * (1.0 + (std::f64::consts::PI * at).cos());
    config.lr * (config.final_lr + (1.0 - config.final_lr) * fall)
}

/// Moves the average towards `values`: `average <- d average + (1 - d) values`, with the half-life in
/// samples and a warm-up in which the half-life is at most a tenth of the samples seen so far.
pub fn average(average: &mut Named, values: &Named, config: &Optimise, step: usize) {
    let samples = config.samples() as f64;
    let seen = (step + 1) as f64 * samples;
    let halflife = config.ema_halflife_images.min(0.1 * seen).max(1e-9);
    let d = 0.5_f64.powf(samples / halflife) as f32;
    for (name, average) in average.iter_mut() {
        let values = &values[name];
        average
            .par_chunks_mut(CHUNK)
            .zip(values.par_chunks(CHUNK))
            .for_each(|(average, values)| {
                average
                    .iter_mut()
                    .zip(values)
                    .for_each(|(a, v)| *a = *v + (*a - *v) * d);
            });
    }
}
