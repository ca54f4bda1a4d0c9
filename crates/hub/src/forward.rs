//! One request through a tunnel and back. The request for the child is built from nothing but what the
//! allow-list in [`headers`] names; bodies stream both ways with the backpressure of the tunnel; a tunnel
//! that breaks in the middle ends the answer with an error, never as if it were complete. A tunnel of another replica
//! is one hop away ([`crate::peers`]); the request that goes there is the one that would go into a tunnel here.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use api::identity::Identity;
use api::names::ClusterId;
use api::status::{Reason, Status};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::LOCATION;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use jiff::Timestamp;
use runtime::watch::Events;
use tunnel_proto::names::AUTHORITY_KUBERNETES;
use tunnel_proto::upgrade::tunnel_uri;
use tunnel_proto::{Body, SendError};

use crate::authn::Peer;
use crate::body::{RequestBody, ResponseBody};
use crate::catalog::Cluster;
use crate::gateway::location;
use crate::grant::Grant;
use crate::handle::Hub;
use crate::metrics::InFlight;
use crate::peers::Refused;
use crate::refusal::Refusal;
use crate::request_info::{Proxied, is_watch};
use crate::route::{self, Target};
use crate::shares::Place;
use crate::told::Told;

pub mod headers;
mod upgrade;

/// So much later than the child's own deadline, so that its better explained 504 comes first.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(10);

/// A request that has been authorized, with all that it takes to carry it out.
pub(crate) struct Authorized {
    /// What is asked of which child.
    pub(crate) proxied: Proxied,
    /// Who asks, as the child shall know them.
    pub(crate) child: Identity,
    /// What allows it.
    pub(crate) grant: Grant,
    /// The caller's place.
    pub(crate) user: Place,
}

/// Carries the request to its child and brings the answer back.
///
/// # Errors
/// The cluster is not there, the tunnel broke, the child did not answer in time or not properly.
pub(crate) async fn send(
    hub: &Arc<Hub>,
    peer: &Peer,
    authorized: Authorized,
    request: Request<Incoming>,
    audit_id: &HeaderValue,
    told: &mut Told,
) -> Result<Response<ResponseBody>, Refusal> {
    let Authorized { proxied, child, grant, user } = authorized;
    let (cluster, target) = route::find(
        &hub.catalog,
        &hub.tunnels,
        &hub.peers,
        &proxied.cluster,
        proxied.verb,
        hub.started,
        Timestamp::now(),
    )?;
    let name = cluster.name.as_str();
    told.child(&cluster, child.user());
    let mut stay = Stay::begin(hub, name, grant, user)?;
    let mut outbound = headers::request(
        request.headers(),
        child.to_header()?,
        audit_id.clone(),
        peer.client(request.headers()),
    );
    let upgrade = upgrade::wanted(&request)?;
    if upgrade.is_some() || proxied.deadline.is_none() || proxied.verb != "get" {
        told.event.received();
    }
    if let Some(protocol) = upgrade {
        headers::add_upgrade(request.headers(), &mut outbound);
        // Boxed, so that requests without one are not as large.
        let upgraded = upgrade::send(hub, target, &cluster, proxied, protocol, outbound, request, stay, told);
        return Box::pin(upgraded).await;
    }

    let (parts, body) = request.into_parts();
    let to_head = parts.method == Method::HEAD;
    let is_watch = parts.method == Method::GET && is_watch(&proxied.target);
    let body = if carries_nothing(&parts.method, &body) { empty() } else { RequestBody(body).boxed_unsync() };
    let mut onward = Request::new(body);
    *onward.method_mut() = parts.method;
    let spelt = proxied.spelt.map(|spelt| (spelt, proxied.target.clone()));
    *onward.uri_mut() = tunnel_uri(AUTHORITY_KUBERNETES, proxied.target)
        .map_err(|_| Refusal::BadRequest("the path or query is malformed".to_owned()))?;
    *onward.headers_mut() = outbound;
    let deadline = deadline(proxied.deadline, hub.running.limits().answer_timeout);
    let answer = within(deadline, name, pin!(exchange(hub, target, &cluster, onward))).await?;
    let (mut parts, body) = answer.into_parts();
    let elsewhere =
        spelt.map(|(spelt, asked)| location::take(&spelt, &asked, parts.status, &mut parts.headers));
    let elsewhere = elsewhere.transpose().map_err(|why| Refusal::BadAnswer(name.to_owned(), why))?;
    pass_on(hub, name, parts.status, &mut parts.headers)?;
    if let Some(elsewhere) = elsewhere.flatten() {
        parts.headers.insert(LOCATION, elsewhere);
    }
    if to_head || ends_with_its_head(parts.status) {
        return Ok(Response::from_parts(parts, ResponseBody::empty()));
    }
    if is_watch && let Some(events) = Events::of_answer(parts.status, &parts.headers) {
        stay.watch = Some(Watch { events, moved: None });
    }
    Ok(Response::from_parts(parts, ResponseBody::Child(body, Box::new(stay))))
}

