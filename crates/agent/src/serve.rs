//! Each request that comes out of a tunnel: for the agent itself (status, credential, going away), or for
//! the child's kube-apiserver as a person. The hub may be hostile: it can name no host, no account and no
//! file here, no reserved user or group gets past [`crate::impersonate`], and nothing that the child's owner does not
//! admit gets past [`crate::policy`]. What the agent itself refuses is a `metav1.Status` with the header [`HEADER_AGENT_ERROR`]; a child cannot send that header.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use api::identity::{IDENTITY_HEADER, Identity};
use api::registration::Credential;
use api::status::{CONTENT_TYPE, Reason, Status};
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use runtime::stop::Stop;
use runtime::traces::{Span, Traces};
use runtime::watch::{Events, ending_between};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tunnel_proto::Body;
use tunnel_proto::names::{
    AUTHORITY_AGENT, AUTHORITY_KUBERNETES, HEADER_AGENT_ERROR, PATH_CREDENTIAL, PATH_GOAWAY, PATH_STATUS,
    PATH_SUCCESSOR,
};
use tunnel_proto::upgrade::connect_target;

use crate::credentials::{Credentials, StoreError};
use crate::impersonate::{self, ImpersonateError, Inbound};
use crate::limits::{CONTROL_BODY, MAX_REQUESTS, MAX_UPGRADES, SUCCESSOR_TIME, WATCHES_END_WITHIN};
use crate::metrics::Metrics;
use crate::policy::in_force::{InForce, NotAdmitted};
use crate::policy::request_info::{RequestInfo, Verb};
use crate::report::Reporter;
use crate::tasks::Tasks;
use crate::tokens::{Impersonator, NoImpersonation};
use crate::upstream::body::{holding, until_refused, without_trailers};
use crate::upstream::{Upstream, UpstreamError};

/// What may be asked of a Kubernetes API server.
const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

/// Answers what comes out of tunnels.
pub struct Service {
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) impersonator: Arc<Impersonator>,
    pub(crate) reporter: Reporter,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) metrics: Metrics,
    pub(crate) policy: Arc<InForce>,
    /// How long requests took here.
    pub(crate) traces: Traces,
    /// Upgraded streams, which outlive the answer that began them.
    pub(crate) tasks: Tasks,
    /// Set off when this process stops.
    pub(crate) stopping: Stop,
    /// Set off when another process of this agent takes over.
    pub(crate) succeeded: Stop,
    requests: Arc<Semaphore>,
    upgrades: Arc<Semaphore>,
    /// Questions about a successor at once: each is one to the child's API server.
    successors: Semaphore,
}

impl Service {
    /// With the limits of [`crate::limits`].
    pub fn new(
        upstream: Arc<Upstream>,
        impersonator: Arc<Impersonator>,
        reporter: Reporter,
        credentials: Arc<Credentials>,
        metrics: Metrics,
        policy: Arc<InForce>,
    ) -> Self {
        Self {
            upstream,
            impersonator,
            reporter,
            credentials,
            metrics,
            policy,
            traces: Traces::default(),
            tasks: Tasks::default(),
            stopping: Stop::new(),
            succeeded: Stop::new(),
            successors: Semaphore::new(1),
            requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
            upgrades: Arc::new(Semaphore::new(MAX_UPGRADES)),
        }
    }

    /// Answers one request. `leave` is set off when the hub says that it goes away.
    pub async fn answer(self: Arc<Self>, leave: Stop, mut request: Request<Incoming>) -> Response<Body> {
        let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
        let to_head = request.method() == Method::HEAD;
        let mut span = Span::default();
        let answer = match authority.as_deref() {
            Some(AUTHORITY_KUBERNETES) => {
                span = self.traces.begin("kubernetes", request.headers_mut());
                self.kubernetes(request).await
            }
            Some(AUTHORITY_AGENT) => Box::pin(self.control(&leave, request)).await,
            _ => Err(Status::new(
                StatusCode::MISDIRECTED_REQUEST,
                Reason::BadRequest,
                "a tunnel leads to the authorities kubernetes and agent only",
            )),
        };
        let answer = answer.unwrap_or_else(|status| {
            tracing::debug!(code = status.code.as_u16(), why = status.message, "refused a request");
            let refusal = refusal(&status);
            // A body behind HEAD would reset the stream before the hub has read the head (RFC 9110 section 9.3.2).
            if to_head { refusal.map(|_| full(Bytes::new())) } else { refusal }
        });
        self.metrics.answered(answer.status(), answer.headers().contains_key(HEADER_AGENT_ERROR));
        span.answered(answer.status());
        if span.is_kept() { answer.map(|body| holding(body, span)) } else { answer }
    }

