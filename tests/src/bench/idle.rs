//! Tunnels in bulk, most of them idle: agents that connect to the hub as the aggregator would pass them on, but directly,
//! say hello, and answer whatever the hub asks with a report of good health.

use std::ops::Range;

use anyhow::{Context as _, Result, ensure};
use api::names::AGENT_ACCOUNT;
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tunnel_proto::agent_side::Connection;
use tunnel_proto::{Hello, agent_side};

use super::load::Target;

/// The id of the nth cluster.
pub fn cluster_id(n: usize) -> String {
    format!("c{n:07}-0000-4000-8000-000000000000")
}

/// The dedicated namespace of the nth cluster: the hub believes a `ManagedCluster` in no other.
pub fn namespace(n: usize) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, cluster_id(n).as_bytes());
    let hex: String = digest.as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("clusternet-{hex}")
}

/// Namespaces, `ManagedCluster`s and agents' accounts of these clusters.
pub fn objects(numbers: Range<usize>) -> Value {
    let items: Vec<Value> = numbers
        .flat_map(|n| {
            let labels = json!({ "clusters.clusternet.io/cluster-id": cluster_id(n),
                                 "clusters.clusternet.io/cluster-name": format!("bench-{n}"),
                                 "clusternet.io/created-by": "clusternet-hub" });
            [
                json!({ "apiVersion": "v1", "kind": "Namespace",
                        "metadata": { "name": namespace(n), "labels": labels } }),
                json!({ "apiVersion": "clusters.clusternet.io/v1beta1", "kind": "ManagedCluster",
                        "metadata": { "name": format!("bench-{n}"), "namespace": namespace(n), "labels": labels },
                        "spec": { "clusterId": cluster_id(n), "clusterType": "StandardCluster", "syncMode": "Pull",
                                  "keyFingerprint": "SHA256:bench", "denied": false } }),
                json!({ "apiVersion": "v1", "kind": "ServiceAccount", "automountServiceAccountToken": false,
                        "metadata": { "name": AGENT_ACCOUNT, "namespace": namespace(n), "labels": labels,
                                      "annotations": { "access.towline.io/key-fingerprint": "SHA256:bench" } } }),
            ]
        })
        .collect();
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}

/// Opens the nth cluster's tunnel and holds it on a task, with an agent that answers by itself.
///
/// # Errors
/// The hub refuses.
pub async fn open(hub: &Target, n: usize, held: &mut JoinSet<()>) -> Result<()> {
    let tunnel = connect(hub, n, held).await?;
    held.spawn(async move {
        let report = Bytes::from_static(
            b"{\"kubernetesVersion\":\"v1.20.2\",\"readyz\":true,\"livez\":true,\"healthz\":true}",
        );
        let answer = move |_: Request<hyper::body::Incoming>| {
            let body = Full::new(report.clone()).map_err(|never| match never {}).boxed_unsync();
            std::future::ready(http::Response::new(body))
        };
        let _ = tunnel.serve(answer, std::future::pending()).await;
    });
    Ok(())
}

/// A socket in which little waits unsent, as in the agent's. That sets `TCP_NOTSENT_LOWAT`; all that may lie in the
/// buffer is the nearest that the library has here, and on loopback, where nothing is on the wire, it is the same.
async fn socket(hub: &Target) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_send_buffer_size(agent::limits::UNSENT)?;
    Ok(socket.connect(hub.address()).await?)
}

/// Opens the nth cluster's tunnel; who serves it is up to the caller.
///
/// # Errors
/// The hub refuses.
pub async fn connect(
    hub: &Target,
    n: usize,
    held: &mut JoinSet<()>,
) -> Result<Connection<TokioIo<Upgraded>>> {
    let stream = hub.dial_over(socket(hub).await?, true).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    held.spawn(async move {
        let _ = connection.with_upgrades().await;
    });
    let key = agent_side::new_key();
    let id = cluster_id(n);
    let path = format!("/apis/proxies.clusternet.io/v1alpha1/sockets/{id}/attach");
    let mut request = Request::get(path).header(header::HOST, "clusternet-hub.clusternet-system.svc");
    request = request
        .header("x-remote-user", format!("system:serviceaccount:{}:clusternet-agent", namespace(n)))
        // Allowed without a review, so that the benchmark measures tunnels and not the parent's RBAC.
        .header("x-remote-group", "system:masters");
    let mut request = request.body(Empty::<Bytes>::new())?;
    request.headers_mut().extend(agent_side::upgrade_headers(&key)?);
    let response = sender.send_request(request).await?;
    if response.status() != 101 {
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::bail!("attach answered {status}: {}", String::from_utf8_lossy(&body));
    }
    agent_side::check_upgrade_answer(&key, response.status(), response.headers())?;
    let upgraded = hyper::upgrade::on(response).await?;
    let hello = Hello::new(id, "bench", env!("CARGO_PKG_VERSION"));
    let (welcome, tunnel) = agent_side::connect(TokioIo::new(upgraded), &hello).await.context("hello")?;
    ensure!(welcome.protocol == 1, "{welcome:?}");
    Ok(tunnel)
}
