//! How a child joins, and who does not get in.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tests::kubectl::{Kubectl, Output};
use tests::process::wait_until;
use tests::world::{CHILD, SYSTEM, World, registration_data};
use tokio::net::TcpStream;

use crate::Outcome;

pub(crate) async fn the_parent_cannot_reach_the_child_directly(world: &mut World) -> Outcome {
    let address = world.child().plane.address();
    for port in [world.child().plane.port(), 10250] {
        let dialled = tokio::time::timeout(Duration::from_secs(2), TcpStream::connect((address, port))).await;
        ensure!(!matches!(dialled, Ok(Ok(_))), "the parent reached {address}:{port}");
    }
    // The other direction is open: that is all an agent needs.
    world.child().kubectl().ok(&["get", "--raw", "/readyz"]).await?;
    Ok(())
}

/// Registers as an agent would, with a key of its own, and returns what kubectl printed.
async fn register_by_hand(
    world: &World,
    secret: &BTreeMap<String, String>,
    cluster_id: &str,
) -> anyhow::Result<Output> {
    let text = |key: &str| secret.get(key).cloned().unwrap_or_default();
    let random = SystemRandom::new();
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random)?;
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, document.as_ref())?;
    // SubjectPublicKeyInfo of an uncompressed P-256 point (RFC 5480 section 2).
    let prefix = "3059301306072a8648ce3d020106082a8648ce3d030107034200";
    let mut spki: Vec<u8> = (0..prefix.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&prefix[at..at + 2], 16))
        .collect::<Result<_, _>>()?;
    spki.extend_from_slice(key.public_key().as_ref());
    let public_key = STANDARD.encode(spki);
    let message = api::registration::signed_message(&text("invitation"), cluster_id, &public_key);
    let signature = key.sign(&random, &message)?;
    let body = json!({
        "apiVersion": "access.towline.io/v1alpha1", "kind": "ClusterRegistration", "metadata": {},
        "spec": {
            "invitation": text("invitation"), "secret": text("invitationSecret"), "clusterId": cluster_id,
            "publicKey": public_key, "signature": STANDARD.encode(signature.as_ref()), "agentVersion": "by hand",
        },
    });
    let kubeconfig = world.scratch().directory("kubeconfigs")?.join("by-hand.kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "parent",
        "clusters": [{ "name": "parent", "cluster": {
            "server": world.parent().plane.url(),
            "certificate-authority-data": STANDARD.encode(world.parent().plane.ca_pem()) } }],
        "users": [{ "name": "agent", "user": { "token": text("regToken") } }],
        "contexts": [{ "name": "parent", "context": { "cluster": "parent", "user": "agent" } }],
    });
    std::fs::write(&kubeconfig, config.to_string())?;
    Kubectl::new(world.binaries(), world.scratch(), &kubeconfig)
        .run(&["create", "--raw", api::names::REGISTRATIONS_PATH, "-f", "-"], body.to_string().as_bytes())
        .await
}

const SOMEBODY: &str = "11111111-2222-4333-8444-555555555555";

pub(crate) async fn wrong_and_expired_invitations_are_refused_with_a_message_that_says_which(
    world: &mut World,
) -> Outcome {
    let mut secret = registration_data(&world.cli(&["register", "stranger"]).await?)?;
    let right = secret.insert("invitationSecret".to_owned(), "A".repeat(43)).unwrap_or_default();
    let wrong = register_by_hand(world, &secret, SOMEBODY).await?;
    ensure!(wrong.code != 0 && wrong.stderr.contains("unknown invitation"), "{wrong:?}");

    secret.insert("invitationSecret".to_owned(), right);
    let name = format!("invitation-{}", secret["invitation"]);
    let past = json!({ "data": { "expires": STANDARD.encode("2020-01-01T00:00:00Z") } }).to_string();
    let parent = world.parent().kubectl();
    parent.ok(&["-n", SYSTEM, "patch", "secret", &name, "--type=merge", "-p", &past]).await?;
    let expired = register_by_hand(world, &secret, SOMEBODY).await?;
    ensure!(expired.code != 0 && expired.stderr.contains("expired"), "{expired:?}");
    ensure!(!parent.ok(&["get", "clsrr", "-o", "name"]).await?.contains(SOMEBODY), "a request was written");
    Ok(())
}

