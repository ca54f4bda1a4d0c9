//! The request path: start reading here. [`decide`] is the whole of it; each line is a file.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::identity::Identity;
use api::mapping;
use api::status::{Reason, Status};
use http::header::{
    ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, UPGRADE, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use kube::Client;
use prometheus_client::registry::Registry;
use runtime::admin;
use runtime::readiness::Readiness;
use runtime::stop::Stop;
use runtime::traces::Traces;
use rustls_pki_types::UnixTime;
use tokio_util::task::TaskTracker;

use crate::apigroup::Documents;
use crate::audit::{Asked, Audit, Event, Resource};
use crate::authn::bearer::Tokens;
use crate::authn::front_proxy::FrontProxy;
use crate::authn::{self, Door, Peer};
use crate::authz::{Action, Authz};
use crate::body::ResponseBody;
use crate::catalog::Catalog;
use crate::config::Settings;
use crate::forward::{self, Authorized, headers};
use crate::gateway::{self, Standing};
use crate::grant::Grant;
use crate::issued;
use crate::issued::IssuedTokens;
use crate::join::Join;
use crate::listen::{Handshakes, KEPT_FOR_EACH_DOOR, MAX_CONNECTIONS, Places};
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::refusal::Refusal;
use crate::request_info::{Proxied, RequestInfo};
use crate::running::Running;
use crate::shares::Shares;
use crate::told::Told;
use crate::tunnels::{Tunnels, accept};

/// Largest body of an invitation or registration; the largest honest one is a few KiB. Costs that much per
/// such request in flight.
const MAX_BODY: usize = 64 * 1024;
/// Time for such a body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The steps of an orderly end. Each is a token that is cancelled when the step begins.
#[derive(Debug, Clone, Default)]
pub struct Phases {
    /// Not ready any more, no new tunnels; requests are served as before.
    pub stopping: Stop,
    /// No new connections, open ones are asked to go.
    pub draining: Stop,
    /// Nobody is left at the doors: tunnels take no new streams.
    pub closing: Stop,
    /// Whatever is still open is cut.
    pub cut: Stop,
}

/// All that the request path reads. Made once, in `app.rs`.
#[derive(Debug)]
pub struct Hub {
    /// Who is believed.
    pub front_proxy: Arc<FrontProxy>,
    /// Whose a token is, at the gateway.
    pub tokens: Tokens,
    /// Which tokens the hub has issued.
    pub issued: Arc<IssuedTokens>,
    /// Who may what.
    pub authz: Authz,
    /// Which clusters there are.
    pub catalog: Arc<Catalog>,
    /// Which of them are connected here.
    pub tunnels: Arc<Tunnels>,
    /// Which of them are connected at other replicas.
    pub peers: Arc<Peers>,
    /// Connections at both doors.
    pub places: Places,
    /// Their TLS handshakes.
    pub handshakes: Handshakes,
    /// What each user may take of this hub.
    pub users: Shares,
    /// What may be asked of each cluster.
    pub clusters: Shares,
    /// Who asked what.
    pub audit: Audit,
    /// Invitations and registrations.
    pub join: Join,
    /// Discovery and OpenAPI.
    pub documents: Documents,
    /// `/readyz`
    pub readiness: Readiness,
    /// What is counted.
    pub metrics: Metrics,
    /// `/metrics`
    pub registry: Arc<Registry>,
    /// How long requests took, and where.
    pub traces: Traces,
    /// The configuration at the start.
    pub settings: Arc<Settings>,
    /// Connections at the doors, until they end or become a tunnel or a stream.
    pub doors: TaskTracker,
    /// What of it can change.
    pub running: Running,
    /// Tunnels and open streams, which outlive the connections that they came on.
    pub streams: TaskTracker,
    /// The end.
    pub phases: Phases,
    /// When this process began.
    pub started: Timestamp,
}

impl Hub {
    /// A hub that knows no cluster yet and trusts no aggregator.
    pub fn new(
        client: Client,
        settings: Arc<Settings>,
        readiness: Readiness,
        (metrics, registry): (Metrics, Arc<Registry>),
        audit: Audit,
    ) -> Self {
        let catalog = Arc::new(Catalog::default());
        Self {
            front_proxy: Arc::new(FrontProxy::default()),
            tokens: Tokens::new(client.clone(), metrics.clone()),
            issued: Arc::default(),
            authz: Authz::new(client.clone(), metrics.clone()),
            tunnels: Arc::new(Tunnels::new(metrics.clone())),
            peers: Arc::new(Peers::new(&settings.hub_id, metrics.clone())),
            places: Places::new(
                MAX_CONNECTIONS,
                if settings.gateway.is_some() { KEPT_FOR_EACH_DOOR } else { 0 },
            ),
            handshakes: Handshakes::default(),
            users: Shares::new(settings.limits.user_in_flight, settings.limits.user_rate),
            clusters: Shares::new(settings.limits.cluster_in_flight, settings.limits.cluster_rate),
            audit,
            join: Join::new(client, Arc::clone(&settings), Arc::clone(&catalog)),
            documents: Documents::new(),
            doors: TaskTracker::new(),
            running: Running::new(&settings),
            streams: TaskTracker::new(),
            phases: Phases::default(),
            started: Timestamp::now(),
            catalog,
            readiness,
            metrics,
            registry,
            traces: Traces::default(),
            settings,
        }
    }
}

/// Answers any request, and never fails: what cannot be done is answered with why.
pub async fn answer(hub: &Arc<Hub>, peer: &Peer, mut request: Request<Incoming>) -> Response<ResponseBody> {
    let method = request.method().clone();
    let upgrading = request.version() == Version::HTTP_11 && request.headers().contains_key(UPGRADE);
    // The parent's, where it sends one: it ties the lines of parent, hub and child together.
    let id = headers::audit_id(request.headers()).unwrap_or_else(new_audit_id);
    let mut told = Told::new(hub.traces.begin("request", request.headers_mut()), &id);
    let decided = match peer.door {
        Door::Aggregated => decide(hub, peer, request, &id, &mut told).await,
        Door::Gateway => Box::pin(gateway::decide(hub, peer, request, &id, &mut told)).await,
    };
    let mut response = match decided {
        Ok(response) => response,
        Err(refusal) => {
            hub.metrics.refused(refusal.label());
            tracing::debug!(request_id = ?id, peer = %peer.address, kind = told.kind, reason = refusal.label(), "refused: {refusal}");
            let mut response = respond(&refusal.to_status());
            if peer.door == Door::Gateway && response.status() == StatusCode::UNAUTHORIZED {
                // RFC 9110 section 11.6.1 wants it with every 401; at the first door there is no scheme to name.
                response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            response
        }
    };
    if method == Method::HEAD {
        without_body(&mut response);
    }
    if upgrading && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        // What stands behind such a request was meant for the stream that it asked for, and came on the
        // aggregator's own connection: read as a request it could name any user (CVE-2018-1002105).
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let verb = crate::request_info::verb(&method).unwrap_or("other");
    hub.metrics.answered(told.kind, verb, response.status());
    tracing::debug!(request_id = ?id, peer = %peer.address, kind = told.kind, verb, code = response.status().as_u16(), "answered");
    told.answered(&method, response.status());
    if let ResponseBody::Child(_, stay) = response.body_mut() {
        stay.keep(told);
    }
    response.headers_mut().insert(headers::AUDIT_ID, id);
    response
}

/// What is asked, by whom, may they, where does it go.
async fn decide(
    hub: &Arc<Hub>,
    peer: &Peer,
    request: Request<Incoming>,
    id: &HeaderValue,
    told: &mut Told,
) -> Result<Response<ResponseBody>, Refusal> {
    let (uri, headers) = (request.uri(), request.headers());
    let info = RequestInfo::parse(request.method(), uri, headers, request.version())?;
    told.kind = info.kind();
    authn::refuse_forged_headers(headers)?;
    if info == RequestInfo::Health {
        return health(hub, &request);
    }
    told.event = open_event(hub, peer, &request, id, &info)?;
    let who = authn::identify(&hub.front_proxy, peer, headers, now())?;
    told.event.who(&who);
    match info {
        // For whoever the parent has authenticated, without a question to its authorizer: they are constants,
        // and must be there when the authorizer is not.
        RequestInfo::Document(document) => hub.documents.answer(document, headers, uri.query()),
        RequestInfo::Health | RequestInfo::HealthDetail => {
            may_read(hub, &who, uri.path()).await?;
            health(hub, &request)
        }
        RequestInfo::Metrics => {
            may_read(hub, &who, uri.path()).await?;
            Ok(metrics(hub))
        }
        RequestInfo::Configz => {
            may_read(hub, &who, uri.path()).await?;
            Ok(configz(hub))
        }
        RequestInfo::Attach(cluster) => {
            let _turn = accept::turn(hub).await?;
            Box::pin(accept::attach(hub, &who, cluster, None, request)).await
        }
        RequestInfo::Proxy(proxied) => proxy(hub, peer, &who, None, proxied, request, id, told).await,
        RequestInfo::Invite => {
            let body = Box::pin(may_create(hub, &who, "clusterinvitations", request)).await?;
            Box::pin(hub.join.invite(&who, &body)).await.map(|object| created(&object))
        }
        RequestInfo::Register => {
            let body = Box::pin(may_create(hub, &who, "clusterregistrations", request)).await?;
            Box::pin(hub.join.register(&who, &body)).await.map(|object| created(&object))
        }
        RequestInfo::RequestKubeconfig => {
            let body = Box::pin(may_create(hub, &who, "kubeconfigrequests", request)).await?;
            Box::pin(issued::create::create(hub, &who, &body)).await.map(|object| created(&object))
        }
        RequestInfo::ListCredentials => {
            Box::pin(issued::manage::list(hub, &who)).await.map(|object| found(&object))
        }
        RequestInfo::RevokeCredential(id) => {
            Box::pin(issued::manage::revoke(hub, &who, &id)).await.map(|object| found(&object))
        }
    }
}

/// A request to a child: allowed by the parent, as somebody the child knows.
#[expect(
    clippy::too_many_arguments,
    reason = "one request, whole; a struct for it would be taken apart here"
)]
pub(crate) async fn proxy(
    hub: &Arc<Hub>,
    peer: &Peer,
    who: &Arc<Identity>,
    standing: Option<Arc<Standing>>,
    proxied: Proxied,
    request: Request<Incoming>,
    id: &HeaderValue,
    told: &mut Told,
) -> Result<Response<ResponseBody>, Refusal> {
    let share = |full| Refusal::share_used_up(&format!("user {:?}", who.user()), full);
    let user = hub.users.take(who.user()).map_err(share)?;
    let mut grant = Grant::ask(&hub.authz, who, &proxied.cluster, proxied.verb).await?;
    grant.standing = standing;
    let map = hub.settings.map_service_accounts;
    let child = match grant.standing.as_deref().and_then(Standing::issued) {
        Some(issued) => issued.child(&grant.roles, map)?,
        None => mapping::to_child(who, &grant.roles, map)?,
    };
    forward::send(hub, peer, Authorized { proxied, child, grant, user }, request, id, told).await
}

