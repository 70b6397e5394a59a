//! Loss, gradients and steps of tiny Restoration Adapters with LoRA, in priors of SDXL's and SD3's shape, against PyTorch with
//! diffusers and PEFT (goldens of `golden/adapters.py`); over one tape, piece by piece, and over a prior stored in 16 bits.

#[path = "../../priors/tests/golden/mod.rs"]
mod golden;

use burn::tensor::{DType, Device, Tensor, TensorData};
use golden::{Golden, OP, formula_values};
use priors::{
    any::AnyPrior,
    flow::{Conditioning, Prior},
    mmdit::MmDit,
    scheduler::{End, Prediction, SchedulerConfig, Spacing},
    unet::Unet,
    weights::{Precision, Values, Weights, save_safetensors},
};
use restore::{
    adapter::{
        AdapterConfig, BlockKind, DitAdapterConfig, RestorationAdapter, Scale, UnetAdapterConfig,
    },
    lora::{Lora, LoraConfig, Target, self_attention_targets},
    schedule::alphas_cumprod,
};
use train::{
    config::{Gradient, Optimise},
    optimise::{AdamW, Named},
    walk::{Inputs, Networks, Text, gradients},
};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

/// Relative to the norm of what is compared; PyTorch's own f32 is within 7e-5 of its f64.
const RTOL: f64 = 1e-4;

/// `SDXL`'s noise schedule.
const DIFFUSION: SchedulerConfig = SchedulerConfig::Diffusion {
    train_timesteps: 1000,
    beta_start: 0.000_85,
    beta_end: 0.012,
    prediction: Prediction::Epsilon,
    spacing: Spacing::Leading,
    steps_offset: 1,
    end: End::FirstTimestep,
};

struct Setup {
    golden: Golden,
    prior: AnyPrior,
    adapter: AdapterConfig,
    targets: Vec<Target>,
    inputs: Inputs,
    target: Tensor<4>,
}

fn prior(golden: &Golden, w: &Weights) -> AnyPrior {
    let (config, path) = (golden.config(), golden.path());
    if config["_class_name"] == "SD3Transformer2DModel" {
        let mmdit = MmDit::from_json(&config, path, w).expect("supported");
        return AnyPrior::MmDit(Box::new(mmdit));
    }
    AnyPrior::Unet(Box::new(
        Unet::from_json(&config, path, w).expect("supported"),
    ))
}

fn sdxl() -> Setup {
    let adapter = AdapterConfig::Unet(UnetAdapterConfig {
        block: BlockKind::D3,
        after: vec![0, 1, 2, 3, 4, 5],
        lq_channels: 4,
        d_emb: 32,
        groups: 4,
    });
    let golden = Golden::open(FOLDER, "sdxl_adapter_gradients");
    let (timesteps, alphas) = (
        golden.integers("input.timestep"),
        alphas_cumprod(&DIFFUSION),
    );
    let of = |t: &i64| {
        let alpha = alphas[*t as usize];
        (*t as f32, alpha.sqrt(), (1.0 - alpha).sqrt())
    };
    let levels = timesteps.iter().map(of).collect();
    let target = golden.tensor("input.noise", &Device::flex());
    Setup::new(golden, adapter, levels, target)
}

fn sd3() -> Setup {
    let adapter = AdapterConfig::Dit(DitAdapterConfig {
        after: vec![0, 2],
        width: 32,
    });
    let golden = Golden::open(FOLDER, "sd3_adapter_gradients");
    let (t, sigma) = (
        golden.values("input.timestep"),
        golden.values("input.sigma"),
    );
    let of = |(t, sigma): (f32, f32)| {
        assert!((t - 1000.0 * sigma).abs() < 1e-3, "{t} and {sigma}");
        (t, 1.0 - f64::from(sigma), f64::from(sigma))
    };
    let levels = t.into_iter().zip(sigma).map(of).collect();
    let device = Device::flex();
    let target = golden.tensor::<4>("input.noise", &device) - golden.tensor("input.clean", &device);
    Setup::new(golden, adapter, levels, target)
}

