//! One case of a table: values, and what Helm has to make of them.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;
use tests::towline::repository;

use crate::object;

/// A file of the repository.
pub(crate) fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(repository().join(path)).with_context(|| path.to_owned())
}

/// Path of a Helm.
#[derive(Debug, Clone)]
pub(crate) struct Helm(String);

impl Helm {
    pub(crate) fn newest() -> Result<Self> {
        static PATH: OnceLock<String> = OnceLock::new();
        Self::known(&PATH, "helm-4")
    }

    fn oldest() -> Result<Self> {
        static PATH: OnceLock<String> = OnceLock::new();
        Self::known(&PATH, "helm-3.9")
    }

    fn known(place: &OnceLock<String>, name: &str) -> Result<Self> {
        if place.get().is_none() {
            let found = Command::new(repository().join("hack/client-binaries.sh"))
                .arg(name)
                .stderr(Stdio::inherit())
                .output()
                .context("hack/client-binaries.sh")?;
            ensure!(found.status.success(), "hack/client-binaries.sh: {}", found.status);
            let line = String::from_utf8(found.stdout)?;
            let (_, path) = line.trim().split_once(' ').context("client-binaries.sh names no path")?;
            let _ = place.set(path.to_owned());
        }
        place.get().cloned().map(Self).context("no helm")
    }
}

/// See `hub.yaml` and `agent.yaml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    /// The promise.
    #[serde(default)]
    name: String,
    /// What stands in the values file.
    #[serde(default)]
    values: Value,
    /// Of the release; clusternet-system if absent.
    namespace: Option<String>,
    /// Version of Kubernetes; Helm's own if absent.
    kube: Option<String>,
    /// Texts of the refusal. If there are any, nothing may be rendered.
    #[serde(default)]
    refused: Vec<String>,
    /// Kind/name of objects that have to be there.
    #[serde(default)]
    objects: Vec<String>,
    /// Kind/name of objects that must not be there.
    #[serde(default)]
    absent: Vec<String>,
    /// By Kind/name, JSON pointers and what stands there; null for nothing.
    #[serde(default)]
    at: BTreeMap<String, BTreeMap<String, Value>>,
    /// Texts of NOTES.txt.
    #[serde(default)]
    notes: Vec<String>,
    /// Texts that NOTES.txt has not.
    #[serde(default)]
    silent: Vec<String>,
}

/// Tries all cases of a table, and tells all that fail.
pub(crate) fn try_all(chart: &str, table: &str) -> Result<()> {
    let cases: Vec<Case> = serde_saphyr::from_str(&read(&format!("tests/charts/{table}"))?)?;
    ensure!(cases.len() > 20, "{table} has {} cases", cases.len());
    let mut failed = Vec::new();
    for case in &cases {
        if let Err(error) = case.holds(chart) {
            failed.push(format!("{}: {error:#}", case.name));
        }
    }
    ensure!(failed.is_empty(), "{} of {} cases:\n{}", failed.len(), cases.len(), failed.join("\n\n"));
    Ok(())
}

impl Case {
    /// Without any promise.
    pub(crate) fn of(values: Value) -> Self {
        Self { values, ..Self::default() }
    }

    fn holds(&self, chart: &str) -> Result<()> {
        if !self.refused.is_empty() {
            return self.is_refused(chart);
        }
        let objects = self.objects(&Helm::newest()?, chart)?;
        ensure!(objects == self.objects(&Helm::oldest()?, chart)?, "the two Helms do not agree");
        for object in &objects {
            object::check(object).with_context(|| object::name(object))?;
        }
        let objects = object::by_name(objects);
        let there: Vec<_> = objects.keys().collect();
        for name in &self.objects {
            ensure!(objects.contains_key(name), "{name} is not among {there:?}");
        }
        for name in &self.absent {
            ensure!(!objects.contains_key(name), "{name} is there");
        }
        for (name, wanted) in &self.at {
            let object = objects.get(name).with_context(|| format!("{name} is not among {there:?}"))?;
            for (pointer, wanted) in wanted {
                let found = object.pointer(pointer).unwrap_or(&Value::Null);
                if let Some(at) = object::difference(found, wanted) {
                    bail!("{name} {pointer}: found and wanted{at}");
                }
            }
        }
        self.notes_hold(chart)
    }

    fn is_refused(&self, chart: &str) -> Result<()> {
        for helm in [Helm::newest()?, Helm::oldest()?] {
            let (ok, out, error) = self.run(&helm, &["template"], chart)?;
            ensure!(!ok, "it was rendered");
            ensure!(out.is_empty(), "it was refused, and rendered all the same");
            for text in &self.refused {
                ensure!(error.contains(text.as_str()), "{text:?} is not in {error}");
            }
        }
        Ok(())
    }

    fn notes_hold(&self, chart: &str) -> Result<()> {
        if self.notes.is_empty() && self.silent.is_empty() {
            return Ok(());
        }
        let (ok, out, error) = self.run(&Helm::newest()?, &["install", "--dry-run=client"], chart)?;
        ensure!(ok, "{error}");
        let (_, notes) = out.split_once("\nNOTES:\n").context("no notes")?;
        for text in &self.notes {
            ensure!(notes.contains(text.as_str()), "{text:?} is not in the notes: {notes}");
        }
        for text in &self.silent {
            ensure!(!notes.contains(text.as_str()), "{text:?} is in the notes: {notes}");
        }
        Ok(())
    }

    /// What Helm makes of it.
    pub(crate) fn objects(&self, helm: &Helm, chart: &str) -> Result<Vec<Value>> {
        let (ok, out, error) = self.run(helm, &["template"], chart)?;
        if !ok {
            bail!("refused: {error}");
        }
        object::parse(&out)
    }

    fn run(&self, helm: &Helm, command: &[&str], chart: &str) -> Result<(bool, String, String)> {
        let mut run = Command::new(&helm.0);
        run.args(command).args(["release", &format!("charts/{chart}"), "--values", "-"]);
        run.args(["--namespace", self.namespace.as_deref().unwrap_or("clusternet-system")]);
        if command == ["template"] {
            run.args(["--kube-version", self.kube.as_deref().unwrap_or("1.30.0")]);
        }
        // Neither a cluster nor a configuration of whoever runs this.
        run.env_clear()
            .env("HOME", "/nonexistent")
            .env("KUBECONFIG", "/nonexistent")
            .current_dir(repository());
        let mut child = run.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().context("no stdin")?.write_all(self.values.to_string().as_bytes())?;
        let done = child.wait_with_output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((done.status.success(), text(&done.stdout), text(&done.stderr)))
    }
}
