//! Renews what agents dial with: at two thirds of its life each credential is replaced by a new token, handed
//! over in the tunnel that the old one opened. The token is in no object and in no log.
//!
//! A hub that has just started knows of a credential only when it ends (the agent says so in its hello): it
//! renews one that has less than a third of a day left. A shut-out or deleted cluster gets none, nor does a
//! tunnel of a key that is no longer the cluster's.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use api::names::ClusterId;
use jiff::{SignedDuration, Timestamp};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::{Control, catalog_is_filled};
use crate::catalog::Cluster;
use crate::join::registration::{CREDENTIAL_SECONDS, issue_credential};
use crate::tunnels::{Live, Renewed};

/// How often due credentials are looked for.
const TICK: Duration = Duration::from_secs(15);
/// Pause after a renewal that failed; there is a third of a life left to try.
const RETRY: SignedDuration = SignedDuration::from_mins(2);
/// Most renewals at once: one TokenRequest and one small request through a tunnel each.
const MAX_RENEWALS: usize = 32;
/// A renewal ends by then, whatever hangs.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(30);

/// Until when a tunnel's credential needs no thought, by tunnel.
type Rest = HashMap<String, Timestamp>;

/// Runs until stop.
pub(super) async fn run(control: Arc<Control>) -> anyhow::Result<()> {
    if !catalog_is_filled(&control).await {
        return Ok(());
    }
    let mut rest: Rest = HashMap::new();
    let mut renewals: JoinSet<(String, Timestamp)> = JoinSet::new();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut waiting = false;
    loop {
        tokio::select! {
            biased;
            () = control.stop.cancelled() => return Ok(()),
            Some(done) = renewals.join_next() => {
                if let Ok((tunnel, until)) = done {
                    rest.insert(tunnel, until);
                }
                // Thousands come due together when a hub has restarted. Not after each: it looks at all tunnels.
                if waiting && renewals.len() <= MAX_RENEWALS / 2 {
                    waiting = start_due(&control, &mut rest, &mut renewals);
                }
            }
            _ = ticks.tick() => waiting = start_due(&control, &mut rest, &mut renewals),
        }
    }
}

/// Starts what is due. Tells whether something is due that found no place.
fn start_due(control: &Arc<Control>, rest: &mut Rest, renewals: &mut JoinSet<(String, Timestamp)>) -> bool {
    let now = Timestamp::now();
    let all = control.tunnels.all();
    let open: HashSet<&str> = all.iter().map(|live| live.tunnel_id.as_str()).collect();
    rest.retain(|tunnel, _| open.contains(tunnel.as_str()));
    for live in all {
        if renewals.len() >= MAX_RENEWALS {
            return true;
        }
        // Its agent is handed one by the replica that speaks for the cluster.
        if control.peers.speak_for(&live.cluster) {
            continue;
        }
        let until = *rest
            .entry(live.tunnel_id.clone())
            .or_insert_with(|| first_renewal(&live.cluster, live.hello.credential_expires, now));
        let Some(cluster) = control.catalog.get(&live.cluster) else { continue };
        if now < until || !may_have(&cluster, &live.key) {
            continue;
        }
        // Marked before it starts: nothing is started twice, also if it panics.
        rest.insert(live.tunnel_id.clone(), now + RETRY);
        renewals.spawn(renew(Arc::clone(control), cluster, live));
    }
    false
}

/// Renews and tells when to do so again.
async fn renew(control: Arc<Control>, cluster: Arc<Cluster>, live: Arc<Live>) -> (String, Timestamp) {
    let renewed = tokio::time::timeout(RENEWAL_TIMEOUT, hand_over(&control, &cluster, &live)).await;
    let now = Timestamp::now();
    let until = match renewed {
        Ok(Ok(expires)) => {
            tracing::info!(cluster = %cluster.id, %expires, "renewed a credential");
            next_renewal(&cluster.id, now, expires)
        }
        Ok(Err(error)) => {
            tracing::warn!(cluster = %cluster.id, %error, "a credential could not be renewed; trying again");
            now + RETRY
        }
        Err(_) => {
            tracing::warn!(cluster = %cluster.id, "a credential could not be renewed in time; trying again");
            now + RETRY
        }
    };
    (live.tunnel_id.clone(), until)
}

