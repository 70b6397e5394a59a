//! Named random streams: `ChaCha8(SHA-256(seed as 8 little-endian bytes || name))`.
//!
//! Every use of randomness has its own name ("degrade/17"), so that adding one never shifts another, and the same
//! seed and name give the same numbers on any machine and for any number of threads.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// The generator of `seed` for the use called `name`.
pub fn stream(seed: u64, name: &str) -> ChaCha8Rng {
    let digest = Sha256::new()
        .chain_update(seed.to_le_bytes())
        .chain_update(name)
        .finalize();
    ChaCha8Rng::from_seed(digest.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    fn words(seed: u64, name: &str) -> [u64; 4] {
        let mut rng = stream(seed, name);
        [(); 4].map(|()| rng.next_u64())
    }

    #[test]
    fn same_seed_and_name_give_the_same_numbers() {
        assert_eq!(words(7, "noise"), words(7, "noise"));
        assert_ne!(words(7, "noise"), words(8, "noise"));
        assert_ne!(words(7, "noise"), words(7, "noise2"));
    }

    #[test]
    fn the_stream_is_the_stated_one() {
        // hashlib.sha256((7).to_bytes(8, "little") + b"noise").digest() seeds ChaCha8.
        let digest: [u8; 32] = Sha256::digest(b"\x07\0\0\0\0\0\0\0noise").into();
        assert_eq!(
            words(7, "noise")[0],
            ChaCha8Rng::from_seed(digest).next_u64()
        );
    }
}
