//! A safetensors file, memory-mapped and handed to burn without a copy.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use burn::tensor::{AllocationProperty, Bytes, DType, TensorData};
use safetensors::{
    Dtype, SafeTensors,
    tensor::{Metadata, TensorInfo},
};

use crate::Error;

/// Why a pickle is refused.
pub const PICKLE: &str = "is a pickle (.ckpt, .pt, .bin), which can run code when it is read; \
                                 take the model's safetensors file or convert it";

/// An open safetensors file whose header has been checked against its length.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    bytes: bytes::Bytes,
    data_start: usize,
    metadata: Metadata,
    names: Vec<String>,
}

impl SafetensorsFile {
    /// Maps `path` and reads its header.
    ///
    /// # Errors
    /// An unreadable file, a pickle, or a header that disagrees with the file's length.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let bytes = kernels::map_file(path).map_err(|source| Error::io(path, source))?;
        Self::from_bytes(bytes, path)
    }

    /// Reads the header of a file already in memory; `origin` names it in errors.
    ///
    /// # Errors
    /// A pickle, or a header that disagrees with the number of bytes.
    pub fn from_bytes(bytes: bytes::Bytes, origin: &Path) -> Result<Self, Error> {
        // A header of 640 bytes begins like a pickle too, but JSON follows its length.
        let pickle = matches!(*bytes, [0x80, 2..=5, ..]) && bytes.get(8) != Some(&b'{');
        if bytes.starts_with(b"PK\x03\x04") || pickle {
            return Err(Error::unsupported(origin, PICKLE));
        }
        let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(|why| {
            let what = format!("is no whole safetensors file ({why}); download or copy it again");
            Error::input(origin, what)
        })?;
        let names = metadata.offset_keys();
        Ok(Self {
            path: origin.to_owned(),
            bytes,
            data_start: 8 + header,
            metadata,
            names,
        })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, in the order of the file.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.metadata.info(name).is_some()
    }

    /// The stored type of a tensor, where burn has it.
    pub fn dtype(&self, name: &str) -> Option<DType> {
        self.metadata
            .info(name)
            .and_then(|info| burn_dtype(info.dtype))
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.metadata.info(name).map(|info| info.shape.as_slice())
    }

    /// A value of the header's `__metadata__`.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata
            .metadata()
            .as_ref()?
            .get(key)
            .map(String::as_str)
    }

    /// The header's whole `__metadata__`.
    pub fn all_metadata(&self) -> super::Metadata {
        self.metadata
            .metadata()
            .iter()
            .flatten()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    /// The stored type of a parameter, which must be a number that burn can calculate with.
    ///
    /// # Errors
    /// A missing tensor, or one of integers or of a type that burn lacks.
    pub fn float(&self, name: &str) -> Result<DType, Error> {
        match self.dtype(name) {
            Some(dtype) if dtype.is_float() => Ok(dtype),
            _ => {
                let stored = self.metadata.info(name).map(|info| info.dtype);
                let stored = stored.map_or("missing".to_owned(), |dtype| {
                    format!("stored as {dtype:?}, not F32, F16 or BF16")
                });
                let what = format!("tensor {name} is {stored}; take the model's 16-bit file");
                Err(Error::weights(&self.path, what))
            }
        }
    }

    /// A tensor that shares this file's memory. None when it is missing or of a type burn lacks.
    pub fn data(&self, name: &str) -> Option<TensorData> {
        let info = self.metadata.info(name)?;
        let dtype = burn_dtype(info.dtype)?;
        Some(TensorData::from_bytes(
            self.slice(info, 0..1, 1),
            info.shape.clone(),
            dtype,
        ))
    }

    /// Rows of a tensor that [`SafetensorsFile::has`], in this file's memory.
    pub(super) fn rows(&self, name: &str, rows: Range<usize>) -> Bytes {
        let info = self.metadata.info(name).expect("asked for before");
        self.slice(info, rows, info.shape.first().copied().unwrap_or(1))
    }

    /// The part `rows` of `of` equal ones.
    fn slice(&self, info: &TensorInfo, rows: Range<usize>, of: usize) -> Bytes {
        let (start, end) = info.data_offsets;
        let row = (end - start) / of.max(1);
        let start = self.data_start + start;
        let slice = self
            .bytes
            .slice(start + rows.start * row..start + rows.end * row);
        if slice.as_ptr().align_offset(width(info.dtype)) == 0 {
            Bytes::from_shared(slice, AllocationProperty::File)
        } else {
            Bytes::from_bytes_vec(slice.to_vec())
        }
    }
}

fn width(dtype: Dtype) -> usize {
    (dtype.bitsize() / 8).max(1)
}

fn burn_dtype(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F64 => Some(DType::F64),
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::I64 => Some(DType::I64),
        Dtype::I32 => Some(DType::I32),
        _ => None,
    }
}
