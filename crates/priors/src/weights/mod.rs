//! Named tensors: where a network's parameters come from.
//!
//! A network is built by asking a [`Weights`] for each of its tensors by its diffusers name and
//! shape. Behind it stands a source: files, a seed (initial values), values in memory, or the
//! integer formula of the parity tests. With [`Weights::tracked`] every tensor becomes a leaf of the
//! autodiff tape and [`Weights::gradients`] hands out the gradients by name. Names are the only identity a
//! parameter has: checkpoints, optimiser state and averages are keyed by them.

mod edit;
mod file;
mod formula;
mod init;
mod save;
mod view;

use std::{
    collections::BTreeMap,
    fmt::Display,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use burn::tensor::{AllocationProperty, Bytes, DType, Device, Gradients, Tensor, TensorData};

pub use edit::Edit;
pub use file::PICKLE;
pub use file::SafetensorsFile;
pub use init::{Init, stream};
pub use save::{
    Metadata, Stored, is_temporary, save_safetensors, write_atomically, write_safetensors,
};
pub(crate) use view::transposed;
pub use view::{Naming, Part, Piece, SAMPLE, View};

use crate::Error;

/// Values in memory, by tensor name.
pub type Values = BTreeMap<String, TensorData>;

/// The same data in memory that clones share; a write to a clone copies it first.
pub fn share(data: TensorData) -> TensorData {
    struct Owner(Bytes);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let (bytes, shape, dtype) = data.into_parts();
    let bytes = bytes::Bytes::from_owner(Owner(bytes));
    TensorData::from_bytes(
        Bytes::from_shared(bytes, AllocationProperty::Other),
        shape,
        dtype,
    )
}

/// The most values a blank tensor may have, and the most blank tensors: four times what T5-XXL's table holds, ten
/// times as many as any supported network has. A `config.json` that asks for more is not counted but refused.
const BLANK_LIMIT: (usize, usize) = (1 << 29, 20_000);

/// Zeros of this shape and type that share `zeros` with all others; none beyond the limit.
fn blank(zeros: &Mutex<bytes::Bytes>, shape: &[usize], dtype: DType) -> Option<TensorData> {
    let product = |n: usize, &side: &usize| n.checked_mul(side);
    let n = shape.iter().try_fold(1, product)?;
    if n > BLANK_LIMIT.0 {
        return None;
    }
    let size = dtype.size() * n;
    let mut zeros = zeros.lock().expect("no panic while held");
    if zeros.len() < size {
        *zeros = vec![0_u8; size].into();
    }
    let bytes = Bytes::from_shared(zeros.slice(..size), AllocationProperty::Other);
    Some(TensorData::from_bytes(bytes, shape.to_vec(), dtype))
}

/// A place tensors come from.
enum Source {
    Files(View),
    Values(Values),
    Seed(u64),
    Formula,
    /// Zeros of a type, all of them the beginning of one buffer that nobody writes to.
    Blank(Mutex<bytes::Bytes>, DType),
}

/// How stored half-precision tensors are handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// In the type they are stored in, without a copy.
    Stored,
    /// Widened to f32 once.
    F32,
    /// Not at all: zeros of this type, which take no memory, whether there is a file or not. For a rehearsal.
    Blank(DType),
}

struct Shared {
    source: Source,
    origin: PathBuf,
    precision: Precision,
    device: Device,
    used: Mutex<BTreeMap<String, Vec<usize>>>,
    made: Mutex<Values>,
    leaves: Option<Mutex<Vec<Leaf>>>,
    edit: Option<Arc<dyn Edit>>,
}

type GradientOf = Box<dyn Fn(&mut Gradients) -> Option<TensorData> + Send>;

struct Leaf {
    name: String,
    gradient: GradientOf,
}

/// A view into named tensors, at a prefix.
#[derive(Clone)]
pub struct Weights {
    shared: Arc<Shared>,
    prefix: String,
}

impl Weights {
    fn new(
        source: Source,
        origin: impl Into<PathBuf>,
        precision: Precision,
        device: &Device,
    ) -> Self {
        let shared = Shared {
            source,
            origin: origin.into(),
            precision,
            device: device.clone(),
            used: Mutex::default(),
            made: Mutex::default(),
            leaves: None,
            edit: None,
        };
        Self {
            shared: Arc::new(shared),
            prefix: String::new(),
        }
    }

