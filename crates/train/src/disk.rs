//! Room on the disk that a run writes to.

use std::path::Path;

use crate::Error;

/// What helps where there is no room for encodings.
pub(crate) const CACHE_LESS: &str =
    "free some, give `out` on another disk, or cache less ([data] cache_text, cache_latents)";

/// Bytes that may still be written where `path` is, or will be; none where the system does not tell (Unix does).
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let there = path.ancestors().find(|path| path.exists())?;
        let about = rustix::fs::statvfs(there).ok()?;
        Some(about.f_bavail.saturating_mul(about.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// Refuses to begin to write `bytes` of encodings, `what`, into `place` where there is no room for them.
///
/// # Errors
/// Too little room.
pub(crate) fn check_room(place: &Path, what: &str, bytes: u64) -> Result<(), Error> {
    enough(place, what, bytes, free_bytes(place), CACHE_LESS)
}

/// Refuses to begin to write `bytes` of `what` into `place` where `free` are fewer, and says what helps.
///
/// # Errors
/// Too little room.
pub(crate) fn enough(
    place: &Path,
    what: &str,
    bytes: u64,
    free: Option<u64>,
    advice: &str,
) -> Result<(), Error> {
    let Some(free) = free.filter(|&free| free < bytes) else {
        return Ok(());
    };
    Err(Error::Input(format!(
        "{}: {what} take {} and the disk has {} left; {advice}",
        place.display(),
        amount(bytes),
        amount(free)
    )))
}

fn amount(bytes: u64) -> String {
    match bytes {
        100_000_000.. => format!("{:.2} GB", bytes as f64 / 1e9),
        _ => format!("{:.2} MB", bytes as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_room_is_refused_before_it_is_begun() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let place = folder.path().join("not/yet/there");
        assert!(check_room(&place, "encoded prompts", 1).is_ok());
        if cfg!(unix) {
            let free = free_bytes(&place).expect("Unix tells");
            assert!(free > 1 << 20, "{free}");
            let why = check_room(&place, "encoded prompts", 1 << 62).expect_err("too much");
            assert!(why.to_string().contains("the disk has"), "{why}");
        }
        let check = |bytes, free| enough(&place, "encoded prompts", bytes, free, CACHE_LESS);
        let why = check(3_000_000_000, Some(2_990_000_000));
        let why = why.expect_err("too much").to_string();
        assert!(why.contains("3.00 GB") && why.contains("2.99 GB"), "{why}");
        assert!(why.ends_with(CACHE_LESS), "{why}");
        let why = check(150_000, Some(149_000)).expect_err("too much");
        let why = why.to_string();
        assert!(why.contains("0.15 MB and the disk has 0.15 MB"), "{why}");
        assert!(check(5, Some(5)).is_ok());
        assert!(check(5, None).is_ok());
    }
}
