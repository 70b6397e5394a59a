//! One step of a run: samples, gradients over all ranks, the optimiser.

use std::time::Instant;

use burn::tensor::TensorData;
use pixels::random::stream;
use priors::weights::Values;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::{
    Error,
    checkpoint::State,
    config::{Precision, TrainConfig},
    data::{Loader, Sample},
    guard::Verdict,
    lent::Lent,
    loss_scale::LossScale,
    objective::{Evaluation, Objective},
    optimise::{AdamW, Named, average, clip, learning_rate},
    ranks::{Ranks, Share, total},
};

/// One line of the log.
#[derive(Clone, Debug, Serialize)]
pub struct StepRecord {
    /// The step just done, from 1.
    pub step: usize,
    /// Samples seen so far.
    pub images: usize,
    /// The loss of this step's batch.
    pub loss: f64,
    /// The gradient's global norm before clipping.
    pub gradient_norm: f64,
    /// The learning rate.
    pub lr: f64,
    /// The loss scale, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f32>,
    /// Seconds this step took.
    pub seconds: f64,
    /// Seconds of them in which it waited for samples.
    pub waited: f64,
}

/// Names and shapes of the trained tensors.
pub(crate) fn shapes_of(values: &Values) -> Vec<(String, Vec<usize>)> {
    let of =
        |(name, data): (&String, &TensorData)| (name.clone(), data.shape().as_slice().to_vec());
    values.iter().map(of).collect()
}

pub(crate) fn fresh(config: &TrainConfig, initial: Values) -> Result<State, Error> {
    let values = initial
        .into_iter()
        .map(|(name, data)| {
            (
                name,
                data.convert::<f32>()
                    .try_into_vec::<f32>()
                    .expect("converted to f32"),
            )
        })
        .collect::<Named>();
    Ok(State {
        average: if averages(config) {
            values.clone()
        } else {
            Named::new()
        },
        values,
        optimiser: AdamW::default(),
        step: 0,
        recent: Default::default(),
        loss_scale: LossScale::new(config.optimise.precision),
    })
}

/// What a step did.
pub(crate) struct Done {
    pub(crate) record: StepRecord,
    /// What was done about a gradient that overflowed and was not used.
    pub(crate) overflowed: Option<String>,
    /// Why its gradient was not used for another reason.
    pub(crate) wrong: Option<String>,
    pub(crate) passed_over: Vec<String>,
}

pub(crate) fn step(
    config: &TrainConfig,
    objective: &dyn Objective,
    (ranks, share): (&dyn Ranks, &Share),
    shapes: &[(String, Vec<usize>)],
    state: &mut State,
    loader: &mut Loader,
) -> Result<Done, Error> {
    let started = Instant::now();
    let mut batch = loader.batch(share.count())?;
    let waited = started.elapsed().as_secs_f64();
    let passed_over = batch
        .iter_mut()
        .flat_map(|sample| std::mem::take(&mut sample.passed_over))
        .collect();
    // By the sample's number in the run, so that it does not matter which rank draws it, nor beside which others.
    let mine = state.step * share.count()..(state.step + 1) * share.count();
    let mut draws: Vec<_> = mine
        .map(|i| stream(config.seed, &format!("noise {}", share.sample(i))))
        .collect();
    let scale = state.loss_scale.scale();
    let lent = Lent::new(std::mem::take(&mut state.values), shapes);
    let evaluation = kernels::in_pool(|| {
        kernels::with_products(config.optimise.precision.products(), || {
            evaluate(
                objective,
                lent.values(),
                &batch,
                &mut draws,
                config.optimise.batch,
                scale,
            )
        })
    });
    state.values = lent.back();
    let evaluation = total(ranks, share, shapes, evaluation?);
    let mut gradients = evaluation.gradients;
    state.loss_scale.unscale(&mut gradients);
    let gradient_norm = clip(&mut gradients, config.optimise.clip);
    let lr = learning_rate(&config.optimise, state.step);
    let overflowed = state.loss_scale.update(gradient_norm.is_finite());
    let verdict = match overflowed {
        Some(_) => Verdict::Sound,
        None => state
            .recent
            .judge(&config.guard, evaluation.loss, gradient_norm),
    };
    if verdict == Verdict::Sound && overflowed.is_none() {
        state
            .optimiser
            .step(&mut state.values, &gradients, lr, &config.optimise);
        if averages(config) {
            average(
                &mut state.average,
                &state.values,
                &config.optimise,
                state.step,
            );
        }
    }
    state.step += 1;
    Ok(Done {
        record: StepRecord {
            step: state.step,
            images: state.step * config.optimise.samples(),
            loss: evaluation.loss,
            gradient_norm,
            lr,
            loss_scale: (config.optimise.precision == Precision::F16).then_some(scale),
            seconds: started.elapsed().as_secs_f64(),
            waited,
        },
        overflowed,
        wrong: verdict.why(),
        passed_over,
    })
}

/// Loss and gradients of the samples of a step, `at_a_time` of them computed together: means over all, the gradients times
/// `scale`.
///
/// # Errors
/// As the objective's.
pub fn evaluate(
    objective: &dyn Objective,
    values: &Values,
    samples: &[Sample],
    draws: &mut [ChaCha8Rng],
    at_a_time: usize,
    scale: f32,
) -> Result<Evaluation, Error> {
    let mut sum: Option<Evaluation> = None;
    let all = samples.len() as f64;
    let batches = samples.chunks(at_a_time).zip(draws.chunks_mut(at_a_time));
    for (batch, draws) in batches {
        let mut one = objective.evaluate(values, batch, draws, scale)?;
        let part = batch.len() as f64 / all;
        if part != 1.0 {
            one.scale(part);
        }
        match &mut sum {
            Some(sum) => sum.add(one),
            none => *none = Some(one),
        }
    }
    Ok(sum.expect("a step has samples"))
}

pub(crate) fn averages(config: &TrainConfig) -> bool {
    config.optimise.ema_halflife_images > 0.0
}