    async fn kubernetes(&self, request: Request<Incoming>) -> Result<Response<Body>, Status> {
        let place = take(&self.requests, "requests")?;
        let upgrading = connect_target(&request)
            .map_err(|error| Status::new(StatusCode::BAD_REQUEST, Reason::BadRequest, error.to_string()))?;
        if upgrading.is_none() && !METHODS.contains(request.method()) {
            return Err(Status::new(
                StatusCode::METHOD_NOT_ALLOWED,
                Reason::MethodNotAllowed,
                format!("method {} is none of a Kubernetes API", request.method()),
            ));
        }
        let who = identity(request.headers())?;
        // Before anything is asked of the child on behalf of this person.
        api::mapping::refuse_in_child(&who).map_err(|refused| from_impersonate(&refused.into()))?;
        let asked = asked(&request, upgrading.as_ref().map(|(_, method)| method))?;
        let (version, believed) =
            self.policy.admit(&who, &asked).map_err(|refused| from_policy(&who, &asked, &refused))?;
        let (token, child_who) =
            self.impersonator.admit(&believed).await.map_err(|error| from_admission(&error))?;
        // On the heap once, and then carried by whatever stays open.
        let mut refused: UntilRefused = Box::pin(Arc::clone(&self.policy).until_refused(
            version,
            who.clone(),
            believed.clone(),
            asked.clone(),
        ));

        if let Some((protocol, method)) = upgrading {
            let more = take(&self.upgrades, "upgraded streams")?;
            let places = (place, more);
            let upgraded = self.upgrade(request, &child_who, &token, protocol, &method, (places, refused));
            return Box::pin(upgraded).await;
        }
        let (head, body) = request.into_parts();
        let inbound = Inbound { method: &head.method, uri: &head.uri, headers: &head.headers };
        let outbound = impersonate::plain(&child_who, &token, inbound, without_trailers(body))
            .map_err(|error| from_impersonate(&error))?;
        let answer = tokio::select! {
            biased;
            answer = self.upstream.forward(outbound) => answer.map_err(|error| from_upstream(&error))?,
            // A log that has said nothing yet has no head.
            why = &mut refused => return Err(from_policy(&who, &asked, &why)),
        };
        if answer.status() == StatusCode::UNAUTHORIZED && !is_proxied(head.uri.path()) {
            return Err(self.token_refused());
        }
        let watched = asked.verb == Verb::Watch;
        let events = watched.then(|| Events::of_answer(answer.status(), answer.headers())).flatten();
        Ok(answer.map(|body| {
            let body = holding(until_refused(body, refused), place);
            match events {
                Some(events) => Body::new(ending_between(body, events, Box::pin(self.moved()))),
                None => body,
            }
        }))
    }

    /// Resolves some moment after this process has begun to stop.
    fn moved(&self) -> impl Future<Output = ()> + Send + use<> {
        let stopping = self.stopping.clone();
        async move {
            stopping.cancelled().await;
            tokio::time::sleep(WATCHES_END_WITHIN.mul_f64(rand::random())).await;
        }
    }

    /// Says whether another process is the successor of this one; if so, this one is done.
    async fn successor(&self, body: Incoming) -> Result<Response<Body>, Status> {
        let named = Limited::new(body, CONTROL_BODY).collect().await.map(http_body_util::Collected::to_bytes);
        let named = named.ok().and_then(|named| String::from_utf8(named.to_vec()).ok()).ok_or_else(|| {
            Status::new(StatusCode::BAD_REQUEST, Reason::BadRequest, "this names no process")
        })?;
        // One after the other: two replicas of the hub may ask at once, and a "later" would be taken for a no.
        let asked = async {
            let _turn = self.successors.acquire().await;
            self.credentials.is_successor(&named).await
        };
        match timeout(SUCCESSOR_TIME, asked).await {
            Ok(Ok(true)) => {
                tracing::info!(successor = named, "another process of this agent takes over");
                self.succeeded.cancel();
                Ok(Response::new(full(named.into())))
            }
            Ok(Ok(false)) => {
                let why = "this process knows of no successor of that name";
                Err(Status::new(StatusCode::CONFLICT, Reason::Conflict, why))
            }
            Ok(Err(error)) => Err(not_now(error.to_string())),
            Err(_) => Err(not_now(format!("the child did not say so within {SUCCESSOR_TIME:?}"))),
        }
    }

