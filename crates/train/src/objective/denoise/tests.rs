use std::{collections::BTreeSet, path::Path};

use burn::tensor::TensorData;
use pixels::random::stream;
use priors::scheduler::{End, Prediction, Spacing};
use restore::{
    adapter::{BlockKind, UnetAdapterConfig, save_encoder},
    schedule::alphas_cumprod,
};
use tempfile::TempDir;

use super::*;
use crate::{
    config::{DenoiseLoss, Sizes},
    data::{Encoded, Place},
    priors_on_disk,
    walk::{Inputs, Text},
};

const FLOW: SchedulerConfig = SchedulerConfig::Flow {
    train_timesteps: 1000,
    shift: 1.0,
    spacing: Spacing::Trailing,
};

fn diffusion(prediction: Prediction) -> SchedulerConfig {
    SchedulerConfig::Diffusion {
        train_timesteps: 1000,
        beta_start: 0.000_85,
        beta_end: 0.012,
        prediction,
        spacing: Spacing::Leading,
        steps_offset: 1,
        end: End::Clean,
    }
}

fn schedulers() -> [SchedulerConfig; 3] {
    [
        FLOW,
        diffusion(Prediction::Epsilon),
        diffusion(Prediction::VPrediction),
    ]
}

/// A prior of SDXL's shape with an adapter to train; the folder is to be kept while it is used.
fn setup(change: impl FnOnce(&mut TrainConfig, &Path)) -> (TempDir, Denoise) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let prior = folder.path().join("prior");
    priors_on_disk::sdxl(&prior);
    let text = format!(
        "stage = \"adapter\"\nmodel = '{}'\nout = 'unused'\nstart = \"fresh\"\n[data]\nimages = 'unused'\ncrop_px = 32\n[optimise]\nsteps = 1\nbatch = 3\nlr = 1e-3\n",
        prior.display()
    );
    let mut config: TrainConfig = toml::from_str(&text).expect("a configuration");
    config.denoise.lq_target = 0.0;
    config.adapter = Some(AdapterConfig::Unet(UnetAdapterConfig {
        block: BlockKind::D3,
        after: vec![0, 1, 2, 3, 4, 5],
        lq_channels: 4,
        d_emb: 32,
        groups: 4,
    }));
    change(&mut config, folder.path());
    let objective = Denoise::new(&config, &Device::flex()).expect("a tiny prior");
    (folder, objective)
}

fn with_loss(change: impl FnOnce(&mut DenoiseLoss)) -> (TempDir, Denoise) {
    setup(|config, _| change(&mut config.denoise))
}

/// The same prior with another noise schedule.
fn scheduled(objective: &mut Denoise, scheduler: &SchedulerConfig) {
    objective.scheduler = scheduler.clone();
    objective.levels = Levels::new(scheduler, &objective.config.denoise);
}

/// Three samples, 16 rows and 32 columns, with other pictures for another `phase`.
fn batch(phase: f32) -> Vec<Sample> {
    let picture = |i: usize, phase: f32| {
        Image::from_fn(32, 16, |c, y, x| {
            let angle = phase + (i + 1) as f32 * (0.3 * x as f32 + 0.5 * y as f32) + c as f32;
            0.5 + 0.4 * angle.sin()
        })
    };
    let sample = |i: usize| Sample {
        hq: picture(i, phase),
        lq: picture(i, phase + 1.0),
        caption: "a photo".into(),
        descriptors: vec!["low quality", "noisy"],
        drawn: vec![],
        name: i.to_string(),
        passed_over: vec![],
        encoded: Encoded::Never,
        place: Place {
            photo_px: [480 + i, 640],
            corner_px: [7, 11 + i],
        },
    };
    (0..3).map(sample).collect()
}

fn fed(objective: &Denoise, batch: &[Sample]) -> (Inputs, Tensor<4>, Tensor<4>) {
    let mut draws = [1, 2, 3].map(|seed| stream(seed, "test"));
    objective.feed(batch, &mut draws).expect("feeds")
}

/// The latents of the clean and of the low-quality pictures by the prior's own encoder.
fn latents(objective: &Denoise, batch: &[Sample]) -> [Tensor<4>; 2] {
    let of = |image: fn(&Sample) -> &Image| {
        let images: Vec<&Image> = batch.iter().map(image).collect();
        let pictures = tensor_from_images(&images, &Device::flex());
        objective.vae.latent_from_image(pictures)
    };
    [of(|sample| &sample.hq), of(|sample| &sample.lq)]
}

