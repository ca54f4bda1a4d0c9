//! The second front door: people and tools come straight to the hub with a bearer token of the parent, and the
//! parent's API server carries none of their bytes. Behind the door everything is as behind the first one:
//! [`decide`] finds out who asks and which cluster is meant, and hands over to [`handle::proxy`].
//!
//! Promises: nobody is believed but the parent's TokenReview; `X-Remote-*` is never read here; a cluster that does
//! not exist answers as one that the caller may not use; no answer leads to another host.

use std::net::IpAddr;
use std::sync::Arc;

use api::identity::Identity;
use api::kubeconfig::TOKEN_PREFIX;
use api::names::ClusterId;
use api::secret::Secret;
use http::{HeaderMap, Request, Response, header};
use hyper::body::Incoming;
use jiff::Timestamp;
use runtime::stop::Stop;

use crate::audit::{Asked, Event, Resource};
use crate::authn::{self, Peer, bearer};
use crate::body::ResponseBody;
use crate::catalog::Cluster;
use crate::grant::Grant;
use crate::handle::{self, Hub};
use crate::issued::Issued;
use crate::join::one_time;
use crate::refusal::Refusal;
use crate::request_info::{self, Proxied, RequestInfo};
use crate::told::Told;
use crate::tunnels::accept;

pub mod address;
mod impersonation;
pub mod location;

use address::Address;
pub use impersonation::Impersonation;
use location::Spelt;

/// The path of the hub's metrics, behind each door.
const METRICS: &str = "/metrics";
const CONFIGZ: &str = "/configz";

/// What somebody showed at this door: asked about again for as long as a request stays open.
#[derive(Debug)]
pub enum Standing {
    /// A token of the parent.
    Parents {
        /// The token.
        token: Secret,
        /// Whose it is.
        owner: Arc<Identity>,
        /// As whom they ask, if not as themselves.
        impersonation: Option<Impersonation>,
    },
    /// One of the hub's own.
    Issued(Arc<Issued>),
}

impl Standing {
    /// Whether it is still good.
    ///
    /// # Errors
    /// The parent did not say.
    pub async fn holds(&self, hub: &Hub) -> Result<bool, Refusal> {
        match self {
            Self::Issued(issued) => Ok(!issued.revoked.is_cancelled() && !issued.expired(Timestamp::now())),
            Self::Parents { token, owner, impersonation } => {
                match hub.tokens.again(token).await {
                    Ok(now) if now == *owner => {}
                    Ok(_) | Err(Refusal::Unauthenticated(_)) => return Ok(false),
                    Err(refusal) => return Err(refusal),
                }
                let Some(impersonation) = impersonation else { return Ok(true) };
                impersonation.refused(hub, owner).await.map(|refused| refused.is_none())
            }
        }
    }

    /// The hub's own token.
    pub fn issued(&self) -> Option<&Issued> {
        match self {
            Self::Issued(issued) => Some(issued),
            Self::Parents { .. } => None,
        }
    }

    /// What ends at once when the token is revoked.
    pub fn revoked(&self) -> Option<&Stop> {
        self.issued().map(|issued| &issued.revoked)
    }
}

