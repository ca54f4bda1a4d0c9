//! A file under flags and environment: precedence over all four places, every mistake with its line, and what a changed file
//! brings.

use std::path::Path;

use clap::{FromArgMatches as _, Parser, Subcommand};

use super::follow::{Follower, News};
use super::*;

/// The environment of a test run holds what cargo puts there, and nothing else that is known beforehand.
const NAME: &str = env!("CARGO_PKG_NAME");

#[derive(Debug, Parser)]
#[command(name = "prog", args_conflicts_with_subcommands = true)]
struct Line {
    #[command(subcommand)]
    command: Option<Sub>,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Debug, Subcommand)]
enum Sub {
    Check(Flags),
}

#[derive(Debug, Parser)]
struct Flags {
    /// The file
    #[arg(long)]
    config: Option<PathBuf>,
    #[arg(long)]
    print_config: bool,
    /// Of the program
    #[arg(long, env = "CARGO_PKG_NAME")]
    name: Option<String>,
    /// Empty in these tests
    #[arg(long, env = "CARGO_PKG_HOMEPAGE")]
    home: Option<String>,
    #[arg(long, default_value = "10")]
    rate: String,
    #[arg(long, default_value = "info")]
    level: String,
    #[arg(long, default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true,
          action = clap::ArgAction::Set, value_parser = switch)]
    open: bool,
    #[arg(long, hide = true)]
    hidden: Option<String>,
}

fn source(args: &[&str]) -> Source {
    use clap::CommandFactory as _;
    let argv = ["prog"].iter().chain(args).map(OsString::from).collect();
    Source::new(Line::command(), argv)
}

fn merge(args: &[&str], file: &str) -> Merged {
    source(args).merge(Some(file)).unwrap()
}

fn flags(merged: &Merged) -> Flags {
    let line = Line::from_arg_matches(&merged.matches).unwrap();
    match line.command {
        Some(Sub::Check(flags)) => flags,
        None => line.flags,
    }
}

fn origin(merged: &Merged, key: &str) -> Origin {
    merged.effective.values.iter().find(|value| value.key == key).unwrap().origin.clone()
}

#[test]
fn flags_come_before_the_environment_before_the_file_before_the_default() {
    for check in [&[][..], &["check"]] {
        let all = |args: &[&str], file| merge(&[check, args].concat(), file);
        let nothing = all(&[], "");
        assert_eq!(flags(&nothing).rate, "10");
        assert_eq!(origin(&nothing, "rate"), Origin::Default);
        assert_eq!(origin(&nothing, "home"), Origin::Environment("CARGO_PKG_HOMEPAGE".to_owned()));
        assert_eq!(origin(&nothing, "name"), Origin::Environment("CARGO_PKG_NAME".to_owned()));

        let file = "# why\nrate: 20\n\nname: file\nhome: https://example.com\nopen: true\n";
        let filed = all(&[], file);
        assert_eq!(filed.mistakes, Vec::<String>::new());
        let got = flags(&filed);
        assert_eq!((got.rate.as_str(), got.open), ("20", true));
        assert_eq!(origin(&filed, "rate"), Origin::File(2));
        assert_eq!(got.name.as_deref(), Some(NAME), "the environment comes before the file");
        assert_eq!(got.home.as_deref(), Some("https://example.com"), "an empty variable says nothing");

        let typed = all(&["--rate=30", "--name=flag", "--open=false"], file);
        let got = flags(&typed);
        assert_eq!((got.rate.as_str(), got.name.as_deref(), got.open), ("30", Some("flag"), false));
        assert_eq!(origin(&typed, "rate"), Origin::Flag);
    }
}