    /// kube-apiserver says 401 to a token, never to a person: to pass it on would tell people that their
    /// own credential is bad.
    pub(crate) fn token_refused(&self) -> Status {
        self.impersonator.token_was_refused();
        Status::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Reason::ServiceUnavailable,
            "the child's kube-apiserver refused the agent's own token; the agent is getting another one",
        )
        .retry_after(2)
    }

    async fn control(&self, leave: &Stop, request: Request<Incoming>) -> Result<Response<Body>, Status> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, PATH_STATUS) => {
                let mut answer = Response::new(full(self.reporter.json().await));
                answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
                Ok(answer)
            }
            (&Method::PUT, PATH_CREDENTIAL) => {
                let credential = credential(request.into_body()).await?;
                let expires = credential.expires;
                self.credentials.renew(credential).await.map_err(|error| from_store(&error))?;
                tracing::info!(%expires, "the hub renewed this agent's credential");
                Ok(no_content())
            }
            (&Method::POST, PATH_GOAWAY) => {
                leave.cancel();
                Ok(no_content())
            }
            (&Method::POST, PATH_SUCCESSOR) => self.successor(request.into_body()).await,
            (_, PATH_STATUS | PATH_CREDENTIAL | PATH_GOAWAY | PATH_SUCCESSOR) => Err(Status::new(
                StatusCode::METHOD_NOT_ALLOWED,
                Reason::MethodNotAllowed,
                "this path of the agent has another method",
            )),
            _ => Err(Status::new(StatusCode::NOT_FOUND, Reason::NotFound, "the agent has no such path")),
        }
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("upstream", &self.upstream).finish_non_exhaustive()
    }
}

/// Who asks, from the one header that says so.
pub(crate) fn identity(headers: &HeaderMap) -> Result<Identity, Status> {
    let bad = |why: String| {
        Status::new(
            StatusCode::BAD_REQUEST,
            Reason::BadRequest,
            format!("the hub did not say who asks: {why}"),
        )
    };
    let mut values = headers.get_all(IDENTITY_HEADER).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Identity::from_header(value).map_err(|error| bad(error.to_string())),
        (None, _) => Err(bad("no identity".to_owned())),
        (Some(_), Some(_)) => Err(bad("more than one identity".to_owned())),
    }
}

/// Ends when the owner's policy does not admit a request any more.
pub(crate) type UntilRefused = Pin<Box<dyn Future<Output = NotAdmitted> + Send>>;

/// What is asked, of an upgrade by its original method.
fn asked(request: &Request<Incoming>, upgrade: Option<&Method>) -> Result<RequestInfo, Status> {
    let (method, uri) = (upgrade.unwrap_or_else(|| request.method()), request.uri());
    RequestInfo::parse(method, uri.path(), uri.query(), upgrade.is_some()).map_err(|error| {
        Status::new(
            StatusCode::FORBIDDEN,
            Reason::Forbidden,
            format!("the agent of this cluster does not send on what it cannot judge: {error}"),
        )
    })
}

fn from_policy(who: &Identity, asked: &RequestInfo, why: &NotAdmitted) -> Status {
    match why {
        NotAdmitted::Refused(refused) => Status::new(
            StatusCode::FORBIDDEN,
            Reason::Forbidden,
            format!("this cluster's own policy does not let user {:?} {asked}: {refused}", who.user()),
        ),
        // A moment after the start. What could not be read may be forbidden for good: clients that are told when to
        // try again do so ten times, and show nothing meanwhile (client-go `rest/with_retry.go`).
        NotAdmitted::Unread => not_yet(why).retry_after(1),
        NotAdmitted::Unreadable(_) => not_yet(why),
    }
}

fn not_yet(why: &NotAdmitted) -> Status {
    not_now(why.to_string())
}

