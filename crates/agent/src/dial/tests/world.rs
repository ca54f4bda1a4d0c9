//! A scripted parent with its gateway, a child, and the whole agent between them: what the tests of dialling stand on.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering::Relaxed};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tunnel_proto::Body;
use tunnel_proto::hub_side::{Tunnel, accept, upgrade_response};
use tunnel_proto::names::{AUTHORITY_AGENT, HEADER_HUB_INSTANCE, HEADER_HUB_REPLICAS};
use tunnel_proto::upgrade::tunnel_uri;

use super::super::*;
use crate::config::{CommandLine, Environment, Settings};
use crate::serve::full;
use crate::testing::{CLUSTER, Child, Server, text};

/// How long anything may take in these tests; the agent's own first delay is up to a second.
pub(super) const SOON: Duration = Duration::from_secs(20);

/// A parent: decides on registrations by a script, accepts tunnels with the tokens it gave.
#[derive(Clone)]
pub(super) struct Hub {
    /// Results of the registrations to come; after them `Approved`.
    pub(super) results: Arc<Mutex<VecDeque<&'static str>>>,
    /// The token that is good now.
    pub(super) token: Arc<Mutex<String>>,
    pub(super) tunnels: mpsc::UnboundedSender<(Tunnel, Hello, &'static str)>,
    /// Where the dials to come lead; after them all to hub-a.
    pub(super) places: Arc<Mutex<VecDeque<&'static str>>>,
    /// How many replicas it says it has; 0 as a hub that knows nothing of them.
    pub(super) replicas: Arc<AtomicU16>,
    /// Connections that were given up before the hello.
    pub(super) declined: Arc<AtomicUsize>,
    /// What the attempts to come are told to wait; after them they are let in.
    pub(super) later: Arc<Mutex<VecDeque<u64>>>,
    /// Which doors were tried for a tunnel.
    pub(super) doors: Arc<Mutex<Vec<&'static str>>>,
    pub(super) registered: Arc<Mutex<Vec<String>>>,
    tasks: Arc<Tasks>,
}

impl Hub {
    fn answer(self, door: &'static str, mut request: Request<Incoming>) -> Response<Body> {
        let bearer = request.headers()["authorization"].to_str().unwrap().to_owned();
        if request.method() == http::Method::POST {
            assert_eq!(request.uri().path(), api::names::REGISTRATIONS_PATH);
            self.registered.lock().unwrap().push(bearer);
            let result = self.results.lock().unwrap().pop_front().unwrap_or("Approved");
            if result == "401" {
                return text(401, "{}");
            }
            let credential = (result == "Approved")
                .then(|| json!({ "token": *self.token.lock().unwrap(), "expires": "2100-01-01T00:00:00Z" }));
            let status = json!({ "result": result, "retryAfterSeconds": 1, "credential": credential });
            return text(201, json!({ "status": status }).to_string());
        }
        self.doors.lock().unwrap().push(door);
        let cluster = CLUSTER.parse().unwrap();
        let path = if door == PARENT { attach_path(&cluster) } else { connect_path(&cluster) };
        assert_eq!(request.uri().path(), path);
        if door == REFUSES {
            return text(401, "{}");
        }
        if let Some(seconds) = self.later.lock().unwrap().pop_front() {
            let mut later = text(503, "{}");
            later.headers_mut().insert("retry-after", seconds.into());
            return later;
        }
        if bearer != format!("Bearer {}", self.token.lock().unwrap()) {
            return text(401, "{}");
        }
        let on = hyper::upgrade::on(&mut request);
        let (head, _) = request.into_parts();
        let mut answer = upgrade_response(&head).unwrap();
        let place = self.places.lock().unwrap().pop_front().unwrap_or("hub-a");
        let replicas = self.replicas.load(Relaxed);
        if replicas > 0 {
            answer.headers_mut().insert(HEADER_HUB_INSTANCE, http::HeaderValue::from_static(place));
            answer.headers_mut().insert(HEADER_HUB_REPLICAS, replicas.into());
        }
        let (tasks, tunnels) = (Arc::clone(&self.tasks), self.tunnels.clone());
        let declined = Arc::clone(&self.declined);
        self.tasks.spawn(async move {
            let io = TokioIo::new(on.await.unwrap());
            let accepted = accept(io, |hello| Welcome::answering(hello, "t", "h", "0.1.0")).await;
            if matches!(accepted, Err(TunnelError::ClosedInHello)) {
                declined.fetch_add(1, Relaxed);
                return;
            }
            let (hello, tunnel, driver) = accepted.unwrap();
            tasks.spawn(async move { drop(driver.await) });
            tunnels.send((tunnel, hello, place)).unwrap();
        });
        answer.map(|()| full(bytes::Bytes::new()))
    }
}

pub(super) struct World {
    pub(super) hub: Hub,
    pub(super) tunnels: mpsc::UnboundedReceiver<(Tunnel, Hello, &'static str)>,
    pub(super) child: Child,
    pub(super) stop: Stop,
    pub(super) agent: JoinSet<anyhow::Result<()>>,
    pub(super) admin: u16,
    _servers: (Server, Server, Server),
}

/// The doors: the parent's, and the gateway in its moods.
pub(super) const PARENT: &str = "parent";
pub(super) const SERVES: &str = "gateway";
pub(super) const REFUSES: &str = "a gateway that refuses";
pub(super) const GONE: &str = "a gateway that is not there";

impl World {
    pub(super) async fn start(results: &[&'static str]) -> Self {
        Self::start_with(results, None, (&[], 0)).await
    }

    pub(super) async fn start_with(
        results: &[&'static str],
        gateway: Option<&'static str>,
        (places, replicas): (&[&'static str], u16),
    ) -> Self {
        let (sender, tunnels) = mpsc::unbounded_channel();
        let hub = Hub {
            results: Arc::new(Mutex::new(results.iter().copied().collect())),
            token: Arc::new(Mutex::new("credential-1".to_owned())),
            tunnels: sender,
            places: Arc::new(Mutex::new(places.iter().copied().collect())),
            replicas: Arc::new(replicas.into()),
            declined: Arc::default(),
            later: Arc::default(),
            doors: Arc::default(),
            registered: Arc::default(),
            tasks: Arc::default(),
        };
        let served = hub.clone();
        let parent = Server::start(&["http/1.1"], 1, move |_, request| {
            let answer = served.clone().answer(PARENT, request);
            Box::pin(async { answer })
        })
        .await;
        let served = hub.clone();
        let door = Server::start(&["http/1.1"], 1, move |_, request| {
            let answer = served.clone().answer(gateway.unwrap(), request);
            Box::pin(async { answer })
        })
        .await;
        if let Some(mood) = gateway {
            let url = if mood == GONE { "https://localhost:1".to_owned() } else { door.url() };
            parent.scratch.file("gatewayURL", &url);
            parent.scratch.file("gateway-ca.crt", &door.pki.ca_pem);
        }
        let child = Child::new(&["dev"]);
        let api = child.serve().await;
        for (name, content) in [
            ("parentURL", parent.url().as_str()),
            ("ca.crt", &parent.pki.ca_pem),
            ("regToken", "invitation-token\n"),
            ("invitation", "inv-1"),
            ("invitationSecret", "s3cr3t"),
            ("expires", "2100-01-01T00:00:00Z"),
            ("clusterName", "edge-1"),
        ] {
            parent.scratch.file(name, content);
        }
        let admin = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let line = <CommandLine as clap::Parser>::try_parse_from([
            "towline-agent".to_owned(),
            format!("--registration-dir={}", parent.scratch.0.display()),
            format!("--admin-listen=127.0.0.1:{admin}"),
            format!("--kube-apiserver=https://127.0.0.1:{}", api.port),
            format!("--kube-ca-file={}", api.ca_file().display()),
            format!("--token-file={}", api.scratch.file("token", "agent-token").display()),
            "--instance=pod-1".to_owned(),
        ])
        .unwrap();
        let settings = Settings::new(line.flags, &Environment::default()).unwrap();
        let stop = Stop::new();
        let mut agent = JoinSet::new();
        agent.spawn(crate::app::run(settings, stop.clone()));
        Self { hub, tunnels, child, stop, agent, admin, _servers: (parent, api, door) }
    }

    pub(super) async fn tunnel(&mut self) -> (Tunnel, Hello) {
        let (tunnel, hello, _) = timeout(SOON, self.tunnels.recv()).await.unwrap().unwrap();
        (tunnel, hello)
    }

    /// The next tunnel, and the replica that it leads to.
    pub(super) async fn tunnel_at(&mut self) -> (&'static str, Tunnel) {
        let (tunnel, _, place) = timeout(SOON, self.tunnels.recv()).await.unwrap().unwrap();
        (place, tunnel)
    }

    /// Whether this check of the agent is good, as its probe says.
    pub(super) async fn is_ready(&self, check: &str) -> bool {
        let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", self.admin)).await.unwrap();
        let asked = format!("GET /readyz/{check} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        socket.write_all(asked.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer.starts_with("HTTP/1.1 200")
    }

    /// Two tunnels, to hub-a and hub-b.
    pub(super) async fn with_two_tunnels() -> (Self, Tunnel, Tunnel) {
        let mut world = Self::start_at(&["hub-a", "hub-b"], 2).await;
        let (first, a) = world.tunnel_at().await;
        let (second, b) = world.tunnel_at().await;
        assert_eq!((first, second), ("hub-a", "hub-b"));
        (world, a, b)
    }

    /// A hub of so many replicas, which are met in this order.
    pub(super) async fn start_at(places: &[&'static str], replicas: u16) -> Self {
        Self::start_with(&[], None, (places, replicas)).await
    }

    pub(super) async fn end(mut self) {
        self.stop.cancel();
        timeout(SOON, self.agent.join_next()).await.unwrap().unwrap().unwrap().unwrap();
    }
}

pub(super) async fn status_of(tunnel: &Tunnel, method: http::Method, path: &'static str) -> StatusCode {
    let mut request = Request::new(full(bytes::Bytes::new()));
    *request.method_mut() = method;
    *request.uri_mut() = tunnel_uri(AUTHORITY_AGENT, http::uri::PathAndQuery::from_static(path)).unwrap();
    tunnel.send(request).await.unwrap().status()
}
