//! The request path as a whole: a real listener with TLS, a real tunnel over it, a scripted child behind it,
//! and a parent that answers access reviews.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use api::identity::{IDENTITY_HEADER, Identity};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderName, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::ExtendedKeyUsagePurpose;
use runtime::tls::ServingCert;
use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tunnel_proto::upgrade::{connect_answer, connect_target};
use tunnel_proto::{Body, BoxError, Hello, UpgradeProtocol, agent_side, names};

use super::*;
use crate::authn::front_proxy::tests::{Ca, ca, client, data};
use crate::authz::fake_parent::FakeParent;
use crate::catalog::Cluster;
use crate::limits::Limits;
use crate::listen;

mod abuse;
mod allocations;
mod attach;
mod bounds;
mod conformance;
mod contract;
mod frames;
mod hostile;
mod http2;
mod raw;
mod recorder;
mod slow;

const BASE: &str = "/apis/proxies.clusternet.io/v1alpha1/sockets";
const AGENT: &str = "system:serviceaccount:clusternet-ns:clusternet-agent";

type Sent = UnsyncBoxBody<Bytes, BoxError>;

struct World {
    hub: Arc<Hub>,
    parent: FakeParent,
    address: SocketAddr,
    ca: Ca,
    roots: RootCertStore,
    tasks: JoinSet<()>,
}

/// What a test wants otherwise.
struct Setup {
    limits: Limits,
    audit: Audit,
    /// How long answers of the authorizer are remembered.
    memory: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Self { limits: Limits::default(), audit: Audit::default(), memory: Duration::from_secs(10) }
    }
}

/// How a test connects.
#[derive(Clone, Copy, PartialEq)]
enum Wire {
    H1,
    H1WithoutAlpn,
    H2,
}

impl World {
    /// With cluster c1 known and nobody connected; alice may use it and view it.
    async fn start() -> Self {
        Self::start_with(Setup::default()).await
    }

    /// The same with a hub that is set up otherwise.
    async fn start_with(setup: Setup) -> Self {
        let (mut world, serve) = Self::prepare(setup).await;
        world.tasks.spawn(serve);
        world
    }

    /// The same, and what has to run somewhere for the hub to serve.
    async fn prepare(setup: Setup) -> (Self, BoxFuture<'static, ()>) {
        let parent = FakeParent::start(|spec| {
            let asked = &spec["resourceAttributes"];
            let agent = spec["user"] == AGENT && asked["subresource"] == "attach";
            let person = spec["user"] == "alice"
                && (asked["subresource"] == "proxy" || asked["subresource"] == "view");
            Some(asked["name"] == "c1" && (agent || person))
        })
        .await;
        let ca = ca("front-proxy");
        let settings = Settings {
            shutdown_delay: Duration::ZERO,
            shutdown_grace: Duration::from_secs(5),
            limits: setup.limits,
            ..Settings::default()
        };
        let (metrics, registry) = Metrics::new();
        let authz = Authz::remembering(parent.client(), metrics.clone(), setup.memory);
        let readiness = Readiness::new(&[]);
        let mut hub =
            Hub::new(parent.client(), Arc::new(settings), readiness, (metrics, registry), setup.audit);
        (hub.authz, hub.started) = (authz, Timestamp::UNIX_EPOCH);
        let hub = Arc::new(hub);
        hub.front_proxy.replace(Some(&data(&ca, "[\"front-proxy-client\"]"))).unwrap();
        hub.catalog.replace([cluster()]);
        let serving = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(serving.cert.der().clone()).unwrap();
        let certificate =
            ServingCert::new(&serving.cert.pem(), &serving.signing_key.serialize_pem()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = listen::serve(listener, certificate, Arc::clone(&hub));
        let serve = Box::pin(async move { serve.await.unwrap() });
        (Self { hub, parent, address, ca, roots, tasks: JoinSet::new() }, serve)
    }

    /// With an agent whose child is [`child`].
    async fn connected() -> Self {
        Self::start().await.connect().await
    }

    /// With an agent whose child answers like this.
    async fn connected_to<F, A>(child: F) -> Self
    where
        F: Fn(Request<Incoming>) -> A + Send + 'static,
        A: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::start().await.connect_to(child).await
    }

