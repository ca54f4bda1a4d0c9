//! The way to another replica: one HTTP/2 connection over mutual TLS, kept for as long as that one exists. It carries
//! requests to the tunnels that the other one holds, and tells which those are.
//!
//! Promises: whoever answers has shown a certificate of the peer CA with the very name that was dialled. A replica that
//! is dead is noticed within two seconds, also if it never says a word; what was known of it is gone at that moment. One
//! that stops in order is asked for nothing new, and finishes what it carries.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::names::ClusterId;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use runtime::backoff::Backoff;
use runtime::stop::Stop;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;
use tunnel_proto::limits::{
    CONNECTION_WINDOW, DRAIN_MAX, MAX_FRAME_SIZE, MAX_HEADER_LIST, SEND_BUFFER, STREAM_WINDOW,
};
use tunnel_proto::upgrade::tunnel_uri;
use tunnel_proto::{Body, SendError};

use super::presence::{Line, Malformed, Reader};
use super::{AGENT, AUTHORITY, CLUSTER, MAX_PRESENT, PATH_CONFLICT, PATH_PRESENCE};
use crate::certificates::peer::{PeerTls, name_of};
use crate::forward::empty;
use crate::handle::Hub;
use crate::listen::tune;
use crate::tunnels::accept;
use crate::tunnels::end::End;

/// Silence after which a PING goes out.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Time for its answer: a replica whose node is gone is noticed within three seconds, and one that its limit of CPU stops for
/// most of a second (CFS throttling) is not taken for dead.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for TCP, TLS and the head of the presence.
const CONNECT: Duration = Duration::from_secs(3);
/// Time for an agent to say what another one is, for which it has five seconds, and the way there and back.
const CONFLICT: Duration = Duration::from_secs(7);
/// The first pause before a replica is dialled again is drawn below this, and no later one above [`LAST`].
const FIRST: Duration = Duration::from_millis(100);
/// See [`FIRST`]. At most sixteen replicas dial each other.
const LAST: Duration = Duration::from_secs(2);
/// Streams on one connection: all that a hub has open, if everything is at one other replica
/// ([`crate::limits::IN_FLIGHT`]). About 3 KiB each.
pub(super) const MAX_STREAMS: u32 = 20_000;

