//! Where a request goes: to the live tunnel of its cluster here, or to another replica that holds one, or nowhere, with a
//! reason that tells whether it is worth to try again. Reads the catalog and the registries, changes nothing.

use std::sync::Arc;
use std::time::Duration;

use api::names::ClusterId;
use jiff::Timestamp;

use crate::catalog::{Catalog, Cluster};
use crate::handle::Hub;
use crate::peers::Peers;
use crate::peers::link::Link;
use crate::refusal::Refusal;
use crate::tunnels::{Live, Tunnels};

/// A tunnel lost for less than this is on its way back: agents dial again within a second or two. After
/// that a caller must not be told to retry, or kubectl hangs on a cluster that is gone.
const JUST_LOST: Duration = Duration::from_secs(10);
/// A cluster that was heard of so recently before this hub started was cut off by the start itself; status
/// is written once a minute.
const SEEN_BEFORE_START: Duration = Duration::from_mins(2);

/// Where a request for a cluster goes.
#[derive(Debug, Clone)]
pub enum Target {
    /// Into a tunnel of this replica.
    Tunnel(Arc<Live>),
    /// To another replica, and into a tunnel of that one.
    Peer(Arc<Link>),
}

/// The cluster and the way to it. Comes after authorization: whoever may not use the cluster must not learn
/// from here whether it exists.
///
/// # Errors
/// No such cluster, shut out, or not connected; or this hub does not know yet which clusters there are.
pub fn find(
    catalog: &Catalog,
    tunnels: &Tunnels,
    peers: &Peers,
    id: &ClusterId,
    verb: &'static str,
    started: Timestamp,
    now: Timestamp,
) -> Result<(Arc<Cluster>, Target), Refusal> {
    if !catalog.is_known() {
        return Err(Refusal::Starting);
    }
    let cluster = catalog.get(id).ok_or_else(|| Refusal::ClusterForbidden(id.clone(), verb))?;
    if cluster.denied {
        return Err(Refusal::Forbidden(format!(
            "cluster {0} has been shut out; to let it in again: kubectl towline approve {0}",
            cluster.name
        )));
    }
    if let Some(live) = tunnels.get(id) {
        return Ok((cluster, Target::Tunnel(live)));
    }
    if let Some(link) = peers.holder(id, None) {
        return Ok((cluster, Target::Peer(link)));
    }
    Err(missing(&cluster, tunnels.last_lost(id).max(peers.last_lost(id)), started, now))
}

/// Another way to the cluster than the one that took nothing.
pub(crate) fn other(hub: &Hub, id: &ClusterId, tried: &Target) -> Option<Target> {
    let (live, peer) = match tried {
        Target::Tunnel(live) => (Some(live), None),
        Target::Peer(link) => (None, Some(link.instance.as_str())),
    };
    let here = hub.tunnels.get(id).filter(|here| live.is_none_or(|live| !Arc::ptr_eq(here, live)));
    here.map(Target::Tunnel).or_else(|| hub.peers.holder(id, peer).map(Target::Peer))
}

fn missing(cluster: &Cluster, lost: Option<Timestamp>, started: Timestamp, now: Timestamp) -> Refusal {
    let name = cluster.name.to_string();
    let ago = |then: Timestamp| Duration::try_from(now.duration_since(then)).unwrap_or_default();
    match (lost, cluster.last_seen) {
        (Some(lost), _) if ago(lost) < JUST_LOST => {
            Refusal::JustLost(name, format!("{} s ago", ago(lost).as_secs()))
        }
        (None, Some(seen))
            if ago(started) < JUST_LOST
                && started.duration_since(seen)
                    < jiff::SignedDuration::try_from(SEEN_BEFORE_START).unwrap_or_default() =>
        {
            Refusal::JustLost(name, "when this hub started".to_owned())
        }
        (Some(lost), seen) => {
            // Another replica may have heard of it later than this one lost it.
            let since = seen.map_or(lost, |seen| seen.max(lost));
            Refusal::Offline(name, format!("not since {}", to_the_second(since)))
        }
        (None, Some(seen)) => Refusal::Offline(name, format!("not since {}", to_the_second(seen))),
        (None, None) => Refusal::Offline(name, "its agent has never connected".to_owned()),
    }
}

fn to_the_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(last_seen: Option<i64>) -> Cluster {
        Cluster {
            id: "c1".parse().unwrap(),
            name: "edge-1".parse().unwrap(),
            namespace: "clusternet-x".to_owned(),
            key_fingerprint: String::new(),
            denied: false,
            last_seen: last_seen.map(at),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    #[test]
    fn a_retry_is_asked_for_only_while_the_agent_is_on_its_way_back() {
        let missing = |lost: Option<i64>, seen, started, now| {
            missing(&cluster(seen), lost.map(at), at(started), at(now))
        };
        assert!(matches!(missing(Some(100), None, 0, 105), Refusal::JustLost(_, ago) if ago == "5 s ago"));
        assert!(matches!(missing(Some(100), None, 0, 110), Refusal::Offline(..)));
        assert!(
            matches!(missing(None, Some(50), 100, 105), Refusal::JustLost(..)),
            "the hub has just started"
        );
        assert!(matches!(missing(None, Some(50), 100, 111), Refusal::Offline(..)));
        assert!(matches!(missing(None, Some(-3600), 100, 101), Refusal::Offline(..)), "offline long before");
        assert!(matches!(missing(None, None, 100, 101), Refusal::Offline(_, why) if why.contains("never")));
    }

    #[test]
    fn a_cluster_that_is_unknown_or_shut_out_is_no_target() {
        let (catalog, tunnels) = (Catalog::default(), Tunnels::default());
        let peers = Peers::new("hub-1", crate::metrics::Metrics::default());
        let find = |id: &str| {
            find(&catalog, &tunnels, &peers, &id.parse().unwrap(), "get", at(0), at(100)).unwrap_err()
        };
        assert!(matches!(find("c2"), Refusal::Starting), "the first list has not arrived");
        catalog.replace([]);
        assert!(matches!(find("c2"), Refusal::ClusterForbidden(..)));
        catalog.replace([Cluster { denied: true, ..cluster(None) }]);
        assert!(matches!(find("c1"), Refusal::Forbidden(_)));
        catalog.replace([cluster(None)]);
        assert!(matches!(find("c1"), Refusal::Offline(..)));
    }
}