    /// Tensors of one or more safetensors files, memory-mapped.
    ///
    /// # Errors
    /// A file that cannot be read or is no safetensors file.
    pub fn from_files(
        paths: &[PathBuf],
        precision: Precision,
        device: &Device,
    ) -> Result<Self, Error> {
        let files = paths
            .iter()
            .map(|path| SafetensorsFile::open(path))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self::from_view(View::plain(files), precision, device))
    }

    /// Tensors of open files, under the names of a view.
    pub fn from_view(view: View, precision: Precision, device: &Device) -> Self {
        let origin = view.path().to_owned();
        Self::new(Source::Files(view), origin, precision, device)
    }

    /// Tensors of a safetensors file already in memory; `origin` names it in errors.
    ///
    /// # Errors
    /// Bytes that are no safetensors file.
    pub fn from_bytes(
        bytes: bytes::Bytes,
        origin: &Path,
        precision: Precision,
        device: &Device,
    ) -> Result<Self, Error> {
        let file = SafetensorsFile::from_bytes(bytes, origin)?;
        Ok(Self::from_view(View::plain(vec![file]), precision, device))
    }

    /// The same tensors, each changed by `edit` when it is asked for.
    ///
    /// # Panics
    /// When another view of them exists already.
    #[must_use]
    pub fn edited(mut self, edit: Arc<dyn Edit>) -> Self {
        let shared = Arc::get_mut(&mut self.shared).expect("edited before it is shared");
        shared.edit = Some(edit);
        self
    }

    /// Tensors held in memory; the networks share it.
    pub fn from_values(values: Values, device: &Device) -> Self {
        let values = values
            .into_iter()
            .map(|(name, data)| (name, share(data)))
            .collect();
        Self::new(
            Source::Values(values),
            "values in memory",
            Precision::Stored,
            device,
        )
    }

    /// Initial values drawn from `seed` and each tensor's name by the layer's own [`Init`].
    pub fn seeded(seed: u64, device: &Device) -> Self {
        Self::new(
            Source::Seed(seed),
            "initial values",
            Precision::Stored,
            device,
        )
    }

    /// The integer formula of the parity tests (`tests/golden/formula.py`).
    pub fn formula(device: &Device) -> Self {
        Self::new(Source::Formula, "formula", Precision::Stored, device)
    }

    /// Zeros that take no memory, for counting parameters: see [`Weights::shapes`].
    pub fn blank(device: &Device) -> Self {
        Self::blank_of(DType::F32, device)
    }

    /// The same of another type: f32, f16 or bf16.
    pub fn blank_of(dtype: DType, device: &Device) -> Self {
        Self::new(
            Source::Blank(Mutex::default(), dtype),
            "blank",
            Precision::Stored,
            device,
        )
    }

    /// The same tensors, each a leaf of the autodiff tape from now on.
    pub fn tracked(values: Values, device: &Device) -> Self {
        let values = values
            .into_iter()
            .map(|(name, data)| (name, share(data)))
            .collect();
        let device = device.clone().autodiff();
        let mut weights = Self::new(
            Source::Values(values),
            "values in memory",
            Precision::Stored,
            &device,
        );
        let shared = Arc::get_mut(&mut weights.shared).expect("just made");
        shared.leaves = Some(Mutex::default());
        weights
    }

    /// The view one level down.
    pub fn at(&self, name: impl Display) -> Self {
        Self {
            shared: self.shared.clone(),
            prefix: self.name(&name.to_string()),
        }
    }

    /// The full name of `name` under this prefix.
    pub fn name(&self, name: &str) -> String {
        if self.prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.prefix)
        }
    }

    /// Whether a tensor of this name exists in a file or in memory.
    pub fn has(&self, name: &str) -> bool {
        let name = self.name(name);
        match &self.shared.source {
            Source::Files(view) => view.has(&name),
            Source::Values(values) => values.contains_key(&name),
            Source::Seed(_) | Source::Formula | Source::Blank(..) => true,
        }
    }

    /// The tensor `name` under this prefix, which must have `shape`.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn tensor<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        init: Init,
    ) -> Result<Tensor<D>, Error> {
        let name = self.name(name);
        let data = self.data(&name, &shape, init)?;
        let mut used = self.shared.used.lock().expect("no panic while held");
        used.insert(name.clone(), shape.to_vec());
        let tensor = Tensor::from_data(data, (&self.shared.device, self.dtype(&name)));
        let Some(leaves) = &self.shared.leaves else {
            return Ok(tensor);
        };
        let tensor: Tensor<D> = tensor.require_grad();
        let leaf = tensor.clone();
        let gradient: GradientOf = Box::new(move |g| leaf.grad_remove(g).map(Tensor::into_data));
        leaves
            .lock()
            .expect("no panic while held")
            .push(Leaf { name, gradient });
        Ok(tensor)
    }

    fn dtype(&self, name: &str) -> DType {
        match (&self.shared.source, self.shared.precision) {
            (Source::Files(view), Precision::Stored) => match view.dtype(name) {
                Some(DType::F64) | None => DType::F32,
                Some(dtype) => dtype,
            },
            (Source::Blank(_, dtype), _) => *dtype,
            _ => DType::F32,
        }
    }

    fn data(&self, name: &str, shape: &[usize], init: Init) -> Result<TensorData, Error> {
        let data = match &self.shared.source {
            Source::Files(view) => view.data(name)?,
            Source::Values(values) => values.get(name).cloned(),
            Source::Seed(seed) => {
                let data = init.data(*seed, name, shape);
                self.shared
                    .made
                    .lock()
                    .expect("no panic while held")
                    .insert(name.to_owned(), data.clone());
                Some(data)
            }
            Source::Formula => Some(formula::data(name, shape)),
            Source::Blank(zeros, dtype) => {
                let count = self.shared.used.lock().expect("no panic while held").len();
                let data = blank(zeros, shape, *dtype).filter(|_| count < BLANK_LIMIT.1);
                Some(data.ok_or_else(|| {
                    let what = format!(
                        "tensor {name} {shape:?} is beyond any known network; correct config.json"
                    );
                    Error::weights(&self.shared.origin, what)
                })?)
            }
        };
        let data = data.ok_or_else(|| {
            let what = format!(
                "tensor {name} {shape:?} is missing; this file does not fit its config.json"
            );
            Error::weights(&self.shared.origin, what)
        })?;
        if data.shape().as_slice() != shape {
            let got = data.shape().as_slice();
            let what = format!(
                "tensor {name} should be {shape:?} and is {got:?}; this file does not fit its config.json"
            );
            return Err(Error::weights(&self.shared.origin, what));
        }
        Ok(match &self.shared.edit {
            Some(edit) => edit.edit(name, data),
            None => data,
        })
    }

    /// The initial values a seeded source has given so far, from any view.
    pub fn made(&self) -> Values {
        self.shared
            .made
            .lock()
            .expect("no panic while held")
            .clone()
    }

    /// Names and shapes of every tensor asked for so far, from any view.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.shared
            .used
            .lock()
            .expect("no panic while held")
            .clone()
    }

    /// How many values the tensors asked for so far hold together.
    pub fn count(&self) -> usize {
        self.shapes()
            .values()
            .map(|shape| shape.iter().product::<usize>())
            .sum()
    }

    /// Refuses tensors of the source that nothing asked for.
    ///
    /// # Errors
    /// The first few unused names.
    pub fn finish(&self) -> Result<(), Error> {
        let used = self.shapes();
        let unused: Vec<String> = match &self.shared.source {
            Source::Files(view) => view.unused(&used),
            Source::Values(values) => {
                let names = values.keys();
                names
                    .filter(|name| !used.contains_key(*name))
                    .cloned()
                    .collect()
            }
            Source::Seed(_) | Source::Formula | Source::Blank(..) => return Ok(()),
        };
        if unused.is_empty() {
            return Ok(());
        }
        let what = format!(
            "{} tensors are not part of this network, {} among them; this file does not fit its config.json",
            unused.len(),
            unused[..unused.len().min(3)].join(", ")
        );
        Err(Error::weights(&self.shared.origin, what))
    }

    /// The gradients of a tracked source, by name. Untracked sources have none.
    pub fn gradients(&self, gradients: &mut Gradients) -> BTreeMap<String, Vec<f32>> {
        let Some(leaves) = &self.shared.leaves else {
            return BTreeMap::new();
        };
        let leaves = leaves.lock().expect("no panic while held");
        let of = |leaf: &Leaf| {
            let data = (leaf.gradient)(gradients)?;
            let values = data
                .try_into_vec::<f32>()
                .expect("gradients of f32 leaves are f32");
            Some((leaf.name.clone(), values))
        };
        leaves.iter().filter_map(of).collect()
    }

    /// The device tensors are made on.
    pub fn device(&self) -> &Device {
        &self.shared.device
    }
}
