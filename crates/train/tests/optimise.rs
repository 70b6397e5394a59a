//! AdamW, clipping, the learning rate and averaging; AdamW against PyTorch's (golden of
//! `priors/tests/golden/grads.py`).

#[path = "../../priors/tests/golden/mod.rs"]
mod golden;

use burn::tensor::TensorData;
use golden::{Golden, OP};
use train::{
    config::Optimise,
    optimise::{AdamW, Named, average, clip, learning_rate, norm},
};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../priors/tests/golden");

fn config() -> Optimise {
    toml::from_str("steps = 100\nbatch = 4\nlr = 1e-3").expect("the rest has defaults")
}

#[test]
fn twenty_steps_of_adamw_are_pytorchs() {
    let golden = Golden::open(FOLDER, "adamw");
    let names = ["a.weight", "b.bias"];
    let of = |kind: &str| -> Named {
        names
            .iter()
            .map(|name| (name.to_string(), golden.values(&format!("{kind}.{name}"))))
            .collect()
    };
    let (mut values, curve, goal) = (of("start"), of("curve"), of("goal"));
    let mut adamw = AdamW::default();
    let mut comparison = golden.compare();
    for step in 1..=20 {
        let slope = |name: &str| -> Vec<f32> {
            let (p, c, g) = (&values[name], &curve[name], &goal[name]);
            p.iter()
                .zip(c)
                .zip(g)
                .map(|((p, c), g)| c * (p - g))
                .collect()
        };
        let gradients: Named = names
            .iter()
            .map(|name| (name.to_string(), slope(name)))
            .collect();
        adamw.step(&mut values, &gradients, 1e-3, &config());
        if step % 5 == 0 {
            for name in names {
                let stored = format!("step_{step}.{name}");
                let shape = golden.data(&stored).shape().clone();
                comparison.see_data(&stored, TensorData::new(values[name].clone(), shape), OP);
            }
        }
    }
    let input = |name: &str| {
        ["start.", "curve.", "goal."]
            .iter()
            .any(|kind| name.starts_with(kind))
    };
    comparison.finish(input);
}

#[test]
fn clipping_keeps_the_direction_and_bounds_the_norm() {
    let gradients = Named::from([("a".into(), vec![3.0, 0.0]), ("b".into(), vec![4.0])]);
    let mut clipped = gradients.clone();
    assert_eq!(clip(&mut clipped, 1.0), 5.0);
    assert!((norm(&clipped) - 1.0).abs() < 1e-5);
    assert!((clipped["a"][0] / clipped["b"][0] - 0.75).abs() < 1e-6);
    let mut small = gradients.clone();
    clip(&mut small, 6.0);
    assert_eq!(small, gradients);
}

#[test]
fn the_rate_warms_up_and_falls_along_half_a_cosine() {
    let config = Optimise {
        warmup: 10,
        final_lr: 0.1,
        ..config()
    };
    assert!((learning_rate(&config, 0) - 1e-4).abs() < 1e-12);
    assert!((learning_rate(&config, 9) - 1e-3).abs() < 1e-12);
    assert!((learning_rate(&config, 10) - 1e-3).abs() < 1e-12);
    assert!(
        (learning_rate(&config, 55) - 0.55e-3).abs() < 1e-12,
        "half-way"
    );
    assert!((learning_rate(&config, 100) - 1e-4).abs() < 1e-12);
}

#[test]
fn an_average_has_its_half_life() {
    let config = Optimise {
        ema_halflife_images: 40.0,
        ..config()
    };
    let mut mean = Named::from([("a".into(), vec![0.0])]);
    let values = Named::from([("a".into(), vec![1.0])]);
    // Ten steps of four images, long after the warm-up.
    for step in 1000..1010 {
        average(&mut mean, &values, &config, step);
    }
    assert!((mean["a"][0] - 0.5).abs() < 1e-5, "{}", mean["a"][0]);
    let mut early = Named::from([("a".into(), vec![0.0])]);
    average(&mut early, &values, &config, 0);
    assert!(
        early["a"][0] > 0.99,
        "at the start the average follows at once"
    );
}