/// Why there is no connection, or no more.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("it cannot be reached: {0}")]
    Connect(#[source] std::io::Error),
    #[error("it cannot be certified: {0}")]
    Name(#[from] crate::certificates::CertificateTrouble),
    #[error("HTTP/2 failed: {0}")]
    Http2(#[source] hyper::Error),
    #[error("it did not answer within {} s", CONNECT.as_secs())]
    Slow,
    #[error("it answered {0} to the question what it holds")]
    Code(StatusCode),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("it says that it holds more than {MAX_PRESENT} clusters")]
    Many,
    #[error("the request for its presence cannot be made: {0}")]
    Request(#[from] http::Error),
}

/// An open connection.
#[derive(Debug)]
pub struct Link {
    /// The replica at its other end.
    pub(crate) instance: String,
    sender: http2::SendRequest<Body>,
}

impl Link {
    /// Whether it takes no new requests.
    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Has a request carried into the cluster's tunnel, and waits for the head of the answer.
    ///
    /// # Errors
    /// As in a tunnel: [`SendError::Closed`] gives the request back as it was.
    pub(crate) async fn send(
        &self,
        id: &ClusterId,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, SendError> {
        let Ok(cluster) = HeaderValue::try_from(id.as_str()) else {
            return Err(SendError::Closed(Box::new(request)));
        };
        request.headers_mut().insert(CLUSTER, cluster);
        let sent = self.sender.clone().try_send_request(request);
        sent.await.map_err(|mut error| match error.take_message() {
            Some(mut request) => {
                request.headers_mut().remove(CLUSTER);
                SendError::Closed(Box::new(request))
            }
            None => failed(error.into_error()),
        })
    }

    /// Tells that another agent process wants the place of the one whose tunnel is there; whoever is there names it as its
    /// successor, proves that it lives, or loses its place. Whether the other one may have it.
    pub(crate) async fn tell_conflict(&self, id: &ClusterId, agent: &str) -> bool {
        let asked = async {
            let mut request = ask(Method::POST, PATH_CONFLICT).ok()?;
            request.headers_mut().insert(CLUSTER, HeaderValue::try_from(id.as_str()).ok()?);
            request.headers_mut().insert(AGENT, HeaderValue::try_from(agent).ok()?);
            self.sender.clone().send_request(request).await.ok()
        };
        let Some(answer) = timeout(CONFLICT, asked).await.ok().flatten() else {
            tracing::debug!(peer = self.instance, cluster = %id, "a conflict could not be told");
            return false;
        };
        answer.status().is_success() && answer.headers().get(AGENT).is_some_and(|named| named == agent)
    }
}

#[cfg(test)]
impl Link {
    /// One to a replica that never answers.
    pub(crate) async fn to_nobody(instance: &str) -> Arc<Self> {
        let (ours, _theirs) = tokio::io::duplex(1024);
        let (sender, _) = http2(Streams::default()).handshake(TokioIo::new(ours)).await.unwrap();
        Arc::new(Self { instance: instance.to_owned(), sender })
    }
}

/// One connection to a replica over memory, until it ends and has finished what it carried.
#[cfg(test)]
pub(crate) async fn keep(hub: &Arc<Hub>, instance: &str, stream: tokio::io::DuplexStream) {
    let mut finishing = JoinSet::new();
    if let Ok(Ok(open)) = timeout(CONNECT, greet(instance, stream)).await {
        let _ = carry(hub, open, &mut finishing).await;
    }
    finishing.join_all().await;
}

/// RFC 9113 section 8.7: after these two the other end has not processed the request.
fn failed(error: hyper::Error) -> SendError {
    let http2 = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<h2::Error>());
    let unprocessed = http2.is_some_and(|error| {
        error.is_remote()
            && (error.reason() == Some(h2::Reason::REFUSED_STREAM)
                || error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR))
    });
    if unprocessed { SendError::Unprocessed(error) } else { SendError::Failed(error) }
}

fn ask(method: Method, path: &'static str) -> Result<Request<Body>, http::Error> {
    let uri = tunnel_uri(AUTHORITY, http::uri::PathAndQuery::from_static(path))?;
    Request::builder().method(method).uri(uri).body(empty())
}

/// Keeps a connection to each of the others until the hub is cut.
///
/// # Errors
/// Never; it has this form for whoever waits for it.
pub(crate) async fn run(hub: Arc<Hub>, tls: Arc<PeerTls>) -> anyhow::Result<()> {
    let mut places = hub.peers.places();
    let (mut followed, mut tasks) = (HashSet::new(), JoinSet::new());
    loop {
        for instance in places.borrow_and_update().keys() {
            if followed.insert(instance.clone()) {
                tasks.spawn(follow(Arc::clone(&hub), Arc::clone(&tls), instance.clone()));
            }
        }
        tokio::select! {
            biased;
            () = hub.phases.cut.cancelled() => break,
            Some(ended) = tasks.join_next() => match ended {
                Ok(instance) => { followed.remove(&instance); }
                // Which one it was is not known any more; a hub without a way to another one would not know it.
                Err(_) => anyhow::bail!("the connection to another replica panicked"),
            },
            changed = places.changed() => changed?,
        }
    }
    tasks.shutdown().await;
    Ok(())
}

/// Keeps a connection to one of them, for as long as it exists; gives its name back.
async fn follow(hub: Arc<Hub>, tls: Arc<PeerTls>, instance: String) -> String {
    let mut backoff = Backoff::new(FIRST, LAST);
    let mut places = hub.peers.places();
    let mut told = false;
    // Connections that take nothing new and finish what they carry.
    let mut finishing = JoinSet::new();
    loop {
        let place = places.borrow_and_update().get(&instance).copied();
        let Some(address) = place else { break };
        match timeout(CONNECT, open(&tls, &instance, address)).await.unwrap_or(Err(LinkError::Slow)) {
            Ok(open) => {
                told = false;
                backoff.reset();
                match carry(&hub, open, &mut finishing).await {
                    Ok(()) => tracing::info!(peer = instance, "another replica is stopping"),
                    Err(error) => {
                        tracing::warn!(peer = instance, %error, "the connection to another replica is lost")
                    }
                }
            }
            // Once; it may be on its way, or dead and not cleared away yet.
            Err(error) if told => {
                tracing::debug!(peer = instance, %address, %error, "another replica is out of reach")
            }
            Err(error) => {
                told = true;
                tracing::warn!(peer = instance, %address, %error, "another replica is out of reach; trying again");
            }
        }
        tokio::select! {
            () = sleep(backoff.delay()) => {}
            // It may have moved, or be gone for good.
            changed = places.changed() => if changed.is_err() { break },
        }
    }
    while finishing.join_next().await.is_some() {}
    instance
}

/// A connection, and what it said first.
struct Open {
    link: Arc<Link>,
    presence: Response<Incoming>,
    driver: JoinSet<()>,
}

async fn open(tls: &PeerTls, instance: &str, address: SocketAddr) -> Result<Open, LinkError> {
    let name = name_of(instance)?;
    let socket = TcpStream::connect(address).await.map_err(LinkError::Connect)?;
    tune(&socket).map_err(LinkError::Connect)?;
    let stream = TlsConnector::from(tls.client()).connect(name, socket).await.map_err(LinkError::Connect)?;
    greet(instance, stream).await
}

/// Begins to speak with a replica that has shown who it is.
async fn greet<S>(instance: &str, stream: S) -> Result<Open, LinkError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let streams = Streams::default();
    let (sender, connection) =
        http2(streams.clone()).handshake(TokioIo::new(stream)).await.map_err(LinkError::Http2)?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        // Whatever is left of it when this task ends, is cut.
        let _cut = streams.cut.clone().drop_guard();
        let in_order = connection.await.is_ok();
        streams.tracker.close();
        if in_order {
            let _ = timeout(DRAIN_MAX, streams.tracker.wait()).await;
        }
    });
    let presence =
        sender.clone().send_request(ask(Method::GET, PATH_PRESENCE)?).await.map_err(LinkError::Http2)?;
    if presence.status() != StatusCode::OK {
        return Err(LinkError::Code(presence.status()));
    }
    Ok(Open { link: Arc::new(Link { instance: instance.to_owned(), sender }), presence, driver })
}

