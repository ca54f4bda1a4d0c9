//! The gateway with a real parent behind its tokens: a service account of the parent that may impersonate alice.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tests::gateway::DOMAIN;
use tests::kubectl::Kubectl;
use tests::process::wait_until;
use tests::world::{CHILD, SYSTEM, World, spdy};

use crate::Outcome;

const ROBOT: &str = "robot";

/// A token of the parent's service account `robot`, which may impersonate alice, and alice may use the child.
async fn token(world: &World) -> anyhow::Result<String> {
    let parent = world.parent().kubectl();
    let objects = json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": ROBOT, "namespace": SYSTEM } },
        { "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": "be-alice" },
          "rules": [{ "apiGroups": [""], "resources": ["users"], "resourceNames": ["alice"], "verbs": ["impersonate"] }] },
        { "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": "be-alice" },
          "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "be-alice" },
          "subjects": [{ "kind": "ServiceAccount", "name": ROBOT, "namespace": SYSTEM }] },
    ]});
    parent.apply(&objects.to_string()).await?;
    world.grant_access("alice").await?;
    let binding = [
        "create",
        "clusterrolebinding",
        "gateway-alice",
        "--clusterrole=edit",
        "--user=alice",
        "--dry-run=client",
        "-o",
        "json",
    ];
    let binding = world.child().kubectl().ok(&binding).await?;
    world.child().kubectl().apply(&binding).await?;
    Ok(parent.ok(&["-n", SYSTEM, "create", "token", ROBOT]).await?.trim().to_owned())
}

fn kubectl(world: &World, name: &str, path: &str, token: &str) -> anyhow::Result<Kubectl> {
    let kubeconfig = world.gateway().kubeconfig(name, path, token)?;
    Ok(Kubectl::new(world.binaries(), world.scratch(), &kubeconfig))
}

pub(crate) async fn kubectl_reaches_the_child_with_a_token_of_the_parent(world: &mut World) -> Outcome {
    let token = token(world).await?;
    let path = format!("/k8s/clusters/{CHILD}");
    let through = kubectl(world, "by-path", &path, &token)?;
    // The parent's own authorizer follows its RBAC objects a moment later.
    wait_until("alice to be let through the gateway", Duration::from_secs(20), async || {
        through.ok(&["--as", "alice", "get", "pods"]).await.map(drop)
    })
    .await?;
    let pods = through.ok(&["--as", "alice", "get", "pods", "-o", "name"]).await?;
    ensure!(pods.contains("pod/web"), "{pods}");
    for environment in [Vec::new(), spdy().into_iter().collect()] {
        let client =
            environment.iter().fold(through.clone(), |client, (name, value)| client.with_env(name, value));
        let said = client
            .ok_with(&["--as", "alice", "exec", "-i", "web", "--", "cat"], b"through the gateway")
            .await?;
        ensure!(said == "through the gateway", "{said:?}");
    }
    let refused = through.run(&["--as", "bob", "get", "pods"], b"").await?;
    ensure!(refused.code != 0 && refused.stderr.contains("may not impersonate users \"bob\""), "{refused:?}");
    let itself = through.run(&["get", "pods"], b"").await?;
    ensure!(itself.code != 0, "a service account of the parent is nobody in a child: {itself:?}");
    Ok(())
}

pub(crate) async fn a_dropped_path_and_a_wrong_token_are_told_apart_at_the_gateway(
    world: &mut World,
) -> Outcome {
    let token = token(world).await?;
    let dropped =
        kubectl(world, "dropped", "", &token)?.run(&["get", "--raw", "/api/v1/namespaces"], b"").await?;
    ensure!(dropped.code != 0 && dropped.stderr.contains("/k8s/clusters/NAME"), "{dropped:?}");
    let path = format!("/k8s/clusters/{CHILD}");
    let wrong = kubectl(world, "wrong", &path, "wrong")?.run(&["get", "pods"], b"").await?;
    ensure!(wrong.code != 0 && wrong.stderr.contains("logged in"), "{wrong:?}");
    let unknown = kubectl(world, "unknown", "/k8s/clusters/nowhere", &token)?;
    let unknown = unknown.run(&["--as", "alice", "get", "--raw", "/api"], b"").await?;
    ensure!(unknown.code != 0 && unknown.stderr.contains("does not exist, or you may not"), "{unknown:?}");
    Ok(())
}

