//! Writes what is known of each cluster into its `ManagedCluster`: asks every agent behind a tunnel of this
//! replica, right after it connects and then every 15 s, and says within seconds when a tunnel is lost.
//!
//! Each replica speaks for its own tunnels; of several that hold one of a cluster, the one whose name comes first does. A
//! loss is written by the replica that leads, when no replica holds a tunnel any more, also one that nobody has heard of
//! for longer than [`STALE`]. Before a loss is written, the object is read again: if a replica that this one does not
//! see has heard from the cluster meanwhile, there is nothing to say.
//! What the agent reports is its own word: cut, cleaned and shown, never acted upon. What a person would ask about is
//! told in Events, by whoever wrote the transition.

pub mod conditions;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::cluster::{ManagedCluster, ManagedClusterStatus};
use api::names::ClusterId;
use api::report::AgentReport;
use api::status::printable;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use self::conditions::{Conflicting, CredentialLife, Facts, Known, same_but_measured, status_of};
use super::events::{Story, reference};
use super::{Control, catalog_is_filled};
use crate::catalog::{Cluster, same_but_seen};
use crate::join::has_code;
use crate::join::registration::CREDENTIAL_SECONDS;
use crate::tunnels::{Live, Renewed, Tunnels};

/// How often an agent is asked.
const ASK_EVERY: SignedDuration = SignedDuration::from_secs(15);
/// How often an unchanged status is written, so that `lastObservedTime` is true.
const WRITE_EVERY: SignedDuration = SignedDuration::from_secs(60);
/// How long a lost tunnel may take to come back before it is written: an agent's first try comes within one
/// second, and people are promised the truth within ten.
const LOSS_GRACE: SignedDuration = SignedDuration::from_secs(4);
/// A loss that could not be written is tried again so soon, for as long as people wait for it; then with the others.
const LOSS_RETRY: SignedDuration = SignedDuration::from_secs(2);
/// See [`LOSS_RETRY`].
const LOSS_HURRY: SignedDuration = SignedDuration::from_secs(30);
/// A credential that lives for a day should have been renewed when this much of it is left.
const CREDENTIAL_WARN: SignedDuration = SignedDuration::from_secs(CREDENTIAL_SECONDS / 4);
/// A hub that has just got a tunnel renews an old credential within so long: until then it warns of none.
const FIRST_RENEWAL: SignedDuration = SignedDuration::from_mins(5);
/// No replica has heard from the cluster: two heartbeats missed, and half a minute for clocks.
const STALE: SignedDuration = SignedDuration::from_secs(150);
/// A check ends by then, whatever hangs: shorter than [`ASK_EVERY`], so checks of one cluster do not pile up.
const CHECK_TIMEOUT: Duration = Duration::from_secs(13);
/// How often due clusters are looked for: one pass over a table in memory.
const TICK: Duration = Duration::from_secs(1);
/// Most agents asked at once; each costs one stream and up to 64 KiB of report.
const MAX_ASKED: usize = 256;
/// The same while agents wait for their tunnels, as after a restart: each costs the parent a read and a write of the
/// status, the dearest of all that is asked of it then, and tells what the object says already.
const MAX_ASKED_MEANWHILE: usize = 1;
/// A conflict is shown so long after the other agent last tried.
const CONFLICT_SHOWN: SignedDuration = SignedDuration::from_mins(5);

/// What this replica did last about a cluster. About 2 KiB each, most of it the status.
#[derive(Debug, Clone, Default, PartialEq)]
struct State {
    /// The tunnel through which it was asked last.
    tunnel: Option<String>,
    /// When something was last tried.
    tried: Option<Timestamp>,
    /// When the status was last written.
    written: Option<Timestamp>,
    /// What was written.
    status: Option<ManagedClusterStatus>,
    /// What that was judged by.
    object: Option<Object>,
    /// The loss was written, or found to be none.
    loss_told: bool,
    /// When something about a lost cluster changes by time alone.
    look_again: Option<Timestamp>,
}

/// The object that a status belongs to.
#[derive(Debug, Clone, PartialEq)]
struct Object {
    /// As the catalog had it.
    cluster: Arc<Cluster>,
    reference: ObjectReference,
    generation: Option<i64>,
    /// What a write is based on: one that comes late changes nothing that was written after it was begun.
    version: Option<String>,
}

impl Object {
    fn of(cluster: &Arc<Cluster>, object: &ManagedCluster) -> Self {
        Self {
            cluster: Arc::clone(cluster),
            reference: reference(object),
            generation: object.metadata.generation,
            version: object.metadata.resource_version.clone(),
        }
    }
}

/// What is to be done about a cluster now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Nothing,
    Ask,
    TellLoss,
}

