//! Priors from the Hugging Face hub, into its cache: what a repository holds, its licence, and its files.
//!
//! [`Hub::listing`] asks what there is, [`Listing::licence`] is shown to the user, and [`Hub::download`] fetches the files a
//! prior needs into the layout of huggingface_hub's cache, where `Folder::open` finds them. Files are pinned to the commit of
//! the listing, resumed where a download broke off, checked against their hashes, and renamed into place; the ref is written last.
//!
//! The environment is huggingface_hub's: `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HOME`, `HF_HUB_CACHE`.

mod listing;
mod store;

use std::{path::PathBuf, time::Duration};

use priors::folder::Repository;
use ureq::{Agent, Body, config::RedirectAuthHeaders, http::Response};

pub use listing::{Licence, Listing, RemoteFile};

/// Answers of the hub's API and licences are read up to this many bytes.
const SMALL: u64 = 16 << 20;

/// What can go wrong between here and the hub. Every message ends with what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The environment forbids or misdirects the network.
    #[error("{0}")]
    Input(String),
    /// The hub could not be reached, or broke off.
    #[error(
        "{url}: {why}; check the network and HF_ENDPOINT, or give a prior's folder or file that you have"
    )]
    Unreachable {
        /// What was asked for.
        url: String,
        /// What happened.
        why: String,
    },
    /// The hub said no, or something that is not understood.
    #[error("{repository}: {what}")]
    Refused {
        /// The repository.
        repository: String,
        /// What it said and what to do.
        what: String,
    },
    /// The repository holds no prior that could be used.
    #[error("{repository}: {what}")]
    Unsupported {
        /// The repository.
        repository: String,
        /// What is wrong with it and what to do.
        what: String,
    },
    /// The operating system refused.
    #[error(
        "{path}: {source}; check that the disk has room and that HF_HOME or HF_HUB_CACHE can be written"
    )]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's word.
        source: std::io::Error,
    },
}

/// Where the hub is, and who asks.
#[derive(Debug)]
pub struct Hub {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

impl Hub {
    /// As the environment says.
    ///
    /// # Errors
    /// `HF_HUB_OFFLINE` is set, or `HF_ENDPOINT` is no address.
    pub fn from_env() -> Result<Self, Error> {
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let offline = env("HF_HUB_OFFLINE").or(env("TRANSFORMERS_OFFLINE"));
        if offline.is_some_and(|value| {
            ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str())
        }) {
            return Err(Error::Input(
                "HF_HUB_OFFLINE is set and Hugging Face's cache lacks this; unset it to download, or give a prior's folder or file that you have".to_owned(),
            ));
        }
        let endpoint = env("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let host = endpoint
            .strip_prefix("https://")
            .or(endpoint.strip_prefix("http://"));
        if host.is_none_or(|host| host.is_empty() || host.contains(char::is_whitespace)) {
            let what = format!(
                "HF_ENDPOINT is {endpoint:?}, which is no address; give one like https://huggingface.co, or unset it"
            );
            return Err(Error::Input(what));
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .user_agent(concat!("reclair/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)));
        Ok(Self {
            agent: config.build().into(),
            endpoint,
            token: env("HF_TOKEN").or_else(stored_token),
        })
    }

    /// Asks for `url`, from byte `from` on where that is not 0.
    fn get(&self, url: &str, from: u64) -> Result<Response<Body>, Error> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        request.call().map_err(|why| Error::Unreachable {
            url: url.to_owned(),
            why: why.to_string(),
        })
    }

    /// The whole of a small answer; `what` is what was asked for.
    fn small(&self, repository: &Repository, url: &str, what: &str) -> Result<Vec<u8>, Error> {
        let mut response = self.get(url, 0)?;
        self.accept(repository, &response, what)?;
        response
            .body_mut()
            .with_config()
            .limit(SMALL)
            .read_to_vec()
            .map_err(|why| Error::Unreachable {
                url: url.to_owned(),
                why: why.to_string(),
            })
    }

    /// Refuses what is no success.
    fn accept(
        &self,
        repository: &Repository,
        response: &Response<Body>,
        what: &str,
    ) -> Result<(), Error> {
        let status = response.status().as_u16();
        let page = format!("{}/{}", self.endpoint, repository.id());
        let what = match status {
            200..=299 => return Ok(()),
            // The hub answers so for what does not exist, too, when it does not know who asks.
            401 | 403 => format!(
                "the hub wants to know who asks for {what} ({status}); check the name, accept the licence at {page} with your account, and set HF_TOKEN to a token of it"
            ),
            404 => {
                format!("the hub has no {what} (404); check the name and the revision at {page}")
            }
            429 => format!(
                "the hub has had too many requests (429) and gives no {what}; try again later"
            ),
            500..=599 => {
                format!("the hub is in trouble ({status}) and gives no {what}; try again later")
            }
            _ => format!("the hub answers {status} for {what}; check HF_ENDPOINT"),
        };
        Err(Error::Refused {
            repository: repository.to_string(),
            what,
        })
    }
}

/// The token that `hf auth login` stored.
fn stored_token() -> Option<String> {
    let env = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let home = || {
        Some(
            env("HOME")
                .or(env("USERPROFILE"))?
                .join(".cache/huggingface"),
        )
    };
    let place =
        env("HF_TOKEN_PATH").or_else(|| Some(env("HF_HOME").or_else(home)?.join("token")))?;
    let token = std::fs::read_to_string(place).ok()?.trim().to_owned();
    let header = token.chars().all(|c| c.is_ascii_graphic());
    (!token.is_empty() && header).then_some(token)
}