/// Asks the hub for a kubeconfig as the parent's administrator; the answer's status.
async fn issue(world: &World, spec: Value) -> anyhow::Result<Value> {
    let request = json!({ "apiVersion": "access.towline.io/v1alpha1", "kind": "KubeconfigRequest",
        "metadata": { "name": "wanted" }, "spec": spec });
    let command = ["create", "-f", "-", "-o", "json"];
    let answer = world.parent().kubectl().ok_with(&command, request.to_string().as_bytes()).await?;
    let answer: Value = serde_json::from_str(&answer)?;
    Ok(answer["status"].clone())
}

/// kubectl with the kubeconfig of an answer.
fn with(world: &World, name: &str, status: &Value) -> anyhow::Result<Kubectl> {
    let kubeconfig = status["kubeconfig"].as_str().context("the answer holds a kubeconfig")?;
    let path = world.gateway().keep(name, kubeconfig)?;
    Ok(Kubectl::new(world.binaries(), world.scratch(), &path))
}

pub(crate) async fn a_kubeconfig_of_the_hub_has_one_role_in_one_cluster(world: &mut World) -> Outcome {
    let view = issue(world, json!({ "cluster": CHILD, "role": "view", "service": "argo" })).await?;
    let kubectl = with(world, "view", &view)?;
    // The hub knows a token from its own watch, a moment after it was made.
    wait_until("the hub to know the token", Duration::from_secs(10), async || {
        kubectl.ok(&["get", "pods"]).await.map(drop)
    })
    .await?;
    let pods = kubectl.ok(&["get", "pods", "-o", "name"]).await?;
    ensure!(pods.contains("pod/web"), "{pods}");
    let refused = kubectl.run(&["delete", "pod", "web", "--dry-run=server"], b"").await?;
    ensure!(refused.code != 0 && refused.stderr.contains("clusternet:service:argo"), "{refused:?}");

    // Host and port alone: the token says which cluster.
    let root = issue(world, json!({ "cluster": CHILD, "address": "root" })).await?;
    let kubectl = with(world, "root", &root)?;
    wait_until("the hub to know the token", Duration::from_secs(10), async || {
        kubectl.ok(&["get", "nodes"]).await.map(drop)
    })
    .await?;
    let said = kubectl.ok_with(&["exec", "-i", "web", "--", "cat"], b"by the token alone").await?;
    ensure!(said == "by the token alone", "{said:?}");

    // Nothing of it can be found in the parent but a hash.
    for token in [&view, &root].map(|status| status["token"].as_str().unwrap_or("none")) {
        let all = world.parent().kubectl().ok(&["get", "secrets", "-A", "-o", "json"]).await?;
        ensure!(!all.contains(token), "a Secret holds the token");
        ensure!(!world.hub()?.log_text()?.contains(token), "the hub's log holds the token");
    }
    let unknown = issue(world, json!({ "cluster": "nowhere" })).await;
    ensure!(
        unknown.is_err_and(|error| format!("{error:#}").contains("nowhere")),
        "a kubeconfig for no cluster"
    );
    Ok(())
}

pub(crate) async fn a_revoked_kubeconfig_ends_within_five_seconds(world: &mut World) -> Outcome {
    let issued = issue(world, json!({ "cluster": CHILD })).await?;
    let kubectl = with(world, "revoked", &issued)?;
    wait_until("the hub to know the token", Duration::from_secs(10), async || {
        kubectl.ok(&["get", "nodes"]).await.map(drop)
    })
    .await?;
    let mut open = kubectl.spawn(&["logs", "-f", "web", "--tail=1"])?;
    open.line(Duration::from_secs(10)).await?;
    let id = issued["credential"].as_str().context("the answer names the credential")?;
    let path = format!("/apis/access.towline.io/v1alpha1/issuedcredentials/{id}");
    world.parent().kubectl().ok(&["delete", "--raw", &path]).await?;
    let revoked = Instant::now();
    while open.line(Duration::from_secs(10)).await?.is_some() {
        ensure!(revoked.elapsed() < Duration::from_secs(10), "an open stream outlives its token");
    }
    ensure!(revoked.elapsed() < Duration::from_secs(6), "closed after {:?}", revoked.elapsed());
    let refused = kubectl.run(&["get", "nodes"], b"").await?;
    ensure!(refused.code != 0, "a revoked token is good: {refused:?}");
    Ok(())
}

