//! Training samples: which photograph, which crop, which degradation, by (seed, index) alone.
//!
//! Sample `i` of a run is the same whatever the number of workers and wherever the run was resumed.

pub mod caption;
mod latents;
mod loader;
mod shard;
mod source;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use pixels::{
    Image,
    degrade::{Degradation, Drawn, OutputSize, degrade},
    random::stream,
    resize::{Filter, scale},
};
use rand::RngExt;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use latents::{Encoded, LatentCache, Latents};
pub use loader::Loader;
pub use source::{Picture, pictures};

use crate::{
    Error,
    config::{Data, Mix, Small},
};

/// One training sample.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The clean crop.
    pub hq: Image,
    /// The degraded crop, of the same size; the clean one where nothing degrades.
    pub lq: Image,
    /// The photograph's caption, or nothing.
    pub caption: String,
    /// Words for what was done to it.
    pub descriptors: Vec<&'static str>,
    /// What was done to it.
    pub drawn: Vec<Drawn>,
    /// Where in its photograph the crop is.
    pub place: Place,
    /// The photograph's name.
    pub name: String,
    /// Why photographs that were drawn before this one could not be decoded.
    pub passed_over: Vec<String>,
    /// Where its latents are.
    pub encoded: Encoded,
}

/// Where in its photograph a crop is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Height and width of the photograph as it is stored.
    pub photo_px: [usize; 2],
    /// Top and left of the crop in the photograph that was reduced, and mirrored where the crop is.
    pub corner_px: [usize; 2],
}

/// How many photographs that cannot be decoded a sample passes over before that is an error.
const PASS_OVER: usize = 16;

/// The photographs of a folder or of shards and how samples are drawn from them.
#[derive(Debug)]
pub struct Photos {
    pictures: Vec<Picture>,
    /// Bytes of all of them when they are decoded.
    decoded_bytes: usize,
    /// How many of those found have a side smaller than the crop.
    small: usize,
    data: Data,
    laws: Vec<(Degradation, f64)>,
    seed: u64,
    cache: Mutex<Cache>,
    latents: Option<Arc<LatentCache>>,
}

#[derive(Debug, Default)]
struct Cache {
    bytes: usize,
    pictures: HashMap<usize, Arc<Photo>>,
}

/// A decoded photograph, 8 bits a sample, to hold many.
#[derive(Debug)]
struct Photo {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Photos {
    /// Finds the pictures and captions of `data.images`, and leaves out those that are smaller than the crop where
    /// `data.small` says so.
    ///
    /// # Errors
    /// What [`pictures`] refuses, an unknown degradation, no picture of a crop's size.
    pub fn open(data: &Data, seed: u64) -> Result<Self, Error> {
        let laws = data
            .degradations
            .iter()
            .map(law)
            .collect::<Result<_, _>>()?;
        let found = pictures(&data.images)?;
        // What cannot be read now is passed over, or said, when its turn comes.
        let sizes: Vec<Option<[usize; 2]>> = found.par_iter().map(Picture::size_px).collect();
        let is_small = |px: &[usize; 2]| px[0].min(px[1]) < data.crop_px;
        let small = sizes.iter().flatten().filter(|px| is_small(px)).count();
        if small == found.len() && data.small == Small::Skip {
            return Err(Error::Input(format!(
                "{}: each of the {small} pictures has a side smaller than the crop of {} pixels; give larger pictures or a smaller crop, or set data.small = \"enlarge\"",
                data.images.display(),
                data.crop_px
            )));
        }
        let left_out = |px: &Option<[usize; 2]>| {
            data.small == Small::Skip && px.as_ref().is_some_and(is_small)
        };
        let kept = found.into_iter().zip(sizes);
        let kept = kept.filter(|(_, px)| !left_out(px));
        let (pictures, sizes): (Vec<_>, Vec<_>) = kept.unzip();
        let bytes = sizes.iter().flatten().map(|[w, h]| 3 * w * h);
        Ok(Self {
            pictures,
            decoded_bytes: bytes.sum(),
            small,
            data: data.clone(),
            laws,
            seed,
            cache: Mutex::default(),
            latents: None,
        })
    }

    /// Draws the samples of this cache, and those that it holds from there.
    #[must_use]
    pub(crate) fn with_latents(mut self, cache: Option<LatentCache>) -> Self {
        self.latents = cache.map(Arc::new);
        self
    }

