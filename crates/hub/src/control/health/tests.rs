//! When a cluster is asked, when its loss is told, and what stands in the object then.

use api::cluster::{PolicyRefusal, PolicyStatus, TunnelStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use runtime::stop::Stop;

use super::super::events;
use super::super::fake_api::{FakeApi, Reaction};
use super::super::objects::dedicated_namespace;
use super::*;
use crate::catalog::Catalog;
use crate::config::Settings;
use crate::tunnels::tests::pair_with_key;

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
    assert_eq!(due(&State::default(), None, None, None, at(0)), Due::TellLoss, "one that never connected");
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

#[test]
fn a_loss_is_in_the_object_within_ten_seconds_even_if_the_first_write_fails() {
    // Ticks come each second, at any moment of it; a write that fails does so at once.
    for failing in 0..=2 {
        for phase in 0..10 {
            let lost = at(100) + SignedDuration::from_millis(phase * 100);
            let (mut state, mut failed, mut written) = (asked("a", 99), 0, None);
            for second in 100..130 {
                if due(&state, None, Some(lost), Some(at(95)), at(second)) != Due::TellLoss {
                    continue;
                }
                state.tried = Some(at(second));
                if failed < failing {
                    failed += 1;
                    continue;
                }
                written = Some(at(second));
                break;
            }
            let took = written.unwrap().duration_since(lost);
            assert!(took >= LOSS_GRACE && took < SignedDuration::from_secs(10), "{failing} {phase}: {took}");
        }
    }
}

#[test]
fn a_lost_cluster_is_looked_at_again_when_its_credential_ends() {
    let told = |look_again| State { loss_told: true, look_again, ..asked("a", 105) };
    let due = |state: &State, now| due(state, None, Some(at(100)), Some(at(99)), at(now));
    assert_eq!(due(&told(None), 10_000_000), Due::Nothing);
    assert_eq!(due(&told(Some(at(500))), 499), Due::Nothing);
    assert_eq!(due(&told(Some(at(500))), 500), Due::TellLoss);
}

#[test]
fn the_hub_believes_its_own_credentials_and_agents_no_longer_than_a_day() {
    let since = at(0);
    let day = SignedDuration::from_hours(24);
    let said = credential(None, Some(at(3600)), since).unwrap();
    assert_eq!((said.expires, said.warn_from), (at(3600), at(300)), "a tunnel just opened warns of nothing");
    let boasted = credential(None, Some(at(1_000_000_000)), since).unwrap();
    assert_eq!((boasted.expires, boasted.warn_from), (since + day, since + day - CREDENTIAL_WARN));
    let renewed = Some(Renewed { at: at(100), expires: at(3700) });
    let own = credential(renewed, Some(at(1_000_000_000)), since).unwrap();
    assert_eq!((own.expires, own.warn_from), (at(3700), at(2800)), "a quarter of its life");
    assert_eq!(credential(None, None, since), None);
}

const EDGE: &str = "c1";

fn object_path() -> String {
    let space = dedicated_namespace(&EDGE.parse().unwrap());
    format!("/apis/clusters.clusternet.io/v1beta1/namespaces/{space}/managedclusters/edge")
}

fn edge(denied: bool) -> Cluster {
    Cluster {
        id: EDGE.parse().unwrap(),
        name: "edge".parse().unwrap(),
        namespace: dedicated_namespace(&EDGE.parse().unwrap()),
        key_fingerprint: "k".to_owned(),
        denied,
        last_seen: None,
    }
}

/// A parent with one cluster that was well when it was last heard of.
async fn world() -> (FakeApi, Arc<Control>) {
    let api = FakeApi::start().await;
    let condition = |type_: &str| {
        json!({ "type": type_, "status": "True", "reason": "Was", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z" })
    };
    let tunnel = TunnelStatus { rtt: "9ms".to_owned(), since: Some(Time(at(0))), ..TunnelStatus::default() };
    let conditions =
        ["Ready", "Registered", "TunnelConnected", "APIServerReachable", "PolicyInForce"].map(condition);
    api.put(
        &object_path(),
        &json!({
            "apiVersion": "clusters.clusternet.io/v1beta1", "kind": "ManagedCluster", "metadata": {},
            "spec": { "clusterId": EDGE, "keyFingerprint": "k" },
            "status": { "conditions": conditions, "healthz": true, "tunnel": tunnel,
                        "policy": { "source": "default" }, "lastReportTime": "2026-01-01T00:00:00Z" },
        }),
    );
    let control = Control {
        client: api.client(),
        catalog: Arc::new(Catalog::default()),
        tunnels: Arc::new(Tunnels::default()),
        peers: crate::control::fake_api::no_peers(),
        leading: crate::control::fake_api::always_leading(),
        settings: Arc::new(Settings::default()),
        stop: Stop::new(),
    };
    control.catalog.replace([edge(false)]);
    (api, Arc::new(control))
}

fn condition(api: &FakeApi, type_: &str) -> Value {
    let object = api.get(&object_path()).unwrap();
    let all = object["status"]["conditions"].as_array().unwrap();
    all.iter().find(|condition| condition["type"] == type_).cloned().unwrap_or_default()
}

#[tokio::test]
async fn a_lost_tunnel_leaves_nothing_as_current_truth() {
    let (api, control) = world().await;
    let pair = pair_with_key(EDGE, "a", "k").await;
    drop(control.tunnels.insert(Arc::clone(&pair.live)).unwrap());
    let lost = control.tunnels.last_lost(&EDGE.parse().unwrap()).unwrap();
    let (story, mut remarks) = events::story();
    let (mut states, mut checks) = (HashMap::new(), JoinSet::new());
    let mut pass = async |after: i64| {
        start_due(&control, &story, &mut states, &mut checks, lost + SignedDuration::from_secs(after));
        let checked = checks.len();
        while let Some(done) = checks.join_next().await {
            let (id, state) = done.unwrap();
            states.insert(id, state);
        }
        checked
    };
    assert_eq!(pass(3).await, 0, "it may come back");
    // The parent fails once.
    let mut failures = 1;
    api.hook(move |_, line| {
        if line.starts_with("PATCH") && failures > 0 {
            failures -= 1;
            return Reaction::Refuse(500);
        }
        Reaction::Go
    });
    assert_eq!(pass(4).await, 1);
    assert_eq!(condition(&api, "Ready")["status"], "True", "nothing was written");
    assert_eq!((pass(5).await, pass(6).await, pass(7).await), (0, 1, 0));
    for (type_, status, reason) in [
        ("Ready", "False", "NotConnected"),
        ("TunnelConnected", "False", "NotConnected"),
        ("APIServerReachable", "Unknown", "NotConnected"),
        ("PolicyInForce", "Unknown", "NotConnected"),
        ("AgentUpToDate", "Unknown", "NotConnected"),
        ("Registered", "True", "Approved"),
    ] {
        let condition = condition(&api, type_);
        assert_eq!((&condition["status"], &condition["reason"]), (&json!(status), &json!(reason)), "{type_}");
        assert_eq!(condition["observedGeneration"], 1, "{type_}");
    }
    let status = api.get(&object_path()).unwrap()["status"].clone();
    assert_eq!(status["policy"]["asOf"], "2026-01-01T00:00:00Z");
    assert!(status.get("tunnel").is_none() && status["healthz"] == false, "{status}");
    let mut told = Vec::new();
    while let Ok(remark) = remarks.try_recv() {
        told.push(format!("{remark:?}"));
    }
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("ConnectionLost") && told[1].contains("NotReady"), "{told:?}");
}

#[tokio::test]
async fn a_cluster_that_is_shut_out_while_it_is_away_says_so() {
    let (api, control) = world().await;
    let (story, _remarks) = events::story();
    let (mut states, mut checks) = (HashMap::new(), JoinSet::new());
    let now = Timestamp::now();
    for (second, denied, checked, ready) in [
        (0, false, 1, "NotConnected"),
        (1, false, 0, "NotConnected"),
        (2, true, 1, "ShutOut"),
        (3, true, 0, "ShutOut"),
        (4, false, 1, "NotConnected"),
    ] {
        control.catalog.replace([edge(denied)]);
        start_due(&control, &story, &mut states, &mut checks, now + SignedDuration::from_secs(second));
        assert_eq!(checks.len(), checked, "{second}");
        while let Some(done) = checks.join_next().await {
            let (id, state) = done.unwrap();
            states.insert(id, state);
        }
        let found = condition(&api, "TunnelConnected")["reason"].clone();
        // It never had a tunnel here, and nobody knows since when it has none.
        let found = if found == "NeverConnected" { json!("NotConnected") } else { found };
        assert_eq!(found, ready, "{second}");
        assert_eq!(condition(&api, "Registered")["status"], if denied { "False" } else { "True" });
    }
}

#[tokio::test]
async fn a_write_that_comes_late_changes_nothing_that_was_written_meanwhile() {
    let (api, control) = world().await;
    let pair = pair_with_key(EDGE, "a", "k").await;
    drop(control.tunnels.insert(Arc::clone(&pair.live)).unwrap());
    let lost = control.tunnels.last_lost(&EDGE.parse().unwrap()).unwrap();
    let (story, _remarks) = events::story();
    let (mut states, mut checks) = (HashMap::new(), JoinSet::new());
    // Another replica has heard from it, after it was read here and before it is written.
    let mut first = true;
    api.hook(move |objects, line| {
        if line.starts_with("PATCH") && std::mem::take(&mut first) {
            let object = objects.get_mut(&object_path()).unwrap();
            object["metadata"]["resourceVersion"] = "of-another-replica".into();
            object["status"]["lastObservedTime"] = json!(Time(lost + SignedDuration::from_secs(3)));
        }
        Reaction::Go
    });
    for after in [4, 6] {
        start_due(&control, &story, &mut states, &mut checks, lost + SignedDuration::from_secs(after));
        assert_eq!(checks.len(), 1, "{after}");
        while let Some(done) = checks.join_next().await {
            let (id, state) = done.unwrap();
            states.insert(id, state);
        }
        assert_eq!(condition(&api, "Ready")["status"], "True", "{after}");
    }
}

/// A replica, hub-1, beside others that hold a tunnel of the cluster or not, and may lead or not.
async fn among(others: &[(&str, bool)], leads: bool) -> (Control, Vec<crate::peers::Entered>) {
    let (_, control) = world().await;
    let mut control = (*control).clone();
    control.leading = tokio::sync::watch::channel(leads).1;
    let mut entered = Vec::new();
    for (instance, holds) in others {
        let link = crate::peers::link::Link::to_nobody(instance).await;
        let present = holds.then(|| (edge(false).id, "agent".to_owned())).into_iter().collect();
        entered.push(control.peers.enter(link, present));
    }
    (control, entered)
}

#[tokio::test]
async fn of_several_replicas_one_speaks_for_a_cluster() {
    let id = edge(false).id;
    for (what, others, here, leads, speaks) in [
        ("alone", &[][..], true, true, true),
        ("no leader is needed for what is here", &[], true, false, true),
        ("a later name holds it too", &[("hub-2", true)], true, false, true),
        ("an earlier name holds it too", &[("hub-0", true)], true, true, false),
        ("an earlier name that does not hold it", &[("hub-0", false)], true, false, true),
        ("nobody holds it, and this one leads", &[("hub-0", false)], false, true, true),
        ("nobody holds it, and another one leads", &[("hub-0", false)], false, false, false),
        ("another one holds it, and this one leads", &[("hub-2", true)], false, true, false),
    ] {
        let (control, entered) = among(others, leads).await;
        assert_eq!(!said_elsewhere(&control, &id, here, leads), speaks, "{what}");
        assert_eq!(last_lost(&control, &id), None, "{what}");
        drop(entered);
        let held = others.iter().any(|(_, holds)| *holds);
        assert_eq!(last_lost(&control, &id).is_some(), held, "{what}: lost with the connection");
    }
}

#[tokio::test]
async fn while_agents_wait_for_their_tunnels_few_clusters_are_asked_at_once() {
    use futures::FutureExt as _;

    let (_, control) = world().await;
    let (story, _remarks) = events::story();
    let many = 4 * MAX_ASKED_MEANWHILE;
    control.catalog.replace((0..many).map(|n| Cluster {
        id: format!("c{n}").parse().unwrap(),
        name: format!("edge-{n}").parse().unwrap(),
        ..edge(false)
    }));
    let (mut states, mut checks) = (HashMap::new(), JoinSet::new());
    let mut others = Vec::new();
    while let Some(turn) = control.tunnels.openings.turn().now_or_never() {
        others.push(turn.unwrap());
    }
    let mut waits = Box::pin(control.tunnels.openings.turn());
    assert!((&mut waits).now_or_never().is_none());
    start_due(&control, &story, &mut states, &mut checks, Timestamp::now());
    assert_eq!(checks.len(), MAX_ASKED_MEANWHILE);
    drop((waits, others));
    start_due(&control, &story, &mut states, &mut checks, Timestamp::now());
    assert_eq!(checks.len(), many);
    checks.shutdown().await;
}