    /// Lets the agent in.
    async fn connect(self) -> Self {
        self.connect_to(child).await
    }

    async fn connect_to<F, A>(self, child: F) -> Self
    where
        F: Fn(Request<Incoming>) -> A + Send + 'static,
        A: Future<Output = Response<Body>> + Send + 'static,
    {
        let mut world = self;
        let mut changes = world.hub.tunnels.changes();
        let tunnel = world.attach(AGENT, "c1").await.unwrap();
        world.tasks.spawn(async move {
            let (_, connection) =
                agent_side::connect(tunnel, &Hello::new("c1", "agent-1", "1")).await.unwrap();
            let _ = connection.serve(child, std::future::pending()).await;
        });
        changes.changed().await.unwrap();
        world
    }

    /// Ends everything, and returns when nothing of the hub is left.
    async fn close(mut self) {
        self.hub.phases.cut.cancel();
        self.hub.phases.draining.cancel();
        self.hub.streams.close();
        self.hub.streams.wait().await;
        self.tasks.shutdown().await;
    }

    async fn dial(
        &self,
        certificate: Option<(CertificateDer<'static>, Vec<u8>)>,
        wire: Wire,
    ) -> TlsStream<TcpStream> {
        let config = ClientConfig::builder().with_root_certificates(self.roots.clone());
        let mut config = match certificate {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
                config.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        };
        match wire {
            Wire::H1 => config.alpn_protocols = vec![b"http/1.1".to_vec()],
            Wire::H1WithoutAlpn => {}
            Wire::H2 => config.alpn_protocols = vec![b"h2".to_vec()],
        }
        let socket = TcpStream::connect(self.address).await.unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from("localhost").unwrap(), socket)
            .await
            .unwrap()
    }

    fn aggregator(&self) -> (CertificateDer<'static>, Vec<u8>) {
        client(&self.ca, "front-proxy-client", &[ExtendedKeyUsagePurpose::ClientAuth], None)
    }

    /// One request as the aggregator sends it.
    async fn send(&mut self, wire: Wire, request: Request<Sent>) -> Response<Incoming> {
        let stream = TokioIo::new(self.dial(Some(self.aggregator()), wire).await);
        self.send_on(wire, stream, request).await
    }

    async fn send_on(
        &mut self,
        wire: Wire,
        stream: TokioIo<TlsStream<TcpStream>>,
        mut request: Request<Sent>,
    ) -> Response<Incoming> {
        if wire == Wire::H2 {
            let (mut sender, connection) = conn::http2::Builder::new(TokioExecutor::new())
                .max_header_list_size(1 << 20)
                .handshake(stream)
                .await
                .unwrap();
            self.tasks.spawn(async move { drop(connection.await) });
            let path = request.uri().path_and_query().unwrap().clone();
            *request.uri_mut() = format!("https://hub{path}").parse().unwrap();
            sender.send_request(request).await.unwrap()
        } else {
            let (mut sender, connection) = conn::http1::Builder::new().handshake(stream).await.unwrap();
            self.tasks.spawn(async move { drop(connection.with_upgrades().await) });
            request.headers_mut().insert("host", "hub".parse().unwrap());
            sender.send_request(request).await.unwrap()
        }
    }

    async fn get(&mut self, wire: Wire, user: &str, path: &str) -> Response<Incoming> {
        let request = ask("GET", path, &[("x-remote-user", user), ("x-remote-group", "dev")]);
        self.send(wire, request).await
    }

    /// Dials a tunnel as this account.
    async fn attach(&mut self, user: &str, cluster: &str) -> Result<TokioIo<hyper::upgrade::Upgraded>, u16> {
        let key = agent_side::new_key();
        let mut request = ask("GET", &format!("{BASE}/{cluster}/attach"), &[("x-remote-user", user)]);
        request.headers_mut().extend(agent_side::upgrade_headers(&key).unwrap());
        let response = self.send(Wire::H1, request).await;
        if agent_side::check_upgrade_answer(&key, response.status(), response.headers()).is_err() {
            return Err(response.status().as_u16());
        }
        Ok(TokioIo::new(hyper::upgrade::on(response).await.unwrap()))
    }
}

