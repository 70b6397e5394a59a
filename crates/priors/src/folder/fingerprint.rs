//! Which prior this is: a fingerprint of its network's weights that costs no reading of gigabytes.
//!
//! SHA-256 over the names, shapes and middle values (256 of each tensor, as f32) of the network's tensors under diffusers' names, so that
//! a checkpoint and a folder of the same weights have the same one. The same prior comes in several number formats: beside the
//! fingerprint of the values as they are stored stand those of the values rounded to half precision and to bfloat16. Two files are of
//! one prior when any of theirs agree.

use burn::tensor::TensorData;
use half::{bf16, f16};
use sha2::{Digest, Sha256};

use super::Folder;
use crate::Error;

/// Values of a tensor that count.
const VALUES: usize = 256;

impl Folder {
    /// The network's fingerprints: of its values as stored, rounded to half precision, and rounded to bfloat16; without what a LoRA
    /// changes. Lower-case hexadecimal.
    ///
    /// # Errors
    /// A missing configuration, or weights that do not fit it.
    pub fn fingerprints(&self) -> Result<[String; 3], Error> {
        let network = self.network();
        let stored = match self {
            Self::Edited { folder, .. } => return folder.fingerprints(),
            _ => self.stored(network)?,
        };
        let mut hashes = [(); 3].map(|()| Sha256::new());
        for (name, shape) in stored.shapes() {
            let values = middle(&stored.tensor(name)?);
            let rounded: [Vec<f32>; 3] = [
                values.clone(),
                values.iter().map(|&v| f16::from_f32(v).to_f32()).collect(),
                values.iter().map(|&v| bf16::from_f32(v).to_f32()).collect(),
            ];
            for (hash, values) in hashes.iter_mut().zip(rounded) {
                hash.update(format!("{name} {shape:?}"));
                values.iter().for_each(|v| hash.update(v.to_le_bytes()));
            }
        }
        let hex = |hash: Sha256| {
            let bytes = hash.finalize();
            bytes.iter().map(|byte| format!("{byte:02x}")).collect()
        };
        Ok(hashes.map(hex))
    }
}

/// The values in a tensor's middle, all of a small one's.
fn middle(data: &TensorData) -> Vec<f32> {
    let count = data.num_elements();
    let taken = count.min(VALUES);
    let width = data.dtype().size();
    let start = (count - taken) / 2 * width;
    let bytes = data.as_bytes()[start..start + taken * width].to_vec();
    let part = TensorData::from_bytes_vec(bytes, [taken], data.dtype());
    part.convert::<f32>()
        .try_into_vec()
        .expect("converted to f32")
}
