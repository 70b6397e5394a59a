//! What a repository holds, which of it a prior needs, and its licence.

use priors::{
    folder::{ENCODER_FILE, NETWORK_FILE, Repository},
    weights::PICKLE,
};
use serde_json::Value;

use super::{Error, Hub};

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its path in the repository.
    pub path: String,
    /// Bytes, where the hub says.
    pub size: Option<u64>,
    /// SHA-256 of its contents, 64 hexadecimal digits, or for small files git's hash of the blob, 40 of them: the name of its blob
    /// in the cache.
    pub hash: String,
}

/// Under what terms a repository may be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Licence {
    /// What the model's card says, `openrail++` for example; none where it says nothing.
    pub name: Option<String>,
    /// Where it can be read.
    pub link: Option<String>,
    /// The text of the repository's licence file.
    pub text: Option<String>,
}

/// A repository at one commit, and the files of it that a prior needs.
#[derive(Clone, Debug)]
pub struct Listing {
    /// The repository.
    pub repository: Repository,
    /// The commit that its revision names.
    pub commit: String,
    /// The files to fetch.
    pub files: Vec<RemoteFile>,
    /// Its licence.
    pub licence: Licence,
}

impl Listing {
    /// Bytes of all files, as far as the hub says.
    pub fn bytes(&self) -> u64 {
        self.files.iter().filter_map(|file| file.size).sum()
    }
}

impl Hub {
    /// Asks what `repository` holds, and reads its licence.
    ///
    /// # Errors
    /// No network, no such repository or revision, or one that holds no prior.
    pub fn listing(&self, repository: &Repository) -> Result<Listing, Error> {
        // A branch's slash is a part of its name.
        let revision = repository.revision().replace('/', "%2F");
        let url = format!(
            "{}/api/models/{}/revision/{revision}?blobs=true",
            self.endpoint,
            repository.id()
        );
        let answer = self.small(repository, &url, "such model")?;
        let strange = |what: &str| Error::Refused {
            repository: repository.to_string(),
            what: format!("the hub's answer {what}; check HF_ENDPOINT"),
        };
        let answer: Value = serde_json::from_slice(&answer).map_err(|_| strange("is no JSON"))?;
        let commit = answer["sha"]
            .as_str()
            .filter(|commit| is_hash(commit, &[40, 64]));
        let commit = commit.ok_or_else(|| strange("names no commit"))?.to_owned();
        let siblings = answer["siblings"]
            .as_array()
            .ok_or_else(|| strange("lists no files"))?;
        let all: Vec<RemoteFile> = siblings.iter().filter_map(remote_file).collect();
        let files = needed(&all).map_err(|what| Error::Unsupported {
            repository: repository.to_string(),
            what,
        })?;
        let mut licence = stated(&answer);
        if let Some(file) = files.iter().find(|file| is_licence(&file.path)) {
            let url = format!(
                "{}/{}/resolve/{commit}/{}",
                self.endpoint,
                repository.id(),
                file.path
            );
            let text = self.small(repository, &url, "licence file")?;
            licence.text = Some(printable(&String::from_utf8_lossy(&text)));
            licence.link.get_or_insert(url);
        }
        Ok(Listing {
            repository: repository.clone(),
            commit,
            files,
            licence,
        })
    }
}

/// Whether this is a hash of one of these lengths, and so a safe file name.
fn is_hash(text: &str, lengths: &[usize]) -> bool {
    lengths.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A listed file, unless its path or hash could lead elsewhere.
fn remote_file(entry: &Value) -> Option<RemoteFile> {
    let path = entry["rfilename"].as_str()?;
    let plain = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
    };
    let large = &entry["lfs"];
    let hash = large["sha256"]
        .as_str()
        .or(large["oid"].as_str())
        .or(entry["blobId"].as_str())?;
    let length = if large.is_object() { 64 } else { 40 };
    (path.split('/').all(plain) && is_hash(hash, &[length])).then(|| RemoteFile {
        path: path.to_owned(),
        size: large["size"].as_u64().or(entry["size"].as_u64()),
        hash: hash.to_lowercase(),
    })
}

/// What the model's card says.
fn stated(answer: &Value) -> Licence {
    let card = &answer["cardData"];
    let text = |key: &str| card[key].as_str().map(printable);
    let tag = || {
        let tags = answer["tags"].as_array()?.iter().filter_map(Value::as_str);
        tags.filter_map(|tag| tag.strip_prefix("license:"))
            .map(printable)
            .next()
    };
    let name = match (text("license"), text("license_name")) {
        (Some(kind), Some(name)) if kind == "other" => Some(name),
        (kind, name) => kind.or(name),
    };
    Licence {
        name: name.or_else(tag),
        link: text("license_link"),
        text: None,
    }
}

/// The text without what a terminal would obey.
fn printable(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control() || "\n\t".contains(*c))
        .collect()
}