/// The one cluster that there is.
fn cluster() -> Cluster {
    Cluster {
        id: "c1".parse().unwrap(),
        name: "edge-1".parse().unwrap(),
        namespace: "clusternet-ns".to_owned(),
        key_fingerprint: String::new(),
        denied: false,
        last_seen: None,
    }
}

fn ask(method: &str, path: &str, headers: &[(&str, &str)]) -> Request<Sent> {
    let mut request = Request::new(Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync());
    *request.method_mut() = method.parse().unwrap();
    *request.uri_mut() = path.parse().unwrap();
    for (name, value) in headers {
        request.headers_mut().append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
    }
    request
}

async fn text(response: Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

async fn object(response: Response<Incoming>) -> Value {
    serde_json::from_str(&text(response).await).unwrap()
}

fn whole(text: String) -> Body {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync()
}

/// Switches protocols, with these headers beside those that it takes, and sends back what comes, at its end.
fn echo(
    request: &mut Request<Incoming>,
    protocol: UpgradeProtocol,
    mut headers: HeaderMap,
) -> Response<Body> {
    headers.insert("upgrade", protocol.as_upgrade_header().parse().unwrap());
    headers.insert("sec-websocket-accept", "accepted".parse().unwrap());
    let upgrade = hyper::upgrade::on(request);
    // The echo lives as long as the stream, which a test may cut; a test's runtime ends it.
    TRACKER.spawn(async move {
        let mut stream = TokioIo::new(upgrade.await?);
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await?;
        stream.write_all(&received).await?;
        stream.write_all(b" and goodbye").await?;
        stream.shutdown().await?;
        Ok::<_, BoxError>(())
    });
    connect_answer(protocol, &headers, whole(String::new())).unwrap()
}

/// The child and its agent.
async fn child(mut request: Request<Incoming>) -> Response<Body> {
    assert_eq!(request.uri().authority().unwrap(), names::AUTHORITY_KUBERNETES);
    if let Some((protocol, method)) = connect_target(&request).unwrap() {
        if request.uri().path().ends_with("/refused") {
            let mut response = Response::new(whole("{\"reason\":\"Forbidden\"}".to_owned()));
            *response.status_mut() = StatusCode::FORBIDDEN;
            return response;
        }
        let mut headers = HeaderMap::new();
        headers.insert("x-stream-protocol-version", method.as_str().parse().unwrap());
        return echo(&mut request, protocol, headers);
    }
    match request.uri().path() {
        "/redirect" => {
            let mut response = Response::new(whole(String::new()));
            *response.status_mut() = StatusCode::FOUND;
            response.headers_mut().insert("location", "https://169.254.169.254/".parse().unwrap());
            response
        }
        "/watch" => {
            let first =
                futures::stream::iter([Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"first\n")))]);
            Response::new(BodyExt::boxed_unsync(StreamBody::new(first.chain(futures::stream::pending()))))
        }
        "/slow" => {
            SLOW.notified().await;
            Response::new(whole("done".to_owned()))
        }
        "/upload" => {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            Response::new(whole(body.len().to_string()))
        }
        _ => {
            let who = Identity::from_header(&request.headers()[IDENTITY_HEADER]).unwrap();
            let names: Vec<_> = request.headers().keys().map(ToString::to_string).collect();
            let seen = json!({
                "method": request.method().as_str(), "target": request.uri().path_and_query().unwrap().as_str(),
                "who": who, "headers": names,
            });
            let mut response = Response::new(whole(seen.to_string()));
            response.headers_mut().insert("set-cookie", "a=b".parse().unwrap());
            response
        }
    }
}

static TRACKER: std::sync::LazyLock<TaskTracker> = std::sync::LazyLock::new(TaskTracker::new);
static SLOW: Notify = Notify::const_new();

