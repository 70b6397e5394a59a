//! A run's folder: one run at a time writes there, and its log goes on where its checkpoint does.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::Write,
    path::{Path, PathBuf},
};

use priors::weights::write_atomically;
use serde::Serialize;
use serde_json::Value;

use crate::{Error, run::Event};

/// Held by the run that writes; the system lets go of it however that ends.
const LOCK: &str = ".lock";

/// The log's name.
pub(crate) const LOG: &str = "log.jsonl";

/// A run's folder, open for this run alone.
pub(crate) struct OutFolder {
    path: PathBuf,
    log: File,
    _lock: File,
}

impl OutFolder {
    /// Opens `path` for a run that goes on after `step`: lines of the log that belong to later steps, and files that
    /// a killed run left half written, are removed.
    ///
    /// # Errors
    /// A folder that cannot be written to, or that another run writes to.
    pub(crate) fn open(path: &Path, step: usize) -> Result<Self, Error> {
        std::fs::create_dir_all(path).map_err(|source| Error::io(path, source))?;
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|source| Error::io(&lock_path, source))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Input(format!(
                    "{}: another run is writing there; wait for it, or give another `out`",
                    path.display()
                )));
            }
            // A file system without locks still holds one run.
            Err(TryLockError::Error(why)) if why.kind() == std::io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(source)) => return Err(Error::io(lock_path, source)),
        }
        remove_half_written(path)?;
        let log_path = path.join(LOG);
        trim(&log_path, step)?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log_path)
            .map_err(|source| Error::io(&log_path, source))?;
        Ok(Self {
            path: path.to_owned(),
            log,
            _lock: lock,
        })
    }

    /// Adds a line to the log.
    ///
    /// # Errors
    /// A full disk.
    pub(crate) fn log(
        &mut self,
        line: &impl Serialize,
        watch: &mut dyn FnMut(Event),
    ) -> Result<(), Error> {
        let line = serde_json::to_string(line).expect("plain JSON");
        // One write: a killed run leaves a whole line or the beginning of one.
        self.log
            .write_all(format!("{line}\n").as_bytes())
            .map_err(|source| Error::io(self.path.join(LOG), source))?;
        watch(Event::Logged(line));
        Ok(())
    }

    /// Writes a file whole or not at all.
    ///
    /// # Errors
    /// A full disk.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<(), Error> {
        Ok(write_atomically(&self.path.join(name), text.as_bytes())?)
    }
}

/// Keeps the log's lines up to `step`.
fn trim(path: &Path, step: usize) -> Result<(), Error> {
    let text = match std::fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::io(path, source)),
    };
    let belongs = |line: &&str| {
        let line: Option<Value> = serde_json::from_str(line).ok();
        let at = line.and_then(|line| line.get("step")?.as_u64());
        at.is_some_and(|at| at <= step as u64)
    };
    let kept: String = text
        .lines()
        .filter(belongs)
        .map(|line| format!("{line}\n"))
        .collect();
    if kept != text {
        write_atomically(path, kept.as_bytes())?;
    }
    Ok(())
}

/// Removes the temporary files (`.tmp` and six letters or digits, as `tempfile` names them) below `folder`.
fn remove_half_written(folder: &Path) -> Result<(), Error> {
    for entry in walk(folder)? {
        let name = entry.file_name().unwrap_or_default().to_string_lossy();
        let temporary = name
            .strip_prefix(".tmp")
            .is_some_and(|rest| rest.len() == 6 && rest.bytes().all(|b| b.is_ascii_alphanumeric()));
        if temporary {
            std::fs::remove_file(&entry).map_err(|source| Error::io(&entry, source))?;
        }
    }
    Ok(())
}

/// The files of a run's folder and of the folders in it; not further, and not through links.
fn walk(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(at) = open.pop() {
        for entry in std::fs::read_dir(&at).map_err(|source| Error::io(&at, source))? {
            let entry = entry.map_err(|source| Error::io(&at, source))?;
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_log_has_each_step_once_and_no_torn_line() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = folder.path().join(LOG);
        let lines = "{\"step\":1}\n{\"step\":2,\"validation_psnr\":3.0}\n{\"step\":3}\n{\"st";
        std::fs::write(&log, lines).expect("writes");
        std::fs::write(folder.path().join(".tmpAb3xyZ"), "half").expect("writes");
        std::fs::write(folder.path().join(".tmpl"), "mine").expect("writes");
        let mut seen = vec![];
        let mut out = OutFolder::open(folder.path(), 2).expect("opens");
        out.log(&serde_json::json!({"step": 3}), &mut |event| {
            seen.push(event)
        })
        .expect("logs");
        let text = std::fs::read_to_string(&log).expect("reads");
        assert_eq!(
            text,
            "{\"step\":1}\n{\"step\":2,\"validation_psnr\":3.0}\n{\"step\":3}\n"
        );
        assert!(matches!(&seen[..], [Event::Logged(line)] if line == "{\"step\":3}"));
        assert!(!folder.path().join(".tmpAb3xyZ").exists());
        assert!(folder.path().join(".tmpl").exists());
        let second = OutFolder::open(folder.path(), 2).err().expect("refused");
        assert!(second.to_string().contains("another run"), "{second}");
        drop(out);
        assert!(OutFolder::open(folder.path(), 2).is_ok());
    }
}