    /// What became of photographs with a side smaller than the crop, where there are any.
    pub fn note(&self) -> Option<String> {
        let all = match self.data.small {
            Small::Skip => self.small + self.pictures.len(),
            Small::Enlarge => self.pictures.len(),
        };
        let fate = match self.data.small {
            Small::Skip => "are left out (data.small = \"enlarge\" would enlarge them)",
            Small::Enlarge => "are enlarged to it (data.small = \"skip\" would leave them out)",
        };
        (self.small > 0).then(|| {
            format!(
                "{}: {} of {all} pictures have a side smaller than the crop of {} pixels and {fate}",
                self.data.images.display(),
                self.small,
                self.data.crop_px
            )
        })
    }

    /// Captions of all photographs.
    pub fn captions(&self) -> Vec<String> {
        let caption = |picture: &Picture| picture.caption.clone();
        self.pictures.iter().map(caption).collect()
    }

    /// How many photographs there are.
    pub fn count(&self) -> usize {
        self.pictures.len()
    }

    /// Bytes of all photographs when they are decoded, as far as their headers say it.
    pub(crate) fn decoded_bytes(&self) -> usize {
        self.decoded_bytes
    }

    /// Bytes of the decoded photographs that are kept now.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.cache.lock().expect("no panic while held").bytes
    }

    /// SHA-256 over the names, sizes and captions of all photographs, in order: quick, and another where pictures
    /// came, went or changed places, so that sample `i` is no longer the same.
    ///
    /// # Errors
    /// A photograph that is gone.
    pub fn list_hash(&self) -> Result<String, Error> {
        let mut hash = Sha256::new();
        for picture in &self.pictures {
            hash.update(picture.file_name());
            hash.update(picture.size()?.to_le_bytes());
            hash.update(&picture.caption);
        }
        Ok(hex(&hash.finalize()))
    }

    /// SHA-256 over the names, sizes and contents of all photographs and captions, in order.
    ///
    /// # Errors
    /// A photograph that cannot be read.
    pub fn hash(&self) -> Result<String, Error> {
        let mut hash = Sha256::new();
        for picture in &self.pictures {
            let bytes = picture.bytes()?;
            hash.update(picture.file_name());
            hash.update(bytes.len().to_le_bytes());
            hash.update(&bytes);
            hash.update(&picture.caption);
        }
        Ok(hex(&hash.finalize()))
    }

    /// Sample number `index`; where latents are kept, one of those that are. A photograph that cannot be decoded is passed
    /// over for another, drawn from a stream of its own.
    ///
    /// # Errors
    /// A photograph that cannot be read, or too many in a row that cannot be decoded.
    pub fn sample(&self, index: usize) -> Result<Sample, Error> {
        let Some(cache) = &self.latents else {
            return self.drawn(index);
        };
        let which = cache.which(index);
        if let Some(sample) = cache.load(which)? {
            return Ok(sample);
        }
        Ok(Sample {
            encoded: Encoded::Later(cache.clone(), which),
            ..self.drawn(which)?
        })
    }

    fn drawn(&self, index: usize) -> Result<Sample, Error> {
        let mut rng = stream(self.seed, &format!("sample {index}"));
        let first = rng.random_range(0..self.pictures.len());
        let (which, photo, passed_over) = self.decodable(index, first)?;
        let name = self.pictures[which].name.clone();
        let size = self.data.crop_px;
        let [low, high] = self.data.reduce;
        let room = (photo.width.min(photo.height) as f64 / size as f64).max(1.0);
        let factor = (low.ln() + (high.ln() - low.ln()) * rng.random::<f64>())
            .exp()
            .min(room);
        let (hq, place) = crop(&photo, size, factor, &mut rng);
        let caption = if rng.random::<f64>() < self.data.null_text {
            ""
        } else {
            &self.pictures[which].caption
        };
        let caption = caption.to_owned();
        let total: f64 = self.laws.iter().map(|(_, weight)| weight).sum();
        let mut at = rng.random::<f64>() * total;
        let law = self.laws.iter().find(|(_, weight)| {
            at -= weight;
            at < 0.0
        });
        let Some((law, _)) = law.or(self.laws.last()) else {
            return Ok(Sample {
                lq: hq.clone(),
                hq,
                caption,
                descriptors: vec![],
                drawn: vec![],
                place,
                name,
                passed_over,
                encoded: Encoded::Never,
            });
        };
        let degraded = degrade(&hq, law, &mut rng, OutputSize::Input);
        Ok(Sample {
            hq,
            lq: degraded.image,
            caption,
            descriptors: degraded.descriptors,
            drawn: degraded.drawn,
            place,
            name,
            passed_over,
            encoded: Encoded::Never,
        })
    }

