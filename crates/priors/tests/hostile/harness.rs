//! What files that want to do harm are held to: an error of one line each, no panic and no large allocation. The crates whose files
//! they are share it.

use std::{
    fmt::Display,
    path::{Path, PathBuf},
};

use peak_alloc::PeakAlloc;

#[global_allocator]
static PEAK: PeakAlloc = PeakAlloc;

/// More than any of these may take.
const LARGE: usize = 16 << 20;

/// What the folder of this name holds, which is so much.
pub(crate) fn all_in(folder: &str, count: usize) -> Vec<PathBuf> {
    let place = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/hostile")
        .join(folder);
    let entries = std::fs::read_dir(place).expect("the folder");
    let mut all: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    all.sort();
    assert_eq!(
        all.len(),
        count,
        "files that are not in the repository test nothing"
    );
    all
}

/// A file's name.
pub(crate) fn name_of(path: &Path) -> String {
    let name = path.file_name().expect("a name");
    name.to_string_lossy().into_owned()
}

/// What `f` gives, which costs little memory.
pub(crate) fn cheap<T>(name: &str, f: impl FnOnce() -> T) -> T {
    let before = PEAK.current_usage();
    PEAK.reset_peak_usage();
    let value = f();
    let took = PEAK.peak_usage().saturating_sub(before);
    assert!(took < LARGE, "{name} took {took} bytes");
    value
}

/// The error of `what`, which names the file in one line and cost little memory. One test at a time: the allocator is shared.
pub(crate) fn refused<T, E: Display>(
    path: &Path,
    what: impl FnOnce(&Path) -> Result<T, E>,
) -> String {
    let name = name_of(path);
    let why = match cheap(&name, || what(path)) {
        Ok(_) => panic!("{name} was not refused"),
        Err(why) => why.to_string(),
    };
    let one_line = !why.chars().any(char::is_control);
    assert!(
        why.contains(&name) && one_line && why.len() < 1200,
        "{name}: {why}"
    );
    why
}
