//! A fingerprint of what a picture looks like: the 64-bit difference hash.
//!
//! The picture is reduced to 9x8 grey pixels; a bit says whether a pixel is brighter than its right neighbour. Scaling, another
//! compression or brightness change few bits; a mirrored or cropped picture is another one.

use std::collections::HashMap;

use pixels::{
    Image,
    colour::Luma,
    resize::{Filter, scale},
};

/// Fewer set (or unset) bits than this come from plain pictures, which all look the same to it.
const PLAIN: u32 = 6;

/// The fingerprint; none for a picture too plain to have one.
pub fn dhash(image: &Image) -> Option<u64> {
    let small = scale(image, 9, 8, Filter::Bilinear);
    let luma = &Luma::Yiq.planes(&small)[0];
    let bit = |i: usize| u64::from(luma[i / 8 * 9 + i % 8] > luma[i / 8 * 9 + i % 8 + 1]);
    let hash = (0..64).fold(0, |hash, i| hash << 1 | bit(i));
    let set = hash.count_ones();
    (PLAIN..=64 - PLAIN).contains(&set).then_some(hash)
}

/// Of `(picture, fingerprint)` in order: each that differs in at most `most` (< 4) bits from one before it, the first of
/// those, and in how many bits.
pub fn similar(hashes: &[(usize, u64)], most: u32) -> Vec<(usize, usize, u32)> {
    assert!(most < 4, "four parts can differ in four bits: got {most}");
    // Of two that differ in three bits at most, one of four parts is equal.
    let mut tables: [HashMap<u16, Vec<usize>>; 4] = Default::default();
    let part = |hash: u64, k: usize| (hash >> (16 * k)) as u16;
    let mut found = Vec::new();
    for (at, &(picture, hash)) in hashes.iter().enumerate() {
        let near = (0..4)
            .filter_map(|k| tables[k].get(&part(hash, k)))
            .flatten()
            .filter(|&&other| (hashes[other].1 ^ hash).count_ones() <= most)
            .min();
        if let Some(&other) = near {
            let bits = (hashes[other].1 ^ hash).count_ones();
            found.push((picture, hashes[other].0, bits));
        }
        for (k, table) in tables.iter_mut().enumerate() {
            table.entry(part(hash, k)).or_default().push(at);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_bits_anywhere_are_found_and_four_are_not() {
        let base = 0x0123_4567_89ab_cdef_u64;
        let hashes: Vec<(usize, u64)> = [
            base,
            base ^ 0b111,
            base ^ (1 << 3 | 1 << 20 | 1 << 63),
            base ^ (1 << 8 | 1 << 24 | 1 << 40 | 1 << 56),
        ]
        .into_iter()
        .enumerate()
        .map(|(i, hash)| (10 + i, hash))
        .collect();
        assert_eq!(similar(&hashes, 3), [(11, 10, 3), (12, 10, 3)]);
    }

    #[test]
    fn a_smaller_copy_has_the_fingerprint_and_a_mirror_image_has_not() {
        let picture = |mirror: bool| {
            Image::from_fn(180, 120, |c, y, x| {
                let x = if mirror { 179 - x } else { x };
                let wave = (x as f32 / 17.0 + (y / 24) as f32).sin() * (y as f32 / 31.0).cos();
                0.5 + 0.3 * wave + 0.05 * c as f32
            })
        };
        let hash = dhash(&picture(false)).expect("not plain");
        let small = scale(&picture(false), 90, 60, Filter::CatmullRom);
        let near = dhash(&small).expect("not plain");
        assert!((hash ^ near).count_ones() <= 3);
        let far = dhash(&picture(true)).expect("not plain");
        assert!((hash ^ far).count_ones() > 10);
        assert_eq!(dhash(&Image::from_fn(64, 64, |_, _, _| 0.5)), None);
    }
}