    /// The photograph `first`, or the next one drawn for sample `index` that can be decoded.
    fn decodable(
        &self,
        index: usize,
        first: usize,
    ) -> Result<(usize, Arc<Photo>, Vec<String>), Error> {
        let mut which = first;
        let mut passed_over = Vec::new();
        loop {
            match self.photo(which) {
                Ok(photo) => return Ok((which, photo, passed_over)),
                // What the disk refuses it may give the next time; the order of samples must not depend on that.
                Err(Error::Picture(why)) if passed_over.len() < PASS_OVER => {
                    passed_over.push(why.to_string());
                    let again = format!("sample {index} again {}", passed_over.len());
                    which = stream(self.seed, &again).random_range(0..self.pictures.len());
                }
                Err(why) => return Err(why),
            }
        }
    }

    fn photo(&self, which: usize) -> Result<Arc<Photo>, Error> {
        if let Some(photo) = self
            .cache
            .lock()
            .expect("no panic while held")
            .pictures
            .get(&which)
        {
            return Ok(photo.clone());
        }
        let image = self.pictures[which].open()?;
        let photo = Arc::new(Photo {
            width: image.width,
            height: image.height,
            rgb: image.to_u8(),
        });
        let mut cache = self.cache.lock().expect("no panic while held");
        if cache.bytes + photo.rgb.len() <= self.data.cache_mb << 20 {
            cache.bytes += photo.rgb.len();
            cache.pictures.insert(which, photo.clone());
        }
        Ok(photo)
    }
}

fn law(mix: &Mix) -> Result<(Degradation, f64), Error> {
    let law = match (&mix.preset, &mix.law) {
        (Some(name), None) => Degradation::preset(name)?,
        (None, Some(law)) => law.clone(),
        _ => {
            return Err(Error::Input(
                "data.degradations: each needs either preset or law; correct the configuration"
                    .into(),
            ));
        }
    };
    law.check()?;
    Ok((law, mix.weight))
}

/// A `size` x `size` crop of the photograph reduced by `factor`, mirrored half of the time, and where it is.
fn crop(photo: &Photo, size: usize, factor: f64, rng: &mut impl RngExt) -> (Image, Place) {
    let side = (size as f64 * factor).round() as usize;
    let side = side.min(photo.width).min(photo.height);
    let (w, h) = (side, side);
    let left = rng.random_range(0..=photo.width - w);
    let top = rng.random_range(0..=photo.height - h);
    let mirror = rng.random::<f64>() < 0.5;
    let region = Image::from_fn(w, h, |c, y, x| {
        let x = if mirror { w - 1 - x } else { x };
        f32::from(photo.rgb[3 * ((top + y) * photo.width + left + x) + c]) / 255.0
    });
    let from_left = if mirror { photo.width - w - left } else { left };
    let place = Place {
        photo_px: [photo.height, photo.width],
        corner_px: [top, from_left].map(|px| (px * size + side / 2) / side),
    };
    (scale(&region, size, size, Filter::CatmullRom), place)
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red is a pixel's column and green its row.
    fn ramp(width: usize, height: usize) -> Photo {
        let pixel = |i: usize| [(i % width) as u8, (i / width) as u8, 0];
        Photo {
            width,
            height,
            rgb: (0..width * height).flat_map(pixel).collect(),
        }
    }

    #[test]
    fn a_crop_says_where_it_was_taken() {
        let photo = ramp(90, 60);
        let mut mirrored = 0;
        for i in 0..20 {
            let mut rng = stream(i, "test");
            let (image, place) = crop(&photo, 16, 1.0, &mut rng);
            let [top, left] = place.corner_px;
            let first = |plane: usize| (255.0 * image.plane(plane)[0]).round() as usize;
            assert_eq!(place.photo_px, [60, 90]);
            assert_eq!(first(1), top);
            // A mirrored crop is one of the mirrored photograph.
            if image.plane(0)[0] > image.plane(0)[1] {
                mirrored += 1;
                assert_eq!(first(0), 89 - left);
            } else {
                assert_eq!(first(0), left);
            }
            let mut rng = stream(i, "test");
            let (_, reduced) = crop(&photo, 16, 2.0, &mut rng);
            assert!(reduced.corner_px[0] <= 60 / 2 - 16 && reduced.corner_px[1] <= 90 / 2 - 16);
        }
        assert!((1..20).contains(&mirrored));
    }
}
