//! Captions: `NAME.txt`, else, where that is missing or blank, the first of `caption`, `text`, `prompt` in `NAME.json`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Error;

/// Names under which a JSON file may have the caption.
const KEYS: [&str; 3] = ["caption", "text", "prompt"];

/// The caption file that belongs to a picture.
pub fn sidecar(picture: &Path) -> PathBuf {
    picture.with_extension("txt")
}

/// The caption beside a picture; empty where there is none.
///
/// # Errors
/// A caption file that cannot be read, or is no text or no JSON.
pub fn beside(picture: &Path) -> Result<String, Error> {
    let json = picture.with_extension("json");
    let txt = read(&sidecar(picture))?.filter(|txt| says_something(txt));
    // Most pictures have one of the two.
    let text = if txt.is_some() { None } else { read(&json)? };
    choose(txt, text, &json)
}

/// The caption of both files' texts; `path` is the JSON's, for messages.
///
/// # Errors
/// What is no JSON.
pub(super) fn choose(
    txt: Option<String>,
    json: Option<String>,
    path: &Path,
) -> Result<String, Error> {
    if let Some(txt) = txt.filter(|txt| says_something(txt)) {
        return Ok(txt.trim().to_owned());
    }
    let Some(json) = json else {
        return Ok(String::new());
    };
    let json: Value = serde_json::from_str(&json).map_err(|why| {
        Error::Input(format!(
            "{}: is no JSON ({why}); correct or remove it",
            path.display()
        ))
    })?;
    let caption = KEYS.iter().find_map(|key| json.get(key)?.as_str());
    Ok(caption.unwrap_or_default().trim().to_owned())
}

fn says_something(text: &str) -> bool {
    !text.trim().is_empty()
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::io(path, source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_comes_before_json_and_json_has_three_names() {
        let at = Path::new("a.json");
        let some = |text: &str| Some(text.to_owned());
        let caption = |txt, json| choose(txt, json, at).expect("sound");
        assert_eq!(
            caption(some(" a cat\n"), some("{\"caption\": \"b\"}")),
            "a cat"
        );
        assert_eq!(
            caption(None, some("{\"text\": \"t\", \"caption\": \"c\"}")),
            "c"
        );
        assert_eq!(caption(None, some("{\"prompt\": \"p\"}")), "p");
        assert_eq!(caption(some(" \n"), some("{\"prompt\": \"p\"}")), "p");
        assert_eq!(caption(some(""), None), "");
        assert_eq!(caption(None, some("{\"caption\": 3}")), "");
        assert_eq!(caption(None, None), "");
        let wrong = choose(None, some("{"), at)
            .expect_err("no JSON")
            .to_string();
        assert!(wrong.starts_with("a.json: is no JSON"), "{wrong}");
    }
}
