//! Room on the disk that a run writes to.

use std::path::Path;

use crate::Error;

/// Bytes that may still be written where `path` is, or will be; none where the system does not tell (Unix does).
fn free_bytes(path: &Path) -> Option<u64> {
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

/// Refuses to begin to write `bytes` of `what` into `place` where there is no room for them.
///
/// # Errors
/// Too little room.
pub(crate) fn check_room(place: &Path, what: &str, bytes: u64) -> Result<(), Error> {
    enough(place, what, bytes, free_bytes(place))
}

fn enough(place: &Path, what: &str, bytes: u64, free: Option<u64>) -> Result<(), Error> {
    let Some(free) = free.filter(|&free| free < bytes) else {
        return Ok(());
    };
    let gb = |bytes: u64| bytes as f64 / 1e9;
    Err(Error::Input(format!(
        "{}: {what} take {:.2} GB and the disk has {:.2} GB left; free some, give `out` on another disk, or cache less ([data] cache_text, cache_latents)",
        place.display(),
        gb(bytes),
        gb(free)
    )))
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
        let why = enough(
            &place,
            "encoded prompts",
            3_000_000_000,
            Some(2_990_000_000),
        );
        let why = why.expect_err("too much").to_string();
        assert!(why.contains("3.00 GB") && why.contains("2.99 GB"), "{why}");
        assert!(enough(&place, "encoded prompts", 5, Some(5)).is_ok());
        assert!(enough(&place, "encoded prompts", 5, None).is_ok());
    }
}
