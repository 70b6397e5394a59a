//! Latents on disk: with `data.cache_latents` a run draws so many samples, which come again in the same order, and the frozen autoencoder
//! reads each once.
//!
//! A sample is a file of its own, in a folder named by everything that decides what it is: the autoencoder, the photographs and how
//! samples are drawn from them. Later passes open no photograph.

use std::{path::PathBuf, sync::Arc};

use burn::tensor::{DType, TensorData};
use pixels::{Image, degrade::DESCRIPTORS};
use priors::weights::{Metadata, SafetensorsFile, Values, save_safetensors};
use serde::{Deserialize, Serialize};

use super::{Place, Sample};
use crate::{Error, disk::check_room};

/// A sample's latents, values of `[c, h, w]` each.
#[derive(Clone, Debug, PartialEq)]
pub struct Latents {
    /// Channels, rows and columns.
    pub shape: [usize; 3],
    /// Of the clean crop.
    pub hq: Vec<f32>,
    /// Of the degraded crop, as the prior's own encoder reads it.
    pub lq: Vec<f32>,
    /// Of the degraded crop, as the adapter sees it; the same where there is no degradation-robust encoder.
    pub seen: Vec<f32>,
}

/// Where a sample's latents are.
#[derive(Clone, Debug)]
pub enum Encoded {
    /// Not on disk, and they will not be.
    Never,
    /// Not yet: whoever encodes sample `.1` keeps its latents there.
    Later(Arc<LatentCache>, usize),
    /// Read from there; of the sample's pictures nothing is left but a dot.
    Once(Latents),
}

/// What a file holds besides the latents.
#[derive(Serialize, Deserialize)]
struct About {
    caption: String,
    descriptors: Vec<String>,
    place: Place,
    name: String,
}

/// The key of [`About`] in a file's metadata.
const ABOUT: &str = "sample";

/// The latents of a run's samples.
#[derive(Debug)]
pub struct LatentCache {
    place: PathBuf,
    samples: usize,
}

impl LatentCache {
    /// Of so many samples in the folder `place`.
    pub(crate) fn new(place: PathBuf, samples: usize) -> Self {
        Self { place, samples }
    }

    /// Refuses to begin where there is no room for what is still to be written of `bytes` of latents.
    ///
    /// # Errors
    /// Too little room.
    pub(crate) fn check_room(&self, bytes: u64) -> Result<(), Error> {
        check_room(&self.place, "latents", self.missing_bytes(bytes))
    }

    /// What is still to be written of `bytes` of latents.
    pub(crate) fn missing_bytes(&self, bytes: u64) -> u64 {
        let there = std::fs::read_dir(&self.place).map_or(0, Iterator::count);
        let missing = self.samples.saturating_sub(there) as u64;
        bytes / self.samples as u64 * missing
    }

    /// Which of its samples is number `index` of the run.
    pub(super) fn which(&self, index: usize) -> usize {
        index % self.samples
    }

    fn file(&self, which: usize) -> PathBuf {
        self.place.join(format!("{which:08}.safetensors"))
    }

    /// The sample as it was kept, without pictures; none where it was not.
    ///
    /// # Errors
    /// A damaged file.
    pub(super) fn load(&self, which: usize) -> Result<Option<Sample>, Error> {
        let path = self.file(which);
        if !path.is_file() {
            return Ok(None);
        }
        let wrong = || {
            let what = "holds no sample's latents; delete it";
            Error::Input(format!("{}: {what}", path.display()))
        };
        let file = SafetensorsFile::open(&path)?;
        let about = file.metadata(ABOUT).ok_or_else(wrong)?;
        let about: About = serde_json::from_str(about).map_err(|_| wrong())?;
        let shape = file.shape("hq").and_then(|shape| shape.try_into().ok());
        let shape: [usize; 3] = shape.ok_or_else(wrong)?;
        let values = |name: &str| {
            let data = file.data(name).filter(|data| data.dtype() == DType::F32);
            let data = data.filter(|data| data.shape().as_slice() == shape);
            data.and_then(|data| data.try_into_vec::<f32>().ok())
                .ok_or_else(wrong)
        };
        let none = || Image::new(1, 1, vec![0.0; 3]);
        Ok(Some(Sample {
            hq: none(),
            lq: none(),
            caption: about.caption,
            descriptors: (DESCRIPTORS.into_iter())
                .filter(|word| about.descriptors.iter().any(|kept| kept == word))
                .collect(),
            drawn: vec![],
            place: about.place,
            name: about.name,
            passed_over: vec![],
            encoded: Encoded::Once(Latents {
                shape,
                hq: values("hq")?,
                lq: values("lq")?,
                seen: values("seen")?,
            }),
        }))
    }

    /// Keeps the latents of sample `which`.
    ///
    /// # Errors
    /// A full disk.
    pub(crate) fn store(
        &self,
        which: usize,
        sample: &Sample,
        latents: &Latents,
    ) -> Result<(), Error> {
        let about = About {
            caption: sample.caption.clone(),
            descriptors: sample.descriptors.iter().map(|&word| word.into()).collect(),
            place: sample.place,
            name: sample.name.clone(),
        };
        let Latents {
            shape,
            hq,
            lq,
            seen,
        } = latents;
        let values = [("hq", hq), ("lq", lq), ("seen", seen)]
            .map(|(name, values)| (name.to_owned(), TensorData::new(values.clone(), *shape)));
        let about = serde_json::to_string(&about).expect("plain JSON");
        let metadata = Metadata::from([(ABOUT.to_owned(), about)]);
        save_safetensors(
            &self.file(which),
            &Values::from(values),
            DType::F32,
            &metadata,
        )?;
        Ok(())
    }
}
