//! Stored tensors under the names a network asks for.
//!
//! Most files hold diffusers' names. Checkpoints of other programs hold the same values under other names, some of
//! them fused, halved in another order or transposed: a [`Naming`] says where each diffusers name is. Rows of a
//! fused tensor stay in the mapped file; only swapped and transposed ones are copied.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    path::Path,
    sync::Arc,
};

use burn::tensor::{DType, TensorData};

use super::SafetensorsFile;
use crate::{Error, kind::begins_as_known};

/// How many bytes of a tensor [`View::sample`] feeds at most (one more of an odd rest).
pub const SAMPLE: usize = 4096;

/// What part of a stored tensor is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The rows of one of `of` equal parts: q, k or v of a fused projection.
    Rows {
        /// Which part.
        index: usize,
        /// How many there are.
        of: usize,
    },
    /// All of it, the second half of the rows first.
    SwapHalves,
    /// A matrix transposed.
    Transpose,
    /// A 1x1 convolution as a matrix.
    Matrix,
    /// Not the tensor but the unit matrix of its last width.
    Unit,
}

/// Where a tensor is: the stored key, and what part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The stored tensor's name.
    pub key: String,
    /// What part of it.
    pub part: Part,
}

impl Piece {
    /// A part of the tensor `key`.
    pub fn new(key: impl Into<String>, part: Part) -> Self {
        Self {
            key: key.into(),
            part,
        }
    }

    /// All of the tensor `key`.
    pub fn whole(key: impl Into<String>) -> Self {
        Self::new(key, Part::Whole)
    }
}

/// How another program names what diffusers names otherwise.
pub trait Naming: Debug + Send + Sync {
    /// Where diffusers' tensor `name` is stored; of several places the first that exists.
    fn pieces(&self, name: &str) -> Vec<Piece>;

    /// Whether a stored tensor is no parameter and may be left over.
    fn ignores(&self, _key: &str) -> bool {
        false
    }
}

/// The tensors of one network in one or more files.
#[derive(Clone, Debug)]
pub struct View {
    files: Vec<Arc<SafetensorsFile>>,
    /// What stands before every key of this network in its file.
    prefix: String,
    /// Whether keys that begin as those of a checkpoint's other parts are not this network's.
    among_others: bool,
    naming: Option<Arc<dyn Naming>>,
}

impl View {
    /// All tensors of these files, under their own names.
    pub fn plain(files: Vec<SafetensorsFile>) -> Self {
        Self {
            files: files.into_iter().map(Arc::new).collect(),
            prefix: String::new(),
            among_others: false,
            naming: None,
        }
    }

    /// The tensors of a checkpoint `file` that begin with `prefix`, named by `naming` or, without one, by what follows the prefix.
    /// The empty prefix stands for all that do not begin as another part's do.
    pub fn named(
        file: Arc<SafetensorsFile>,
        prefix: impl Into<String>,
        naming: Option<Arc<dyn Naming>>,
    ) -> Self {
        let prefix = prefix.into();
        Self {
            files: vec![file],
            among_others: prefix.is_empty(),
            prefix,
            naming,
        }
    }

    /// The same tensors, named by `naming`.
    #[must_use]
    pub(crate) fn renamed(mut self, naming: Arc<dyn Naming>) -> Self {
        self.naming = Some(naming);
        self
    }

    /// The first file's path, for messages.
    pub fn path(&self) -> &Path {
        self.files.first().map_or(Path::new(""), |file| file.path())
    }

