//! What is written about the command line is what it is: docs/cli.md is made from clap, docs/errors.md names each coded
//! reason of agent, doctor and hub, and the krew manifest names the binary that is built.
//!
//! `TOWLINE_BLESS=1 cargo test -p cli --test reference` writes docs/cli.md and the doctor's table anew.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "helpers of tests stand outside of them")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use clap::{Arg, Command, CommandFactory as _};
use cli::args::Cli;
use cli::doctor::codes::Code;
use serde_json::Value;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[expect(clippy::disallowed_methods, reason = "the one place in these tests that reads this variable")]
fn blessing() -> bool {
    std::env::var_os("TOWLINE_BLESS").is_some()
}

/// Angle brackets would be HTML, and a bar ends a cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ")
}

fn spelled(arg: &Arg) -> String {
    let values: Vec<String> =
        arg.get_value_names().unwrap_or_default().iter().map(ToString::to_string).collect();
    let takes = arg.get_action().takes_values();
    if arg.is_positional() {
        return values.join(" ");
    }
    let short = arg.get_short().map(|short| format!("-{short}"));
    let long = arg.get_long().map(|long| format!("--{long}"));
    let names: Vec<String> = short.into_iter().chain(long).collect();
    match (takes, values.first()) {
        (true, Some(value)) => format!("{} {value}", names.join(", ")),
        (true, None) | (false, _) => names.join(", "),
    }
}

fn about(arg: &Arg) -> String {
    let mut text = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let choices: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|choice| !choice.is_hide_set() && arg.get_action().takes_values())
        .map(|choice| format!("`{}`", choice.get_name()))
        .collect();
    if !choices.is_empty() {
        write!(text, ": {}", choices.join(", ")).unwrap();
    }
    let defaults: Vec<String> = arg
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy().into_owned())
        .filter(|value| !value.is_empty())
        .collect();
    if arg.get_action().takes_values() && !defaults.is_empty() && !arg.is_hide_default_value_set() {
        write!(text, " (default: {})", defaults.join(", ")).unwrap();
    }
    cell(&text)
}

fn rows<'a>(args: impl Iterator<Item = &'a Arg>) -> String {
    let mut text = String::new();
    for arg in args.filter(|arg| !arg.is_hide_set() && arg.get_id() != "help" && arg.get_id() != "version") {
        writeln!(text, "| `{}` | {} |", spelled(arg).replace('|', "\\|"), about(arg)).unwrap();
    }
    if text.is_empty() { text } else { format!("| | |\n|---|---|\n{text}") }
}

fn section(command: &Command, out: &mut String) {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim();
    writeln!(out, "\n## {}\n", command.get_bin_name().unwrap_or_default()).unwrap();
    writeln!(out, "{}.\n", command.get_about().map(ToString::to_string).unwrap_or_default()).unwrap();
    let aliases: Vec<&str> = command.get_visible_aliases().collect();
    if !aliases.is_empty() {
        writeln!(out, "Also: `{}`.\n", aliases.join("`, `")).unwrap();
    }
    let lines: Vec<String> = usage.lines().map(|line| format!("    {}", line.trim())).collect();
    writeln!(out, "{}", lines.join("\n")).unwrap();
    let table = rows(command.get_arguments().filter(|arg| !arg.is_global_set()));
    if !table.is_empty() {
        write!(out, "\n{table}").unwrap();
    }
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help")
    {
        section(inner, out);
    }
}

fn reference() -> String {
    let mut root = Cli::command();
    root.build();
    let mut out = String::from(
        "# kubectl towline\n\nEvery command and flag, made from the program itself. Data goes to standard output, everything \
         said to a\nperson to standard error. `kubectl towline COMMAND --help` says the same.\n\n",
    );
    writeln!(out, "{}\n", root.get_after_help().unwrap()).unwrap();
    write!(out, "## Flags of every command\n\n{}", rows(root.get_arguments())).unwrap();
    for command in root.get_subcommands().filter(|command| !command.is_hide_set()) {
        section(command, &mut out);
    }
    out
}

#[test]
fn the_reference_is_what_the_program_says() {
    let path = repository().join("docs/cli.md");
    let made = reference();
    if blessing() {
        fs::write(&path, &made).unwrap();
    }
    let written = read("docs/cli.md");
    if written != made {
        let differ = written.lines().zip(made.lines()).find(|(one, two)| one != two);
        panic!("docs/cli.md is old ({differ:?}): TOWLINE_BLESS=1 cargo test -p cli --test reference");
    }
}

/// The doctor's table, made from the code.
fn doctors_table() -> String {
    let mut text = "| code | what it means | what to do |\n|---|---|---|\n".to_owned();
    for code in Code::ALL {
        writeln!(text, "| {} | {} | {} |", code.as_str(), cell(code.cause()), cell(code.remedy())).unwrap();
    }
    text
}

