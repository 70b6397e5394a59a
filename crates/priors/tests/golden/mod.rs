//! Loading goldens and comparing with them, for the parity tests of this crate and of `restore`.
#![allow(dead_code, reason = "each test binary uses its part of this")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use burn::tensor::{Device, Tensor, TensorData};
use priors::weights::{SafetensorsFile, Values, Weights};
use serde_json::Value;

/// `|got - y| <= atol + rtol |y|`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tolerance {
    pub(crate) atol: f64,
    pub(crate) rtol: f64,
}

/// A single operation.
pub(crate) const OP: Tolerance = Tolerance {
    atol: 1e-6,
    rtol: 1e-5,
};
/// A block of a network.
pub(crate) const BLOCK: Tolerance = Tolerance {
    atol: 1e-5,
    rtol: 1e-4,
};
/// A whole network.
pub(crate) const MODEL: Tolerance = Tolerance {
    atol: 1e-4,
    rtol: 1e-3,
};

/// A file of inputs and outputs that another implementation made.
pub(crate) struct Golden {
    path: PathBuf,
    file: SafetensorsFile,
}

impl Golden {
    /// Opens `<folder>/<name>.safetensors`.
    pub(crate) fn open(folder: &str, name: &str) -> Self {
        let path = Path::new(folder).join(format!("{name}.safetensors"));
        let file = SafetensorsFile::open(&path).unwrap_or_else(|why| panic!("{why}"));
        Self { path, file }
    }

    /// Where it is, for the networks' error messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The model's config.json.
    pub(crate) fn config(&self) -> Value {
        let config = self
            .file
            .metadata("config")
            .expect("the golden has a config");
        serde_json::from_str(config).expect("the config is JSON")
    }

    /// Whether it holds a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.file.has(name)
    }

    /// The names of all tensors.
    pub(crate) fn names(&self) -> &[String] {
        self.file.names()
    }

    /// A tensor's stored data.
    pub(crate) fn data(&self, name: &str) -> TensorData {
        let data = self.file.data(name);
        data.unwrap_or_else(|| panic!("{}: no tensor {name}", self.path.display()))
    }

    /// An f32 tensor.
    pub(crate) fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        Tensor::from_data(self.data(name), device)
    }

    /// Values of an f32 tensor.
    pub(crate) fn values(&self, name: &str) -> Vec<f32> {
        self.data(name).try_into_vec().expect("an f32 tensor")
    }

    /// Values of an integer tensor.
    pub(crate) fn integers(&self, name: &str) -> Vec<i64> {
        self.data(name).try_into_vec().expect("an i64 tensor")
    }

    /// Timesteps, which are stored as integers.
    pub(crate) fn timesteps(&self, device: &Device) -> Tensor<1> {
        let t: Vec<f32> = self
            .integers("input.timestep")
            .iter()
            .map(|&t| t as f32)
            .collect();
        Tensor::from_floats(t.as_slice(), device)
    }

    /// Compares with this golden, in the order of the calls.
    pub(crate) fn compare(&self) -> Comparison<'_> {
        Comparison {
            golden: self,
            seen: BTreeSet::new(),
            failures: vec![],
        }
    }
}

/// A running comparison; [`Comparison::finish`] says what differed first.
pub(crate) struct Comparison<'a> {
    golden: &'a Golden,
    seen: BTreeSet<String>,
    failures: Vec<String>,
}