/// What is asked, by whom, of which cluster; then as everywhere.
///
/// # Errors
/// Whatever stands in the way.
pub(crate) async fn decide(
    hub: &Arc<Hub>,
    peer: &Peer,
    request: Request<Incoming>,
    id: &http::HeaderValue,
    told: &mut Told,
) -> Result<Response<ResponseBody>, Refusal> {
    let (uri, headers) = (request.uri(), request.headers());
    let verb = request_info::verb(request.method())?;
    request_info::check_form(uri, headers, request.version())?;
    request_info::check_path(uri.path())?;
    authn::refuse_folded_headers(headers)?;
    let domain = hub.settings.gateway.as_ref().and_then(|gateway| gateway.domain.as_deref());
    let address = address::read(uri, headers, request.version(), domain)?;
    if let Address::Connect(cluster) = address {
        told.kind = "attach";
        return Box::pin(connect(hub, peer, cluster, request, id, &mut told.event)).await;
    }
    if let Address::Manifest(shown) = &address {
        told.kind = "manifest";
        return Box::pin(manifest(hub, peer, shown, &request, id, &mut told.event)).await;
    }
    if address == Address::Bare && is_health(uri.path()) && !bearer::is_shown(headers) {
        told.kind = "health";
        return handle::health(hub, &request);
    }
    let from = peer.address.ip();
    let shown = match bearer::token(headers) {
        Ok(token) => hub.own(token, from).await,
        Err(refusal) => Err(refusal),
    };
    if let (Address::Bare, path @ (METRICS | CONFIGZ), Ok(Shown::Parents(token))) =
        (&address, uri.path(), &shown)
    {
        told.kind = if path == METRICS { "metrics" } else { "configz" };
        return own_state(hub, verb, token, &request, from).await;
    }
    told.kind = "proxy";
    // An unknown name is asked about like any other: the same question, the same time, the same answer.
    let (name, target, spelt) = match (address, &shown) {
        (Address::Path(name, target), _) => (Some(name.clone()), target, Spelt::Path(name)),
        (Address::Host(name, target), _) => (Some(name), target, Spelt::Host),
        (Address::Bare, Ok(Shown::Issued(_))) => (None, address::whole(uri)?, Spelt::Root),
        (Address::Bare, Ok(Shown::Parents(token))) => return bare(hub, token, from).await,
        (Address::Bare, Err(refusal)) => return Err(refusal.clone()),
        // They went their own ways above.
        (Address::Connect(_) | Address::Manifest(_), _) => {
            return Err(Refusal::NotFound("there is nothing here".to_owned()));
        }
    };
    let named = name.as_ref().and_then(|name| hub.catalog.named(name));
    let formerly = name.as_ref().filter(|_| named.is_none()).and_then(|name| hub.catalog.formerly(name));
    let cluster = match (&name, &shown) {
        (Some(name), _) => named
            .or_else(|| formerly.as_ref().map(|cluster| cluster.id.clone()))
            .or_else(|| name.as_str().parse().ok()),
        (None, Ok(Shown::Issued(issued))) => Some(issued.cluster().clone()),
        (None, _) => None,
    };
    let cluster = cluster.ok_or_else(|| Refusal::NotFound("there is no such cluster".to_owned()))?;
    let deadline = request_info::deadline(target.path(), target.query());
    let proxied = Proxied { cluster, target, verb, deadline, spelt: Some(spelt) };
    // Whoever shows nothing leaves no line: there is nobody to name, and no limit on how often they come.
    let shown = shown?;
    let info = RequestInfo::Proxy(proxied.clone());
    told.event = handle::open_event(hub, peer, &request, id, &info)?;
    let (who, standing) = identify(hub, shown, from, headers, &proxied.cluster, &mut told.event).await?;
    let answer = match formerly {
        Some(now) => Err(renamed(hub, &who, &proxied, &now).await),
        None => handle::proxy(hub, peer, &who, Some(standing), proxied, request, id, told).await,
    };
    answer.map_err(|refusal| {
        // By the name that was asked for: the id would tell that the cluster exists.
        if let (Refusal::ClusterForbidden(_, verb), Some(Ok(asked))) =
            (&refusal, name.as_ref().map(|name| name.as_str().parse()))
        {
            return Refusal::ClusterForbidden(asked, verb);
        }
        refusal
    })
}

/// An agent opens its tunnel here instead of through the parent's API server: believed by the parent's word on its token,
/// and let in by what it needs there.
async fn connect(
    hub: &Arc<Hub>,
    peer: &Peer,
    cluster: ClusterId,
    request: Request<Incoming>,
    id: &http::HeaderValue,
    event: &mut Event,
) -> Result<Response<ResponseBody>, Refusal> {
    if request.method() != http::Method::GET {
        return Err(Refusal::MethodNotAllowed("a tunnel is opened with GET".to_owned()));
    }
    authn::refuse_forged_headers(request.headers())?;
    let from = peer.address.ip();
    let shown = hub.own(bearer::token(request.headers())?, from).await?;
    *event = handle::open_event(hub, peer, &request, id, &RequestInfo::Attach(cluster.clone()))?;
    let Shown::Parents(token) = shown else {
        return Err(Refusal::Forbidden("the token of a kubeconfig opens no tunnel".to_owned()));
    };
    let _turn = accept::turn(hub).await?;
    // Before the parent is asked: its answer is as old as the question, and may take longer than what is left of the hold.
    let held = hub.catalog.get(&cluster).and_then(|cluster| hub.catalog.held(&cluster));
    let who = hub.tokens.fresh(&token, from).await?;
    event.who(&who);
    accept::attach(hub, &who, cluster, held, request).await
}