/// Reads what the replica holds until it says no more, or is lost.
async fn carry(hub: &Arc<Hub>, open: Open, finishing: &mut JoinSet<()>) -> Result<(), LinkError> {
    let Open { link, presence, mut driver } = open;
    let (mut body, mut reader) = (presence.into_body(), Reader::default());
    let (mut arriving, mut entered) = (HashMap::new(), None);
    loop {
        while let Some(line) = reader.next()? {
            match (line, &entered) {
                (Line::Up(id, agent), None) => {
                    arriving.insert(id, agent);
                    if arriving.len() > MAX_PRESENT {
                        return Err(LinkError::Many);
                    }
                }
                (Line::Down(id), None) => drop(arriving.remove(&id)),
                (Line::Complete, None) => {
                    let clusters = arriving.len();
                    tracing::info!(peer = link.instance, clusters, "connected to another replica");
                    arriving.iter().for_each(|(id, agent)| settle(hub, &link, id, agent));
                    entered = Some(hub.peers.enter(Arc::clone(&link), std::mem::take(&mut arriving)));
                }
                (Line::Up(id, agent), Some(entered)) => {
                    settle(hub, &link, &id, &agent);
                    if !entered.change(id, Some(agent)) {
                        return Err(LinkError::Many);
                    }
                }
                (Line::Down(id), Some(entered)) => drop(entered.change(id, None)),
                (Line::Complete | Line::Unknown, _) => {}
            }
        }
        match body.frame().await {
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data() {
                    reader.feed(&bytes);
                }
            }
            Some(Err(error)) => return Err(LinkError::Http2(error)),
            None => {
                // The last sender goes with the link: the connection ends when its streams have.
                finishing.spawn(async move { while driver.join_next().await.is_some() {} });
                return Ok(());
            }
        }
    }
}

/// Two agent processes of one cluster, at two replicas. If the one that is here calls the other one its successor, it goes on
/// until it stops; else both were let in at once, and the tunnel at the replica whose name comes first stays: the agent of the
/// other one dials again, and is told then that there is a conflict. At most one question for each tunnel that is here.
fn settle(hub: &Arc<Hub>, link: &Link, id: &ClusterId, agent: &str) {
    let is_another = |hub: &Hub, id: &ClusterId, agent: &str| {
        hub.tunnels.get(id).is_some_and(|live| live.hello.instance != agent)
    };
    if link.instance >= hub.settings.hub_id || !is_another(hub, id, agent) {
        return;
    }
    let (hub, id, agent, peer) = (Arc::clone(hub), id.clone(), agent.to_owned(), link.instance.clone());
    hub.clone().streams.spawn(async move {
        if hub.tunnels.is_successor(&id, &agent) || accept::settle(&hub, &id, &agent).await {
            return;
        }
        if is_another(&hub, &id, &agent) {
            tracing::warn!(cluster = %id, peer, "another agent with the same identity is at another replica");
            hub.tunnels.close(&id, End::Conflict);
        }
    });
}

/// As in a tunnel, but for the keep-alive.
fn http2(streams: Streams) -> http2::Builder<Streams> {
    let mut builder = http2::Builder::new(streams);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(MAX_STREAMS as usize)
        .max_frame_size(MAX_FRAME_SIZE)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    builder
}

/// The tasks that the HTTP library starts for one connection; none outlives it.
#[derive(Debug, Clone, Default)]
struct Streams {
    tracker: TaskTracker,
    cut: Stop,
}

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        let cut = self.cut.clone();
        self.tracker.spawn(async move {
            let _ = cut.run_until_cancelled_owned(task).await;
        });
    }
}
