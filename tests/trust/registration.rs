//! A cluster that asks with another key: who lets it in, and what becomes of the key that it had.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use http::StatusCode;
use serde_json::{Value, json};
use tests::process::wait_until;
use tests::world::{CHILD, SYSTEM, World};

use crate::Outcome;
use crate::credential::{Holder, held};

const SOON: Duration = Duration::from_secs(60);
/// A kube-apiserver believes a token for up to 10 s after its account was deleted; this is well beyond.
const WATCHED: Duration = Duration::from_secs(20);

async fn request(world: &World) -> anyhow::Result<Value> {
    let name = format!("clusternet-{}", world.cluster_id);
    let text = world.parent().kubectl().ok(&["get", "clsrr", &name, "-o", "json"]).await?;
    Ok(serde_json::from_str(&text)?)
}

pub(crate) async fn another_key_waits_for_a_person_who_names_it_and_the_old_one_never_returns(
    world: &mut World,
) -> Outcome {
    let old = Holder::new(world, &held(world).await?).await?;
    let before = world.managed_cluster().await?["spec"]["keyFingerprint"].clone();
    // The child loses its Secret, and with it its agent's key; a new invitation lets the new one ask.
    world.child().kubectl().ok(&["-n", SYSTEM, "delete", "secret", "parent-cluster"]).await?;
    world.register_and_apply().await?;
    world.kill_agent()?;
    wait_until("the request to be the new key's", SOON, async || {
        let request = request(world).await?;
        if request["spec"]["keyFingerprint"] == before || request["status"]["result"] != "Pending" {
            bail!("{request}")
        }
        Ok(())
    })
    .await?;
    ensure!(world.managed_cluster().await?["spec"]["keyFingerprint"] == before, "nobody has approved");

    // Approved as people do who have no CLI: not against an older version, and not without saying which key.
    let parent = world.parent().kubectl().clone();
    let name = format!("clusternet-{}", world.cluster_id);
    let plainly = async |patch: Value| {
        let patch = patch.to_string();
        let arguments =
            ["patch", "clsrr", &name, "--subresource=status", "--type=merge", "-p", patch.as_str()];
        parent.run(&arguments, b"").await
    };
    let approved = json!({ "result": "Approved" });
    let stale =
        plainly(json!({ "metadata": { "resourceVersion": "1" }, "status": approved.clone() })).await?;
    ensure!(stale.code != 0 && stale.stderr.contains("Conflict"), "{stale:?}");
    let unnamed = plainly(json!({ "status": approved })).await?;
    ensure!(unnamed.code == 0, "{unnamed:?}");
    let request = wait_until("the hub to take it back", SOON, async || {
        let request = request(world).await?;
        let message = request["status"]["errorMessage"].as_str().unwrap_or_default();
        if message.contains("--fingerprint") { Ok(request.clone()) } else { bail!("{request}") }
    })
    .await?;
    ensure!(request["status"]["result"] == "Pending", "{request}");
    ensure!(world.managed_cluster().await?["spec"]["keyFingerprint"] == before, "it was not carried out");

    // The parent has believed the old credential this very moment, and remembers.
    let opened = old.attach(&world.cluster_id).await?;
    ensure!(opened == StatusCode::SWITCHING_PROTOCOLS, "the old credential is good until then: {opened}");
    let key = request["spec"]["keyFingerprint"].as_str().context("fingerprint")?;
    world.cli(&["approve", CHILD, "--fingerprint", key]).await?;
    wait_until("the cluster to have the new key", SOON, async || {
        let now = world.managed_cluster().await?["spec"]["keyFingerprint"].clone();
        if now == key { Ok(()) } else { bail!("{now}") }
    })
    .await?;
    let changed = Instant::now();
    // A hub that has seen none of it.
    world.kill_hub();
    world.start_hub().await?;
    tests::say(&format!("a new hub serves {:.1?} after the key was replaced", changed.elapsed()));
    let mut last = None;
    while changed.elapsed() < WATCHED {
        let code = old.attach(&world.cluster_id).await?;
        if last.replace(code) != Some(code) {
            tests::say(&format!("  the old credential is answered {code} after {:.1?}", changed.elapsed()));
        }
        ensure!(code != StatusCode::SWITCHING_PROTOCOLS, "let in after {:?}", changed.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.wait_ready(Duration::from_secs(90)).await?;
    // That may be what the hub before has written: nobody may attach for 15 s, and then the agent has to dial.
    let through_hub = world.admin_through_hub().await?;
    wait_until("the new key's tunnel", Duration::from_secs(90), async || {
        through_hub.ok(&["get", "--raw", "/version"]).await.map(drop)
    })
    .await
}