fn is_licence(path: &str) -> bool {
    let lower = path.to_lowercase();
    let stem = lower
        .strip_suffix(".md")
        .or(lower.strip_suffix(".txt"))
        .unwrap_or(&lower);
    ["license", "licence", "copying"].contains(&stem)
}

/// The files a prior needs: of a repository in diffusers' layout the parts' configurations, tokenizers and weights, in 16 bits where
/// there is a choice; else its only safetensors file.
fn needed(all: &[RemoteFile]) -> Result<Vec<RemoteFile>, String> {
    let mut files: Vec<&RemoteFile> = all.iter().filter(|file| is_licence(&file.path)).collect();
    let Some(index) = all.iter().find(|file| file.path == "model_index.json") else {
        let root =
            |file: &&RemoteFile| file.path.ends_with(".safetensors") && !file.path.contains('/');
        let whole: Vec<&RemoteFile> = all.iter().filter(root).collect();
        match whole[..] {
            [one] => files.push(one),
            [] if all.iter().any(|file| is_pickle(&file.path)) => return Err(PICKLE.to_owned()),
            [] => return Err("holds no prior in diffusers' layout and no safetensors file; give SDXL's or SD3's repository".to_owned()),
            _ => {
                let names: Vec<&str> = whole.iter().map(|file| file.path.as_str()).collect();
                return Err(format!(
                    "holds several checkpoints ({}); download one of them yourself and give its path",
                    names.join(", ")
                ));
            }
        }
        return Ok(files.into_iter().cloned().collect());
    };
    files.push(index);
    for (part, stem) in [
        ("unet", NETWORK_FILE),
        ("transformer", NETWORK_FILE),
        ("vae", NETWORK_FILE),
        ("text_encoder", ENCODER_FILE),
        ("text_encoder_2", ENCODER_FILE),
        ("text_encoder_3", ENCODER_FILE),
        ("tokenizer", ""),
        ("tokenizer_2", ""),
        ("tokenizer_3", ""),
        ("scheduler", ""),
    ] {
        let mut inside = Vec::new();
        for file in all {
            let name = file
                .path
                .strip_prefix(part)
                .and_then(|rest| rest.strip_prefix('/'));
            inside.extend(
                name.filter(|name| !name.contains('/'))
                    .map(|name| (name, file)),
            );
        }
        if inside.is_empty() {
            continue;
        }
        let settings = |name: &str| match stem {
            "" => name.ends_with(".json") || name == "merges.txt",
            _ => name == "config.json",
        };
        files.extend(
            inside
                .iter()
                .filter(|(name, _)| settings(name))
                .map(|(_, file)| *file),
        );
        if !stem.is_empty() {
            let weights = weights(stem.trim_end_matches(".safetensors"), &inside);
            if weights.is_empty() {
                let pickled = inside.iter().any(|(name, _)| is_pickle(name));
                let why = if pickled {
                    PICKLE
                } else {
                    "has no safetensors weights; give SDXL's or SD3's repository"
                };
                return Err(format!("{part} {why}"));
            }
            files.extend(weights);
        }
    }
    if !files
        .iter()
        .any(|file| file.path.starts_with("unet/") || file.path.starts_with("transformer/"))
    {
        return Err(
            "holds neither unet nor transformer; give SDXL's or SD3's repository".to_owned(),
        );
    }
    Ok(files.into_iter().cloned().collect())
}

fn is_pickle(path: &str) -> bool {
    ["bin", "ckpt", "pt", "pth", "pkl"]
        .iter()
        .any(|old| path.ends_with(&format!(".{old}")))
}

/// The weights among a part's files: one file, or an index with its shards, the 16-bit variants first.
fn weights<'a>(stem: &str, inside: &[(&str, &'a RemoteFile)]) -> Vec<&'a RemoteFile> {
    let one = |wanted: String| {
        inside
            .iter()
            .find(|(name, _)| *name == wanted)
            .map(|(_, file)| *file)
    };
    for variant in [".fp16", ".bf16", ""] {
        if let Some(file) = one(format!("{stem}{variant}.safetensors")) {
            return vec![file];
        }
        let word = variant.trim_start_matches('.');
        let index = match variant {
            "" => one(format!("{stem}.safetensors.index.json")),
            _ => one(format!("{stem}.safetensors.index.{word}.json"))
                .or(one(format!("{stem}{variant}.safetensors.index.json"))),
        };
        if let Some(index) = index {
            let of_variant = |name: &str| match variant {
                "" => !name.contains("fp16") && !name.contains("bf16"),
                _ => name.contains(word),
            };
            let shard = |name: &str| {
                name.starts_with(stem)
                    && name.contains("-of-")
                    && name.ends_with(".safetensors")
                    && of_variant(name)
            };
            let shards = inside
                .iter()
                .filter(|(name, _)| shard(name))
                .map(|(_, file)| *file);
            return std::iter::once(index).chain(shards).collect();
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests;