fn not_now(why: String) -> Status {
    Status::new(StatusCode::SERVICE_UNAVAILABLE, Reason::ServiceUnavailable, why)
}

async fn credential(body: Incoming) -> Result<Credential, Status> {
    let body = Limited::new(body, CONTROL_BODY).collect().await.map_err(|error| {
        let (code, reason) = if error.is::<http_body_util::LengthLimitError>() {
            (StatusCode::PAYLOAD_TOO_LARGE, Reason::RequestEntityTooLarge)
        } else {
            (StatusCode::BAD_REQUEST, Reason::BadRequest)
        };
        Status::new(code, reason, format!("the credential could not be read (at most {CONTROL_BODY} bytes)"))
    })?;
    // The error of the parser is not told: it may quote the token.
    serde_json::from_slice(&body.to_bytes())
        .map_err(|_| Status::new(StatusCode::BAD_REQUEST, Reason::BadRequest, "this is no credential"))
}

fn take(places: &Arc<Semaphore>, what: &str) -> Result<OwnedSemaphorePermit, Status> {
    Arc::clone(places).try_acquire_owned().map_err(|_| {
        Status::new(
            StatusCode::TOO_MANY_REQUESTS,
            Reason::TooManyRequests,
            format!("the agent has as many {what} in progress as it takes at once; try again"),
        )
        .retry_after(1)
    })
}

/// Paths below which a 401 can come from something that is not kube-apiserver: a proxied pod, service or node.
fn is_proxied(path: &str) -> bool {
    path.split('/').any(|segment| segment == "proxy")
}

pub(crate) fn from_impersonate(error: &ImpersonateError) -> Status {
    let (code, reason) = match error {
        ImpersonateError::Reserved(_) => (StatusCode::FORBIDDEN, Reason::Forbidden),
        ImpersonateError::Blank
        | ImpersonateError::Unwritable
        | ImpersonateError::Inbound(_)
        | ImpersonateError::Path => (StatusCode::BAD_REQUEST, Reason::BadRequest),
    };
    Status::new(code, reason, format!("the agent of this cluster refused: {error}"))
}

fn from_admission(error: &NoImpersonation) -> Status {
    let status = Status::new(StatusCode::SERVICE_UNAVAILABLE, Reason::ServiceUnavailable, error.to_string());
    match error {
        // This one passes within seconds.
        NoImpersonation::NoToken => status.retry_after(1),
        NoImpersonation::Dangerous(_) | NoImpersonation::Unknown(_) | NoImpersonation::Invalid(_) => status,
    }
}

pub(crate) fn from_upstream(error: &UpstreamError) -> Status {
    let (code, reason) = match error {
        UpstreamError::Connect(_) => (StatusCode::SERVICE_UNAVAILABLE, Reason::ServiceUnavailable),
        UpstreamError::Failed(_) | UpstreamError::Answer(_) => (StatusCode::BAD_GATEWAY, Reason::Unknown),
        UpstreamError::Silent(_) => (StatusCode::GATEWAY_TIMEOUT, Reason::Timeout),
    };
    Status::new(code, reason, error.to_string())
}

fn from_store(error: &StoreError) -> Status {
    let (code, reason) = match error {
        StoreError::Token => (StatusCode::UNPROCESSABLE_ENTITY, Reason::Invalid),
        StoreError::NotLoaded
        | StoreError::Child(_)
        | StoreError::Form
        | StoreError::Contended
        | StoreError::OtherKey(_)
        | StoreError::Key(_) => (StatusCode::SERVICE_UNAVAILABLE, Reason::ServiceUnavailable),
    };
    Status::new(code, reason, error.to_string())
}

/// The agent's own no.
pub(crate) fn refusal(status: &Status) -> Response<Body> {
    let mut answer = Response::new(full(status.to_json().into()));
    *answer.status_mut() = status.code;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    headers.insert(HeaderName::from_static(HEADER_AGENT_ERROR), HeaderValue::from_static("1"));
    if let Some(seconds) = status.retry_after {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    answer
}

fn no_content() -> Response<Body> {
    let mut answer = Response::new(full(Bytes::new()));
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
}

pub(crate) fn full(bytes: Bytes) -> Body {
    Body::new(Full::new(bytes).map_err(|never| match never {}))
}

#[cfg(test)]
mod tests;