/// Statuses without a body (RFC 9110 section 6.4.1). Over HTTP/2 a child's body would cross all the same, and
/// one behind HEAD would reset the stream before the caller has the head.
pub(crate) fn ends_with_its_head(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED)
}

/// What an open request holds until its body has ended or its streams are closed: its places, what is told of it, and the right to stay.
pub struct Stay {
    hub: Arc<Hub>,
    _counted: InFlight,
    _places: [Place; 2],
    told: Told,
    grant: Option<Grant>,
    /// Made when the body is first waited for: most answers are there at once, and need no timer.
    lost: Option<BoxFuture<'static, ()>>,
    /// Of a watch, whose caller goes on elsewhere when this hub stops.
    watch: Option<Watch>,
}

struct Watch {
    events: Events,
    /// Made when it is first waited for.
    moved: Option<BoxFuture<'static, ()>>,
}

impl Stay {
    fn begin(hub: &Arc<Hub>, name: &str, grant: Grant, user: Place) -> Result<Self, Refusal> {
        let counted = InFlight::new(&hub.metrics.in_flight);
        if counted.count() > i64::from(hub.settings.limits.in_flight) {
            return Err(busy("this hub has too many requests open"));
        }
        let cluster = hub
            .clusters
            .take(name)
            .map_err(|full| Refusal::share_used_up(&format!("cluster {name}"), full))?;
        Ok(Self {
            hub: Arc::clone(hub),
            _counted: counted,
            _places: [user, cluster],
            told: Told::default(),
            grant: Some(grant),
            lost: None,
            watch: None,
        })
    }

    /// Gives it what to end.
    pub(crate) fn keep(&mut self, told: Told) {
        self.told = told;
    }

    /// Ready when the caller may not stay any longer, with what to tell them.
    pub(crate) fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<&'static str> {
        if let Some(grant) = self.grant.take() {
            self.lost = Some(Box::pin(grant.lost(Arc::clone(&self.hub))));
        }
        let Some(lost) = &mut self.lost else { return Poll::Pending };
        ready!(lost.as_mut().poll(cx));
        self.lost = None;
        self.ended("rights", RIGHTS_LOST);
        Poll::Ready(RIGHTS_LOST)
    }

    /// This much of the answer goes to the caller.
    pub(crate) fn passed(&mut self, data: Option<&Bytes>) {
        if let (Some(watch), Some(data)) = (&mut self.watch, data) {
            watch.events.passed(data);
        }
    }

    /// Ready when this hub stops and a watch stands between two events: it ends there, and its caller begins another.
    pub(crate) fn poll_moved(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(watch) = self.watch.as_mut().filter(|watch| watch.events.is_between()) else {
            return Poll::Pending;
        };
        let moved = watch.moved.get_or_insert_with(|| Box::pin(moved(Arc::clone(&self.hub))));
        ready!(moved.as_mut().poll(cx));
        self.watch = None;
        self.ended("stopped", MOVED);
        Poll::Ready(())
    }

    /// Resolves when the caller may not stay any longer.
    pub(crate) async fn ended_by_rights(&mut self) {
        poll_fn(|cx| self.poll_ended(cx)).await;
    }

    /// This hub ends it.
    pub(crate) fn ended(&mut self, reason: &'static str, told: &'static str) {
        self.hub.metrics.stream_ended(reason);
        self.told.event.ended(told);
    }

    /// Tunnel or child ended it before its time.
    pub(crate) fn broke(&mut self) {
        self.told.event.ended("the connection to the cluster broke");
    }
}

