//! Upgrades and rollbacks while fifty requests a second and two hundred watches go through what is replaced.

use tests::crowd::Crowd;

use crate::Outcome;
use crate::stage::{Helm, Stage, Version};

/// Everybody is at work in the child; the command is run; all pods are of the version, and everybody goes on.
async fn replace(
    stage: &Stage,
    what: &str,
    app: &str,
    version: &Version,
    command: impl Future<Output = Outcome>,
) -> Outcome {
    stage.wait_ready().await?;
    stage.two_tunnels().await?;
    let crowd = Crowd::gather(&stage.kubeconfig().await?, stage.child.kubectl()).await?;
    command.await?;
    let cluster = if app == "clusternet-hub" { &stage.parent } else { &stage.child };
    stage.replaced(cluster, app, version).await?;
    crowd.goes_on().await?;
    crowd.unharmed(what)
}

pub(crate) async fn an_upgrade_of_the_hub_fails_no_request_and_breaks_no_watch(stage: &mut Stage) -> Outcome {
    let upgrade = async {
        stage.hub(Helm::Four, "upgrade", &stage.current, &["--reset-then-reuse-values"]).await.map(drop)
    };
    replace(stage, "helm upgrade of the hub", "clusternet-hub", &stage.current, upgrade).await
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
    replace(stage, "helm upgrade of the agent", "clusternet-agent", &stage.current, upgrade).await
}

pub(crate) async fn a_rollback_of_the_hub_fails_no_request_and_breaks_no_watch(stage: &mut Stage) -> Outcome {
    let mut arguments = vec!["rollback", "towline-hub", "--wait", "--timeout", "3m"];
    arguments.extend(stage.for_old_kubernetes(Helm::Four));
    let back = async { stage.helm(Helm::Four, &stage.parent, &arguments).await.map(drop) };
    replace(stage, "helm rollback of the hub", "clusternet-hub", &stage.previous, back).await
}

pub(crate) async fn a_rollback_of_the_agent_fails_no_request_and_breaks_no_watch(
    stage: &mut Stage,
) -> Outcome {
    let arguments = ["rollback", "towline-agent", "--wait", "--timeout", "3m"];
    let back = async { stage.helm(Helm::Four, &stage.child, &arguments).await.map(drop) };
    replace(stage, "helm rollback of the agent", "clusternet-agent", &stage.previous, back).await
}