pub(crate) async fn a_manifest_is_fetched_once_and_only_from_whoever_holds_the_pinned_key(
    world: &mut World,
) -> Outcome {
    let command = world.cli(&["register", "edge-once", "--ttl", "10m", "-o", "url"]).await?;
    let fetch = command.trim().strip_suffix(" | kubectl apply -f -").context("a command for kubectl")?;
    let sh = world.parent().kubectl().clone().with_binary("sh");
    let (before, pin) = fetch.split_once("sha256//").context("a pin")?;
    let (pin, after) = pin.split_once('\'').context("a quoted pin")?;
    let other = format!("{before}sha256//{}'{after}", "A".repeat(pin.len() - 1) + "=");
    let refused = sh.run(&["-c", &other], b"").await?;
    ensure!(refused.code == 90 && refused.stdout.is_empty(), "another key was shown: {refused:?}");
    // Nothing of it was used up.
    let manifest = sh.ok(&["-c", fetch]).await?;
    ensure!(manifest.contains("kind: \"Deployment\"") || manifest.contains("kind: Deployment"), "{manifest}");
    world.child().kubectl().ok_with(&["apply", "--dry-run=client", "-f", "-"], manifest.as_bytes()).await?;
    let again = sh.run(&["-c", fetch], b"").await?;
    ensure!(again.code == 22 && again.stderr.contains("410"), "{again:?}");

    let token = fetch.rsplit_once("/register/").context("an address")?.1;
    ensure!(!world.hub()?.log_text()?.contains(token), "the hub's log holds the address");
    let kept = world.parent().kubectl().ok(&["get", "secrets", "-A", "-o", "json"]).await?;
    ensure!(!kept.contains(token), "a Secret holds the address");
    Ok(())
}

/// The hub makes the gateway's certificate; the child, which can reach the parent's address and nothing else of it, opens
/// its tunnel there, and so does whoever uses it.
pub(crate) async fn an_agent_opens_its_tunnel_at_a_gateway_whose_certificate_the_hub_made(
    world: &mut World,
) -> Outcome {
    let address = world.child().network().context("behind NAT")?.parent_address();
    let (listen, url) = (format!("{address}:{}", world.gateway().port), format!("https://{address}"));
    let url = format!("{url}:{}", world.gateway().port);
    let usual = world.set_hub_arguments(&[
        "--gateway-listen",
        &listen,
        "--gateway-url",
        &url,
        "--gateway-domain",
        DOMAIN,
        "--agents-use-gateway",
    ]);
    world.stop_hub();
    world.start_hub().await?;
    // What moves a cluster that is registered already; whoever invites the same cluster is not asked again.
    world.register_and_apply().await?;
    let connected = format!("/connect/{}", world.cluster_id);
    wait_until("the tunnel at the gateway", Duration::from_secs(90), async || {
        ensure!(world.hub()?.log_text()?.contains(&connected), "nobody asked for {connected}");
        Ok(())
    })
    .await?;
    // Until then the agent before it, which knows no gateway, still knocks at the parent.
    wait_until("the agent to be alone", Duration::from_secs(90), async || {
        let listed = world.child().kubectl().ok(&["-n", SYSTEM, "get", "pods", "-o", "name"]).await?;
        let agents = listed.lines().filter(|line| line.starts_with("pod/clusternet-agent-")).count();
        ensure!(agents == 1, "{listed}");
        Ok(())
    })
    .await?;
    let attached = |world: &World| {
        let events = world.parent().plane.audit_events()?;
        // When it is asked for: a tunnel of before may end meanwhile.
        let attach = |event: &&Value| {
            event["stage"] == "RequestReceived"
                && event["requestURI"].as_str().unwrap_or_default().ends_with("/attach")
        };
        anyhow::Ok(events.iter().filter(attach).count())
    };
    let before = attached(world)?;
    for (name, spec) in [
        ("own-path", json!({ "cluster": CHILD })),
        ("own-root", json!({ "cluster": CHILD, "address": "root" })),
    ] {
        let kubectl = with(world, name, &issue(world, spec).await?)?;
        wait_until("the hub to know the token", Duration::from_secs(30), async || {
            kubectl.ok(&["get", "nodes"]).await.map(drop)
        })
        .await?;
        let said = kubectl.ok_with(&["exec", "-i", "web", "--", "cat"], name.as_bytes()).await?;
        ensure!(said == name, "{said:?}");
    }
    ensure!(attached(world)? == before, "the tunnel was opened at the parent");

    // As the other tests expect it: without that gateway the agent falls back to the parent by itself.
    let usual: Vec<&str> = usual.iter().map(String::as_str).collect();
    world.set_hub_arguments(&usual);
    world.stop_hub();
    world.start_hub().await?;
    world.register_and_apply().await?;
    let admin = world.admin_through_hub().await?;
    wait_until("the tunnel through the parent", Duration::from_secs(90), async || {
        admin.ok(&["get", "--raw", "/version"]).await
    })
    .await
    .map(drop)
}