impl Comparison<'_> {
    /// Compares a tensor with the stored one of this name.
    pub(crate) fn see<const D: usize>(
        &mut self,
        name: &str,
        got: &Tensor<D>,
        tolerance: Tolerance,
    ) {
        self.see_data(name, got.to_data(), tolerance);
    }

    /// As [`Comparison::see`], for a loss, which burn gives the shape [1] and torch none.
    pub(crate) fn see_scalar(&mut self, name: &str, got: &Tensor<1>, tolerance: Tolerance) {
        let data = TensorData::new(
            got.to_data().try_into_vec::<f32>().expect("f32"),
            Vec::<usize>::new(),
        );
        self.see_data(name, data, tolerance);
    }

    /// Compares `grad.<name>` of those parameters that the golden holds.
    pub(crate) fn see_gradients(&mut self, gradients: BTreeMap<String, Vec<f32>>, rtol: f64) {
        for (name, gradient) in gradients {
            let name = format!("grad.{name}");
            if self.golden.has(&name) {
                let shape = self.golden.data(&name).shape().clone();
                self.see_scaled(&name, TensorData::new(gradient, shape), rtol);
            }
        }
    }

    /// As [`Comparison::see`], relative to the largest stored value: for gradients.
    pub(crate) fn see_scaled(&mut self, name: &str, got: TensorData, rtol: f64) {
        let largest = self
            .golden
            .values(name)
            .iter()
            .fold(0.0, |m: f64, y| m.max(f64::from(y.abs())));
        self.see_data(
            name,
            got,
            Tolerance {
                atol: rtol * largest,
                rtol,
            },
        );
    }

    /// As [`Comparison::see`], for data.
    pub(crate) fn see_data(&mut self, name: &str, got: TensorData, tolerance: Tolerance) {
        let wanted = self.golden.data(name);
        assert_eq!(
            got.shape(),
            wanted.shape(),
            "shape of {name}, ours and the golden's"
        );
        assert!(
            self.seen.insert(name.to_owned()),
            "{name} was compared twice"
        );
        let shape = wanted.shape().to_vec();
        let got: Vec<f32> = got.try_into_vec().expect("f32");
        let wanted: Vec<f32> = wanted.try_into_vec().expect("f32");
        // How many times the tolerance; a NaN is infinitely wrong.
        let excess = |i: usize| {
            let (x, y) = (f64::from(got[i]), f64::from(wanted[i]));
            let excess = (x - y).abs() / (tolerance.atol + tolerance.rtol * y.abs());
            if excess.is_nan() {
                f64::INFINITY
            } else {
                excess
            }
        };
        let wrong = (0..got.len()).filter(|&i| excess(i) > 1.0).count();
        let Some(worst) = (0..got.len()).max_by(|&i, &j| excess(i).total_cmp(&excess(j))) else {
            panic!("{name} is empty");
        };
        if wrong > 0 {
            let (n, x, y) = (got.len(), got[worst], wanted[worst]);
            self.failures.push(format!(
                "{name} {shape:?}: {wrong} of {n} values differ, worst at flat index {worst}: {x} instead of {y}, \
                 {:.1} times the tolerance",
                excess(worst)
            ));
        }
    }

    /// Fails if anything differed, the first difference first, or if the golden holds outputs that were never compared,
    /// inputs and those for which `hidden` says so apart.
    pub(crate) fn finish(self, hidden: impl Fn(&str) -> bool) {
        let path = self.golden.path.display();
        let n = self.failures.len();
        assert!(
            self.failures.is_empty(),
            "{path}: {n} of {} outputs differ\n{}",
            self.seen.len(),
            self.failures.join("\n")
        );
        let output = |name: &&String| {
            !name.starts_with("input.") && !hidden(name) && !self.seen.contains(*name)
        };
        let missed: Vec<&String> = self.golden.file.names().iter().filter(output).collect();
        assert!(missed.is_empty(), "{path}: never compared: {missed:?}");
        assert!(!self.seen.is_empty(), "{path}: nothing was compared");
    }
}

/// The formula's values of every tensor that `build` asks for.
pub(crate) fn formula_values(device: &Device, build: impl FnOnce(&Weights)) -> Values {
    let blank = Weights::blank(device);
    build(&blank);
    let formula = Weights::formula(device);
    let shapes = blank.shapes().into_iter();
    shapes
        .map(|(name, shape)| (name.clone(), formula_value(&formula, &name, &shape)))
        .collect()
}

/// The formula's value of one tensor.
pub(crate) fn formula_value(formula: &Weights, name: &str, shape: &[usize]) -> TensorData {
    use priors::weights::Init::Zeros;
    let got = match *shape {
        [a] => formula.tensor(name, [a], Zeros).map(Tensor::into_data),
        [a, b] => formula.tensor(name, [a, b], Zeros).map(Tensor::into_data),
        [a, b, c] => formula
            .tensor(name, [a, b, c], Zeros)
            .map(Tensor::into_data),
        [a, b, c, d] => formula
            .tensor(name, [a, b, c, d], Zeros)
            .map(Tensor::into_data),
        _ => panic!("{name} has the unusual shape {shape:?}"),
    };
    got.unwrap_or_else(|why| panic!("{why}"))
}
