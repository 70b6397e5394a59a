//! Low-rank updates merged into a prior's weights while it is loaded: `W + strength * alpha / r * B A`.
//!
//! The sum is made in f32 and rounded to the type the weight is stored in, as diffusers' `fuse_lora` does.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use burn::tensor::TensorData;
use priors::{folder::Folder, weights::Edit};
use rayon::prelude::*;

use super::{LoraFile, PriorShapes, Report, Update};
use crate::Error;

/// Updates with their strengths, by module.
#[derive(Debug, Default)]
struct Merge {
    updates: BTreeMap<String, Vec<(f64, Update)>>,
}

impl Edit for Merge {
    fn edit(&self, name: &str, data: TensorData) -> TensorData {
        let module = name.strip_suffix(".weight");
        let Some(updates) = module.and_then(|module| self.updates.get(module)) else {
            return data;
        };
        let (dtype, shape) = (data.dtype(), data.shape().clone());
        let mut weight: Vec<f32> = data
            .convert::<f32>()
            .try_into_vec()
            .expect("converted to f32");
        for (strength, update) in updates {
            add(&mut weight, update, *strength);
        }
        TensorData::new(weight, shape).convert_dtype(dtype)
    }
}

/// Adds an update to a weight of its shape, row by row.
fn add(weight: &mut [f32], update: &Update, strength: f64) {
    let rank = update.rank();
    let scale = (strength * update.alpha / rank as f64) as f32;
    let slice = |data: &TensorData| data.as_slice::<f32>().expect("updates are f32").to_vec();
    let (down, up) = (slice(&update.down), slice(&update.up));
    let row = (down.len() / rank).max(1);
    let rows = weight.par_chunks_mut(row).zip(up.par_chunks(rank));
    rows.for_each(|(weight, up)| {
        let mut sum = vec![0.0_f32; weight.len()];
        for (&b, down) in up.iter().zip(down.chunks_exact(row)) {
            for (sum, &a) in sum.iter_mut().zip(down) {
                *sum += b * a;
            }
        }
        for (weight, sum) in weight.iter_mut().zip(sum) {
            *weight += scale * sum;
        }
    });
}

/// The prior of `folder` with the LoRA files merged at their strengths, and how each file's keys were used.
///
/// # Errors
/// A file that is no LoRA of this prior, see [`LoraFile::open`].
pub fn merged(
    folder: Folder,
    files: &[(impl AsRef<Path>, f64)],
) -> Result<(Folder, Vec<Report>), Error> {
    let shapes = PriorShapes::of(&folder)?;
    let mut merges: BTreeMap<&'static str, Merge> = BTreeMap::new();
    let mut reports = Vec::new();
    for (path, strength) in files {
        let file = LoraFile::open(path.as_ref(), &shapes)?;
        // Strength 0 leaves every bit as it is.
        for (part, updates) in file.updates.into_iter().filter(|_| *strength != 0.0) {
            let all = &mut merges.entry(part).or_default().updates;
            for (module, update) in updates {
                all.entry(module).or_default().push((*strength, update));
            }
        }
        reports.push(file.report);
    }
    let edits = merges.into_iter();
    let edited = Folder::Edited {
        folder: Box::new(folder),
        edits: edits
            .map(|(part, merge)| (part, Arc::new(merge) as Arc<dyn Edit>))
            .collect(),
    };
    Ok((edited, reports))
}
