//! The whole agent against a scripted parent and child.

use std::collections::VecDeque;
use std::sync::Mutex;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::json;
use tokio::sync::mpsc;
use tunnel_proto::Body;
use tunnel_proto::hub_side::{Tunnel, accept, upgrade_response};
use tunnel_proto::names::AUTHORITY_AGENT;
use tunnel_proto::upgrade::tunnel_uri;

use super::*;
use crate::config::{CommandLine, Environment, Settings};
use crate::serve::full;
use crate::testing::{CLUSTER, Child, Server, text};
use tunnel_proto::names::PATH_GOAWAY;

/// How long anything may take in these tests; the agent's own first delay is up to a second.
const SOON: Duration = Duration::from_secs(20);

/// A parent: decides on registrations by a script, accepts tunnels with the tokens it gave.
#[derive(Clone)]
struct Hub {
    /// Results of the registrations to come; after them `Approved`.
    results: Arc<Mutex<VecDeque<&'static str>>>,
    /// The token that is good now.
    token: Arc<Mutex<String>>,
    tunnels: mpsc::UnboundedSender<(Tunnel, Hello)>,
    /// Which doors were tried for a tunnel.
    doors: Arc<Mutex<Vec<&'static str>>>,
    registered: Arc<Mutex<Vec<String>>>,
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
        if bearer != format!("Bearer {}", self.token.lock().unwrap()) {
            return text(401, "{}");
        }
        let on = hyper::upgrade::on(&mut request);
        let (head, _) = request.into_parts();
        let answer = upgrade_response(&head).unwrap();
        let (tasks, tunnels) = (Arc::clone(&self.tasks), self.tunnels.clone());
        self.tasks.spawn(async move {
            let io = TokioIo::new(on.await.unwrap());
            let accepted = accept(io, |hello| Welcome::answering(hello, "t", "h", "0.1.0")).await;
            let (hello, tunnel, driver) = accepted.unwrap();
            tasks.spawn(async move { drop(driver.await) });
            tunnels.send((tunnel, hello)).unwrap();
        });
        answer.map(|()| full(bytes::Bytes::new()))
    }
}

struct World {
    hub: Hub,
    tunnels: mpsc::UnboundedReceiver<(Tunnel, Hello)>,
    child: Child,
    stop: Stop,
    agent: JoinSet<anyhow::Result<()>>,
    _servers: (Server, Server, Server),
}

/// The doors: the parent's, and the gateway in its moods.
const PARENT: &str = "parent";
const SERVES: &str = "gateway";
const REFUSES: &str = "a gateway that refuses";
const GONE: &str = "a gateway that is not there";

