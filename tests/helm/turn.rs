//! Upgrades and rollbacks while fifty requests a second and two hundred watches go through what is replaced.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tests::crowd::Crowd;
use tests::kubectl::Running;
use tests::say;
use tests::world::SYSTEM;

use crate::Outcome;
use crate::stage::{Helm, Stage, Version};

/// Lines of a log that are shown after a failure.
const SHOWN: usize = 60;

/// Everybody is at work in the child; the command is run; all pods are of the version, and everybody goes on.
async fn replace(
    stage: &Stage,
    what: &str,
    app: &str,
    (hub, agent): (&Version, &Version),
    command: impl Future<Output = Outcome>,
) -> Outcome {
    let version = if app == "clusternet-hub" { hub } else { agent };
    stage.wait_ready().await?;
    stage.two_tunnels().await?;
    let logs = Logs::follow(stage)?;
    let crowd = Crowd::gather(&stage.kubeconfig().await?, stage.child.kubectl()).await?;
    command.await?;
    let cluster = if app == "clusternet-hub" { &stage.parent } else { &stage.child };
    stage.replaced(cluster, app, version).await?;
    crowd.goes_on().await?;
    let unharmed = crowd.unharmed(what);
    if unharmed.is_err() {
        logs.show()?;
    }
    unharmed?;
    // The crowd has shown that the two go together; this is what an administrator reads.
    stage.says_of_agent(hub.says_of(agent)).await
}

/// What hubs and agent say from now on, also those that go.
struct Logs {
    files: Vec<PathBuf>,
    _running: Vec<Running>,
}

impl Logs {
    fn follow(stage: &Stage) -> Result<Self> {
        let (mut files, mut running) = (Vec::new(), Vec::new());
        for (cluster, app) in [(&stage.parent, "clusternet-hub"), (&stage.child, "clusternet-agent")] {
            let file = stage.scratch().path().join(format!("{app}.log"));
            // Requests, of which there are fifty a second, are in it, too.
            let script = "\"$1\" -n \"$2\" logs -f -l \"app.kubernetes.io/name=$3\" --prefix --tail=20 --max-log-requests=9 | grep --line-buffered -v auditID >\"$4\"";
            let (kubectl, path) = (stage.kubectl().display().to_string(), file.display().to_string());
            let shell = cluster.kubectl().clone().with_binary("sh");
            running.push(shell.spawn(&["-c", script, "sh", &kubectl, SYSTEM, app, &path])?);
            files.push(file);
        }
        Ok(Self { files, _running: running })
    }

    fn show(&self) -> Outcome {
        for file in &self.files {
            let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
            let lines: Vec<&str> = text.lines().collect();
            say(&format!("{}:\n{}", name(file), lines[lines.len().saturating_sub(SHOWN)..].join("\n")));
        }
        Ok(())
    }
}

fn name(file: &Path) -> String {
    file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

pub(crate) async fn an_upgrade_of_the_hub_fails_no_request_and_breaks_no_watch(stage: &mut Stage) -> Outcome {
    let upgrade = async {
        stage.hub(Helm::Four, "upgrade", &stage.current, &["--reset-then-reuse-values"]).await.map(drop)
    };
    let versions = (&stage.current, &stage.previous);
    replace(stage, "helm upgrade of the hub", "clusternet-hub", versions, upgrade).await
}

pub(crate) async fn an_upgrade_of_the_agent_fails_no_request_and_breaks_no_watch(
    stage: &mut Stage,
) -> Outcome {
    let (chart, tag) = (stage.current.chart("towline-agent"), format!("image.tag={}", stage.current.tag));
    let upgrade = async {
        let arguments =
            ["upgrade", "towline-agent", &chart, "--wait", "--timeout", "3m", "--set-string", &tag];
        let arguments = [&arguments[..], &["--reset-then-reuse-values"]].concat();
        stage.helm(Helm::Four, &stage.child, &arguments).await.map(drop)
    };
    let versions = (&stage.current, &stage.current);
    replace(stage, "helm upgrade of the agent", "clusternet-agent", versions, upgrade).await
}

pub(crate) async fn a_rollback_of_the_hub_fails_no_request_and_breaks_no_watch(stage: &mut Stage) -> Outcome {
    let mut arguments = vec!["rollback", "towline-hub", "--wait", "--timeout", "3m"];
    arguments.extend(stage.for_old_kubernetes(Helm::Four));
    let back = async { stage.helm(Helm::Four, &stage.parent, &arguments).await.map(drop) };
    let versions = (&stage.previous, &stage.current);
    replace(stage, "helm rollback of the hub", "clusternet-hub", versions, back).await
}

pub(crate) async fn a_rollback_of_the_agent_fails_no_request_and_breaks_no_watch(
    stage: &mut Stage,
) -> Outcome {
    let arguments = ["rollback", "towline-agent", "--wait", "--timeout", "3m"];
    let back = async { stage.helm(Helm::Four, &stage.child, &arguments).await.map(drop) };
    let versions = (&stage.previous, &stage.previous);
    replace(stage, "helm rollback of the agent", "clusternet-agent", versions, back).await
}
