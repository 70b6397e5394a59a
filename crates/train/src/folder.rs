//! A run's folder: one run at a time writes there, and its log goes on where its checkpoint does.

use std::{
    collections::BTreeSet,
    fs::{File, FileType, OpenOptions, TryLockError},
    io::Write,
    path::{Path, PathBuf},
};

use priors::weights::{is_temporary, write_atomically};
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
    /// Those that the log has.
    notes: BTreeSet<String>,
    _lock: File,
}

impl OutFolder {
    /// Opens `path` for a run that goes on after `step`: lines of the log that belong to later steps, and files that
    /// a killed run of this folder left half written, are removed.
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
        let notes = trim(&log_path, step)?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log_path)
            .map_err(|source| Error::io(&log_path, source))?;
        Ok(Self {
            path: path.to_owned(),
            log,
            notes,
            _lock: lock,
        })
    }

    /// Says something to know about the run, and adds it to the log unless it is there from before.
    ///
    /// # Errors
    /// A full disk.
    pub(crate) fn note(
        &mut self,
        step: usize,
        note: String,
        watch: &mut dyn FnMut(Event),
    ) -> Result<(), Error> {
        watch(Event::Note(note.clone()));
        self.keep(step, note, watch)
    }

    /// Adds something that was said already to the log, unless it is there from before.
    ///
    /// # Errors
    /// A full disk.
    pub(crate) fn keep(
        &mut self,
        step: usize,
        note: String,
        watch: &mut dyn FnMut(Event),
    ) -> Result<(), Error> {
        if self.notes.contains(&note) {
            return Ok(());
        }
        self.log(&serde_json::json!({ "step": step, "note": note }), watch)?;
        self.notes.insert(note);
        Ok(())
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

/// Keeps the log's lines up to `step`; returns the notes among them.
fn trim(path: &Path, step: usize) -> Result<BTreeSet<String>, Error> {
    let text = match std::fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(source) => return Err(Error::io(path, source)),
    };
    let (mut kept, mut notes) = (String::new(), BTreeSet::new());
    for line in text.lines() {
        let Ok(Value::Object(about)) = serde_json::from_str(line) else {
            continue;
        };
        let at = about.get("step").and_then(Value::as_u64);
        if at.is_some_and(|at| at <= step as u64) {
            kept += line;
            kept.push('\n');
            let note = about.get("note").and_then(Value::as_str);
            notes.extend(note.map(str::to_owned));
        }
    }
    if kept != text {
        write_atomically(path, kept.as_bytes())?;
    }
    Ok(notes)
}

/// Where below its folder a run writes through temporary files, with the folders in `latents`, `prior` and `adapter`.
const PLACES: [&str; 5] = ["", "text", "latents", "prior", "adapter"];

/// Removes the temporary files that a killed run left where it writes. Other folders in `folder` are not its business, nor are
/// files with other names.
fn remove_half_written(folder: &Path) -> Result<(), Error> {
    for place in PLACES {
        let place_path = folder.join(place);
        remove_temporary(&place_path)?;
        if ["latents", "prior", "adapter"].contains(&place) {
            for part in folders(&place_path)? {
                remove_temporary(&part)?;
            }
        }
    }
    Ok(())
}

fn remove_temporary(folder: &Path) -> Result<(), Error> {
    for path in entries(folder, |kind| kind.is_file())? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if is_temporary(&name) {
            std::fs::remove_file(&path).map_err(|source| Error::io(&path, source))?;
        }
    }
    Ok(())
}

fn folders(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    entries(folder, |kind| kind.is_dir())
}

/// What in `folder` is of a kind, links aside; nothing where there is no such folder.
fn entries(folder: &Path, of: impl Fn(&FileType) -> bool) -> Result<Vec<PathBuf>, Error> {
    let listed = match std::fs::read_dir(folder) {
        Ok(listed) => listed,
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(source) => return Err(Error::io(folder, source)),
    };
    let mut found = Vec::new();
    for entry in listed {
        let entry = entry.map_err(|source| Error::io(folder, source))?;
        if entry.file_type().is_ok_and(|kind| of(&kind)) {
            found.push(entry.path());
        }
    }
    Ok(found)
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
        let second = OutFolder::open(folder.path(), 2).err().expect("refused");
        assert!(second.to_string().contains("another run"), "{second}");
        drop(out);
        assert!(OutFolder::open(folder.path(), 2).is_ok());
    }

    #[test]
    fn only_what_the_run_itself_left_half_written_is_removed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let temporary = ".reclair-Ab3xyZ.part";
        let file = |name: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("makes it");
            std::fs::write(&path, "half").expect("writes");
            path
        };
        let places = [
            "",
            "text",
            "latents/0123456789abcdef",
            "prior",
            "prior/unet",
            "adapter",
            "adapter/restoration_adapter",
        ];
        let own = places.map(|place| file(format!("{place}/{temporary}").trim_start_matches('/')));
        let others = [
            "pictures/.reclair-Ab3xyZ.part",
            "prior/unet/deeper/.reclair-Ab3xyZ.part",
            ".tmpAb3xyZ",
            "text/.tmpAb3xyZ",
            ".reclair-Ab3.part",
            ".reclair-Ab3xyZ.part.png",
            "reclair-Ab3xyZ.part",
        ]
        .map(file);
        OutFolder::open(folder.path(), 0).expect("opens");
        assert!(own.iter().all(|path| !path.exists()));
        assert!(others.iter().all(|path| path.exists()));
    }

    #[test]
    fn a_note_is_said_each_time_and_kept_once() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut said = 0;
        let mut watch = |event| said += usize::from(matches!(event, Event::Note(_)));
        for step in [0, 5] {
            let mut out = OutFolder::open(folder.path(), step).expect("opens");
            out.note(step, "small".into(), &mut watch).expect("notes");
        }
        let mut out = OutFolder::open(folder.path(), 5).expect("opens");
        out.note(5, "other".into(), &mut watch).expect("notes");
        assert_eq!(said, 3);
        let text = std::fs::read_to_string(folder.path().join(LOG)).expect("reads");
        assert_eq!(
            text,
            "{\"step\":0,\"note\":\"small\"}\n{\"step\":5,\"note\":\"other\"}\n"
        );
    }
}
