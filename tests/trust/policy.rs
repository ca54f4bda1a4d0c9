//! The word of the child's owner, written with kubectl in the child, against the parent's administrator, whom the
//! child's RBAC lets do everything. In their order: each test goes on from the policy that the one before it left.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tests::kubectl::Kubectl;
use tests::process::wait_until;
use tests::world::{CHILD, POD, SYSTEM, World};

use crate::Outcome;

/// A change holds within 5 s, and kubectl needs a moment to end.
const HOLDS: Duration = Duration::from_secs(6);
/// An agent reads its policy every 4 s, and a hub its agents' reports every 15 s.
const SHOWN: Duration = Duration::from_secs(60);

/// What a command is refused with: by this rule, in the name of the ConfigMap where it can be changed.
async fn refused(kubectl: &Kubectl, arguments: &[&str], rule: &str) -> Result<String> {
    let output = kubectl.run(arguments, b"").await?;
    let text = output.stderr;
    let by_owner =
        text.contains("this cluster's own policy") && text.contains("ConfigMap clusternet-agent-policy");
    ensure!(
        output.code != 0 && (by_owner || rule == "floor"),
        "{arguments:?} ended with {}: {text}",
        output.code
    );
    ensure!(text.contains(&format!("rule {rule}: ")), "{arguments:?} by another rule: {text}");
    Ok(text)
}

async fn in_force(world: &World, preset: &str, closed: bool) -> Result<Value> {
    let what = format!("the preset {preset}");
    world.wait_for_policy(&what, |policy| policy["preset"] == preset && policy["closed"] == closed).await
}

pub(crate) async fn without_a_policy_nobody_can_take_over_the_cluster(world: &mut World) -> Outcome {
    let shown = in_force(world, "edit", false).await?;
    ensure!(shown["source"] == "default", "{shown}");
    let admin = world.admin_through_hub().await?;
    let proxied = format!("/api/v1/namespaces/default/pods/{POD}:8080/proxy/");
    for (rule, command) in [
        ("preset", &["create", "clusterrolebinding", "mine", "--clusterrole=view", "--user=me"][..]),
        ("preset", &["create", "token", "default"]),
        ("preset", &["get", "--raw", &proxied]),
        ("nonResourceURLs", &["get", "--raw", "/metrics"]),
        ("floor", &["-n", SYSTEM, "get", "secrets"]),
        ("floor", &["-n", SYSTEM, "delete", "deployment", "clusternet-agent"]),
    ] {
        refused(&admin, command, rule).await?;
    }
    admin.ok(&["-n", SYSTEM, "get", "pods"]).await?;
    admin.ok(&["get", "secrets", "-n", "default"]).await?;
    admin.ok(&["exec", POD, "--", "true"]).await.map(drop)
}

pub(crate) async fn view_refuses_the_administrator_and_says_what_to_change(world: &mut World) -> Outcome {
    world.set_policy("preset: view").await?;
    in_force(world, "view", false).await?;
    let admin = world.admin_through_hub().await?;
    let text = refused(&admin, &["delete", "pod", POD], "preset").await?;
    for part in ["preset view", "ConfigMap clusternet-agent-policy", "delete pods"] {
        ensure!(text.contains(part), "no {part:?} in: {text}");
    }
    refused(&admin, &["exec", POD, "--", "true"], "preset").await?;
    refused(&admin, &["get", "secrets"], "preset").await?;
    admin.ok(&["get", "pod", POD]).await?;

    // What the parent's people see without anybody's help.
    wait_until("kubectl describe mcls to show the policy and its refusals", SHOWN, async || {
        let shown = world.parent().kubectl().ok(&["describe", "mcls", "-A"]).await?;
        for part in ["PolicyInForce", "Configured", "view", "reading alone", "delete pods", "Last Refusals"] {
            ensure!(shown.contains(part), "no {part:?} in:\n{shown}");
        }
        Ok(())
    })
    .await
}

pub(crate) async fn an_invalid_policy_changes_nothing_and_is_shown(world: &mut World) -> Outcome {
    world.set_policy("preset: edti\nnobody: [knows, this]").await?;
    let message = wait_until("the condition PolicyInForce to be False", SHOWN, async || {
        let condition = world.condition("PolicyInForce").await?;
        if condition["status"] == "False" && condition["reason"] == "Invalid" {
            return Ok(condition["message"].as_str().unwrap_or_default().to_owned());
        }
        bail!("{condition}")
    })
    .await?;
    for part in ["line 3", "did you mean edit?", "line 4", "in force: preset view"] {
        ensure!(message.contains(part), "no {part:?} in: {message}");
    }
    in_force(world, "view", false).await?;
    let admin = world.admin_through_hub().await?;
    refused(&admin, &["delete", "pod", POD], "preset").await.map(drop)
}

pub(crate) async fn closing_ends_what_is_open_and_refuses_everybody(world: &mut World) -> Outcome {
    world.grant_access("alice").await?;
    let (admin, alice) = (world.admin_through_hub().await?, world.through_hub("alice", &[]).await?);
    wait_until("alice's way to the child", SHOWN, async || {
        alice.ok(&["get", "--raw", "/version"]).await.map(drop)
    })
    .await?;
    let mut logs = admin.spawn(&["logs", "-f", POD, "--tail=1"])?;
    let mut watch = admin.spawn(&["get", "pods", "--watch", "--no-headers"])?;
    logs.line(HOLDS).await?.context("the log goes on")?;
    watch.line(HOLDS).await?.context("there is a pod")?;

    world.set_policy("preset: view\nclosed: true").await?;
    let written = Instant::now();
    let ended = async |running: tests::kubectl::Running| {
        running.end(HOLDS).await?;
        anyhow::Ok(written.elapsed())
    };
    let (logs, watch) = tokio::join!(ended(logs), ended(watch));
    let (logs, watch) = (logs?, watch?);
    tests::say(&format!(
        "    logs -f ended {:.1} s, a watch {:.1} s after closed: true was written",
        logs.as_secs_f64(),
        watch.as_secs_f64()
    ));
    ensure!(logs.max(watch) < HOLDS, "open for {:?} after it was closed", logs.max(watch));
    for kubectl in [&admin, &alice] {
        refused(kubectl, &["get", "--raw", "/version"], "closed").await?;
        refused(kubectl, &["get", "--raw", "/api/v1/namespaces/default/pods"], "closed").await?;
    }
    in_force(world, "view", true).await?;
    let condition = world.condition("PolicyInForce").await?;
    ensure!(condition["reason"] == "Closed", "{condition}");
    // The tunnel stands: who closes a cluster can open it again without anybody's help.
    let listed = world.parent().kubectl().ok(&["get", "mcls", "-A"]).await?;
    ensure!(listed.contains(CHILD) && listed.contains("True"), "{listed}");
    Ok(())
}

/// The ConfigMap stays: a child whose policy was removed is shut ten minutes later.
pub(crate) async fn opening_again_lets_everybody_work(world: &mut World) -> Outcome {
    world.set_policy("preset: edit").await?;
    let admin = world.admin_through_hub().await?;
    wait_until("the child to be open again", HOLDS, async || {
        admin.ok(&["get", "--raw", "/version"]).await.map(drop)
    })
    .await?;
    admin.ok(&["exec", POD, "--", "true"]).await?;
    admin.ok(&["create", "configmap", "short-lived"]).await?;
    admin.ok(&["delete", "configmap", "short-lived"]).await?;
    in_force(world, "edit", false).await.map(drop)
}
