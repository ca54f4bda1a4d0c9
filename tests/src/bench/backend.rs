//! A kube-apiserver that answers at once: what an agent asks on its own behalf, and bodies of a known size below
//! `/bench/`. It runs as a process of its own, so that its cost is nobody else's.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// Body of `/bench/small`.
pub const SMALL: usize = 1024;
/// Body of `/bench/large`.
pub const LARGE: usize = 100 * 1000 * 1000;
const CHUNK: usize = 64 * 1024;
/// UID of the fake's kube-system namespace.
pub const CLUSTER_ID: &str = "b0000000-0000-4000-8000-000000000000";

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Serves until it is killed. kube-apiserver's own HTTP/2 settings: 100 streams a connection since 1.29.
///
/// # Errors
/// The certificate is none, or the address is taken.
pub async fn serve(address: SocketAddr, certificate_pem: &str, key_pem: &str) -> Result<()> {
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(certificate_pem.as_bytes()).collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())?;
    let mut tls = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let tls = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind(address).await.with_context(|| address.to_string())?;
    let secret = Arc::new(Mutex::new(json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": { "name": "parent-cluster", "namespace": "clusternet-system", "resourceVersion": "1" },
    })));
    let mut connections = JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let (tls, secret) = (tls.clone(), secret.clone());
        connections.spawn(async move {
            let Ok(stream) = tls.accept(socket).await else { return };
            let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let service = service_fn(move |request| answer(request, secret.clone()));
            if h2 {
                let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                http.timer(TokioTimer::new())
                    .max_concurrent_streams(100)
                    .initial_stream_window_size(256 * 1024)
                    .initial_connection_window_size(256 * 1024 * 100);
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
            } else {
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

fn full(code: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).boxed_unsync());
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

fn object(code: StatusCode, object: &Value) -> Response<Body> {
    full(code, "application/json", object.to_string())
}

pub(crate) static SMALL_BODY: [u8; SMALL] = [b'x'; SMALL];
static CHUNK_BODY: [u8; CHUNK] = [b'x'; CHUNK];

fn large() -> Response<Body> {
    let chunks = LARGE / CHUNK;
    let rest = LARGE % CHUNK;
    let frames = futures::stream::iter(0..chunks)
        .map(|_| Bytes::from_static(&CHUNK_BODY))
        .chain(futures::stream::iter([Bytes::from_static(&CHUNK_BODY[..rest])]))
        .map(|bytes| Ok(Frame::data(bytes)));
    Response::new(StreamBody::new(frames).boxed_unsync())
}

async fn answer(request: Request<Incoming>, secret: Arc<Mutex<Value>>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/bench/small" => {
            return Ok(full(StatusCode::OK, "application/json", Bytes::from_static(&SMALL_BODY)));
        }
        "/bench/large" => return Ok(large()),
        "/version" => {
            return Ok(object(
                StatusCode::OK,
                &json!({ "gitVersion": "v1.20.2", "platform": "linux/amd64" }),
            ));
        }
        "/healthz" | "/livez" | "/readyz" => return Ok(full(StatusCode::OK, "text/plain", "ok")),
        "/api/v1/namespaces/kube-system" => {
            return Ok(object(
                StatusCode::OK,
                &json!({ "apiVersion": "v1", "kind": "Namespace",
                         "metadata": { "name": "kube-system", "uid": CLUSTER_ID } }),
            ));
        }
        // The bodies stand at paths that are no resource, which the agent's default does not admit.
        "/api/v1/namespaces/clusternet-system/configmaps/clusternet-agent-policy" => {
            let policy = "apiVersion: access.towline.io/v1alpha1\nkind: AgentPolicy\npreset: admin\n";
            return Ok(object(
                StatusCode::OK,
                &json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "resourceVersion": "1" },
                         "data": { "policy.yaml": policy } }),
            ));
        }
        "/api/v1/nodes" => {
            return Ok(object(
                StatusCode::OK,
                &json!({ "apiVersion": "v1", "kind": "NodeList", "metadata": {}, "items": [] }),
            ));
        }
        _ => {}
    }
    let method = request.method().clone();
    let whom = request.headers().get("impersonate-user").and_then(|user| user.to_str().ok());
    let whom = whom.unwrap_or("the agent itself").to_owned();
    let Ok(body) = request.into_body().collect().await else {
        return Ok(full(StatusCode::BAD_REQUEST, "text/plain", "body"));
    };
    let asked: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or(Value::Null);
    Ok(if path.ends_with("/serviceaccounts/clusternet-app-deployer/token") {
        let expires = "2099-01-01T00:00:00Z";
        object(
            StatusCode::CREATED,
            &json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
                     "status": { "token": "impersonator", "expirationTimestamp": expires } }),
        )
    } else if path.ends_with("/selfsubjectreviews") {
        let user = json!({ "username": whom, "groups": ["system:authenticated"] });
        object(StatusCode::CREATED, &json!({ "status": { "userInfo": user } }))
    } else if path.ends_with("/selfsubjectaccessreviews") {
        // What agent.yaml grants, and no more: the agent serves nobody where its accounts may do anything else.
        let asked_for = &asked["spec"]["resourceAttributes"];
        let name = asked_for["name"].as_str().unwrap_or_default();
        let impersonates = asked_for["verb"] == "impersonate" && asked_for["group"] == "";
        let allowed = impersonates
            && match asked_for["resource"].as_str() {
                Some("users") => !name.starts_with("system:"),
                Some("groups") => name.starts_with("clusternet:"),
                _ => false,
            };
        object(StatusCode::CREATED, &json!({ "status": { "allowed": allowed }, "spec": asked["spec"] }))
    } else if path.ends_with("/secrets/parent-cluster") {
        let mut kept = secret.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match method {
            Method::PUT => *kept = asked,
            Method::PATCH => {
                if let (Some(kept), Some(data)) = (kept.as_object_mut(), asked.get("data")) {
                    kept.insert("data".to_owned(), data.clone());
                }
            }
            _ => {}
        }
        object(StatusCode::OK, &kept)
    } else {
        object(StatusCode::NOT_FOUND, &json!({ "kind": "Status", "code": 404, "message": path }))
    })
}
