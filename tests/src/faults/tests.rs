//! Both sides of a tunnel, TLS between them as in life, and the proxy in the middle.

use std::future::{Future, pending};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tunnel_proto::hub_side::{self, Tunnel};
use tunnel_proto::{Body, Hello, TunnelError, Welcome, agent_side};

use super::schedule::{Dice, End, Faults, When};
use super::*;

/// The answer to everything; more than the number of the byte at which `usual` faults happen.
const ANSWER: usize = 40_000;
/// A test that waits for what does not come has failed.
const SOON: Duration = Duration::from_secs(20);

/// A tunnel through a proxy.
struct World {
    tunnel: Tunnel,
    hub: JoinSet<Result<(), TunnelError>>,
    agent: JoinSet<Result<(), TunnelError>>,
    _proxy: FaultProxy,
}

impl World {
    /// `None` when the tunnel did not even open.
    async fn start(faults: LinkFaults, seed: u64) -> Option<Self> {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certified.cert.der().clone()).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
        let server = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();

        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = FaultProxy::start(listener.local_addr().unwrap(), faults, seed).await.unwrap();
        let address = proxy.address();
        let mut agent = JoinSet::new();
        agent.spawn(async move {
            let socket = TcpStream::connect(address).await.unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            let Ok(socket) = TlsConnector::from(Arc::new(client)).connect(name, socket).await else {
                return Err(TunnelError::ClosedInHello);
            };
            let (_, connection) = agent_side::connect(socket, &Hello::new("c-1", "i-1", "v0")).await?;
            connection.serve(answer, pending()).await
        });
        let accepted = async {
            let (socket, _) = listener.accept().await.ok()?;
            let socket = TlsAcceptor::from(Arc::new(server)).accept(socket).await.ok()?;
            hub_side::accept(socket, |hello| Welcome::answering(hello, "t-1", "hub-0", "v0")).await.ok()
        };
        let (_, tunnel, driver) = timeout(SOON, accepted).await.ok()??;
        let mut hub = JoinSet::new();
        hub.spawn(driver);
        Some(Self { tunnel, hub, agent, _proxy: proxy })
    }

    /// One request; `Ok` is a whole answer.
    async fn ask(&self) -> Result<(), String> {
        let body = Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync();
        let request = Request::get("http://kubernetes/").body(body).unwrap();
        let answer = self.tunnel.send(request).await.map_err(|error| error.to_string())?;
        let body = answer.into_body().collect().await.map_err(|error| format!("cut: {error:?}"))?.to_bytes();
        assert_eq!(body.len(), ANSWER, "a cut body must not end in order");
        assert!(body == content(), "these are other bytes");
        Ok(())
    }

    /// Waits until both sides know that the tunnel is gone.
    async fn ended(&mut self) {
        let both = async { (self.hub.join_next().await.unwrap(), self.agent.join_next().await.unwrap()) };
        let (hub, agent) = timeout(SOON, both).await.expect("a side did not notice");
        assert!(hub.unwrap().is_err(), "for the hub it was in order");
        // The agent's first word of it may be the hub's orderly goodbye.
        drop(agent.unwrap());
    }
}

fn content() -> Bytes {
    let mut dice = Dice::new(7);
    (0..ANSWER).map(|_| dice.throw() as u8).collect()
}

fn answer(_: Request<hyper::body::Incoming>) -> impl Future<Output = Response<Body>> {
    let body = Full::new(content()).map_err(|never| match never {}).boxed_unsync();
    std::future::ready(Response::new(body))
}

fn named(name: &str) -> LinkFaults {
    usual().into_iter().find(|(known, _)| *known == name).unwrap().1
}

#[tokio::test]
async fn a_bad_network_fails_no_request() {
    for name in ["nothing", "delay", "rate", "byte by byte", "pieces", "pause"] {
        let world = World::start(named(name), 1).await.expect(name);
        for _ in 0..3 {
            timeout(SOON, world.ask()).await.expect(name).unwrap();
        }
    }
}

#[tokio::test]
async fn what_kills_the_connection_is_an_error_for_whoever_waits_and_both_sides_know() {
    for name in ["reset", "half-close", "corrupt"] {
        let mut world = World::start(named(name), 2).await.expect(name);
        let told = timeout(SOON, world.ask()).await.expect(name);
        assert!(told.is_err(), "{name}");
        world.ended().await;
    }
}

#[tokio::test]
async fn a_link_that_goes_silent_tells_nobody() {
    let mut world = World::start(named("stall"), 3).await.unwrap();
    assert!(timeout(Duration::from_millis(300), world.ask()).await.is_err(), "it stalls");
    // Keep-alive tells, after more time than this test has; the simulation has it.
    assert!(world.hub.try_join_next().is_none() && world.agent.try_join_next().is_none());
}

#[tokio::test]
async fn a_middlebox_that_kills_what_is_idle_is_noticed_at_once() {
    let mut world = World::start(named("idle kill"), 4).await.unwrap();
    world.ask().await.unwrap();
    world.ended().await;
    assert!(world.ask().await.is_err());
}

#[tokio::test]
async fn a_black_hole_answers_nothing() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let proxy = FaultProxy::start(listener.local_addr().unwrap(), named("black hole"), 5).await.unwrap();
    let mut socket = TcpStream::connect(proxy.address()).await.unwrap();
    let (mut accepted, _) = listener.accept().await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut socket, b"anybody?").await.unwrap();
    let heard = timeout(Duration::from_millis(200), tokio::io::AsyncReadExt::read_u8(&mut accepted)).await;
    assert!(heard.is_err(), "{heard:?}");
}

#[tokio::test]
async fn a_reset_is_a_reset_and_a_half_close_is_an_end() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    for end in [End::Reset, End::HalfClose] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let faults = LinkFaults {
            there: Faults { end: Some((When::Byte(4), end)), ..Faults::default() },
            ..LinkFaults::default()
        };
        let proxy = FaultProxy::start(listener.local_addr().unwrap(), faults, 6).await.unwrap();
        let mut socket = TcpStream::connect(proxy.address()).await.unwrap();
        let (mut accepted, _) = listener.accept().await.unwrap();
        socket.write_all(b"four and more").await.unwrap();
        let mut heard = Vec::new();
        let read = accepted.read_to_end(&mut heard).await;
        if end == End::Reset {
            assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
            assert_eq!(socket.read_u8().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        } else {
            assert_eq!((read.unwrap(), &heard[..]), (4, &b"four"[..]));
            accepted.write_all(b"back").await.unwrap();
            let mut back = [0; 4];
            socket.read_exact(&mut back).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_damaged_byte_ends_the_tunnel_and_is_never_part_of_an_answer() {
    let mut ended = 0;
    for seed in 0..40 {
        let mut dice = Dice::new(seed);
        let byte = (dice.between(0, 50_000), dice.between(1, 256) as u8);
        let damaged = Faults { corrupt: Some(byte), ..Faults::default() };
        let faults = if dice.chance(70) {
            LinkFaults { there: damaged, ..LinkFaults::default() }
        } else {
            let damaged = Faults { corrupt: Some((byte.0 / 25, byte.1)), ..Faults::default() };
            LinkFaults { back: damaged, ..LinkFaults::default() }
        };
        // `ask` itself looks at every byte.
        let Some(mut world) = World::start(faults, seed).await else {
            ended += 1;
            continue;
        };
        let told = timeout(SOON, world.ask()).await.unwrap_or_else(|_| panic!("seed {seed} waits for ever"));
        if told.is_err() {
            ended += 1;
            world.ended().await;
        }
    }
    assert!(ended >= 20, "only {ended} of 40 were touched");
}
