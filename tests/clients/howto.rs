//! The how-to pages say what a person types and which trials show it: both have to exist.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use tests::towline::{Towline, repository};

/// Each page's name and text.
fn pages() -> Result<Vec<(String, String)>> {
    let mut pages = Vec::new();
    for entry in std::fs::read_dir(repository().join("docs/howto"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        pages.push((name, std::fs::read_to_string(&path)?));
    }
    ensure!(!pages.is_empty(), "there are no pages");
    Ok(pages)
}

/// Trials are named as `clients::NAME`, or by their beginning as `clients::NAME*`.
pub(crate) fn names_only_trials_that_exist(trials: &[String]) -> Result<()> {
    for (page, text) in pages()? {
        for named in text.split("`clients::").skip(1).filter_map(|rest| rest.split('`').next()) {
            let found = match named.strip_suffix('*') {
                Some(beginning) => trials.iter().any(|trial| trial.starts_with(beginning)),
                None => trials.iter().any(|trial| trial == named),
            };
            ensure!(found, "{page} names {named}, and there is no such trial");
        }
    }
    Ok(())
}

/// Lines that begin with `kubectl towline`. With `--help` at its end a line is read up to there and not carried out.
pub(crate) fn types_only_commands_that_there_are() -> Result<()> {
    let cli = Towline::find()?.cli;
    let mut tried = 0;
    for (page, text) in pages()? {
        for line in text.lines().filter_map(|line| line.trim().strip_prefix("kubectl towline ")) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let output = Command::new(&cli)
                .args(&words)
                .arg("--help")
                .stdin(Stdio::null())
                .output()
                .with_context(|| cli.display().to_string())?;
            if !output.status.success() {
                bail!("{page}: `kubectl towline {line}`: {}", String::from_utf8_lossy(&output.stderr).trim());
            }
            tried += 1;
        }
    }
    ensure!(tried > 10, "only {tried} lines were found");
    Ok(())
}
