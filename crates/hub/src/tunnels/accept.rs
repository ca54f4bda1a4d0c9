//! An agent opens its tunnel. Three things have to agree: the parent's RBAC (`create sockets/attach`, which
//! no read-only role holds), the account that the catalog records for this very cluster, and the cluster
//! that the agent says it serves. The parent authenticates only this one request, so all of it is asked
//! again for as long as the tunnel lives. A tunnel belongs to the key that the catalog had when it was let
//! in: once the cluster has another key, it is cut.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use api::identity::Identity;
use api::names::{AGENT_ACCOUNT, ClusterId};
use api::status::{Reason, Status};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use runtime::stop::Stop;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};
use tracing::Instrument as _;
use tunnel_proto::hub_side::{self, TunnelDriver, UpgradeRefusal};
use tunnel_proto::names::{HEADER_HUB_INSTANCE, HEADER_HUB_REPLICAS};
use tunnel_proto::{Hello, HelloRefusal, RefusalReason, TunnelError, Welcome, limits};

use crate::authz::Action;
use crate::body::ResponseBody;
use crate::catalog::Cluster;
use crate::handle::{self, Hub};
use crate::peers::link::Link;
use crate::queue::Turn;
use crate::refusal::Refusal;
use crate::tunnels::end::End;
use crate::tunnels::{Conflict, Live};

/// A hub that has just begun knows the clusters by then; the list of 10,000 takes the parent a second or two.
const CLUSTERS_KNOWN: Duration = Duration::from_secs(5);
/// An agent that holds a cluster's place has so long to prove that it lives, when another wants the place.
const PROOF_OF_LIFE: Duration = Duration::from_secs(5);

/// Waits until this hub can open one more tunnel. To be asked before the parent is asked anything.
///
/// # Errors
/// 503, with when to come again.
pub async fn turn(hub: &Hub) -> Result<Turn, Refusal> {
    if hub.phases.stopping.is_cancelled() {
        return Err(Refusal::Stopping);
    }
    let turn = hub.tunnels.openings.turn().await?;
    // To a hub that has not read which clusters there are, all of them are unknown; and an agent that is told so
    // believes that its credential has been taken away.
    let mut known = hub.catalog.changes();
    match timeout(CLUSTERS_KNOWN, known.wait_for(|generation| *generation > 0)).await {
        Ok(_) => Ok(turn),
        Err(_) => Err(Refusal::Starting),
    }
}