#[tokio::test]
async fn a_request_reaches_the_child_as_the_person_who_asked() {
    let mut world = World::connected().await;
    for wire in [Wire::H1, Wire::H1WithoutAlpn, Wire::H2] {
        let request = ask(
            "GET",
            &format!("{BASE}/c1/proxy/direct/api/v1/pods?a=2&watch=&z=1"),
            &[
                ("x-remote-user", "alice"),
                ("x-remote-group", "dev"),
                ("x-remote-group", "system:masterz"),
                ("authorization", "Bearer secret"),
                ("cookie", "c"),
                ("accept", "application/json"),
                ("audit-id", "1-2"),
            ],
        );
        let response = world.send(wire, request).await;
        assert_eq!(response.status(), 200);
        assert!(!response.headers().contains_key("set-cookie"));
        let seen = object(response).await;
        assert_eq!(seen["target"], "/api/v1/pods?a=2&watch=&z=1");
        assert_eq!(seen["who"], json!({ "user": "alice", "groups": ["dev", "clusternet:view"] }));
        assert_eq!(seen["headers"], json!(["accept", "audit-id", "x-forwarded-for", "towline-identity"]));
    }
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    let mut world = World::connected().await;
    for wire in [Wire::H1, Wire::H2] {
        let mut response =
            world.get(wire, "alice", &format!("{BASE}/c1/proxy/direct/watch?watch=true")).await;
        let first = response.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first, "first\n", "an event arrives while the watch is open");

        let mut upload =
            ask("POST", &format!("{BASE}/c1/proxy/direct/upload"), &[("x-remote-user", "alice")]);
        let chunks =
            futures::stream::iter((0..100).map(|_| Ok(Frame::data(Bytes::from(vec![b'x'; 100_000])))));
        *upload.body_mut() = BodyExt::boxed_unsync(StreamBody::new(chunks));
        assert_eq!(text(world.send(wire, upload).await).await, "10000000");
    }
}

#[tokio::test]
async fn a_broken_tunnel_is_never_a_complete_answer() {
    for wire in [Wire::H1, Wire::H2] {
        let mut world = World::connected().await;
        let mut response =
            world.get(wire, "alice", &format!("{BASE}/c1/proxy/direct/watch?watch=true")).await;
        response.frame().await.unwrap().unwrap();
        world.hub.tunnels.close(&"c1".parse().unwrap(), "test");
        assert!(response.frame().await.unwrap().is_err(), "an error, not an end");
    }
}

#[tokio::test]
async fn upgrades_carry_bytes_both_ways_with_half_close() {
    let mut world = World::connected().await;
    for (method, upgrade) in [("GET", "websocket"), ("POST", "SPDY/3.1")] {
        let headers = [("x-remote-user", "alice"), ("connection", "Upgrade"), ("upgrade", upgrade)];
        let request = ask(method, &format!("{BASE}/c1/proxy/direct/exec"), &headers);
        let response = world.send(Wire::H1, request).await;
        assert_eq!(response.status(), 101);
        assert_eq!(response.headers()["upgrade"], upgrade);
        assert_eq!(response.headers()["sec-websocket-accept"], "accepted");
        assert_eq!(response.headers()["x-stream-protocol-version"], method, "the original method");
        let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        let sent = vec![b'x'; 1_000_000];
        stream.write_all(&sent).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.unwrap();
        assert_eq!(received.len(), sent.len() + " and goodbye".len());
    }
}

#[tokio::test]
async fn a_refused_upgrade_is_a_complete_error() {
    let mut world = World::connected().await;
    let headers = [("x-remote-user", "alice"), ("connection", "Upgrade"), ("upgrade", "websocket")];
    let response =
        world.send(Wire::H1, ask("GET", &format!("{BASE}/c1/proxy/direct/refused"), &headers)).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["connection"]),
        (403, &"close".parse().unwrap())
    );
    assert_eq!(object(response).await["reason"], "Forbidden");
    let headers = [("x-remote-user", "alice"), ("connection", "Upgrade"), ("upgrade", "h2c")];
    let response = world.send(Wire::H1, ask("GET", &format!("{BASE}/c1/proxy/direct/exec"), &headers)).await;
    assert_eq!(response.status(), 400);
}

#[tokio::test]
async fn a_childs_redirect_is_a_bad_gateway() {
    let mut world = World::connected().await;
    let response = world.get(Wire::H2, "alice", &format!("{BASE}/c1/proxy/direct/redirect")).await;
    assert_eq!(response.status(), 502);
    assert!(!response.headers().contains_key("location"));
    assert!(object(response).await["message"].as_str().unwrap().contains("redirects"));
}

