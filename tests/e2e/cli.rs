//! `kubectl towline` beside its basic verbs, on the real thing: what the doctor says of a healthy world and of a broken
//! one, who has access, what a support bundle holds, and what TAB offers.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tests::kubectl::{Kubectl, Output};
use tests::process::wait_until;
use tests::towline::Towline;
use tests::world::{CHILD, SYSTEM, World};

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

/// The command where the child is: from here nobody reaches it.
fn there(world: &World) -> Result<Kubectl> {
    Ok(world.child().kubectl().clone().with_binary(Towline::find()?.cli))
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

    let there = there(world)?.run(&["doctor", "--child"], b"").await?;
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
    let there = there(world)?.run(&["doctor", "--child", "-o", "json"], b"").await;
    scale_agent(world, 1).await?;
    world.wait_ready(Duration::from_secs(60)).await?;
    let findings = result?;
    ensure!(named(&findings, "upgrade")?["code"] == "TWL-D002", "what needs the tunnel is not tried");
    ensure!(named(&findings, "apiservices")?["level"] == "ok", "the hub is not to blame");
    let there = there?;
    ensure!(there.code == 1 && there.stdout.contains("TWL-D037"), "{there:?}");
    Ok(())
}

pub(crate) async fn access_names_who_refuses(world: &mut World) -> Outcome {
    joined(world).await?;
    let yes = world.cli(&["access", "can-i", CHILD, "list", "pods"]).await?;
    ensure!(yes.ends_with("yes\n") && yes.lines().count() == 4, "{yes}");
    let exec = world.cli(&["access", "can-i", CHILD, "create", "pods/exec"]).await?;
    ensure!(exec.ends_with("yes\n"), "{exec}");
    // What was tried has left nothing behind.
    let left = world.child().kubectl().ok(&["get", "all,cm", "-A", "-o", "name"]).await?;
    ensure!(!left.contains("probe"), "{left}");

    let nobody = world.parent().plane.kubeconfig_for("nobody-of-access", &[])?;
    let id = world.cluster_id.clone();
    let no = world.cli_as(&nobody, &["access", "can-i", &id, "list", "pods"]).await?;
    ensure!(no.code == 4 && no.stderr.contains("the parent says no"), "{no:?}");

    world.grant_access("visitor-of-access").await?;
    let visitor = world.parent().plane.kubeconfig_for("visitor-of-access", &[])?;
    wait_until("the new right to count", Duration::from_secs(15), async || {
        let no = world.cli_as(&visitor, &["access", "can-i", &id, "list", "pods"]).await?;
        ensure!(no.code == 4 && no.stderr.contains("the cluster's RBAC says no"), "{no:?}");
        Ok(())
    })
    .await?;
    let listed = world.cli(&["access", CHILD]).await?;
    let line = listed.lines().find(|line| line.starts_with("visitor-of-access")).context("the visitor")?;
    ensure!(line.contains("User") && line.contains(" own "), "{line}");
    // Who may use a cluster and not look it up gets as far as the cluster.
    let doctor = world.cli_as(&visitor, &["doctor", &id]).await?;
    ensure!(doctor.code == 0 && doctor.stdout.contains("ok    child api "), "{doctor:?}");
    let hidden = world.cli_as(&visitor, &["access", &id]).await?;
    ensure!(hidden.code == 4 && hidden.stderr.contains("can-i"), "{hidden:?}");

    world.set_policy("preset: view").await?;
    let refused = wait_until("the policy to refuse", Duration::from_secs(15), async || {
        let no = as_admin(world, &["access", "can-i", CHILD, "delete", "pods"]).await?;
        ensure!(no.code == 4 && no.stderr.contains("the cluster's policy says no"), "{no:?}");
        Ok(())
    })
    .await;
    world.set_policy("preset: admin").await?;
    wait_until("the policy to be what it was", Duration::from_secs(15), async || {
        world.cli(&["access", "can-i", CHILD, "delete", "pods"]).await.map(drop)
    })
    .await?;
    refused
}

/// Every value of every Secret of hub and agent, as it is and as it is stored.
async fn secrets(world: &World) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for kubectl in [world.parent().kubectl(), world.child().kubectl()] {
        let list: Value =
            serde_json::from_str(&kubectl.ok(&["-n", SYSTEM, "get", "secrets", "-o", "json"]).await?)?;
        for secret in list["items"].as_array().into_iter().flatten() {
            for (key, value) in secret["data"].as_object().into_iter().flatten() {
                // Public by nature: certificates, names, addresses, times, what people compare.
                let public = [
                    "ca.crt",
                    "tls.crt",
                    "parentURL",
                    "clusterName",
                    "expires",
                    "invitation",
                    "namespace",
                    "cluster-id",
                    "key-fingerprint",
                ];
                let value = value.as_str().unwrap_or_default();
                if public.contains(&key.as_str()) || value.len() < 24 {
                    continue;
                }
                all.push((key.clone(), value.to_owned()));
                let plain = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, value)?;
                // The id is no secret, though it stands in one.
                let plain = String::from_utf8(plain).ok().filter(|plain| plain.len() >= 16);
                all.extend(
                    plain.filter(|plain| *plain != world.cluster_id).map(|plain| (key.clone(), plain)),
                );
            }
        }
    }
    Ok(all)
}

