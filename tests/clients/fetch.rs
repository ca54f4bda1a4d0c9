//! Where the clients come from: scripts in `hack/`, each of which fetches what is not there yet and says what went wrong.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use tests::kubectl::Kubectl;
use tests::towline::repository;

use crate::stage::Stage;
use crate::tool::Tool;

/// The newest is the one that all other tests use.
const KUBECTL: [&str; 6] =
    ["kubectl-1.20", "kubectl-1.24", "kubectl-1.28", "kubectl-1.30", "kubectl-1.32", "kubectl-1.35"];
const FEW: [&str; 2] = ["kubectl-1.20", "kubectl-1.28"];
const HELM: [&str; 2] = ["helm-3", "helm-4"];

/// Programs and libraries, on this machine.
#[derive(Debug)]
pub(crate) struct Fetched {
    kubectl: Vec<String>,
    helm: Vec<String>,
    python: PathBuf,
    javascript: PathBuf,
}

/// Programs with the version that they say themselves.
#[derive(Debug)]
pub(crate) struct Named {
    /// Version and path of each kubectl, the newest last.
    pub(crate) kubectl: Vec<(String, String)>,
    pub(crate) helm: Vec<Tool>,
}

impl Fetched {
    /// Fetches what is not there.
    ///
    /// # Errors
    /// When one client cannot be had.
    pub(crate) fn all(few: bool) -> Result<Self> {
        let line = |script: &str| -> Result<PathBuf> { Ok(PathBuf::from(run(script, &[])?.trim())) };
        let paths = |names: &[&str]| -> Result<Vec<String>> {
            let said = run("hack/client-binaries.sh", names)?;
            Ok(said.lines().filter_map(|line| Some(line.split_once(' ')?.1.to_owned())).collect())
        };
        Ok(Self {
            kubectl: paths(if few { &FEW } else { &KUBECTL })?,
            helm: paths(&HELM)?,
            python: line("hack/python-clients.sh")?,
            javascript: line("hack/javascript-clients.sh")?,
        })
    }

    /// The client libraries, and curl.
    pub(crate) fn libraries(&self) -> Result<Vec<Tool>> {
        Tool::libraries(&self.python, &self.javascript)
    }

    /// Asks each program which version it is.
    pub(crate) async fn named(&self, stage: &Stage) -> Result<Named> {
        let newest = stage.newest().display().to_string();
        let mut kubectl: Vec<(String, String)> = Vec::new();
        for path in self.kubectl.iter().chain([&newest]) {
            let version = kubectl_version(stage.plain(), path).await?;
            // Whoever points KUBEBUILDER_ASSETS to a Kubernetes of one of these versions has its kubectl twice.
            if !kubectl.iter().any(|(known, _)| *known == version) {
                kubectl.push((version, path.clone()));
            }
        }
        let mut helm = Vec::new();
        for path in &self.helm {
            let program = stage.plain().clone().with_binary(path);
            let version = program.ok(&["version", "--template", "{{.Version}}"]).await?;
            helm.push(Tool::helm(version.trim().trim_start_matches('v'), PathBuf::from(path)));
        }
        Ok(Named { kubectl, helm })
    }
}

fn run(script: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(repository().join(script))
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {script}"))?;
    if !output.status.success() {
        bail!("{script} failed; the reason stands above");
    }
    Ok(String::from_utf8(output.stdout)?)
}

async fn kubectl_version(kubectl: &Kubectl, path: &str) -> Result<String> {
    let said = kubectl.clone().with_binary(path).ok(&["version", "--client", "-o", "json"]).await?;
    let said: serde_json::Value = serde_json::from_str(&said)?;
    let version = said["clientVersion"]["gitVersion"].as_str().context("kubectl says no version")?;
    Ok(version.trim_start_matches('v').to_owned())
}