/// Begins the line in the audit log of what reaches a cluster, or makes one. Documents, health and metrics have none.
pub(crate) fn open_event(
    hub: &Hub,
    peer: &Peer,
    request: &Request<Incoming>,
    id: &HeaderValue,
    info: &RequestInfo,
) -> Result<Event, Refusal> {
    let (resource, cluster) = match info {
        RequestInfo::Attach(cluster) => (Resource::Socket("attach"), Some(cluster)),
        RequestInfo::Proxy(proxied) => (Resource::Socket("proxy"), Some(&proxied.cluster)),
        RequestInfo::Invite => (Resource::Access("clusterinvitations"), None),
        RequestInfo::Register => (Resource::Access("clusterregistrations"), None),
        RequestInfo::RequestKubeconfig => (Resource::Access("kubeconfigrequests"), None),
        RequestInfo::ListCredentials | RequestInfo::RevokeCredential(_) => {
            (Resource::Access("issuedcredentials"), None)
        }
        RequestInfo::Health
        | RequestInfo::HealthDetail
        | RequestInfo::Metrics
        | RequestInfo::Configz
        | RequestInfo::Document(_) => {
            return Ok(Event::default());
        }
    };
    hub.audit.open(Asked {
        id,
        verb: crate::request_info::verb(request.method())?,
        uri: request.uri(),
        headers: request.headers(),
        resource,
        cluster,
        source: peer.client(request.headers()),
    })
}

