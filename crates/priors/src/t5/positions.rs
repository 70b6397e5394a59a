//! T5's bias by relative position: one number for each head and bucket of distances.
//!
//! Half of the buckets are for keys after the query. Of each half, the first half holds one distance each, the
//! rest grow logarithmically up to a largest distance.

use burn::tensor::Tensor;

use super::T5Config;
use crate::{Error, nn::Embedding, weights::Weights};

/// The table of biases.
#[derive(Clone, Debug)]
pub(super) struct RelativePositions {
    table: Embedding,
    buckets: usize,
    max_distance: usize,
}

impl RelativePositions {
    pub(super) fn new(w: &Weights, config: &T5Config) -> Result<Self, Error> {
        let buckets = config.relative_attention_num_buckets;
        Ok(Self {
            table: Embedding::new(w, buckets, config.num_heads)?,
            buckets,
            max_distance: config.relative_attention_max_distance,
        })
    }

    /// The bias of every query and key of `n` tokens, `[1, k, n, n]`.
    pub(super) fn bias(&self, n: usize) -> Tensor<4> {
        let bucket = |at: usize| bucket(at / n, at % n, self.buckets, self.max_distance) as i32;
        let rows = self.table.rows((0..n * n).map(bucket).collect()); // [n n, k]
        let heads = rows.dims()[1];
        rows.swap_dims(0, 1).reshape([1, heads, n, n])
    }
}

/// The bucket of a query and a key; in f32, as the reference computes it.
fn bucket(query: usize, key: usize, buckets: usize, max_distance: usize) -> usize {
    let half = buckets / 2;
    let exact = half / 2;
    let side = if key > query { half } else { 0 };
    let distance = key.abs_diff(query);
    if distance < exact {
        return side + distance;
    }
    let log = (distance as f32 / exact as f32).ln();
    let largest = (max_distance as f64 / exact as f64).ln() as f32;
    let far = exact + (log / largest * (half - exact) as f32) as usize;
    side + far.min(half - 1)
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn near_distances_are_exact_and_far_ones_share() {
        let of = |query, key| bucket(query, key, 32, 128);
        assert_eq!([of(9, 9), of(9, 2), of(2, 9)], [0, 7, 23]);
        // log(d / 8) / log(16) * 8 above 8: powers of two are the edges.
        let edges = [15, 16, 31, 32, 63, 64, 127, 128, 255].map(|d| of(d, 0));
        assert_eq!(edges, [9, 10, 11, 12, 13, 14, 15, 15, 15]);
    }
}