#[test]
fn all_mistakes_of_a_file_are_told_each_with_its_line_and_no_value() {
    let merged = merge(
        &["--config=/etc/prog.yaml"],
        "rates: hunter2\nrate: [1, 2]\nlevel:\nopen: hunter2\npassword: hunter2\nhidden: hunter2\nprint-config: true\nhome: \"hunter2\\nx\"\n",
    );
    let told = merged.mistakes.join("\n");
    assert_eq!(merged.mistakes.len(), 8, "{told}");
    for part in [
        "/etc/prog.yaml, line 1: there is no key \"rates\"; the nearest one is \"rate\"",
        "line 2: rate: it is one value",
        "line 3: level: it is empty",
        "line 4: open is true or false",
        "line 5: there is no key \"password\"",
        "line 6: there is no key \"hidden\"",
        "line 7: there is no key \"print-config\"",
        "line 8: home: it holds a line break",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(!told.contains("hunter2"), "{told}");
}

#[test]
fn what_is_no_configuration_is_refused_and_not_quoted() {
    let deep = "[".repeat(100_000);
    let many = (0..10_000).map(|n| format!("k{n}: 1\n")).collect::<String>();
    for file in [
        "hunter2",
        "- hunter2",
        "rate: 1\nrate: 2",
        "rate: {",
        "\"",
        "a: &a 1\nb: *a",
        "--- 1\n--- 2\n",
        &deep,
        &many,
    ] {
        let merged = merge(&[], file);
        assert_eq!(merged.mistakes.len(), 1, "{:?}", merged.mistakes);
        assert!(
            !merged.mistakes[0].contains("hunter2") && merged.mistakes[0].len() < 400,
            "{:?}",
            merged.mistakes
        );
    }
    for file in ["", "# nothing\n", "{}", "---\n"] {
        assert_eq!(merge(&[], file).mistakes, Vec::<String>::new(), "{file}");
    }
}

#[test]
fn a_value_of_the_file_is_the_text_that_stands_there() {
    for (written, read) in [("007", "007"), ("1e3", "1e3"), ("\"20\"", "20"), ("yes", "yes"), ("a: b", "")] {
        let merged = merge(&[], &format!("rate: {written}"));
        match merged.mistakes.is_empty() {
            true => assert_eq!(flags(&merged).rate, read, "{written}"),
            false => assert_eq!(read, "", "{written}: {:?}", merged.mistakes),
        }
    }
}

#[test]
fn what_is_printed_is_a_file_that_gives_the_same_and_shows_no_password() {
    let args = ["--level=info,hub=\"x\" # y", "--open"];
    let merged = merge(&args, "rate: 20\n");
    let printed = merged.effective.to_yaml("prog");
    assert!(printed.contains("rate: 20  # file, line 1\n") && printed.contains("# flag\n"), "{printed}");
    let again = merge(&[], &printed);
    assert_eq!(again.mistakes, Vec::<String>::new(), "{printed}");
    assert_eq!(merged.effective.changes(&again.effective), []);

    for secret in ["https://u:hunter2@a", "u:hunter2@a", "https://u:hunter2@sha256:a"] {
        let merged = merge(&[&format!("--rate={secret}")], "");
        let shown = merged.effective.to_yaml("prog")
            + &merged.effective.to_json(&[], &merged.effective).to_string()
            + &format!("{:?}", merge(&[], "").effective.changes(&merged.effective));
        assert!(!shown.contains("hunter2") && shown.contains("not shown"), "{shown}");
    }
    let image = merge(&["--rate=registry/towline@sha256:00"], "");
    assert!(image.effective.to_yaml("prog").contains("towline@sha256:00"));
}

#[test]
fn a_mistake_says_where_the_value_stands() {
    let merged = merge(&["--config=/etc/prog.yaml", "--level=x"], "rate: 20\n");
    let place = |mistake: &str| merged.effective.place(mistake.to_owned());
    assert_eq!(place("--rate \"20\" is odd"), "--rate \"20\" is odd (set in /etc/prog.yaml, line 1)");
    assert_eq!(place("--name: is odd"), "--name: is odd (set by CARGO_PKG_NAME)");
    assert_eq!(place("--level is odd"), "--level is odd");
    assert_eq!(place("something else"), "something else");
}

#[test]
fn a_file_that_cannot_be_read_is_a_mistake_and_help_is_none() {
    let merged = source(&["--config=/does/not/exist"]).read().unwrap();
    assert!(
        merged.mistakes[0].contains("--config /does/not/exist: it cannot be read"),
        "{:?}",
        merged.mistakes
    );
    assert!(!source(&["--help"]).read().unwrap_err().use_stderr());
    assert!(source(&["--rats=1"]).read().unwrap_err().use_stderr());
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("towline-config-{name}-{}.yaml", std::process::id()));
        Self(path)
    }

    fn write(&self, text: &str) {
        std::fs::write(&self.0, text).unwrap();
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_file_that_changes_changes_what_can_be_and_tells_what_cannot() {
    let scratch = Scratch::new("follow");
    scratch.write("rate: 20\nlevel: info\n");
    let source = source(&[&format!("--config={}", scratch.path().display()), "--name=x"]);
    let running = source.read().unwrap().effective;
    let mut follower = Follower::new(source, &["level"], running);
    let mut taken = Vec::new();
    let mut look = |follower: &mut Follower| {
        follower.look(&mut |matches: &ArgMatches| {
            let flags = Line::from_arg_matches(matches).unwrap().flags;
            if flags.level == "bad" {
                return Err(vec!["--level \"bad\" is none".to_owned()]);
            }
            taken.push(flags.level);
            Ok(())
        })
    };
    assert_eq!(look(&mut follower), None, "nothing has changed");

    scratch.write("rate: 30\nlevel: debug\nname: ignored\n");
    let Some(News::Taken { now, later }) = look(&mut follower) else { panic!("nobody saw it") };
    let names = |changes: &[Change]| changes.iter().map(|change| change.key.clone()).collect::<Vec<_>>();
    assert_eq!((names(&now), names(&later)), (vec!["level".to_owned()], vec!["rate".to_owned()]));
    assert_eq!(look(&mut follower), None, "it is told once");
    let shown = follower.running().to_json(&["level"], follower.wanted());
    assert_eq!(shown["values"]["level"]["value"], "debug");
    assert_eq!(shown["values"]["level"]["live"], true);
    assert_eq!(shown["values"]["rate"]["value"], "20", "it still runs with that");
    assert_eq!(shown["values"]["rate"]["afterRestart"], "30");

    scratch.write("rate: 30\nlevel: bad\n");
    let Some(News::Refused(mistakes)) = look(&mut follower) else { panic!("nobody saw it") };
    assert!(mistakes[0].starts_with("--level \"bad\" is none (set in ") && mistakes[0].ends_with("line 2)"));
    assert_eq!(look(&mut follower), None, "it is told once");
    scratch.write("rte: 30\n");
    assert!(matches!(look(&mut follower), Some(News::Refused(_))));
    assert_eq!(
        follower.running().values.iter().find(|value| value.key == "level").unwrap().shown(),
        Some("debug")
    );

    scratch.write("rate: 20\n");
    let Some(News::Taken { now, later }) = look(&mut follower) else { panic!("nobody saw it") };
    assert_eq!((names(&now), names(&later)), (vec!["level".to_owned()], vec![]));
    assert_eq!(taken, ["debug", "info"]);
}

#[test]
fn the_reference_has_a_row_for_each_key_and_none_for_what_is_no_key() {
    use clap::CommandFactory as _;
    let table = reference::table(&Line::command(), &["level"]);
    assert!(table.contains("| `level` | `` | `info` | yes |"), "{table}");
    assert!(table.contains("| `name` | `CARGO_PKG_NAME` |  |  | Of the program |"), "{table}");
    for none in ["hidden", "print-config", "`config`", "help"] {
        assert!(!table.contains(none), "{table}");
    }
}
