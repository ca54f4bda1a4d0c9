//! What this replica does for the others: tells them which clusters it holds, and carries their requests into its own
//! tunnels. Never into another replica's: a request crosses one hop at most, and where the other one was wrong about what
//! is here it is told so.
//!
//! Threat model: the listener can be reached by whatever is in the pod network. Without a certificate of the peer CA, which
//! nobody but replicas can make, there is no connection, and so nothing to ask. Whoever has one is a replica: what it sends
//! has been authorised and written down there, and carries the identity that it found. What is checked again all the same
//! is what may have changed since: that the cluster is one, that nobody has shut it out, and that its tunnel is here.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::names::ClusterId;
use api::status::{Reason, Status};
use bytes::Bytes;
use futures::stream;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::ext::Protocol;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use runtime::watch::{Events, ending_between};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;
use tunnel_proto::limits::{CONNECTION_WINDOW, MAX_HEADER_LIST, SEND_BUFFER, STREAM_WINDOW};
use tunnel_proto::names::AUTHORITY_KUBERNETES;
use tunnel_proto::{Body, BoxError, SendError};

use super::link::MAX_STREAMS;
use super::presence::{Line, changes};
use super::{AGENT, AUTHORITY, CLUSTER, MAX_PEERS, PATH_CONFLICT, PATH_PRESENCE, REFUSED, Refused};
use crate::body::RequestBody;
use crate::certificates::peer::{PeerTls, instance_of};
use crate::forward::{empty, ends_with_its_head, moved};
use crate::handle::Hub;
use crate::listen::{ACCEPT_PAUSE, Tracked, tune};
use crate::request_info::is_watch;
use crate::tunnels::{Live, accept};

/// Connections at once: each of the others has one, and another one while the first finishes; the rest is for strangers
/// that are still in the handshake. About 60 KiB each.
const MAX_CONNECTIONS: usize = 4 * MAX_PEERS;
/// Time for the TLS handshake. A stranger holds a place no longer.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Silence after which a replica is asked whether it is there, and the time for its answer. It asks each second itself.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Buffer of one direction of an open stream.
const BUFFER: usize = 32 * 1024;
/// Changes of presence are gathered for so long: thousands of agents come back at once after a restart.
const GATHER: Duration = Duration::from_millis(20);

