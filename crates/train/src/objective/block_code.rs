//! An autoencoder's weights that compute a cosine transform of 4x4 blocks.
//!
//! An `AutoencoderKL` of one level whose `patch_size` is 4 holds this code exactly but for its norms: fresh residual
//! blocks are the identity, and `silu(x) - silu(-x) = x` carries a value through the last activation as a pair of
//! channels. The last norm divides by the standard deviation over a whole picture; channels that are constant and
//! large beside the picture's make that nearly a constant.
//!
//! A learnt code of 16 values for 48 needs hours to reach what this one keeps (38 dB on photographs), because
//! noise is far from any transform; from here training only has to improve it.

use burn::tensor::TensorData;
use priors::{vae::VaeConfig, weights::Values};

use crate::Error;

/// Side of a block.
const SIDE: usize = 4;

/// The coefficients kept: colour (0 luma, 1 and 2 chroma), vertical and horizontal frequency, and the standard deviation
/// over photographs in `[-1, 1]` (of 80 training photographs; only the ratios matter).
const KEPT: [(usize, usize, usize, f64); 16] = [
    (0, 0, 0, 3.44),
    (1, 0, 0, 1.54),
    (2, 0, 0, 0.66),
    (0, 1, 0, 0.38),
    (0, 0, 1, 0.36),
    (0, 1, 1, 0.22),
    (0, 2, 0, 0.22),
    (0, 0, 2, 0.20),
    (0, 2, 1, 0.15),
    (0, 1, 2, 0.15),
    (0, 3, 0, 0.12),
    (0, 2, 2, 0.12),
    (0, 0, 3, 0.11),
    (1, 1, 0, 0.11),
    (1, 0, 1, 0.10),
    (0, 3, 1, 0.10),
];

/// Rows of an orthonormal colour transform of red, green and blue.
const COLOURS: [[f64; 3]; 3] = [[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 2.0, -1.0]];

/// The size of the constant channels.
const CONSTANT: f64 = 8.0;

/// The log variance of the posterior.
const LOG_VARIANCE: f32 = -10.0;

/// Writes the code over the first and last layers of `vae.encoder` and `vae.decoder` in `values`.
///
/// # Errors
/// An autoencoder of another shape.
pub(super) fn write(config: &VaeConfig, values: &mut Values) -> Result<(), Error> {
    let width = config.block_out_channels[0];
    let pairs = 2 * KEPT.len();
    let fits = config.patch_size == SIDE
        && config.block_out_channels.len() == 1
        && config.latent_channels == KEPT.len()
        && config.norm_num_groups == 1
        && width > pairs
        && !(config.use_quant_conv || config.use_post_quant_conv || config.mid_block_add_attention);
    if !fits {
        return Err(Error::Input(format!(
            "vae.init = \"dct\" needs a vae/config.json of patch_size {SIDE}, one level of more than {pairs} channels, {} latent channels, norm_num_groups 1 and neither quant convs nor attention; change it or use vae.init = \"layers\"",
            KEPT.len()
        )));
    }
    let code: Vec<Vec<f64>> = KEPT.iter().map(coefficient).collect();
    // A latent is its coefficient over the root of its deviation, half way to equal variances.
    let gain: Vec<f64> = KEPT.iter().map(|kept| kept.3.powf(-0.5)).collect();
    let constants = CONSTANT.powi(2) * (width - pairs) as f64;
    let deviation = |scale: &dyn Fn(usize) -> f64| {
        let signal = (0..KEPT.len()).map(|i| 2.0 * (KEPT[i].3 * scale(i)).powi(2));
        ((signal.sum::<f64>() + constants) / width as f64).sqrt()
    };
    let encoded = deviation(&|_| 1.0);
    let decoded = deviation(&|i| gain[i]);
    let folded = 3 * SIDE * SIDE;
    let latent = KEPT.len();

    let mut layer = Layer::of(values, "vae.encoder.conv_in");
    for (i, row) in code.iter().enumerate() {
        layer.row(2 * i, row.iter().copied());
        layer.row(2 * i + 1, row.iter().map(|v| -v));
    }
    layer.constants(pairs..width);
    layer.put(values);

    let mut layer = Layer::of(values, "vae.encoder.conv_out");
    for (i, gain) in gain.iter().enumerate() {
        layer.row(i, pair(i, encoded * gain, width));
        layer.row(latent + i, vec![0.0; width]);
        layer.bias[latent + i] = LOG_VARIANCE;
    }
    layer.put(values);

    let mut layer = Layer::of(values, "vae.decoder.conv_in");
    for i in 0..latent {
        let one = |sign: f64| (0..latent).map(move |j| if i == j { sign } else { 0.0 });
        layer.row(2 * i, one(1.0));
        layer.row(2 * i + 1, one(-1.0));
    }
    layer.constants(pairs..width);
    layer.put(values);

    let mut layer = Layer::of(values, "vae.decoder.conv_out");
    for pixel in 0..folded {
        let mix = code.iter().zip(&gain).enumerate();
        let row = mix.map(|(i, (row, gain))| pair(i, decoded * row[pixel] / gain, width));
        let sum = row.reduce(|a, b| a.iter().zip(&b).map(|(a, b)| a + b).collect());
        layer.row(pixel, sum.expect("16 coefficients"));
    }
    layer.put(values);
    Ok(())
}