pub(crate) async fn may_read(hub: &Hub, who: &Arc<Identity>, path: &str) -> Result<(), Refusal> {
    if hub.authz.allowed(who, Action::Path { verb: "get", path: path.to_owned() }).await? {
        return Ok(());
    }
    Err(Refusal::Forbidden(format!("user {:?} may not get {path}", who.user())))
}

/// What is counted, as Prometheus reads it.
pub(crate) fn metrics(hub: &Hub) -> Response<ResponseBody> {
    admin::encode_metrics(&hub.registry).map(full)
}

/// The configuration that is in force.
pub(crate) fn configz(hub: &Hub) -> Response<ResponseBody> {
    found(&hub.running.shown())
}

/// Asks whether the caller may create such an object, and reads it.
async fn may_create(
    hub: &Hub,
    who: &Arc<Identity>,
    resource: &'static str,
    request: Request<Incoming>,
) -> Result<Vec<u8>, Refusal> {
    if !hub.authz.allowed(who, Action::Create(resource)).await? {
        return Err(Refusal::Forbidden(format!(
            "{resource}.access.towline.io is forbidden: user {:?} may not create it",
            who.user()
        )));
    }
    check_create(request.headers(), request.uri().query())?;
    let body = Limited::new(request.into_body(), MAX_BODY).collect();
    match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes().to_vec()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Refusal::BodyTooLarge(MAX_BODY))
        }
        Ok(Err(_)) => Err(Refusal::BadRequest("the request body broke off".to_owned())),
        Err(_) => Err(Refusal::BadRequest(format!(
            "the request body did not arrive within {} s",
            BODY_TIMEOUT.as_secs()
        ))),
    }
}

