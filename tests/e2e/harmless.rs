//! What an extension apiserver can break in its parent, and ours does not: the deletion of namespaces, discovery,
//! garbage collection, OpenAPI. The parent asks the hub for its part of all four.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use tests::front::Front;
use tests::kubectl::Kubectl;
use tests::process::wait_until;
use tests::towline::repository;
use tests::world::{POD, SYSTEM, World};
use tokio::task::JoinSet;

use crate::faults::scale_agent;
use crate::{Outcome, wire};

/// Deletion and garbage collection are done by controllers that look when it is their turn.
const SOON: Duration = Duration::from_secs(30);
/// For a parent that goes on after its only hub was away: its controllers back off while they fail.
const RECOVERY: Duration = Duration::from_secs(60);

/// All four.
async fn all_is_well(parent: &Kubectl) -> Outcome {
    let started = Instant::now();
    discovery_is_whole(parent).await?;
    openapi_is_whole(parent).await?;
    parent.ok(&["create", "namespace", "short-lived"]).await?;
    parent.ok(&["-n", "short-lived", "create", "configmap", "something"]).await?;
    let orphan = owned(parent).await?;
    parent.ok(&["delete", "namespace", "short-lived", "--timeout=25s"]).await?;
    ensure!(parent.run(&["get", "namespace", "short-lived"], b"").await?.code == 1);
    collected(parent, &orphan).await?;
    tests::say(&format!("    all is well in the parent ({:.1} s)", started.elapsed().as_secs_f64()));
    Ok(())
}

/// `kubectl api-resources` ends with 1 if a single group does not answer.
async fn discovery_is_whole(parent: &Kubectl) -> Outcome {
    let resources = parent.ok(&["api-resources", "-o", "name"]).await?;
    for expected in ["pods", "deployments.apps", "clusterinvitations.access.towline.io"] {
        ensure!(resources.lines().any(|line| line == expected), "no {expected} in:\n{resources}");
    }
    Ok(())
}

async fn openapi_is_whole(parent: &Kubectl) -> Outcome {
    let openapi: Value = serde_json::from_str(&parent.ok(&["get", "--raw", "/openapi/v2"]).await?)?;
    for expected in ["/api/v1/pods", "/apis/access.towline.io/v1alpha1/clusterinvitations"] {
        ensure!(openapi["paths"][expected].is_object(), "{expected} is not in the parent's OpenAPI");
    }
    Ok(())
}

