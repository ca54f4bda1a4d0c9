//! A kube-apiserver that answers at once: what an agent asks on its own behalf, bodies of a known size below `/bench/`,
//! watches that tell once a second what time it is, and an exec that echoes. It runs as a process of its own, so that its
//! cost is nobody else's.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

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
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

/// Body of `/bench/small`.
pub const SMALL: usize = 1024;
/// Below it stands how many bytes the body is to have.
pub const BODY: &str = "/bench/body/";
/// A watch of it tells the time each second.
pub const WATCHED: &str = "/api/v1/namespaces/bench/configmaps?watch=true";
/// Echoes what it is sent.
pub const EXEC: &str = "/api/v1/namespaces/bench/pods/echo/exec?command=cat&stdin=true&stdout=true";
/// Between two events of a watch.
const EVENT_EVERY: Duration = Duration::from_secs(1);
/// About as long as an event of a small object.
const EVENT_PADDING: usize = 400;
/// Largest body that is asked for; it is made on the way, so it costs nothing.
const BODY_MAX: usize = 1 << 30;
/// Read at once from who is echoed.
const ECHO: usize = 4096;
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
    let (echoes, mut connections) = (TaskTracker::new(), JoinSet::new());
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let (tls, secret, echoes) = (tls.clone(), secret.clone(), echoes.clone());
        connections.spawn(async move {
            let Ok(stream) = tls.accept(socket).await else { return };
            let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let service = service_fn(move |request| answer(request, secret.clone(), echoes.clone()));
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
                    .with_upgrades()
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

fn body(bytes: usize) -> Response<Body> {
    let bytes = bytes.min(BODY_MAX);
    let (chunks, rest) = (bytes / CHUNK, bytes % CHUNK);
    let frames = futures::stream::iter(0..chunks)
        .map(|_| Bytes::from_static(&CHUNK_BODY))
        .chain(futures::stream::iter([Bytes::from_static(&CHUNK_BODY[..rest])]))
        .map(|bytes| Ok(Frame::data(bytes)));
    Response::new(StreamBody::new(frames).boxed_unsync())
}

/// Microseconds since 1970: one clock for all processes of this machine.
#[must_use]
pub fn clock() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or_default()
}

/// Events for ever, each with the time at which it was made as its resource version. The watches are spread over the
/// second, as events of many objects are.
fn watch() -> Response<Body> {
    static WATCHES: AtomicU32 = AtomicU32::new(0);
    // Steps of the golden ratio fill a circle evenly, however many there are.
    let phase = f64::from(WATCHES.fetch_add(1, Ordering::Relaxed)) * 0.618_033_988_749_895 % 1.0;
    let ticks = interval_at(Instant::now() + EVENT_EVERY.mul_f64(phase), EVENT_EVERY);
    let events = futures::stream::unfold(ticks, async |mut ticks| {
        ticks.tick().await;
        let event = format!(
            r#"{{"type":"MODIFIED","object":{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"clock","resourceVersion":"{}"}},"data":{{"padding":"{:x<EVENT_PADDING$}"}}}}}}"#,
            clock(),
            ""
        );
        Some((Ok(Frame::data(Bytes::from(event + "\n"))), ticks))
    });
    let mut response = Response::new(StreamBody::new(events).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// When an event was made.
#[must_use]
pub fn time_of(event: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(event).ok()?;
    let (_, rest) = text.split_once(r#""resourceVersion":""#)?;
    rest.split_once('"')?.0.parse().ok()
}

/// Accepts an upgrade to whatever it is, and sends everything back.
fn echo(mut request: Request<Incoming>, echoes: &TaskTracker) -> Response<Body> {
    let Some(protocol) = request.headers().get(header::UPGRADE).cloned() else {
        return full(StatusCode::BAD_REQUEST, "text/plain", "not an upgrade");
    };
    let upgraded = hyper::upgrade::on(&mut request);
    echoes.spawn(async move {
        let Ok(upgraded) = upgraded.await else { return };
        let (mut from, mut to) = tokio::io::split(TokioIo::new(upgraded));
        let mut buffer = [0; ECHO];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            if to.write_all(&buffer[..count]).await.is_err() || to.flush().await.is_err() {
                return;
            }
        }
    });
    let mut response = full(StatusCode::SWITCHING_PROTOCOLS, "text/plain", "");
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    headers.insert(header::UPGRADE, protocol);
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
    headers.insert("x-stream-protocol-version", header::HeaderValue::from_static("v4.channel.k8s.io"));
    response
}

async fn answer(
    request: Request<Incoming>,
    secret: Arc<Mutex<Value>>,
    echoes: TaskTracker,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    if let Some(bytes) = path.strip_prefix(BODY).and_then(|bytes| bytes.parse().ok()) {
        return Ok(body(bytes));
    }
    if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
        return Ok(watch());
    }
    if path.ends_with("/exec") {
        return Ok(echo(request, &echoes));
    }
    match path.as_str() {
        "/bench/small" => {
            return Ok(full(StatusCode::OK, "application/json", Bytes::from_static(&SMALL_BODY)));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_watch_tells_when_each_event_was_made() {
        // The first one comes within a second.
        let event = watch().into_body().frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(event.ends_with(b"\n") && event.len() > EVENT_PADDING);
        assert!(time_of(&event).unwrap().abs_diff(clock()) < 10_000_000);
        assert!(serde_json::from_slice::<Value>(&event).is_ok());
        assert_eq!(time_of(b"{}"), None);
    }

    #[tokio::test]
    async fn a_body_has_the_bytes_that_were_asked_for() {
        for bytes in [0, 1, CHUNK, 3 * CHUNK + 5] {
            assert_eq!(body(bytes).into_body().collect().await.unwrap().to_bytes().len(), bytes);
        }
    }
}
