//! What tests share: throw-away certificates, a scripted server that speaks HTTP/2 and HTTP/1.1 over TLS,
//! and a child's kube-apiserver made of it.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

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
    acceptor: Arc<Mutex<TlsAcceptor>>,
    alpn: &'static [&'static str],
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
        let acceptor = Arc::new(Mutex::new(pki.acceptor(alpn)));
        let shown = Arc::clone(&acceptor);
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
                let (acceptor, handler) = (shown.lock().unwrap().clone(), Arc::clone(&handler));
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
        Self { port, pki, scratch: Scratch::new(), accepted, acceptor, alpn, _tasks: tasks }
    }

    /// Shows another certificate from the next connection on.
    pub(crate) fn show(&self, pki: &Pki) {
        *self.acceptor.lock().unwrap() = pki.acceptor(self.alpn);
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
        self.headers
            .get_all(name)
            .iter()
            .map(|value| std::str::from_utf8(value.as_bytes()).unwrap())
            .collect()
    }
}

/// Rights as RBAC writes them: rules of a ClusterRole, or with a `namespace` of a Role there.
pub(crate) type Rules = Vec<Value>;

/// Whether these rules allow it (kube-apiserver `plugin/pkg/auth/authorizer/rbac/rbac.go`).
pub(crate) fn rbac(rules: &Rules, asked: &Value) -> bool {
    let text = |name: &str| asked[name].as_str().unwrap_or_default();
    let listed = |rule: &Value, field: &str, wanted: &str| {
        rule[field].as_array().is_some_and(|all| all.iter().any(|one| one == "*" || one == wanted))
    };
    let resource = match text("subresource") {
        "" => text("resource").to_owned(),
        subresource => format!("{}/{subresource}", text("resource")),
    };
    rules.iter().any(|rule| {
        let names = rule["resourceNames"].as_array();
        let here = rule["namespace"].as_str().is_none_or(|namespace| namespace == text("namespace"));
        let what = match asked["path"].as_str() {
            Some(path) => listed(rule, "nonResourceURLs", path),
            None => {
                listed(rule, "apiGroups", text("group"))
                    && listed(rule, "resources", &resource)
                    && names.is_none_or(|names| names.iter().any(|name| name == text("name")))
            }
        };
        here && what && listed(rule, "verbs", text("verb"))
    })
}

/// A child: answers what the agent itself asks, records people's requests, echoes upgrades. It lets the agent's
/// account impersonate as kube-apiserver does (apiserver `pkg/endpoints/filters/impersonation/mode.go`).
#[derive(Clone)]
pub(crate) struct Child {
    /// People's requests (those with an impersonated user) that were admitted.
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    /// The agent's own requests, as `METHOD path`.
    pub(crate) own: Arc<Mutex<Vec<String>>>,
    /// Frames of trailers that arrived behind bodies.
    pub(crate) trailers: Arc<AtomicUsize>,
    /// What `clusternet-app-deployer` may.
    pub(crate) impersonator: Arc<Mutex<Rules>>,
    /// What `clusternet-agent` may, beyond what this child answers anyway.
    pub(crate) agent: Arc<Mutex<Rules>>,
    /// Whether it knows KEP-5284, as 1.36 does by default.
    pub(crate) constrained: Arc<AtomicBool>,
    /// Odd behaviour by name: see the tests that set it.
    pub(crate) odd: Arc<Mutex<BTreeSet<&'static str>>>,
    /// Tokens of `clusternet-agent` that are good now.
    pub(crate) agent_tokens: Arc<Mutex<BTreeSet<String>>>,
    /// Tokens of `clusternet-app-deployer` that are good now; the last is the one that is given out.
    pub(crate) tokens: Arc<Mutex<Vec<String>>>,
    /// The Secret parent-cluster.
    pub(crate) stored: Arc<Mutex<Value>>,
    /// Requests to `/hold` wait for it.
    pub(crate) release: Arc<tokio::sync::Semaphore>,
    tasks: Arc<Tasks>,
}

pub(crate) const CLUSTER: &str = "6f0a1b1e-0000-4000-8000-000000000000";
const DEPLOYER: &str = "system:serviceaccount:clusternet-system:clusternet-app-deployer";

