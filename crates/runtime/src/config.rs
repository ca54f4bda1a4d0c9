//! One configuration out of the command line, the environment, a file and the defaults, in this order of weight. What
//! may stand in it is said once, to clap: the keys of the file are the long names of the flags.
//!
//! [`Source::merge`] is pure; [`Source::read`] adds the one file. No value of a key that is not known is ever repeated,
//! nor one that looks as if it held a password: somebody will put one there.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::builder::TypedValueParser as _;
use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

pub use self::effective::{Change, Effective, Origin, Value};
use self::file::Entry;
use crate::files::read_small;

mod effective;
mod file;
pub mod follow;
pub mod reference;

/// Flag and file key that name the file itself; only a flag or the environment can.
pub const FILE: &str = "config";
/// Prints what is in force, and where it came from.
pub const PRINT: &str = "print-config";
/// The subcommand that takes the same flags and only checks them.
pub const CHECK: &str = "check";

/// As much of an unknown key is repeated.
const LONGEST_KEY: usize = 64;

/// Where a process's configuration comes from. The environment is read when clap's [`Command`] is made.
#[derive(Debug, Clone)]
pub struct Source {
    command: Command,
    argv: Vec<OsString>,
}

/// What comes out.
#[derive(Debug)]
pub struct Merged {
    /// For `FromArgMatches`.
    pub matches: ArgMatches,
    /// What holds, and whence.
    pub effective: Effective,
    /// What is wrong with the file.
    pub mistakes: Vec<String>,
}

impl Source {
    /// The command may have the subcommand [`CHECK`], with the same flags as itself.
    pub fn new(command: Command, argv: Vec<OsString>) -> Self {
        Self { command, argv }
    }

    /// Reads the file that flag or environment name, and merges.
    ///
    /// # Errors
    /// What clap says about the command line, `--help` and `--version` included.
    pub fn read(&self) -> Result<Merged, clap::Error> {
        let Some(path) = self.path()? else { return self.merge(None) };
        match read_small(&path) {
            Ok(text) => self.merge(Some(&text)),
            Err(error) => {
                let mut merged = self.merge(None)?;
                merged.mistakes.push(format!("--{FILE} {}: it cannot be read: {error}", path.display()));
                Ok(merged)
            }
        }
    }

    /// The file, if flag or environment name one.
    ///
    /// # Errors
    /// As [`Source::read`].
    pub fn path(&self) -> Result<Option<PathBuf>, clap::Error> {
        let typed = self.command.clone().try_get_matches_from(&self.argv)?;
        let (_, given) = chosen(&typed);
        let named = given.try_get_raw(FILE).ok().flatten().and_then(|mut values| values.next());
        Ok(named.filter(|path| !path.is_empty()).map(PathBuf::from))
    }

    /// Puts what the file says under what flags and environment say.
    ///
    /// # Errors
    /// As [`Source::read`].
    pub fn merge(&self, file: Option<&str>) -> Result<Merged, clap::Error> {
        let typed = self.command.clone().try_get_matches_from(&self.argv)?;
        let (checking, given) = chosen(&typed);
        let path = self.path()?;
        let name = path.as_ref().map_or_else(|| "the file".to_owned(), |path| path.display().to_string());
        let mut mistakes = Vec::new();
        let entries = file.map_or(Ok(Vec::new()), file::read).unwrap_or_else(|why| {
            mistakes.push(format!("{name}: {why}"));
            Vec::new()
        });
        let (mut argv, mut lines) = (self.argv.clone(), BTreeMap::new());
        for entry in entries {
            match self.take(&entry) {
                Ok((arg, text)) => {
                    if !is_decided(given, arg) {
                        // As a flag behind the name of the program, or of the subcommand: what clap does with a flag is
                        // then done with it.
                        argv.insert(1 + usize::from(checking), format!("--{}={text}", entry.key).into());
                        lines.insert(entry.key, entry.line);
                    }
                }
                Err(why) => mistakes.push(format!("{name}, line {}: {why}", entry.line)),
            }
        }
        let matches = match self.command.clone().try_get_matches_from(&argv) {
            Ok(matches) => matches,
            Err(error) if lines.is_empty() => return Err(error),
            Err(error) => {
                mistakes.push(format!("{name}: {}", first_line(&error)));
                typed.clone()
            }
        };
        let (_, result) = chosen(&matches);
        let values = keys(&self.command).map(|arg| value(arg, given, result, &lines)).collect();
        let effective = Effective { file: path, values };
        Ok(Merged { matches, effective, mistakes })
    }

