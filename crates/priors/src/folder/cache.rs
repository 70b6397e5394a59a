//! Hugging Face's cache: a repository's id and revision, and where it and its snapshots are on disk.
//!
//! The layout is huggingface_hub's: `models--OWNER--NAME/{blobs, refs, snapshots}` under `HF_HUB_CACHE`, else
//! `HUGGINGFACE_HUB_CACHE`, else `HF_HOME/hub`, else `huggingface/hub` under `XDG_CACHE_HOME` or `~/.cache`. A snapshot is a folder named by its commit, a ref a file that holds a commit.

use std::path::{Path, PathBuf};

use super::{ENCODER_FILE, Folder, NETWORK_FILE, shards};

/// The revision where none is given.
const MAIN: &str = "main";

/// A model's repository on the hub: `owner/name`, or `owner/name@revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    owner: String,
    name: String,
    revision: Option<String>,
}

impl Repository {
    /// Reads `owner/name` or `owner/name@revision`; none where it is anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (text, None),
        };
        let (owner, name) = id.split_once('/')?;
        let whole = revision.is_none_or(|revision| revision.split('/').all(is_plain));
        (is_plain(owner) && is_plain(name) && whole).then(|| Self {
            owner: owner.to_owned(),
            name: name.to_owned(),
            revision: revision.map(str::to_owned),
        })
    }

    /// `owner/name`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// The branch, tag or commit; `main` where none was given.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }

    /// Whether a revision was given.
    pub fn names_revision(&self) -> bool {
        self.revision.is_some()
    }

    /// The repository's folder in the cache, whether it is there or not; none where the environment names no home.
    pub fn folder(&self) -> Option<PathBuf> {
        let name = format!("models--{}--{}", self.owner, self.name);
        Some(hub_cache()?.join(name))
    }

    /// The snapshot of the revision, when it is in the cache.
    pub fn snapshot(&self) -> Option<PathBuf> {
        snapshot_of(&self.folder()?, self.revision())
    }
}

impl std::fmt::Display for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.id())?;
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

/// Whether `part` can be a part of a path that stays where it is put.
fn is_plain(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
}

/// The hub's cache, from the environment.
pub fn hub_cache() -> Option<PathBuf> {
    hub_cache_of(&|name| {
        let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
        Some(PathBuf::from(value))
    })
}

/// As huggingface_hub's `constants.py` finds it.
fn hub_cache_of(env: &dyn Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let home = || env("HOME").or_else(|| env("USERPROFILE"));
    let expanded = |path: PathBuf| match path.strip_prefix("~") {
        Ok(rest) => home().map_or(path.clone(), |home| home.join(rest)),
        Err(_) => path,
    };
    let caches = || {
        let own = || home().map(|home| home.join(".cache"));
        env("XDG_CACHE_HOME").or_else(own)
    };
    let hugging_face = || env("HF_HOME").or_else(|| Some(caches()?.join("huggingface")));
    env("HF_HUB_CACHE")
        .or_else(|| env("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(hugging_face()?.join("hub")))
        .map(expanded)
}

/// The snapshot in the `repository`'s folder that `revision`, a ref or a commit, names.
pub(super) fn snapshot_of(repository: &Path, revision: &str) -> Option<PathBuf> {
    let snapshots = repository.join("snapshots");
    let commit = std::fs::read_to_string(repository.join("refs").join(revision));
    let commit = commit.as_deref().unwrap_or(revision).trim();
    let folder = snapshots.join(commit);
    (is_plain(commit) && folder.is_dir()).then_some(folder)
}

/// Parts of a prior: the sub-folder and the files that must be in it.
const PARTS: [(&str, &[&str]); 10] = [
    ("unet", &["config.json", NETWORK_FILE]),
    ("transformer", &["config.json", NETWORK_FILE]),
    ("vae", &["config.json", NETWORK_FILE]),
    ("text_encoder", &["config.json", ENCODER_FILE]),
    ("text_encoder_2", &["config.json", ENCODER_FILE]),
    ("text_encoder_3", &["config.json", ENCODER_FILE]),
    ("tokenizer", &["tokenizer_config.json"]),
    ("tokenizer_2", &["tokenizer_config.json"]),
    ("tokenizer_3", &["tokenizer_config.json"]),
    ("scheduler", &["scheduler_config.json"]),
];

impl Folder {
    /// The first file that a folder on disk lacks of the parts that its `model_index.json` names; a download that was broken
    /// off leaves such folders. None where the folder is whole, or says nothing about its parts.
    pub fn lacks(&self) -> Option<String> {
        let Self::Disk(folder) = self else {
            return None;
        };
        let index = self.json("model_index.json").ok()?;
        let named = |part: &str| match &index[part] {
            serde_json::Value::Array(class) => class.iter().any(|word| !word.is_null()),
            _ => false,
        };
        let files = PARTS
            .iter()
            .filter(|(part, _)| named(part))
            .flat_map(|(part, files)| files.iter().map(move |file| format!("{part}/{file}")));
        files
            .into_iter()
            .find(|file| match shards::find(folder, file) {
                _ if !shards::is_weights(file) => !self.has(file),
                Some(found) => !shards::are_there(&found),
                None => true,
            })
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{Repository, hub_cache_of};

    #[test]
    fn the_cache_is_where_huggingface_hub_has_it() {
        let found = |set: &[(&str, &str)]| {
            hub_cache_of(&|name| {
                let mut set = set.iter();
                let (_, value) = set.find(|(key, _)| *key == name)?;
                Some(PathBuf::from(value))
            })
        };
        let all = [
            ("HF_HUB_CACHE", "/a"),
            ("HUGGINGFACE_HUB_CACHE", "/b"),
            ("HF_HOME", "/c"),
            ("XDG_CACHE_HOME", "/d"),
            ("HOME", "/e"),
        ];
        let wanted = [
            "/a",
            "/b",
            "/c/hub",
            "/d/huggingface/hub",
            "/e/.cache/huggingface/hub",
        ];
        for (i, wanted) in wanted.iter().enumerate() {
            assert_eq!(found(&all[i..]).as_deref(), Some(Path::new(wanted)));
        }
        assert_eq!(found(&[]), None);
        let home = found(&[("HF_HOME", "~/models"), ("HOME", "/e")]);
        assert_eq!(home.as_deref(), Some(Path::new("/e/models/hub")));
    }

    #[test]
    fn an_id_may_name_a_revision_and_never_leaves_the_cache() {
        let parse = |text: &str| {
            let repository = Repository::parse(text)?;
            Some((repository.id(), repository.revision().to_owned()))
        };
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(
            parse("some-one/a_model.v1"),
            pair("some-one/a_model.v1", "main")
        );
        assert_eq!(parse("some/model@abc123"), pair("some/model", "abc123"));
        assert_eq!(
            parse("some/model@refs/pr/4"),
            pair("some/model", "refs/pr/4")
        );
        for other in [
            "model", "a/b/c", "/a/b", "../b", "a/..", "./b", "a/", "a b/c", "a/b@", "a/b@../c",
            "a/b@c//d", "C:\\a/b",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
