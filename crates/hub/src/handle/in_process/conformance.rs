//! `docs/conformance.md`, `docs/security.md`, `docs/registration.md`, `docs/faults.md` and `tests/abuse-cases.tsv` name the
//! tests that show their promises. Here it is checked that those tests exist, so that none can promise what nobody tests
//! any more, and that each case of abuse and each fault that was once listed has a row.

use std::path::{Path, PathBuf};

const DOCUMENT: &str = include_str!("../../../../../docs/conformance.md");
const SECURITY: &str = include_str!("../../../../../docs/security.md");
const REGISTRATION: &str = include_str!("../../../../../docs/registration.md");
const FAULTS: &str = include_str!("../../../../../docs/faults.md");
const TABLE: &str = include_str!("../../../../../tests/abuse-cases.tsv");
/// Checks in the document.
const CHECKS: usize = 56;

/// Situations in the document on registration, and ways to end a right.
const SITUATIONS: usize = 44;
/// Cases of abuse at the tunnel's endpoint, out of the tunnel, and at registration, by number. None is left out in silence.
const CASES: [(&str, &str); 3] = [
    ("E", "01 03 05 06 07 08 09 10 11 12 13 17 19 21 22 24 25"),
    (
        "A",
        "02 03 05 06 09 10 11 13 14 15 19 20 21 22 25 26 28 29 30 31 32 34 36 37 38 39 41 42 44 45 46 48 49 64 65 66 \
         67 68 69 70 72 75 76 77 78 80 81 82",
    ),
    ("R", "01 02 03 05 07 10 11 13 15 20 23 30 31 33 34 36 40 41 42 44 45 46 47"),
];

/// Faults of networks, processes and peers, by number; none is left out in silence.
const FAULT_NUMBERS: &str = "01 02 03 04 05 06 07 08 09 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 35 43 \
                             47 48";

/// The files in which a test of this path can stand.
fn files(module: &[&str]) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let (source, module) = match module {
        [suite @ ("e2e" | "trust" | "replicas"), module @ ..] => (root.join("tests").join(suite), module),
        ["cli", "process"] => (root.join("crates/cli/tests"), &["process"][..]),
        ["tunnel_proto", "it", module @ ..] => (root.join("crates/tunnel-proto/tests/it"), module),
        ["tunnel_proto", "memory"] => (root.join("crates/tunnel-proto/tests/memory"), &["main"][..]),
        ["tests", module @ ..] => (root.join("tests/src"), module),
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

/// Why there is no such test.
fn missing(test: &str) -> Option<String> {
    let path: Vec<_> = test.split("::").collect();
    let (name, module) = path.split_last()?;
    let suite = module.first().copied().filter(|suite| matches!(*suite, "e2e" | "trust" | "replicas"));
    let found = files(module).into_iter().find_map(|file| {
        let text = std::fs::read_to_string(file).ok()?;
        let (before, _) = text.split_once(&format!("fn {name}("))?;
        let attributes = before.rsplit("\n\n").next()?.rsplit("}\n").next()?;
        Some(suite.is_some() || attributes.contains("#[test]") || attributes.contains("#[tokio::test"))
    });
    let run = suite.is_none_or(|suite| {
        files(&[suite, "main"]).iter().any(|file| {
            std::fs::read_to_string(file).is_ok_and(|text| text.contains(&format!("{}::{name},", module[1])))
        })
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
fn every_situation_of_a_registration_names_a_test_that_exists() {
    let mut wrong = Vec::new();
    let rows =
        REGISTRATION.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| situation |"));
    let rows: Vec<_> = rows.filter(|line| !line.starts_with("| what a person does |")).collect();
    for row in &rows {
        let shown = row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
        let tests: Vec<_> = shown.split('`').filter(|text| text.contains("::")).collect();
        if tests.is_empty() {
            wrong.push(format!("nothing shows: {row}"));
        }
        wrong.extend(tests.into_iter().filter_map(missing));
    }
    assert_eq!(rows.len(), SITUATIONS);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_fault_names_a_test_that_exists_or_says_why_not() {
    let (mut numbers, mut wrong) = (Vec::new(), Vec::new());
    for line in FAULTS.lines() {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let Some(number) = cells.get(1).and_then(|cell| cell.strip_prefix("F-")) else { continue };
        numbers.push(number);
        let [_, _, fault, expected, shown, why, _] = cells[..] else {
            wrong.push(format!("F-{number} has not five columns"));
            continue;
        };
        if fault.is_empty() || expected.is_empty() || (shown.is_empty() && why.is_empty()) {
            wrong.push(format!("F-{number} has neither a test nor a reason"));
        }
    }
    let named = FAULTS.split('`').filter(|text| text.contains("::") && !text.contains(char::is_whitespace));
    let whole_modules = ["tunnel_proto::it::simulation", "tunnel_proto::memory", "e2e::"];
    wrong.extend(named.filter(|test| !whole_modules.contains(test)).filter_map(missing));
    assert_eq!(numbers.join(" "), FAULT_NUMBERS);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_case_of_abuse_has_a_row() {
    let ids: Vec<_> = TABLE.lines().filter_map(|line| line.split('\t').next()).collect();
    for (kind, numbers) in CASES {
        for number in numbers.split(' ') {
            let id = format!("{kind}-{number}");
            assert_eq!(ids.iter().filter(|known| **known == id).count(), 1, "{id}");
        }
    }
    let silent = TABLE.lines().skip(1).filter(|line| {
        let columns: Vec<_> = line.split('\t').collect();
        columns[5] == "-" && columns[9].is_empty()
    });
    let silent: Vec<_> = silent.collect();
    assert!(silent.is_empty(), "neither tried nor explained: {silent:?}");
}

#[test]
fn a_name_that_nobody_wrote_is_noticed() {
    assert_eq!(missing("hub::authz::tests::masters_are_not_asked_about"), None);
    for test in [
        "hub::authz::tests::masters_are_asked_about",
        "hub::authz::tests::who",
        "hub::nowhere::tests::masters_are_not_asked_about",
        "e2e::main::trial",
        "trust::credential::place",
    ] {
        assert!(missing(test).is_some(), "{test}");
    }
}

#[test]
fn every_test_in_one_process_is_looked_behind() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/handle/in_process");
    for file in std::fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let bare = text.lines().filter(|line| line.starts_with("#[tokio::test") && !line.contains("leaks"));
        assert_eq!(bare.count(), 0, "{}", path.display());
    }
}
