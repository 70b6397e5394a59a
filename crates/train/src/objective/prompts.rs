//! The prompts that a run with frozen text encoders can ask for: how they are read, what their encodings take on disk, and
//! what of them does not fit.

use std::collections::{BTreeSet, HashMap};

use pixels::degrade::DESCRIPTORS;
use priors::text::{Encoding, TextEncoders};

/// Bytes that file systems give out at once.
const BLOCK: u64 = 4096;

/// More than the header of a file with an encoding takes, bytes.
const HEADER: u64 = 512;

/// Prompts and how they are read.
#[derive(Debug)]
pub(super) struct Prompts {
    /// In how many pieces each is read alone.
    pub(super) pieces: HashMap<String, usize>,
    /// What the user should know about captions.
    pub(super) notes: Vec<String>,
}

impl Prompts {
    /// `captions`, the empty prompt and the words for degradations.
    pub(super) fn of(encoders: &TextEncoders, captions: Vec<String>) -> Self {
        let captions: BTreeSet<String> = captions.into_iter().collect();
        let read = |prompt: String| {
            let pieces = encoders.pieces(&[&prompt]);
            (prompt, pieces)
        };
        let cut = captions
            .iter()
            .filter(|caption| encoders.dropped(caption) > 0);
        let (cut, all) = (cut.count(), captions.len());
        let mut pieces: HashMap<String, usize> = captions.into_iter().map(read).collect();
        let longer = pieces.values().filter(|&&pieces| pieces > 1).count();
        let mut notes = Vec::new();
        if longer > 0 {
            let most = pieces.values().max().unwrap_or(&1);
            notes.push(format!(
                "{longer} of {all} captions are longer than the text encoder and are read in up to {most} pieces"
            ));
        }
        if cut > 0 {
            notes.push(format!(
                "T5 does not read {cut} of {all} captions to their end; the other encoders read all of them"
            ));
        }
        let others = descriptions().chain([String::new()]);
        pieces.extend(others.map(read));
        Self { pieces, notes }
    }

    /// Each prompt with the numbers of pieces it can be read in, sorted: in a batch as many as the longest.
    pub(super) fn readings(&self, batch: usize) -> Vec<(&str, usize)> {
        let longest = self.pieces.values().copied().max().unwrap_or(1);
        let mut readings: Vec<(&str, usize)> = Vec::new();
        for (prompt, &own) in &self.pieces {
            let last = if batch == 1 { own } else { longest };
            readings.extend((own..=last).map(|pieces| (prompt.as_str(), pieces)));
        }
        readings.sort_unstable();
        readings
    }
}

/// What the encodings of `readings` take on disk, bytes; `one` is that of a prompt of one piece.
pub(super) fn disk_bytes(
    encoders: &TextEncoders,
    one: &Encoding,
    readings: &[(&str, usize)],
) -> u64 {
    let [_, tokens, width] = one.text.dims();
    let pooled = one.pooled.as_ref().map_or(0, |pooled| pooled.dims()[1]);
    let length = encoders.piece_tokens();
    let of = |pieces: usize| {
        let values = (tokens + (pieces - 1) * length) * width + pooled;
        (4 * values as u64 + HEADER).next_multiple_of(BLOCK)
    };
    readings.iter().map(|(_, pieces)| of(*pieces)).sum()
}

/// The prompts of samples whose target is the low-quality picture.
fn descriptions() -> impl Iterator<Item = String> {
    let (first, others) = (DESCRIPTORS[0], &DESCRIPTORS[1..]);
    (0..1_usize << others.len()).map(move |chosen| {
        let said = |(i, word): (usize, &&'static str)| (chosen >> i & 1 == 1).then_some(*word);
        let words = others.iter().enumerate().filter_map(said);
        [first]
            .into_iter()
            .chain(words)
            .collect::<Vec<_>>()
            .join(", ")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_description_begins_alike_and_none_comes_twice() {
        let all: Vec<String> = descriptions().collect();
        assert_eq!(all[0], "low quality");
        assert_eq!(
            all[15],
            "low quality, low resolution, blurry, noisy, compressed"
        );
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 16);
    }

    #[test]
    fn in_a_batch_a_prompt_is_read_in_as_many_pieces_as_the_longest() {
        let pieces = [("a", 1), ("b", 3)].map(|(prompt, pieces)| (prompt.to_owned(), pieces));
        let prompts = Prompts {
            pieces: pieces.into(),
            notes: vec![],
        };
        assert_eq!(prompts.readings(1), [("a", 1), ("b", 3)]);
        assert_eq!(
            prompts.readings(2),
            [("a", 1), ("a", 2), ("a", 3), ("b", 3)]
        );
    }
}
