//! Renews what agents dial with: at two thirds of its life each credential is replaced by a new token, handed
//! over in the tunnel that the old one opened. The token is in no object and in no log.
//!
//! A hub that has just started knows of a credential only when it ends (the agent says so in its hello): it
//! renews one that has less than a third of a day left. A shut-out or deleted cluster gets none.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::names::ClusterId;
use jiff::{SignedDuration, Timestamp};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::{Control, catalog_is_filled};
use crate::catalog::Cluster;
use crate::join::registration::{CREDENTIAL_SECONDS, issue_credential};
use crate::tunnels::Live;

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
    loop {
        tokio::select! {
            biased;
            () = control.stop.cancelled() => return Ok(()),
            Some(done) = renewals.join_next() => {
                if let Ok((tunnel, until)) = done {
                    rest.insert(tunnel, until);
                }
            }
            _ = ticks.tick() => start_due(&control, &mut rest, &mut renewals),
        }
    }
}

fn start_due(control: &Arc<Control>, rest: &mut Rest, renewals: &mut JoinSet<(String, Timestamp)>) {
    let now = Timestamp::now();
    let all = control.tunnels.all();
    rest.retain(|tunnel, _| all.iter().any(|live| live.tunnel_id == *tunnel));
    for live in all {
        if renewals.len() >= MAX_RENEWALS {
            return;
        }
        let until = *rest
            .entry(live.tunnel_id.clone())
            .or_insert_with(|| first_renewal(&live.cluster, live.hello.credential_expires, now));
        let Some(cluster) = control.catalog.get(&live.cluster) else { continue };
        if now < until || cluster.denied {
            continue;
        }
        // Marked before it starts: nothing is started twice, also if it panics.
        rest.insert(live.tunnel_id.clone(), now + RETRY);
        renewals.spawn(renew(Arc::clone(control), cluster, live));
    }
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
    let credential = issue_credential(&control.client, &cluster.namespace)
        .await?
        .ok_or_else(|| anyhow::anyhow!("the parent answered without a token"))?;
    let body = serde_json::to_vec(&credential)?;
    control.tunnels.agent_put(live, "/v1/credential", body).await?;
    Ok(credential.expires)
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
    use super::*;

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