fn column(values: impl IntoIterator<Item = f64>) -> Tensor<4> {
    let values: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
    let n = values.len();
    Tensor::<1>::from_floats(values.as_slice(), &Device::flex()).reshape([n, 1, 1, 1])
}

/// The coefficients of data and noise at each sample's timestep.
fn coefficients(scheduler: &SchedulerConfig, inputs: &Inputs) -> [Tensor<4>; 2] {
    let t: Vec<f32> = inputs.t.clone().into_data().try_into_vec().expect("f32");
    let of = |t: &f32| match scheduler {
        SchedulerConfig::Flow { .. } => {
            let sigma = f64::from(*t) / 1000.0;
            [1.0 - sigma, sigma]
        }
        SchedulerConfig::Diffusion { .. } => {
            let kept = alphas_cumprod(scheduler)[*t as usize];
            [kept.sqrt(), (1.0 - kept).sqrt()]
        }
    };
    [0, 1].map(|which| column(t.iter().map(|t| of(t)[which])))
}

/// What a sampler makes of the noisy latent if the network says the target: data and noise.
fn ends(scheduler: &SchedulerConfig, inputs: &Inputs, target: &Tensor<4>) -> [Tensor<4>; 2] {
    let [alpha, beta] = coefficients(scheduler, inputs);
    let (x, said) = (inputs.x.clone(), target.clone());
    match scheduler.prediction() {
        Prediction::Flow => [x.clone() - said.clone() * beta, x + said * alpha],
        Prediction::Epsilon => [(x - said.clone() * beta) / alpha, said],
        Prediction::VPrediction => [
            x.clone() * alpha.clone() - said.clone() * beta.clone(),
            x * beta + said * alpha,
        ],
    }
}

fn distance(a: &Tensor<4>, b: &Tensor<4>) -> f32 {
    (a.clone() - b.clone()).abs().max().into_scalar()
}

fn near(a: &Tensor<4>, b: &Tensor<4>) {
    let off = distance(a, b);
    assert!(off < 2e-3, "off by {off}");
}

fn mean_square(x: &Tensor<4>) -> f32 {
    x.clone().square().mean().into_scalar()
}

/// The text that the networks are told.
fn told(inputs: &Inputs) -> &priors::flow::Conditioning {
    match &inputs.text {
        Text::Encoded(text) => text,
        Text::Ids(_) => panic!("the text encoders are frozen"),
    }
}

fn encoded(objective: &Denoise, prompt: &str) -> Tensor<4> {
    let text = objective.encoders.text(&[prompt; 3], &[[0.0; 6]; 3]);
    match text.expect("encodes") {
        Text::Encoded(text) => text.text.unsqueeze(),
        Text::Ids(_) => panic!("the text encoders are frozen"),
    }
}

#[test]
fn the_target_leads_from_the_noisy_latent_to_the_clean_one_and_to_the_noise() {
    let (_folder, mut objective) = with_loss(|_| ());
    for scheduler in schedulers() {
        scheduled(&mut objective, &scheduler);
        let noises = [0.0, 2.0].map(|phase| {
            let batch = batch(phase);
            let (inputs, target, counts) = fed(&objective, &batch);
            let [data, noise] = ends(&scheduler, &inputs, &target);
            near(&data, &latents(&objective, &batch)[0]);
            near(&counts, &counts.ones_like());
            noise
        });
        near(&noises[0], &noises[1]);
        let square = mean_square(&noises[0]);
        assert!((0.8..1.2).contains(&square), "{square}");
    }
}

#[test]
fn samples_of_a_batch_have_noise_levels_of_their_own() {
    let (_folder, mut objective) = with_loss(|_| ());
    for scheduler in schedulers() {
        scheduled(&mut objective, &scheduler);
        let (inputs, ..) = fed(&objective, &batch(0.0));
        let t: Vec<f32> = inputs.t.into_data().try_into_vec().expect("f32");
        let t: BTreeSet<u32> = t.into_iter().map(f32::to_bits).collect();
        assert_eq!(t.len(), 3);
    }
}

