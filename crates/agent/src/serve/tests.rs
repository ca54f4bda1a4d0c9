//! Requests through a real tunnel to a scripted child.

use std::time::Duration;

use api::identity::Identity;
use http::Uri;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use runtime::readiness::Readiness;
use runtime::traces;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::time::timeout;
use tunnel_proto::hub_side::{Tunnel, accept};
use tunnel_proto::upgrade::{connect_request, tunnel_uri};
use tunnel_proto::{Hello, UpgradeProtocol, Welcome, agent_side};

use self::collector::Collector;
use super::*;
use crate::account::{Account, Bearer};
use crate::policy::{Policy, Preset};
use crate::testing::{Child, Server};

#[path = "../../../runtime/src/traces/collector.rs"]
mod collector;
mod evil_hub;
mod floods;
mod identity;
mod raw;
mod rotation;

/// A child, an agent's service, and a hub at the other end of a tunnel.
struct World {
    child: Child,
    tunnel: Tunnel,
    service: Arc<Service>,
    impersonator: Arc<Impersonator>,
    leave: Stop,
    readiness: Readiness,
    server: Server,
    tasks: Tasks,
}

impl World {
    async fn start(groups: &[&str]) -> Self {
        Self::with(Child::new(groups)).await
    }

    async fn start_with(groups: &[&str], policy: InForce) -> Self {
        Self::governed(Child::new(groups), policy).await
    }

    /// With an owner who admits everything that can be admitted.
    async fn with(child: Child) -> Self {
        Self::governed(child, InForce::fixed(Policy::of(Preset::Admin))).await
    }

    async fn governed(child: Child, policy: InForce) -> Self {
        Self::traced(child, policy, Traces::default()).await
    }

