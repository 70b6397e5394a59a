//! Files mapped into memory, shared without a copy.

use std::{fs::File, io, path::Path};

use bytes::Bytes;

/// Maps the file at `path` read-only. Slices of the result share the mapping and keep it alive.
///
/// # Errors
/// What the operating system says when the file cannot be opened or mapped.
#[expect(unsafe_code, reason = "mapping a file is unsafe by nature; see SAFETY")]
pub fn map_file(path: &Path) -> io::Result<Bytes> {
    let file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the mapping is private and read-only. Another process that truncates the file while we
    // read it would end ours with SIGBUS; weights are written once and renamed into place.
    let map = unsafe { memmap2::MmapOptions::new().map_copy_read_only(&file)? };
    Ok(Bytes::from_owner(map))
}