/// Runs until stop.
pub(super) async fn run(control: Arc<Control>, story: Story) -> anyhow::Result<()> {
    if !catalog_is_filled(&control).await {
        return Ok(());
    }
    let mut states: HashMap<ClusterId, State> = HashMap::new();
    let mut checks: JoinSet<(ClusterId, State)> = JoinSet::new();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tunnel_changes = control.tunnels.changes();
    let mut peer_changes = control.peers.changes();
    loop {
        tokio::select! {
            biased;
            () = control.stop.cancelled() => return Ok(()),
            Some(done) = checks.join_next() => {
                // One that panicked left its mark in the table: it is tried again when due.
                if let Ok((id, state)) = done && states.get(&id).is_some_and(|marked| marked.tried == state.tried) {
                    states.insert(id, state);
                }
            }
            _ = ticks.tick() => start_due(&control, &story, &mut states, &mut checks, Timestamp::now()),
            changed = tunnel_changes.changed() => {
                anyhow::ensure!(changed.is_ok(), "the tunnels are gone");
                // Of thousands that come one after the other, the next tick finds all.
                if !control.tunnels.openings.are_waiting() {
                    start_due(&control, &story, &mut states, &mut checks, Timestamp::now());
                }
            }
            changed = peer_changes.changed() => {
                anyhow::ensure!(changed.is_ok(), "the other replicas are gone");
                start_due(&control, &story, &mut states, &mut checks, Timestamp::now());
            }
        }
    }
}

/// Starts a check for each cluster that is due, and marks it as tried.
fn start_due(
    control: &Arc<Control>,
    story: &Story,
    states: &mut HashMap<ClusterId, State>,
    checks: &mut JoinSet<(ClusterId, State)>,
    now: Timestamp,
) {
    let clusters = control.catalog.all();
    let leads = *control.leading.borrow();
    let most = if control.tunnels.openings.are_waiting() { MAX_ASKED_MEANWHILE } else { MAX_ASKED };
    states.retain(|id, _| clusters.contains_key(id));
    for cluster in clusters.values() {
        if checks.len() >= most {
            return;
        }
        let live = control.tunnels.get(&cluster.id);
        if said_elsewhere(control, &cluster.id, live.is_some(), leads) {
            // What this replica knew of its status, is not known any more.
            states.remove(&cluster.id);
            continue;
        }
        let state = states.entry(cluster.id.clone()).or_default();
        let tunnel = live.as_ref().map(|live| live.tunnel_id.as_str());
        if state.object.take_if(|object| !same_but_seen(&object.cluster, cluster)).is_some() {
            // Shut out, let in, renamed, another key: whatever was told was told of something else.
            (state.tried, state.loss_told) = (None, false);
        }
        let due = due(state, tunnel, last_lost(control, &cluster.id), cluster.last_seen, now);
        if due == Due::Nothing {
            continue;
        }
        state.tried = Some(now);
        if let Some(tunnel) = tunnel {
            state.tunnel = Some(tunnel.to_owned());
            state.loss_told = false;
        }
        let about = (Arc::clone(cluster), live);
        checks.spawn(check(Arc::clone(control), story.clone(), about, state.clone(), now));
    }
}

/// Whether it is not for this replica to say anything of the cluster.
fn said_elsewhere(control: &Control, id: &ClusterId, here: bool, leads: bool) -> bool {
    if here { control.peers.speak_for(id) } else { !leads || control.peers.hold(id) }
}

/// When the last tunnel of the cluster was lost, at whichever replica it was.
fn last_lost(control: &Control, id: &ClusterId) -> Option<Timestamp> {
    control.tunnels.last_lost(id).max(control.peers.last_lost(id))
}

fn due(
    state: &State,
    tunnel: Option<&str>,
    lost: Option<Timestamp>,
    last_seen: Option<Timestamp>,
    now: Timestamp,
) -> Due {
    let since_tried = state.tried.map(|tried| now.duration_since(tried));
    let rested = since_tried.is_none_or(|since| since >= ASK_EVERY);
    if tunnel.is_some() {
        return if rested || state.tunnel.as_deref() != tunnel { Due::Ask } else { Due::Nothing };
    }
    if state.loss_told {
        let again = rested && state.look_again.is_some_and(|at| at <= now);
        return if again { Due::TellLoss } else { Due::Nothing };
    }
    if let Some(lost) = lost {
        let since = now.duration_since(lost);
        let pause = if since < LOSS_HURRY { LOSS_RETRY } else { ASK_EVERY };
        let first = state.tried.is_none_or(|tried| tried < lost + LOSS_GRACE);
        let rested = since_tried.is_none_or(|since| since >= pause);
        return if since >= LOSS_GRACE && (first || rested) { Due::TellLoss } else { Due::Nothing };
    }
    let stale = last_seen.is_none_or(|seen| now.duration_since(seen) >= STALE);
    if stale && rested { Due::TellLoss } else { Due::Nothing }
}

