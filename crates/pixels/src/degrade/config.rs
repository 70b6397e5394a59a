//! A degradation as data: which steps, in which order, with which ranges.
//!
//! Units: blur sigmas in pixels of the picture at that moment, Gaussian noise in 1/255, Poisson scale and betas
//! without, cut-offs in radians a pixel, JPEG quality 1 to 100. Every range is `[low, high]`, drawn uniformly.

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::resize::Mode;

/// `[low, high]`, both included; equal ends are a constant.
pub type Range = [f64; 2];

/// A whole degradation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Degradation {
    /// The input is this many times larger than the low-quality picture, drawn for each picture.
    pub scale: Range,
    /// Probability that the scale is 1 instead.
    pub keep_size: f64,
    /// Probability that nothing at all is done.
    pub spare: f64,
    /// Unsharp masking of the target, from which the low-quality picture is then made.
    pub sharpen: Option<Sharpen>,
    /// What happens, in this order.
    pub steps: Vec<Step>,
    /// How the low-quality picture is brought back to the input's size, one drawn uniformly.
    pub back: Vec<Mode>,
}

/// Unsharp masking: where |x - blur(x)| > threshold, x + weight (x - blur(x)), softly blended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sharpen {
    /// How much of the residual is added.
    pub weight: f64,
    /// Side of the Gaussian kernel, odd; its sigma is OpenCV's 0.3 ((size - 1) / 2 - 1) + 0.8.
    pub size: usize,
    /// In 1/255.
    pub threshold: f64,
}

/// One step of a degradation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// Blurs with a drawn kernel.
    Blur {
        /// That it happens.
        probability: f64,
        /// What is drawn.
        kernel: KernelLaw,
    },
    /// Resizes by a drawn factor (torch's `scale_factor`).
    Resize(Resize),
    /// Resizes to a drawn multiple of the low size, whatever the size is now.
    ResizeOfLow(Resize),
    /// Resizes to the low size.
    ToLow {
        /// One is drawn uniformly.
        modes: Vec<Mode>,
    },
    /// Adds noise and clips to `[0, 1]`.
    Noise(Noise),
    /// Compresses and decompresses.
    Jpeg {
        /// That it happens.
        probability: f64,
        /// Rounded to a whole number after drawing.
        quality: Range,
    },
    /// Two lists of steps, in this order or the other, with equal chances.
    EitherOrder([Vec<Step>; 2]),
}

/// The law of a resize.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// Weights of up, down and keep.
    pub up_down_keep: [f64; 3],
    /// Down draws from `[low, 1]`, up from `[1, high]`.
    pub range: Range,
    /// One is drawn uniformly.
    pub modes: Vec<Mode>,
}

/// The law of a noise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Noise {
    /// That any is added.
    pub probability: f64,
    /// That it is Gaussian, not Poisson.
    pub gaussian: f64,
    /// Standard deviation of the Gaussian, in 1/255.
    pub sigma: Range,
    /// Factor of the Poisson noise.
    pub poisson_scale: Range,
    /// That one plane of noise serves the three channels.
    pub grey: f64,
}

/// The law of a blur kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum KernelLaw {
    /// Real-ESRGAN's mixture.
    Mixed {
        /// Sides, odd ones drawn uniformly.
        size: [usize; 2],
        /// Probability of a sinc kernel, cut off at U(pi/3, pi) below 13 taps and U(pi/5, pi) from there on.
        sinc: f64,
        /// Weights of iso, aniso, generalized iso, generalized aniso, plateau iso, plateau aniso.
        weights: [f64; 6],
        /// Standard deviation along each axis.
        sigma: Range,
        /// Shape of the generalized Gaussian: below 1 half the time, above 1 the other half.
        beta_generalized: Range,
        /// Shape of the plateau, drawn in the same way.
        beta_plateau: Range,
    },
    /// A round Gaussian.
    Gaussian {
        /// Side, odd.
        size: usize,
        /// Standard deviation.
        sigma: Range,
    },
    /// A sinc kernel: ringing.
    Sinc {
        /// Sides, odd ones drawn uniformly.
        size: [usize; 2],
        /// Cut-off.
        cutoff: Range,
    },
}

