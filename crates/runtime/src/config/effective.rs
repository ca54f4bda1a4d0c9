//! The configuration that holds, key by key, with where each value came from: to be printed, shown, and compared with
//! the next one. Pure. A value that may hold a password is shown nowhere.

use std::fmt;
use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::{Map, json};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// There is none.
    Unset,
    /// Nobody said otherwise.
    Default,
    /// That line of the file.
    File(u64),
    /// That variable.
    Environment(String),
    /// The command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unset => f.write_str("not set"),
            Self::Default => f.write_str("default"),
            Self::File(line) => write!(f, "file, line {line}"),
            Self::Environment(name) => write!(f, "environment, {name}"),
            Self::Flag => f.write_str("flag"),
        }
    }
}

/// One key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// The long name of the flag.
    pub key: String,
    /// What holds.
    pub value: Option<String>,
    /// Whence.
    pub origin: Origin,
}

impl Value {
    /// What may be shown of it.
    pub fn shown(&self) -> Option<&str> {
        self.value.as_deref().filter(|text| !may_hold_a_password(text))
    }

    fn in_words(&self) -> String {
        match (&self.value, self.shown()) {
            (None, _) => "nothing".to_owned(),
            (Some(_), Some(shown)) => format!("{shown:?}"),
            (Some(_), None) => HIDDEN.to_owned(),
        }
    }
}

const HIDDEN: &str = "(not shown: it may hold a password)";

/// `user:password@host`. An image's digest is behind such a sign, too, and is no password.
fn may_hold_a_password(text: &str) -> bool {
    match text.rsplit_once('@') {
        None => false,
        Some((name, digest)) => !digest.starts_with("sha256:") || name.contains('@') || name.contains("://"),
    }
}

/// All keys of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effective {
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// In the order of `--help`.
    pub values: Vec<Value>,
}

/// A value that is another one than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The long name of the flag.
    pub key: String,
    /// What may be shown of the old one.
    pub from: String,
    /// What may be shown of the new one.
    pub to: String,
}

impl Effective {
    /// As a file that gives the same configuration again, each value with where it came from.
    pub fn to_yaml(&self, program: &str) -> String {
        let mut text = format!(
            "# What {program} runs with. Flags come before the environment, the environment before the file, the file before defaults.\n"
        );
        if let Some(file) = &self.file {
            let _ = writeln!(text, "# The file is {}", file.display().to_string().replace('\n', " "));
        }
        for value in &self.values {
            let (key, origin) = (&value.key, &value.origin);
            let _ = match (&value.value, value.shown()) {
                (None, _) => writeln!(text, "# {key}: not set"),
                (Some(_), None) => writeln!(text, "# {key}: {HIDDEN}  # {origin}"),
                (Some(given), _) if given.is_empty() => writeln!(text, "# {key}: empty  # {origin}"),
                // A string of JSON is one of YAML.
                (Some(given), _) if is_plain(given) => writeln!(text, "{key}: {given}  # {origin}"),
                (Some(given), _) => writeln!(text, "{key}: {}  # {origin}", json!(given)),
            };
        }
        text
    }

    /// For `/configz`: each key with what may be shown of it, where it came from, whether a change of the file takes effect
    /// without a restart, and, if it was changed in vain, what the file says now.
    pub fn to_json(&self, live: &[&str], wanted: &Self) -> serde_json::Value {
        let values = self.values.iter().map(|value| {
            let mut shown = json!({
                "value": value.shown(),
                "source": value.origin.to_string(),
                "live": live.contains(&value.key.as_str()),
            });
            if value.value.is_some() && value.shown().is_none() {
                shown["value"] = json!(HIDDEN);
            }
            let next = wanted.values.iter().find(|next| next.key == value.key);
            if let Some(next) = next.filter(|next| next.value != value.value) {
                shown["afterRestart"] = json!(next.shown());
            }
            (value.key.clone(), shown)
        });
        json!({ "file": self.file, "values": values.collect::<Map<_, _>>() })
    }

    /// What is another value in `next`; where it came from makes no difference.
    pub fn changes(&self, next: &Self) -> Vec<Change> {
        let pairs = self.values.iter().zip(&next.values);
        pairs
            .filter(|(old, new)| old.value != new.value)
            .map(|(old, new)| Change { key: old.key.clone(), from: old.in_words(), to: new.in_words() })
            .collect()
    }

    /// Takes over those values of `next` whose keys are among `keys`.
    pub fn adopt(&mut self, next: &Self, keys: &[&str]) {
        for (old, new) in self.values.iter_mut().zip(&next.values) {
            if keys.contains(&new.key.as_str()) {
                old.clone_from(new);
            }
        }
    }

    /// Says behind a mistake that begins with a flag's name where that flag's value stands, if it is not on the command
    /// line.
    pub fn place(&self, mistake: String) -> String {
        let named = mistake.strip_prefix("--").and_then(|rest| {
            let key = rest.split([' ', ':', ',']).next()?;
            self.values.iter().find(|value| value.key == key)
        });
        match (named.map(|value| &value.origin), &self.file) {
            (Some(Origin::File(line)), Some(file)) => {
                format!("{mistake} (set in {}, line {line})", file.display())
            }
            (Some(Origin::Environment(name)), _) => format!("{mistake} (set by {name})"),
            _ => mistake,
        }
    }
}

/// A number, or true or false: what YAML reads as the same text again.
fn is_plain(text: &str) -> bool {
    let number = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    text == "0" || number || matches!(text, "true" | "false")
}
