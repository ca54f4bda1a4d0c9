//! `kubectl towline` beside its basic verbs, on the real thing: what the doctor says of a healthy world and of a broken
//! one.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tests::kubectl::Output;
use tests::process::wait_until;
use tests::world::{CHILD, World};

use crate::Outcome;
use crate::faults::scale_agent;
use crate::joining;

/// What the doctor looks at with a cluster, in the order of the way.
const CHECKS: [&str; 30] = [
    "kubeconfig",
    "proxy",
    "dns",
    "tcp",
    "tls",
    "authentication",
    "parent version",
    "clock",
    "apiservices",
    "crds",
    "hub",
    "hub version",
    "gateway",
    "rights",
    "registration",
    "credential",
    "tunnel",
    "last seen",
    "child api (hub)",
    "conflict",
    "ready",
    "agent version",
    "policy",
    "impersonation",
    "cluster rights",
    "child api",
    "child clock",
    "child health",
    "upgrade",
    "identity",
];

/// Lets the child join if none of the tests before has: so that these can be run alone.
async fn joined(world: &mut World) -> Outcome {
    if world.manifest().is_ok() {
        return Ok(());
    }
    joining::a_child_joins_by_one_manifest_and_a_persons_approval(world).await
}

async fn as_admin(world: &World, arguments: &[&str]) -> Result<Output> {
    world.cli_as(&world.parent().plane.admin_kubeconfig(), arguments).await
}

async fn doctor(world: &World, arguments: &[&str]) -> Result<(Vec<Value>, i32)> {
    let Output { stdout, stderr, code } =
        as_admin(world, &[&["doctor", "-o", "json"], arguments].concat()).await?;
    let found: Value = serde_json::from_str(&stdout).with_context(|| format!("{stdout}{stderr}"))?;
    ensure!((code == 0) == (found["healthy"] == true), "exit code {code} and healthy={}", found["healthy"]);
    Ok((found["findings"].as_array().context("findings")?.clone(), code))
}

fn named<'a>(findings: &'a [Value], check: &str) -> Result<&'a Value> {
    findings
        .iter()
        .find(|finding| finding["check"] == check)
        .with_context(|| format!("no check {check:?} in {findings:#?}"))
}

pub(crate) async fn the_doctor_finds_a_healthy_world_healthy(world: &mut World) -> Outcome {
    joined(world).await?;
    let (findings, code) = doctor(world, &[CHILD]).await?;
    let wrong: Vec<&Value> = findings.iter().filter(|finding| finding["level"] != "ok").collect();
    tests::say(&format!("    not ok: {wrong:#?}"));
    ensure!(code == 0, "exit code {code}: {wrong:#?}");
    let order: Vec<&str> = findings.iter().filter_map(|finding| finding["check"].as_str()).collect();
    ensure!(order.starts_with(&CHECKS), "{order:?}");
    // A parent of 1.20 does not say the hub's version, and this world's hub has no Deployment to read it from.
    for finding in wrong {
        ensure!(finding["check"] == "hub version", "{finding:#}");
    }
    let table = as_admin(world, &["doctor", CHILD]).await?;
    ensure!(CHECKS.iter().all(|check| table.stdout.contains(check)) && table.code == 0, "{table:?}");
    ensure!(!table.stdout.contains('\u{1b}'), "colours without a terminal: {table:?}");

    let child = world.child().plane.admin_kubeconfig();
    let there = as_admin(world, &["doctor", "--child-kubeconfig", &child.display().to_string()]).await?;
    ensure!(there.code == 0, "the agent's side: {there:?}");
    for check in
        ["agent deployment", "agent pod", "agent log", "agent secrets", "agent rights", "pod security"]
    {
        ensure!(there.stdout.contains(check), "no {check}: {there:?}");
    }
    Ok(())
}

pub(crate) async fn the_doctor_names_an_agent_that_is_scaled_to_zero(world: &mut World) -> Outcome {
    joined(world).await?;
    scale_agent(world, 0).await?;
    let result = wait_until("the tunnel's loss to be told", Duration::from_secs(30), async || {
        let (findings, code) = doctor(world, &[CHILD]).await?;
        let tunnel = named(&findings, "tunnel")?;
        if code == 1 && tunnel["code"] == "TWL-D026" { Ok(findings) } else { bail!("{tunnel:#}") }
    })
    .await;
    let child = world.child().plane.admin_kubeconfig();
    let there = doctor(world, &["--child-kubeconfig", &child.display().to_string()]).await;
    scale_agent(world, 1).await?;
    world.wait_ready(Duration::from_secs(60)).await?;
    let findings = result?;
    ensure!(named(&findings, "upgrade")?["code"] == "TWL-D002", "what needs the tunnel is not tried");
    ensure!(named(&findings, "apiservices")?["level"] == "ok", "the hub is not to blame");
    let (there, code) = there?;
    ensure!(code == 1 && named(&there, "agent deployment")?["code"] == "TWL-D037", "{there:#?}");
    Ok(())
}
