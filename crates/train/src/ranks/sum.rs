//! The loss and gradient of a step from those of the ranks, in one flat sum.

use super::{Ranks, Share};
use crate::{objective::Evaluation, optimise::Named};

/// The evaluation of the whole batch, the same on all ranks, from this rank's. `shapes` names all trained tensors.
pub(crate) fn total(
    ranks: &dyn Ranks,
    share: &Share,
    shapes: &[(String, Vec<usize>)],
    mine: Evaluation,
) -> Evaluation {
    if ranks.count() == 1 {
        return mine;
    }
    let Evaluation {
        loss,
        mut gradients,
    } = mine;
    let mut loss = [loss * share.weight()];
    ranks.sum_f64(&mut loss);
    let weight = share.weight() as f32;
    let size = |(_, shape): &(String, Vec<usize>)| shape.iter().product::<usize>();
    let values: usize = shapes.iter().map(size).sum();
    // A tensor that no rank has a gradient of stays without one; so each has a place for how many have one.
    let mut flat = Vec::with_capacity(values + shapes.len());
    let mut known = Vec::with_capacity(shapes.len());
    for tensor in shapes {
        let gradient = gradients.remove(&tensor.0);
        known.push(f32::from(u8::from(gradient.is_some())));
        match gradient {
            Some(gradient) => flat.extend(gradient.into_iter().map(|g| g * weight)),
            None => flat.resize(flat.len() + size(tensor), 0.0),
        }
    }
    flat.extend(known);
    ranks.sum(&mut flat);
    let (mut flat, known) = flat.split_at(values);
    let mut gradients = Named::new();
    for (tensor, &known) in shapes.iter().zip(known) {
        let (gradient, rest) = flat.split_at(size(tensor));
        flat = rest;
        if known > 0.0 {
            gradients.insert(tensor.0.clone(), gradient.to_vec());
        }
    }
    Evaluation {
        loss: loss[0],
        gradients,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranks::Alone;

    /// Two ranks with the same values: every sum is double.
    struct Twins;

    impl Ranks for Twins {
        fn rank(&self) -> usize {
            0
        }
        fn count(&self) -> usize {
            2
        }
        fn threads(&self) -> Option<usize> {
            None
        }
        fn sum(&self, values: &mut [f32]) {
            values.iter_mut().for_each(|v| *v *= 2.0);
        }
        fn sum_f64(&self, values: &mut [f64]) {
            values.iter_mut().for_each(|v| *v *= 2.0);
        }
        fn broadcast(&self, _bytes: &mut [u8]) {}
        fn wait(&self) {}
        fn abort(&self) -> ! {
            unreachable!()
        }
    }

    #[test]
    fn equal_halves_make_the_same_whole_and_what_has_no_gradient_keeps_none() {
        let shapes = [
            ("a".to_owned(), vec![2, 2]),
            ("b".to_owned(), vec![1]),
            ("c".to_owned(), vec![3]),
        ];
        let mine = || Evaluation {
            loss: 0.75,
            gradients: Named::from([
                ("a".to_owned(), vec![1.0, -2.0, 3.0, 0.5]),
                ("c".to_owned(), vec![4.0, f32::NAN, 6.0]),
            ]),
        };
        let share = Share::new(4, &Twins).expect("fits");
        let whole = total(&Twins, &share, &shapes, mine());
        assert_eq!(whole.loss, 0.75);
        assert_eq!(whole.gradients["a"], mine().gradients["a"]);
        assert!(whole.gradients["c"][1].is_nan() && whole.gradients["c"][2] == 6.0);
        assert!(!whole.gradients.contains_key("b"));
        let share = Share::new(4, &Alone).expect("fits");
        let alone = total(&Alone, &share, &shapes, mine());
        assert_eq!(alone.gradients["a"], mine().gradients["a"]);
    }
}
