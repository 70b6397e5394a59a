//! What a run makes of pictures it never trains on: scores and a grid.

use pixels::{
    Image,
    colour::Luma,
    random::stream,
    score::{detail, psnr, ssim},
};
use priors::weights::Values;

use crate::{
    Error,
    config::TrainConfig,
    data::{Photos, Sample},
    objective::Objective,
};

/// How many validation pictures are shown.
const SHOWN: usize = 6;

/// Means over the validation pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scores {
    /// PSNR, dB.
    pub psnr: f64,
    /// SSIM.
    pub ssim: f64,
    /// The share of the clean picture's gradients in the result ([`detail`]).
    pub detail: f64,
    /// PSNR of the low-quality pictures: what doing nothing gives.
    pub lq_psnr: f64,
}

impl Scores {
    /// The log's line.
    pub(crate) fn line(self, step: usize) -> serde_json::Value {
        serde_json::json!({
            "step": step,
            "validation_psnr": self.psnr,
            "validation_ssim": self.ssim,
            "validation_detail": self.detail,
            "validation_lq_psnr": finite(self.lq_psnr),
        })
    }
}

/// JSON knows no infinity: the PSNR of a picture with itself.
fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

/// The pictures: a crop of each, degraded as in training.
pub(crate) struct Validation {
    samples: Vec<Sample>,
    note: Option<String>,
}

impl Validation {
    /// Draws them; none where the configuration names none.
    ///
    /// # Errors
    /// As [`Photos::open`] and [`Photos::sample`].
    pub(crate) fn open(config: &TrainConfig) -> Result<Self, Error> {
        let Some(folder) = &config.data.validation else {
            return Ok(Self {
                samples: vec![],
                note: None,
            });
        };
        let mut data = config.data.clone();
        data.images.clone_from(folder);
        data.null_text = 1.0;
        let photos = Photos::open(&data, config.seed.wrapping_add(1))?;
        let count = photos.count().min(SHOWN);
        let samples: Result<_, _> = (0..count).map(|i| photos.sample(i)).collect();
        Ok(Self {
            samples: samples?,
            note: photos.note(),
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// As [`Photos::note`].
    pub(crate) fn note(&self) -> Option<String> {
        self.note.clone()
    }

    /// Scores the networks with `values` and writes the grid of `step`.
    ///
    /// # Errors
    /// Values that do not fit the networks, a full disk.
    pub(crate) fn run(
        &self,
        config: &TrainConfig,
        objective: &dyn Objective,
        values: &Values,
        step: usize,
    ) -> Result<Scores, Error> {
        let mut rows = Vec::new();
        let mut scores = Scores::default();
        let part = 1.0 / self.samples.len() as f64;
        for (i, sample) in self.samples.iter().enumerate() {
            let mut rng = stream(config.seed, &format!("validation {i}"));
            let row = objective.show(values, sample, &mut rng)?;
            if let Some(result) = row.last() {
                scores.psnr += part * psnr(result, &sample.hq, Luma::Rgb)?;
                scores.ssim += part * ssim(result, &sample.hq, Luma::Yiq)?;
                scores.detail += part * detail(result, &sample.hq)?;
                scores.lq_psnr += part * psnr(&sample.lq, &sample.hq, Luma::Rgb)?;
            }
            rows.push(row);
        }
        pixels::io::save(&grid(&rows), config.out.join(format!("grid-{step:07}.png")))?;
        Ok(scores)
    }
}

/// Pictures of one size, a row each.
pub fn grid(rows: &[Vec<Image>]) -> Image {
    let (w, h) = (rows[0][0].width, rows[0][0].height);
    let columns = rows.iter().map(Vec::len).max().unwrap_or(1);
    Image::from_fn(w * columns, h * rows.len(), |c, y, x| {
        rows[y / h]
            .get(x / w)
            .map_or(0.0, |image| image.plane(c)[(y % h) * w + x % w])
    })
}