/// Makes an owner and something that it owns, deletes the owner, and returns the name of the other.
async fn owned(parent: &Kubectl) -> Result<String> {
    let map = |name: &str, owner: Value| {
        json!({ "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": { "name": name, "ownerReferences": owner } })
        .to_string()
    };
    parent.apply(&map("owner", json!([]))).await?;
    let uid = parent.ok(&["get", "configmap", "owner", "-o", "jsonpath={.metadata.uid}"]).await?;
    let reference = json!([{ "apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid }]);
    parent.apply(&map("dependent", reference)).await?;
    parent.ok(&["delete", "configmap", "owner"]).await?;
    Ok("dependent".to_owned())
}

async fn collected(parent: &Kubectl, name: &str) -> Outcome {
    wait_until("the garbage to be collected", SOON, async || {
        let found = parent.run(&["get", "configmap", name], b"").await?;
        if found.code == 1 && found.stderr.contains("NotFound") { Ok(()) } else { bail!("{found:?}") }
    })
    .await
}

pub(crate) async fn the_parent_stays_well(world: &mut World) -> Outcome {
    all_is_well(world.parent().kubectl()).await
}

pub(crate) async fn the_parent_stays_well_while_a_tunnel_is_saturated(world: &mut World) -> Outcome {
    let kubectl = world.admin_through_hub().await?;
    let make = "mkdir -p /www; dd if=/dev/urandom of=/www/noise bs=1M count=20";
    kubectl.ok(&["exec", POD, "--", "sh", "-c", make]).await?;
    let mut filling = JoinSet::new();
    for _ in 0..3 {
        let kubectl = kubectl.clone();
        filling.spawn(async move { transfer(&kubectl).await });
    }
    let parent = world.parent().kubectl().clone();
    let begun = Instant::now();
    let mut transfers = 0;
    let mut well = Box::pin(all_is_well(&parent));
    loop {
        tokio::select! {
            result = &mut well => { result?; break }
            Some(one) = filling.join_next() => {
                one.context("a transfer")??;
                transfers += 1;
                let kubectl = kubectl.clone();
                filling.spawn(async move { transfer(&kubectl).await });
            }
        }
    }
    // Three are under way at any moment; that they get somewhere shows that they are.
    ensure!(transfers > 0, "no transfer of 20 MiB came through in {:?}", begun.elapsed());
    tests::say(&format!("    {transfers} times 20 MiB went through the tunnel meanwhile"));
    Ok(())
}

async fn transfer(kubectl: &Kubectl) -> Outcome {
    let path = format!("/api/v1/namespaces/default/pods/{POD}:8080/proxy/noise");
    // Bytes that are no text are replaced by longer ones: there are not fewer of them then.
    let body = kubectl.ok(&["get", "--raw", &path]).await?;
    ensure!(body.len() >= 20 << 20, "{} bytes", body.len());
    Ok(())
}

pub(crate) async fn the_parent_stays_well_while_no_tunnel_is_up(world: &mut World) -> Outcome {
    scale_agent(world, 0).await?;
    wait_until("the tunnel to be gone", SOON, async || {
        let tunnel = world.condition("TunnelConnected").await?;
        if tunnel["status"] == "False" { Ok(()) } else { bail!("{tunnel}") }
    })
    .await?;
    let result = all_is_well(world.parent().kubectl()).await;
    scale_agent(world, 1).await?;
    world.wait_ready(Duration::from_secs(60)).await?;
    result
}

/// With one replica nobody answers for the hub's groups while it is away, and Kubernetes deletes no namespace without
/// having asked every group. The promise is that the rest goes on, and that this mends by itself.
pub(crate) async fn a_killed_hub_delays_the_deletion_of_namespaces_and_nothing_else(
    world: &mut World,
) -> Outcome {
    let parent = world.parent().kubectl().clone();
    parent.ok(&["create", "namespace", "caught-in-between"]).await?;
    world.kill_hub();
    parent.ok(&["delete", "namespace", "caught-in-between", "--wait=false"]).await?;
    let orphan = owned(&parent).await?;
    collected(&parent, &orphan).await.context("while the hub is dead")?;
    openapi_is_whole(&parent).await.context("while the hub is dead")?;
    let resources = parent.run(&["api-resources", "-o", "name"], b"").await?;
    ensure!(resources.stdout.lines().any(|line| line == "deployments.apps"), "{resources:?}");
    ensure!(parent.run(&["get", "namespace", "caught-in-between"], b"").await?.code == 0, "deleted?");

    world.launch_hub().await?;
    let started = Instant::now();
    wait_until("the namespace to go once the hub is back", RECOVERY, async || {
        let found = parent.run(&["get", "namespace", "caught-in-between"], b"").await?;
        if found.code == 1 { Ok(()) } else { bail!("it is still there") }
    })
    .await?;
    tests::say(&format!(
        "    the namespace went {:.1} s after the hub's start",
        started.elapsed().as_secs_f64()
    ));
    world.wait_for_hub().await?;
    all_is_well(&parent).await
}

/// What the parent itself needs of the hub, any replica can answer. Which of them holds a cluster's tunnel is another
/// matter: there is one replica as long as they do not know of each other.
pub(crate) async fn one_of_two_hubs_may_be_killed_and_the_parent_goes_on(world: &mut World) -> Outcome {
    let parent = world.parent().kubectl().clone();
    let kubectl = world.admin_through_hub().await?;
    let (second, port) = world.launch_second_hub(&[]).await?;
    let target = world.hub_at(port).await?;
    wait_until("the second hub to be ready", SOON, async || {
        second.check()?;
        let answer = wire::get(&target, "/readyz", HeaderMap::new(), &mut JoinSet::new()).await?;
        if answer.status() == StatusCode::OK { Ok(()) } else { bail!("{}", answer.status()) }
    })
    .await?;
    let front = Front::start(vec![world.hub_port(), port]).await?;
    world.lead_parent_to(front.port()).await?;

    world.kill_hub();
    let killed = Instant::now();
    wait_until("discovery to be whole again", Duration::from_secs(3), async || {
        discovery_is_whole(&parent).await
    })
    .await?;
    tests::say(&format!("    discovery was whole {:.2} s after the kill", killed.elapsed().as_secs_f64()));
    all_is_well(&parent).await?;
    wait_until("the agent to be back, at the second hub", SOON, async || {
        kubectl.ok(&["get", "--raw", "/version"]).await.map(drop)
    })
    .await?;
    tests::say(&format!("    and the child was back within {:.1} s", killed.elapsed().as_secs_f64()));

    world.launch_hub().await?;
    world.lead_parent_to(world.hub_port()).await?;
    drop((second, front));
    world.wait_ready(Duration::from_secs(60)).await
}

/// From its first answer on. A single 404 on `/openapi/v3` makes a parent call the group legacy until it restarts,
/// and one on `/apis` makes one of 1.26 call it stale.
pub(crate) async fn a_starting_hub_never_answers_404_to_the_parent(world: &mut World) -> Outcome {
    let front = world.hub_at(world.hub_port()).await?;
    world.kill_hub();
    world.launch_hub().await?;
    let launched = Instant::now();
    let mut seen = Vec::new();
    let mut asks = 0_u32;
    while seen.len() < 40 {
        ensure!(launched.elapsed() < SOON, "the hub did not answer in time: {seen:?}");
        for path in ["/openapi/v3", "/apis", "/openapi/v2", "/apis/proxies.clusternet.io/v1alpha1"] {
            asks += 1;
            let mut headers = HeaderMap::new();
            headers.insert("x-remote-user", HeaderValue::from_static("system:aggregator"));
            headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
            let mut tasks = JoinSet::new();
            // Not listening yet is no answer: the parent then knows that nobody is there.
            let Ok(answer) = wire::get(&front, path, headers, &mut tasks).await else { continue };
            let status = answer.status();
            ensure!(
                status != StatusCode::NOT_FOUND,
                "{path} is a 404 {:?} after the start",
                launched.elapsed()
            );
            seen.push((path, status));
        }
        tokio::task::yield_now().await;
    }
    let other: Vec<_> = seen.iter().filter(|(_, status)| *status != StatusCode::OK).collect();
    tests::say(&format!(
        "    {asks} requests within {:.1} s of the start, {} answered, not with 200: {other:?}",
        launched.elapsed().as_secs_f64(),
        seen.len()
    ));
    world.wait_for_hub().await?;
    world.wait_ready(Duration::from_secs(60)).await
}

/// The commands below "Uninstall" in deploy/README.md, one by one, for the parent or the child.
fn uninstall_commands(of_child: bool) -> Result<Vec<Vec<String>>> {
    let text = std::fs::read_to_string(repository().join("deploy/README.md"))?;
    let (_, section) = text.split_once("\n## Uninstall\n").context("deploy/README.md has that section")?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut commands = Vec::new();
    for line in section.lines().filter_map(|line| line.strip_prefix("    kubectl ")) {
        let line = line.split('#').next().unwrap_or_default();
        let child = line.strip_prefix("--context CHILD ");
        if child.is_some() == of_child {
            commands.push(child.unwrap_or(line).split_whitespace().map(str::to_owned).collect());
        }
    }
    Ok(commands)
}

async fn run_in(directory: &Path, kubectl: &Kubectl, command: &[String]) -> Outcome {
    let place = |word: &String| {
        if word.ends_with(".yaml") { directory.join(word).display().to_string() } else { word.clone() }
    };
    let arguments: Vec<String> = command.iter().map(place).collect();
    kubectl.ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await.map(drop)
}

/// A cluster that nobody unregistered, with all that the hub makes for one.
fn forgotten_cluster() -> String {
    let labels = json!({ "clusternet.io/created-by": "clusternet-hub",
                         "clusters.clusternet.io/cluster-id": "forgotten",
                         "clusters.clusternet.io/cluster-name": "forgotten" });
    let (space, name) = ("clusternet-forgotten", "clusternet-forgotten");
    let rbac = "rbac.authorization.k8s.io";
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": space, "labels": labels } },
        { "apiVersion": "v1", "kind": "ServiceAccount",
          "metadata": { "name": "clusternet-agent", "namespace": space, "labels": labels } },
        { "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole", "metadata": { "name": name, "labels": labels },
          "rules": [] },
        { "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding",
          "metadata": { "name": name, "labels": labels },
          "roleRef": { "apiGroup": rbac, "kind": "ClusterRole", "name": name }, "subjects": [] },
        { "apiVersion": "clusters.clusternet.io/v1beta1", "kind": "ManagedCluster",
          "metadata": { "name": "forgotten", "namespace": space, "labels": labels },
          "spec": { "clusterId": "forgotten", "clusterType": "StandardCluster", "syncMode": "Pull",
                    "keyFingerprint": "SHA256:forgotten", "denied": false } },
    ]})
    .to_string()
}