async fn check(
    control: Arc<Control>,
    story: Story,
    (cluster, live): (Arc<Cluster>, Option<Arc<Live>>),
    state: State,
    now: Timestamp,
) -> (ClusterId, State) {
    let id = cluster.id.clone();
    let before = state.clone();
    let checked = async {
        match live {
            Some(live) => tell_live(&control, &story, &cluster, &live, state).await,
            None => tell_loss(&control, &story, &cluster, state, now).await,
        }
    };
    let state = match tokio::time::timeout(CHECK_TIMEOUT, checked).await {
        Ok(Ok(state)) => state,
        Ok(Err(error)) => {
            tracing::warn!(cluster = %id, %error, "the cluster's status could not be written; trying again");
            before
        }
        Err(_) => {
            tracing::warn!(cluster = %id, "the cluster's status could not be written in time; trying again");
            before
        }
    };
    (id, state)
}

async fn tell_live(
    control: &Control,
    story: &Story,
    cluster: &Arc<Cluster>,
    live: &Live,
    mut state: State,
) -> Result<State, kube::Error> {
    let report = control
        .tunnels
        .agent_status(live, control.peers.replicas())
        .await
        .map_err(|error| error.to_string())
        .and_then(|body| {
            serde_json::from_slice::<AgentReport>(&body).map_err(|_| "its report cannot be read".to_owned())
        })
        .map(AgentReport::cleaned)
        .map_err(|error| printable(&error, 256));
    // Whoever does not say how it is need not be asked how far away it is.
    let rtt = if report.is_ok() { live.round_trip().await } else { None };
    let now = Timestamp::now();
    let facts = Facts::Live {
        tunnel: &live.tunnel_id,
        since: live.since,
        rtt,
        agent_version: &live.hello.agent_version,
        report: report.as_ref().map_err(String::as_str),
        conflict: conflict(&control.tunnels, &cluster.id, now),
    };
    let credential = credential(live.last_renewed(), live.hello.credential_expires, live.since);
    for last in [false, true] {
        if control.tunnels.get(&cluster.id).is_none_or(|current| current.tunnel_id != live.tunnel_id) {
            // It has ended while its agent was asked: the next check says so.
            return Ok(state);
        }
        let (previous, object) = match (state.status.take(), state.object.take()) {
            (Some(status), Some(object)) => (status, object),
            _ => match read(control, cluster).await? {
                Some(there) => {
                    let object = Object::of(cluster, &there);
                    (there.status.unwrap_or_default(), object)
                }
                None => return Ok(state),
            },
        };
        let status = status_of(&previous, &known(control, &object, credential), &facts, now);
        let rested = state.written.is_none_or(|written| now.duration_since(written) >= WRITE_EVERY);
        if same_but_measured(&previous, &status) && !rested {
            (state.status, state.object) = (Some(previous), Some(object));
            return Ok(state);
        }
        match write(control, cluster, &object, &previous, &status).await {
            Ok(None) => return Ok(state),
            Ok(Some(written)) => {
                story.tell_changes(&object.reference, &previous.conditions, &status.conditions);
                state.status = Some(status);
                // Judged by another generation: it is read again next time.
                let same = written.metadata.generation == object.generation;
                state.object = same.then(|| Object::of(cluster, &written));
                state.written = Some(now);
                return Ok(state);
            }
            // Somebody else has written: read again, and judged anew.
            Err(error) if has_code(&error, 409) && !last => {}
            Err(error) => return Err(error),
        }
    }
    Ok(state)
}

