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
use runtime::traces::Traces;
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
use crate::tunnels::end::End;
use crate::tunnels::openings::Openings;

mod abuse;
mod allocations;
mod attach;
mod bounds;
mod conformance;
mod connect;
mod contract;
mod drain;
mod endings;
mod frames;
mod gateway;
mod hostile;
mod http2;
mod kubeconfigs;
/// Looks behind each test: tasks, and with them streams, dials and sockets.
#[path = "../../../tunnel-proto/tests/it/leaks.rs"]
mod leaks;
mod manifests;
mod path;
mod peers;
mod raw;
mod recorder;
mod renamed;
mod simulation;
mod slow;
mod storm;

const BASE: &str = "/apis/proxies.clusternet.io/v1alpha1/sockets";
const AGENT: &str = "system:serviceaccount:clusternet-ns:clusternet-agent";

type Sent = UnsyncBoxBody<Bytes, BoxError>;

struct World {
    hub: Arc<Hub>,
    parent: FakeParent,
    address: SocketAddr,
    gateway: SocketAddr,
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
    places: Option<Places>,
    handshakes: Handshakes,
    openings: Openings,
    /// The hub has not read which clusters there are.
    starting: bool,
    /// The parent's objects, invitations among them, where a test needs any.
    objects: Option<Client>,
    traces: Traces,
    /// The name of this replica.
    hub_id: &'static str,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            audit: Audit::default(),
            memory: Duration::from_secs(10),
            places: None,
            handshakes: Handshakes::default(),
            openings: Openings::default(),
            starting: false,
            objects: None,
            traces: Traces::default(),
            hub_id: "towline-hub",
        }
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
            gateway: Some(crate::config::Gateway {
                listen: SocketAddr::from(([127, 0, 0, 1], 0)),
                files: None,
                domain: Some("k8s.example.com".to_owned()),
                url: Some("https://hub.example.com:8444".to_owned()),
                ca_pem: None,
                for_agents: false,
                own_pin: None,
            }),
            public_url: Some("https://parent".to_owned()),
            parent_ca_file: Some(concat!(env!("CARGO_MANIFEST_DIR"), "/src/generate/testdata/ca.pem").into()),
            shutdown_delay: Duration::ZERO,
            shutdown_grace: Duration::from_secs(5),
            limits: setup.limits,
            hub_id: setup.hub_id.to_owned(),
            ..Settings::default()
        };
        let (metrics, registry) = Metrics::new();
        let authz = Authz::remembering(parent.client(), metrics.clone(), setup.memory);
        let readiness = Readiness::new(&[]);
        let mut hub =
            Hub::new(parent.client(), Arc::new(settings), readiness, (metrics, registry), setup.audit);
        (hub.authz, hub.started) = (authz, Timestamp::UNIX_EPOCH);
        hub.places = setup.places.unwrap_or(hub.places);
        (hub.handshakes, hub.traces) = (setup.handshakes, setup.traces);
        hub.tunnels = Arc::new(Tunnels::opening(setup.openings, hub.metrics.clone()));
        if let Some(objects) = setup.objects {
            hub.join = Join::new(objects, Arc::clone(&hub.settings), Arc::clone(&hub.catalog));
        }
        let hub = Arc::new(hub);
        leaks::must_go("a hub", &hub);
        hub.front_proxy.replace(Some(&data(&ca, "[\"front-proxy-client\"]"))).unwrap();
        if !setup.starting {
            hub.catalog.replace([cluster()]);
        }
        let serving = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(serving.cert.der().clone()).unwrap();
        let certificate =
            ServingCert::new(&serving.cert.pem(), &serving.signing_key.serialize_pem()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = listen::serve(Door::Aggregated, listener, certificate.clone(), Arc::clone(&hub));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = listener.local_addr().unwrap();
        let beside = listen::serve(Door::Gateway, listener, certificate, Arc::clone(&hub));
        let serve = Box::pin(async move {
            let (one, two) = tokio::join!(serve, beside);
            one.and(two).unwrap();
        });
        (Self { hub, parent, address, gateway, ca, roots, tasks: JoinSet::new() }, serve)
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
        self.dial_at(self.address, certificate, wire).await
    }

    async fn dial_at(
        &self,
        address: SocketAddr,
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
        let socket = TcpStream::connect(address).await.unwrap();
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
            let host = request.headers_mut().remove("host");
            let host = host.as_ref().map_or("hub", |host| host.to_str().unwrap());
            *request.uri_mut() = format!("https://{host}{path}").parse().unwrap();
            sender.send_request(request).await.unwrap()
        } else {
            let (mut sender, connection) = conn::http1::Builder::new().handshake(stream).await.unwrap();
            self.tasks.spawn(async move { drop(connection.with_upgrades().await) });
            request.headers_mut().entry("host").or_insert("hub".parse().unwrap());
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
            let location = request.uri().query().unwrap_or("https://169.254.169.254/");
            response.headers_mut().insert("location", location.parse().unwrap());
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
