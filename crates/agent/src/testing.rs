//! What tests share: throw-away certificates, a scripted server that speaks HTTP/2 and HTTP/1.1 over TLS,
//! and a child's kube-apiserver made of it.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use api::secret::Secret;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tunnel_proto::Body;

use crate::config::Address;
use crate::serve::full;
use crate::tasks::Tasks;

pub(crate) type Answering = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;
type Handler = Arc<dyn Fn(usize, Request<Incoming>) -> Answering + Send + Sync>;

/// A CA, and a certificate of it for localhost and 127.0.0.1.
pub(crate) struct Pki {
    pub(crate) ca_pem: String,
    config: ServerConfig,
}

impl Pki {
    pub(crate) fn new() -> Self {
        runtime::tls::provider();
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::new(vec![]).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate = rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        Self { ca_pem, config }
    }

    pub(crate) fn acceptor(&self, alpn: &[&str]) -> TlsAcceptor {
        let mut config = self.config.clone();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// A directory that goes with its owner.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("towline-agent-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server on TLS whose answers are a function.
pub(crate) struct Server {
    pub(crate) port: u16,
    pub(crate) pki: Pki,
    pub(crate) scratch: Scratch,
    pub(crate) accepted: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Server {
    /// Speaks `alpn`, allows so many HTTP/2 streams, and numbers its connections for the handler.
    pub(crate) async fn start(
        alpn: &'static [&'static str],
        streams: u32,
        handler: impl Fn(usize, Request<Incoming>) -> Answering + Send + Sync + 'static,
    ) -> Self {
        let handler: Handler = Arc::new(handler);
        let pki = Pki::new();
        let acceptor = pki.acceptor(alpn);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&accepted);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let number = counter.fetch_add(1, Ordering::SeqCst);
                let (acceptor, handler) = (acceptor.clone(), Arc::clone(&handler));
                connections.spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let h2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
                    let service = service_fn(move |request| {
                        let answer = handler(number, request);
                        async { Ok::<_, Infallible>(answer.await) }
                    });
                    if h2 {
                        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        builder.max_concurrent_streams(streams);
                        let _ = builder.serve_connection(TokioIo::new(tls), service).await;
                    } else {
                        let builder = hyper::server::conn::http1::Builder::new();
                        let _ = builder.serve_connection(TokioIo::new(tls), service).with_upgrades().await;
                    }
                });
            }
        });
        Self { port, pki, scratch: Scratch::new(), accepted, _tasks: tasks }
    }

    pub(crate) fn address(&self) -> Address {
        Address { host: "127.0.0.1".to_owned(), port: self.port }
    }

    pub(crate) fn ca_file(&self) -> PathBuf {
        self.scratch.file("ca.crt", &self.pki.ca_pem)
    }

    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }
}

pub(crate) fn text(code: u16, body: impl Into<Bytes>) -> Response<Body> {
    let mut answer = Response::new(full(body.into()));
    *answer.status_mut() = StatusCode::from_u16(code).unwrap();
    answer
}

pub(crate) fn secret(text: &str) -> Secret {
    Secret::from(text.to_owned())
}

/// What one request looked like.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
}

impl Seen {
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
    }
}

/// A child: answers what the agent itself asks, records people's requests, echoes upgrades.
#[derive(Clone, Default)]
pub(crate) struct Child {
    /// People's requests (those with an impersonated user).
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    /// Names of groups that may be impersonated.
    pub(crate) groups: Arc<Mutex<BTreeSet<String>>>,
    /// The Secret parent-cluster.
    pub(crate) stored: Arc<Mutex<Value>>,
    tasks: Arc<Tasks>,
}

pub(crate) const CLUSTER: &str = "6f0a1b1e-0000-4000-8000-000000000000";

impl Child {
    pub(crate) fn new(groups: &[&str]) -> Self {
        let child = Self::default();
        *child.groups.lock().unwrap() = groups.iter().map(|&group| group.to_owned()).collect();
        *child.stored.lock().unwrap() =
            json!({ "kind": "Secret", "metadata": { "name": "parent-cluster", "resourceVersion": "1" } });
        child
    }

