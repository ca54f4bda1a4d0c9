//! Writes what is known of each cluster into its `ManagedCluster`: asks every agent behind a tunnel of this
//! replica, right after it connects and then every 15 s, and says within seconds when a tunnel is lost.
//!
//! Each replica speaks for its own tunnels. A loss is written by the replica that held the tunnel; a cluster
//! that nobody has heard of for longer than [`STALE`] is written by any. Before a loss is written, the object
//! is read again: if another replica has heard from the cluster meanwhile, there is nothing to say.
//! What the agent reports is its own word: cut, cleaned and shown, never acted upon.

pub mod conditions;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::cluster::{ManagedCluster, ManagedClusterStatus};
use api::names::ClusterId;
use api::report::AgentReport;
use api::status::printable;
use jiff::{SignedDuration, Timestamp};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use self::conditions::{Conflicting, Facts, status_of};
use super::{Control, catalog_is_filled};
use crate::catalog::Cluster;
use crate::join::has_code;
use crate::tunnels::{Live, Tunnels};

/// How often an agent is asked.
const ASK_EVERY: SignedDuration = SignedDuration::from_secs(15);
/// How often an unchanged status is written, so that `lastObservedTime` is true.
const WRITE_EVERY: SignedDuration = SignedDuration::from_secs(60);
/// How long a lost tunnel may take to come back before it is written: an agent's first try comes within one
/// second, and people are promised the truth within ten.
const LOSS_GRACE: SignedDuration = SignedDuration::from_secs(4);
/// No replica has heard from the cluster: two heartbeats missed, and half a minute for clocks.
const STALE: SignedDuration = SignedDuration::from_secs(150);
/// A check ends by then, whatever hangs: shorter than [`ASK_EVERY`], so checks of one cluster do not pile up.
const CHECK_TIMEOUT: Duration = Duration::from_secs(13);
/// How often due clusters are looked for: one pass over a table in memory.
const TICK: Duration = Duration::from_secs(1);
/// Most agents asked at once; each costs one stream and up to 64 KiB of report.
const MAX_ASKED: usize = 256;
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
    /// The loss was written, or found to be none.
    loss_told: bool,
}

/// What is to be done about a cluster now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Nothing,
    Ask,
    TellLoss,
}

/// Runs until stop.
pub(super) async fn run(control: Arc<Control>) -> anyhow::Result<()> {
    if !catalog_is_filled(&control).await {
        return Ok(());
    }
    let mut states: HashMap<ClusterId, State> = HashMap::new();
    let mut checks: JoinSet<(ClusterId, State)> = JoinSet::new();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tunnel_changes = control.tunnels.changes();
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
            _ = ticks.tick() => start_due(&control, &mut states, &mut checks),
            changed = tunnel_changes.changed() => {
                anyhow::ensure!(changed.is_ok(), "the tunnels are gone");
                start_due(&control, &mut states, &mut checks);
            }
        }
    }
}

/// Starts a check for each cluster that is due, and marks it as tried.
fn start_due(
    control: &Arc<Control>,
    states: &mut HashMap<ClusterId, State>,
    checks: &mut JoinSet<(ClusterId, State)>,
) {
    let now = Timestamp::now();
    let clusters = control.catalog.all();
    states.retain(|id, _| clusters.contains_key(id));
    for cluster in clusters.values() {
        if checks.len() >= MAX_ASKED {
            return;
        }
        let live = control.tunnels.get(&cluster.id);
        let state = states.entry(cluster.id.clone()).or_default();
        let tunnel = live.as_ref().map(|live| live.tunnel_id.as_str());
        let due = due(state, tunnel, control.tunnels.last_lost(&cluster.id), cluster.last_seen, now);
        if due == Due::Nothing {
            continue;
        }
        state.tried = Some(now);
        if let Some(tunnel) = tunnel {
            state.tunnel = Some(tunnel.to_owned());
            state.loss_told = false;
        }
        checks.spawn(check(Arc::clone(control), Arc::clone(cluster), live, state.clone()));
    }
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
        return Due::Nothing;
    }
    if let Some(lost) = lost {
        let over = now.duration_since(lost) >= LOSS_GRACE;
        let first = state.tried.is_none_or(|tried| tried <= lost + LOSS_GRACE);
        return if over && (first || rested) { Due::TellLoss } else { Due::Nothing };
    }
    let stale = last_seen.is_none_or(|seen| now.duration_since(seen) >= STALE);
    if stale && rested { Due::TellLoss } else { Due::Nothing }
}

