//! Writing safetensors files, atomically and tensor by tensor.

use std::{
    collections::BTreeMap,
    io::{BufWriter, Write},
    path::Path,
};

use burn::tensor::{DType, TensorData};
use half::{bf16, f16};
use serde_json::{Map, Value, json};

use crate::{Error, weights::Values};

/// The header's `__metadata__`.
pub type Metadata = BTreeMap<String, String>;

/// How a tensor will be stored: its type (f32, f16 or bf16) and shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// F32, F16 or BF16; whatever else is stored as F32.
    pub dtype: DType,
    /// The shape.
    pub shape: Vec<usize>,
}

impl Stored {
    fn name(&self) -> &'static str {
        match self.dtype {
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            _ => "F32",
        }
    }

    fn size(&self) -> usize {
        let width = if self.name() == "F32" { 4 } else { 2 };
        width * self.shape.iter().product::<usize>()
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
    let stored = |data: &TensorData| Stored {
        dtype,
        shape: data.shape().as_slice().to_vec(),
    };
    let header = values
        .iter()
        .map(|(name, data)| (name.clone(), stored(data)))
        .collect();
    write_safetensors(path, &header, metadata, |name| Ok(values[name].clone()))
}

/// Writes the tensors of `header`, one after the other, each asked of `tensor` when its turn comes; so a file of
/// gigabytes takes the memory of its largest tensor.
///
/// # Errors
/// What `tensor` says, a folder that cannot be written to, or a full disk; the old file stays as it was.
pub fn write_safetensors(
    path: &Path,
    header: &BTreeMap<String, Stored>,
    metadata: &Metadata,
    mut tensor: impl FnMut(&str) -> Result<TensorData, Error>,
) -> Result<(), Error> {
    // Wide types first, so that every tensor is aligned.
    let mut order: Vec<(&String, &Stored)> = header.iter().collect();
    order.sort_by_key(|(_, stored)| stored.name() != "F32");
    let mut about = metadata.clone();
    about.entry("format".into()).or_insert("pt".into());
    let mut at = 0;
    let mut entries = BTreeMap::from([("__metadata__", json!(about))]);
    for (name, stored) in &order {
        let end = at + stored.size();
        let entry =
            json!({"dtype": stored.name(), "shape": stored.shape, "data_offsets": [at, end]});
        entries.insert(name, entry);
        at = end;
    }
    let entries: Map<String, Value> = entries
        .into_iter()
        .map(|(name, entry)| (name.to_owned(), entry))
        .collect();
    let mut text = Value::Object(entries).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let write = |file: &mut dyn Write| -> Result<(), Error> {
        let io = |source| Error::io(path, source);
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.write_all(&(text.len() as u64).to_le_bytes())
            .map_err(io)?;
        file.write_all(&text).map_err(io)?;
        for (name, stored) in order {
            let bytes = converted(tensor(name)?, stored.dtype);
            assert_eq!(bytes.len(), stored.size(), "bytes of {name}");
            file.write_all(&bytes).map_err(io)?;
        }
        file.flush().map_err(io)
    };
    atomically(path, write)
}

fn converted(data: TensorData, dtype: DType) -> Vec<u8> {
    if data.dtype() == dtype {
        return data.as_bytes().to_vec();
    }
    let values: Vec<f32> = data
        .convert::<f32>()
        .try_into_vec()
        .expect("converted to f32");
    match dtype {
        DType::F16 => values
            .iter()
            .flat_map(|&v| f16::from_f32(v).to_le_bytes())
            .collect(),
        DType::BF16 => values
            .iter()
            .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
            .collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// Writes `bytes` to `path` through a temporary file in the same folder.
///
/// # Errors
/// A folder that cannot be written to, or a full disk; the old file stays as it was.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    atomically(path, |file| {
        file.write_all(bytes)
            .map_err(|source| Error::io(path, source))
    })
}

/// Names of files that are being written, as those of pictures: `.reclair-`, six letters or digits, `.part`.
const PREFIX: &str = ".reclair-";
const SUFFIX: &str = ".part";

/// Whether `name` is that of a file this program was writing.
pub fn is_temporary(name: &str) -> bool {
    let drawn = name
        .strip_prefix(PREFIX)
        .and_then(|name| name.strip_suffix(SUFFIX));
    drawn.is_some_and(|drawn| drawn.len() == 6 && drawn.bytes().all(|b| b.is_ascii_alphanumeric()))
}

fn atomically(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), Error>,
) -> Result<(), Error> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let io = |source| Error::io(path, source);
    std::fs::create_dir_all(folder).map_err(io)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666)); // the umask applies
    }
    let mut file = builder.tempfile_in(folder).map_err(io)?;
    write(&mut file)?;
    file.as_file().sync_all().map_err(io)?;
    file.persist(path).map_err(|error| io(error.error))?;
    // The new name is an entry of the folder, which a loss of power may otherwise take back.
    #[cfg(unix)]
    match std::fs::File::open(folder).and_then(|folder| folder.sync_all()) {
        Ok(()) => {}
        // Some file systems do not know this of folders.
        Err(why) if why.kind() == std::io::ErrorKind::InvalidInput => {}
        Err(why) => return Err(io(why)),
    }
    Ok(())
}
