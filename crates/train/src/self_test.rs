//! Before a run begins: gradients of tiny networks on the chosen device beside those of the CPU with burn's own operations.
//!
//! burn's issue 5162 is why: with a frozen network and tracked LoRA, some GPU backends gave gradients that were zero or no
//! numbers, and a run that trains on those looks like one. On the CPU it is the fast kernels that are compared.
//! The networks are a U-Net and a transformer, frozen under an adapter and LoRA, and the U-Net trained as a whole.

use std::path::Path;

use burn::tensor::{DType, Device, Tensor, TensorData};
use kernels::{Products, with_plain_operations, with_products};
use pixels::random::stream;
use priors::{
    any::AnyPrior,
    flow::Conditioning,
    mmdit::MmDit,
    unet::Unet,
    weights::{Values, Weights},
};
use rand::RngExt;
use restore::{
    adapter::{
        AdapterConfig, BlockKind, DitAdapterConfig, RestorationAdapter, Scale, UnetAdapterConfig,
    },
    lora::{Lora, LoraConfig, self_attention_targets},
};
use serde_json::{Value, json};

use crate::{
    Error,
    config::Gradient,
    optimise::{Named, norm},
    walk::{Inputs, Networks, Text, gradients},
};

/// Side of the latents: large enough for the kernels' fastest paths.
const SIDE: usize = 16;
/// Tokens of the text.
const TOKENS: usize = 6;
/// Width of the text.
const WIDTH: usize = 24;

/// How far a tensor's gradient may be off, of its norm.
fn limit(products: Products) -> f64 {
    match products {
        Products::F32 => 1e-3,
        // Rounded at each of the network's operations, forwards and backwards.
        _ => 0.1,
    }
}

/// A tiny prior and what of it trains.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Case {
    /// Adapter and LoRA over a frozen U-Net.
    FrozenUnet,
    /// Adapter and LoRA over a frozen transformer.
    FrozenDit,
    /// U-Net and adapter.
    Unet,
}

/// Compares the gradients that training on `device` makes, in the way and with the products of a run; returns by how much
/// those with products of f32 values are off, the largest of all tensors.
///
/// # Errors
/// Gradients that are wrong.
pub fn check(device: &Device, how: Gradient, products: Products) -> Result<f64, Error> {
    check_through(device, how, products, |prediction| prediction)
}

/// [`check`] of a device whose predictions pass `through` something: a test's way to break its gradients.
pub(crate) fn check_through(
    device: &Device,
    how: Gradient,
    products: Products,
    through: impl Fn(Tensor<4>) -> Tensor<4>,
) -> Result<f64, Error> {
    let mut worst: f64 = 0.0;
    for case in [Case::FrozenUnet, Case::FrozenDit, Case::Unet] {
        let (values, reference) = case.reference();
        let mut precisions = vec![Products::F32];
        precisions.extend((products != Products::F32).then_some(products));
        for products in precisions {
            let got = with_products(products, || case.gradients(&values, device, how, &through));
            let off = agree(&reference, &got, limit(products))?;
            if products == Products::F32 {
                worst = worst.max(off);
            }
        }
    }
    Ok(worst)
}

/// The largest deviation of a tensor's gradient, in its norm and a thousandth of all gradients' together.
fn agree(reference: &Named, got: &Named, limit: f64) -> Result<f64, Error> {
    let all = norm(reference);
    let mut worst: f64 = 0.0;
    for (name, reference) in reference {
        let off = match got.get(name) {
            Some(got) if got.len() == reference.len() => {
                let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
                let difference: f64 = got.iter().zip(reference).map(square).sum();
                let size = reference.iter().map(|v| f64::from(*v).powi(2));
                difference.sqrt() / (size.sum::<f64>().sqrt() + 1e-3 * all)
            }
            _ => f64::NAN,
        };
        if off.is_nan() || off > limit {
            return Err(Error::Device(format!(
                "this device computes wrong gradients: that of {name} in a small test is off by {:.2} % of its norm, and {:.1} % are allowed; train on another device (--device cpu; there, RECLAIR_KERNELS=off does without the fast kernels) and report it",
                100.0 * off,
                100.0 * limit
            )));
        }
        worst = worst.max(off);
    }
    Ok(worst)
}

