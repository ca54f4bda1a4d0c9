//! Clusters in bulk with all that an approval leaves in the parent, and their agents. Most agents share processes, a
//! few hundred in each, which run the agent's own code from its settings on; 2,000 processes of 9 MiB would be 18 GiB.
//! The first few are the agent's real binary.

use std::net::SocketAddr;
use std::path::Path;

use agent::config::{Address, Proxy, Settings};
use agent::key::Key;
use anyhow::{Context as _, Result};
use api::names::AGENT_ACCOUNT;
use futures::StreamExt as _;
use runtime::config::Effective;
use runtime::logs::Format;
use runtime::stop::Stop;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{CHILD_CA, GATEWAY_CA, SECRETS, child, read};
use crate::bench::idle;
use crate::clusters::Parent;
use crate::gateway::Gateway;
use crate::process::{Process, Program};
use crate::scratch::Scratch;
use crate::towline::Towline;
use crate::world::base64;

/// Agents of one process.
const IN_ONE_PROCESS: usize = 250;
/// Agents that are processes of their own, from the real binary: 15 MiB each.
const REAL: usize = 16;
/// Requests to the parent at once while clusters are made.
const MAKING: usize = 32;
/// Life of a credential.
const LIFE_SECONDS: u64 = 24 * 3600;

/// Makes the clusters in the parent, and leaves each agent's credential where its child finds it.
///
/// # Errors
/// The parent refuses an object.
pub async fn create(parent: &Parent, count: usize, directory: &Path) -> Result<()> {
    let client = parent.plane.client().await?;
    let key = base64(Key::generate()?.to_pem()?.reveal());
    let url = parent.plane.url();
    let secrets: Vec<Result<Value>> = futures::stream::iter(0..count)
        .map(|n| {
            let (client, key, url) = (client.clone(), key.clone(), url.clone());
            async move {
                for (path, object) in objects(n) {
                    post(&client, &path, &object).await?;
                }
                let account = format!("/api/v1/namespaces/{}/serviceaccounts/{AGENT_ACCOUNT}/token", idle::namespace(n));
                let wish = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
                                   "spec": { "expirationSeconds": LIFE_SECONDS } });
                let made = post(&client, &account, &wish).await?;
                let field = |name: &str| made["status"][name].as_str().map(base64).context("a TokenRequest's status");
                Ok(json!({
                    "apiVersion": "v1", "kind": "Secret",
                    "metadata": { "name": "parent-cluster", "namespace": "clusternet-system", "resourceVersion": "1" },
                    "data": { "agent.key": key, "cluster-id": base64(&idle::cluster_id(n)), "token": field("token")?,
                              "expires": field("expirationTimestamp")?, "parentURL": base64(&url) },
                }))
            }
        })
        .buffered(MAKING)
        .collect()
        .await;
    let secrets: Vec<Value> = secrets.into_iter().collect::<Result<_>>()?;
    std::fs::write(directory.join(SECRETS), serde_json::to_string(&secrets)?)?;
    Ok(())
}

/// What belongs to the nth cluster, and where it is created.
fn objects(n: usize) -> Vec<(String, Value)> {
    let (id, namespace) = (idle::cluster_id(n), idle::namespace(n));
    let mut items = idle::objects(n..n + 1)["items"].as_array().cloned().unwrap_or_default();
    let labels = items.first().map(|first| first["metadata"]["labels"].clone()).unwrap_or_default();
    let name = format!("clusternet-{id}");
    items.extend([
        json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
                "metadata": { "name": name, "labels": labels },
                "rules": [{ "apiGroups": ["proxies.clusternet.io"], "resources": ["sockets/attach"],
                            "resourceNames": [id], "verbs": ["get", "create"] }] }),
        json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
                "metadata": { "name": name, "labels": labels },
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
                "subjects": [{ "kind": "ServiceAccount", "name": AGENT_ACCOUNT, "namespace": namespace }] }),
    ]);
    items.into_iter().map(|item| (path_of(&item), item)).collect()
}

