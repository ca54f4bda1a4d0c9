//! The command line of `towline-hub`, from what was typed to what is to be done: run, or tell something and end.

use std::ffi::OsString;
use std::fmt::Write as _;

use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use runtime::config::Source;

use super::{Config, Mistakes, Settings};

/// Its name.
pub const PROGRAM: &str = "towline-hub";

/// `EX_USAGE` of sysexits.h: the configuration is wrong, and starting again does not help.
pub const BAD_CONFIGURATION: u8 = 64;

const EXIT_CODES: &str = "Exit codes: 0 it was told to stop, or the check found nothing; 1 the hub failed, and may be started again; 64 the command line or the configuration is wrong.";

/// The hub of a multi-cluster access plane
#[derive(Debug, Clone, Parser)]
#[command(name = PROGRAM, version, args_conflicts_with_subcommands = true, after_help = EXIT_CODES)]
pub struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    config: Config,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Checks the configuration and ends: takes the same flags, environment and file, and starts nothing.
    #[command(after_help = EXIT_CODES)]
    Check(Config),
}

/// What is to be done.
#[derive(Debug)]
pub enum Task {
    /// Run with these.
    Run(Box<Settings>),
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
pub fn read(argv: Vec<OsString>) -> Task {
    let source = Source::new(CommandLine::command(), argv);
    let merged = match source.read() {
        Ok(merged) => merged,
        Err(error) => return Task::Clap(error),
    };
    let (checking, config) = match config_of(&merged.matches) {
        Ok(read) => read,
        Err(error) => return Task::Clap(error),
    };
    let printing = config.print_config;
    let mut output = if printing { merged.effective.to_yaml(PROGRAM) } else { String::new() };
    let (checked, more) = match config.check() {
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
        None => {
            let errors = format!("{PROGRAM}: {}\n", Mistakes(mistakes));
            Task::Tell { output, errors, code: BAD_CONFIGURATION }
        }
    }
}

/// What a changed file makes of the settings.
///
/// # Errors
/// All mistakes.
pub fn again(matches: &ArgMatches) -> Result<Settings, Mistakes> {
    let (_, config) = config_of(matches).map_err(|error| Mistakes(vec![error.to_string()]))?;
    config.check()
}

fn config_of(matches: &ArgMatches) -> Result<(bool, Config), clap::Error> {
    let line = CommandLine::from_arg_matches(matches)?;
    Ok(match line.command {
        Some(Command::Check(config)) => (true, config),
        None => (false, line.config),
    })
}

#[cfg(test)]
mod tests {
    use runtime::config::reference;

    use super::*;
    use crate::config::LIVE;

    fn tell(args: &[&str]) -> (String, String, u8) {
        match read([PROGRAM].iter().chain(args).map(OsString::from).collect()) {
            Task::Tell { output, errors, code } => (output, errors, code),
            other @ (Task::Run(_) | Task::Clap(_)) => panic!("{other:?}"),
        }
    }

    fn file(name: &str, text: &str) -> String {
        let path = std::env::temp_dir().join(format!("towline-hub-{name}-{}.yaml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    #[test]
    fn a_check_tells_all_mistakes_of_file_and_flags_each_with_its_place() {
        let path =
            file("check", "max-in-flite: 3\nmax-rate-per-user: many\nlisten: nowhere\nlog-filter: =x=\n");
        let (output, errors, code) =
            tell(&["check", "--config", &path, "--public-url=http://a", "--hub-id="]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!((output.as_str(), code), ("", 64));
        for told in [
            "5 mistake(s)",
            &format!(
                "{path}, line 1: there is no key \"max-in-flite\"; the nearest one is \"max-in-flight\""
            ),
            &format!(
                "--max-rate-per-user \"many\" is no number between 1 and 1000000 (set in {path}, line 2)"
            ),
            &format!(
                "--listen \"nowhere\" is no address with a port, like 0.0.0.0:8443 (set in {path}, line 3)"
            ),
            &format!("(set in {path}, line 4)"),
            "--public-url \"http://a\" has to begin with https://",
        ] {
            assert!(errors.contains(told), "{told}: {errors}");
        }
        let (output, errors, code) = tell(&["check", "--public-url=https://a"]);
        assert_eq!((output.as_str(), errors.as_str(), code), ("the configuration is good\n", "", 0));
    }

    #[test]
    fn what_is_printed_is_a_good_file_of_the_same_settings() {
        let path = file("print", "max-rate-per-user: 7\npublic-url: https://a\nmap-service-accounts: true\n");
        let (printed, errors, code) = tell(&["--config", &path, "--print-config", "--listen=127.0.0.1:1"]);
        assert_eq!((errors.as_str(), code), ("", 0));
        for line in [
            "max-rate-per-user: 7  # file, line 1\n",
            "public-url: \"https://a\"  # file, line 2\n",
            "listen: \"127.0.0.1:1\"  # flag\n",
            "shutdown-grace: \"15s\"  # default\n",
            "# gateway-url: not set\n",
        ] {
            assert!(printed.contains(line), "{line}: {printed}");
        }
        std::fs::write(&path, &printed).unwrap();
        let argv = [PROGRAM, "--config", &path].map(OsString::from);
        let Task::Run(settings) = read(argv.to_vec()) else { panic!("it does not run with {printed}") };
        std::fs::remove_file(&path).unwrap();
        assert!(
            settings.map_service_accounts && settings.limits.user_rate == 7 && settings.listen.port() == 1
        );
        let (printed, errors, code) = tell(&["--print-config", "--public-url=https://u:hunter2@a"]);
        assert!(!(printed + &errors).contains("hunter2") && code == 64, "{errors}");
    }

    #[test]
    fn keys_that_can_change_are_keys() {
        let table = reference::table(&CommandLine::command(), LIVE);
        assert_eq!(table.matches("| yes |").count(), LIVE.len(), "{table}");
    }

    #[test]
    fn the_reference_is_what_the_program_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
        reference::compare(
            std::path::Path::new(path),
            PROGRAM,
            &reference::table(&CommandLine::command(), LIVE),
        );
    }
}