async fn hand_over(control: &Control, cluster: &Cluster, live: &Live) -> anyhow::Result<Timestamp> {
    let credential = issue_credential(&control.client, cluster, &live.key)
        .await?
        .ok_or_else(|| anyhow::anyhow!("the cluster was registered again, shut out or removed meanwhile"))?;
    let known = control.catalog.get(&cluster.id);
    anyhow::ensure!(
        known.is_some_and(|known| may_have(&known, &live.key)),
        "the cluster was registered again, shut out or removed meanwhile"
    );
    let body = serde_json::to_vec(&credential)?;
    control.tunnels.agent_put(live, "/v1/credential", body).await?;
    live.note_renewed(Renewed { at: Timestamp::now(), expires: credential.expires });
    Ok(credential.expires)
}

/// Whether an agent that was let in with this key is the one that the cluster has now.
fn may_have(cluster: &Cluster, key: &str) -> bool {
    !cluster.denied && cluster.key_fingerprint == key
}

/// When a credential of which only the end is known is renewed: a third of a full life before it.
fn first_renewal(cluster: &ClusterId, expires: Option<Timestamp>, now: Timestamp) -> Timestamp {
    let third = SignedDuration::from_secs(CREDENTIAL_SECONDS / 3);
    match expires {
        Some(expires) => earlier(cluster, expires - third, third),
        // It does not say: better now than too late.
        None => now,
    }
}

/// When a credential that was just given is renewed: at two thirds of the life that the parent gave it.
fn next_renewal(cluster: &ClusterId, now: Timestamp, expires: Timestamp) -> Timestamp {
    let life = expires.duration_since(now).max(SignedDuration::ZERO);
    earlier(cluster, now + life * 2 / 3, life / 3)
}

/// Up to a fifth of `span` earlier, always the same for a cluster: thousands of agents that came back
/// together after an outage shall not come for their credentials together.
fn earlier(cluster: &ClusterId, at: Timestamp, span: SignedDuration) -> Timestamp {
    // FNV-1a, which spreads ids well enough.
    let hash = cluster.as_str().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let share = i32::try_from((hash >> 32) % 1000).unwrap_or_default();
    at - span / 5 * share / 1000
}

#[cfg(test)]
mod tests {
    use runtime::stop::Stop;
    use serde_json::json;

    use super::super::fake_api::{FakeApi, Reaction};
    use super::super::objects::KEY_FINGERPRINT;
    use super::*;
    use crate::catalog::Catalog;
    use crate::config::Settings;
    use crate::tunnels::Tunnels;
    use crate::tunnels::tests::pair_with_key;

    const ACCOUNT: &str = "/api/v1/namespaces/ns/serviceaccounts/clusternet-agent";
    const CLUSTER: &str = "/apis/clusters.clusternet.io/v1beta1/namespaces/ns/managedclusters/edge";

    fn cluster(key: &str) -> Cluster {
        Cluster {
            id: "c1".parse().unwrap(),
            name: "edge".parse().unwrap(),
            namespace: "ns".to_owned(),
            key_fingerprint: key.to_owned(),
            denied: false,
            last_seen: None,
        }
    }