async fn check(
    control: Arc<Control>,
    cluster: Arc<Cluster>,
    live: Option<Arc<Live>>,
    state: State,
) -> (ClusterId, State) {
    let id = cluster.id.clone();
    let before = state.clone();
    let checked = async {
        match live {
            Some(live) => tell_live(&control, &cluster, &live, state).await,
            None => tell_loss(&control, &cluster, state).await,
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
    cluster: &Cluster,
    live: &Live,
    mut state: State,
) -> Result<State, kube::Error> {
    let report = control
        .tunnels
        .agent_get(live, "/v1/status")
        .await
        .map_err(|error| error.to_string())
        .and_then(|body| {
            serde_json::from_slice::<AgentReport>(&body).map_err(|_| "its report cannot be read".to_owned())
        })
        .map(AgentReport::cleaned)
        .map_err(|error| printable(&error, 256));
    let now = Timestamp::now();
    let previous = match state.status.take() {
        Some(status) => status,
        None => match read(control, cluster).await? {
            Some(object) => object.status.unwrap_or_default(),
            None => return Ok(state),
        },
    };
    let facts = Facts::Live {
        tunnel: &live.tunnel_id,
        hub: &control.settings.hub_id,
        since: live.since,
        agent_version: &live.hello.agent_version,
        report: report.as_ref().map_err(String::as_str),
        conflict: conflict(&control.tunnels, &cluster.id, now),
    };
    let status = status_of(&previous, &facts, now);
    let changed = !same_but_observed(&previous, &status);
    let rested = state.written.is_none_or(|written| now.duration_since(written) >= WRITE_EVERY);
    if !changed && !rested {
        state.status = Some(previous);
        return Ok(state);
    }
    if write(control, cluster, &previous, &status).await? {
        state.status = Some(status);
        state.written = Some(now);
    }
    Ok(state)
}

async fn tell_loss(control: &Control, cluster: &Cluster, mut state: State) -> Result<State, kube::Error> {
    let Some(object) = read(control, cluster).await? else { return Ok(state) };
    let now = Timestamp::now();
    let previous = object.status.unwrap_or_default();
    let lost = control.tunnels.last_lost(&cluster.id);
    let seen = previous.last_observed_time.as_ref().map(|time| time.0);
    // Another replica holds a tunnel of it.
    let heard_elsewhere = match (seen, lost) {
        (Some(seen), Some(lost)) => seen > lost,
        (Some(seen), None) => now.duration_since(seen) < STALE,
        (None, _) => false,
    };
    state.status = None;
    if heard_elsewhere {
        // Looked at again once it is stale.
        return Ok(state);
    }
    let facts = Facts::Lost { since: lost.or(seen), denied: cluster.denied, hub: &control.settings.hub_id };
    let status = status_of(&previous, &facts, now);
    if same_but_observed(&previous, &status) || write(control, cluster, &previous, &status).await? {
        state.loss_told = true;
    }
    Ok(state)
}

fn conflict(tunnels: &Tunnels, id: &ClusterId, now: Timestamp) -> Option<Conflicting> {
    tunnels.conflict(id).filter(|conflict| now.duration_since(conflict.at) < CONFLICT_SHOWN).map(|conflict| {
        Conflicting { serving: printable(&conflict.serving, 100), refused: printable(&conflict.refused, 100) }
    })
}

async fn read(control: &Control, cluster: &Cluster) -> Result<Option<ManagedCluster>, kube::Error> {
    let clusters: Api<ManagedCluster> = Api::namespaced(control.client.clone(), &cluster.namespace);
    clusters.get_opt(cluster.name.as_str()).await
}

/// `false` if the cluster is gone.
async fn write(
    control: &Control,
    cluster: &Cluster,
    previous: &ManagedClusterStatus,
    status: &ManagedClusterStatus,
) -> Result<bool, kube::Error> {
    let clusters: Api<ManagedCluster> = Api::namespaced(control.client.clone(), &cluster.namespace);
    let patch = Patch::Merge(patch(previous, status));
    match clusters.patch_status(cluster.name.as_str(), &PatchParams::default(), &patch).await {
        Ok(_) => Ok(true),
        Err(error) if has_code(&error, 404) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A merge patch (RFC 7396): maps are merged, so what is gone from them has to be named. An empty text is gone
/// too: our types read both alike, and the validator of Kubernetes 1.20, built with a newer Go, takes an empty
/// string for null and refuses it (go-openapi/validate, `type.go`, compares with `reflect.Zero`).
fn patch(previous: &ManagedClusterStatus, status: &ManagedClusterStatus) -> Value {
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

fn same_but_observed(old: &ManagedClusterStatus, new: &ManagedClusterStatus) -> bool {
    ManagedClusterStatus { last_observed_time: new.last_observed_time.clone(), ..old.clone() } == *new
}

#[cfg(test)]
mod tests {
    use api::cluster::{PolicyRefusal, PolicyStatus};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_900_000_000 + second).unwrap()
    }

    fn asked(tunnel: &str, tried: i64) -> State {
        State { tunnel: Some(tunnel.to_owned()), tried: Some(at(tried)), ..State::default() }
    }

    #[test]
    fn a_new_tunnel_is_asked_at_once_and_an_old_one_every_15_seconds() {
        assert_eq!(due(&State::default(), Some("a"), None, None, at(0)), Due::Ask);
        assert_eq!(due(&asked("a", 0), Some("a"), None, None, at(14)), Due::Nothing);
        assert_eq!(due(&asked("a", 0), Some("a"), None, None, at(15)), Due::Ask);
        assert_eq!(due(&asked("a", 0), Some("b"), None, None, at(1)), Due::Ask);
    }

    #[test]
    fn a_loss_is_told_within_seconds_and_once() {
        let lost = Some(at(100));
        assert_eq!(due(&asked("a", 99), None, lost, Some(at(99)), at(103)), Due::Nothing, "it may come back");
        assert_eq!(due(&asked("a", 99), None, lost, Some(at(99)), at(104)), Due::TellLoss);
        assert_eq!(
            due(&asked("a", 101), None, lost, Some(at(99)), at(104)),
            Due::TellLoss,
            "whatever was tried before"
        );
        assert_eq!(due(&asked("a", 105), None, lost, Some(at(99)), at(106)), Due::Nothing, "it was tried");
        assert_eq!(due(&asked("a", 105), None, lost, Some(at(99)), at(120)), Due::TellLoss, "and failed");
        let told = State { loss_told: true, ..asked("a", 105) };
        assert_eq!(due(&told, None, lost, Some(at(99)), at(10_000)), Due::Nothing);
    }

    #[test]
    fn a_cluster_of_another_replica_is_left_alone_until_nobody_hears_of_it() {
        assert_eq!(due(&State::default(), None, None, Some(at(0)), at(149)), Due::Nothing);
        assert_eq!(due(&State::default(), None, None, Some(at(0)), at(150)), Due::TellLoss);
        assert_eq!(
            due(&State::default(), None, None, None, at(0)),
            Due::TellLoss,
            "one that never connected"
        );
    }

    #[test]
    fn a_patch_names_what_is_gone() {
        let with = |keys: &[&str]| ManagedClusterStatus {
            capacity: keys.iter().map(|key| ((*key).to_owned(), "1".to_owned())).collect(),
            ..ManagedClusterStatus::default()
        };
        let patch = patch(&with(&["cpu", "example.com/gpu"]), &with(&["cpu"]));
        assert_eq!(patch["status"]["capacity"], json!({ "cpu": "1", "example.com/gpu": null }));
        assert_eq!(patch["status"]["k8sVersion"], Value::Null, "empty");

        // An error that has passed is named too; inside a list, which is replaced as a whole, nothing is empty.
        let refusal = PolicyRefusal { user: "alice".to_owned(), ..PolicyRefusal::default() };
        let policy = PolicyStatus { last_refusals: vec![refusal], ..PolicyStatus::default() };
        let wrong = PolicyStatus { error: "line 3".to_owned(), ..policy.clone() };
        let status = |policy| ManagedClusterStatus { policy, ..ManagedClusterStatus::default() };
        let mended = super::patch(&status(Some(wrong)), &status(Some(policy.clone())));
        assert_eq!(mended["status"]["policy"].get("error"), Some(&Value::Null));
        assert_eq!(mended["status"]["policy"]["lastRefusals"], json!([{ "user": "alice" }]));
        let gone = super::patch(&status(Some(policy)), &status(None));
        assert_eq!(gone["status"].get("policy"), Some(&Value::Null));
    }
}
