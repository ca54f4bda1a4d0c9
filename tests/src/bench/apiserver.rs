//! A real kube-apiserver in place of the fake one: what a tunnel adds where an answer costs what it costs in life. It is the
//! parent's own, as a child behind a tunnel of its own.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use api::names::{AGENT_ACCOUNT, SYSTEM_NAMESPACE};
use serde_json::{Value, json};

use super::idle;
use super::load::{Client, percentile};
use super::loopback::{latency, throughput};
use super::options::Size;
use super::report::{Grid, Section};
use super::stage::Stage;
use super::usage::Whose;
use super::ways::{Way, columns, millis, turns};
use crate::kubectl::Kubectl;

const LIST: &str = "/api/v1/namespaces/bench/configmaps";
const SMALL: &str = "/api/v1/namespaces/bench/configmaps/c-0";
const NAMESPACE: &str = "bench";
/// ConfigMaps in the list.
const LISTED: usize = 1000;
/// Bytes of the text in each.
const TEXT: usize = 1024;

/// Small GETs, one at a time and 64 at once, and a list.
///
/// # Errors
/// No tunnel, or a request failed.
pub async fn apiserver(stage: &Stage, size: &Size) -> Result<Section> {
    let kubectl = stage.kubectl();
    install(kubectl, &stage.agent_yaml()?).await?;
    let agents = token(kubectl, SYSTEM_NAMESPACE, AGENT_ACCOUNT).await?;
    let readers = token(kubectl, NAMESPACE, "reader").await?;
    let n = size.tunnels + 1 + size.links.len();
    let (child, direct) = stage.parent_as_child(&agents, &readers, SMALL)?;
    let agent = stage.tunnel("bench-agent-apiserver", n, stage.hub_address(), &child).await?;
    let server = ("kube-apiserver", stage.parent_role()?);
    let roles =
        vec![("hub", Whose::Process(stage.hub_pid())), ("agent", Whose::Process(agent.pid())), server];
    let through = stage.cluster(&idle::cluster_id(n), "bench").asking(SMALL);
    let ways = [
        Way::new("no_tunnel", "no tunnel", direct, vec![server]).await?,
        Way::new("direct_tunnel", "direct tunnel", through, roles).await?,
    ];
    for way in &ways {
        way.client.saturate(64, size.saturation / 3).await?;
    }

    let mut grid = Grid::new(columns(&ways));
    let alone = latency(&ways, size).await?.grid;
    grid.take(alone, &["p50_us", "added_p50_us", "p99_us", "added_p99_us"]);
    let many = throughput(&ways, size).await?.grid;
    grid.take(many, &["per_s", "hub_cpu_us", "agent_cpu_us", "kube-apiserver_cpu_us"]);
    grid.row("list_ms", format!("a list of {LISTED} such objects, p50, ms"), 1, lists(&ways, size).await?);
    let chart = grid.chart(
        "GET of a ConfigMap of 1 KiB from a real kube-apiserver",
        "µs",
        &[("p50_us", "p50"), ("p99_us", "p99")],
    );
    Ok(Section {
        name: "apiserver",
        about: format!(
            "B1, B3, B4 with a real kube-apiserver as the child: ConfigMaps of 1 KiB, one at a time, then 64 in flight, then a list. {} rounds.",
            size.rounds
        ),
        grid,
        charts: vec![("apiserver", chart)],
        circumstances: String::new(),
    })
}

/// Median times of the list, one after the other, in each round.
async fn lists(ways: &[Way], size: &Size) -> Result<Vec<Vec<f64>>> {
    let mut rounds = vec![Vec::new(); ways.len()];
    for round in 0..size.rounds {
        for at in turns(ways.len(), round) {
            let mut times = Vec::with_capacity(size.over_link);
            for _ in 0..size.over_link {
                times.push(list(&ways[at].client).await?);
            }
            rounds[at].push(millis(percentile(&mut times, 0.5)));
        }
    }
    Ok(rounds)
}

async fn list(client: &Client) -> Result<Duration> {
    let asked = Instant::now();
    ensure!(client.get(LIST).await? > LISTED * TEXT, "the list is not whole");
    Ok(asked.elapsed())
}

/// The objects, one who may read them, and what agent.yaml makes in a child, where no node runs its pod.
async fn install(kubectl: &Kubectl, agent_yaml: &str) -> Result<()> {
    let mut items = vec![
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } }),
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "reader", "namespace": NAMESPACE } }),
        json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
                "metadata": { "name": "bench-reader" },
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" },
                "subjects": [{ "kind": "ServiceAccount", "name": "reader", "namespace": NAMESPACE }] }),
    ];
    items.extend((0..LISTED).map(|n| {
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": format!("c-{n}"), "namespace": NAMESPACE },
                "data": { "text": "x".repeat(TEXT) } })
    }));
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string();
    let patient = kubectl.clone().with_time_limit(Duration::from_secs(120));
    patient.ok_with(&["create", "-f", "-"], list.as_bytes()).await?;
    kubectl.apply(agent_yaml).await.map(drop)
}

/// A token of an account.
async fn token(kubectl: &Kubectl, namespace: &str, account: &str) -> Result<String> {
    let wish = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
                       "spec": { "audiences": [], "expirationSeconds": 7200 } });
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
    let made = kubectl.ok_with(&["create", "--raw", &path, "-f", "-"], wish.to_string().as_bytes()).await?;
    let made: Value = serde_json::from_str(&made)?;
    Ok(made["status"]["token"].as_str().context("a TokenRequest's status")?.to_owned())
}
