//! Captions by a command: any model behind it that gets a picture's path and prints one line.
//!
//! The command runs in the system's shell with the path as one more argument. Its first line is kept beside the picture
//! as `NAME.txt`, which is read instead of asking again.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, anyhow, bail};
use train::data::caption::{beside, sidecar};

/// The caption of `picture`: what lies beside it, else what `command` says, which then lies beside it. Says whether it
/// asked.
///
/// # Errors
/// A command that cannot be run, fails or prints nothing; a caption file that cannot be read.
pub(super) fn caption(command: &str, picture: &Path) -> anyhow::Result<(String, bool)> {
    let cached = beside(picture)?;
    if !cached.is_empty() {
        return Ok((cached, false));
    }
    let caption = ask(command, picture)?;
    let path = sidecar(picture);
    if let Err(why) = priors::weights::write_atomically(&path, format!("{caption}\n").as_bytes()) {
        eprintln!("note: the caption is used but not kept: {why}");
    }
    Ok((caption, true))
}

fn ask(command: &str, picture: &Path) -> anyhow::Result<String> {
    let mut shell = shell(command, picture);
    let output = shell
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("--captioner {command}: the shell cannot be started"))?;
    let failed = |what: String| {
        anyhow!(
            "--captioner {command}: {what} for {}; try the command on that file by hand",
            picture.display()
        )
    };
    if !output.status.success() {
        return Err(failed(format!("ended with {}", output.status)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().map(str::trim).find(|line| !line.is_empty()) {
        Some(line) => Ok(line.to_owned()),
        None => bail!(failed("printed nothing".to_owned())),
    }
}

#[cfg(not(windows))]
fn shell(command: &str, picture: &Path) -> Command {
    let mut shell = Command::new("sh");
    shell
        .arg("-c")
        .arg(format!("{command} \"$1\""))
        .arg("sh")
        .arg(picture);
    shell
}

#[cfg(windows)]
fn shell(command: &str, picture: &Path) -> Command {
    use std::os::windows::process::CommandExt;
    let mut shell = Command::new("cmd");
    shell.raw_arg(format!("/S /C \"{command} \"{}\"\"", picture.display()));
    shell
}