impl Degradation {
    /// Whether every number makes sense; call it on a degradation that came from a file.
    ///
    /// # Errors
    /// `Mismatch` that names the first setting out of its range.
    pub fn check(&self) -> Result<(), Error> {
        within("scale", self.scale, [1.0, 64.0])?;
        probability("keep_size", self.keep_size)?;
        probability("spare", self.spare)?;
        some("back", &self.back)?;
        if let Some(sharpen) = &self.sharpen {
            within("sharpen.weight", [sharpen.weight; 2], [0.0, 10.0])?;
            within("sharpen.threshold", [sharpen.threshold; 2], [0.0, 255.0])?;
            odd("sharpen.size", [sharpen.size; 2])?;
        }
        self.steps.iter().try_for_each(Step::check)
    }
}

impl Step {
    fn check(&self) -> Result<(), Error> {
        match self {
            Self::Blur {
                probability: p,
                kernel,
            } => {
                probability("blur.probability", *p)?;
                kernel.check()
            }
            Self::Resize(law) | Self::ResizeOfLow(law) => {
                weights("resize.up_down_keep", &law.up_down_keep)?;
                within("resize.range", law.range, [0.01, 16.0])?;
                within(
                    "resize.range (low end, for down)",
                    [law.range[0]; 2],
                    [0.01, 1.0],
                )?;
                within(
                    "resize.range (high end, for up)",
                    [law.range[1]; 2],
                    [1.0, 16.0],
                )?;
                some("resize.modes", &law.modes)
            }
            Self::ToLow { modes } => some("to_low.modes", modes),
            Self::Noise(law) => {
                probability("noise.probability", law.probability)?;
                probability("noise.gaussian", law.gaussian)?;
                probability("noise.grey", law.grey)?;
                within("noise.sigma", law.sigma, [0.0, 255.0])?;
                within("noise.poisson_scale", law.poisson_scale, [0.0, 100.0])
            }
            Self::Jpeg {
                probability: p,
                quality,
            } => {
                probability("jpeg.probability", *p)?;
                within("jpeg.quality", *quality, [1.0, 100.0])
            }
            Self::EitherOrder(lists) => lists.iter().flatten().try_for_each(Self::check),
        }
    }
}

impl KernelLaw {
    fn check(&self) -> Result<(), Error> {
        match self {
            Self::Mixed {
                size,
                sinc,
                weights: each,
                sigma,
                beta_generalized,
                beta_plateau,
            } => {
                odd("kernel.size", *size)?;
                probability("kernel.sinc", *sinc)?;
                weights("kernel.weights", each)?;
                within("kernel.sigma", *sigma, [0.0, 100.0])?;
                within("kernel.beta_generalized", *beta_generalized, [0.01, 100.0])?;
                within("kernel.beta_plateau", *beta_plateau, [0.01, 100.0])
            }
            Self::Gaussian { size, sigma } => {
                odd("kernel.size", [*size; 2])?;
                within("kernel.sigma", *sigma, [0.0, 100.0])
            }
            Self::Sinc { size, cutoff } => {
                odd("kernel.size", *size)?;
                within("kernel.cutoff", *cutoff, [0.1, std::f64::consts::PI])
            }
        }
    }
}

fn mismatch(what: &str, expected: String, got: String) -> Error {
    let what = format!("degradation setting {what}");
    Error::Mismatch {
        what,
        expected,
        got,
        advice: "correct it, or start from a preset",
    }
}

fn within(what: &str, range: Range, bounds: Range) -> Result<(), Error> {
    if bounds[0] <= range[0] && range[0] <= range[1] && range[1] <= bounds[1] {
        return Ok(());
    }
    Err(mismatch(
        what,
        format!("low <= high, both in {bounds:?}"),
        format!("{range:?}"),
    ))
}

fn probability(what: &str, p: f64) -> Result<(), Error> {
    within(what, [p, p], [0.0, 1.0])
}

fn weights(what: &str, weights: &[f64]) -> Result<(), Error> {
    if weights.iter().all(|&w| w >= 0.0 && w.is_finite()) && weights.iter().sum::<f64>() > 0.0 {
        return Ok(());
    }
    Err(mismatch(
        what,
        "weights >= 0, not all zero".to_owned(),
        format!("{weights:?}"),
    ))
}

fn odd(what: &str, size: [usize; 2]) -> Result<(), Error> {
    if size[0] <= size[1] && size.iter().all(|n| n % 2 == 1) && size[1] <= 99 {
        return Ok(());
    }
    Err(mismatch(
        what,
        "odd sizes up to 99, the smaller first".to_owned(),
        format!("{size:?}"),
    ))
}

fn some(what: &str, modes: &[Mode]) -> Result<(), Error> {
    if modes.is_empty() {
        return Err(mismatch(
            what,
            "at least one of area, bilinear, bicubic".to_owned(),
            "none".to_owned(),
        ));
    }
    Ok(())
}
