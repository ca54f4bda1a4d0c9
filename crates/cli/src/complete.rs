//! Completion: one engine that walks the command line's own definition and answers as cobra's `__complete` does (a
//! candidate a line, `:DIRECTIVE` at the end), and four thin scripts that ask it: bash, zsh, fish, and
//! `kubectl_complete-towline`, which kubectl runs for plugins from 1.26 on (kubernetes/kubernetes#105867).
//!
//! Cluster names are asked of the parent, within a second; whatever goes wrong there is silence, for nobody wants an
//! error in the middle of a line.

use std::time::Duration;

use api::cluster::ManagedCluster;
use clap::{Arg, ArgAction, Command, CommandFactory as _, Parser as _};
use kube::ResourceExt;
use kube::api::{Api, ListParams};

use crate::args::{Cli, Completion, Global, Shell};
use crate::failure::Failure;
use crate::find;
use crate::output::data;
use crate::session::Session;

/// Longest that a person waits for names behind a TAB.
const LIMIT: Duration = Duration::from_secs(1);
/// Most names that are offered: more than a screen is no help.
const MAX_NAMES: usize = 500;
/// cobra's `ShellCompDirectiveNoFileComp`: what is offered is all there is.
const NO_FILES: u8 = 4;
/// cobra's `ShellCompDirectiveDefault`: the shell may offer files.
const FILES: u8 = 0;

/// What stands behind TAB.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    /// Words that are known, each with a description.
    Words(Vec<(String, String)>),
    /// Clusters, and words that may stand there too.
    Clusters(Vec<(String, String)>),
    /// A file.
    Files,
    /// Something that only the person knows.
    Nothing,
}

/// Prints the script.
pub(crate) fn script(args: &Completion) -> Result<(), Failure> {
    data(match args.shell {
        Shell::Bash => include_str!("complete/towline.bash"),
        Shell::Zsh => include_str!("complete/towline.zsh"),
        Shell::Fish => include_str!("complete/towline.fish"),
        Shell::Kubectl => include_str!("complete/kubectl_complete-towline"),
    })
}

/// Answers one TAB. The last word is the one that is being written.
pub(crate) async fn answer(words: &[String]) -> Result<(), Failure> {
    let (before, last) = match words.split_last() {
        Some((last, before)) => (before, last.as_str()),
        None => (&[][..], ""),
    };
    let mut root = Cli::command();
    root.build();
    let wanted = wanted(&root, before, last);
    let (candidates, directive) = match wanted {
        Wanted::Words(words) => (words, NO_FILES),
        Wanted::Nothing => (Vec::new(), NO_FILES),
        Wanted::Files => (Vec::new(), FILES),
        Wanted::Clusters(mut words) => {
            let names = tokio::time::timeout(LIMIT, clusters(before)).await.unwrap_or_default();
            words.extend(names.into_iter().map(|name| (name, String::new())));
            (words, NO_FILES)
        }
    };
    data(&written(&candidates, last, directive))
}

fn written(candidates: &[(String, String)], last: &str, directive: u8) -> String {
    let mut out = String::new();
    for (word, about) in candidates.iter().filter(|(word, _)| word.starts_with(last)) {
        out.push_str(word);
        if !about.is_empty() {
            out.push('\t');
            out.push_str(about);
        }
        out.push('\n');
    }
    out + &format!(":{directive}\n")
}

/// Goes along the words as the parser would, to what may come next.
fn wanted(root: &Command, before: &[String], last: &str) -> Wanted {
    let mut command = root;
    let mut positionals = 0;
    let mut words = before.iter().map(String::as_str);
    while let Some(word) = words.next() {
        if word.starts_with('-') && word.len() > 1 {
            let Some(flag) = flag(command, word) else { continue };
            // `--flag=value` has its value with it; a flag that needs one takes the next word.
            if takes_value(flag) && !word.contains('=') && words.next().is_none() {
                return value_of(flag);
            }
            continue;
        }
        match command.find_subcommand(word) {
            Some(inner) if positionals == 0 => command = inner,
            Some(_) | None => positionals += 1,
        }
    }
    if last.starts_with('-') {
        return Wanted::Words(flags(command));
    }
    let subcommands: Vec<(String, String)> = command
        .get_subcommands()
        .filter(|inner| !inner.is_hide_set())
        .map(|inner| (inner.get_name().to_owned(), first_line(inner.get_about())))
        .collect();
    let positional = command.get_positionals().nth(positionals).or_else(|| {
        command.get_positionals().last().filter(|arg| matches!(arg.get_action(), ArgAction::Append))
    });
    match positional {
        Some(arg) if subcommands.is_empty() => value_of(arg),
        Some(arg) if positionals == 0 && is_cluster(arg) => Wanted::Clusters(subcommands),
        Some(_) | None if positionals == 0 && !subcommands.is_empty() => Wanted::Words(subcommands),
        Some(_) | None => Wanted::Nothing,
    }
}

fn first_line(about: Option<&clap::builder::StyledStr>) -> String {
    about.map(|about| about.to_string().lines().next().unwrap_or_default().to_owned()).unwrap_or_default()
}

fn flag<'a>(command: &'a Command, word: &str) -> Option<&'a Arg> {
    let name = word.split('=').next().unwrap_or_default();
    command.get_arguments().find(|arg| match (name.strip_prefix("--"), name.strip_prefix('-')) {
        (Some(long), _) => arg.get_long() == Some(long),
        (None, Some(short)) => arg.get_short().is_some_and(|one| short == one.to_string()),
        (None, None) => false,
    })
}