#[test]
fn the_doctors_codes_are_written_as_they_are() {
    const BEGIN: &str = "<!-- made from crates/cli/src/doctor/codes.rs -->\n";
    const END: &str = "<!-- end -->\n";
    let text = read("docs/errors.md");
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (table, behind) = rest.split_once(END).unwrap();
    if blessing() {
        let whole = format!("{before}{BEGIN}{}{END}{behind}", doctors_table());
        fs::write(repository().join("docs/errors.md"), whole).unwrap();
        return;
    }
    assert_eq!(table, doctors_table(), "TOWLINE_BLESS=1 cargo test -p cli --test reference");
}

/// First cells of the rows of the tables below a heading.
fn first_cells(text: &str, heading: &str) -> Vec<String> {
    let (_, section) =
        text.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("|---"));
    rows.skip(1).map(|line| line.split('|').nth(1).unwrap().trim().trim_matches('`').to_owned()).collect()
}

/// Literals of a source file that begin with a text.
fn literals(source: &str, begin: &str) -> BTreeSet<String> {
    let parts = source.split('"').skip(1).step_by(2);
    parts.filter(|literal| literal.starts_with(begin)).map(str::to_owned).collect()
}

#[test]
fn each_code_of_the_agent_is_explained_with_its_remedy() {
    let source = read("crates/agent/src/trouble.rs");
    let source = source.split("#[cfg(test)]").next().unwrap();
    let codes = literals(source, "TWL-A");
    assert!(codes.len() >= 15, "{codes:?}");
    let text = read("docs/errors.md");
    let written = first_cells(&text, "The agent");
    assert_eq!(written.iter().cloned().collect::<BTreeSet<_>>(), codes);
    assert_eq!(written.len(), codes.len(), "one row each");
}

#[test]
fn each_refusal_of_the_hub_is_explained() {
    let source = read("crates/hub/src/refusal.rs");
    let labels = source.split("pub fn label(").nth(1).unwrap();
    let labels = labels.split("\n    }\n").next().unwrap();
    let labels = literals(labels, "");
    assert!(labels.len() >= 20 && labels.contains("offline"), "{labels:?}");
    let written = first_cells(&read("docs/errors.md"), "The hub");
    assert_eq!(written.iter().cloned().collect::<BTreeSet<_>>(), labels);
    assert_eq!(written.len(), labels.len(), "one row each");
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

fn check_manifest(manifest: &Value) {
    let manifest_of = read("crates/cli/Cargo.toml");
    assert_eq!(manifest["apiVersion"], "krew.googlecontainertools.github.com/v1alpha2");
    assert_eq!((&manifest["kind"], &manifest["metadata"]["name"]), (&"Plugin".into(), &"towline".into()));
    // krew's limit for the list of plugins.
    assert!(manifest["spec"]["shortDescription"].as_str().unwrap().len() <= 64);
    for platform in manifest["spec"]["platforms"].as_array().unwrap() {
        let bin = platform["bin"].as_str().unwrap();
        assert!(manifest_of.contains(&format!("name = \"{bin}\"")), "{bin} is not what is built");
        let files: Vec<&str> =
            platform["files"].as_array().unwrap().iter().map(|file| file["from"].as_str().unwrap()).collect();
        assert_eq!(files, [bin, "LICENSE"]);
    }
    assert!(repository().join("LICENSE").is_file());
}

#[test]
fn the_krew_manifest_names_binary_and_license_and_is_filled_for_a_release() {
    let template = read("deploy/krew/towline.yaml");
    check_manifest(&yaml(&template));

    let directory = std::env::temp_dir().join(format!("towline-krew-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    for name in ["kubectl-towline", "LICENSE"] {
        fs::write(directory.join(name), name).unwrap();
    }
    let tar = |archive: &str, members: &[&str]| {
        let mut tar = Process::new("tar");
        tar.arg("czf").arg(directory.join(archive)).arg("-C").arg(&directory).args(members);
        assert!(tar.status().unwrap().success());
    };
    let run = || {
        let script = repository().join("hack/krew-manifest.sh");
        let base = ["1.2.3", "https://example.com/releases", "https://example.com"];
        Process::new(script).args(base).arg(&directory).output().unwrap()
    };
    tar("kubectl-towline_v1.2.3_linux_amd64.tar.gz", &["kubectl-towline", "LICENSE"]);
    tar("kubectl-towline_v1.2.3_linux_arm64.tar.gz", &["kubectl-towline"]);
    let without = run();
    tar("kubectl-towline_v1.2.3_linux_arm64.tar.gz", &["kubectl-towline", "LICENSE"]);
    let filled = run();
    fs::remove_dir_all(&directory).unwrap();

    assert!(!without.status.success(), "an archive without a license is refused");
    assert!(filled.status.success(), "{filled:?}");
    let text = String::from_utf8(filled.stdout).unwrap();
    assert!(!text.contains('@'), "{text}");
    let manifest = yaml(&text);
    check_manifest(&manifest);
    assert_eq!(manifest["spec"]["version"], "v1.2.3");
    assert_eq!(manifest["spec"]["platforms"][1]["sha256"].as_str().unwrap().len(), 64);
}
