//! What in a set of training pictures should not be trained on: unreadable, too small, the same twice, enlarged or
//! blurred, heavily compressed.
//!
//! Each picture is measured alone, on all cores; findings come in the order of the pictures. The limits were set on
//! 383 photographs and on 48 of them made worse, the same that `docs/training.md` reports: nothing was held out.

mod blocks;
mod fineness;
mod fingerprint;
mod jpeg_tables;

use std::{collections::HashMap, path::Path};

use pixels::{Image, colour::Luma};
use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest, Sha256};

pub use blocks::blockiness;
pub use fineness::fineness;
pub use fingerprint::{dhash, similar};
pub use jpeg_tables::jpeg_quality;

use crate::{
    Error,
    data::{Picture, pictures},
};

/// Pictures whose fingerprints differ in at most so many of 64 bits look the same.
const SAME_BITS: u32 = 3;

/// What is found fault with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// The shortest side, pixels.
    pub side_px: usize,
    /// The lowest JPEG quality, 1 to 100.
    pub jpeg_quality: u8,
    /// The largest mean step of the eight places in a grid of 8 pixels over the second largest ([`blockiness`]).
    pub blockiness: f64,
    /// The least power of the finest detail relative to coarser detail ([`fineness`]).
    pub fineness: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            side_px: 256,
            jpeg_quality: 75,
            blockiness: 1.3,
            fineness: 0.03,
        }
    }
}

/// What is wrong with a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It cannot be read or decoded.
    Unreadable,
    /// It is smaller than a crop.
    TooSmall,
    /// It is, or looks, the same as one before it.
    Duplicate,
    /// It was enlarged, or is out of focus.
    Enlarged,
    /// It was compressed until one sees it.
    Compressed,
}

impl Kind {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::TooSmall => "too small",
            Self::Duplicate => "duplicate",
            Self::Enlarged => "enlarged or blurred",
            Self::Compressed => "compressed",
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The picture.
    pub file: String,
    /// What is wrong.
    pub kind: Kind,
    /// What was measured, in words.
    pub detail: String,
    /// What was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// The picture it is a duplicate of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// How many pictures there are.
    pub pictures: usize,
    /// How many have a caption.
    pub captions: usize,
    /// What was found, picture by picture.
    pub findings: Vec<Finding>,
}

/// What is remembered of a picture to find its like.
struct Seen {
    sha256: [u8; 32],
    dhash: Option<u64>,
}

/// Checks the pictures of `images`, a folder or shards; `done` is called after each.
///
/// # Errors
/// As [`pictures`]: what concerns the whole. A single picture that cannot be read is a finding.
pub fn check(images: &Path, limits: &Limits, done: &(dyn Fn() + Sync)) -> Result<Checked, Error> {
    let pictures = pictures(images)?;
    let measured: Vec<(Option<Seen>, Vec<Finding>)> = pictures
        .par_iter()
        .map(|picture| {
            let measured = measure(picture, limits);
            done();
            measured
        })
        .collect();
    let (seen, mut findings): (Vec<Option<Seen>>, Vec<Vec<Finding>>) = measured.into_iter().unzip();
    duplicates(&pictures, &seen, &mut findings);
    Ok(Checked {
        captions: pictures.iter().filter(|p| !p.caption.is_empty()).count(),
        pictures: pictures.len(),
        findings: findings.into_iter().flatten().collect(),
    })
}

fn measure(picture: &Picture, limits: &Limits) -> (Option<Seen>, Vec<Finding>) {
    let finding = |kind, value, detail| Finding {
        file: picture.name.clone(),
        kind,
        detail,
        value,
        of: None,
    };
    let unreadable = |why: String| {
        let why = why
            .strip_prefix(&format!("{}: ", picture.name))
            .unwrap_or(&why)
            .to_owned();
        vec![finding(Kind::Unreadable, None, why)]
    };
    let bytes = match picture.bytes() {
        Ok(bytes) => bytes,
        Err(why) => return (None, unreadable(why.to_string())),
    };
    let sha256 = Sha256::digest(&bytes).into();
    let path = Path::new(&picture.name);
    let image = match pixels::io::decode(&bytes, path, pixels::io::Limits::default()) {
        Ok(image) => image,
        Err(why) => {
            return (
                Some(Seen {
                    sha256,
                    dhash: None,
                }),
                unreadable(why.to_string()),
            );
        }
    };
    let mut found = Vec::new();
    let shortest = image.width.min(image.height);
    if shortest < limits.side_px {
        let detail = format!(
            "{}x{} pixels, a side is below {}",
            image.width, image.height, limits.side_px
        );
        found.push(finding(Kind::TooSmall, Some(shortest as f64), detail));
    }
    let luma = luma(&image);
    if let Some(fine) = fineness(&luma, image.width, image.height)
        && fine < limits.fineness
    {
        let detail = format!(
            "its finest detail has {:.2} % of the power of coarser detail, below {:.2} %",
            100.0 * fine,
            100.0 * limits.fineness
        );
        found.push(finding(Kind::Enlarged, Some(fine), detail));
    }
    let quality = jpeg_quality(&bytes).filter(|quality| *quality < limits.jpeg_quality);
    let blocks = blockiness(&luma, image.width, image.height);
    if let Some(quality) = quality {
        let detail = format!("JPEG quality {quality}, below {}", limits.jpeg_quality);
        found.push(finding(Kind::Compressed, Some(f64::from(quality)), detail));
    } else if let Some(blocks) = blocks.filter(|blocks| *blocks > limits.blockiness) {
        let detail = format!(
            "steps at one place of a grid of 8 pixels are {blocks:.2} times those at the next strongest, above {:.2}: it was compressed before it was saved as it is",
            limits.blockiness
        );
        found.push(finding(Kind::Compressed, Some(blocks), detail));
    }
    let dhash = dhash(&image);
    (Some(Seen { sha256, dhash }), found)
}

/// The luma plane `[h, w]` in `[0, 1]`.
fn luma(image: &Image) -> Vec<f32> {
    Luma::Yiq.planes(image).swap_remove(0)
}

/// Adds to a picture's findings that one before it has its bytes, or looks the same.
fn duplicates(pictures: &[Picture], seen: &[Option<Seen>], findings: &mut [Vec<Finding>]) {
    let mut first: HashMap<[u8; 32], usize> = HashMap::new();
    let mut found: Vec<(usize, usize, String)> = Vec::new();
    let mut looks = Vec::new();
    for (i, seen) in seen.iter().enumerate() {
        let Some(seen) = seen else { continue };
        let of = *first.entry(seen.sha256).or_insert(i);
        if of != i {
            found.push((i, of, "the same bytes as".to_owned()));
        } else if let Some(hash) = seen.dhash {
            looks.push((i, hash));
        }
    }
    for (i, of, bits) in similar(&looks, SAME_BITS) {
        found.push((i, of, format!("{bits} of 64 bits differ from")));
    }
    for (i, of, how) in found {
        let of = pictures[of].name.clone();
        findings[i].push(Finding {
            file: pictures[i].name.clone(),
            kind: Kind::Duplicate,
            detail: format!("{how} {of}"),
            value: None,
            of: Some(of),
        });
    }
}
