//! Attention over image and text tokens together, each stream with projections of its own.

use burn::tensor::Tensor;
use kernels::Mask;

use crate::{
    Error,
    nn::{Bare, Bias, Linear, RmsNorm, Tap, attend},
    weights::Weights,
};

/// Epsilon of the norms of queries and keys.
const EPS: f64 = 1e-6;

/// Queries, keys and values of one stream.
#[derive(Clone, Debug)]
struct Projections {
    q: Linear,
    key: Linear,
    value: Linear,
    norms: Option<(RmsNorm, RmsNorm)>,
    heads: usize,
}

/// The diffusers names of a stream's projections and norms.
struct Names {
    projections: [&'static str; 3],
    norms: [&'static str; 2],
}

const IMAGE: Names = Names {
    projections: ["to_q", "to_k", "to_v"],
    norms: ["norm_q", "norm_k"],
};

const TEXT: Names = Names {
    projections: ["add_q_proj", "add_k_proj", "add_v_proj"],
    norms: ["norm_added_q", "norm_added_k"],
};

/// Sizes of an attention.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Width of the tokens.
    pub(super) d: usize,
    /// Heads.
    pub(super) heads: usize,
    /// Width of a head where queries and keys are normalized.
    pub(super) norm: Option<usize>,
}

impl Projections {
    fn new(w: &Weights, names: &Names, sizes: Sizes) -> Result<Self, Error> {
        let d = sizes.d;
        let [q, key, value] = names
            .projections
            .map(|name| Linear::new(&w.at(name), d, d, Bias::With));
        let norm = |d_head| -> Result<_, Error> {
            let [q, key] = names
                .norms
                .map(|name| RmsNorm::new(&w.at(name), d_head, EPS));
            Ok((q?, key?))
        };
        Ok(Self {
            q: q?,
            key: key?,
            value: value?,
            norms: sizes.norm.map(norm).transpose()?,
            heads: sizes.heads,
        })
    }

    /// Queries, keys and values of `x`, `[b, n, d]` each.
    fn of(&self, x: Tensor<3>, tap: &dyn Tap) -> [Tensor<3>; 3] {
        let [b, n, d] = x.dims();
        let mut q = self.q.tapped(x.clone(), tap);
        let mut key = self.key.tapped(x.clone(), tap);
        let value = self.value.tapped(x, tap);
        if let Some((norm_q, norm_k)) = &self.norms {
            let heads = [b, n, self.heads, d / self.heads];
            q = norm_q.forward(q.reshape(heads)).reshape([b, n, d]);
            key = norm_k.forward(key.reshape(heads)).reshape([b, n, d]);
        }
        [q, key, value]
    }
}

/// Attention of the image tokens to themselves alone (`attn2` of SD3.5-medium).
#[derive(Clone, Debug)]
pub(super) struct ImageAttention {
    image: Projections,
    to_out: Linear,
}

impl ImageAttention {
    pub(super) fn new(w: &Weights, sizes: Sizes) -> Result<Self, Error> {
        Ok(Self {
            image: Projections::new(w, &IMAGE, sizes)?,
            to_out: Linear::new(&w.at("to_out.0"), sizes.d, sizes.d, Bias::With)?,
        })
    }

    /// Attends from `x` `[b, n, d]` to itself.
    pub(super) fn forward(&self, x: Tensor<3>, tap: &dyn Tap) -> Tensor<3> {
        let [q, key, value] = self.image.of(x, tap);
        let y = attend(
            q,
            key,
            value,
            self.image.heads,
            Mask::None,
            self.to_out.dtype(),
        );
        self.to_out.tapped(y, tap)
    }
}

/// Attention of image and text tokens to all of them (`attn`).
#[derive(Clone, Debug)]
pub(super) struct JointAttention {
    image: ImageAttention,
    text: Projections,
    /// None in the last block, whose text goes nowhere.
    to_add_out: Option<Linear>,
}

/// Whether a block's text stream goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Text {
    /// To the next block.
    On,
    /// It is only attended to: the last block (`context_pre_only`).
    Ends,
}

impl JointAttention {
    pub(super) fn new(w: &Weights, sizes: Sizes, text: Text) -> Result<Self, Error> {
        let out = || Linear::new(&w.at("to_add_out"), sizes.d, sizes.d, Bias::With);
        Ok(Self {
            image: ImageAttention::new(w, sizes)?,
            text: Projections::new(w, &TEXT, sizes)?,
            to_add_out: (text == Text::On).then(out).transpose()?,
        })
    }

    /// Attends from `image` `[b, n, d]` and `text` `[b, m, d]` to both; the text's output where it goes on.
    pub(super) fn forward(
        &self,
        image: Tensor<3>,
        text: Tensor<3>,
        tap: &dyn Tap,
    ) -> (Tensor<3>, Option<Tensor<3>>) {
        let ([_, n, _], [_, m, _]) = (image.dims(), text.dims());
        let [q, key, value] = self.image.image.of(image, tap);
        let [text_q, text_key, text_value] = self.text.of(text, &Bare);
        let y = attend(
            kernels::cat(q, text_q),
            kernels::cat(key, text_key),
            kernels::cat(value, text_value),
            self.text.heads,
            Mask::None,
            self.image.to_out.dtype(),
        );
        let image = self.image.to_out.tapped(y.clone().narrow(1, 0, n), tap);
        let text = self
            .to_add_out
            .as_ref()
            .map(|out| out.forward(y.narrow(1, n, m)));
        (image, text)
    }
}