#[test]
fn lq_target_takes_the_low_quality_latent_and_the_words_for_the_degradation() {
    let batch = batch(0.0);
    for (often, which, prompt) in [(0.0, 0, "a photo"), (1.0, 1, "low quality, noisy")] {
        let (_folder, objective) = with_loss(|loss| loss.lq_target = often);
        let scheduler = objective.scheduler.clone();
        let (inputs, target, _) = fed(&objective, &batch);
        let both = latents(&objective, &batch);
        assert!(distance(&both[0], &both[1]) > 0.1, "they differ");
        let [data, _] = ends(&scheduler, &inputs, &target);
        near(&data, &both[which]);
        near(&inputs.c_lq, &both[1]);
        let text: Tensor<4> = told(&inputs).text.clone().unsqueeze();
        near(&text, &encoded(&objective, prompt));
        let other = encoded(&objective, "another");
        assert!(distance(&text, &other) > 0.1, "prompts differ");
    }
}

#[test]
fn skip_adapter_leaves_the_bare_prior() {
    let (_folder, mut objective) = with_loss(|_| ());
    objective.config.stage = Stage::Joint;
    let networks = objective.networks(&Weights::formula(&Device::flex()));
    let networks = networks.expect("fits");
    let bare = Networks {
        adapter: None,
        ..networks.clone()
    };
    for (often, skipped) in [(0.0, false), (1.0, true)] {
        objective.config.denoise.skip_adapter = often;
        let (inputs, ..) = fed(&objective, &batch(0.0));
        let off = distance(&networks.predict(&inputs), &bare.predict(&inputs));
        assert_eq!(off < 1e-4, skipped, "off by {off}");
    }
}

#[test]
fn lq_start_puts_the_state_between_the_noised_low_quality_latent_and_the_clean_one() {
    let share = 0.4;
    let (_folder, mut objective) = with_loss(|loss| {
        loss.lq_start = 1.0;
        loss.lq_start_strength = [share, share];
    });
    for scheduler in schedulers() {
        scheduled(&mut objective, &scheduler);
        let [alpha_start, beta_start] = match &scheduler {
            SchedulerConfig::Flow { .. } => [1.0 - share, share],
            SchedulerConfig::Diffusion { .. } => {
                let kept = alphas_cumprod(&scheduler)[400];
                [kept.sqrt(), (1.0 - kept).sqrt()]
            }
        };
        let noises = [0.0, 2.0].map(|phase| {
            let batch = batch(phase);
            let (inputs, target, counts) = fed(&objective, &batch);
            let [z_hq, z_lq] = latents(&objective, &batch);
            let [alpha, beta] = coefficients(&scheduler, &inputs);
            let [data, noise] = ends(&scheduler, &inputs, &target);
            near(&data, &z_hq);
            // Over the coefficient of data the path is straight in the noise level.
            let passed = beta / alpha.clone() * (alpha_start / beta_start);
            assert!(passed.clone().max().into_scalar::<f32>() < 1.0);
            let drawn = noise - (z_lq.clone() - z_hq.clone()) * (alpha_start / beta_start);
            let start = z_lq + drawn.clone() * (beta_start / alpha_start);
            let state = (z_hq.clone() + (start - z_hq) * passed) * alpha;
            near(&inputs.x, &state);
            let count = (beta_start / alpha_start).min(1.0);
            near(&counts, &column([count; 3]));
            drawn
        });
        near(&noises[0], &noises[1]);
        let square = mean_square(&noises[0]);
        assert!((0.8..1.2).contains(&square), "{square}");
    }
}

#[test]
fn a_robust_encoder_changes_what_the_adapter_sees_and_no_target() {
    let batch = batch(0.0);
    for (often, which) in [(0.0, 0), (1.0, 1)] {
        let (_folder, objective) = setup(|config, folder| {
            let device = Device::flex();
            let prior = Folder::Disk(config.model.clone());
            let vae = PriorModel::open_vae(&prior, Precision::F32, &device).expect("a vae");
            let w = Weights::seeded(99, &device);
            vae.with_encoder(&w).expect("fits");
            let json = prior.json("vae/config.json").expect("written");
            let adapter = folder.join("robust");
            save_encoder(&adapter, &json, &w.made(), DType::F32).expect("saves");
            config.encoder_model = Some(adapter);
            config.denoise.lq_target = often;
        });
        let (inputs, target, _) = fed(&objective, &batch);
        let both = latents(&objective, &batch);
        let [data, _] = ends(&objective.scheduler, &inputs, &target);
        near(&data, &both[which]);
        let (robust, _) = objective.robust.as_ref().expect("of encoder_model");
        let lq: Vec<&Image> = batch.iter().map(|sample| &sample.lq).collect();
        let seen = robust.latent_from_image(tensor_from_images(&lq, &Device::flex()));
        near(&inputs.c_lq, &seen);
        assert!(distance(&seen, &both[1]) > 0.1, "another encoder");
    }
}