impl Setup {
    /// `levels`: each sample's timestep and its coefficients of data and noise.
    fn new(
        golden: Golden,
        adapter: AdapterConfig,
        levels: Vec<(f32, f64, f64)>,
        target: Tensor<4>,
    ) -> Self {
        let device = Device::flex();
        let w = Weights::formula(&device);
        let prior = prior(&golden, &w);
        let b = levels.len();
        let column = |of: &dyn Fn(&(f32, f64, f64)) -> f32| -> Tensor<4> {
            let values: Vec<f32> = levels.iter().map(of).collect();
            Tensor::from_data(TensorData::new(values, [b, 1, 1, 1]), (&device, DType::F32))
        };
        let x = golden.tensor::<4>("input.clean", &device) * column(&|(_, data, _)| *data as f32)
            + golden.tensor::<4>("input.noise", &device) * column(&|(.., noise)| *noise as f32);
        let t: Vec<f32> = levels.iter().map(|(t, ..)| *t).collect();
        let conditioning = Conditioning {
            text: golden.tensor("input.text", &device),
            pooled: Some(golden.tensor("input.pooled", &device)),
            time_ids: golden
                .has("input.time_ids")
                .then(|| golden.tensor("input.time_ids", &device)),
        };
        let inputs = Inputs {
            x,
            t: Tensor::from_floats(t.as_slice(), &device),
            text: Text::Encoded(conditioning),
            c_lq: golden.tensor("input.lq", &device),
            scale: Scale::All(1.0),
        };
        Self {
            prior,
            adapter,
            targets: self_attention_targets(&w.shapes()),
            inputs,
            target,
            golden,
        }
    }

    fn networks(&self, w: &Weights) -> Networks {
        let adapter = RestorationAdapter::new(
            self.adapter.clone(),
            &self.prior,
            &w.at("restoration_adapter"),
        );
        let lora = LoraConfig {
            rank: 2,
            alpha: 3.0,
        };
        let lora_w = w.at("lora").at(self.prior.kind().folder());
        Networks {
            prior: self.prior.clone(),
            text_encoder: None,
            adapter: Some(adapter.expect("fits")),
            lora: Some(Lora::new(&lora, &self.targets, &lora_w).expect("fits")),
        }
    }

    /// What trains, by the formula.
    fn values(&self) -> Values {
        formula_values(&Device::flex(), |w| drop(self.networks(w)))
    }

    fn gradients(&self, values: &Values, how: Gradient) -> (f64, Named) {
        let device = Device::flex();
        let w = Weights::tracked(values.clone(), &device);
        let taped = self.networks(&w);
        let plain = self.networks(&Weights::from_values(values.clone(), &device));
        let target = self.target.clone();
        gradients(&plain, &taped, &self.inputs, &w, how, |prediction| {
            (prediction - target).square().mean()
        })
    }

    /// As many pieces as there are segments.
    fn finest(&self) -> Gradient {
        Gradient::Cut(self.prior.segments())
    }
}

/// The difference's norm and the first's.
fn distance(wanted: &[f32], got: &[f32]) -> (f64, f64) {
    assert_eq!(wanted.len(), got.len());
    let square = |v: f64| v * v;
    let difference = wanted.iter().zip(got);
    let difference: f64 = difference
        .map(|(a, b)| square(f64::from(*a) - f64::from(*b)))
        .sum();
    let norm: f64 = wanted.iter().map(|a| square(f64::from(*a))).sum();
    (difference.sqrt(), norm.sqrt())
}

/// Every tensor of `got` is the golden's `kind.<name>`, and the golden has no other.
fn same_as(golden: &Golden, kind: &str, got: &Named, rtol: f64) {
    let prefix = format!("{kind}.");
    let stored = golden.names().iter();
    let mut stored: Vec<&str> = stored.filter_map(|n| n.strip_prefix(&prefix)).collect();
    stored.sort_unstable();
    assert_eq!(stored, got.keys().collect::<Vec<_>>(), "{kind}");
    let mut worst = (0.0, String::new());
    for (name, got) in got {
        let (difference, norm) = distance(&golden.values(&format!("{kind}.{name}")), got);
        assert!(norm > 0.0, "{kind} of {name} is zero and says nothing");
        if difference / norm > worst.0 {
            worst = (difference / norm, name.clone());
        }
    }
    let (error, name) = worst;
    assert!(
        error <= rtol,
        "{}: {kind} of {name} is off by {error:e} of its norm",
        golden.path().display()
    );
}

