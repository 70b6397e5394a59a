//! Fetching files into the cache's layout: blobs by hash, a snapshot of links to them, and the ref when all is there.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{Error, Hub, Listing, RemoteFile};

/// A broken connection is taken up again this often for a file, as long as every time brings something.
const RETRIES: usize = 5;

impl Hub {
    /// Fetches what is missing of `listing` and returns the snapshot's folder. `watch` gets bytes done and the file at hand.
    ///
    /// # Errors
    /// No network, a file that is not what the listing says, no room, or another process that does the same.
    pub fn download(
        &self,
        listing: &Listing,
        watch: &mut dyn FnMut(u64, &str),
    ) -> Result<PathBuf, Error> {
        let folder = listing.repository.folder().ok_or_else(|| {
            Error::Input(
                "no home folder is known; set HF_HOME to where models may be kept".to_owned(),
            )
        })?;
        let snapshot = folder.join("snapshots").join(&listing.commit);
        let blobs = folder.join("blobs");
        std::fs::create_dir_all(&blobs).map_err(io(&blobs))?;
        let _lock = lock(&folder.join("reclair.lock"))?;
        let mut done = 0;
        for file in &listing.files {
            watch(done, &file.path);
            let blob = blobs.join(&file.hash);
            let link = snapshot.join(&file.path);
            if !link.is_file() {
                if !blob.is_file() {
                    self.fetch(listing, file, &blob, &mut |bytes| {
                        watch(done + bytes, &file.path)
                    })?;
                }
                place(&blob, &link).map_err(io(&link))?;
            }
            done += file.size.unwrap_or(0);
        }
        watch(done, "");
        // A commit needs no ref.
        if listing.repository.revision() != listing.commit {
            let at = folder.join("refs").join(listing.repository.revision());
            write_ref(&at, &listing.commit).map_err(io(&at))?;
        }
        Ok(snapshot)
    }

    /// Fetches one file: beside its place, from where an earlier attempt stopped, checked, renamed.
    fn fetch(
        &self,
        listing: &Listing,
        file: &RemoteFile,
        blob: &Path,
        watch: &mut dyn FnMut(u64),
    ) -> Result<(), Error> {
        let part = blob.with_extension("incomplete");
        let mut last = None;
        for _ in 0..=RETRIES {
            let had = length(&part);
            match self.fetch_on(listing, file, &part, watch) {
                Ok(()) => {
                    std::fs::rename(&part, blob).map_err(io(blob))?;
                    return Ok(());
                }
                Err(why @ Error::Unreachable { .. }) if length(&part) > had => last = Some(why),
                Err(why) => return Err(why),
            }
        }
        Err(last.unwrap_or_else(|| damaged(listing, file)))
    }

    fn fetch_on(
        &self,
        listing: &Listing,
        file: &RemoteFile,
        part: &Path,
        watch: &mut dyn FnMut(u64),
    ) -> Result<(), Error> {
        let mut at = length(part);
        if file.size.is_some_and(|size| at > size) {
            at = 0;
        }
        if file.size != Some(at) || at == 0 {
            let repository = &listing.repository;
            let url = format!(
                "{}/{}/resolve/{}/{}",
                self.endpoint,
                repository.id(),
                listing.commit,
                file.path
            );
            let mut response = self.get(&url, at)?;
            if response.status() == 416 {
                // It does not go on from there.
                at = 0;
                response = self.get(&url, 0)?;
            }
            self.accept(repository, &response, &file.path)?;
            if response.status() != 206 {
                at = 0;
            }
            let mut out = OpenOptions::new()
                .create(true)
                .write(true)
                .truncate(false)
                .open(part)
                .map_err(io(part))?;
            out.set_len(at).map_err(io(part))?;
            std::io::Seek::seek(&mut out, std::io::SeekFrom::End(0)).map_err(io(part))?;
            let mut body = response.into_body().into_reader();
            let mut buffer = vec![0; 1 << 17];
            loop {
                let n = body.read(&mut buffer).map_err(|why| Error::Unreachable {
                    url: url.clone(),
                    why: why.to_string(),
                })?;
                if n == 0 {
                    break;
                }
                out.write_all(&buffer[..n]).map_err(io(part))?;
                at += n as u64;
                if file.size.is_some_and(|size| at > size) {
                    break;
                }
                watch(at);
            }
            if file.size.is_some_and(|size| at < size) {
                return Err(Error::Unreachable {
                    url,
                    why: format!("ended after {at} bytes"),
                });
            }
        }
        let right = file.size.is_none_or(|size| at == size)
            && hash_fits(part, &file.hash).map_err(io(part))?;
        if !right {
            std::fs::remove_file(part).map_err(io(part))?;
            return Err(damaged(listing, file));
        }
        Ok(())
    }
}

fn damaged(listing: &Listing, file: &RemoteFile) -> Error {
    Error::Refused {
        repository: listing.repository.to_string(),
        what: format!(
            "{} did not arrive as the hub's listing says; give the command again",
            file.path
        ),
    }
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Io {
        path: path.to_owned(),
        source,
    }
}

fn length(path: &Path) -> u64 {
    path.metadata().map_or(0, |data| data.len())
}

/// Whether the file's SHA-256 is `hash`; git's hashes of small files are not looked at.
fn hash_fits(path: &Path, hash: &str) -> std::io::Result<bool> {
    if hash.len() != 64 {
        return Ok(true);
    }
    let mut file = File::open(path)?;
    let mut sha = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        sha.update(&buffer[..n]);
    }
    let hex: String = sha
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(hex == hash)
}

/// One download of a repository at a time.
fn lock(path: &Path) -> Result<File, Error> {
    let file = File::create(path).map_err(io(path))?;
    match file.try_lock() {
        // Where the file system knows no locks there are none.
        Ok(()) | Err(std::fs::TryLockError::Error(_)) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::Input(format!(
            "{} is held by another download of this model; wait for it",
            path.display()
        ))),
    }
}

/// Makes `link` a relative link to `blob`, or the file itself where there are no links.
fn place(blob: &Path, link: &Path) -> std::io::Result<()> {
    if let Some(folder) = link.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // A link whose blob is gone.
    if link.symlink_metadata().is_ok() {
        std::fs::remove_file(link)?;
    }
    symlink(blob, link).or_else(|_| std::fs::rename(blob, link))
}

#[cfg(unix)]
fn symlink(blob: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(relative(blob, link), link)
}

#[cfg(windows)]
fn symlink(blob: &Path, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(relative(blob, link), link)
}

/// The path of `blob` as seen from the folder of `link`; both are in one repository's folder.
fn relative(blob: &Path, link: &Path) -> PathBuf {
    let (from, to) = (link.parent().unwrap_or(link), blob);
    let shared = from
        .components()
        .zip(to.components())
        .take_while(|(a, b)| a == b)
        .count();
    let up = from
        .components()
        .skip(shared)
        .map(|_| std::path::Component::ParentDir);
    up.chain(to.components().skip(shared)).collect()
}

fn write_ref(at: &Path, commit: &str) -> std::io::Result<()> {
    if let Some(folder) = at.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let part = at.with_extension("part");
    std::fs::write(&part, commit)?;
    std::fs::rename(&part, at)
}