    /// A parent in which the cluster has this key, and its account was made for that one.
    async fn parent(key: &str, account: Option<&str>, denied: bool) -> FakeApi {
        let api = FakeApi::start().await;
        let annotations = account.map(|key| json!({ KEY_FINGERPRINT: key }));
        api.put(
            ACCOUNT,
            &json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "annotations": annotations } }),
        );
        api.put(
            CLUSTER,
            &json!({ "apiVersion": "clusters.clusternet.io/v1beta1", "kind": "ManagedCluster", "metadata": {},
                     "spec": { "clusterId": "c1", "keyFingerprint": key, "denied": denied } }),
        );
        api
    }

    fn control(api: &FakeApi, key: &str) -> Arc<Control> {
        let catalog = Catalog::default();
        catalog.replace([cluster(key)]);
        Arc::new(Control {
            client: api.client(),
            catalog: Arc::new(catalog),
            tunnels: Arc::new(Tunnels::default()),
            peers: crate::control::fake_api::no_peers(),
            leading: crate::control::fake_api::always_leading(),
            settings: Arc::new(Settings::default()),
            stop: Stop::new(),
        })
    }

    #[tokio::test]
    async fn a_credential_is_for_the_key_that_the_cluster_has_after_it_was_made() {
        for (what, key, account, denied, given) in [
            ("its own", "k", Some("k"), false, true),
            ("an account from before accounts were marked", "k", None, false, true),
            ("the cluster has another key", "new", Some("k"), false, false),
            ("the account was made for another key already", "k", Some("new"), false, false),
            ("shut out", "k", Some("k"), true, false),
        ] {
            let api = parent(key, account, denied).await;
            let credential = issue_credential(&api.client(), &cluster("k"), "k").await.unwrap();
            assert_eq!(credential.is_some(), given, "{what}");
            assert!(api.asked()[0].ends_with("/token"), "{what}: what was read before it says nothing");
        }
        let api = parent("k", Some("k"), false).await;
        api.delete(CLUSTER);
        assert_eq!(issue_credential(&api.client(), &cluster("k"), "k").await.unwrap(), None);
    }

    #[tokio::test]
    async fn an_agent_of_a_former_key_is_handed_nothing() {
        let api = parent("old", Some("old"), false).await;
        let control = control(&api, "old");
        let pair = pair_with_key("c1", "a", "old").await;
        // The key is replaced, and the watch tells so, after the token was made.
        let catalog = Arc::clone(&control.catalog);
        api.hook(move |_, line| {
            if line == format!("GET {ACCOUNT}") {
                catalog.replace([cluster("new")]);
            }
            Reaction::Go
        });
        let error = hand_over(&control, &cluster("old"), &pair.live).await.unwrap_err();
        assert!(error.to_string().contains("meanwhile"), "{error}");
    }

    #[tokio::test]
    async fn a_tunnel_of_a_former_key_is_never_due() {
        let api = parent("new", Some("new"), false).await;
        let control = control(&api, "new");
        for (key, started) in [("old", 0), ("new", 1)] {
            let pair = pair_with_key("c1", "a", key).await;
            let _entered = control.tunnels.insert(Arc::clone(&pair.live)).unwrap();
            let mut renewals = JoinSet::new();
            assert!(!start_due(&control, &mut Rest::new(), &mut renewals));
            assert_eq!(renewals.len(), started, "{key}");
        }
    }

    #[tokio::test]
    async fn those_that_find_no_place_are_waited_for() {
        let api = parent("k", Some("k"), false).await;
        let control = control(&api, "k");
        let ids: Vec<String> = (0..=MAX_RENEWALS).map(|n| format!("c{n}")).collect();
        control.catalog.replace(ids.iter().map(|id| Cluster { id: id.parse().unwrap(), ..cluster("k") }));
        let mut entered = Vec::new();
        for id in &ids {
            let pair = pair_with_key(id, id, "k").await;
            entered.push((control.tunnels.insert(Arc::clone(&pair.live)).unwrap(), pair));
        }
        let (mut rest, mut renewals) = (Rest::new(), JoinSet::new());
        assert!(start_due(&control, &mut rest, &mut renewals));
        assert_eq!(renewals.len(), MAX_RENEWALS);
        renewals.abort_all();
        while renewals.join_next().await.is_some() {}
        assert!(!start_due(&control, &mut rest, &mut renewals));
        assert_eq!(renewals.len(), 1);
        drop(entered.pop());
        start_due(&control, &mut rest, &mut renewals);
        assert_eq!(rest.len(), MAX_RENEWALS, "a tunnel that is gone is forgotten");
    }

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(1_900_000_000 + minute * 60).unwrap()
    }

    #[test]
    fn a_credential_is_renewed_around_two_thirds_of_its_life() {
        for id in ["a", "b", "6f0a1b1e-0000-4000-8000-000000000000"] {
            let id = id.parse().unwrap();
            let due = next_renewal(&id, at(0), at(24 * 60));
            assert!((at(14 * 60)..=at(16 * 60)).contains(&due), "{due}");
            // A parent that gives one hour at most.
            let due = next_renewal(&id, at(0), at(60));
            assert!((at(36)..=at(40)).contains(&due), "{due}");
            let due = first_renewal(&id, Some(at(24 * 60)), at(0));
            assert!((at(14 * 60)..=at(16 * 60)).contains(&due), "{due}");
        }
    }

    #[test]
    fn one_that_nearly_ended_or_says_nothing_is_renewed_at_once() {
        let id = "a".parse().unwrap();
        assert!(first_renewal(&id, Some(at(60)), at(0)) <= at(0));
        assert_eq!(first_renewal(&id, None, at(0)), at(0));
        assert!(next_renewal(&id, at(10), at(0)) <= at(10), "one that the parent gave dead");
    }
}