    pub(crate) async fn serve(&self) -> Server {
        let child = self.clone();
        Server::start(&["h2", "http/1.1"], 100, move |_, request| {
            let child = child.clone();
            Box::pin(async move { child.answer(request).await })
        })
        .await
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (mut head, body) = request.into_parts();
        let seen = Seen { method: head.method.clone(), uri: head.uri.clone(), headers: head.headers.clone() };
        if head.headers.contains_key("impersonate-user") {
            assert_eq!(seen.all("authorization"), ["Bearer deployer-token"]);
            self.seen.lock().unwrap().push(seen);
            if head.headers.contains_key(header::UPGRADE) {
                return self.upgraded(&mut head);
            }
            return person(&head.uri, body).await;
        }
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let path = head.uri.path().to_owned();
        if path.ends_with("/selfsubjectaccessreviews") {
            assert_eq!(seen.all("authorization"), ["Bearer deployer-token"]);
            return self.review(&body);
        }
        assert_eq!(seen.all("authorization"), ["Bearer agent-token"]);
        let answer = match (head.method.as_str(), path.as_str()) {
            ("GET", "/api/v1/namespaces/kube-system") => json!({ "metadata": { "uid": CLUSTER } }),
            ("GET", "/api/v1/namespaces/clusternet-system/secrets/parent-cluster") => {
                self.stored.lock().unwrap().clone()
            }
            ("PUT", "/api/v1/namespaces/clusternet-system/secrets/parent-cluster") => {
                *self.stored.lock().unwrap() = body.clone();
                body
            }
            (
                "POST",
                "/api/v1/namespaces/clusternet-system/serviceaccounts/clusternet-app-deployer/token",
            ) => {
                json!({ "status": { "token": "deployer-token", "expirationTimestamp": "2100-01-01T00:00:00Z" } })
            }
            ("GET", "/version") => json!({ "gitVersion": "v1.36.2", "platform": "linux/amd64" }),
            ("GET", "/healthz" | "/livez") => return text(200, "ok"),
            ("GET", "/readyz") => return text(500, "[-]etcd failed"),
            ("GET", "/api/v1/nodes") => json!({ "items": [
                { "status": { "conditions": [{ "type": "Ready", "status": "True" }], "capacity": { "cpu": "4" } } }
            ] }),
            _ => return text(404, json!({ "message": "no such thing" }).to_string()),
        };
        text(200, answer.to_string())
    }

    fn review(&self, body: &Value) -> Response<Body> {
        let asked = &body["spec"]["resourceAttributes"];
        let allowed = asked["verb"] == "impersonate"
            && match asked["resource"].as_str() {
                Some("users") => true,
                Some("groups") => self.groups.lock().unwrap().contains(asked["name"].as_str().unwrap()),
                _ => false,
            };
        text(201, json!({ "status": { "allowed": allowed } }).to_string())
    }

    fn upgraded(&self, head: &mut http::request::Parts) -> Response<Body> {
        match head.uri.query() {
            Some("answer=200") => return text(200, "not an upgrade"),
            Some("answer=302") => {
                let mut answer = text(302, "");
                answer.headers_mut().insert(header::LOCATION, "https://169.254.169.254/".parse().unwrap());
                return answer;
            }
            Some("answer=403") => return text(403, json!({ "message": "no exec for you" }).to_string()),
            _ => {}
        }
        let mut request = Request::from_parts(std::mem::replace(head, empty_head()), ());
        let asked = request.headers()[header::UPGRADE].clone();
        let on = hyper::upgrade::on(&mut request);
        self.tasks.spawn(async move {
            let (mut read, mut write) = tokio::io::split(TokioIo::new(on.await.unwrap()));
            // Ends its own direction after the other has ended: half-close has to arrive.
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = tokio::io::AsyncWriteExt::write_all(&mut write, b" and goodbye").await;
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut write).await;
        });
        let mut answer = text(101, "");
        let headers = answer.headers_mut();
        headers.insert(header::CONNECTION, "Upgrade".parse().unwrap());
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".parse().unwrap());
        headers.insert("x-stream-protocol-version", "v4.channel.k8s.io".parse().unwrap());
        headers.insert(header::UPGRADE, asked);
        answer
    }
}

fn empty_head() -> http::request::Parts {
    Request::new(()).into_parts().0
}

async fn person(uri: &Uri, body: Incoming) -> Response<Body> {
    match uri.path() {
        "/echo" => {
            let body = body.collect().await.unwrap().to_bytes();
            text(200, body)
        }
        "/unauthorized" => text(401, "who are you"),
        "/liar" => {
            let mut answer = text(200, "hello");
            answer.headers_mut().insert(tunnel_proto::names::HEADER_AGENT_ERROR, "1".parse().unwrap());
            answer
        }
        _ => text(200, "hello"),
    }
}