    /// The flag of an entry, and its value.
    fn take<'a>(&'a self, entry: &'a Entry) -> Result<(&'a Arg, &'a str), String> {
        let key = &entry.key;
        let Some(arg) = keys(&self.command).find(|arg| arg.get_long() == Some(key)) else {
            let key: String = key.chars().take(LONGEST_KEY).collect();
            return Err(match self.nearest(&key) {
                Some(known) => format!("there is no key {key:?}; the nearest one is {known:?}"),
                None => format!("there is no key {key:?}; --help lists all, as flags"),
            });
        };
        let text = entry.value.as_deref().map_err(|why| format!("{key}: {why}"))?;
        if is_switch(arg) && !matches!(text, "true" | "false") {
            return Err(format!("{key} is true or false"));
        }
        Ok((arg, text))
    }

    /// What clap would propose.
    fn nearest(&self, key: &str) -> Option<String> {
        let name = self.command.get_name().to_owned();
        let error = self.command.clone().try_get_matches_from([name, format!("--{key}")]).err()?;
        let ContextValue::String(flag) = error.get(ContextKind::SuggestedArg)? else { return None };
        let known = flag.trim_start_matches('-').split('=').next()?;
        keys(&self.command).find(|arg| arg.get_long() == Some(known)).map(|_| known.to_owned())
    }
}

/// Whether only a check was asked for, and what was given with it.
fn chosen(matches: &ArgMatches) -> (bool, &ArgMatches) {
    match matches.subcommand() {
        Some((CHECK, checked)) => (true, checked),
        _ => (false, matches),
    }
}

/// The flags that can stand in a file.
fn keys(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| {
        let own = [FILE, PRINT, "help", "version"];
        arg.get_long().is_some_and(|long| !own.contains(&long)) && !arg.is_hide_set()
    })
}

fn is_switch(arg: &Arg) -> bool {
    arg.get_default_values() == [OsStr::new("false")]
}

/// Whether flag or environment say something. An empty variable says nothing.
fn is_decided(given: &ArgMatches, arg: &Arg) -> bool {
    let source = given.value_source(arg.get_id().as_str());
    source == Some(ValueSource::CommandLine)
        || source == Some(ValueSource::EnvVariable) && raw(given, arg).is_some_and(|text| !text.is_empty())
}

fn raw(matches: &ArgMatches, arg: &Arg) -> Option<String> {
    let mut values = matches.get_raw(arg.get_id().as_str())?;
    values.next().map(|text| text.to_string_lossy().into_owned())
}

fn value(arg: &Arg, given: &ArgMatches, result: &ArgMatches, lines: &BTreeMap<String, u64>) -> Value {
    let key = arg.get_long().unwrap_or_default().to_owned();
    let value = raw(result, arg);
    let origin = match (given.value_source(arg.get_id().as_str()), lines.get(&key)) {
        (_, Some(&line)) => Origin::File(line),
        (Some(ValueSource::CommandLine), None) => Origin::Flag,
        (Some(ValueSource::EnvVariable), None) => {
            Origin::Environment(arg.get_env().unwrap_or_default().to_string_lossy().into_owned())
        }
        (_, None) if value.is_some() => Origin::Default,
        (_, None) => Origin::Unset,
    };
    Value { key, value, origin }
}

fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

/// For switches that are flags, variables and keys: `--switch`, `--switch=false`, `SWITCH=1`. Empty is false.
///
/// # Errors
/// It is none of clap's words for yes and no.
pub fn switch(text: &str) -> Result<bool, String> {
    if text.is_empty() {
        return Ok(false);
    }
    let read = BoolishValueParser::new().parse_ref(&Command::new("switch"), None, OsStr::new(text));
    read.map_err(|_| "it is true or false".to_owned())
}

#[cfg(test)]
mod tests;
