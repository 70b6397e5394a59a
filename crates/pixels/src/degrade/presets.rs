//! The named degradations.
//!
//! - `realesrgan`: Real-ESRGAN x4plus, `options/train_realesrgan_x4plus.yml`.
//! - `mild`: StableSR, `configs/stableSRNew/v2-finetune_text_T_512.yaml`.
//! - `mixture`: one fixed mixture: Gaussian blur of sigma 2, bicubic down by 4, Gaussian noise of 20/255, JPEG 50.
//! - `x8`: bilinear down by 8, and nothing else.
//! - `light`: our own; from almost nothing to slight, so that a restorer learns not to spoil a good photograph.

use std::f64::consts::PI;

use super::config::{Degradation, KernelLaw, Noise, Range, Resize, Sharpen, Step};
use crate::Error;
use crate::resize::Mode;

const ANY: [Mode; 3] = [Mode::Area, Mode::Bilinear, Mode::Bicubic];

impl Degradation {
    /// The names [`Self::preset`] knows.
    pub const PRESETS: [&str; 5] = ["realesrgan", "mild", "mixture", "x8", "light"];

    /// The degradation of this name.
    ///
    /// # Errors
    /// `Mismatch` that lists the names.
    pub fn preset(name: &str) -> Result<Self, Error> {
        match name {
            "realesrgan" => Ok(second_order(&REALESRGAN)),
            "mild" => Ok(second_order(&MILD)),
            "mixture" => Ok(mixture()),
            "x8" => Ok(x8()),
            "light" => Ok(light()),
            _ => Err(Error::Mismatch {
                what: "degradation".to_owned(),
                expected: format!("one of {}", Self::PRESETS.join(", ")),
                got: format!("'{name}'"),
                advice: "give one of these names, or write the degradation out",
            }),
        }
    }
}

/// What differs between pipelines of Real-ESRGAN's kind.
struct SecondOrder {
    spare: f64,
    sigma: [Range; 2],
    beta_generalized: Range,
    beta_plateau: Range,
    blur2: f64,
    resize: [Range; 2],
    noise: [Range; 2],
    poisson: [Range; 2],
    jpeg: [Range; 2],
}

const REALESRGAN: SecondOrder = SecondOrder {
    spare: 0.0,
    sigma: [[0.2, 3.0], [0.2, 1.5]],
    beta_generalized: [0.5, 4.0],
    beta_plateau: [1.0, 2.0],
    blur2: 0.8,
    resize: [[0.15, 1.5], [0.3, 1.2]],
    noise: [[1.0, 30.0], [1.0, 25.0]],
    poisson: [[0.05, 3.0], [0.05, 2.5]],
    jpeg: [[30.0, 95.0], [30.0, 95.0]],
};

const MILD: SecondOrder = SecondOrder {
    spare: 0.01,
    sigma: [[0.2, 1.5], [0.2, 1.0]],
    beta_generalized: [0.5, 2.0],
    beta_plateau: [1.0, 1.5],
    blur2: 0.5,
    resize: [[0.3, 1.5], [0.6, 1.2]],
    noise: [[1.0, 15.0], [1.0, 12.0]],
    poisson: [[0.05, 2.0], [0.05, 1.0]],
    jpeg: [[60.0, 95.0], [60.0, 100.0]],
};

fn second_order(law: &SecondOrder) -> Degradation {
    let blur = |probability: f64, sigma: Range| Step::Blur {
        probability,
        kernel: KernelLaw::Mixed {
            size: [7, 21],
            sinc: 0.1,
            weights: [0.45, 0.25, 0.12, 0.03, 0.12, 0.03],
            sigma,
            beta_generalized: law.beta_generalized,
            beta_plateau: law.beta_plateau,
        },
    };
    let noise = |sigma: Range, poisson_scale: Range| {
        Step::Noise(Noise {
            probability: 1.0,
            gaussian: 0.5,
            sigma,
            poisson_scale,
            grey: 0.4,
        })
    };
    let jpeg = |quality: Range| Step::Jpeg {
        probability: 1.0,
        quality,
    };
    let ringing = Step::Blur {
        probability: 0.8,
        kernel: KernelLaw::Sinc {
            size: [7, 21],
            cutoff: [PI / 3.0, PI],
        },
    };
    Degradation {
        scale: [4.0, 4.0],
        keep_size: 0.0,
        spare: law.spare,
        sharpen: Some(Sharpen {
            weight: 0.5,
            size: 51,
            threshold: 10.0,
        }),
        steps: vec![
            blur(1.0, law.sigma[0]),
            Step::Resize(Resize {
                up_down_keep: [0.2, 0.7, 0.1],
                range: law.resize[0],
                modes: ANY.to_vec(),
            }),
            noise(law.noise[0], law.poisson[0]),
            jpeg(law.jpeg[0]),
            blur(law.blur2, law.sigma[1]),
            Step::ResizeOfLow(Resize {
                up_down_keep: [0.3, 0.4, 0.3],
                range: law.resize[1],
                modes: ANY.to_vec(),
            }),
            noise(law.noise[1], law.poisson[1]),
            Step::EitherOrder([
                vec![
                    Step::ToLow {
                        modes: ANY.to_vec(),
                    },
                    ringing,
                ],
                vec![jpeg(law.jpeg[1])],
            ]),
        ],
        back: vec![Mode::Bicubic],
    }
}