fn path_of(object: &Value) -> String {
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    match object["kind"].as_str() {
        Some("Namespace") => "/api/v1/namespaces".to_owned(),
        Some("ServiceAccount") => format!("/api/v1/namespaces/{namespace}/serviceaccounts"),
        Some("ClusterRole") => "/apis/rbac.authorization.k8s.io/v1/clusterroles".to_owned(),
        Some("ClusterRoleBinding") => "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings".to_owned(),
        _ => format!("/apis/clusters.clusternet.io/v1beta1/namespaces/{namespace}/managedclusters"),
    }
}

async fn post(client: &kube::Client, path: &str, object: &Value) -> Result<Value> {
    let request = http::Request::post(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(serde_json::to_vec(object)?)?;
    client.request(request).await.with_context(|| path.to_owned())
}

/// Starts all agents, in as few processes as hold them, and a few as processes of their own.
///
/// # Errors
/// A process does not start, or a file cannot be written.
pub fn start(
    scratch: &Scratch,
    towline: &Towline,
    parent: &Parent,
    gateway: &Gateway,
    count: usize,
    at: SocketAddr,
    directory: &Path,
) -> Result<Vec<Process>> {
    let registration = directory.join("registration");
    std::fs::create_dir_all(&registration)?;
    for (name, text) in [
        ("parentURL", parent.plane.url()),
        ("ca.crt", parent.plane.ca_pem().to_owned()),
        ("gatewayURL", format!("https://127.0.0.1:{}", gateway.port)),
        ("gateway-ca.crt", read(directory, GATEWAY_CA)?),
        // None of them needs its invitation any more.
        ("regToken", "used".to_owned()),
        ("invitation", "used".to_owned()),
        ("invitationSecret", "used".to_owned()),
    ] {
        std::fs::write(registration.join(name), text)?;
    }
    for n in 0..count {
        std::fs::write(directory.join(child::token(n)), child::token(n))?;
    }
    let real = REAL.min(count);
    let mut processes = Vec::new();
    for n in 0..real {
        let agent = Program::new(format!("towline-agent-{n}"), &towline.agent)
            .arg("--registration-dir")
            .arg(&registration)
            .args(["--kube-apiserver", &format!("https://{at}"), "--admin-listen", "127.0.0.1:0"])
            .arg("--kube-ca-file")
            .arg(directory.join(CHILD_CA))
            .arg("--token-file")
            .arg(directory.join(child::token(n)))
            .start(scratch)?;
        processes.push(agent);
    }
    for first in (real..count).step_by(IN_ONE_PROCESS) {
        let here = IN_ONE_PROCESS.min(count - first);
        let agents = Program::new(format!("agents-{first}"), std::env::current_exe()?)
            .args(["agents", &first.to_string(), &here.to_string(), &at.to_string()])
            .arg(directory)
            .start(scratch)?;
        processes.push(agents);
    }
    Ok(processes)
}

/// Runs so many agents in this process until one ends.
///
/// # Errors
/// One ended.
pub async fn run(first: usize, count: usize, at: SocketAddr, directory: &Path) -> Result<()> {
    runtime::logs::init(Format::Text, "warn")?;
    let stop = Stop::new();
    let mut agents = JoinSet::new();
    for n in first..first + count {
        let settings = Settings {
            registration_dir: directory.join("registration"),
            admin_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            apiserver: Address::parse(&format!("https://{at}")).map_err(anyhow::Error::msg)?,
            ca_file: directory.join(CHILD_CA),
            token_file: directory.join(child::token(n)),
            instance: format!("agent-{n}"),
            tunnels: 1,
            threads: 1,
            proxy: Proxy::default(),
            tracing: None,
            log_format: Format::Text,
            log_filter: "warn".to_owned(),
            effective: Effective::default(),
            source: None,
        };
        agents.spawn(agent::app::run(settings, stop.clone()));
    }
    let ended = agents.join_next().await.context("there are no agents")?;
    ended.context("an agent panicked")??;
    anyhow::bail!("an agent ended by itself")
}
