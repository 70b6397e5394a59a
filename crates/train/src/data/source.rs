//! Where pictures are: files of a folder, or entries of WebDataset shards, each with its caption.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use pixels::{
    Image,
    io::{Limits, decode, is_picture_name},
};

use super::{caption, shard};
use crate::Error;

/// Where a picture's size nearly always stands.
const HEAD_BYTES: u64 = 1 << 16;

/// One picture and what it is said to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// The file's path, or the shard's with the entry's behind it.
    pub name: String,
    /// The caption; empty where there is none.
    pub caption: String,
    pub(super) place: Place,
}

/// Where a picture's bytes lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    File(PathBuf),
    Shard { tar: PathBuf, at: u64, size: u64 },
}

impl Picture {
    /// The file, where it is one of its own.
    pub fn file(&self) -> Option<&Path> {
        match &self.place {
            Place::File(path) => Some(path),
            Place::Shard { .. } => None,
        }
    }

    /// Its bytes.
    ///
    /// # Errors
    /// A file that cannot be read, or is larger than [`Limits`] allow.
    pub fn bytes(&self) -> Result<Vec<u8>, Error> {
        let size = self.size()?;
        let most = Limits::default().file_bytes;
        if size > most {
            return Err(Error::Picture(pixels::Error::Limits {
                path: PathBuf::from(&self.name),
                problem: format!("has {size} bytes, more than the limit of {most}"),
                advice: "re-save it smaller",
            }));
        }
        self.head(size)
    }

    /// The first `count` of its bytes.
    fn head(&self, count: u64) -> Result<Vec<u8>, Error> {
        let (path, at) = match &self.place {
            Place::File(path) => (path, 0),
            Place::Shard { tar, at, .. } => (tar, *at),
        };
        let io = |source| Error::io(path, source);
        let mut file = File::open(path).map_err(io)?;
        file.seek(SeekFrom::Start(at)).map_err(io)?;
        let mut bytes = vec![0; count as usize];
        file.read_exact(&mut bytes).map_err(io)?;
        Ok(bytes)
    }

    /// Width and height as they are stored, where the file can be read and its header says them.
    pub(super) fn size_px(&self) -> Option<[usize; 2]> {
        let of = |bytes: &[u8]| pixels::io::size(bytes, Path::new(&self.name)).ok();
        let head = self.head(self.size().ok()?.min(HEAD_BYTES)).ok()?;
        // Behind a large profile or preview the header goes on.
        of(&head).or_else(|| of(&self.bytes().ok()?))
    }

    /// How many they are.
    ///
    /// # Errors
    /// A file that is gone.
    pub(super) fn size(&self) -> Result<u64, Error> {
        match &self.place {
            Place::File(path) => match std::fs::metadata(path) {
                Ok(about) => Ok(about.len()),
                Err(source) => Err(Error::io(path, source)),
            },
            Place::Shard { size, .. } => Ok(*size),
        }
    }

    /// The picture itself.
    ///
    /// # Errors
    /// As [`Self::bytes`], and what is no picture.
    pub fn open(&self) -> Result<Image, Error> {
        Ok(decode(
            &self.bytes()?,
            Path::new(&self.name),
            Limits::default(),
        )?)
    }

    /// The name without folders.
    pub(super) fn file_name(&self) -> &[u8] {
        let name = Path::new(&self.name).file_name();
        name.unwrap_or_default().as_encoded_bytes()
    }
}

/// The pictures of `images`: a folder, searched through, with pictures or `.tar` shards in it, or one shard.
/// Files come in the order of their paths, the pictures of a shard in the shard's order.
///
/// # Errors
/// An unreadable folder, shard or caption; compressed shards; nothing there.
pub fn pictures(images: &Path) -> Result<Vec<Picture>, Error> {
    let files = if images.is_file() {
        vec![images.to_owned()]
    } else {
        files_under(images)?
    };
    let mut found = Vec::new();
    for path in files {
        if is_shard_name(&path)? {
            shard::index(&path, &mut found)?;
        } else if is_picture_name(&path) {
            found.push(Picture {
                name: path.display().to_string(),
                caption: caption::beside(&path)?,
                place: Place::File(path),
            });
        }
    }
    if found.is_empty() {
        return Err(Error::Input(format!(
            "{}: holds no pictures; give a folder of photographs or of WebDataset shards (.tar)",
            images.display()
        )));
    }
    Ok(found)
}

fn files_under(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).map_err(|source| Error::io(&folder, source))? {
            let path = entry.map_err(|source| Error::io(&folder, source))?.path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn is_shard_name(path: &Path) -> Result<bool, Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.to_ascii_lowercase();
    if name.ends_with(".tar.gz") || name.ends_with(".tgz") || name.ends_with(".tar.zst") {
        return Err(Error::Input(format!(
            "{}: compressed shards cannot be read at any place; unpack it to a .tar (pictures do not shrink anyway)",
            path.display()
        )));
    }
    Ok(name.ends_with(".tar") && !name.starts_with('.'))
}
