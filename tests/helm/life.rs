//! How releases come and go: install, `helm test`, uninstall, and what is left then.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tests::kubectl::Kubectl;
use tests::process::wait_until;
use tests::world::{CHILD, SYSTEM};

use crate::Outcome;
use crate::stage::{Helm, SOON, Stage};

/// After which a namespace that is being deleted is stuck.
const STUCK: Duration = Duration::from_secs(30);
const SERVICES: [&str; 2] = ["v1alpha1.proxies.clusternet.io", "v1alpha1.access.towline.io"];

/// The values of a hub with two replicas.
fn values(stage: &Stage) -> Vec<String> {
    let mut values = vec![format!("publicURL={}", stage.public_url), "replicas=2".to_owned()];
    if stage.has_disruption_budgets() {
        values.push("podDisruptionBudget.enabled=true".to_owned());
    }
    values.into_iter().flat_map(|value| ["--set".to_owned(), value]).collect()
}

async fn install_hub(stage: &Stage, helm: Helm) -> Outcome {
    let values = values(stage);
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    let version = if helm == Helm::Four { &stage.previous } else { &stage.current };
    let notes = stage.hub(helm, "install", version, &values).await?;
    ensure!(notes.contains("kubectl towline register edge-1"), "{notes}");
    ensure!(!notes.contains("does not enforce"), "{notes}");
    // As NOTES.txt says.
    let [proxies, access] = SERVICES.map(|name| format!("apiservice/{name}"));
    let wait = ["wait", "--for=condition=Available", "--timeout=2m", &proxies, &access];
    stage.parent.kubectl().clone().with_time_limit(SOON).ok(&wait).await?;
    passes(stage, helm, "towline-hub").await
}

async fn passes(stage: &Stage, helm: Helm, release: &str) -> Outcome {
    let cluster = if release == "towline-hub" { &stage.parent } else { &stage.child };
    let said = stage.helm(helm, cluster, &["test", release, "--timeout", "90s"]).await?;
    ensure!(said.contains("Succeeded"), "{said}");
    let left = cluster.kubectl().ok(&["-n", SYSTEM, "get", "pods", "-o", "name"]).await?;
    ensure!(!left.contains("test"), "a test that succeeded stays: {left}");
    Ok(())
}

pub(crate) async fn two_hubs_install_and_answer_through_the_parent(stage: &mut Stage) -> Outcome {
    install_hub(stage, Helm::Four).await?;
    let pods = stage.pods(&stage.parent, "clusternet-hub").await?;
    ensure!(pods.len() == 2, "{pods:?}");
    wait_until("two Leases of replicas", SOON, async || {
        let leases = stage.parent.kubectl().ok(&["-n", SYSTEM, "get", "leases", "-o", "name"]).await?;
        let all = pods.iter().all(|(pod, _)| leases.contains(pod.as_str()));
        if all { Ok(()) } else { bail!("{leases}") }
    })
    .await
}

pub(crate) async fn an_agent_installs_from_the_secret_of_an_invitation(stage: &mut Stage) -> Outcome {
    // As docs/install.md has it.
    let manifest = stage.scratch().path().join("agent.yaml").display().to_string();
    stage.cli(&["register", CHILD, "--out", &manifest]).await?;
    let script = "\"$1\" create --dry-run=client -o json -f \"$2\" \
        | jq 'select(.metadata.name == \"clusternet-agent-cluster-registration\") | .metadata.name = \"invitation\"' \
        | \"$1\" apply -f -";
    let shell = stage.child.kubectl().clone().with_binary("sh");
    shell.ok(&["-c", script, "sh", &stage.kubectl().display().to_string(), &manifest]).await?;
    let (chart, tag) = (stage.previous.chart("towline-agent"), format!("image.tag={}", stage.previous.tag));
    let install = ["install", "towline-agent", &chart, "--set-string", &tag, "--set", "policy.preset=edit"];
    let invited = ["--set", "registration.existingSecret=invitation"];
    stage.helm(Helm::Four, &stage.child, &[&install[..], &invited].concat()).await?;

    let fingerprint = wait_until("the fingerprint in the agent's log", SOON, async || {
        let log = stage.child.kubectl().ok(&["-n", SYSTEM, "logs", "deployment/clusternet-agent"]).await?;
        let words = log.split(|c: char| c.is_whitespace() || "\"'=,".contains(c));
        words.map(str::to_owned).find(|word| word.starts_with("SHA256:")).context("no SHA256: in it")
    })
    .await?;
    wait_until("the registration request", SOON, async || {
        let listed = stage.parent.kubectl().ok(&["get", "clsrr", "-o", "name"]).await?;
        if listed.is_empty() { bail!("none") } else { Ok(()) }
    })
    .await?;
    stage.cli(&["approve", CHILD, "--fingerprint", &fingerprint]).await?;
    stage.wait_ready().await?;
    let child = stage.child.kubectl().clone().with_time_limit(SOON);
    child.ok(&["-n", SYSTEM, "rollout", "status", "deployment/clusternet-agent", "--timeout=80s"]).await?;
    child.ok(&["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"]).await?;
    passes(stage, Helm::Four, "towline-agent").await
}

/// What has been deleted in the parent so far, in its order: resource/name.
fn deleted(stage: &Stage) -> Result<Vec<String>> {
    let events = stage.parent.plane.audit_events()?;
    let deletes =
        events.iter().filter(|event| event["verb"] == "delete" && event["stage"] == "ResponseComplete");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(deletes
        .map(|event| {
            format!("{}/{}", text(&event["objectRef"]["resource"]), text(&event["objectRef"]["name"]))
        })
        .collect())
}