async fn tell_loss(
    control: &Control,
    story: &Story,
    cluster: &Arc<Cluster>,
    mut state: State,
    now: Timestamp,
) -> Result<State, kube::Error> {
    let Some(there) = read(control, cluster).await? else { return Ok(state) };
    let object = Object::of(cluster, &there);
    let previous = there.status.unwrap_or_default();
    let lost = last_lost(control, &cluster.id);
    let seen = previous.last_observed_time.as_ref().map(|time| time.0);
    // Another replica holds a tunnel of it.
    let heard_elsewhere = match (seen, lost) {
        (Some(seen), Some(lost)) => seen > lost && now.duration_since(seen) < STALE,
        (Some(seen), None) => now.duration_since(seen) < STALE,
        (None, _) => false,
    };
    state.status = None;
    if heard_elsewhere {
        // Looked at again once it is stale.
        return Ok(state);
    }
    let credential = previous
        .credential_expiration_time
        .as_ref()
        .map(|time| CredentialLife { expires: time.0, warn_from: time.0 - CREDENTIAL_WARN });
    let facts = Facts::Lost { since: lost.or(seen) };
    let status = status_of(&previous, &known(control, &object, credential), &facts, now);
    if same_but_measured(&previous, &status) {
        state.loss_told = true;
    } else if said_elsewhere(
        control,
        &cluster.id,
        control.tunnels.get(&cluster.id).is_some(),
        *control.leading.borrow(),
    ) {
        // While it was read.
        return Ok(state);
    } else if write(control, cluster, &object, &previous, &status).await?.is_some() {
        story.tell_changes(&object.reference, &previous.conditions, &status.conditions);
        state.loss_told = true;
    }
    let turns = credential.into_iter().flat_map(|credential| [credential.warn_from, credential.expires]);
    state.look_again = turns.filter(|turn| *turn > now).min();
    state.object = Some(object);
    Ok(state)
}

fn known<'a>(control: &'a Control, object: &'a Object, credential: Option<CredentialLife>) -> Known<'a> {
    Known {
        generation: object.generation,
        name: object.cluster.name.as_str(),
        key: &object.cluster.key_fingerprint,
        denied: object.cluster.denied,
        credential,
        hub: &control.settings.hub_id,
        hub_version: env!("CARGO_PKG_VERSION"),
    }
}

/// An agent's credential: what it was handed in this tunnel, or what it says of the one that it came with, which cannot
/// end later than one that was given at that moment.
fn credential(renewed: Option<Renewed>, said: Option<Timestamp>, since: Timestamp) -> Option<CredentialLife> {
    if let Some(Renewed { at, expires }) = renewed {
        let life = expires.duration_since(at).max(SignedDuration::ZERO);
        return Some(CredentialLife { expires, warn_from: expires - life / 4 });
    }
    let expires = said?.min(since + SignedDuration::from_secs(CREDENTIAL_SECONDS));
    Some(CredentialLife { expires, warn_from: (expires - CREDENTIAL_WARN).max(since + FIRST_RENEWAL) })
}

fn conflict(tunnels: &Tunnels, id: &ClusterId, now: Timestamp) -> Option<Conflicting> {
    let conflict = tunnels.conflict(id)?;
    let shown = conflict.times > 1 && now.duration_since(conflict.at) < CONFLICT_SHOWN;
    shown.then(|| Conflicting {
        serving: printable(&conflict.serving, 100),
        refused: printable(&conflict.refused, 100),
    })
}

async fn read(control: &Control, cluster: &Cluster) -> Result<Option<ManagedCluster>, kube::Error> {
    let clusters: Api<ManagedCluster> = Api::namespaced(control.client.clone(), &cluster.namespace);
    clusters.get_opt(cluster.name.as_str()).await
}

/// What is there now, or `None` if the cluster is gone; 409 if it was changed after `object` was read.
async fn write(
    control: &Control,
    cluster: &Cluster,
    object: &Object,
    previous: &ManagedClusterStatus,
    status: &ManagedClusterStatus,
) -> Result<Option<ManagedCluster>, kube::Error> {
    let clusters: Api<ManagedCluster> = Api::namespaced(control.client.clone(), &cluster.namespace);
    let mut patch = patch(previous, status);
    patch["metadata"] = json!({ "resourceVersion": object.version });
    match clusters.patch_status(cluster.name.as_str(), &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(written) => Ok(Some(written)),
        Err(error) if has_code(&error, 404) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A merge patch (RFC 7396): maps are merged, so what is gone from them has to be named. An empty text is gone
/// too: our types read both alike, and the validator of Kubernetes 1.20, built with a newer Go, takes an empty
/// string for null and refuses it (go-openapi/validate, `type.go`, compares with `reflect.Zero`).
pub(super) fn patch(previous: &ManagedClusterStatus, status: &ManagedClusterStatus) -> Value {
    let mut new = json!(status);
    for (field, old, kept) in [
        ("capacity", &previous.capacity, &status.capacity),
        ("allocatable", &previous.allocatable, &status.allocatable),
    ] {
        for key in old.keys().filter(|key| !kept.contains_key(*key)) {
            new[field][key] = Value::Null;
        }
    }
    remove_empty_texts(&mut new);
    json!({ "status": new })
}

fn remove_empty_texts(value: &mut Value) {
    for field in value.as_object_mut().into_iter().flat_map(serde_json::Map::values_mut) {
        if field.as_str() == Some("") {
            *field = Value::Null;
        }
        remove_empty_texts(field);
    }
}

#[cfg(test)]
mod tests;