/// A coefficient's weights over the folded channels `(colour, row, column)`, of norm 1.
fn coefficient(&(colour, v, u, _): &(usize, usize, usize, f64)) -> Vec<f64> {
    let wave = |frequency: usize, at: usize| {
        let norm = if frequency == 0 { 1.0 } else { 2.0 } / SIDE as f64;
        let angle = std::f64::consts::PI * (at as f64 + 0.5) * frequency as f64 / SIDE as f64;
        norm.sqrt() * angle.cos()
    };
    let mix = COLOURS[colour];
    let norm = mix.iter().map(|v| v * v).sum::<f64>().sqrt();
    let mut weights = Vec::with_capacity(3 * SIDE * SIDE);
    for channel in mix {
        for y in 0..SIDE {
            for x in 0..SIDE {
                weights.push(channel / norm * wave(v, y) * wave(u, x));
            }
        }
    }
    weights
}

/// Weights over `width` channels that read pair `i` as one value times `scale`.
fn pair(i: usize, scale: f64, width: usize) -> Vec<f64> {
    let mut row = vec![0.0; width];
    (row[2 * i], row[2 * i + 1]) = (scale, -scale);
    row
}

/// A 3x3 convolution being written.
struct Layer {
    name: String,
    weight: Vec<f32>,
    shape: Vec<usize>,
    bias: Vec<f32>,
}

impl Layer {
    fn of(values: &Values, name: &str) -> Self {
        let floats = |tensor: &str| {
            let data = values[&format!("{name}.{tensor}")].clone();
            let shape = data.shape().as_slice().to_vec();
            (
                data.try_into_vec::<f32>().expect("initial values are f32"),
                shape,
            )
        };
        let (weight, shape) = floats("weight");
        let (bias, _) = floats("bias");
        Self {
            name: name.to_owned(),
            weight,
            shape,
            bias,
        }
    }

    /// Output channel `out` becomes this mix of the inputs at the same position.
    fn row(&mut self, out: usize, mix: impl IntoIterator<Item = f64>) {
        let n = self.shape[1] * 9;
        let taps = &mut self.weight[out * n..(out + 1) * n];
        taps.fill(0.0);
        for (taps, value) in taps.chunks_exact_mut(9).zip(mix) {
            taps[4] = value as f32;
        }
        self.bias[out] = 0.0;
    }

    /// These output channels get a large constant, of both signs in turn.
    fn constants(&mut self, channels: std::ops::Range<usize>) {
        for c in channels {
            self.bias[c] = if c % 2 == 0 { CONSTANT } else { -CONSTANT } as f32;
        }
    }

    fn put(self, values: &mut Values) {
        let Self {
            name,
            weight,
            shape,
            bias,
        } = self;
        let n = bias.len();
        values.insert(format!("{name}.weight"), TensorData::new(weight, shape));
        values.insert(format!("{name}.bias"), TensorData::new(bias, [n]));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::tensor::{Device, Tensor, TensorData};
    use priors::{
        vae::{AutoencoderKl, VaeConfig},
        weights::Weights,
    };
    use serde_json::json;

    use super::{KEPT, coefficient, write};

    #[test]
    fn the_network_computes_the_projection_onto_the_code() {
        let json = json!({
            "in_channels": 48, "out_channels": 48, "latent_channels": 16, "block_out_channels": [48],
            "layers_per_block": 1, "norm_num_groups": 1, "scaling_factor": 1.0, "patch_size": 4,
            "use_quant_conv": false, "use_post_quant_conv": false, "mid_block_add_attention": false,
        });
        let device = Device::flex();
        let config = VaeConfig::from_json(&json, Path::new("config.json")).expect("a config");
        let seeded = Weights::seeded(3, &device);
        AutoencoderKl::new(config.clone(), &seeded.at("vae")).expect("a network");
        let mut values = seeded.made();
        write(&config, &mut values).expect("the code fits");
        let vae = AutoencoderKl::new(config, &Weights::from_values(values, &device).at("vae"));
        let vae = vae.expect("a network");

        // One block of a ramp with a corner, alone in its picture.
        let at = |i: usize| {
            ((i % 4) as f64 * 0.2 - (i / 4 % 4) as f64 * 0.1 + (i / 16) as f64 * 0.3 - 0.4)
                * if i.is_multiple_of(7) { -1.0 } else { 1.0 }
        };
        let block: Vec<f64> = (0..48).map(at).collect();
        let mut want = vec![0.0; 48];
        for row in KEPT.iter().map(coefficient) {
            let c = row.iter().zip(&block).map(|(a, b)| a * b).sum::<f64>();
            for (want, r) in want.iter_mut().zip(&row) {
                *want += c * r;
            }
        }
        let floats: Vec<f32> = block.iter().map(|v| *v as f32).collect();
        let x = Tensor::<4>::from_data(TensorData::new(floats, [1, 3, 4, 4]), &device);
        let y = vae.decode(vae.encode(x).mean).into_data();
        let y = y.try_into_vec::<f32>().expect("f32");
        let (mut off, mut norm) = (0.0, 0.0);
        for (y, want) in y.iter().zip(&want) {
            off += (f64::from(*y) - want).powi(2);
            norm += want * want;
        }
        // The norms divide by the deviation of this picture, not of photographs: a few hundredths.
        assert!(
            off.sqrt() < 0.04 * norm.sqrt(),
            "{} of {}",
            off.sqrt(),
            norm.sqrt()
        );
    }
}
