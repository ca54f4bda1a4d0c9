//! One request through a tunnel and back. The request for the child is built from nothing but what the
//! allow-list in [`headers`] names; bodies stream both ways with the backpressure of the tunnel; a tunnel
//! that breaks in the middle ends the answer with an error, never as if it were complete.

use std::sync::Arc;
use std::time::Duration;

use api::identity::Identity;
use api::status::{Reason, Status};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use jiff::Timestamp;
use tunnel_proto::names::AUTHORITY_KUBERNETES;
use tunnel_proto::upgrade::tunnel_uri;
use tunnel_proto::{Body, SendError};

use crate::authn::Peer;
use crate::body::{RequestBody, ResponseBody};
use crate::handle::{Hub, random_id};
use crate::metrics::InFlight;
use crate::refusal::Refusal;
use crate::request_info::Proxied;
use crate::route;
use crate::tunnels::Live;

pub mod headers;
mod upgrade;

/// Requests to children at once. An open one costs about 20 KiB in the hub and, if its reader has stopped,
/// a stream window of 1 MiB more; watches count for their whole life.
const MAX_IN_FLIGHT: i64 = 20_000;

/// A request that has been authorized, with all that it takes to carry it out.
pub(crate) struct Authorized {
    /// What is asked of which child.
    pub(crate) proxied: Proxied,
    /// Who asks, as the child shall know them.
    pub(crate) child: Identity,
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
) -> Result<Response<ResponseBody>, Refusal> {
    let Authorized { proxied, child } = authorized;
    let (cluster, live) = route::find(
        &hub.catalog,
        &hub.tunnels,
        &proxied.cluster,
        proxied.verb,
        hub.started,
        Timestamp::now(),
    )?;
    let open = Open::begin(hub)?;
    let audit_id = headers::audit_id(request.headers())
        .or_else(|| HeaderValue::try_from(random_id()).ok())
        .unwrap_or_else(|| HeaderValue::from_static("none"));
    let client = headers::client_address(request.headers(), peer.address.ip());
    let mut outbound = headers::request(request.headers(), child.to_header()?, audit_id, client);
    let name = cluster.name.to_string();
    if let Some(protocol) = upgrade::wanted(&request)? {
        headers::add_upgrade(request.headers(), &mut outbound);
        return upgrade::send(hub, &live, name, proxied, protocol, outbound, request, open).await;
    }

    let (parts, body) = request.into_parts();
    let body = if carries_nothing(&parts.method, &body) { empty() } else { RequestBody(body).boxed_unsync() };
    let mut onward = Request::new(body);
    *onward.method_mut() = parts.method;
    *onward.uri_mut() = tunnel_uri(AUTHORITY_KUBERNETES, proxied.target.clone())
        .map_err(|_| Refusal::BadRequest("the path or query is malformed".to_owned()))?;
    *onward.headers_mut() = outbound;
    let answer = within(proxied.deadline, &name, exchange(hub, &live, &name, onward)).await?;
    let (mut parts, body) = answer.into_parts();
    pass_on(hub, &name, parts.status, &mut parts.headers)?;
    Ok(Response::from_parts(parts, ResponseBody::Child(body, open.into_guard())))
}

/// A request in flight, until its body has ended or its streams are closed. This is where open streams are
/// to be authorized again every minute: whatever stays open holds one of these.
pub(crate) struct Open(InFlight);

impl Open {
    fn begin(hub: &Hub) -> Result<Self, Refusal> {
        let open = InFlight::new(&hub.metrics.in_flight);
        if open.count() > MAX_IN_FLIGHT {
            return Err(busy("this hub has too many requests open"));
        }
        Ok(Self(open))
    }

    pub(crate) fn into_guard(self) -> InFlight {
        self.0
    }
}

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

/// Applies the deadline for the head of the answer, if there is one.
async fn within<T>(
    deadline: Option<Duration>,
    name: &str,
    answer: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    match deadline {
        None => answer.await,
        Some(deadline) => tokio::time::timeout(deadline, answer)
            .await
            .unwrap_or_else(|_| Err(Refusal::Timeout(name.to_owned(), deadline.as_secs()))),
    }
}

/// Sends, and once more through the tunnel that replaced the first, if nothing of the request had left.
pub(crate) async fn exchange(
    hub: &Hub,
    live: &Arc<Live>,
    name: &str,
    request: Request<Body>,
) -> Result<Response<Incoming>, Refusal> {
    let unsent = match live.send(request).await {
        Ok(answer) => return Ok(answer),
        Err(SendError::Closed(unsent)) => unsent,
        Err(error) => return Err(failed(name, error)),
    };
    let next = hub.tunnels.get(&live.cluster).filter(|next| !Arc::ptr_eq(next, live));
    let Some(next) = next else {
        if hub.phases.stopping.is_cancelled() {
            return Err(Refusal::Stopping);
        }
        return Err(Refusal::JustLost(name.to_owned(), "just now".to_owned()));
    };
    next.send(*unsent).await.map_err(|error| failed(name, error))
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
            let why = "the request may or may not have been carried out; if it changes nothing, try again";
            Refusal::TunnelBroke(name.to_owned(), why.to_owned())
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