impl Case {
    /// Values to test with, and the gradients that they should have.
    fn reference(self) -> (Values, Named) {
        let device = Device::flex();
        let values = self.values();
        let reference = with_plain_operations(|| {
            with_products(Products::F32, || {
                self.gradients(&values, &device, Gradient::Whole, |prediction| prediction)
            })
        });
        (values, reference)
    }

    /// Fresh values of all networks; what starts as zero is drawn too, or most gradients would be zero.
    fn values(self) -> Values {
        let w = Weights::seeded(0, &Device::flex());
        self.networks(&w, &w);
        let mut values = w.made();
        for (name, data) in &mut values {
            let zero = |data: &TensorData| {
                let values = data.try_to_vec::<f32>().unwrap_or_default();
                values.iter().all(|&v| v == 0.0)
            };
            if zero(data) {
                let mut rng = stream(0, name);
                let n = data.shape().num_elements();
                let drawn: Vec<f32> = (0..n).map(|_| 0.2 * (rng.random::<f32>() - 0.5)).collect();
                *data = TensorData::new(drawn, data.shape().clone());
            }
        }
        values
    }

    /// The prior over `prior`, the adapter and LoRA over `w`.
    fn networks(self, prior: &Weights, w: &Weights) -> Networks {
        let (prior, adapter) = match self {
            Self::FrozenDit => {
                let at = prior.at("transformer");
                let dit = MmDit::from_json(&dit(), Path::new("test"), &at).expect("supported");
                let adapter = AdapterConfig::Dit(DitAdapterConfig {
                    after: vec![0, 1],
                    width: 32,
                });
                (AnyPrior::MmDit(Box::new(dit)), adapter)
            }
            _ => {
                let at = prior.at("unet");
                let unet = Unet::from_json(&unet(), Path::new("test"), &at).expect("supported");
                let prior = AnyPrior::Unet(Box::new(unet));
                let adapter = AdapterConfig::Unet(UnetAdapterConfig {
                    block: BlockKind::D3,
                    after: vec![0, 1, 2, 3],
                    lq_channels: 4,
                    d_emb: prior.d_emb(),
                    groups: 4,
                });
                (prior, adapter)
            }
        };
        let adapter = RestorationAdapter::new(adapter, &prior, &w.at("restoration_adapter"));
        let lora = (self != Self::Unet).then(|| {
            let config = LoraConfig {
                rank: 2,
                alpha: 2.0,
            };
            let blank = Weights::blank(&Device::flex());
            self.prior_names(&blank);
            let targets = self_attention_targets(&blank.shapes());
            Lora::new(&config, &targets, &w.at("lora")).expect("fits")
        });
        Networks {
            prior,
            text_encoder: None,
            adapter: Some(adapter.expect("fits")),
            lora,
        }
    }

    /// Asks `w` for the prior's tensors.
    fn prior_names(self, w: &Weights) {
        let made = match self {
            Self::FrozenDit => MmDit::from_json(&dit(), Path::new("test"), w).map(drop),
            _ => Unet::from_json(&unet(), Path::new("test"), w).map(drop),
        };
        made.expect("supported");
    }

