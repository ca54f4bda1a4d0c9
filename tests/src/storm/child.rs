//! One fake kube-apiserver for all children of a storm, in a process of its own. Whose child it is stands in the agent's
//! token; each finds its own `kube-system` and its own credential there, as an agent does that was registered earlier.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::{CHILD_CERTIFICATE, CHILD_KEY, SECRETS, read};
use crate::bench::idle;

/// The token of the nth child's agent.
pub fn token(n: usize) -> String {
    format!("agent-{n}")
}

/// Serves all children until it is killed.
///
/// # Errors
/// The certificate is none, or the address is taken.
pub async fn serve(address: SocketAddr, directory: &Path) -> Result<()> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(read(directory, CHILD_CERTIFICATE)?.as_bytes())
        .collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(read(directory, CHILD_KEY)?.as_bytes())?;
    let mut tls = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let tls = TlsAcceptor::from(Arc::new(tls));
    let secrets: Arc<Vec<Value>> = Arc::new(serde_json::from_str(&read(directory, SECRETS)?)?);
    let listener = TcpListener::bind(address).await.with_context(|| address.to_string())?;
    let mut connections = JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let (tls, secrets) = (tls.clone(), Arc::clone(&secrets));
        connections.spawn(async move {
            let Ok(stream) = tls.accept(socket).await else { return };
            let service = service_fn(move |request| answer(request, Arc::clone(&secrets)));
            let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            http.timer(TokioTimer::new()).max_concurrent_streams(100);
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

fn reply(code: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

fn object(object: &Value) -> Response<Full<Bytes>> {
    reply(StatusCode::OK, "application/json", object.to_string())
}

/// Which child's agent asks.
fn whose(request: &Request<Incoming>) -> Option<usize> {
    request.headers().get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer agent-")?.parse().ok()
}

/// What an agent asks on its own behalf, and `/bench/small` for whoever comes through the tunnel.
async fn answer(
    request: Request<Incoming>,
    secrets: Arc<Vec<Value>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let whose = whose(&request);
    let whom = request.headers().get("impersonate-user").and_then(|user| user.to_str().ok());
    let whom = whom.unwrap_or("the agent itself").to_owned();
    let asked = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let asked: Value = serde_json::from_slice(&asked).unwrap_or(Value::Null);
    Ok(match path.as_str() {
        "/bench/small" => reply(StatusCode::OK, "text/plain", "ok"),
        "/version" => object(&json!({ "gitVersion": "v1.20.2", "platform": "linux/amd64" })),
        "/healthz" | "/livez" | "/readyz" => reply(StatusCode::OK, "text/plain", "ok"),
        "/api/v1/namespaces/kube-system" => object(&json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": "kube-system", "uid": idle::cluster_id(whose.unwrap_or_default()) } })),
        "/api/v1/namespaces/clusternet-system/configmaps/clusternet-agent-policy" => {
            let policy = "apiVersion: access.towline.io/v1alpha1\nkind: AgentPolicy\npreset: admin\n";
            object(&json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "resourceVersion": "1" },
                            "data": { "policy.yaml": policy } }))
        }
        "/api/v1/nodes" => {
            object(&json!({ "apiVersion": "v1", "kind": "NodeList", "metadata": {}, "items": [] }))
        }
        "/api/v1/namespaces/clusternet-system/secrets/parent-cluster" => {
            match whose.and_then(|n| secrets.get(n)) {
                Some(secret) => object(secret),
                None => reply(StatusCode::NOT_FOUND, "application/json", "{}"),
            }
        }
        path if path.ends_with("/serviceaccounts/clusternet-app-deployer/token") => object(&json!({
            "status": { "token": "impersonator", "expirationTimestamp": "2099-01-01T00:00:00Z" } })),
        path if path.ends_with("/selfsubjectreviews") => {
            let user = json!({ "username": whom, "groups": ["system:authenticated"] });
            object(&json!({ "status": { "userInfo": user } }))
        }
        path if path.ends_with("/selfsubjectaccessreviews") => {
            object(&json!({ "status": { "allowed": is_granted(&asked) }, "spec": asked["spec"] }))
        }
        _ => reply(StatusCode::NOT_FOUND, "application/json", "{}"),
    })
}

/// What agent.yaml grants, and no more: the agent serves nobody where its accounts may do anything else.
fn is_granted(asked: &Value) -> bool {
    let asked = &asked["spec"]["resourceAttributes"];
    let name = asked["name"].as_str().unwrap_or_default();
    asked["verb"] == "impersonate"
        && asked["group"] == ""
        && match asked["resource"].as_str() {
            Some("users") => !name.starts_with("system:"),
            Some("groups") => name.starts_with("clusternet:"),
            _ => false,
        }
}
