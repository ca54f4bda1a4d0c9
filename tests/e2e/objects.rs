//! What the parent's objects tell people who have nothing but kubectl: columns, conditions, events, and a rename.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tests::kubectl::Kubectl;
use tests::process::wait_until;
use tests::world::{CHILD, World};

use crate::Outcome;
use crate::faults::scale_agent;

/// The name that the child has for a while.
const RENAMED: &str = "edge-renamed";

async fn namespace(world: &World) -> anyhow::Result<String> {
    let cluster = world.managed_cluster().await?;
    Ok(cluster["metadata"]["namespace"].as_str().context("namespace")?.to_owned())
}

/// `kubectl describe` of the child's object, once it tells of these events.
async fn described(world: &World, name: &str, events: &[&str]) -> anyhow::Result<String> {
    let space = namespace(world).await?;
    wait_until("kubectl describe to tell the story", Duration::from_secs(30), async || {
        let text = world.parent().kubectl().ok(&["-n", &space, "describe", "mcls", name]).await?;
        let (_, told) = text.split_once("\nEvents:").context("there are no events")?;
        for event in events {
            let word = |line: &str| line.split_whitespace().nth(1) == Some(*event);
            ensure!(told.lines().any(word), "no {event} in:\n{told}");
        }
        Ok(text)
    })
    .await
}

pub(crate) async fn kubectl_alone_tells_how_a_cluster_is_and_how_it_came_in(world: &mut World) -> Outcome {
    let parent = world.parent().kubectl();
    let space = namespace(world).await?;
    let wait = ["-n", &space, "wait", "--for=condition=Ready", &format!("mcls/{CHILD}"), "--timeout=20s"];
    parent.ok(&wait).await?;

    let listed = parent.ok(&["get", "mcls", "-A"]).await?;
    let mut lines = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let head = lines.next().context("a head")?;
    let columns = ["NAMESPACE", "NAME", "READY", "TUNNEL", "VERSION", "NODES", "RTT", "LAST-SEEN", "AGE"];
    ensure!(head == columns, "{listed}");
    let row = lines.find(|row| row.get(1) == Some(&CHILD)).context("the child's row")?;
    ensure!(row[2..4] == ["True", "Connected"] && row[4].starts_with("v1."), "{listed}");
    ensure!(row[5] == "1/1" && row[6].ends_with("ms"), "{listed}");
    let wide = parent.ok(&["get", "mcls", "-A", "-o", "wide"]).await?;
    for expected in ["CLUSTER ID", "PROVIDER", "KUBERNETES", "AGENT VERSION", "REASON", &world.cluster_id] {
        ensure!(wide.contains(expected), "no {expected} in:\n{wide}");
    }
    let both = parent.ok(&["get", "towline", "-A", "-o", "name"]).await?;
    ensure!(both.contains("managedcluster") && both.contains("clusterregistrationrequest"), "{both}");

    let cluster = world.managed_cluster().await?;
    let conditions = cluster["status"]["conditions"].as_array().context("conditions")?;
    for (type_, status) in [
        ("Ready", "True"),
        ("Registered", "True"),
        ("TunnelConnected", "True"),
        ("APIServerReachable", "True"),
        ("CredentialsValid", "True"),
        ("AgentUpToDate", "True"),
        ("PolicyInForce", "True"),
        ("Conflict", "False"),
    ] {
        let found = conditions.iter().find(|condition| condition["type"] == type_).context(type_)?;
        ensure!(found["status"] == status, "{found}");
        ensure!(found["observedGeneration"] == cluster["metadata"]["generation"], "{found}");
    }
    let status = &cluster["status"];
    for field in ["lastReportTime", "credentialExpirationTime", "apiServerRTT", "platform", "capacity"] {
        ensure!(status.get(field).is_some_and(|value| !value.is_null()), "no status.{field}: {status}");
    }
    ensure!(status["podStatistics"]["totalPods"].as_u64().unwrap_or(0) >= 1, "{status}");

    described(world, CHILD, &["Registered", "Connected", "Ready"]).await?;
    let request = parent.ok(&["describe", "clsrr", &format!("clusternet-{}", world.cluster_id)]).await?;
    ensure!(request.contains("Pending") && request.contains("compare it with the agent's log"), "{request}");
    ensure!(request.contains("may join with key SHA256:"), "{request}");
    Ok(())
}