/// Answers `GET sockets/<id>/attach`: 101, and the tunnel runs on a task of its own. `held` is how long nobody might open
/// this tunnel yet when the caller's token was asked about, if that is not now.
///
/// # Errors
/// The caller is not the agent of this cluster, or the hub is stopping.
pub async fn attach(
    hub: &Arc<Hub>,
    who: &Arc<Identity>,
    id: ClusterId,
    held: Option<Duration>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Refusal> {
    if hub.phases.stopping.is_cancelled() {
        return Err(Refusal::Stopping);
    }
    let cluster = admit(hub, who, &id).await?;
    if let Some(rest) = hub.catalog.held(&cluster).or(held) {
        return Err(on_hold(&cluster, rest));
    }
    let (parts, body) = request.into_parts();
    let opened = match hub_side::upgrade_response(&parts) {
        Ok(opened) => opened,
        Err(refusal) => return Ok(not_an_upgrade(refusal)),
    };
    let upgrade = hyper::upgrade::on(Request::from_parts(parts, body));
    let span = tracing::info_span!("tunnel", cluster = %id);
    let run = run(Arc::clone(hub), cluster, Arc::clone(who), upgrade).instrument(span);
    hub.streams.spawn(run);
    let mut answer = opened.map(|()| ResponseBody::empty());
    name_replica(hub, answer.headers_mut());
    Ok(answer)
}

/// Tells the agent where it is and how many such places there are, so that it can spread its tunnels.
fn name_replica(hub: &Hub, headers: &mut HeaderMap) {
    if let Ok(instance) = HeaderValue::try_from(hub.settings.hub_id.as_str()) {
        headers.insert(HEADER_HUB_INSTANCE, instance);
    }
    headers.insert(HEADER_HUB_REPLICAS, HeaderValue::from(hub.peers.replicas()));
}

/// Whether this caller may hold this cluster's tunnel; the cluster as it was then.
async fn admit(hub: &Hub, who: &Arc<Identity>, id: &ClusterId) -> Result<Arc<Cluster>, Refusal> {
    let forbidden = || Refusal::ClusterForbidden(id.clone(), "attach");
    let action = Action::Socket { verb: "create", subresource: "attach", cluster: id.clone() };
    if !hub.authz.allowed(who, action).await? {
        return Err(forbidden());
    }
    let cluster = hub.catalog.get(id).ok_or_else(forbidden)?;
    if who.user() != format!("system:serviceaccount:{}:{AGENT_ACCOUNT}", cluster.namespace) {
        return Err(forbidden());
    }
    if cluster.denied {
        return Err(Refusal::Forbidden(format!("cluster {} has been shut out in the parent", cluster.name)));
    }
    Ok(cluster)
}

/// Whoever comes now may be the agent of the former key.
fn on_hold(cluster: &Cluster, rest: Duration) -> Refusal {
    let seconds = u32::try_from(rest.as_secs() + 1).unwrap_or(u32::MAX);
    let message =
        format!("cluster {} got another key moments ago; its agent may connect in {seconds} s", cluster.name);
    Status::new(StatusCode::SERVICE_UNAVAILABLE, Reason::ServiceUnavailable, message)
        .retry_after(seconds)
        .into()
}

/// Why a tunnel that was let in with this key may no longer stand.
fn revoked(hub: &Hub, id: &ClusterId, key: &str) -> Option<End> {
    match hub.catalog.get(id) {
        None => Some(End::Unregistered),
        Some(cluster) if cluster.denied => Some(End::ShutOut),
        Some(cluster) if cluster.key_fingerprint != key => Some(End::Rekeyed),
        Some(_) => None,
    }
}

fn not_an_upgrade(refusal: UpgradeRefusal) -> Response<ResponseBody> {
    let status = Status::new(refusal.status(), Reason::BadRequest, refusal.to_string());
    let mut response = handle::respond(&status);
    if let Some((name, value)) = refusal.header() {
        response.headers_mut().insert(name, value);
    }
    response
}

/// The life of a tunnel.
async fn run(hub: Arc<Hub>, cluster: Arc<Cluster>, who: Arc<Identity>, upgrade: OnUpgrade) {
    let id = cluster.id.clone();
    let io = match timeout(limits::HELLO_TIMEOUT, upgrade).await {
        Ok(Ok(io)) => TokioIo::new(io),
        Ok(Err(error)) => return tracing::debug!(%error, "the agent was gone before the upgrade"),
        Err(_) => return tracing::debug!("the upgrade did not happen in time"),
    };
    let tunnel_id = handle::random_id();
    let mut conflict = None;
    let accepted = hub_side::accept(io, |hello| welcome(&hub, &id, &tunnel_id, hello, &mut conflict)).await;
    if let Some((agent, rival)) = conflict {
        rival.settle(&hub, &id, &agent).await;
    }
    let (hello, tunnel, driver) = match accepted {
        Ok(accepted) => accepted,
        // It has a tunnel here already, and wants one at each of two replicas.
        Err(error @ TunnelError::ClosedInHello) => {
            return tracing::debug!(error = %chain(&error), "a tunnel was not opened");
        }
        Err(error) => return tracing::warn!(error = %chain(&error), "a tunnel was not opened"),
    };
    let live = Arc::new(Live {
        cluster: id.clone(),
        key: cluster.key_fingerprint.clone(),
        hello,
        tunnel_id,
        since: Timestamp::now(),
        renewed: std::sync::Mutex::default(),
        tunnel,
        cut: Stop::new(),
        end: std::sync::OnceLock::new(),
    });
    let entered = match hub.tunnels.insert(Arc::clone(&live)) {
        Ok(entered) => entered,
        Err(conflict) => return tracing::warn!(?conflict, "a tunnel was not opened"),
    };
    // The catalog may have changed since it was let in, and nobody looked at a tunnel that was not entered yet.
    if let Some(end) = revoked(&hub, &id, &live.key) {
        hub.metrics.tunnel_ended(end.as_str());
        return tracing::info!(
            tunnel = live.tunnel_id,
            reason = end.as_str(),
            "a tunnel was not opened: {end} meanwhile"
        );
    }
    tracing::info!(
        tunnel = live.tunnel_id,
        instance = live.hello.instance,
        agent_version = live.hello.agent_version,
        "a tunnel is open"
    );
    let (end, why) = carry(&hub, &who, &live, driver).await;
    drop(entered);
    hub.metrics.tunnel_ended(end.as_str());
    tracing::info!(tunnel = live.tunnel_id, reason = end.as_str(), why, "a tunnel has ended");
}

/// The answer to a hello. The id in it is compared, never believed.
fn welcome(
    hub: &Hub,
    id: &ClusterId,
    tunnel_id: &str,
    hello: &Hello,
    conflict: &mut Option<(String, Rival)>,
) -> Result<Welcome, HelloRefusal> {
    if hello.cluster_id != id.as_str() {
        return Err(HelloRefusal::new(
            RefusalReason::WrongCluster,
            &format!("the agent serves cluster {} but its credential belongs to {id}", hello.cluster_id),
        ));
    }
    if let Some((serving, rival)) = rival(hub, id, &hello.instance) {
        let message = format!(
            "agent {serving} already serves this cluster; if this is a copy of it, register it with an invitation of its own"
        );
        *conflict = Some((hello.instance.clone(), rival));
        return Err(HelloRefusal::new(RefusalReason::Conflict, &message));
    }
    Welcome::answering(hello, tunnel_id, hub.settings.hub_id.as_str(), env!("CARGO_PKG_VERSION"))
}

/// Where the agent is whose place another one wants.
enum Rival {
    Here,
    /// At another replica.
    There(Arc<Link>),
}

/// The agent that already serves this cluster, if that is another one and has not named this one as its successor.
fn rival(hub: &Hub, id: &ClusterId, agent: &str) -> Option<(String, Rival)> {
    if let Err(Conflict { serving, .. }) = hub.tunnels.admit(id, agent) {
        return Some((serving, Rival::Here));
    }
    if hub.tunnels.is_successor(id, agent) {
        return None;
    }
    let (link, serving) = hub.peers.rival(id, agent)?;
    Some((serving, Rival::There(link)))
}

impl Rival {
    async fn settle(self, hub: &Hub, id: &ClusterId, agent: &str) {
        match self {
            Self::Here => _ = settle(hub, id, agent).await,
            Self::There(link) => {
                if link.tell_conflict(id, agent).await {
                    hub.tunnels.name_successor(id, agent);
                }
            }
        }
    }
}

/// Another agent process wants the place, and will dial again; the one that has it is asked about it. It may call that one
/// its successor, which only a process in the same cluster can be. Or it may be dead without a word (its node lost power),
/// which keep-alive would tell in half a minute, and a question tells at once. Tells whether the place is the other one's.
pub(crate) async fn settle(hub: &Hub, id: &ClusterId, instance: &str) -> bool {
    let Some(live) = hub.tunnels.get(id) else { return false };
    let asked = timeout(PROOF_OF_LIFE, live.vouches_for(instance)).await;
    if let Ok(Ok(true)) = asked {
        tracing::info!(tunnel = live.tunnel_id, instance, "the agent names its successor");
        hub.tunnels.name_successor(id, instance);
        return true;
    }
    if asked.is_err() {
        tracing::warn!(
            tunnel = live.tunnel_id,
            "the agent that held the tunnel is silent; its place is free"
        );
        live.cut(End::Silent);
    }
    false
}

/// Keeps the tunnel going until it ends, and tells why it did.
async fn carry(
    hub: &Arc<Hub>,
    who: &Arc<Identity>,
    live: &Arc<Live>,
    mut driver: TunnelDriver,
) -> (End, String) {
    let limits = hub.running.limits();
    let mut recheck = interval_at(Instant::now() + limits.recheck, limits.recheck);
    recheck.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Between three quarters of it and all of it: agents that came together do not go together.
    let mut old = pin!(sleep(limits.tunnel_age.mul_f64(1.0 - rand::random::<f64>() / 4.0)));
    let (mut stopping, mut closing, mut aged) = (false, false, false);
    loop {
        tokio::select! {
            biased;
            () = live.cut.cancelled() => return told(live.end.get().copied().unwrap_or(End::Silent)),
            () = hub.phases.cut.cancelled() => return told(End::Shutdown),
            ended = &mut driver => return match ended {
                Ok(()) => told(match live.end.get() {
                    Some(End::Replaced) if aged => End::Aged,
                    Some(end) => *end,
                    None => End::Goaway,
                }),
                Err(error) => (End::from(error.cause()), chain(&error)),
            },
            () = hub.phases.stopping.cancelled(), if !stopping => {
                stopping = true;
                // First, and while everything goes on: the next tunnel shall stand elsewhere before this one takes no
                // more. Not all agents at once. Not awaited here: it is this task that moves the tunnel's bytes.
                let (spread, live) = (hub.settings.shutdown_delay / 2, Arc::clone(live));
                hub.streams.spawn(async move {
                    sleep(spread.mul_f64(rand::random())).await;
                    live.say_goaway().await;
                });
            }
            () = hub.phases.closing.cancelled(), if !closing => {
                closing = true;
                hub.tunnels.leave(live);
            }
            () = old.as_mut(), if !aged => {
                aged = true;
                tracing::debug!("the tunnel is old; its agent is asked for another one");
                let live = Arc::clone(live);
                // It goes on serving: the next one closes it when it takes its place.
                hub.streams.spawn(async move { live.say_goaway().await });
            }
            _ = recheck.tick() => {
                if let Some(end) = revoked(hub, &live.cluster, &live.key) {
                    return told(end);
                }
                // An authorizer that does not answer takes no tunnel away.
                if let Err(refusal @ (Refusal::ClusterForbidden(..) | Refusal::Forbidden(_))) = admit(hub, who, &live.cluster).await {
                    return (End::Forbidden, format!("{}: {refusal}", End::Forbidden));
                }
            }
        }
    }
}

fn told(end: End) -> (End, String) {
    (end, end.to_string())
}

/// An error with what caused it.
fn chain(error: &TunnelError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