    async fn traced(child: Child, policy: InForce, traces: Traces) -> Self {
        let server = child.serve().await;
        let upstream = Arc::new(Upstream::new(&server.address(), server.ca_file()).unwrap());
        let token = Bearer::File(server.scratch.file("token", "agent-token\n"));
        let agent = Account::new(Arc::clone(&upstream), token);
        let impersonator = Arc::new(Impersonator::new(agent.clone()));
        let credentials = Arc::new(Credentials::new(agent.clone(), "pod-1"));
        credentials.state().await.unwrap();
        let held = Credential { token: crate::testing::secret("old"), expires: jiff::Timestamp::UNIX_EPOCH };
        credentials.store(held, "https://parent").await.unwrap();
        let policy = Arc::new(policy);
        let mut service = Service::new(
            upstream,
            Arc::clone(&impersonator),
            Reporter::new(agent, Arc::clone(&impersonator), Arc::clone(&policy)),
            credentials,
            Metrics::new().0,
            policy,
        );
        service.traces = traces;
        let service = Arc::new(service);
        let tasks = Tasks::default();
        let (leave, readiness) = (Stop::new(), Readiness::new(&[crate::tokens::CHECK]));
        let checks = readiness.clone();
        let running = Arc::clone(&impersonator);
        tasks.spawn(async move { running.run(checks, Stop::new()).await });

        let hub = wire(&service, &leave, &tasks);
        let welcomed = accept(hub, |hello| Welcome::answering(hello, "t", "h", "0.1.0"));
        let (_, tunnel, driver) = welcomed.await.unwrap();
        tasks.spawn(async move { drop(driver.await) });

        // The probe has been made when the error is another one than that it has not.
        let settled =
            || !impersonator.error().contains("not probed") && !impersonator.error().contains("no token");
        timeout(Duration::from_secs(10), async {
            while !settled() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        Self { child, tunnel, service, impersonator, leave, readiness, server, tasks }
    }

    /// The hub's end of one more connection of this agent, before anything was said.
    fn wire(&self) -> DuplexStream {
        wire(&self.service, &self.leave, &self.tasks)
    }

    async fn send(&self, request: Request<Body>) -> Response<Incoming> {
        self.tunnel.send(request).await.unwrap()
    }

    fn asked(&self) -> usize {
        self.child.seen.lock().unwrap().len()
    }
}

/// The agent serves at the other end of this.
fn wire(service: &Arc<Service>, leave: &Stop, tasks: &Tasks) -> DuplexStream {
    let (hub, agent_end) = tokio::io::duplex(64 * 1024);
    let (service, left) = (Arc::clone(service), leave.clone());
    tasks.spawn(async move {
        let hello = Hello::new(crate::testing::CLUSTER, "pod", "0.1.0");
        let Ok((_, connection)) = agent_side::connect(agent_end, &hello).await else { return };
        let answer = move |request| Arc::clone(&service).answer(left.clone(), request);
        let _ = connection.serve(answer, std::future::pending()).await;
    });
    hub
}

fn uri(path: &str) -> Uri {
    tunnel_uri(AUTHORITY_KUBERNETES, PathAndQuery::try_from(path).unwrap()).unwrap()
}

fn request(method: Method, path: &str, who: Option<&Identity>) -> Request<Body> {
    let mut request = Request::new(full(Bytes::new()));
    *request.method_mut() = method;
    *request.uri_mut() = uri(path);
    if let Some(who) = who {
        request.headers_mut().insert(IDENTITY_HEADER, who.to_header().unwrap());
    }
    request
}

fn own(method: Method, path: &str, body: Value) -> Request<Body> {
    let mut request = Request::new(full(body.to_string().into()));
    *request.method_mut() = method;
    *request.uri_mut() = tunnel_uri(AUTHORITY_AGENT, PathAndQuery::try_from(path).unwrap()).unwrap();
    request
}

async fn body(answer: Response<Incoming>) -> String {
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

fn alice(groups: &[&str]) -> Identity {
    Identity::of("alice", groups).unwrap()
}

#[tokio::test]
async fn the_child_is_asked_as_the_person_with_the_powerless_accounts_token() {
    let world = World::start(&["dev", "clusternet:admin"]).await;
    let mut asked = request(Method::POST, "/echo?dryRun=All", Some(&alice(&["dev", "clusternet:admin"])));
    *asked.body_mut() = full("a pod".into());
    asked.headers_mut().insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer mine"));
    asked.headers_mut().insert("x-remote-user", HeaderValue::from_static("root"));
    asked.headers_mut().insert("audit-id", HeaderValue::from_static("a-1"));
    let answer = world.send(asked).await;
    assert_eq!(answer.status(), 200);
    assert!(!answer.headers().contains_key(HEADER_AGENT_ERROR));
    assert_eq!(body(answer).await, "a pod");

    let seen = world.child.seen.lock().unwrap()[0].clone();
    assert_eq!(
        (seen.method.as_str(), seen.uri.path_and_query().unwrap().as_str()),
        ("POST", "/echo?dryRun=All")
    );
    assert_eq!(seen.all("impersonate-user"), ["alice"]);
    assert_eq!(seen.all("impersonate-group"), ["dev", "clusternet:admin"]);
    assert_eq!(seen.all("audit-id"), ["a-1"]);
    assert_eq!(seen.all("content-length"), ["5"]);
    assert!(seen.all("x-remote-user").is_empty() && seen.all(IDENTITY_HEADER).is_empty());
}

#[tokio::test]
async fn an_agent_with_a_collector_is_a_step_of_the_trace() {
    let collector = Collector::start().await;
    let settings = traces::Settings::new(&collector.endpoint, 0).unwrap();
    let traces = Traces::start(Some(&settings), "towline-agent", "pod-1").unwrap();
    let policy = InForce::fixed(Policy::of(Preset::Admin));
    let world = World::traced(Child::new(&[]), policy, traces).await;
    let (trace, hub) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    for (flags, goes_on) in [("00", true), ("01", false)] {
        let mut asked = request(Method::GET, "/api/v1/secrets", Some(&alice(&[])));
        let parent = format!("00-{trace}-{hub}-{flags}");
        asked.headers_mut().insert("traceparent", parent.parse().unwrap());
        assert_eq!(world.send(asked).await.status(), 200);
        let last = world.child.seen.lock().unwrap().last().unwrap().clone();
        let seen = last.all("traceparent");
        assert_eq!(seen.len(), 1);
        assert!(seen[0].starts_with(&format!("00-{trace}-")), "{seen:?}");
        assert_eq!(seen[0] == parent, goes_on, "{seen:?}");
    }
    world.service.traces.end().await;
    assert!(collector.has("towline-agent") && collector.has("http.response.status_code"));
    assert!(!collector.has("alice") && !collector.has("secrets"));
}

#[tokio::test]
async fn a_group_that_the_child_does_not_admit_is_left_out() {
    let world = World::start(&["dev"]).await;
    for _ in 0..2 {
        world.send(request(Method::GET, "/api", Some(&alice(&["sales", "dev", "hr"])))).await;
    }
    for seen in world.child.seen.lock().unwrap().iter() {
        assert_eq!(seen.all("impersonate-group"), ["dev"]);
    }
}

#[tokio::test]
async fn without_a_whole_identity_the_child_sees_nothing() {
    let world = World::start(&[]).await;
    let headers = [None, Some(""), Some("e30"), Some("eyJ1c2VyIjoiIn0"), Some("%%%")];
    for header in headers {
        let mut asked = request(Method::GET, "/api", None);
        if let Some(header) = header {
            asked.headers_mut().insert(IDENTITY_HEADER, HeaderValue::from_static(header));
        }
        let answer = world.send(asked).await;
        assert_eq!(answer.status(), 400, "{header:?}");
        assert_eq!(answer.headers()[HEADER_AGENT_ERROR], "1");
        let status: Value = serde_json::from_str(&body(answer).await).unwrap();
        assert_eq!((&status["kind"], &status["code"]), (&json!("Status"), &json!(400)));
    }
    let mut two = request(Method::GET, "/api", Some(&alice(&[])));
    two.headers_mut().append(IDENTITY_HEADER, alice(&[]).to_header().unwrap());
    assert_eq!(world.send(two).await.status(), 400);
    assert_eq!(world.asked(), 0);
}

#[tokio::test]
async fn an_evil_hub_gets_nowhere() {
    let world = World::start(&["dev"]).await;
    for (user, groups) in [
        ("system:admin", vec![]),
        ("system:node:n1", vec![]),
        ("system:kube-controller-manager", vec![]),
        ("alice", vec!["system:masters"]),
        ("alice", vec!["system:nodes"]),
        ("alice", vec!["clusternet:root"]),
    ] {
        let who = Identity::of(user, &groups).unwrap();
        let answer = world.send(request(Method::GET, "/api", Some(&who))).await;
        assert_eq!(answer.status(), 403, "{user} {groups:?}");
    }
    let mut folded = request(Method::GET, "/api", Some(&alice(&[])));
    folded.headers_mut().insert("impersonate_user", HeaderValue::from_static("root"));
    assert_eq!(world.send(folded).await.status(), 400);
    let trace = request(Method::TRACE, "/api", Some(&alice(&[])));
    assert_eq!(world.send(trace).await.status(), 405);
    let mut elsewhere = request(Method::GET, "/api", Some(&alice(&[])));
    *elsewhere.uri_mut() = Uri::from_static("http://169.254.169.254/latest");
    assert_eq!(world.send(elsewhere).await.status(), 421);
    assert_eq!(world.asked(), 0);
}

#[tokio::test]
async fn an_account_that_may_be_system_masters_serves_nobody() {
    let world = World::start(&["dev", "system:masters"]).await;
    let answer = world.send(request(Method::GET, "/api", Some(&alice(&["dev"])))).await;
    assert_eq!(answer.status(), 503);
    assert!(!answer.headers().contains_key(header::RETRY_AFTER));
    assert!(body(answer).await.contains("system:masters"));
    assert!(!world.readiness.is_ready());
    let report = world.send(own(Method::GET, PATH_STATUS, Value::Null)).await;
    let report: api::report::AgentReport = serde_json::from_str(&body(report).await).unwrap();
    assert!(report.impersonation_error.contains("system:masters"));
    assert_eq!(report.impersonation, None);
    assert_eq!(world.asked(), 0);
}

#[tokio::test]
async fn a_child_cannot_pass_for_the_agent_and_its_401_is_not_the_persons() {
    let world = World::start(&[]).await;
    let liar = world.send(request(Method::GET, "/liar", Some(&alice(&[])))).await;
    assert!(!liar.headers().contains_key(HEADER_AGENT_ERROR));
    let refused = world.send(request(Method::GET, "/unauthorized", Some(&alice(&[])))).await;
    assert_eq!(
        (refused.status(), refused.headers()[header::RETRY_AFTER].as_bytes()),
        (503.try_into().unwrap(), &b"2"[..])
    );
}

async fn exec(world: &World, protocol: UpgradeProtocol, path: &str) -> Response<Incoming> {
    let mut asked = connect_request(protocol, &Method::POST, uri(path), full(Bytes::new()));
    asked.headers_mut().insert(IDENTITY_HEADER, alice(&[]).to_header().unwrap());
    asked.headers_mut().insert("x-stream-protocol-version", HeaderValue::from_static("v4.channel.k8s.io"));
    world.send(asked).await
}

#[tokio::test]
async fn an_upgrade_carries_bytes_both_ways_and_half_close() {
    let world = World::start(&[]).await;
    for protocol in [UpgradeProtocol::WebSocket, UpgradeProtocol::Spdy31] {
        let mut answer = exec(&world, protocol, "/api/v1/namespaces/a/pods/b/exec?command=sh").await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["x-stream-protocol-version"], "v4.channel.k8s.io");
        let mut stream = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
        stream.write_all(b"ping").await.unwrap();
        let mut echo = [0; 4];
        stream.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"ping");
        stream.shutdown().await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, " and goodbye");

        let seen = world.child.seen.lock().unwrap().pop().unwrap();
        assert_eq!(seen.method, Method::POST);
        assert_eq!(seen.all("upgrade"), [protocol.as_upgrade_header()]);
        assert_eq!(seen.all("connection"), ["Upgrade"]);
        assert_eq!(seen.all("impersonate-user"), ["alice"]);
    }
}