/// JSON only, and for real: a dry run of something whose answer is a secret would be a real run.
fn check_create(headers: &HeaderMap, query: Option<&str>) -> Result<(), Refusal> {
    let media = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media = media.split(';').next().unwrap_or_default().trim();
    // No type at all is JSON to every kube-apiserver (apimachinery `NegotiateInputSerializer`), and what
    // `kubectl create --raw` sends.
    if !media.is_empty() && !media.eq_ignore_ascii_case("application/json") {
        let message = "the body of the request was in an unknown format - accepted media types include: application/json";
        return Err(
            Status::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, Reason::UnsupportedMediaType, message).into()
        );
    }
    let pairs = query.unwrap_or_default().split('&');
    if pairs.into_iter().any(|pair| pair.strip_prefix("dryRun=").is_some_and(|value| !value.is_empty())) {
        return Err(Refusal::BadRequest("a dry run is not possible here".to_owned()));
    }
    Ok(())
}

pub(crate) fn health(hub: &Hub, request: &Request<Incoming>) -> Result<Response<ResponseBody>, Refusal> {
    match admin::answer(&hub.readiness, request.uri().path(), request.uri().query()) {
        Some(response) => Ok(response.map(full)),
        None => Err(Refusal::NotFound("there is no such health check".to_owned())),
    }
}

/// The runtime's answers are in one piece.
fn full(body: http_body_util::Full<bytes::Bytes>) -> ResponseBody {
    use futures::FutureExt as _;
    let bytes = body.collect().now_or_never().and_then(Result::ok);
    ResponseBody::own(bytes.map(|whole| whole.to_bytes()).unwrap_or_default())
}

fn created(object: &serde_json::Value) -> Response<ResponseBody> {
    let mut response = found(object);
    *response.status_mut() = StatusCode::CREATED;
    response
}

fn found(object: &serde_json::Value) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::own(object.to_string()));
    json(response.headers_mut());
    response
}

fn json(headers: &mut HeaderMap) {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(api::status::CONTENT_TYPE));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

/// A refusal as an answer.
pub(crate) fn respond(status: &Status) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::own(status.to_json()));
    *response.status_mut() = status.code;
    let headers = response.headers_mut();
    json(headers);
    if let Some(seconds) = status.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if status.code == StatusCode::METHOD_NOT_ALLOWED {
        // RFC 9110 section 15.5.6 wants the header; what it lists is up to us.
        headers.insert(ALLOW, HeaderValue::from_static("GET"));
    }
    response
}

/// The answer to HEAD: the same head, and nothing after it.
fn without_body(response: &mut Response<ResponseBody>) {
    if let ResponseBody::Own(Some(_)) = response.body() {
        let length = response.body().size_hint().exact().unwrap_or_default();
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
        *response.body_mut() = ResponseBody::empty();
    }
}

fn now() -> UnixTime {
    // A clock before 1970 makes every certificate invalid, as it should.
    UnixTime::since_unix_epoch(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// A random id in the form of a UUID, for tunnels and audit logs. Not a secret.
pub(crate) fn random_id() -> String {
    let (one, two, three, four, five): (u32, u16, u16, u16, u64) = rand::random();
    let (three, four, five) = (three & 0xfff, four & 0xfff, five & 0xffff_ffff_ffff);
    format!("{one:08x}-{two:04x}-4{three:03x}-a{four:03x}-{five:012x}")
}

/// The id of a request that came without one.
fn new_audit_id() -> HeaderValue {
    HeaderValue::try_from(random_id()).unwrap_or(HeaderValue::from_static("none"))
}

#[cfg(test)]
mod in_process;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invitation_is_json_and_never_a_dry_run() {
        let check = |media: &str, query: Option<&str>| {
            let headers: HeaderMap = [(CONTENT_TYPE, media.parse().unwrap())].into_iter().collect();
            check_create(&headers, query).map_err(|refusal| refusal.to_status().code.as_u16())
        };
        assert_eq!(
            check(
                "application/json; charset=utf-8",
                Some("fieldManager=kubectl-create&fieldValidation=Strict")
            ),
            Ok(())
        );
        assert_eq!(check("application/json", Some("dryRun=")), Ok(()));
        assert_eq!(check("application/json", Some("fieldManager=a&dryRun=All")), Err(400));
        assert_eq!(check("", None), Ok(()));
        assert_eq!(check("application/yaml", None), Err(415));
        assert_eq!(check("application/vnd.kubernetes.protobuf", None), Err(415));
    }

    #[test]
    fn ids_look_like_uuids_and_differ() {
        let (one, two) = (random_id(), random_id());
        assert_eq!(one.len(), 36);
        assert_ne!(one, two);
    }
}