#[tokio::test]
async fn a_cluster_that_is_unknown_and_one_that_is_forbidden_answer_alike() {
    let mut world = World::connected().await;
    let forbidden = world.get(Wire::H2, "bob", &format!("{BASE}/c1/proxy/direct/api")).await;
    world.parent.rule(|_| Some(true));
    let unknown = world.get(Wire::H2, "carol", &format!("{BASE}/c2/proxy/direct/api")).await;
    assert_eq!((forbidden.status().as_u16(), unknown.status().as_u16()), (403, 403));
    let (forbidden, unknown) = (object(forbidden).await, object(unknown).await);
    assert_eq!(
        forbidden["message"].as_str().unwrap().replace("c1", "c2"),
        unknown["message"].as_str().unwrap()
    );
}

#[tokio::test]
async fn nobody_but_the_aggregator_is_believed() {
    let mut world = World::connected().await;
    let stranger =
        client(&ca("front-proxy"), "front-proxy-client", &[ExtendedKeyUsagePurpose::ClientAuth], None);
    let other = client(&world.ca, "someone", &[ExtendedKeyUsagePurpose::ClientAuth], None);
    for certificate in [None, Some(stranger), Some(other)] {
        for path in [format!("{BASE}/c1/proxy/direct/api"), "/apis".to_owned(), "/metrics".to_owned()] {
            let stream = TokioIo::new(world.dial(certificate.clone(), Wire::H1).await);
            let request = ask("GET", &path, &[("x-remote-user", "alice"), ("authorization", "Bearer x")]);
            assert_eq!(world.send_on(Wire::H1, stream, request).await.status(), 401, "{path}");
        }
    }
    let stream = TokioIo::new(world.dial(None, Wire::H1).await);
    assert_eq!(world.send_on(Wire::H1, stream, ask("GET", "/readyz", &[])).await.status(), 200);
    for forged in ["impersonate-user", "impersonate_uid", "x_remote_user"] {
        let headers = [("x-remote-user", "alice"), (forged, "root")];
        let request = ask("GET", &format!("{BASE}/c1/proxy/direct/api"), &headers);
        assert_eq!(world.send(Wire::H2, request).await.status(), 400, "{forged}");
    }
}

#[tokio::test]
async fn discovery_needs_neither_tunnel_nor_authorizer() {
    let mut world = World::start().await;
    world.parent.rule(|_| None);
    for path in ["/apis", "/apis/proxies.clusternet.io/v1alpha1", "/openapi/v2", "/openapi/v3", "/version"] {
        assert_eq!(world.get(Wire::H2, "system:aggregator", path).await.status(), 200, "{path}");
    }
    let refused = world.get(Wire::H2, "alice", &format!("{BASE}/c1/proxy/direct/api")).await;
    assert_eq!(refused.status(), 500, "no answer is no yes");
    let head = world.send(Wire::H2, ask("HEAD", "/apis", &[("x-remote-user", "alice")])).await;
    assert!(head.headers()["content-length"].to_str().unwrap().parse::<usize>().unwrap() > 100);
    assert_eq!(text(head).await, "");
}

#[tokio::test]
async fn an_offline_cluster_is_not_worth_a_retry_and_a_lost_one_is() {
    let mut world = World::start().await;
    let offline = world.get(Wire::H1, "alice", &format!("{BASE}/c1/proxy/direct/api")).await;
    assert_eq!((offline.status().as_u16(), offline.headers().get("retry-after")), (503, None));

    let mut world = World::connected().await;
    let mut changes = world.hub.tunnels.changes();
    world.hub.tunnels.close(&"c1".parse().unwrap(), "test");
    changes.changed().await.unwrap();
    let lost = world.get(Wire::H1, "alice", &format!("{BASE}/c1/proxy/direct/api")).await;
    assert_eq!((lost.status().as_u16(), &lost.headers()["retry-after"]), (503, &"1".parse().unwrap()));
}

