//! The autoencoder in tiles beside the whole picture at once.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use priors::{
    kind::Kind,
    known,
    vae::{AutoencoderKl, VaeConfig},
    weights::Weights,
};
use serde_json::{Value, json};

fn vae(more: &Value) -> AutoencoderKl {
    let mut config = json!({
        "_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "latent_channels": 4,
        "block_out_channels": [16, 24, 32], "layers_per_block": 2, "norm_num_groups": 4, "scaling_factor": 0.5,
    });
    for (key, value) in more.as_object().expect("settings") {
        config[key] = value.clone();
    }
    let config = VaeConfig::from_json(&config, "config.json".as_ref()).expect("a configuration");
    // By formula, so that no convolution is zero.
    AutoencoderKl::new(config, &Weights::formula(&Device::flex())).expect("an autoencoder")
}

/// A picture whose halves differ in mean and contrast, so that statistics of tiles are not those of the whole.
fn picture(height: usize, width: usize) -> Tensor<4> {
    let value = |i: usize| {
        let (c, y, x) = (i / (height * width), i / width % height, i % width);
        let left = x < width / 3;
        let wave = ((x * (c + 3)) as f32 * 0.37).sin() * (y as f32 * 0.23).cos();
        if left {
            -0.7 + 0.1 * wave
        } else {
            0.3 + 0.6 * wave
        }
    };
    let values: Vec<f32> = (0..3 * height * width).map(value).collect();
    let data = burn::tensor::TensorData::new(values, [1, 3, height, width]);
    Tensor::from_data(data, &Device::flex())
}

fn host(x: Tensor<4>) -> Vec<f32> {
    x.into_data().try_into_vec().expect("f32")
}

/// Root mean square of the difference over that of `want`.
fn error(got: Tensor<4>, want: Tensor<4>) -> f64 {
    assert_eq!(got.dims(), want.dims());
    let (got, want) = (host(got), host(want));
    let square = |v: f64| v * v;
    let difference: f64 = got
        .iter()
        .zip(&want)
        .map(|(a, b)| square(f64::from(a - b)))
        .sum();
    (difference / want.iter().map(|&v| square(f64::from(v))).sum::<f64>()).sqrt()
}

fn compare(vae: &AutoencoderKl, [height, width]: [usize; 2], tile: usize) {
    let image = picture(height, width);
    let whole = vae.encode(image.clone());
    let back = vae.decode(whole.mean.clone());
    let [c, h, w] = [
        whole.mean.dims()[1],
        whole.mean.dims()[2],
        whole.mean.dims()[3],
    ];
    assert_eq!(
        (c, h, w),
        (4, height / vae.downscale(), width / vae.downscale())
    );
    // From every feature kept to as few as possible.
    let mut works = Vec::new();
    for budget in [usize::MAX, 64 * height * width, 12 * height * width, 0] {
        let plans = vae.pooled_plans([height, width], tile, budget);
        works.push(plans.map(|plan| (plan.work / plan.least_work, plan.kept_bytes)));
        let latent = vae.encode_pooled(image.clone(), tile, budget);
        let errors = [
            error(latent.mean, whole.mean.clone()),
            error(latent.logvar, whole.logvar.clone()),
            error(
                vae.decode_pooled(whole.mean.clone(), tile, budget),
                back.clone(),
            ),
        ];
        assert!(
            errors.iter().all(|&e| e < 5e-6),
            "{height}x{width} in tiles of {tile}, budget {budget}: {errors:?}"
        );
    }
    // The least budgets are met as nearly as can be, which need not be in order.
    for pair in works[..3].windows(2) {
        for (more, less) in pair[0].iter().zip(&pair[1]) {
            assert!(
                less.1 <= more.1 && less.0 >= more.0 * 0.999,
                "less memory takes more work: {works:?}"
            );
        }
    }
    assert!(
        works[0].iter().all(|(work, _)| *work < 2.0),
        "with all features kept only halos are done twice: {works:?}"
    );
    assert!(works[3].iter().all(|(work, _)| *work > 2.0), "{works:?}");
}

#[test]
fn tiles_with_pooled_statistics_are_the_whole_to_rounding() {
    for (size, tile) in [([48, 80], 32), ([32, 32], 16), ([64, 36], 20)] {
        compare(&vae(&json!({})), size, tile);
    }
}

#[test]
fn other_shapes_too() {
    let plain = json!({"mid_block_add_attention": false, "use_quant_conv": false, "use_post_quant_conv": false});
    compare(&vae(&plain), [48, 80], 32);
    let folded = json!({"patch_size": 2, "in_channels": 12, "out_channels": 12, "block_out_channels": [16, 16], "layers_per_block": 1});
    compare(&vae(&folded), [64, 48], 32);
}

#[test]
fn blending_tiles_without_pooling_is_far_from_it() {
    // What the test above would see if statistics were the tiles' own.
    let vae = vae(&json!({}));
    let image = picture(48, 80);
    let whole = vae.encode(image.clone()).mean;
    let tile = vae.encode(image.slice([0..1, 0..3, 0..48, 0..40])).mean;
    let inside = |x: Tensor<4>| x.slice([0..1, 0..4, 0..12, 0..4]);
    assert!(error(inside(tile), inside(whole)) > 1e-2);
}

#[test]
fn the_same_bytes_for_any_number_of_threads() {
    let vae = vae(&json!({}));
    let run = |threads: usize| {
        let pool = rayon_pool(threads);
        pool.install(|| {
            host(vae.decode_pooled(vae.encode_pooled(picture(48, 80), 32, 0).mean, 32, 0))
        })
    };
    assert!(run(1) == run(3));
}

fn rayon_pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .expect("a pool")
}

/// What docs/benchmarks.md says of SDXL's.
#[test]
fn a_picture_not_much_larger_than_a_tile_is_as_small_whole() {
    let folder = known::configs(Kind::SdxlBase).expect("known");
    let config = folder.json("vae/config.json").expect("JSON");
    let blank = Weights::blank(&Device::flex());
    let vae = AutoencoderKl::from_json(&config, Path::new("vae"), &blank).expect("supported");
    let whole = |size| {
        vae.pooled_plans(size, 512, 1 << 30)
            .map(|plan| plan.is_whole_as_small())
    };
    // Encoding, decoding.
    assert_eq!(whole([512, 768]), [true, true]);
    assert_eq!(whole([768, 768]), [true, false]);
    assert_eq!(whole([1024, 1024]), [false, false]);
}
