//! Writing safetensors files, atomically.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    io::Write,
    path::Path,
};

use burn::tensor::{DType, TensorData};
use half::{bf16, f16};
use safetensors::{Dtype, View};

use crate::{Error, weights::Values};

/// The header's `__metadata__`.
pub type Metadata = BTreeMap<String, String>;

struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for &Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes `values` to `path` in `dtype` (f32, f16 or bf16), through a temporary file that is renamed.
///
/// # Errors
/// A folder that cannot be written to, or a full disk; the old file stays as it was.
pub fn save_safetensors(
    path: &Path,
    values: &Values,
    dtype: DType,
    metadata: &Metadata,
) -> Result<(), Error> {
    let stored: BTreeMap<&str, Stored> = values
        .iter()
        .map(|(name, data)| (name.as_str(), store(data, dtype)))
        .collect();
    let mut header: HashMap<String, String> = HashMap::from([("format".into(), "pt".into())]);
    header.extend(metadata.clone());
    let bytes = safetensors::serialize(stored.iter(), Some(header)).map_err(|why| {
        Error::input(
            path,
            format!("cannot be written ({why}); report this as a bug"),
        )
    })?;
    write_atomically(path, &sort_header(bytes))
}

fn store(data: &TensorData, dtype: DType) -> Stored {
    let shape = data.shape().as_slice().to_vec();
    let values: Vec<f32> = data
        .clone()
        .convert::<f32>()
        .try_into_vec()
        .expect("converted to f32");
    let (dtype, bytes) = match dtype {
        DType::F16 => (
            Dtype::F16,
            values
                .iter()
                .flat_map(|&v| f16::from_f32(v).to_le_bytes())
                .collect(),
        ),
        DType::BF16 => (
            Dtype::BF16,
            values
                .iter()
                .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
                .collect(),
        ),
        _ => (
            Dtype::F32,
            values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ),
    };
    Stored {
        dtype,
        shape,
        bytes,
    }
}

/// Rewrites the header with sorted keys: the library keeps metadata in a map of random order.
fn sort_header(bytes: Vec<u8>) -> Vec<u8> {
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let header: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(&bytes[8..8 + length]).expect("just written");
    let sorted: BTreeMap<String, serde_json::Value> = header
        .into_iter()
        .map(|(key, value)| match value {
            serde_json::Value::Object(map) if key == "__metadata__" => {
                let map: BTreeMap<_, _> = map.into_iter().collect();
                (key, serde_json::json!(map))
            }
            other => (key, other),
        })
        .collect();
    let mut header = serde_json::to_vec(&sorted).expect("plain JSON");
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header);
    out.extend(&bytes[8 + length..]);
    out
}

/// Writes `bytes` to `path` through a temporary file in the same folder.
///
/// # Errors
/// A folder that cannot be written to, or a full disk; the old file stays as it was.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666)); // the umask applies
        }
        let mut file = builder.tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    write().map_err(|source| Error::io(path, source))
}