/// Serves the others until the hub drains, then until what they have open has ended or is cut.
///
/// # Errors
/// Never; it has this form for whoever waits for it.
pub async fn run(listener: TcpListener, tls: Arc<PeerTls>, hub: Arc<Hub>) -> anyhow::Result<()> {
    let (places, mut connections) = (Arc::new(Semaphore::new(MAX_CONNECTIONS)), JoinSet::new());
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await.map_err(std::io::Error::other)?;
            listener.accept().await.map(|(socket, address)| (socket, address, place))
        };
        let accepted = tokio::select! {
            biased;
            () = hub.phases.draining.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((socket, address, place)) => {
                let (tls, hub) = (Arc::clone(&tls), Arc::clone(&hub));
                connections.spawn(async move {
                    connection(socket, address, &tls, hub).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection of another replica could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    tokio::select! {
        biased;
        () = async { while connections.join_next().await.is_some() {} } => {}
        () = hub.phases.cut.cancelled() => connections.shutdown().await,
    }
    Ok(())
}

async fn connection(socket: TcpStream, address: SocketAddr, tls: &PeerTls, hub: Arc<Hub>) {
    if let Err(error) = tune(&socket) {
        tracing::debug!(%address, %error, "a socket could not be tuned");
    }
    let socket = match timeout(HANDSHAKE, TlsAcceptor::from(tls.server()).accept(socket)).await {
        Ok(Ok(socket)) => socket,
        Ok(Err(error)) => {
            return tracing::warn!(%address, %error, "whoever connected here is no replica of this hub");
        }
        Err(_) => return tracing::debug!(%address, "a TLS handshake took too long"),
    };
    let (_, session) = socket.get_ref();
    let certificate = session.peer_certificates().and_then(<[_]>::first);
    let Some(instance) = certificate.and_then(instance_of) else {
        return tracing::warn!(%address, "a certificate of the peer CA names no replica");
    };
    tracing::info!(peer = instance, %address, "another replica has connected");
    let service = service_fn(|request| {
        let hub = Arc::clone(&hub);
        Box::pin(async move { Ok::<_, Infallible>(answer(&hub, request).await) })
    });
    let streams = TaskTracker::new();
    let mut connection = std::pin::pin!(http2(&streams).serve_connection(TokioIo::new(socket), service));
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                let error = ended.err().map(|error| error.to_string());
                return tracing::info!(peer = instance, ?error, "another replica has gone");
            }
            () = hub.phases.draining.cancelled(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

pub(crate) fn http2(streams: &TaskTracker) -> http2::Builder<Tracked> {
    let mut builder = http2::Builder::new(Tracked::new(streams.clone()));
    builder
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    builder
}

/// Answers another replica.
pub(crate) async fn answer(hub: &Arc<Hub>, request: Request<Incoming>) -> Response<Body> {
    let authority = request.uri().authority().map(http::uri::Authority::as_str);
    match (authority, request.method(), request.uri().path()) {
        (Some(AUTHORITY_KUBERNETES), _, _) => {
            relay(hub, request).await.unwrap_or_else(|why| refusal(hub, why))
        }
        (Some(AUTHORITY), &Method::GET, PATH_PRESENCE) => presence(hub),
        (Some(AUTHORITY), &Method::POST, PATH_CONFLICT) => conflict(hub, &request).await,
        _ => refusal(hub, Refused::Malformed),
    }
}

/// The request as it came, into this replica's own tunnel and nowhere else.
async fn relay(hub: &Arc<Hub>, mut request: Request<Incoming>) -> Result<Response<Body>, Refused> {
    let id = cluster(request.headers()).ok_or(Refused::Malformed)?;
    request.headers_mut().remove(CLUSTER);
    if hub.catalog.get(&id).is_none_or(|cluster| cluster.denied) {
        return Err(Refused::Denied);
    }
    let live = hub.tunnels.get(&id).ok_or(Refused::Stale)?;
    hub.metrics.relayed.inc();
    if request.method() == Method::CONNECT {
        return switch(hub, &live, request).await;
    }
    let to_head = request.method() == Method::HEAD;
    let is_watch = request.method() == Method::GET && request.uri().path_and_query().is_some_and(is_watch);
    let onward = request.map(|body| RequestBody(body).boxed_unsync());
    let (mut parts, body) = live.send(onward).await.map_err(refused)?.into_parts();
    keep_out(&mut parts.headers);
    let headless = to_head || ends_with_its_head(parts.status);
    let body = if headless { empty() } else { RequestBody(body).boxed_unsync() };
    let body = match Events::of_answer(parts.status, &parts.headers).filter(|_| is_watch) {
        Some(events) => ending_between(body, events, Box::pin(moved(Arc::clone(hub)))).boxed_unsync(),
        None => body,
    };
    Ok(Response::from_parts(parts, body))
}

/// exec, attach and port-forward: an extended CONNECT on both sides, and bytes between them.
async fn switch(
    hub: &Arc<Hub>,
    live: &Live,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Refused> {
    let protocol = request.extensions().get::<Protocol>().cloned().ok_or(Refused::Malformed)?;
    let mut onward = Request::new(empty());
    *onward.method_mut() = Method::CONNECT;
    *onward.uri_mut() = request.uri().clone();
    *onward.headers_mut() = std::mem::take(request.headers_mut());
    onward.extensions_mut().insert(protocol);
    let mut answer = live.send(onward).await.map_err(refused)?;
    keep_out(answer.headers_mut());
    if answer.status() != StatusCode::OK {
        return Ok(answer.map(|body| RequestBody(body).boxed_unsync()));
    }
    let (asking, child) = (hyper::upgrade::on(&mut request), hyper::upgrade::on(&mut answer));
    hub.streams.spawn(carry(Arc::clone(hub), asking, child));
    Ok(answer.map(|_| empty()))
}

/// Copies both ways, with half-close, until both have ended, either breaks, or the hub is cut.
async fn carry(hub: Arc<Hub>, asking: OnUpgrade, child: OnUpgrade) {
    let streams = async {
        let (asking, child) = tokio::try_join!(asking, child)?;
        let (mut asking, mut child) = (TokioIo::new(asking), TokioIo::new(child));
        Ok::<_, hyper::Error>(copy_bidirectional_with_sizes(&mut asking, &mut child, BUFFER, BUFFER).await)
    };
    tokio::select! {
        biased;
        () = hub.phases.cut.cancelled() => {}
        ended = streams => if let Ok(Err(error)) = ended {
            tracing::debug!(%error, "a stream of another replica broke");
        }
    }
}

/// What a replica says of itself, no child says.
fn keep_out(headers: &mut HeaderMap) {
    for name in [REFUSED, CLUSTER, AGENT] {
        headers.remove(name);
    }
}

/// The one cluster that it is about.
fn cluster(headers: &HeaderMap) -> Option<ClusterId> {
    let mut all = headers.get_all(CLUSTER).iter();
    let (Some(only), None) = (all.next(), all.next()) else { return None };
    only.to_str().ok()?.parse().ok()
}

fn refused(error: SendError) -> Refused {
    match error {
        SendError::Busy(_) => Refused::Busy,
        // The agent has seen nothing of it.
        SendError::Closed(_) | SendError::Unprocessed(_) => Refused::Stale,
        SendError::Failed(error) => {
            tracing::debug!(%error, "a request of another replica failed in the tunnel");
            Refused::Broke
        }
    }
}

fn refusal(hub: &Hub, why: Refused) -> Response<Body> {
    let (code, reason, message) = match why {
        Refused::Stale => {
            (StatusCode::SERVICE_UNAVAILABLE, Reason::ServiceUnavailable, "the tunnel is not here any more")
        }
        Refused::Denied => {
            (StatusCode::FORBIDDEN, Reason::Forbidden, "the cluster is unknown here, or shut out")
        }
        Refused::Busy => {
            (StatusCode::TOO_MANY_REQUESTS, Reason::TooManyRequests, "too many requests wait for the tunnel")
        }
        Refused::Broke => (StatusCode::BAD_GATEWAY, Reason::Unknown, "the tunnel broke"),
        Refused::Malformed => {
            (StatusCode::NOT_FOUND, Reason::NotFound, "replicas do not ask each other this")
        }
    };
    tracing::debug!(hub = hub.settings.hub_id, reason = why.as_str(), "refused another replica");
    let status = Status::new(code, reason, message);
    let body = Full::new(Bytes::from(status.to_json())).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(api::status::CONTENT_TYPE));
    response.headers_mut().insert(REFUSED, HeaderValue::from_static(why.as_str()));
    response
}

/// All that is here, then what changes, until this replica drains.
fn presence(hub: &Arc<Hub>) -> Response<Body> {
    let (hub, changed) = (Arc::clone(hub), hub.tunnels.changes());
    let first = (hub, changed, HashMap::new(), false);
    let lines = stream::unfold(first, |(hub, mut changed, told, complete)| async move {
        loop {
            if hub.phases.draining.is_cancelled() {
                return None;
            }
            changed.mark_unchanged();
            let now = hub.tunnels.present();
            let mut lines = changes(&told, &now);
            if !complete {
                lines.push(Line::Complete);
            }
            if !lines.is_empty() {
                let mut bytes = Vec::new();
                lines.iter().for_each(|line| line.write(&mut bytes));
                let frame = Ok::<_, BoxError>(Frame::data(Bytes::from(bytes)));
                return Some((frame, (hub, changed, now, true)));
            }
            tokio::select! {
                biased;
                () = hub.phases.draining.cancelled() => return None,
                news = changed.changed() => news.ok()?,
            }
            sleep(GATHER).await;
        }
    });
    Response::new(BodyExt::boxed_unsync(StreamBody::new(lines)))
}

/// Another agent process of a cluster came to another replica. The one that is here names it as its successor, which the
/// answer repeats; or proves that it lives, or makes room.
async fn conflict(hub: &Arc<Hub>, request: &Request<Incoming>) -> Response<Body> {
    let agent = request.headers().get(AGENT).and_then(|agent| agent.to_str().ok());
    let Some((id, agent)) = cluster(request.headers()).zip(agent) else {
        return refusal(hub, Refused::Malformed);
    };
    let mut answer = Response::new(empty());
    let serves = hub.tunnels.get(&id).is_some_and(|live| live.hello.instance == agent);
    // It is noted here, as if the other one had come here. A place that has become free names nobody: another process may
    // take it before that one dials again.
    let is_free = hub.tunnels.admit(&id, agent).is_ok();
    let named =
        serves || hub.tunnels.is_successor(&id, agent) || !is_free && accept::settle(hub, &id, agent).await;
    if named && let Some(agent) = request.headers().get(AGENT) {
        answer.headers_mut().insert(AGENT, agent.clone());
    }
    answer
}
