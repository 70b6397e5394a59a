//! A hub of one repository, `someone/tiny`: its listing, its files with ranges, large ones through a redirect to another host.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use sha2::{Digest, Sha256};

/// The commit of `main`.
pub(crate) const COMMIT: &str = "462165984030d82259a11f4367a4eed129e94a7b";

/// Files of this size are stored as large ones.
const LARGE: u64 = 4096;

/// How the server behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// As the hub does.
    Well,
    /// Closes the connection after so many bytes of a large file's first answer, and before any of a later one.
    BreaksAfter(usize),
    /// Always sends whole files.
    IgnoresRanges,
    /// Sends large files of the right length and other contents.
    OtherBytes,
    /// Wants a token.
    Gated,
    /// Says what is no JSON.
    Nonsense,
}

#[derive(Debug)]
struct State {
    repository: PathBuf,
    port: u16,
    manner: Manner,
    requests: usize,
    ranges: Vec<u64>,
    broken: bool,
    token_left_home: bool,
}

/// The running server; it ends with the test's process.
#[derive(Debug)]
pub(crate) struct Server {
    state: Arc<Mutex<State>>,
}

impl Server {
    /// Serves what is in `repository`.
    pub(crate) fn start(repository: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let state = Arc::new(Mutex::new(State {
            repository: repository.to_owned(),
            port: listener.local_addr().expect("an address").port(),
            manner: Manner::Well,
            requests: 0,
            ranges: Vec::new(),
            broken: false,
            token_left_home: false,
        }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut state = shared.lock().expect("no panic");
                // A client that goes away is its own matter.
                let _ = answer(stream, &mut state);
            }
        });
        Self { state }
    }

    pub(crate) fn address(&self) -> String {
        format!(
            "http://127.0.0.1:{}",
            self.state.lock().expect("no panic").port
        )
    }

    pub(crate) fn set(&self, manner: Manner) {
        let mut state = self.state.lock().expect("no panic");
        state.manner = manner;
        state.broken = false;
    }

    pub(crate) fn requests(&self) -> usize {
        self.state.lock().expect("no panic").requests
    }

    /// Where the answers with a range began.
    pub(crate) fn ranges(&self) -> Vec<u64> {
        self.state.lock().expect("no panic").ranges.clone()
    }

    /// Whether a token came to the host that large files are redirected to.
    pub(crate) fn token_left_home(&self) -> bool {
        self.state.lock().expect("no panic").token_left_home
    }
}

fn hash(path: &Path, length: usize) -> String {
    let digest = Sha256::digest(std::fs::read(path).expect("reads"));
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    hex[..length].to_owned()
}

fn listing(repository: &Path) -> String {
    let files = walkdir::WalkDir::new(repository)
        .sort_by_file_name()
        .into_iter()
        .flatten();
    let files = files.filter(|entry| entry.file_type().is_file()).map(|entry| {
        let name = entry.path().strip_prefix(repository).expect("inside").display().to_string();
        let size = entry.metadata().expect("there").len();
        let mut line = serde_json::json!({"rfilename": name, "size": size, "blobId": hash(entry.path(), 40)});
        if size >= LARGE {
            line["lfs"] = serde_json::json!({"sha256": hash(entry.path(), 64), "size": size, "pointerSize": 134});
        }
        line
    });
    let siblings: Vec<_> = files.collect();
    serde_json::json!({
        "id": "someone/tiny", "sha": COMMIT, "siblings": siblings, "cardData": {"license": "openrail++"},
    })
    .to_string()
}

fn answer(mut stream: TcpStream, state: &mut State) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let target = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let (mut from, mut token, mut host) = (None, false, String::new());
    for line in lines {
        let line = line?.to_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(range) = line.strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse().ok();
        }
        token |= line == "authorization: bearer secret";
        host = line.strip_prefix("host: ").map_or(host, str::to_owned);
    }
    // `localhost` plays the other host.
    let elsewhere = host.starts_with("localhost");
    if elsewhere {
        state.token_left_home |= token;
    } else {
        state.requests += 1;
    }
    let mut plain = |status: &str, body: &[u8]| {
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        )?;
        stream.write_all(body)
    };
    if state.manner == Manner::Gated && !token && !elsewhere {
        return plain("401 Unauthorized", b"who?");
    }
    if state.manner == Manner::Nonsense {
        return plain("200 OK", b"<html>");
    }
    if target == "/api/models/someone/tiny/revision/main?blobs=true" {
        return plain("200 OK", listing(&state.repository).as_bytes());
    }
    let name = target.strip_prefix(&format!("/someone/tiny/resolve/{COMMIT}/"));
    let name = name.or(target.strip_prefix("/large/"));
    let path = name
        .map(|name| state.repository.join(name))
        .filter(|path| path.is_file());
    let Some(path) = path else {
        return plain("404 Not Found", b"no");
    };
    let mut contents = std::fs::read(path)?;
    let large = contents.len() as u64 >= LARGE;
    if large && !elsewhere {
        let to = format!(
            "http://localhost:{}/large/{}",
            state.port,
            name.unwrap_or_default()
        );
        return write!(
            stream,
            "HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }
    if large && state.manner == Manner::OtherBytes {
        contents.fill(7);
    }
    let from = from.filter(|_| state.manner != Manner::IgnoresRanges);
    state.ranges.extend(from);
    let whole = contents.len();
    let sent = &contents[(from.unwrap_or(0) as usize).min(whole)..];
    match from {
        Some(from) => write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{}/{whole}\r\n",
            whole - 1
        )?,
        None => write!(stream, "HTTP/1.1 200 OK\r\n")?,
    }
    write!(
        stream,
        "Content-Length: {}\r\nConnection: close\r\n\r\n",
        sent.len()
    )?;
    match state.manner {
        Manner::BreaksAfter(n) if large => {
            let n = if std::mem::replace(&mut state.broken, true) {
                0
            } else {
                n
            };
            stream.write_all(&sent[..n.min(sent.len())])
        }
        _ => stream.write_all(sent),
    }
}