pub(crate) async fn a_rename_keeps_id_tunnel_roles_tokens_and_open_streams(world: &mut World) -> Outcome {
    let by_id = world.admin_through_hub().await?;
    let token = world.cli(&["kubeconfig", CHILD, "--role", "admin"]).await?;
    let old_path = world.gateway().keep("before-rename", &token)?;
    let new_path =
        world.gateway().keep("after-rename", &token.replace(&format!("/{CHILD}"), &format!("/{RENAMED}")))?;
    let with = |path| Kubectl::new(world.binaries(), world.scratch(), path);
    with(&old_path).ok(&["get", "--raw", "/version"]).await?;
    let before = world.managed_cluster().await?;
    let mut open = by_id.spawn(&["exec", "-i", "web", "--", "cat"])?;
    open.write(b"before\n").await?;
    open.line_with("before", Duration::from_secs(20)).await?;

    let said = world.cli(&["rename", CHILD, RENAMED]).await?;
    ensure!(said.contains("Renamed"), "{said}");
    let after = world.managed_cluster().await?;
    ensure!(after["metadata"]["name"] == RENAMED, "{}", after["metadata"]);
    ensure!(after["spec"] == before["spec"], "{} {}", before["spec"], after["spec"]);
    ensure!(
        after["status"]["tunnel"]["id"] == before["status"]["tunnel"]["id"],
        "another tunnel: {}",
        after["status"]["tunnel"]
    );
    let listed = world.parent().kubectl().ok(&["get", "mcls", "-A", "-o", "name"]).await?;
    ensure!(listed.lines().count() == 1, "{listed}");
    described(world, RENAMED, &["Renamed"]).await?;

    by_id.ok(&["get", "pods"]).await?;
    with(&new_path).ok(&["get", "--raw", "/version"]).await?;
    let gone = with(&old_path).run(&["get", "--raw", "/version"], b"").await?;
    ensure!(gone.code != 0 && gone.stderr.contains("NotFound"), "{gone:?}");
    ensure!(gone.stderr.contains(&format!("another name now: {RENAMED}")), "{gone:?}");
    open.write(b"after\n").await?;
    open.line_with("after", Duration::from_secs(20)).await?;
    open.kill().await?;

    // A name that cannot be is refused, with a sentence; then the cluster gets its own again.
    let admin = world.parent().plane.admin_kubeconfig();
    let refused = world.cli_as(&admin, &["rename", RENAMED, RENAMED]).await?;
    ensure!(refused.code == 0 && refused.stdout.contains("Unchanged"), "{refused:?}");
    world.cli(&["rename", &world.cluster_id, CHILD]).await?;
    world.wait_ready(Duration::from_secs(20)).await?;
    with(&old_path).ok(&["get", "--raw", "/version"]).await?;
    ensure!(world.managed_cluster().await?["metadata"]["name"] == CHILD, "it has its name again");
    Ok(())
}

pub(crate) async fn a_lost_cluster_shows_no_old_truth(world: &mut World) -> Outcome {
    scale_agent(world, 0).await?;
    let status = wait_until("the parent to know of the loss", Duration::from_secs(40), async || {
        let status = world.managed_cluster().await?["status"].clone();
        let tunnel = condition(&status, "TunnelConnected");
        if tunnel["status"] == "False" { Ok(status) } else { bail!("{tunnel}") }
    })
    .await?;
    for type_ in ["APIServerReachable", "AgentUpToDate", "PolicyInForce", "Conflict"] {
        ensure!(condition(&status, type_)["status"] == "Unknown", "{type_}: {status}");
    }
    ensure!(status["tunnel"].is_null() && status["readyz"] != true, "{status}");
    let said = status["lastReportTime"].as_str().context("lastReportTime")?;
    ensure!(status["policy"]["asOf"] == said && status["impersonation"]["asOf"] == said, "{status}");
    described(world, CHILD, &["ConnectionLost", "NotReady"]).await?;
    scale_agent(world, 1).await?;
    world.wait_ready(Duration::from_secs(60)).await?;
    ensure!(world.managed_cluster().await?["status"]["policy"]["asOf"].is_null(), "it is current again");
    Ok(())
}

fn condition(status: &Value, type_: &str) -> Value {
    let all = status["conditions"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|condition| condition["type"] == type_).unwrap_or_default()
}