pub(crate) async fn a_child_joins_by_one_manifest_and_a_persons_approval(world: &mut World) -> Outcome {
    world.register_and_apply().await?;
    world.wait_for_request().await?;
    let requests = world.parent().kubectl().ok(&["get", "clsrr"]).await?;
    ensure!(requests.contains("Pending") && requests.contains(CHILD), "{requests}");
    // The key that the person compares is the one that the agent shows.
    let fingerprint =
        requests.split_whitespace().find(|word| word.starts_with("SHA256:")).context("fingerprint")?;
    // The kubelet reports the container as started a moment after the agent has asked to join.
    wait_until("the agent's log to show the key", Duration::from_secs(15), async || {
        let log = world.child().kubectl().ok(&["-n", SYSTEM, "logs", "deploy/clusternet-agent"]).await?;
        ensure!(log.contains(fingerprint), "the agent's log does not show {fingerprint}:\n{log}");
        Ok(())
    })
    .await?;

    world.cli(&["approve", CHILD, "--fingerprint", fingerprint]).await?;
    world.wait_ready(Duration::from_secs(60)).await?;
    let listed = world.parent().kubectl().ok(&["get", "mcls", "-A"]).await?;
    for expected in [CHILD, "True", "v1.", "1/1"] {
        ensure!(listed.contains(expected), "no {expected} in:\n{listed}");
    }
    world.deploy_pod().await?;
    // Two later tests move large bodies through pods/proxy, which the default does not admit.
    world.set_policy("preset: admin").await?;
    world.wait_for_policy("the preset admin", |policy| policy["preset"] == "admin").await.map(drop)
}

pub(crate) async fn a_used_invitation_is_refused_with_a_message_that_says_so(world: &mut World) -> Outcome {
    let secret = registration_data(world.manifest()?)?;
    let used = register_by_hand(world, &secret, SOMEBODY).await?;
    ensure!(used.code != 0 && used.stderr.contains("used"), "{used:?}");
    Ok(())
}

pub(crate) async fn applying_the_manifest_again_changes_nothing(world: &mut World) -> Outcome {
    let child = world.child().kubectl();
    let pods = async || child.ok(&["-n", SYSTEM, "get", "pods", "-o", "name"]).await;
    let before = pods().await?;
    let applied = child.apply(world.manifest()?).await?;
    let changed: Vec<&str> = applied.lines().filter(|line| !line.ends_with("unchanged")).collect();
    ensure!(changed.is_empty(), "changed: {changed:?}");
    ensure!(before == pods().await?, "the agent's pod was replaced");
    world.wait_ready(Duration::from_secs(5)).await
}

pub(crate) async fn no_credential_stands_in_an_object_of_the_parent(world: &mut World) -> Outcome {
    let secret = registration_data(world.manifest()?)?;
    let held = world
        .child()
        .kubectl()
        .ok(&["-n", SYSTEM, "get", "secret", "parent-cluster", "-o", "jsonpath={.data.token}"])
        .await?;
    let held = String::from_utf8(STANDARD.decode(held.trim())?)?;
    ensure!(held.len() > 100, "the agent holds a credential");
    let secrets = [held.as_str(), &secret["invitationSecret"], &secret["regToken"]];
    for kind in ["secrets", "configmaps", "clsrr", "mcls", "events", "serviceaccounts"] {
        let all = world.parent().kubectl().ok(&["get", kind, "-A", "-o", "json"]).await?;
        for secret in secrets {
            ensure!(
                !all.contains(secret) && !all.contains(&STANDARD.encode(secret)),
                "{kind} hold a credential"
            );
        }
    }
    let log = world.hub()?.log_text()?;
    let agent = world.child().kubectl().ok(&["-n", SYSTEM, "logs", "deploy/clusternet-agent"]).await?;
    ensure!(
        secrets.iter().all(|secret| !log.contains(secret) && !agent.contains(secret)),
        "a log holds a credential"
    );
    Ok(())
}

pub(crate) async fn a_denied_cluster_is_cut_off_within_seconds(world: &mut World) -> Outcome {
    let kubectl = world.admin_through_hub().await?;
    let mut open = kubectl.spawn(&["logs", "-f", "web", "--tail=1"])?;
    open.line(Duration::from_secs(10)).await?;
    world.cli(&["deny", CHILD]).await?;
    let denied = Instant::now();
    while open.line(Duration::from_secs(10)).await?.is_some() {
        ensure!(denied.elapsed() < Duration::from_secs(10), "an open stream outlives the denial");
    }
    ensure!(denied.elapsed() < Duration::from_secs(6), "closed after {:?}", denied.elapsed());
    let refused = kubectl.run(&["get", "--raw", "/version"], b"").await?;
    ensure!(refused.code != 0, "a denied cluster answers: {refused:?}");
    Ok(())
}

pub(crate) async fn unregistering_works_when_the_child_is_gone(world: &mut World) -> Outcome {
    world.child().network().context("behind NAT")?.set_cut(true)?;
    world.cli(&["unregister", CHILD, "--yes"]).await?;
    let id = world.cluster_id.clone();
    let parent = world.parent().kubectl();
    wait_until("everything of the cluster to be gone", Duration::from_secs(30), async || {
        let kinds = "mcls,clsrr,clusterroles,clusterrolebindings,serviceaccounts";
        let left = parent.ok(&["get", kinds, "-A", "-o", "name"]).await?;
        let left: Vec<&str> =
            left.lines().filter(|line| line.contains(&id) || line.ends_with("/clusternet-agent")).collect();
        if left.is_empty() { Ok(()) } else { bail!("{left:?}") }
    })
    .await
}
