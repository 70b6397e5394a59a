//! `--lora FILE[:STRENGTH]`.

use std::{path::PathBuf, str::FromStr};

use priors::folder::Folder;

/// A LoRA file and how strongly it acts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LoraArg {
    /// The file, or PEFT's folder.
    pub(super) path: PathBuf,
    /// The factor of its updates.
    pub(super) strength: f64,
}

impl FromStr for LoraArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |(path, strength): (&str, &str)| Some((path.into(), strength.parse().ok()?));
        let (path, strength) = match text.rsplit_once(':').and_then(number) {
            Some(both) => both,
            None => (text.into(), 1.0),
        };
        if !(-100.0..=100.0).contains(&strength) {
            return Err(format!(
                "strength {strength} is not possible; give -100 to 100"
            ));
        }
        Ok(Self { path, strength })
    }
}

/// The prior with these LoRA files merged; says how their keys were used.
pub(super) fn merged(prior: Folder, files: &[LoraArg]) -> anyhow::Result<Folder> {
    if files.is_empty() {
        return Ok(prior);
    }
    // As ComfyUI names them, by their place in its models/loras.
    let place = |file: &LoraArg| {
        let found = match file.path.exists() {
            true => None,
            false => prior.find_lora(&file.path),
        };
        found.unwrap_or(file.path.clone())
    };
    let pairs: Vec<(PathBuf, f64)> = files
        .iter()
        .map(|file| (place(file), file.strength))
        .collect();
    let (prior, reports) = restore::lora::merged(prior, &pairs)?;
    for (file, report) in files.iter().zip(reports) {
        eprintln!(
            "lora {} at {}: {report}",
            file.path.display(),
            file.strength
        );
    }
    Ok(prior)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strength_is_what_follows_the_last_colon_when_it_is_a_number() {
        let arg = |text: &str| text.parse::<LoraArg>().map(|arg| (arg.path, arg.strength));
        assert_eq!(arg("a.safetensors"), Ok(("a.safetensors".into(), 1.0)));
        assert_eq!(arg("a.safetensors:0.5"), Ok(("a.safetensors".into(), 0.5)));
        assert_eq!(arg("C:\\a:b"), Ok(("C:\\a:b".into(), 1.0)));
        assert_eq!(arg("C:\\a:-1"), Ok(("C:\\a".into(), -1.0)));
        assert!(arg("a:nan").is_err() && arg("a:1e9").is_err());
    }
}