#[test]
fn loss_and_every_gradient_are_those_of_torch_and_peft() {
    for setup in [sdxl(), sd3()] {
        let golden = &setup.golden;
        let wanted = f64::from(golden.values("loss")[0]);
        for how in [Gradient::Whole, setup.finest()] {
            let (loss, gradients) = setup.gradients(&setup.values(), how);
            assert!((loss - wanted).abs() <= 1e-5 * wanted, "{loss}, {wanted}");
            same_as(golden, "grad", &gradients, RTOL);
        }
    }
}

#[test]
fn gradients_piece_by_piece_are_those_of_the_whole_graph() {
    for setup in [sdxl(), sd3()] {
        let values = setup.values();
        let (_, whole) = setup.gradients(&values, Gradient::Whole);
        for how in [Gradient::Cut(3), setup.finest()] {
            let (_, cut) = setup.gradients(&values, how);
            let flat = |named: &Named| -> Vec<f32> { named.values().flatten().copied().collect() };
            assert_eq!(
                whole.keys().collect::<Vec<_>>(),
                cut.keys().collect::<Vec<_>>()
            );
            let (difference, norm) = distance(&flat(&whole), &flat(&cut));
            assert!(difference <= 1e-5 * norm, "{difference:e} of {norm:e}");
        }
    }
}

#[test]
fn twenty_steps_are_torchs() {
    let config: Optimise = toml::from_str("steps = 20\nbatch = 2\nlr = 1e-4").expect("defaults");
    for (setup, name) in [(sdxl(), "sdxl"), (sd3(), "sd3")] {
        let golden = Golden::open(FOLDER, &format!("{name}_adapter_steps"));
        let mut comparison = golden.compare();
        comparison.see("noisy", &setup.inputs.x, OP);
        comparison.finish(|name| name != "noisy");
        let start = setup.values();
        let shape = |name: &String| start[name].shape().clone();
        let mut named: Named = start
            .iter()
            .map(|(name, data)| (name.clone(), data.try_to_vec().expect("f32")))
            .collect();
        let before = named.clone();
        let mut optimiser = AdamW::default();
        for wanted in golden.values("losses") {
            let values: Values = named
                .iter()
                .map(|(name, v)| (name.clone(), TensorData::new(v.clone(), shape(name))))
                .collect();
            let (loss, gradients) = setup.gradients(&values, setup.finest());
            assert!(
                (loss - f64::from(wanted)).abs() <= RTOL * f64::from(wanted),
                "{loss} and {wanted}"
            );
            optimiser.step(&mut named, &gradients, config.lr, &config);
        }
        same_as(&golden, "after", &named, RTOL);
        // How far they came, too: the values alone would forgive an optimiser that does little.
        let moved = |after: &dyn Fn(&String) -> Vec<f32>| -> Vec<f32> {
            let of = |(name, before): (&String, &Vec<f32>)| -> Vec<f32> {
                let after = after(name).into_iter().zip(before);
                after.map(|(a, b)| a - b).collect()
            };
            before.iter().flat_map(of).collect()
        };
        let wanted = moved(&|name| golden.values(&format!("after.{name}")));
        let (difference, norm) = distance(&wanted, &moved(&|name| named[name].clone()));
        assert!(difference <= 1e-2 * norm, "{difference:e} of {norm:e}");
    }
}

#[test]
fn a_prior_in_16_bits_gives_the_gradients_of_its_values() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("prior.safetensors");
    let device = Device::flex();
    for mut setup in [sdxl(), sd3()] {
        let exact = formula_values(&device, |w| drop(prior(&setup.golden, w)));
        for dtype in [DType::BF16, DType::F16] {
            save_safetensors(&path, &exact, dtype, &Default::default()).expect("saves");
            let mut of = |precision| {
                let paths = std::slice::from_ref(&path);
                let w = Weights::from_files(paths, precision, &device).expect("opens");
                setup.prior = prior(&setup.golden, &w);
                kernels::with_products(kernels::Products::F32, || {
                    setup.gradients(&setup.values(), setup.finest())
                })
            };
            let ((loss, stored), (wide_loss, wide)) = (of(Precision::Stored), of(Precision::F32));
            assert_eq!(loss, wide_loss, "{dtype:?}");
            assert!(stored == wide, "{dtype:?}");
        }
    }
}
