//! The reference of all keys, made from clap: a table for docs/configuration.md. Pure.

use std::fmt::Write as _;
use std::path::Path;

use clap::{Arg, Command};

use super::keys;

/// One row for each key: its name, its variable, its default, whether a change of the file takes effect without a restart,
/// and what it is.
pub fn table(command: &Command, live: &[&str]) -> String {
    let mut text = "| key, flag | environment | default | live | |\n|---|---|---|---|---|\n".to_owned();
    for arg in keys(command) {
        let key = arg.get_long().unwrap_or_default();
        let variable = arg.get_env().unwrap_or_default().to_string_lossy().into_owned();
        let mark = if live.contains(&key) { "yes" } else { "" };
        let (default, about) = (default(arg), about(arg));
        let _ = writeln!(text, "| `{key}` | `{variable}` | {default} | {mark} | {about} |");
    }
    text
}

fn default(arg: &Arg) -> String {
    let values: Vec<_> =
        arg.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
    values.join(", ")
}

/// Angle brackets would be HTML, and a bar ends a cell.
fn about(arg: &Arg) -> String {
    let text = arg.get_help().map(ToString::to_string).unwrap_or_default();
    text.trim_end_matches('.').replace('|', "\\|").replace('<', "&lt;").replace('\n', " ")
}

/// Compares the table with what stands between `<!-- made from PROGRAM -->` and `<!-- end -->` in a file. For tests: with
/// `TOWLINE_BLESS` in the environment the file is written anew.
///
/// # Panics
/// They differ, or there is no such file.
pub fn compare(path: &Path, program: &str, table: &str) {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let begin = format!("<!-- made from {program} -->\n");
    let parts = text.split_once(&begin).and_then(|(before, rest)| {
        let (old, behind) = rest.split_once("<!-- end -->\n")?;
        Some((before, old, behind))
    });
    let Some((before, old, behind)) = parts else { panic!("{} has no table of {program}", path.display()) };
    #[expect(clippy::disallowed_methods, reason = "of tests alone")]
    let blessing = std::env::var_os("TOWLINE_BLESS").is_some();
    if blessing {
        let written = std::fs::write(path, format!("{before}{begin}{table}<!-- end -->\n{behind}"));
        assert!(written.is_ok(), "{} cannot be written", path.display());
        return;
    }
    let differ = old.lines().zip(table.lines()).find(|(one, two)| one != two);
    assert!(
        old == table,
        "{} is old ({differ:?}): TOWLINE_BLESS=1 cargo test -p hub -p agent --lib the_reference",
        path.display()
    );
}