#[tokio::test]
async fn an_upgrade_that_the_child_refuses_is_an_answer_and_never_a_stream() {
    let world = World::start(&[]).await;
    for (path, code) in [("/x?answer=403", 403), ("/x?answer=200", 502), ("/x?answer=302", 502)] {
        let answer = exec(&world, UpgradeProtocol::Spdy31, path).await;
        assert_eq!(answer.status(), code, "{path}");
        assert!(!answer.headers().contains_key(header::LOCATION));
        assert!(!body(answer).await.is_empty());
    }
}

#[tokio::test]
async fn the_agent_reports_its_cluster() {
    let world = World::start(&[]).await;
    let answer = world.send(own(Method::GET, PATH_STATUS, Value::Null)).await;
    assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/json");
    let report: api::report::AgentReport = serde_json::from_str(&body(answer).await).unwrap();
    assert_eq!(report.kubernetes_version, "v1.36.2");
    assert_eq!((report.healthz, report.livez, report.readyz), (true, true, false));
    assert_eq!((report.nodes.ready_nodes, report.capacity["cpu"].as_str()), (1, "4"));
    assert_eq!((report.api_server_error.as_str(), report.impersonation_error.as_str()), ("", ""));
    let how = report.impersonation.unwrap();
    assert_eq!((how.mode.as_str(), how.warnings), ("legacy (verb impersonate)", Vec::new()));
    let pods = report.pods.unwrap();
    assert_eq!((pods.running_pods, pods.total_pods), (Some(40), 42));
    assert!(report.api_server_rtt_milliseconds.is_some_and(|took| took > 0));
    assert!(world.readiness.is_ready());
}