#[tokio::test]
async fn only_the_clusters_own_agent_opens_its_tunnel() {
    let mut world = World::start().await;
    world.parent.rule(|spec| Some(spec["user"] != "mallory"));
    let attach =
        async |world: &mut World, user: &str, id: &str| world.attach(user, id).await.map(|_| ()).unwrap_err();
    assert_eq!(attach(&mut world, "mallory", "c1").await, 403);
    assert_eq!(attach(&mut world, "system:serviceaccount:other-ns:clusternet-agent", "c1").await, 403);
    assert_eq!(attach(&mut world, AGENT, "c2").await, 403);
    let plain = ask("GET", &format!("{BASE}/c1/attach"), &[("x-remote-user", AGENT)]);
    assert_eq!(world.send(Wire::H1, plain).await.status(), 400);
    let plain = ask("GET", &format!("{BASE}/c1/attach"), &[("x-remote-user", AGENT)]);
    assert_eq!(world.send(Wire::H2, plain).await.status(), 400);
    // A hello that names another cluster than the credential.
    let tunnel = world.attach(AGENT, "c1").await.unwrap();
    let refused = agent_side::connect(tunnel, &Hello::new("c2", "agent-1", "1")).await.unwrap_err();
    assert!(refused.to_string().contains("WrongCluster"), "{refused}");
    world.hub.phases.stopping.cancel();
    assert_eq!(attach(&mut world, AGENT, "c1").await, 503);
}

#[tokio::test]
async fn a_thousand_groups_arrive() {
    let mut world = World::connected().await;
    for wire in [Wire::H1, Wire::H2] {
        let mut request = ask("GET", &format!("{BASE}/c1/proxy/direct/api"), &[("x-remote-user", "alice")]);
        for number in 0..1_000 {
            let group = format!("cn=a-rather-long-group-name-{number:06}");
            request.headers_mut().append("x-remote-group", group.parse().unwrap());
        }
        let response = world.send(wire, request).await;
        assert_eq!(response.status(), 200);
        assert_eq!(object(response).await["who"]["groups"].as_array().unwrap().len(), 1_001);
    }
    let asked = world.parent.asked();
    assert_eq!(asked.last().unwrap()["groups"].as_array().unwrap().len(), 1_001);
}

#[tokio::test]
async fn an_orderly_end_finishes_what_is_open() {
    let mut world = World::connected().await;
    let stream = TokioIo::new(world.dial(Some(world.aggregator()), Wire::H1).await);
    let (mut sender, connection) = conn::http1::handshake(stream).await.unwrap();
    world.tasks.spawn(async move { drop(connection.await) });
    let mut request = ask("GET", &format!("{BASE}/c1/proxy/direct/slow"), &[("x-remote-user", "alice")]);
    request.headers_mut().insert("host", "hub".parse().unwrap());
    let answer = sender.send_request(request);
    let (answer, ()) = tokio::join!(answer, async {
        // The request is in the child before the end begins.
        while world.hub.metrics.in_flight.get() == 0 {
            tokio::task::yield_now().await;
        }
        world.hub.phases.stopping.cancel();
        world.hub.phases.draining.cancel();
        SLOW.notify_one();
    });
    let answer = answer.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(text(answer).await, "done");
    assert!(sender.ready().await.is_err(), "the connection takes no further request");
}

#[tokio::test]
async fn the_config_map_is_followed() {
    let parent = FakeParent::start(|_| Some(true)).await;
    let (front_proxy, readiness, stop) =
        (Arc::new(FrontProxy::default()), Readiness::new(&["front-proxy-ca"]), Stop::new());
    let mut tasks = JoinSet::new();
    tasks.spawn(authn::front_proxy::follow(
        parent.client(),
        Arc::clone(&front_proxy),
        readiness.clone(),
        stop.clone(),
    ));
    let wait = async |what: &str, until: &dyn Fn() -> bool| {
        let reached = async {
            while !until() {
                tokio::task::yield_now().await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(20), reached).await.is_ok(), "{what}");
    };
    let detail = || readiness.report()[0].1.clone().err().unwrap_or_default();
    wait("missing", &|| detail().contains("extension-apiserver-authentication")).await;
    assert!(detail().contains("--requestheader-client-ca-file"), "{}", detail());
    let map: BTreeMap<_, _> = data(&ca("front-proxy"), "[]");
    parent.config_map(Some(&map));
    wait("created", &|| readiness.is_ready()).await;
    parent.config_map(None);
    wait("deleted", &|| !readiness.is_ready()).await;
    stop.cancel();
    tasks.join_next().await.unwrap().unwrap().unwrap();
}