impl World {
    async fn start(results: &[&'static str]) -> Self {
        Self::start_with(results, None).await
    }

    async fn start_with(results: &[&'static str], gateway: Option<&'static str>) -> Self {
        let (sender, tunnels) = mpsc::unbounded_channel();
        let hub = Hub {
            results: Arc::new(Mutex::new(results.iter().copied().collect())),
            token: Arc::new(Mutex::new("credential-1".to_owned())),
            tunnels: sender,
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
        let line = <CommandLine as clap::Parser>::try_parse_from([
            "towline-agent".to_owned(),
            format!("--registration-dir={}", parent.scratch.0.display()),
            "--admin-listen=127.0.0.1:0".to_owned(),
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
        Self { hub, tunnels, child, stop, agent, _servers: (parent, api, door) }
    }

    async fn tunnel(&mut self) -> (Tunnel, Hello) {
        timeout(SOON, self.tunnels.recv()).await.unwrap().unwrap()
    }

    async fn end(mut self) {
        self.stop.cancel();
        timeout(SOON, self.agent.join_next()).await.unwrap().unwrap().unwrap().unwrap();
    }
}

async fn status_of(tunnel: &Tunnel, method: http::Method, path: &'static str) -> StatusCode {
    let mut request = Request::new(full(bytes::Bytes::new()));
    *request.method_mut() = method;
    *request.uri_mut() = tunnel_uri(AUTHORITY_AGENT, http::uri::PathAndQuery::from_static(path)).unwrap();
    tunnel.send(request).await.unwrap().status()
}

#[tokio::test]
async fn a_new_cluster_registers_waits_for_approval_and_connects() {
    let mut world = World::start(&["Pending", "Approved"]).await;
    let (tunnel, hello) = world.tunnel().await;
    assert_eq!(hello.cluster_id, CLUSTER);
    assert!(hello.instance.starts_with("pod-1-"));
    assert_eq!(hello.credential_expires, "2100-01-01T00:00:00Z".parse().ok());
    assert_eq!(status_of(&tunnel, http::Method::GET, "/v1/status").await, 200);
    assert_eq!(*world.hub.registered.lock().unwrap(), ["Bearer invitation-token"; 2]);
    let stored = world.child.stored.lock().unwrap()["data"].clone();
    assert_eq!(stored["token"], "Y3JlZGVudGlhbC0x");
    assert!(stored["agent.key"].is_string());
    world.end().await;
}

#[tokio::test]
async fn a_lost_tunnel_comes_back_without_registering_again() {
    let mut world = World::start(&[]).await;
    let (first, _) = world.tunnel().await;
    first.close();
    let (second, _) = world.tunnel().await;
    assert_eq!(status_of(&second, http::Method::GET, "/v1/status").await, 200);
    assert_eq!(world.hub.registered.lock().unwrap().len(), 1);
    world.end().await;
}

#[tokio::test]
async fn when_the_hub_goes_the_next_tunnel_stands_before_the_old_one_ends() {
    let mut world = World::start(&[]).await;
    let (old, _) = world.tunnel().await;
    assert_eq!(status_of(&old, http::Method::POST, PATH_GOAWAY).await, 204);
    let (new, _) = world.tunnel().await;
    for tunnel in [&old, &new] {
        assert_eq!(status_of(tunnel, http::Method::GET, "/v1/status").await, 200);
    }
    world.end().await;
}

/// H-31
#[tokio::test]
async fn a_hub_that_sends_the_agent_away_for_ever_gets_a_bounded_number_of_tunnels() {
    let mut world = World::start(&[]).await;
    let mut all = Vec::new();
    for _ in 0..=OLD_TUNNELS {
        let (tunnel, _) = world.tunnel().await;
        for _ in 0..3 {
            assert_eq!(status_of(&tunnel, http::Method::POST, PATH_GOAWAY).await, 204);
        }
        all.push(tunnel);
    }
    let another = timeout(Duration::from_secs(3), world.tunnels.recv()).await;
    assert!(another.is_err(), "no tunnel beyond the present one and the old ones");
    for tunnel in &all {
        assert_eq!(status_of(tunnel, http::Method::GET, "/v1/status").await, 200);
    }
    world.end().await;
}

#[tokio::test]
async fn a_refused_credential_is_replaced_through_the_invitation() {
    let mut world = World::start(&["Approved", "401", "Approved"]).await;
    let (first, _) = world.tunnel().await;
    *world.hub.token.lock().unwrap() = "credential-2".to_owned();
    first.close();
    world.tunnel().await;
    assert_eq!(world.child.stored.lock().unwrap()["data"]["token"], "Y3JlZGVudGlhbC0y");
    // The refused invitation was followed by another try of the credential, then by the invitation.
    assert_eq!(world.hub.registered.lock().unwrap().len(), 3);
    world.end().await;
}

#[tokio::test]
async fn an_agent_that_was_told_of_a_gateway_opens_its_tunnel_there() {
    let mut world = World::start_with(&[], Some(SERVES)).await;
    let (first, _) = world.tunnel().await;
    assert_eq!(status_of(&first, http::Method::GET, "/v1/status").await, 200);
    first.close();
    world.tunnel().await;
    assert_eq!(*world.hub.doors.lock().unwrap(), [SERVES, SERVES]);
    assert_eq!(world.hub.registered.lock().unwrap().len(), 1, "that goes through the parent");
    world.end().await;
}

#[tokio::test]
async fn a_gateway_that_cannot_be_reached_is_left_for_the_parent() {
    let mut world = World::start_with(&[], Some(GONE)).await;
    let (tunnel, _) = world.tunnel().await;
    assert_eq!(status_of(&tunnel, http::Method::GET, "/v1/status").await, 200);
    assert_eq!(*world.hub.doors.lock().unwrap(), [PARENT]);
    world.end().await;
}

#[tokio::test]
async fn a_gateway_that_refuses_makes_no_agent_register_again() {
    let mut world = World::start_with(&[], Some(REFUSES)).await;
    world.tunnel().await;
    assert_eq!(*world.hub.doors.lock().unwrap(), [REFUSES, PARENT]);
    assert_eq!(world.hub.registered.lock().unwrap().len(), 1);
    world.end().await;
}

/// In which the agent can register once, over loopback.
const REAL_STEP: Duration = Duration::from_millis(5);

/// Lets the agent's clock run for so long, and the real one meanwhile for as long as its sockets need.
async fn pass(duration: Duration) {
    for _ in 0..duration.as_secs() {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(1)).await;
        tokio::time::resume();
        let _ = timeout(REAL_STEP, std::future::pending::<()>()).await;
    }
}

async fn asked(world: &World, times: usize) {
    let asked = async {
        while world.hub.registered.lock().unwrap().len() < times {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, asked).await.unwrap();
}

#[tokio::test]
async fn a_denied_agent_asks_once_a_minute_and_comes_in_when_the_denial_is_taken_back() {
    let mut world = World::start(&["Denied", "Denied", "Approved"]).await;
    for times in 1..=2 {
        asked(&world, times).await;
        let mut seconds = 0;
        while world.hub.registered.lock().unwrap().len() == times {
            pass(Duration::from_secs(1)).await;
            seconds += 1;
            assert!(seconds < 120, "it does not ask again");
        }
        // A pause is between three quarters of a minute and a whole one; the real time of each step counts too.
        assert!(seconds > 30, "it asked again after {seconds} s");
    }
    world.tunnel().await;
    world.end().await;
}

#[tokio::test]
async fn an_agent_that_could_not_be_set_up_asks_less_and_less_often() {
    let world = World::start(&["Failed"; 500]).await;
    asked(&world, 1).await;
    pass(Duration::from_secs(300)).await;
    let times = world.hub.registered.lock().unwrap().len();
    // Pauses are drawn below 1, 2, 4 … 60 s: fifteen times or so, where a first pause each time makes hundreds.
    assert!((3..=60).contains(&times), "{times} times in 300 s");
    world.end().await;
}

#[test]
fn a_credential_of_another_parent_or_an_expired_one_is_not_dialled_with() {
    let key = Arc::new(crate::key::Key::generate().unwrap());
    let state = |parent: &str, expires: &str| State {
        key: Arc::clone(&key),
        cluster: CLUSTER.parse().unwrap(),
        credential: Some(crate::credentials::Held {
            credential: Credential { token: crate::testing::secret("t"), expires: expires.parse().unwrap() },
            parent: parent.to_owned(),
        }),
    };
    let registration = Registration {
        parent_url: "https://here".to_owned(),
        ca: Vec::new(),
        token: crate::testing::secret("t"),
        invitation: String::new(),
        secret: crate::testing::secret("s"),
        expires: None,
        cluster_name: String::new(),
        gateway: None,
    };
    let (past, future) = ("2000-01-01T00:00:00Z", "2100-01-01T00:00:00Z");
    for (parent, expires, way, used) in [
        ("https://here", future, Way::Usual, true),
        ("https://here", past, Way::Usual, false),
        ("https://here", past, Way::Credential, true),
        ("https://here", future, Way::Register, false),
        ("https://there", future, Way::Usual, false),
        ("https://there", future, Way::Credential, false),
    ] {
        let usable = usable(&state(parent, expires), &registration, way);
        assert_eq!(usable.is_some(), used, "{parent} {expires} {way:?}");
    }
}
