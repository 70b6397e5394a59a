//! WebDataset shards: tar files in which neighbours of one key, `KEY.jpg`, `KEY.txt`, `KEY.json`, are one sample.
//!
//! A shard is indexed once, by its headers; pictures are then read from where they lie, in any order, by any thread.
//! Source: the WebDataset format; the key ends at the first dot of the file's name, folders belong to it.

use std::{fs::File, io::Read, path::Path};

use pixels::io::is_picture_name;

use super::{
    caption,
    source::{Picture, Place},
};
use crate::Error;

/// The longest caption entry that is read, bytes.
const CAPTION_BYTES: u64 = 1 << 20;

/// Entries of one key.
#[derive(Default)]
struct Group {
    key: String,
    pictures: Vec<Picture>,
    txt: Option<String>,
    json: Option<String>,
}

/// Adds the pictures of the shard `tar` to `found`, in its order.
///
/// # Errors
/// A file that cannot be read, is no tar file or is cut short; a caption that is no text or no JSON.
pub(super) fn index(tar: &Path, found: &mut Vec<Picture>) -> Result<(), Error> {
    let damaged = |why: String| {
        Error::Input(format!(
            "{}: {why}; make or download the shard again",
            tar.display()
        ))
    };
    let unreadable = |why: std::io::Error| damaged(format!("cannot be read as a tar file ({why})"));
    let file = File::open(tar).map_err(|source| Error::io(tar, source))?;
    let length = file
        .metadata()
        .map_err(|source| Error::io(tar, source))?
        .len();
    let mut archive = tar::Archive::new(file);
    let mut group = Group::default();
    for entry in archive.entries_with_seek().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = entry
            .path()
            .map_err(unreadable)?
            .to_string_lossy()
            .into_owned();
        let (at, size) = (entry.raw_file_position(), entry.size());
        if at.checked_add(size).is_none_or(|end| end > length) {
            return Err(damaged(format!("is cut short: {name} ends behind its end")));
        }
        let (key, kind) = split(&name);
        if key != group.key {
            std::mem::take(&mut group).finish(tar, found)?;
            group.key = key.to_owned();
        }
        if is_picture_name(Path::new(&name)) {
            group.pictures.push(Picture {
                name: format!("{}/{name}", tar.display()),
                caption: String::new(),
                place: Place::Shard {
                    tar: tar.to_owned(),
                    at,
                    size,
                },
            });
        } else if kind == "txt" || kind == "json" {
            if size > CAPTION_BYTES {
                return Err(damaged(format!(
                    "{name} has {size} bytes, too many for a caption"
                )));
            }
            let mut text = String::new();
            entry
                .read_to_string(&mut text)
                .map_err(|why| damaged(format!("{name} is no text ({why})")))?;
            let slot = if kind == "txt" {
                &mut group.txt
            } else {
                &mut group.json
            };
            *slot = Some(text);
        }
    }
    group.finish(tar, found)
}

impl Group {
    fn finish(self, tar: &Path, found: &mut Vec<Picture>) -> Result<(), Error> {
        if self.pictures.is_empty() {
            return Ok(());
        }
        let place = tar.join(&self.key).with_extension("json");
        let caption = caption::choose(self.txt, self.json, &place)?;
        found.extend(self.pictures.into_iter().map(|picture| Picture {
            caption: caption.clone(),
            ..picture
        }));
        Ok(())
    }
}

/// Key and what follows it: `a/b.c.txt` is `a/b` and `c.txt`.
fn split(name: &str) -> (&str, &str) {
    let file = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[file..].find('.') {
        Some(dot) => (&name[..file + dot], &name[file + dot + 1..]),
        None => (name, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_ends_at_the_first_dot_of_the_name() {
        for (name, key, kind) in [
            ("a.jpg", "a", "jpg"),
            ("x.y/a.b.txt", "x.y/a", "b.txt"),
            ("x.y/a", "x.y/a", ""),
            ("./000.json", "./000", "json"),
        ] {
            assert_eq!(split(name), (key, kind), "{name}");
        }
    }
}
