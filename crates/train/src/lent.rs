//! Values by name as tensors that share their memory, and back: a step copies no trained value.

use std::{collections::BTreeMap, sync::Arc};

use burn::tensor::{AllocationProperty, Bytes, DType, TensorData};
use priors::weights::Values;

use crate::optimise::Named;

/// Values that networks may read until they are taken back.
#[derive(Debug)]
pub(crate) struct Lent {
    owners: BTreeMap<String, Arc<TensorData>>,
    values: Values,
}

/// What a tensor over lent memory holds on to.
struct Owner(Arc<TensorData>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl Lent {
    /// Lends those of `named` that have a shape.
    pub(crate) fn new(mut named: Named, shapes: &[(String, Vec<usize>)]) -> Self {
        let (mut owners, mut values) = (BTreeMap::new(), Values::new());
        for (name, shape) in shapes {
            let value = named.remove(name).expect("a value for each shape");
            let owner = Arc::new(TensorData::new(value, shape.clone()));
            let bytes = bytes::Bytes::from_owner(Owner(owner.clone()));
            let bytes = Bytes::from_shared(bytes, AllocationProperty::Other);
            let data = TensorData::from_bytes(bytes, shape.clone(), DType::F32);
            owners.insert(name.clone(), owner);
            values.insert(name.clone(), data);
        }
        Self { owners, values }
    }

    /// The values as tensors.
    pub(crate) fn values(&self) -> &Values {
        &self.values
    }

    /// The values again; one that something still reads is copied.
    pub(crate) fn back(self) -> Named {
        let Self { owners, values } = self;
        drop(values);
        let back = |(name, owner): (String, Arc<TensorData>)| {
            let data = Arc::try_unwrap(owner).unwrap_or_else(|owner| (*owner).clone());
            let values = data.try_into_vec::<f32>();
            (name, values.expect("made of f32 values"))
        };
        owners.into_iter().map(back).collect()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};
    use priors::weights::{Init, Weights};

    use super::*;

    #[test]
    fn values_come_back_where_they_were() {
        let named = Named::from([("a".to_owned(), vec![1.0, 2.0, 3.0, 4.0])]);
        let place = named["a"].as_ptr();
        let lent = Lent::new(named, &[("a".to_owned(), vec![2, 2])]);
        let w = Weights::from_values(lent.values().clone(), &Device::flex());
        let tensor: Tensor<2> = w.tensor("a", [2, 2], Init::Zeros).expect("there");
        let kept = tensor.clone();
        assert_eq!(tensor.sum().into_scalar::<f32>(), 10.0);
        drop(w);
        let again = lent.back();
        assert_eq!(again["a"], [1.0, 2.0, 3.0, 4.0]);
        assert_ne!(again["a"].as_ptr(), place, "a tensor still reads it");
        drop(kept);

        let place = again["a"].as_ptr();
        let lent = Lent::new(again, &[("a".to_owned(), vec![4])]);
        assert_eq!(lent.back()["a"].as_ptr(), place);
    }
}