/// Last of all: the hub is gone after it.
pub(crate) async fn uninstalling_as_written_leaves_nothing_behind(world: &mut World) -> Outcome {
    let parent = world.parent().kubectl().clone().with_time_limit(Duration::from_secs(120));
    parent.apply(&forgotten_cluster()).await?;
    world.cli(&["register", "never-used"]).await?;

    let commands = uninstall_commands(false)?;
    ensure!(commands.len() >= 4, "{commands:?}");
    ensure!(commands[0].iter().any(|word| word == "apiservice"), "the APIServices go first: {commands:?}");
    for command in &commands {
        if command.iter().any(|word| word == "hub.yaml") {
            // The Deployment is not here; this is what its removal does.
            world.kill_hub();
        }
        run_in(&repository().join("deploy"), &parent, command).await?;
    }
    nothing_terminates(&parent).await?;
    for kind in ["clusterroles,clusterrolebindings", "customresourcedefinitions", "apiservices"] {
        let left = parent.ok(&["get", kind, "-o", "name"]).await?;
        let ours = |line: &&str| ["clusternet", "towline"].iter().any(|name| line.contains(name));
        let left: Vec<&str> = left.lines().filter(ours).collect();
        ensure!(left.is_empty(), "left behind: {left:?}");
    }
    let marked = ["get", "namespaces", "-l", "clusternet.io/created-by", "-o", "name"];
    ensure!(parent.ok(&marked).await?.is_empty(), "namespaces of clusters are left");
    ensure!(parent.run(&["get", "namespace", SYSTEM], b"").await?.code == 1, "{SYSTEM} is left");
    parent.ok(&["create", "namespace", "after-all"]).await?;
    parent.ok(&["delete", "namespace", "after-all", "--timeout=25s"]).await?;
    let resources = parent.ok(&["api-resources", "-o", "name"]).await?;
    ensure!(!resources.contains("clusternet.io") && !resources.contains("towline.io"), "{resources}");

    let child = world.child().kubectl().clone().with_time_limit(Duration::from_secs(120));
    std::fs::write(world.scratch().path().join("agent.yaml"), world.manifest()?)?;
    let commands = uninstall_commands(true)?;
    ensure!(!commands.is_empty(), "no command for the child");
    for command in &commands {
        run_in(world.scratch().path(), &child, command).await?;
    }
    nothing_terminates(&child).await?;
    ensure!(child.run(&["get", "namespace", SYSTEM], b"").await?.code == 1, "the child still has {SYSTEM}");
    Ok(())
}

async fn nothing_terminates(kubectl: &Kubectl) -> Outcome {
    wait_until("no namespace to be Terminating", RECOVERY, async || {
        let phases = "jsonpath={range .items[*]}{.metadata.name} {.status.phase}{\"\\n\"}{end}";
        let all = kubectl.ok(&["get", "namespaces", "-o", phases]).await?;
        let stuck: Vec<&str> = all.lines().filter(|line| line.ends_with("Terminating")).collect();
        if stuck.is_empty() { Ok(()) } else { bail!("{stuck:?}") }
    })
    .await
}