#[tokio::test]
async fn a_cluster_that_shows_no_pods_is_well_all_the_same() {
    let child = Child::new(&[]);
    child.odd("pods are not its business");
    let world = World::with(child).await;
    let answer = world.send(own(Method::GET, PATH_STATUS, Value::Null)).await;
    let report: api::report::AgentReport = serde_json::from_str(&body(answer).await).unwrap();
    assert_eq!((report.pods, report.api_server_error.as_str()), (None, ""));
    assert_eq!(report.nodes.ready_nodes, 1);
}

#[tokio::test]
async fn nodes_and_pods_are_counted_seldom_however_often_the_hub_asks() {
    let world = World::start(&[]).await;
    let counted = || {
        let own = world.child.own.lock().unwrap();
        own.iter().filter(|line| line.ends_with("/api/v1/nodes") || line.ends_with("/api/v1/pods")).count()
    };
    for _ in 0..20 {
        world.send(own(Method::GET, PATH_STATUS, Value::Null)).await;
    }
    assert_eq!(counted(), 3, "nodes once, pods twice");
}

#[tokio::test]
async fn a_renewed_credential_is_kept_and_rubbish_is_not() {
    let world = World::start(&[]).await;
    let good = json!({ "token": "renewed", "expires": "2100-01-01T00:00:00Z" });
    assert_eq!(world.send(own(Method::PUT, PATH_CREDENTIAL, good)).await.status(), 204);
    let stored = world.child.stored.lock().unwrap()["data"]["token"].clone();
    assert_eq!(stored, "cmVuZXdlZA==");
    for (bad, code) in [
        (json!({ "token": "", "expires": "2100-01-01T00:00:00Z" }), 422),
        (json!({ "token": "a\r\nb", "expires": "2100-01-01T00:00:00Z" }), 422),
        (json!({ "token": "x" }), 400),
        (json!("x".repeat(CONTROL_BODY)), 413),
    ] {
        assert_eq!(world.send(own(Method::PUT, PATH_CREDENTIAL, bad)).await.status(), code);
    }
    assert_eq!(world.child.stored.lock().unwrap()["data"]["token"], stored);
}

