//! The command line of `towline-agent`, from what was typed to what is to be done: run, check a policy, or tell something
//! and end.

use std::ffi::OsString;
use std::fmt::Write as _;

use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _};
use runtime::config::Source;

use super::{CheckFlags, Command, CommandLine, Environment, Flags, Mistakes, PolicyCommand, Settings};

/// Its name.
pub const PROGRAM: &str = "towline-agent";

/// `EX_USAGE` of sysexits.h: the configuration is wrong, and starting again does not help.
pub const USAGE: u8 = 64;

/// What is to be done.
#[derive(Debug)]
pub enum Task {
    /// Run with these.
    Run(Box<Settings>),
    /// Check a policy.
    CheckPolicy(Box<CheckFlags>),
    /// Write this and end.
    Tell {
        /// For standard output.
        output: String,
        /// For standard error.
        errors: String,
        /// The exit code.
        code: u8,
    },
    /// Let clap say it: help, the version, or what is wrong with the command line.
    Clap(clap::Error),
}

/// Reads the command line, the environment and the file that they name.
pub fn read(argv: Vec<OsString>, environment: &Environment) -> Task {
    let source = Source::new(CommandLine::command(), argv);
    let merged = match source.read() {
        Ok(merged) => merged,
        Err(error) => return Task::Clap(error),
    };
    let (checking, flags) = match CommandLine::from_arg_matches(&merged.matches) {
        Err(error) => return Task::Clap(error),
        Ok(CommandLine { command: Some(Command::Policy(PolicyCommand::Check(flags))), .. }) => {
            return Task::CheckPolicy(Box::new(flags));
        }
        Ok(CommandLine { command: Some(Command::Check(flags)), .. }) => (true, flags),
        Ok(CommandLine { command: None, flags }) => (false, flags),
    };
    let printing = flags.print_config;
    let mut output = String::new();
    if printing {
        output = merged.effective.to_yaml(PROGRAM);
        // No flags, since one of them may hold a password.
        let proxy = if environment.https_proxy.is_some() { "set, not shown" } else { "not set" };
        let none = environment.no_proxy.as_deref().map_or("not set", |_| "set");
        let _ = writeln!(output, "# HTTPS_PROXY: {proxy}\n# NO_PROXY: {none}");
    }
    let (checked, more) = match Settings::new(flags, environment) {
        Ok(settings) => (Some(settings), Vec::new()),
        Err(Mistakes(mistakes)) => (None, mistakes),
    };
    let more = more.into_iter().map(|mistake| merged.effective.place(mistake));
    let mistakes: Vec<_> = merged.mistakes.into_iter().chain(more).collect();
    match checked.filter(|_| mistakes.is_empty()) {
        Some(_) if checking || printing => {
            if checking {
                let _ = writeln!(output, "{}the configuration is good", if printing { "# " } else { "" });
            }
            Task::Tell { output, errors: String::new(), code: 0 }
        }
        Some(settings) => {
            Task::Run(Box::new(Settings { effective: merged.effective, source: Some(source), ..settings }))
        }
        None => Task::Tell { output, errors: Mistakes(mistakes).to_string(), code: USAGE },
    }
}

/// What a changed file makes of the log filter, the one key that can change.
///
/// # Errors
/// All mistakes.
pub fn again(matches: &ArgMatches, environment: &Environment) -> Result<String, Mistakes> {
    let line = CommandLine::from_arg_matches(matches).map_err(|error| Mistakes(vec![error.to_string()]))?;
    let flags: Flags = line.flags;
    Settings::new(flags, environment).map(|settings| settings.log_filter)
}

#[cfg(test)]
mod tests {
    use api::secret::Secret;
    use runtime::config::reference;

    use super::*;
    use crate::config::LIVE;

    fn environment() -> Environment {
        Environment {
            service_host: Some("10.96.0.1".to_owned()),
            https_proxy: Some(Secret::from("http://user:hunter2@proxy:3128".to_owned())),
            ..Environment::default()
        }
    }

    fn tell(args: &[&str]) -> (String, String, u8) {
        match read([PROGRAM].iter().chain(args).map(OsString::from).collect(), &environment()) {
            Task::Tell { output, errors, code } => (output, errors, code),
            other @ (Task::Run(_) | Task::CheckPolicy(_) | Task::Clap(_)) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_check_tells_all_mistakes_of_file_and_flags_each_with_its_place() {
        let path = std::env::temp_dir().join(format!("towline-agent-check-{}.yaml", std::process::id()));
        std::fs::write(&path, "thread: 2\nthreads: many\nlog-filter: debug\n").unwrap();
        let file = path.display().to_string();
        let (_, errors, code) = tell(&["check", "--config", &file, "--admin-listen=x", "--instance=a"]);
        std::fs::write(&path, "threads: 3\nlog-filter: debug\n").unwrap();
        let (good, _, fine) = tell(&["check", "--config", &file, "--instance=a"]);
        let printed = tell(&["--config", &file, "--print-config", "--instance=a", "--log-filter=warn"]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(code, 64);
        for told in [
            "3 mistakes",
            &format!("{file}, line 1: there is no key \"thread\"; the nearest one is \"threads\""),
            &format!("--threads: \"many\" is no number between 1 and 64 (set in {file}, line 2)"),
            "--admin-listen: \"x\" is no address",
        ] {
            assert!(errors.contains(told), "{told}: {errors}");
        }
        assert_eq!((good.as_str(), fine), ("the configuration is good\n", 0));
        let (printed, errors, code) = printed;
        assert_eq!((errors.as_str(), code), ("", 0));
        for line in [
            "threads: 3  # file, line 1\n",
            "log-filter: \"warn\"  # flag\n",
            "# HTTPS_PROXY: set, not shown\n",
        ] {
            assert!(printed.contains(line), "{line}: {printed}");
        }
        assert!(!printed.contains("hunter2"));
    }

    #[test]
    fn the_reference_is_what_the_program_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
        let table = reference::table(&CommandLine::command(), LIVE);
        assert_eq!(table.matches("| yes |").count(), LIVE.len(), "{table}");
        reference::compare(std::path::Path::new(path), PROGRAM, &table);
    }
}