    /// Stored keys of this network, without the prefix, in the order of the files.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        let keys = self.files.iter().flat_map(|file| file.names());
        keys.filter_map(|key| self.own(key))
    }

    /// A stored key without the prefix, where it is of this network.
    pub(crate) fn own<'a>(&self, key: &'a str) -> Option<&'a str> {
        let own = key.strip_prefix(self.prefix.as_str())?;
        (!self.among_others || !begins_as_known(own)).then_some(own)
    }

    /// Whether the stored tensor `key`, given without the prefix, is of a type that burn has.
    pub(crate) fn readable(&self, key: &str) -> bool {
        let key = format!("{}{key}", self.prefix);
        let mut files = self.files.iter();
        files.any(|file| file.dtype(&key).is_some())
    }

    fn find(&self, name: &str) -> Option<(&SafetensorsFile, String, Part)> {
        let pieces = match &self.naming {
            None => vec![Piece::whole(name)],
            Some(naming) => naming.pieces(name),
        };
        pieces.into_iter().find_map(|Piece { key, part }| {
            let key = format!("{}{key}", self.prefix);
            let file = self.files.iter().find(|file| file.has(&key))?;
            Some((&**file, key, part))
        })
    }

    /// Whether there is such a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The stored type of a tensor, where burn has it.
    pub fn dtype(&self, name: &str) -> Option<DType> {
        let (file, key, _) = self.find(name)?;
        file.dtype(&key)
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let (file, key, part) = self.find(name)?;
        part.shape(file.shape(&key)?)
    }

    /// A tensor, in the file's memory where its part is contiguous there. None when it is missing.
    ///
    /// # Errors
    /// A tensor of a type that is not supported, or one that has no such part.
    pub fn data(&self, name: &str) -> Result<Option<TensorData>, Error> {
        let Some((file, key, part)) = self.find(name) else {
            return Ok(None);
        };
        let stored = file.shape(&key).unwrap_or_default();
        let Some(shape) = part.shape(stored) else {
            let what = format!(
                "tensor {key} {stored:?} cannot hold {name}; download or copy the file again"
            );
            return Err(Error::weights(file.path(), what));
        };
        let dtype = file.float(&key)?;
        let rows = match part {
            Part::Rows { index, of } => {
                let n = stored[0] / of;
                index * n..(index + 1) * n
            }
            _ => 0..stored.first().copied().unwrap_or(1),
        };
        let width = dtype.size();
        Ok(Some(match part {
            Part::Whole | Part::Rows { .. } | Part::Matrix => {
                TensorData::from_bytes(file.rows(&key, rows), shape, dtype)
            }
            Part::SwapHalves => {
                let bytes = file.rows(&key, rows);
                let (first, second) = bytes.split_at(bytes.len() / 2);
                TensorData::from_bytes_vec([second, first].concat(), shape, dtype)
            }
            Part::Transpose => {
                let bytes = transposed(&file.rows(&key, rows), stored[1], width);
                TensorData::from_bytes_vec(bytes, shape, dtype)
            }
            Part::Unit => {
                let d = shape[0];
                let values = (0..d * d).map(|i| f32::from(u8::from(i % (d + 1) == 0)));
                TensorData::new(values.collect::<Vec<_>>(), shape).convert_dtype(dtype)
            }
        }))
    }

    /// Feeds all that is stored for this network to `update`: key, type, shape and values, in the order of the keys.
    pub fn feed(&self, update: &mut dyn FnMut(&[u8])) {
        self.stored(|key, values| {
            update(key.as_bytes());
            update(values);
        });
    }

    /// Feeds key, type and shape of all that is stored for this network to `update`, in the order of the keys, and of each
    /// tensor's values no more than [`SAMPLE`] bytes from the middle: what tells weights apart without reading gigabytes.
    pub fn sample(&self, update: &mut dyn FnMut(&[u8])) {
        self.stored(|key, values| {
            let aside = values.len().saturating_sub(SAMPLE) / 2;
            update(key.as_bytes());
            update(&values[aside..values.len() - aside]);
        });
    }

    /// Calls `each` with key, type and shape in one text and the values of all that is stored for this network, in the order
    /// of the keys.
    fn stored(&self, mut each: impl FnMut(&str, &[u8])) {
        let mut stored: Vec<(&str, &str, &SafetensorsFile)> = Vec::new();
        for file in &self.files {
            let keys = file.names().iter();
            stored.extend(keys.filter_map(|full| Some((self.own(full)?, full.as_str(), &**file))));
        }
        stored.sort_by_key(|(key, ..)| *key);
        for (key, full, file) in stored {
            let shape = file.shape(full).unwrap_or_default();
            let values = file.rows(full, 0..shape.first().copied().unwrap_or(1));
            each(&format!("{key} {:?} {shape:?}", file.dtype(full)), &values);
        }
    }

    /// Stored keys that none of `used` needs.
    pub fn unused(&self, used: &BTreeMap<String, Vec<usize>>) -> Vec<String> {
        let needed: BTreeSet<String> = used
            .keys()
            .filter_map(|name| self.find(name).map(|(_, key, _)| key))
            .collect();
        let ignored = |key: &str| {
            self.naming
                .as_ref()
                .is_some_and(|naming| naming.ignores(key))
        };
        self.keys()
            .filter(|key| !ignored(key))
            .map(|key| format!("{}{key}", self.prefix))
            .filter(|key| !needed.contains(key))
            .collect()
    }
}

impl Part {
    /// The part's shape; none where a tensor of shape `stored` has no such part.
    fn shape(self, stored: &[usize]) -> Option<Vec<usize>> {
        match (self, stored) {
            (Self::Whole, _) => Some(stored.to_vec()),
            (Self::Rows { of, .. }, [rows, rest @ ..]) if rows.is_multiple_of(of) => {
                Some([&[rows / of], rest].concat())
            }
            (Self::SwapHalves, [rows, ..]) if rows.is_multiple_of(2) => Some(stored.to_vec()),
            (Self::Transpose, [a, b]) => Some(vec![*b, *a]),
            (Self::Matrix, [a, b] | [a, b, 1] | [a, b, 1, 1]) => Some(vec![*a, *b]),
            (Self::Unit, [.., d]) => Some(vec![*d, *d]),
            _ => None,
        }
    }
}

/// Rows of `columns` values of `width` bytes as columns.
pub(crate) fn transposed(bytes: &[u8], columns: usize, width: usize) -> Vec<u8> {
    let row = columns * width;
    let column = |j: usize| {
        bytes
            .chunks_exact(row.max(1))
            .flat_map(move |row| row[j * width..(j + 1) * width].iter().copied())
    };
    (0..columns).flat_map(column).collect()
}