pub(crate) async fn a_support_bundle_holds_no_secret(world: &mut World) -> Outcome {
    joined(world).await?;
    let out = world.scratch().path().join("bundle.tar.gz");
    let file = out.display().to_string();
    world.cli(&["support-bundle", CHILD, "--out", &file]).await?;
    ensure!(std::fs::metadata(&out)?.permissions().mode() & 0o077 == 0, "others may read it");
    let again = as_admin(world, &["support-bundle", "--out", &file]).await?;
    ensure!(again.code == 1, "a file that exists was replaced: {again:?}");

    let unpacked = std::process::Command::new("tar").args(["xzOf", &file]).output()?;
    ensure!(unpacked.status.success(), "{}", String::from_utf8_lossy(&unpacked.stderr));
    let text = String::from_utf8_lossy(&unpacked.stdout).into_owned();
    let names = std::process::Command::new("tar").args(["tzf", &file]).output()?;
    let names = String::from_utf8_lossy(&names.stdout).into_owned();
    for expected in
        ["doctor.json", "parent/managedclusters.json", "child/pods.json", "child/logs/clusternet-agent-"]
    {
        ensure!(names.contains(expected), "no {expected} in {names}");
    }
    ensure!(
        text.contains(&world.cluster_id) && text.contains("connected"),
        "the log of the agent is not in it"
    );
    let secrets = secrets(world).await?;
    ensure!(secrets.len() >= 6, "only {} secrets were looked for", secrets.len());
    for (key, secret) in &secrets {
        ensure!(!text.contains(secret.as_str()), "{key}, which begins with {secret:.6}, is in the bundle");
    }
    Ok(())
}

pub(crate) async fn tab_offers_clusters_to_kubectl(world: &mut World) -> Outcome {
    joined(world).await?;
    let script = world.cli(&["completion", "kubectl"]).await?;
    let directory = world.scratch().directory("completion")?;
    let shim = directory.join("kubectl_complete-towline");
    std::fs::write(&shim, script)?;
    std::fs::set_permissions(&shim, std::fs::Permissions::from_mode(0o755))?;
    let binaries = Towline::find()?.cli.parent().context("its directory")?.display().to_string();
    let ask = |words: &[&str]| -> Result<String> {
        let asked = std::process::Command::new(&shim)
            .args(words)
            .env_clear()
            .env("PATH", format!("{binaries}:/usr/bin:/bin"))
            .env("KUBECONFIG", world.parent().plane.admin_kubeconfig())
            .output()?;
        ensure!(asked.status.success(), "{asked:?}");
        Ok(String::from_utf8(asked.stdout)?)
    };
    let names = ask(&["status", ""])?;
    ensure!(names.lines().any(|line| line == CHILD) && names.ends_with(":4\n"), "{names}");
    ensure!(ask(&["status", "zz"])? == ":4\n");
    let commands = ask(&["doc"])?;
    ensure!(commands.starts_with("doctor\t"), "{commands}");
    // Whatever goes wrong is silence.
    ensure!(ask(&["--kubeconfig", "/nonexistent", "status", ""])? == ":4\n");
    Ok(())
}

pub(crate) async fn labels_are_changed_and_a_dry_run_changes_nothing(world: &mut World) -> Outcome {
    joined(world).await?;
    let before = world.managed_cluster().await?["metadata"]["labels"].clone();
    world.cli(&["label", CHILD, "site=ulm", "--dry-run"]).await?;
    world.cli(&["unregister", CHILD, "--dry-run"]).await?;
    world.cli(&["deny", CHILD, "--dry-run"]).await?;
    world.cli(&["register", "never-made", "--dry-run"]).await?;
    let after = world.managed_cluster().await?;
    ensure!(after["metadata"]["labels"] == before && after["spec"]["denied"] == false, "{after:#}");

    world.cli(&["label", CHILD, "site=ulm"]).await?;
    ensure!(world.cli(&["clusters", "-l", "site=ulm", "-o", "name"]).await? == format!("{CHILD}\n"));
    let own = as_admin(world, &["label", CHILD, "clusters.clusternet.io/cluster-id=x"]).await?;
    ensure!(own.code == 2, "a label of the hub's: {own:?}");
    world.cli(&["label", CHILD, "site-"]).await?;
    ensure!(world.managed_cluster().await?["metadata"]["labels"] == before);
    Ok(())
}