async fn uninstall_hub(stage: &Stage, helm: Helm) -> Outcome {
    let before = deleted(stage)?.len();
    stage.helm(helm, &stage.parent, &["uninstall", "towline-hub", "--wait", "--timeout", "2m"]).await?;
    let all = deleted(stage)?;
    let order = all.get(before..).context("the audit log grows")?;
    let at =
        |what: &str| order.iter().position(|one| one == what).with_context(|| format!("{what} in {order:?}"));
    for service in SERVICES {
        let gone = at(&format!("apiservices/{service}"))?;
        for later in ["services/clusternet-hub", "deployments/clusternet-hub", "clusterroles/clusternet:hub"]
        {
            let later = order.iter().position(|one| one == later);
            ensure!(later.is_none_or(|later| gone < later), "the APIServices do not go first: {order:?}");
        }
    }
    at("deployments/clusternet-hub")?;
    ensure!(!order.iter().any(|one| one.starts_with("customresourcedefinitions/")), "{order:?}");
    no_namespace_is_stuck(stage.parent.kubectl()).await
}

/// One that is deleted now goes, and no other one waits.
async fn no_namespace_is_stuck(kubectl: &Kubectl) -> Outcome {
    kubectl.ok(&["create", "namespace", "after-all"]).await?;
    kubectl.ok(&["delete", "namespace", "after-all", "--timeout=25s"]).await?;
    wait_until("no namespace to be Terminating", STUCK, async || {
        let phases = r"jsonpath={range .items[*]}{.metadata.name} {.status.phase}{'\n'}{end}";
        let all = kubectl.ok(&["get", "namespaces", "-o", phases]).await?;
        if all.contains(" Terminating") { bail!("{all}") } else { Ok(()) }
    })
    .await
}

pub(crate) async fn an_uninstall_takes_the_apiservices_first_and_keeps_the_clusters(
    stage: &mut Stage,
) -> Outcome {
    uninstall_hub(stage, Helm::Four).await?;
    let kept = stage.parent.kubectl().ok(&["get", "mcls", "-A", "-o", "name"]).await?;
    ensure!(kept.lines().count() == 1, "{kept:?}");
    Ok(())
}

pub(crate) async fn an_older_helm_installs_the_hub_again_and_every_cluster_is_back(
    stage: &mut Stage,
) -> Outcome {
    let before = stage.pods(&stage.child, "clusternet-agent").await?;
    install_hub(stage, Helm::Three).await?;
    let through = stage.through_hub().await?;
    wait_until("the child through the hub", SOON, async || through.ok(&["get", "pod", "web"]).await).await?;
    let after = stage.pods(&stage.child, "clusternet-agent").await?;
    ensure!(before == after, "the agent was not the same: {before:?}, {after:?}");
    let version = stage.current.clone();
    stage.hub(Helm::Three, "upgrade", &version, &["--reuse-values", "--set", "log.format=json"]).await?;
    passes(stage, Helm::Three, "towline-hub").await?;
    stage.helm(Helm::Three, &stage.parent, &["rollback", "towline-hub", "1", "--wait"]).await.map(drop)
}

pub(crate) async fn what_an_uninstall_leaves_goes_as_written(stage: &mut Stage) -> Outcome {
    stage.cli(&["unregister", CHILD, "--yes"]).await?;
    stage.helm(Helm::Three, &stage.child, &["uninstall", "towline-agent"]).await?;
    // A kubelet 1.20 that is told of a pod's end while it starts it looks at that pod again a minute and a half later.
    let child = stage.child.kubectl().clone().with_time_limit(2 * SOON);
    child.ok(&["delete", "namespace", SYSTEM, "--timeout=150s"]).await?;
    no_namespace_is_stuck(&child).await?;

    uninstall_hub(stage, Helm::Three).await?;
    let parent = stage.parent.kubectl().clone().with_time_limit(SOON);
    let commands = removals()?;
    ensure!(commands.len() == 4, "docs/install.md: {commands:?}");
    for command in &commands {
        parent.ok(&command.split(' ').skip(1).collect::<Vec<_>>()).await?;
    }
    no_namespace_is_stuck(&parent).await?;
    for cluster in [&parent, &child] {
        for kind in
            ["clusterroles,clusterrolebindings", "customresourcedefinitions", "apiservices", "namespaces"]
        {
            let left = cluster.ok(&["get", kind, "-o", "name"]).await?;
            let ours = |line: &&str| ["clusternet", "towline"].iter().any(|name| line.contains(name));
            let left: Vec<&str> = left.lines().filter(ours).collect();
            ensure!(left.is_empty(), "left behind: {left:?}");
        }
    }
    Ok(())
}

/// The commands of the table in docs/install.md.
fn removals() -> Result<Vec<String>> {
    let text = std::fs::read_to_string(tests::towline::repository().join("docs/install.md"))?;
    let (_, section) = text.split_once("\n## Uninstall\n").context("a section on it")?;
    let cells =
        section.lines().filter(|line| line.starts_with('|')).filter_map(|line| line.split('`').rev().nth(1));
    Ok(cells.filter(|cell| cell.starts_with("kubectl delete ")).map(str::to_owned).collect())
}