    /// Gradients on `device` of the squared error of what `through` makes of the prediction.
    fn gradients(
        self,
        values: &Values,
        device: &Device,
        how: Gradient,
        through: impl Fn(Tensor<4>) -> Tensor<4>,
    ) -> Named {
        let fixed = Weights::from_values(values.clone(), device);
        let w = Weights::tracked(values.clone(), device);
        let plain = self.networks(&fixed, &fixed);
        let taped = if self == Self::Unet {
            self.networks(&w, &w)
        } else {
            self.networks(&fixed, &w)
        };
        let latent = [2, 4, SIDE, SIDE];
        let inputs = Inputs {
            x: field(latent, "x", device),
            t: Tensor::from_floats([500.0, 20.0], device),
            text: Text::Encoded(Conditioning {
                pooled: Some(field([2, 10], "pooled", device)),
                ..Conditioning::of_text(field([2, TOKENS, WIDTH], "text", device))
            }),
            c_lq: field(latent, "c_lq", device),
            scale: Scale::All(1.0),
        };
        let target = field(latent, "target", device);
        let (_, gradients) = gradients(&plain, &taped, &inputs, &w, how, |prediction| {
            (through(prediction) - target).square().mean()
        });
        gradients
    }
}

fn field<const D: usize>(shape: [usize; D], name: &str, device: &Device) -> Tensor<D> {
    let mut rng = stream(0, name);
    let n = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|_| 2.0 * rng.random::<f32>() - 1.0).collect();
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

fn unet() -> Value {
    json!({
        "_class_name": "UNet2DConditionModel", "addition_embed_type": null, "attention_head_dim": [1, 2],
        "block_out_channels": [32, 64], "cross_attention_dim": WIDTH,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "in_channels": 4, "layers_per_block": 1,
        "norm_eps": 1e-5, "norm_num_groups": 4, "out_channels": 4, "transformer_layers_per_block": 1,
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "use_linear_projection": true
    })
}

fn dit() -> Value {
    json!({
        "_class_name": "SD3Transformer2DModel", "in_channels": 4, "out_channels": 4, "patch_size": 2, "num_layers": 2,
        "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": WIDTH, "caption_projection_dim": 32,
        "pooled_projection_dim": 10, "pos_embed_max_size": 8, "qk_norm": "rms_norm", "dual_attention_layers": [0]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_passes_in_every_way() {
        let device = Device::flex();
        for how in [Gradient::Whole, Gradient::Cut(3)] {
            for products in [Products::F32, Products::Bf16, Products::F16] {
                let off = check(&device, how, products).unwrap_or_else(|why| panic!("{why}"));
                assert!(off > 0.0, "the fast kernels round differently");
            }
        }
    }

    /// The forward is right in each; the gradient is doubled, misses a part, is zero, or no number.
    #[test]
    fn broken_gradients_are_refused() {
        let device = Device::flex();
        let detached = |y: &Tensor<4>| y.clone().without_autodiff();
        let doubled = |y: Tensor<4>| y.clone() * 2.0 - detached(&y);
        let slightly = |y: Tensor<4>| y.clone() * 1.01 - detached(&y) * 0.01;
        let cut = |y: Tensor<4>| {
            let known = y.clone().narrow(0, 0, 1);
            let rest = detached(&y).narrow(0, 1, 1);
            Tensor::cat(vec![known, rest], 0)
        };
        let zero = |y: Tensor<4>| y.clone() * 0.0 + detached(&y);
        let no_number = |y: Tensor<4>| y.clone() + (y.clone() - detached(&y)).sqrt();
        let ways: [(&str, &dyn Fn(Tensor<4>) -> Tensor<4>); 5] = [
            ("doubled", &doubled),
            ("slightly", &slightly),
            ("cut", &cut),
            ("zero", &zero),
            ("no number", &no_number),
        ];
        for case in [Case::FrozenUnet, Case::FrozenDit, Case::Unet] {
            let (values, reference) = case.reference();
            let sound = case.gradients(&values, &device, Gradient::Whole, |y| y);
            agree(&reference, &sound, limit(Products::F32)).unwrap_or_else(|why| panic!("{why}"));
            for (name, way) in ways {
                let broken = case.gradients(&values, &device, Gradient::Whole, way);
                let why = agree(&reference, &broken, limit(Products::F32));
                let why = why.expect_err(name).to_string();
                assert!(why.contains("wrong gradients"), "{name}: {why}");
            }
            let mut missing = sound;
            missing.pop_first();
            assert!(agree(&reference, &missing, 1.0).is_err());
        }
    }
}
