//! `docs/conformance.md`, `docs/security.md` and `tests/abuse-cases.tsv` name the tests that show their promises. Here it is
//! checked that those tests exist, so that neither can promise what nobody tests any more.

use std::path::{Path, PathBuf};

const DOCUMENT: &str = include_str!("../../../../../docs/conformance.md");
const SECURITY: &str = include_str!("../../../../../docs/security.md");
const TABLE: &str = include_str!("../../../../../tests/abuse-cases.tsv");
/// Checks in the document.
const CHECKS: usize = 56;

/// The files in which a test of this path can stand.
fn files(module: &[&str]) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let (source, module) = match module {
        ["e2e", module @ ..] => (root.join("tests/e2e"), module),
        ["trust", module @ ..] => (root.join("tests/trust"), module),
        ["cli", "process"] => (root.join("crates/cli/tests"), &["process"][..]),
        ["tunnel_proto", "it", module @ ..] => (root.join("crates/tunnel-proto/tests/it"), module),
        [name, module @ ..] => (root.join("crates").join(name.replace('_', "-")).join("src"), module),
        [] => return Vec::new(),
    };
    let file = |module: &[&str]| source.join(module.join("/")).with_extension("rs");
    // A module `tests` is a file of its own or stands at the end of its parent's.
    match module {
        [parent @ .., "tests"] => vec![file(module), file(parent)],
        _ => vec![file(module)],
    }
}

/// A suite whose `main.rs` lists its tests.
fn is_suite(name: &str) -> bool {
    ["e2e", "trust"].contains(&name)
}

/// Why there is no such test.
fn missing(test: &str) -> Option<String> {
    let path: Vec<_> = test.split("::").collect();
    let (name, module) = path.split_last()?;
    let found = files(module).into_iter().find_map(|file| {
        let text = std::fs::read_to_string(file).ok()?;
        let (before, _) = text.split_once(&format!("fn {name}("))?;
        let attributes = before.rsplit("\n\n").next()?.rsplit("}\n").next()?;
        Some(is_suite(module[0]) || attributes.contains("#[test]") || attributes.contains("#[tokio::test"))
    });
    let run = !is_suite(module[0])
        || files(&[module[0], "main"]).iter().any(|file| {
            std::fs::read_to_string(file).is_ok_and(|text| text.contains(&format!("{}::{name},", module[1])))
        });
    match found {
        None => Some(format!("{test} does not exist")),
        Some(false) => Some(format!("{test} is no test")),
        Some(true) if !run => Some(format!("{test} is not run")),
        Some(true) => None,
    }
}

#[test]
fn every_promise_names_a_test_that_exists() {
    let mut numbers = Vec::new();
    let mut wrong = Vec::new();
    for line in DOCUMENT.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let Ok(number) = cells[1].parse::<usize>() else { continue };
        numbers.push(number);
        let tests: Vec<_> = cells[3].split('`').filter(|text| text.contains("::")).collect();
        if tests.is_empty() && cells[4].is_empty() {
            wrong.push(format!("check {number} has neither a test nor a reason"));
        }
        wrong.extend(tests.into_iter().filter_map(missing));
    }
    let named = TABLE.lines().filter_map(|line| line.split('\t').nth(5)?.strip_prefix("test:"));
    wrong.extend(named.filter_map(missing));
    assert_eq!(numbers, (1..=CHECKS).collect::<Vec<_>>(), "every check once, in order");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_threat_names_tests_that_exist() {
    let named: Vec<_> = SECURITY
        .split('`')
        .filter(|text| text.contains("::") && !text.contains(char::is_whitespace))
        .collect();
    let wrong: Vec<_> = named.iter().filter_map(|test| missing(test)).collect();
    assert!(named.len() > 10 && wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_name_that_nobody_wrote_is_noticed() {
    assert_eq!(missing("hub::authz::tests::masters_are_not_asked_about"), None);
    for test in [
        "hub::authz::tests::masters_are_asked_about",
        "hub::authz::tests::who",
        "hub::nowhere::tests::masters_are_not_asked_about",
        "e2e::main::trial",
    ] {
        assert!(missing(test).is_some(), "{test}");
    }
}