fn takes_value(arg: &Arg) -> bool {
    arg.get_action().takes_values() && !arg.is_require_equals_set()
}

fn flags(command: &Command) -> Vec<(String, String)> {
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
    shown.filter_map(|arg| Some((format!("--{}", arg.get_long()?), first_line(arg.get_help())))).collect()
}

fn is_cluster(arg: &Arg) -> bool {
    arg.get_value_names().is_some_and(|names| names.iter().any(|name| name == "CLUSTER"))
}

fn value_of(arg: &Arg) -> Wanted {
    let choices: Vec<(String, String)> = arg
        .get_possible_values()
        .iter()
        .filter(|choice| !choice.is_hide_set())
        .map(|choice| (choice.get_name().to_owned(), first_line(choice.get_help())))
        .collect();
    if !choices.is_empty() {
        return Wanted::Words(choices);
    }
    let named =
        |wanted: &str| arg.get_value_names().is_some_and(|names| names.iter().any(|name| name == wanted));
    if is_cluster(arg) {
        return Wanted::Clusters(Vec::new());
    }
    if named("FILE") { Wanted::Files } else { Wanted::Nothing }
}

/// Names of clusters, as the flags before lead to the parent.
async fn clusters(before: &[String]) -> Vec<String> {
    let global = global(before);
    let Ok(session) = Session::open(&global).await else { return Vec::new() };
    let api: Api<ManagedCluster> = Api::all(session.client.clone());
    let approving = before.iter().any(|word| word == "approve" || word == "deny");
    let requests = async {
        if approving { find::requests_lately(&session).await.unwrap_or_default() } else { Vec::new() }
    };
    let listed =
        async { session.list_cached("list clusters", &api, ListParams::default()).await.unwrap_or_default() };
    let (listed, requests) = tokio::join!(listed, requests);
    let mut names: Vec<String> = listed.iter().map(ResourceExt::name_any).collect();
    names.extend(requests.iter().filter(|one| find::is_open(one)).map(|one| one.spec.cluster_name.clone()));
    // The objects are other people's: what is no name does not get into a shell.
    names.retain(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte)));
    names.sort();
    names.dedup();
    names.truncate(MAX_NAMES);
    names
}

/// The flags that lead to the parent, of a line that is not whole yet.
fn global(before: &[String]) -> Global {
    let mut words = vec!["kubectl-towline".to_owned()];
    let mut given = before.iter();
    while let Some(word) = given.next() {
        let name = word.split('=').next().unwrap_or_default();
        if !["--kubeconfig", "--context", "--as", "--as-group"].contains(&name) {
            continue;
        }
        words.push(word.clone());
        if !word.contains('=') {
            words.extend(given.next().cloned());
        }
    }
    words.push("version".to_owned());
    let global = Cli::try_parse_from(words).map(|cli| cli.global).unwrap_or_default();
    Global { request_timeout: LIMIT, verbose: 0, ..global }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(line: &str, last: &str) -> Wanted {
        let mut root = Cli::command();
        root.build();
        let before: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        wanted(&root, &before, last)
    }

    fn words(wanted: Wanted) -> Vec<String> {
        match wanted {
            Wanted::Words(words) => words.into_iter().map(|(word, _)| word).collect(),
            Wanted::Clusters(_) | Wanted::Files | Wanted::Nothing => panic!("{wanted:?}"),
        }
    }

    #[test]
    fn what_may_come_next_is_offered() {
        let first = words(after("", ""));
        for command in ["register", "clusters", "doctor", "access", "support-bundle", "completion"] {
            assert!(first.iter().any(|word| word == command), "{first:?}");
        }
        assert!(!first.iter().any(|word| word.starts_with("__")), "{first:?}");
        for line in [
            "status",
            "doctor",
            "--context p status",
            "approve --yes",
            "access",
            "access can-i",
            "label",
            "kubeconfig --ttl 1h",
        ] {
            assert!(matches!(after(line, ""), Wanted::Clusters(_)), "{line}");
        }
        assert_eq!(words(after("clusters -o", "")), ["table", "wide", "json", "yaml", "name"]);
        assert_eq!(words(after("completion", "")), ["bash", "zsh", "fish", "kubectl"]);
        assert!(words(after("clusters", "--")).contains(&"--selector".to_owned()));
        assert!(words(after("clusters", "-")).contains(&"--kubeconfig".to_owned()));
        assert_eq!(after("clusters --kubeconfig", ""), Wanted::Files);
        assert_eq!(after("register", ""), Wanted::Nothing);
        assert_eq!(after("status edge-1", ""), Wanted::Nothing);
    }

    #[test]
    fn the_answer_is_cobras() {
        let candidates = [("edge-1".to_owned(), String::new()), ("core".to_owned(), "about".to_owned())];
        assert_eq!(written(&candidates, "", NO_FILES), "edge-1\ncore\tabout\n:4\n");
        assert_eq!(written(&candidates, "e", NO_FILES), "edge-1\n:4\n");
        assert_eq!(written(&[], "", FILES), ":0\n");
    }

    #[test]
    fn the_flags_of_an_unfinished_line_lead_to_the_parent() {
        let line = ["status", "--context=p", "--kubeconfig", "/k", "--as", "alice", "-o"];
        let global = global(&line.map(str::to_owned));
        assert_eq!(global.context.as_deref(), Some("p"));
        assert_eq!(global.kubeconfig.as_deref(), Some(std::path::Path::new("/k")));
        assert_eq!((global.impersonate.as_deref(), global.request_timeout), (Some("alice"), LIMIT));
    }
}
