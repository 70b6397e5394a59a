//! The quality a JPEG was saved at, from its quantisation table.
//!
//! The quality is the one whose table, by the Independent JPEG Group's rule from Annex K's luma table, is nearest to the
//! file's: `t = (k s + 50) / 100`, `s = 5000 / q` below 50 and `200 - 2 q` from there on. Exact for files of that library
//! and its heirs, near for other programs' own tables.

/// Annex K's luma table in the file's order (zigzag).
const ANNEX_K: [u16; 64] = [
    16, 11, 12, 14, 12, 10, 16, 14, 13, 14, 18, 17, 16, 19, 24, 40, 26, 24, 22, 22, 24, 49, 35, 37,
    29, 40, 58, 51, 61, 60, 57, 51, 56, 55, 64, 72, 92, 78, 64, 68, 87, 69, 55, 56, 80, 109, 81,
    87, 95, 98, 103, 104, 103, 62, 77, 113, 121, 112, 100, 120, 92, 101, 103, 99,
];

/// The quality of the JPEG in `bytes`, 1 to 100; none where that is no JPEG or has no table.
pub fn jpeg_quality(bytes: &[u8]) -> Option<u8> {
    let table = luma_table(bytes)?;
    let distance = |quality: u16| -> u32 {
        let scale = match quality {
            1..50 => 5000 / u32::from(quality),
            _ => 200 - 2 * u32::from(quality),
        };
        let entry = |k: u16| ((u32::from(k) * scale + 50) / 100).clamp(1, 255);
        let pairs = ANNEX_K.iter().zip(&table);
        pairs.map(|(&k, &t)| entry(k).abs_diff(u32::from(t))).sum()
    };
    // The higher of equal ones: do not accuse.
    let best = (1..=100).rev().min_by_key(|&quality| distance(quality))?;
    u8::try_from(best).ok()
}

/// Table 0, in zigzag order.
fn luma_table(bytes: &[u8]) -> Option<[u16; 64]> {
    if !bytes.starts_with(&[0xff, 0xd8]) {
        return None;
    }
    let mut at = 2;
    while let Some(&[0xff, marker, high, low]) = bytes.get(at..at + 4) {
        if marker == 0xff {
            at += 1; // filling before a marker
            continue;
        }
        if marker == 0xda {
            return None; // the scan begins
        }
        let end = at + 2 + usize::from(u16::from_be_bytes([high, low]));
        if marker == 0xdb
            && let Some(table) = bytes.get(at + 4..end).and_then(table_zero)
        {
            return Some(table);
        }
        at = end.max(at + 4);
    }
    None
}

/// Table 0 of a segment, which may have several of 8 or 16 bits.
fn table_zero(mut segment: &[u8]) -> Option<[u16; 64]> {
    while let Some((&about, rest)) = segment.split_first() {
        let size = if about >> 4 == 0 { 1 } else { 2 };
        let values = rest.get(..64 * size)?;
        if about & 15 == 0 {
            let value = |i: usize| match size {
                1 => u16::from(values[i]),
                _ => u16::from_be_bytes([values[2 * i], values[2 * i + 1]]),
            };
            return Some(std::array::from_fn(value));
        }
        segment = &rest[64 * size..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that has only tables: of 16 bits for chroma, then of 8 for luma.
    fn file(luma: &[u8; 64]) -> Vec<u8> {
        let mut bytes = vec![0xff, 0xd8, 0xff, 0xe0, 0, 4, 1, 2, 0xff, 0xdb];
        bytes.extend((2 + 129 + 65_u16).to_be_bytes());
        bytes.push(0x11);
        bytes.extend([0; 128]);
        bytes.push(0x00);
        bytes.extend(luma);
        bytes.extend([0xff, 0xda, 0, 2]);
        bytes
    }

    #[test]
    fn annex_k_is_quality_50_and_ones_are_100() {
        let annex = ANNEX_K.map(|k| k as u8);
        assert_eq!(jpeg_quality(&file(&annex)), Some(50));
        assert_eq!(jpeg_quality(&file(&[1; 64])), Some(100));
        assert_eq!(jpeg_quality(&file(&annex.map(|k| k.div_ceil(2)))), Some(75));
    }

    #[test]
    fn damaged_files_have_no_quality_and_do_no_harm() {
        let whole = file(&[3; 64]);
        for end in 0..whole.len() {
            jpeg_quality(&whole[..end]);
        }
        assert_eq!(jpeg_quality(&whole[..30]), None);
        assert_eq!(jpeg_quality(b"\x89PNG"), None);
        assert_eq!(jpeg_quality(&[0xff, 0xd8, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
