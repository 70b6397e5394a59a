//! The degradation-robust encoder learns and does not collapse; the loss as SUPIR states it does.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor, TensorData};
use pixels::{
    Image,
    degrade::{Degradation, OutputSize, degrade},
    random::stream,
};
use priors::{
    folder::Folder,
    model::PriorModel,
    single_file::VaeNames,
    vae::AutoencoderKl,
    weights::{Naming, Precision, Values, Weights, save_safetensors},
};
use restore::adapter::ENCODER_FOLDER;
use train::{
    config::{EncoderLoss, EncoderTarget, Gradient, Latent, Stage, TrainConfig},
    data::{Encoded, Place, Sample},
    objective::{Encoder, Objective, Vae, tensor_from_images},
    optimise::{AdamW, Named, clip},
};

const STEPS: usize = 60;

fn mini() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/mini/prior")
}

/// Edges, slopes and texture, another for each `i`.
fn picture(i: usize) -> Image {
    let f = |k: usize| ((i * 7 + k * 13) % 17) as f32 / 17.0;
    Image::from_fn(32, 32, |c, y, x| {
        let (x, y) = (x as f32 / 32.0, y as f32 / 32.0);
        let disc = if (x - f(1)).hypot(y - f(2)) < 0.2 + 0.2 * f(3) {
            0.4
        } else {
            0.0
        };
        let wave = 0.2 * ((6.0 + 20.0 * f(4)) * x + 9.0 * f(5) * y).sin();
        (0.2 + 0.5 * f(6 + c) * y + disc + wave).clamp(0.0, 1.0)
    })
}

fn sample(i: usize) -> Sample {
    let law = Degradation::preset("mixture").expect("known");
    let hq = picture(i);
    let lq = degrade(&hq, &law, &mut stream(i as u64, "test"), OutputSize::Input).image;
    Sample {
        hq,
        lq,
        caption: String::new(),
        descriptors: vec![],
        drawn: vec![],
        name: i.to_string(),
        passed_over: vec![],
        encoded: Encoded::Never,
        place: Place {
            photo_px: [32, 32],
            corner_px: [0, 0],
        },
    }
}

fn config(loss: EncoderLoss) -> TrainConfig {
    let text = format!(
        "stage = \"encoder\"\nmodel = '{}'\nout = 'unused'\nstart = \"model\"\n[data]\nimages = 'unused'\ncrop_px = 32\n[optimise]\nsteps = {STEPS}\nbatch = 4\nlr = 2e-3\n",
        mini().display()
    );
    TrainConfig {
        encoder: loss,
        ..toml::from_str(&text).expect("a configuration")
    }
}

/// What training makes of it on pictures it has not seen.
struct Result {
    losses: Vec<f64>,
    /// Mean squared error of decoded degraded pictures to the clean ones, before and after.
    error: [f64; 2],
    /// How much the decoded latents of clean pictures differ from each other, relative to the prior's encoder.
    spread: f64,
}

fn mean(x: Tensor<4>) -> f64 {
    f64::from(x.mean().into_scalar::<f32>())
}

/// The mean variance of a value over pictures.
fn variance(x: Tensor<4>) -> f64 {
    mean((x.clone() - x.mean_dim(0)).square())
}

fn trained(loss: EncoderLoss) -> Result {
    let (config, device) = (config(loss), Device::flex());
    let objective = Encoder::new(&config, &device).expect("mini's autoencoder");
    let initial = objective.initial().expect("a copy");
    let mut values: Named = initial
        .iter()
        .map(|(name, data)| {
            let values = data.clone().try_into_vec::<f32>();
            (name.clone(), values.expect("f32"))
        })
        .collect();
    let shaped = |values: &Named| -> Values {
        let shape = |name: &String| initial[name].shape().clone();
        let data = |(name, v): (&String, &Vec<f32>)| {
            let data = TensorData::new(v.clone(), shape(name));
            (name.clone(), data)
        };
        values.iter().map(data).collect()
    };
    let mut optimiser = AdamW::default();
    let mut losses = vec![];
    for step in 0..STEPS {
        let batch: Vec<Sample> = (0..4).map(|i| sample(4 * step + i)).collect();
        let mut draws = [0; 4].map(|seed| stream(seed, "test"));
        let evaluation = objective.evaluate(&shaped(&values), &batch, &mut draws, 1.0);
        let evaluation = evaluation.expect("evaluates");
        losses.push(evaluation.loss);
        let mut gradients = evaluation.gradients;
        clip(&mut gradients, 1.0);
        optimiser.step(
            &mut values,
            &gradients,
            config.optimise.lr,
            &config.optimise,
        );
    }
    let vae = PriorModel::open_vae(&Folder::Disk(mini()), Precision::F32, &device).expect("mini's");
    let w = Weights::from_values(shaped(&values), &device);
    let robust = vae.with_encoder(&w.at(ENCODER_FOLDER)).expect("fits");
    let held: Vec<Sample> = (1000..1016).map(sample).collect();
    let images = |of: fn(&Sample) -> &Image| {
        let images: Vec<&Image> = held.iter().map(of).collect();
        tensor_from_images(&images, &device)
    };
    let (hq, lq) = (images(|s| &s.hq), images(|s| &s.lq));
    let error = |encoder: &AutoencoderKl| {
        let seen = vae.image_from_latent(encoder.latent_from_image(lq.clone()));
        mean((seen - hq.clone()).square())
    };
    let spread = |encoder: &AutoencoderKl| {
        variance(vae.image_from_latent(encoder.latent_from_image(hq.clone())))
    };
    Result {
        losses,
        error: [error(&vae), error(&robust)],
        spread: spread(&robust) / spread(&vae),
    }
}