/// Gives the manifest of an invitation away, once, to whoever knows its address; HEAD only looks.
async fn manifest(
    hub: &Arc<Hub>,
    peer: &Peer,
    shown: &Secret,
    request: &Request<Incoming>,
    id: &http::HeaderValue,
    event: &mut Event,
) -> Result<Response<ResponseBody>, Refusal> {
    let only_look = request.method() == http::Method::HEAD;
    if !only_look && request.method() != http::Method::GET {
        return Err(Refusal::MethodNotAllowed("a manifest is fetched with GET".to_owned()));
    }
    let from = peer.address.ip();
    hub.tokens.failures.check(from)?;
    // The address is the secret: what stands in the audit log is the public id, if there is one.
    let public = one_time::public(shown).unwrap_or_else(|| one_time::PATH.to_owned());
    *event = hub.audit.open(Asked {
        id,
        verb: "get",
        uri: &public.parse().unwrap_or_default(),
        headers: request.headers(),
        resource: Resource::Access("clusterinvitations"),
        cluster: None,
        source: peer.client(request.headers()),
    })?;
    let fetched = hub.join.fetch(shown, only_look, || hub.tokens.failures.check(from)).await;
    if let Err(Refusal::NotFound(_)) = fetched {
        hub.tokens.failures.count(from);
    }
    let mut response = Response::new(ResponseBody::own(fetched?.reveal().to_owned()));
    for (name, value) in [
        (header::CONTENT_TYPE, "application/yaml"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        response.headers_mut().insert(name, http::HeaderValue::from_static(value));
    }
    Ok(response)
}

/// Whoever may use the cluster is told its new name; anybody else is answered as for a name that nobody has.
async fn renamed(hub: &Hub, who: &Arc<Identity>, proxied: &Proxied, now: &Cluster) -> Refusal {
    match Grant::ask(&hub.authz, who, &proxied.cluster, proxied.verb).await {
        Ok(_) => Refusal::NotFound(format!(
            "this cluster has another name now: {0}; ask for a new kubeconfig, or let the server of this one end in {1}{0} or {1}{2}",
            now.name,
            address::PATH,
            now.id
        )),
        Err(refusal) => refusal,
    }
}

/// A token that somebody showed.
enum Shown {
    /// Of the parent, or of nobody.
    Parents(Secret),
    /// Of the hub.
    Issued(Arc<Issued>),
}

impl Hub {
    /// Tells the hub's own tokens from the parent's.
    async fn own(&self, token: Secret, from: IpAddr) -> Result<Shown, Refusal> {
        if !token.reveal().starts_with(TOKEN_PREFIX) {
            self.tokens.check(&token, from).await?;
            return Ok(Shown::Parents(token));
        }
        let found = self.issued.find(&token, Timestamp::now());
        if let Err(Refusal::Unauthenticated(_)) = found {
            self.tokens.failures.check(from)?;
            self.tokens.failures.count(from);
        }
        found.map(Shown::Issued)
    }
}

/// For Prometheus, which has a token of the parent and is no aggregator. A token of the hub's own leads to a child's.
async fn own_state(
    hub: &Arc<Hub>,
    verb: &str,
    token: &Secret,
    request: &Request<Incoming>,
    from: IpAddr,
) -> Result<Response<ResponseBody>, Refusal> {
    if verb != "get" {
        return Err(Refusal::MethodNotAllowed("metrics and configuration are read with GET".to_owned()));
    }
    if Impersonation::read(request.headers())?.is_some() {
        return Err(Refusal::BadRequest("metrics and configuration are read as oneself".to_owned()));
    }
    let who = hub.tokens.identify(token, from).await?;
    let path = request.uri().path();
    handle::may_read(hub, &who, path).await?;
    Ok(if path == METRICS { handle::metrics(hub) } else { handle::configz(hub) })
}

/// For load balancers, which have no token.
fn is_health(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz" | "/healthz")
}

/// The caller, as themselves or as whom they may impersonate.
async fn identify(
    hub: &Arc<Hub>,
    shown: Shown,
    from: IpAddr,
    headers: &HeaderMap,
    cluster: &ClusterId,
    event: &mut Event,
) -> Result<(Arc<Identity>, Arc<Standing>), Refusal> {
    let impersonation = Impersonation::read(headers)?;
    let token = match shown {
        Shown::Parents(token) => token,
        Shown::Issued(issued) => {
            event.who(&issued.owner);
            event.credential(&issued.stored.id);
            if impersonation.is_some() {
                return Err(Refusal::Forbidden(
                    "this token is for one identity; it impersonates nobody".to_owned(),
                ));
            }
            if issued.cluster() != cluster {
                return Err(Refusal::Forbidden("this token is for another cluster".to_owned()));
            }
            return Ok((Arc::clone(&issued.owner), Arc::new(Standing::Issued(issued))));
        }
    };
    let owner = hub.tokens.identify(&token, from).await?;
    event.who(&owner);
    let who = match &impersonation {
        None => Arc::clone(&owner),
        Some(impersonation) => {
            if let Some(refused) = impersonation.refused(hub, &owner).await? {
                return Err(Refusal::Forbidden(refused));
            }
            event.impersonates(&impersonation.whom);
            Arc::clone(&impersonation.whom)
        }
    };
    Ok((who, Arc::new(Standing::Parents { token, owner, impersonation })))
}

/// Many a tool drops the path of a server's address somewhere: tell its user, instead of a bare 404.
async fn bare(hub: &Hub, token: &Secret, from: IpAddr) -> Result<Response<ResponseBody>, Refusal> {
    hub.tokens.identify(token, from).await?;
    let mut message = format!(
        "this address names no cluster: the server of a kubeconfig has to be this host with the path {}NAME",
        address::PATH
    );
    if let Some(domain) = hub.settings.gateway.as_ref().and_then(|gateway| gateway.domain.as_deref()) {
        message.push_str(&format!(", or https://NAME.{domain}"));
    }
    message.push_str("; for a tool that drops the path, ask for a kubeconfig with a token of its own");
    Err(Refusal::NotFound(message))
}