impl std::fmt::Debug for Stay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stay").field("event", &self.told.event).finish_non_exhaustive()
    }
}

/// Why a watch was ended between two events.
const MOVED: &str = "this hub is stopping; the watch was ended between two events";
/// Over so long watches end, and no more than half of the grace: thousands that begin anew at one moment are a burst for
/// whoever they come to.
const MOVED_WITHIN: Duration = Duration::from_secs(5);

/// Resolves some moment after the hub has begun to let its callers go.
pub(crate) async fn moved(hub: Arc<Hub>) {
    hub.phases.draining.cancelled().await;
    let within = MOVED_WITHIN.min(hub.settings.shutdown_grace / 2);
    tokio::time::sleep(within.mul_f64(rand::random())).await;
}

/// Why an open request was ended although nothing was wrong with it.
const RIGHTS_LOST: &str = "the parent no longer allows the caller to use this cluster";

fn busy(message: &str) -> Refusal {
    Status::new(StatusCode::TOO_MANY_REQUESTS, Reason::TooManyRequests, message).retry_after(1).into()
}

fn carries_nothing(method: &Method, body: &Incoming) -> bool {
    use http_body::Body as _;
    body.is_end_stream() || (*method == Method::HEAD)
}

pub(crate) fn empty() -> Body {
    http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// When to give up on the head of an answer: later than the child itself does.
fn deadline(asked: Option<Duration>, most: Duration) -> Option<Duration> {
    asked.map(|asked| asked.min(most) + TIMEOUT_MARGIN)
}

/// Applies the deadline for the head of the answer, if there is one.
async fn within<T>(
    deadline: Option<Duration>,
    name: &str,
    answer: Pin<&mut impl Future<Output = Result<T, Refusal>>>,
) -> Result<T, Refusal> {
    match deadline {
        None => answer.await,
        Some(deadline) => tokio::time::timeout(deadline, answer)
            .await
            .unwrap_or_else(|_| Err(Refusal::Timeout(name.to_owned(), deadline.as_secs()))),
    }
}

/// Sends, and once more another way, if nothing of the request has reached the child.
pub(crate) async fn exchange(
    hub: &Hub,
    target: Target,
    cluster: &Cluster,
    request: Request<Body>,
) -> Result<Response<Incoming>, Refusal> {
    let (id, name) = (&cluster.id, cluster.name.as_str());
    let spare = match &target {
        Target::Tunnel(_) => None,
        Target::Peer(_) => again(&request),
    };
    let mut stale = false;
    let unsent = match try_send(hub, &target, id, request).await {
        // A child may call its headers as it likes: the word counts from a replica only, which keeps children from it.
        Ok(answer) => match said(&target, &answer) {
            None => return Ok(answer),
            Some(Refused::Stale) => {
                stale = true;
                spare
            }
            Some(why) => return Err(refused(cluster, why)),
        },
        Err(SendError::Closed(unsent)) => Some(*unsent),
        Err(SendError::Unprocessed(_)) if spare.is_some() => spare,
        Err(error) => return Err(failed(name, error)),
    };
    let Some((unsent, next)) = unsent.zip(route::other(hub, id, &target)) else {
        return Err(match stale {
            true => Refusal::StalePresence(name.to_owned()),
            false if hub.phases.stopping.is_cancelled() => Refusal::Stopping,
            false => Refusal::JustLost(name.to_owned(), "just now".to_owned()),
        });
    };
    let answer = try_send(hub, &next, id, unsent).await.map_err(|error| failed(name, error))?;
    match said(&next, &answer) {
        None => Ok(answer),
        Some(why) => Err(refused(cluster, why)),
    }
}

async fn try_send(
    hub: &Hub,
    target: &Target,
    id: &ClusterId,
    request: Request<Body>,
) -> Result<Response<Incoming>, SendError> {
    match target {
        Target::Tunnel(live) => {
            hub.metrics.sent_here.inc();
            live.send(request).await
        }
        Target::Peer(link) => {
            hub.metrics.sent_to_peers.inc();
            link.send(id, request).await
        }
    }
}

/// The same request once more, where that is all of it: one with a body cannot be sent twice.
fn again(request: &Request<Body>) -> Option<Request<Body>> {
    use http_body::Body as _;
    if !request.body().is_end_stream() {
        return None;
    }
    let mut again = Request::new(empty());
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.headers_mut() = request.headers().clone();
    // What makes a CONNECT an extended one.
    *again.extensions_mut() = request.extensions().clone();
    Some(again)
}

/// What another replica says of itself.
fn said(target: &Target, answer: &Response<Incoming>) -> Option<Refused> {
    match target {
        Target::Tunnel(_) => None,
        Target::Peer(_) => Refused::of(answer.headers()),
    }
}

/// What another replica did not carry.
fn refused(cluster: &Cluster, why: Refused) -> Refusal {
    let name = cluster.name.as_str();
    match why {
        Refused::Stale => Refusal::StalePresence(name.to_owned()),
        Refused::Denied => Refusal::Forbidden(format!(
            "cluster {name} has been shut out or removed in the parent moments ago"
        )),
        Refused::Busy => busy(&format!("too many requests wait for cluster {name}")),
        Refused::Broke | Refused::Malformed => broke(name),
    }
}

fn broke(name: &str) -> Refusal {
    let why = "the request may or may not have been carried out; if it changes nothing, try again";
    Refusal::TunnelBroke(name.to_owned(), why.to_owned())
}

fn failed(name: &str, error: SendError) -> Refusal {
    match error {
        SendError::Busy(_) => busy(&format!("too many requests wait for cluster {name}")),
        // The child has seen nothing of it, so the caller may try again at once.
        SendError::Closed(_) | SendError::Unprocessed(_) => {
            Refusal::JustLost(name.to_owned(), "just now".to_owned())
        }
        SendError::Failed(error) => {
            tracing::debug!(cluster = name, %error, "a request failed in the tunnel");
            broke(name)
        }
    }
}

/// Makes the head of an answer fit for the caller.
pub(crate) fn pass_on(
    hub: &Hub,
    name: &str,
    status: StatusCode,
    headers: &mut http::HeaderMap,
) -> Result<(), Refusal> {
    let by_agent = headers::sanitize_response(status, headers)
        .map_err(|why| Refusal::BadAnswer(name.to_owned(), why))?;
    if by_agent {
        hub.metrics.agent_errors.inc();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_head_that_does_not_come_is_given_up_after_the_childs_own_deadline() {
        let seconds = Duration::from_secs;
        assert_eq!(deadline(Some(Duration::MAX), seconds(60)), Some(seconds(70)));
        assert_eq!(deadline(Some(seconds(5)), seconds(60)), Some(seconds(15)));
        assert_eq!(deadline(Some(seconds(600)), seconds(60)), Some(seconds(70)));
        assert_eq!(deadline(None, seconds(60)), None);

        let began = tokio::time::Instant::now();
        let never = pin!(std::future::pending::<Result<(), _>>());
        let refusal = within(Some(seconds(15)), "edge-1", never).await;
        assert_eq!(began.elapsed(), seconds(15));
        assert_eq!(refusal.unwrap_err().to_status().code, StatusCode::GATEWAY_TIMEOUT);
    }
}