#[test]
fn degraded_pictures_come_nearer_and_clean_ones_stay_apart() {
    let ours = trained(EncoderLoss::default());
    let part = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (first, last) = (part(&ours.losses[..10]), part(&ours.losses[STEPS - 10..]));
    assert!(last < 0.8 * first, "loss {first} to {last}");
    let [before, after] = ours.error;
    assert!(after < 0.85 * before, "error {before} to {after}");
    assert!((0.7..1.5).contains(&ours.spread), "{}", ours.spread);

    let stated = trained(EncoderLoss {
        pixels: 1.0,
        latent: 0.0,
        clean: 0.0,
        target: EncoderTarget::Itself,
    });
    let (first, last) = (
        part(&stated.losses[..10]),
        part(&stated.losses[STEPS - 10..]),
    );
    eprintln!(
        "spread {} and {} as stated; error {before} to {after} and to {}; stated loss {first} to {last}",
        ours.spread, stated.spread, stated.error[1]
    );
    assert!(last < first, "its own loss falls: {first} to {last}");
    assert!(stated.spread < 0.1, "{}", stated.spread);
    assert!(stated.error[1] > 3.0 * before, "and pictures are lost");
}

/// Gradients of an objective over its initial values, with a scale, on one tape and in pieces.
fn compare(what: &str, of: &dyn Fn(Gradient) -> Box<dyn Objective>) {
    let samples = [sample(1), sample(2)];
    let gradients = |how: Gradient| {
        let objective = of(how);
        let values = objective.initial().expect("mini's values");
        let mut draws = [stream(3, "draws"), stream(4, "draws")];
        let made = objective.evaluate(&values, &samples, &mut draws, 8.0);
        made.expect("a batch")
    };
    let whole = gradients(Gradient::Whole);
    for count in [1, 3, 1000] {
        let pieces = gradients(Gradient::Cut(count));
        let off = (pieces.loss - whole.loss).abs();
        assert!(off <= 1e-6 * whole.loss, "{what}: loss {off:e} off");
        assert!(pieces.gradients.keys().eq(whole.gradients.keys()), "{what}");
        let (mut all, mut wrong) = (0.0, 0.0);
        for (name, whole) in &whole.gradients {
            for (a, b) in whole.iter().zip(&pieces.gradients[name]) {
                all += f64::from(*a).powi(2);
                wrong += f64::from(a - b).powi(2);
            }
        }
        assert!(
            all > 0.0 && wrong.sqrt() <= 1e-5 * all.sqrt(),
            "{what} in {count} pieces: {:e} of {:e}",
            wrong.sqrt(),
            all.sqrt()
        );
    }
}

#[test]
fn gradients_in_pieces_are_those_of_one_tape() {
    let device = Device::flex();
    let prior = EncoderLoss {
        pixels: 0.7,
        latent: 0.2,
        clean: 0.4,
        target: EncoderTarget::Prior,
    };
    let itself = EncoderLoss {
        target: EncoderTarget::Itself,
        ..prior.clone()
    };
    let latents = EncoderLoss {
        pixels: 0.0,
        clean: 0.0,
        ..prior.clone()
    };
    for (what, loss) in [("prior", prior), ("itself", itself), ("latents", latents)] {
        compare(what, &|how| {
            let mut config = config(loss.clone());
            config.optimise.gradient = how;
            Box::new(Encoder::new(&config, &device).expect("mini's autoencoder"))
        });
    }
    for latent in [Latent::Draw, Latent::Mean] {
        compare(&format!("autoencoder, {latent:?}"), &|how| {
            let mut config = config(EncoderLoss::default());
            config.stage = Stage::Vae;
            config.optimise.gradient = how;
            config.vae.latent = latent;
            (config.vae.l2, config.vae.kl) = (0.5, 0.1);
            Box::new(Vae::new(&config, &device).expect("mini's autoencoder"))
        });
    }
}

#[test]
fn a_checkpoint_of_sdxl_in_one_file_has_an_encoder_to_start_from() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("sdxl.safetensors");
    let device = Device::flex();
    let json = include_str!("../../priors/src/known/sdxl/vae.json");
    let json = serde_json::from_str(json).expect("JSON");
    let w = Weights::seeded(5, &device);
    AutoencoderKl::from_json(&json, &path, &w).expect("SDXL's autoencoder");
    let made = w.made();
    let stored = |(name, data): (&String, &TensorData)| {
        let key = VaeNames { levels: 4 }.pieces(name).swap_remove(0).key;
        (format!("first_stage_model.{key}"), data.clone())
    };
    let mut values: Values = made.iter().map(stored).collect();
    // What tells that the file is SDXL's.
    for (key, shape) in [
        ("input_blocks.0.0.weight", vec![320, 4, 3, 3]),
        (
            "middle_block.1.transformer_blocks.0.attn2.to_k.weight",
            vec![1280, 2048],
        ),
    ] {
        let zeros = TensorData::zeros::<f32, _>(shape);
        values.insert(format!("model.diffusion_model.{key}"), zeros);
    }
    save_safetensors(&path, &values, DType::F32, &Default::default()).expect("saves");
    let mut config = config(EncoderLoss::default());
    config.model = path;
    let objective = Encoder::new(&config, &device).expect("the checkpoint's autoencoder");
    let initial = objective.initial().expect("its encoder");
    assert!(initial.len() > 100, "{}", initial.len());
    for (name, data) in &initial {
        let name = name
            .strip_prefix(&format!("{ENCODER_FOLDER}."))
            .expect("below it");
        assert_eq!(data, &made[name], "{name}");
    }
}