#[test]
fn time_ids_are_the_photographs_size_the_crops_corner_and_the_crops_size() {
    for sizes in [Sizes::Photo, Sizes::Crop] {
        let row = |i: usize| match sizes {
            Sizes::Photo => [480.0 + i as f32, 640.0, 7.0, 11.0 + i as f32, 16.0, 32.0],
            Sizes::Crop => [16.0, 32.0, 0.0, 0.0, 16.0, 32.0],
        };
        let (_folder, objective) = with_loss(|loss| loss.sizes = sizes);
        let (inputs, ..) = fed(&objective, &batch(0.0));
        let ids = told(&inputs).time_ids.clone().expect("SDXL takes sizes");
        let ids: Vec<f32> = ids.into_data().try_into_vec().expect("f32");
        assert_eq!(ids, [0, 1, 2].map(row).concat());
    }
}

#[test]
fn the_loss_is_the_mean_square_of_counted_errors_through_the_metric() {
    let (_folder, mut objective) = with_loss(|_| ());
    let device = Device::flex();
    let target: Tensor<4> = Tensor::ones([2, 4, 3, 3], &device) * 5.0;
    let prediction = target.clone() + 2.0;
    let loss = |objective: &Denoise| -> f32 {
        let counts = column([1.0, 0.5]);
        let loss = objective.loss(prediction.clone(), target.clone(), counts);
        loss.into_scalar()
    };
    assert!((loss(&objective) - 2.5).abs() < 1e-5);
    // Each channel's error thrice.
    let metric = Tensor::<2>::eye(4, &device) * 3.0;
    objective.metric = Some(metric.reshape([4, 4, 1, 1]));
    assert!((loss(&objective) - 9.0 * 2.5).abs() < 1e-4);
}

#[test]
fn a_rehearsal_of_cached_text_reads_once_and_tells_the_shapes_of_the_run() {
    let (_folder, frozen) = with_loss(|_| ());
    let mut config = frozen.config.clone();
    config.data.cache_text = true;
    let blank = Denoise::blank(&config, &Device::flex()).expect("configurations");
    let mut batch = batch(0.0);
    for caption in ["a photo", "another", ""] {
        batch[0].caption = caption.into();
        let [of_run, rehearsed] = [&frozen, &blank].map(|objective| {
            let (inputs, ..) = fed(objective, &batch);
            let text = told(&inputs);
            let pooled = text.pooled.as_ref().map(Tensor::dims);
            let sizes = text.time_ids.as_ref().map(Tensor::dims);
            (text.text.dims(), pooled, sizes)
        });
        assert_eq!(of_run, rehearsed);
    }
    let Encoders::Rehearsed { read, .. } = &blank.encoders else {
        panic!("a rehearsal of cached text");
    };
    assert_eq!(read.lock().expect("no panic while held").len(), 1);
}

#[test]
fn frozen_networks_never_compute_in_half_precision() {
    use kernels::{Products, with_products};
    let (_folder, objective) = setup(|_, _| ());
    let mut samples = batch(0.0);
    for sample in &mut samples {
        // Beyond 65504, f16's largest.
        sample.lq = Image::from_fn(32, 16, |c, y, x| 1e5 * sample.lq.plane(c)[y * 32 + x]);
    }
    let of = |products: Products| {
        let [_, _, seen] =
            with_products(products, || objective.latents_of(&samples)).expect("encodes");
        let text = with_products(products, || {
            objective.encoders.text(&["a photo"], &[[0.0; 6]])
        });
        let Text::Encoded(conditioning) = text.expect("reads") else {
            panic!("frozen encoders");
        };
        let values = |data: TensorData| data.try_into_vec::<f32>().expect("f32");
        [
            values(seen.into_data()),
            values(conditioning.text.into_data()),
        ]
    };
    let half = of(Products::F16);
    assert!(half.iter().flatten().all(|v| v.is_finite()));
    assert_eq!(half, of(Products::F32));
}
