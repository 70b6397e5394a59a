//! Whose autoencoder a file is, as far as its name and header tell.
//!
//! Autoencoders of SDXL and SD 1, and those of SD3 and Flux, have the same names and shapes; only their values differ, and with
//! them what a latent means. A latent of another model's autoencoder has another deviation (SD3's 0.65 against Flux's 2.8, SDXL's
//! 7.7 against SD 1's 5.5, the inverse of their scaling factors), which only a picture shows.

use crate::weights::SafetensorsFile;

/// The families whose autoencoders look alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Sdxl,
    Sd1,
    Sd3,
    Flux,
}

impl Origin {
    /// What people call the model.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sdxl => "SDXL",
            Self::Sd1 => "SD 1",
            Self::Sd3 => "SD3",
            Self::Flux => "Flux",
        }
    }

    /// What the file says of itself: `modelspec.architecture` in its header, else its own name or its folder's.
    pub(super) fn of(file: &SafetensorsFile) -> Option<Self> {
        let said = file.metadata("modelspec.architecture").unwrap_or_default();
        Self::in_words(said).or_else(|| {
            let mut names = file.path().iter().rev().take(2);
            names.find_map(|name| Self::in_words(&name.to_string_lossy()))
        })
    }

    fn in_words(text: &str) -> Option<Self> {
        let text = text.to_lowercase();
        if text == "ae.safetensors" {
            return Some(Self::Flux);
        }
        let words: [(Self, &[&str]); 4] = [
            (Self::Flux, &["flux"]),
            (
                Self::Sd3,
                &["sd3", "stable-diffusion-v3", "stable-diffusion-3"],
            ),
            (Self::Sdxl, &["xl"]),
            // vae-ft-mse-840000 and vae-ft-ema-560000 are SD 1's best known.
            (
                Self::Sd1,
                &[
                    "sd15",
                    "sd1.5",
                    "sd-1",
                    "sd_1",
                    "sd1_",
                    "v1-5",
                    "diffusion-v1",
                    "vae-ft-",
                    "840000",
                    "560000",
                ],
            ),
        ];
        let mut words = words.iter();
        let found = words.find(|(_, words)| words.iter().any(|word| text.contains(word)))?;
        Some(found.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_people_have() {
        for (name, origin) in [
            ("ae.safetensors", Some(Origin::Flux)),
            ("flux_vae.safetensors", Some(Origin::Flux)),
            ("FLUX1", Some(Origin::Flux)),
            ("sdxl_vae.safetensors", Some(Origin::Sdxl)),
            ("sdxl-vae-fp16-fix.safetensors", Some(Origin::Sdxl)),
            ("stable-diffusion-xl-v1-base/vae", Some(Origin::Sdxl)),
            ("sd3_vae.safetensors", Some(Origin::Sd3)),
            ("stable-diffusion-v3-medium", Some(Origin::Sd3)),
            (
                "vae-ft-mse-840000-ema-pruned.safetensors",
                Some(Origin::Sd1),
            ),
            ("stable-diffusion-v1/vae", Some(Origin::Sd1)),
            ("vae.safetensors", None),
            ("diffusion_pytorch_model.safetensors", None),
            ("vae", None),
        ] {
            assert_eq!(Origin::in_words(name), origin, "{name}");
        }
    }
}