#[tokio::test]
async fn the_agent_has_no_other_paths() {
    let world = World::start(&[]).await;
    assert_eq!(world.send(own(Method::GET, "/v1/exec", Value::Null)).await.status(), 404);
    assert_eq!(world.send(own(Method::DELETE, PATH_STATUS, Value::Null)).await.status(), 405);
    assert!(!world.leave.is_cancelled());
    assert_eq!(world.send(own(Method::POST, PATH_GOAWAY, Value::Null)).await.status(), 204);
    assert!(world.leave.is_cancelled());
}

#[tokio::test]
async fn what_the_owner_does_not_admit_never_reaches_the_child() {
    let world = World::start_with(&["dev"], InForce::fixed(Policy::of(Preset::View))).await;
    let deleting = request(Method::DELETE, "/api/v1/namespaces/a/pods/b", Some(&alice(&["dev"])));
    for answer in [
        world.send(deleting).await,
        exec(&world, UpgradeProtocol::WebSocket, "/api/v1/namespaces/a/pods/b/exec").await,
        exec(&world, UpgradeProtocol::Spdy31, "/api/v1/namespaces/a/pods/b/portforward").await,
        world.send(request(Method::GET, "/api/v1/namespaces/a/pods/b%2Fexec", Some(&alice(&[])))).await,
    ] {
        assert_eq!(answer.status(), 403);
        assert_eq!(answer.headers()[HEADER_AGENT_ERROR], "1");
    }
    assert_eq!(world.asked(), 0);
    let refused = world.send(request(Method::DELETE, "/api/v1/namespaces/a/pods/b", Some(&alice(&[])))).await;
    let text = body(refused).await;
    assert!(text.contains("rule preset") && text.contains("clusternet-agent-policy"), "{text}");
    assert_eq!(world.send(request(Method::GET, "/api/v1/pods", Some(&alice(&[])))).await.status(), 200);
}

#[test]
fn only_before_the_first_reading_is_anybody_told_when_to_come_back() {
    let who = Identity::of("alice", &[]).unwrap();
    let asked = RequestInfo::parse(&Method::GET, "/version", None, false).unwrap();
    let forbidden = NotAdmitted::Unreadable("403: apply a new agent.yaml".to_owned());
    for (why, seconds) in [(NotAdmitted::Unread, Some(1)), (forbidden, None)] {
        let status = from_policy(&who, &asked, &why);
        assert_eq!((status.code, status.retry_after), (StatusCode::SERVICE_UNAVAILABLE, seconds), "{why}");
    }
}

#[tokio::test]
async fn before_the_policy_is_read_nobody_is_served_and_told_to_come_back() {
    let world = World::start_with(&[], InForce::unread()).await;
    let answer = world.send(request(Method::GET, "/version", Some(&alice(&[])))).await;
    assert_eq!(
        (answer.status().as_u16(), answer.headers()[header::RETRY_AFTER].as_bytes()),
        (503, &b"1"[..])
    );
    assert_eq!(world.asked(), 0);
}
