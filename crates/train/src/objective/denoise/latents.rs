//! The latents of samples: encoded, or read back where a run keeps them.

use std::path::PathBuf;

use burn::tensor::{DType, Tensor, TensorData};
use pixels::Image;
use priors::folder::{Folder, NETWORK_FILE};
use restore::adapter::ENCODER_FOLDER;
use sha2::{Digest, Sha256};

use super::{
    super::{fixed::Fixed, tensor_from_images},
    Denoise,
};
use crate::{
    Error,
    config::Data,
    data::{Encoded, LatentCache, Latents, Sample, hex},
};

impl Denoise {
    /// The low-quality latent of pictures `[b, 3, h, w]`.
    pub(super) fn c_lq(&self, lq: Tensor<4>) -> Tensor<4> {
        let vae = self.robust.as_ref().map_or(&self.vae, |(robust, _)| robust);
        vae.latent_from_image(lq)
    }

    /// The latents of the clean and of the degraded crops, and those that the adapter sees.
    pub(super) fn latents_of(&self, batch: &[Sample]) -> Result<[Tensor<4>; 3], Error> {
        if batch
            .iter()
            .all(|one| matches!(one.encoded, Encoded::Never))
        {
            let hq: Vec<&Image> = batch.iter().map(|sample| &sample.hq).collect();
            let lq: Vec<&Image> = batch.iter().map(|sample| &sample.lq).collect();
            return Ok(self.encode(&hq, &lq));
        }
        // Each for itself, so that its latents do not depend on which others were there.
        let mut each = [vec![], vec![], vec![]];
        for sample in batch {
            let encoded = match &sample.encoded {
                Encoded::Once(latents) => self.tensors(latents),
                Encoded::Never => self.encode(&[&sample.hq], &[&sample.lq]),
                Encoded::Later(cache, which) => {
                    let encoded = self.encode(&[&sample.hq], &[&sample.lq]);
                    cache.store(*which, sample, &latents(&encoded))?;
                    encoded
                }
            };
            each.iter_mut()
                .zip(encoded)
                .for_each(|(all, one)| all.push(one));
        }
        Ok(each.map(|all| Tensor::cat(all, 0)))
    }

    /// As `restore` does, whatever the run's precision: SDXL's autoencoder overflows f16.
    fn encode(&self, hq: &[&Image], lq: &[&Image]) -> [Tensor<4>; 3] {
        kernels::with_stored_products(|| self.encode_so(hq, lq))
    }

    fn encode_so(&self, hq: &[&Image], lq: &[&Image]) -> [Tensor<4>; 3] {
        let z_hq = self
            .vae
            .latent_from_image(tensor_from_images(hq, &self.device));
        let lq = tensor_from_images(lq, &self.device);
        let c_lq = self.c_lq(lq.clone());
        // A target shows the degradation, which a robust encoder does not see.
        let z_lq = match self.robust {
            Some(_) => self.vae.latent_from_image(lq),
            None => c_lq.clone(),
        };
        [z_hq, z_lq, c_lq]
    }

    fn tensors(&self, latents: &Latents) -> [Tensor<4>; 3] {
        let Latents {
            shape,
            hq,
            lq,
            seen,
        } = latents;
        let [c, h, w] = *shape;
        [hq, lq, seen].map(|values| {
            let data = TensorData::new(values.clone(), [1, c, h, w]);
            Tensor::from_data(data, (&self.device, DType::F32))
        })
    }

    /// Where latents are kept, for a run over `data` that keeps them, and their bytes.
    pub(super) fn latent_cache(&self, data: &str) -> Result<Option<(LatentCache, u64)>, Error> {
        let (samples, side) = (self.config.data.cache_latents, self.config.data.crop_px);
        if samples == 0 {
            return Ok(None);
        }
        let key = match self.fixed {
            Fixed::Blank => String::new(),
            Fixed::Loaded => self.latents_key(data)?,
        };
        let place = self.config.out.join("latents").join(key);
        let side = side / self.vae.downscale();
        let latent = 4 * self.vae.config().latent_channels * side * side;
        let bytes = 3 * samples as u64 * latent as u64;
        Ok(Some((LatentCache::new(place, samples), bytes)))
    }

    /// SHA-256 of what decides a sample's latents, shortened.
    fn latents_key(&self, data: &str) -> Result<String, Error> {
        let mut hash = Sha256::new();
        let mut feed = |folder: &Folder, part: &str| {
            let config = format!("{part}/config.json");
            hash.update(folder.read(&config)?);
            let view = folder.view(&format!("{part}/{NETWORK_FILE}"))?;
            view.feed(&mut |bytes| hash.update(bytes));
            Ok::<_, Error>(())
        };
        feed(&self.folder, "vae")?;
        if let Some((_, from)) = &self.robust {
            feed(&Folder::Disk(from.clone()), ENCODER_FOLDER)?;
        }
        // How the machine is used, where the photographs are and how many samples there are change none of them.
        let drawn = Data {
            images: PathBuf::new(),
            validation: None,
            cache_mb: 0,
            workers: 0,
            cache_text: false,
            cache_latents: 0,
            ..self.config.data.clone()
        };
        let drawn = toml::to_string(&drawn).expect("plain TOML");
        hash.update(self.config.seed.to_le_bytes());
        hash.update(data);
        hash.update(drawn);
        Ok(hex(&hash.finalize())[..16].to_owned())
    }
}

/// Host values of one sample's latents.
fn latents(encoded: &[Tensor<4>; 3]) -> Latents {
    let [_, c, h, w] = encoded[0].dims();
    let [hq, lq, seen] = encoded.each_ref().map(|tensor| {
        let data = tensor.to_data().convert::<f32>();
        data.try_into_vec().expect("converted to f32")
    });
    Latents {
        shape: [c, h, w],
        hq,
        lq,
        seen,
    }
}