impl Child {
    /// One that was given agent.yaml with these groups.
    pub(crate) fn new(groups: &[&str]) -> Self {
        let mut rules = vec![json!({ "apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"] })];
        if !groups.is_empty() {
            rules.push(json!({ "apiGroups": [""], "resources": ["groups"], "verbs": ["impersonate"], "resourceNames": groups }));
        }
        Self::with_rules(rules)
    }

    pub(crate) fn with_rules(impersonator: Rules) -> Self {
        let stored =
            json!({ "kind": "Secret", "metadata": { "name": "parent-cluster", "resourceVersion": "1" } });
        Self {
            seen: Arc::default(),
            own: Arc::default(),
            trailers: Arc::default(),
            impersonator: Arc::new(Mutex::new(impersonator)),
            agent: Arc::default(),
            constrained: Arc::new(AtomicBool::new(true)),
            odd: Arc::default(),
            agent_tokens: Arc::new(Mutex::new(BTreeSet::from(["agent-token".to_owned()]))),
            tokens: Arc::new(Mutex::new(vec!["deployer-token".to_owned()])),
            stored: Arc::new(Mutex::new(stored)),
            release: Arc::new(tokio::sync::Semaphore::new(0)),
            tasks: Arc::default(),
        }
    }

    pub(crate) fn odd(&self, what: &'static str) {
        self.odd.lock().unwrap().insert(what);
    }

    fn is_odd(&self, what: &str) -> bool {
        self.odd.lock().unwrap().contains(what)
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
        // As a proxy between agent and API server that knows no impersonation.
        if self.is_odd("headers are lost") {
            let lost: Vec<_> = head
                .headers
                .keys()
                .filter(|name| name.as_str().starts_with("impersonate"))
                .cloned()
                .collect();
            for name in lost {
                head.headers.remove(name);
            }
        }
        let seen = Seen { method: head.method.clone(), uri: head.uri.clone(), headers: head.headers.clone() };
        let bearer = seen.all("authorization").concat();
        let token = bearer.strip_prefix("Bearer ").unwrap_or_default();
        let as_deployer = self.tokens.lock().unwrap().iter().any(|good| good == token);
        let as_agent = self.agent_tokens.lock().unwrap().contains(token);
        if as_deployer == as_agent {
            return text(401, json!({ "kind": "Status", "message": "Unauthorized" }).to_string());
        }
        if head.headers.contains_key("impersonate-user") {
            assert!(as_deployer, "people are impersonated by the account that can do nothing else");
            if let Err(refused) = self.may_impersonate(&seen) {
                return text(403, json!({ "kind": "Status", "message": refused }).to_string());
            }
            if let Some(answer) = self.review_of(&head.uri, &seen, seen.all("impersonate-user")[0]) {
                return answer;
            }
            // The agent's own probe: that user holds no right here.
            if seen.all("impersonate-user") == [crate::permissions::proof::NOBODY] {
                assert!(head.uri.path().ends_with("/selfsubjectaccessreviews"));
                return text(201, json!({ "status": { "allowed": false } }).to_string());
            }
            self.seen.lock().unwrap().push(seen);
            if head.headers.contains_key(header::UPGRADE) {
                return self.upgraded(&mut head);
            }
            let answer = self.person(&head.uri, body).await;
            // The HTTP library would send the body.
            return if head.method == Method::HEAD { text(200, "") } else { answer };
        }
        let path = head.uri.path().to_owned();
        self.own.lock().unwrap().push(format!("{} {path}", head.method));
        if let Some(answer) = self.review_of(&head.uri, &seen, DEPLOYER) {
            return answer;
        }
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        if path.ends_with("/selfsubjectaccessreviews") {
            return self.access(&body, as_deployer);
        }
        if path.ends_with("/selfsubjectrulesreviews") {
            assert!(as_deployer);
            let rules = self.impersonator.lock().unwrap().clone();
            let status = json!({ "resourceRules": rules, "nonResourceRules": [], "incomplete": self.is_odd("incomplete rules") });
            return text(201, json!({ "status": status }).to_string());
        }
        assert!(as_agent, "{path} is not asked with the impersonator's token");
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
                let token = self.tokens.lock().unwrap().last().unwrap().clone();
                json!({ "status": { "token": token, "expirationTimestamp": "2100-01-01T00:00:00Z" } })
            }
            ("GET", "/version") => json!({ "gitVersion": "v1.36.2", "platform": "linux/amd64" }),
            ("GET", "/healthz" | "/livez") => return text(200, "ok"),
            ("GET", "/readyz") => return text(500, "[-]etcd failed"),
            ("GET", "/api/v1/nodes") => json!({ "items": [
                { "status": { "conditions": [{ "type": "Ready", "status": "True" }], "capacity": { "cpu": "4" } } }
            ] }),
            ("GET", "/api/v1/pods") if self.is_odd("pods are not its business") => {
                return text(403, json!({ "message": "pods is forbidden" }).to_string());
            }
            ("GET", "/api/v1/pods")
                if head.uri.query().is_some_and(|query| query.contains("phase!%3DRunning")) =>
            {
                assert!(head.headers["accept"].to_str().unwrap().contains("as=Table"));
                json!({ "kind": "Table", "rows": [{ "cells": ["a"] }, { "cells": ["b"] }] })
            }
            ("GET", "/api/v1/pods") => {
                assert_eq!(head.uri.query(), Some("limit=1"));
                json!({ "metadata": { "continue": "x", "remainingItemCount": 41 }, "items": [{}] })
            }
            _ => return text(404, json!({ "message": "no such thing" }).to_string()),
        };
        text(200, answer.to_string())
    }

    /// SelfSubjectReview: who the caller is.
    fn review_of(&self, uri: &Uri, seen: &Seen, user: &str) -> Option<Response<Body>> {
        if uri.path() != "/apis/authentication.k8s.io/v1/selfsubjectreviews" {
            return None;
        }
        if self.is_odd("before 1.28") {
            // As its RBAC says it: authorization comes before "no such resource", and system:basic-user of that time
            // knows nothing of it.
            let message = format!("User {user:?} cannot create resource \"selfsubjectreviews\"");
            return Some(text(403, json!({ "message": message }).to_string()));
        }
        let mut groups = seen.all("impersonate-group");
        groups.push("system:authenticated");
        if self.is_odd("groups are added") {
            groups.push("system:masters");
        }
        let info = json!({ "userInfo": { "username": user, "groups": groups } });
        Some(text(201, json!({ "status": info }).to_string()))
    }

    fn access(&self, body: &Value, as_deployer: bool) -> Response<Body> {
        let rules = if as_deployer { &self.impersonator } else { &self.agent };
        if self.is_odd("reviews fail") {
            return text(500, "etcd is away");
        }
        let allowed = rbac(&rules.lock().unwrap(), &body["spec"]["resourceAttributes"]);
        text(201, json!({ "status": { "allowed": allowed } }).to_string())
    }

    /// The generations in kube-apiserver's order; any one that admits the whole identity is enough.
    fn may_impersonate(&self, seen: &Seen) -> Result<(), String> {
        let rules = self.impersonator.lock().unwrap_or_else(PoisonError::into_inner);
        let user = seen.all("impersonate-user")[0].to_owned();
        let groups = seen.all("impersonate-group");
        let who = |verb: &str, group: &str| {
            let may = |resource: &str, name: &str| {
                rbac(&rules, &json!({ "group": group, "verb": verb, "resource": resource, "name": name }))
            };
            may("users", &user) && groups.iter().all(|group| may("groups", group))
        };
        let verb = match seen.method.as_str() {
            "GET" | "HEAD" => "get",
            "POST" => "create",
            "PUT" => "update",
            "PATCH" => "patch",
            _ => "delete",
        };
        let segments: Vec<_> = seen.uri.path().split('/').skip(1).collect();
        let on = format!("impersonate-on:user-info:{verb}");
        let target = match segments[..] {
            ["apis", group, _, resource, ..] => json!({ "verb": on, "group": group, "resource": resource }),
            ["api", _, "namespaces", namespace, resource, ..] => {
                json!({ "verb": on, "group": "", "resource": resource, "namespace": namespace })
            }
            _ => json!({ "verb": on, "path": seen.uri.path() }),
        };
        let constrained = self.constrained.load(Ordering::SeqCst)
            && rbac(&rules, &target)
            && who("impersonate:user-info", "authentication.k8s.io")
            && !groups.contains(&"system:masters");
        if constrained || who("impersonate", "") {
            return Ok(());
        }
        Err(format!("{DEPLOYER:?} cannot impersonate {user:?} with {groups:?}"))
    }

    async fn person(&self, uri: &Uri, body: Incoming) -> Response<Body> {
        match uri.path() {
            "/hold" => {
                let _ = self.release.acquire().await;
            }
            // Never reads the body.
            "/sink" => {
                let _body = body;
                let _ = self.release.acquire().await;
                return text(200, "hello");
            }
            _ => {}
        }
        let Ok(whole) = body.collect().await else { return text(500, "cut") };
        self.trailers.fetch_add(usize::from(whole.trailers().is_some()), Ordering::SeqCst);
        match uri.path() {
            "/echo" => text(200, whole.to_bytes()),
            "/unauthorized" => text(401, "who are you"),
            "/liar" => {
                let mut answer = text(200, "hello");
                answer.headers_mut().insert(tunnel_proto::names::HEADER_AGENT_ERROR, "1".parse().unwrap());
                answer
            }
            "/redirect" => {
                let mut answer = text(307, "");
                answer.headers_mut().insert(header::LOCATION, "https://169.254.169.254/".parse().unwrap());
                answer
            }
            _ => text(200, "hello"),
        }
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
