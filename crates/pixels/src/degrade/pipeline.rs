//! Drawing and applying a [`Degradation`].
//!
//! The low size is floor(side / scale), at least one pixel; a resize of it goes to trunc(side / scale * factor).
//! After the last step the picture is clipped and rounded to 8 bits; resized back to the input's size it is clipped,
//! not rounded again (StableSR, DiffBIR).

use rand::{Rng, RngExt};

use super::config::{Degradation, Noise, Resize, Step};
use super::draw::{chance, uniform, weighted};
use super::kernel::Kernel;
use super::noise::Channels;
use super::{Degraded, Drawn, descriptors, filter2d, gaussian_noise, jpeg, poisson_noise, sharpen};
use crate::Image;
use crate::image::u8_from_unit;
use crate::resize::{Mode, Target, interpolate};

/// The size of the degraded picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputSize {
    /// The input's, resized back.
    Input,
    /// The low one, as drawn.
    Small,
}

/// JPEG's longest side; no step makes a larger picture.
const LONGEST: usize = 65_535;

/// A degraded picture, its target and the record of what was drawn; the same `rng` state gives the same bytes.
///
/// Alpha and metadata do not take part and are not returned.
///
/// # Panics
/// If a list of modes is empty or a kernel size is even; [`Degradation::check`] finds both.
pub fn degrade(image: &Image, law: &Degradation, rng: &mut impl Rng, size: OutputSize) -> Degraded {
    let input = Image::new(image.width, image.height, image.rgb.clone());
    let target = law
        .sharpen
        .as_ref()
        .map_or_else(|| input.clone(), |how| sharpen(&input, how));
    let scale = if chance(law.keep_size, rng) {
        1.0
    } else {
        uniform(law.scale, rng)
    };
    let mut run = Run {
        input: (image.width, image.height),
        scale,
        image: target.clone(),
        drawn: Vec::new(),
        rng,
    };
    if !chance(law.spare, run.rng) {
        run.apply(&law.steps);
        for v in &mut run.image.rgb {
            *v = f32::from(u8_from_unit(*v)) / 255.0;
        }
    }
    if size == OutputSize::Input && (run.image.width, run.image.height) != run.input {
        let mode = pick(&law.back, run.rng);
        let (width, height) = run.input;
        run.image = interpolate(&run.image, Target::Size { width, height }, mode).clamped();
    }
    Degraded {
        descriptors: descriptors(&run.drawn),
        image: run.image,
        target,
        drawn: run.drawn,
    }
}

/// A degradation under way.
struct Run<'a, R> {
    input: (usize, usize),
    scale: f64,
    image: Image,
    drawn: Vec<Drawn>,
    rng: &'a mut R,
}

impl<R: Rng> Run<'_, R> {
    fn apply(&mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Blur {
                    probability,
                    kernel,
                } => {
                    if chance(*probability, self.rng) {
                        let (kernel, drawn) = Kernel::draw(kernel, self.rng);
                        self.image = filter2d(&self.image, &kernel);
                        self.drawn.push(drawn);
                    }
                }
                Step::Resize(law) => {
                    let factor = self.factor(law);
                    let longest = self.image.width.max(self.image.height) as f64;
                    let factor = factor.min(LONGEST as f64 / longest);
                    self.resize(Target::Factor(factor), &law.modes);
                }
                Step::ResizeOfLow(law) => {
                    let factor = self.factor(law);
                    self.resize(self.low(factor), &law.modes);
                }
                Step::ToLow { modes } => self.resize(self.low(1.0), modes),
                Step::Noise(law) => self.noise(law),
                Step::Jpeg {
                    probability,
                    quality,
                } => {
                    if chance(*probability, self.rng) {
                        let quality = uniform(*quality, self.rng).round().clamp(1.0, 100.0) as u8;
                        self.image = jpeg(&self.image, quality);
                        self.drawn.push(Drawn::Jpeg { quality });
                    }
                }
                Step::EitherOrder([one, other]) => {
                    let (first, second) = if chance(0.5, self.rng) {
                        (one, other)
                    } else {
                        (other, one)
                    };
                    self.apply(first);
                    self.apply(second);
                }
            }
        }
    }

    fn factor(&mut self, law: &Resize) -> f64 {
        match weighted(&law.up_down_keep, self.rng) {
            0 => uniform([1.0, law.range[1]], self.rng),
            1 => uniform([law.range[0], 1.0], self.rng),
            _ => 1.0,
        }
    }

    fn low(&self, factor: f64) -> Target {
        let side = |n: usize| ((n as f64 / self.scale * factor) as usize).clamp(1, LONGEST);
        Target::Size {
            width: side(self.input.0),
            height: side(self.input.1),
        }
    }

    fn resize(&mut self, target: Target, modes: &[Mode]) {
        let mode = pick(modes, self.rng);
        let before = (self.image.width, self.image.height);
        self.image = interpolate(&self.image, target, mode);
        let (width, height) = (self.image.width, self.image.height);
        if (width, height) != before {
            let of_input = width as f64 / self.input.0 as f64;
            self.drawn.push(Drawn::Resize {
                mode,
                width,
                height,
                of_input,
            });
        }
    }

    fn noise(&mut self, law: &Noise) {
        if !chance(law.probability, self.rng) {
            return;
        }
        let gaussian = chance(law.gaussian, self.rng);
        let strength = uniform(
            if gaussian {
                law.sigma
            } else {
                law.poisson_scale
            },
            self.rng,
        );
        let grey = chance(law.grey, self.rng);
        let channels = if grey {
            Channels::Shared
        } else {
            Channels::Each
        };
        let (name, deviation) = if gaussian {
            gaussian_noise(&mut self.image, strength, channels, self.rng);
            ("gaussian", strength)
        } else {
            (
                "poisson",
                poisson_noise(&mut self.image, strength, channels, self.rng),
            )
        };
        self.drawn.push(Drawn::Noise {
            law: name.to_owned(),
            strength,
            grey,
            deviation,
        });
    }
}

fn pick(modes: &[Mode], rng: &mut impl Rng) -> Mode {
    modes[rng.random_range(0..modes.len())]
}