fn plain(scale: Range, steps: Vec<Step>, back: Mode) -> Degradation {
    Degradation {
        scale,
        keep_size: 0.0,
        spare: 0.0,
        sharpen: None,
        steps,
        back: vec![back],
    }
}

fn gaussian_noise(probability: f64, sigma: Range, grey: f64) -> Step {
    Step::Noise(Noise {
        probability,
        gaussian: 1.0,
        sigma,
        poisson_scale: [0.0, 0.0],
        grey,
    })
}

fn mixture() -> Degradation {
    let steps = vec![
        Step::Blur {
            probability: 1.0,
            kernel: KernelLaw::Gaussian {
                size: 21,
                sigma: [2.0, 2.0],
            },
        },
        Step::ToLow {
            modes: vec![Mode::Bicubic],
        },
        gaussian_noise(1.0, [20.0, 20.0], 0.0),
        Step::Jpeg {
            probability: 1.0,
            quality: [50.0, 50.0],
        },
    ];
    plain([4.0, 4.0], steps, Mode::Bicubic)
}

fn x8() -> Degradation {
    plain(
        [8.0, 8.0],
        vec![Step::ToLow {
            modes: vec![Mode::Bilinear],
        }],
        Mode::Bilinear,
    )
}

fn light() -> Degradation {
    let steps = vec![
        Step::Blur {
            probability: 0.7,
            kernel: KernelLaw::Gaussian {
                size: 7,
                sigma: [0.0, 1.0],
            },
        },
        Step::ToLow {
            modes: ANY.to_vec(),
        },
        gaussian_noise(0.7, [0.0, 6.0], 0.4),
        Step::Jpeg {
            probability: 0.8,
            quality: [70.0, 98.0],
        },
    ];
    Degradation {
        keep_size: 0.5,
        ..plain([1.0, 2.0], steps, Mode::Bicubic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_sound_and_survives_its_file() {
        for name in Degradation::PRESETS {
            let preset = Degradation::preset(name).expect("known");
            preset.check().expect(name);
            let text = serde_json::to_string(&preset).expect("plain data");
            assert_eq!(
                serde_json::from_str::<Degradation>(&text).expect("its own text"),
                preset,
                "{name}"
            );
        }
    }

    #[test]
    fn an_unknown_name_or_field_is_an_error_that_helps() {
        let error = Degradation::preset("esrgan")
            .expect_err("unknown")
            .to_string();
        assert!(
            error.contains("realesrgan, mild, mixture, x8, light"),
            "{error}"
        );
        let mut text = serde_json::to_value(light()).expect("plain data");
        text["steps"][0]["blur"]["sigma"] = 3.into();
        let error = serde_json::from_value::<Degradation>(text)
            .expect_err("unknown field")
            .to_string();
        assert!(error.contains("sigma"), "{error}");
    }

    #[test]
    fn a_number_out_of_range_is_named() {
        let mut wrong = mixture();
        wrong.steps[3] = Step::Jpeg {
            probability: 1.0,
            quality: [80.0, 30.0],
        };
        let error = wrong.check().expect_err("reversed").to_string();
        assert!(
            error.contains("jpeg.quality") && error.contains("[80.0, 30.0]"),
            "{error}"
        );
        wrong.steps[3] = Step::EitherOrder([vec![], vec![gaussian_noise(1.5, [0.0, 1.0], 0.0)]]);
        assert!(
            wrong
                .check()
                .expect_err("nested")
                .to_string()
                .contains("noise.probability")
        );
        wrong.steps[3] = Step::Blur {
            probability: 1.0,
            kernel: KernelLaw::Gaussian {
                size: 6,
                sigma: [1.0, 1.0],
            },
        };
        assert!(
            wrong
                .check()
                .expect_err("even")
                .to_string()
                .contains("kernel.size")
        );
    }
}
