//! That a replica exists, and where: a Lease of its own in the parent, renewed every two seconds, gone when it stops. A
//! watch on the Leases of all tells [`Peers`] of the others. Nothing secret is in a Lease; whoever may write one can make
//! replicas dial an address, and is refused there for want of a certificate.
//!
//! Whether a Lease is fresh is judged by when this replica saw it change, on its own clock: the clocks of two nodes need
//! not agree. One that is not renewed any more counts no longer as alive, but is dialled still, in case it is the parent's
//! API that is away; once it has been so for minutes, whoever leads the controllers deletes it.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use api::names::{CREATED_BY_HUB, LABEL_CREATED_BY, SYSTEM_NAMESPACE};
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{DeleteParams, ObjectMeta, PostParams, Preconditions};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch_objects};
use kube::{Api, Client, ResourceExt as _};
use runtime::stop::Stop;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::{MAX_PEERS, Peers};
use crate::config::names_a_replica;
use crate::handle::random_id;
use crate::join::has_code;
use crate::rewatch::Rewatch;

/// How often a Lease is renewed: one small write.
const RENEW: Duration = Duration::from_secs(2);
/// A replica that has not renewed for so long is not counted: two renewals missed.
const EXPIRE: Duration = Duration::from_secs(6);
/// The Lease of one that has not renewed for so long is deleted: longer than a restart of the parent's API server.
const DEAD: Duration = Duration::from_mins(5);
/// Leases that are looked at, about 200 bytes each; pods that crash leave theirs behind for [`DEAD`].
const MAX_LEASES: usize = 256;
/// Before the name of a replica, in the name of its Lease.
const PREFIX: &str = "clusternet-hub-";
/// Marks the Leases of replicas.
const LABEL: &str = "access.towline.io/hub-replica";
/// Where the others reach a replica.
const ADDRESS: &str = "access.towline.io/peer-address";

/// Keeps this replica's Lease until `stop`, then deletes it.
///
/// # Errors
/// Never: a Lease that cannot be written is tried again; meanwhile the others do not know of this replica.
pub async fn own(client: Client, instance: String, address: SocketAddr, stop: Stop) -> anyhow::Result<()> {
    let mut own = Own {
        leases: Api::namespaced(client, SYSTEM_NAMESPACE),
        name: format!("{PREFIX}{instance}"),
        address,
        // Another process of the same name is another holder.
        holder: format!("{instance}_{}", random_id()),
        written: None,
    };
    let mut ticks = interval(RENEW);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = false;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            _ = ticks.tick() => {}
        }
        match timeout(RENEW, own.renew()).await {
            Ok(Ok(())) => told = false,
            _ if told => {}
            Ok(Err(error)) => {
                told = true;
                tracing::warn!(lease = own.name, %error, "the Lease of this replica cannot be written; trying again");
            }
            Err(_) => {
                told = true;
                tracing::warn!(
                    lease = own.name,
                    "the Lease of this replica was not written in time; trying again"
                );
            }
        }
    }
    // The others need not wait for it to expire.
    if !matches!(timeout(RENEW, own.delete()).await, Ok(Ok(()))) {
        tracing::info!(lease = own.name, "the Lease of this replica was not deleted; it expires");
    }
    Ok(())
}

struct Own {
    leases: Api<Lease>,
    name: String,
    address: SocketAddr,
    holder: String,
    /// As it was last written.
    written: Option<Lease>,
}

impl Own {
    async fn renew(&mut self) -> Result<(), kube::Error> {
        let there = match self.written.take() {
            Some(written) => Some(written),
            None => self.leases.get_opt(&self.name).await?,
        };
        let holder = there.as_ref().and_then(|there| there.spec.as_ref()?.holder_identity.clone());
        if holder.as_ref().is_some_and(|holder| *holder != self.holder) {
            tracing::info!(
                lease = self.name,
                "took over the Lease of a replica of the same name; if that one runs, give each its own --hub-id"
            );
        }
        let lease = self.lease(there.as_ref());
        let written = match there {
            Some(_) => self.leases.replace(&self.name, &PostParams::default(), &lease).await,
            None => self.leases.create(&PostParams::default(), &lease).await,
        };
        match written {
            Ok(written) => self.written = Some(written),
            // Somebody has written or deleted it: it is read again next time, which is soon enough.
            Err(error) if has_code(&error, 409) || has_code(&error, 404) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn lease(&self, there: Option<&Lease>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let before = there.and_then(|there| there.spec.clone()).unwrap_or_default();
        let acquired = before.acquire_time.filter(|_| before.holder_identity.as_ref() == Some(&self.holder));
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(SYSTEM_NAMESPACE.to_owned()),
                resource_version: there.and_then(|there| there.metadata.resource_version.clone()),
                labels: Some(
                    [(LABEL_CREATED_BY, CREATED_BY_HUB), (LABEL, "true")]
                        .map(|(key, value)| (key.to_owned(), value.to_owned()))
                        .into(),
                ),
                annotations: Some([(ADDRESS.to_owned(), self.address.to_string())].into()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.holder.clone()),
                lease_duration_seconds: i32::try_from(EXPIRE.as_secs()).ok(),
                acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        }
    }

    async fn delete(&mut self) -> Result<(), kube::Error> {
        let Some(written) = self.written.take() else { return Ok(()) };
        let mine = Preconditions { uid: written.uid(), resource_version: written.resource_version() };
        let mine = DeleteParams { preconditions: Some(mine), ..DeleteParams::default() };
        match self.leases.delete(&self.name, &mine).await {
            Err(error) if !has_code(&error, 404) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// Tells the registry of the others until `stop`; whoever leads clears away the dead.
///
/// # Errors
/// The watch ended.
pub async fn follow(
    client: Client,
    peers: std::sync::Arc<Peers>,
    leading: watch::Receiver<bool>,
    stop: Stop,
) -> anyhow::Result<()> {
    let leases: Api<Lease> = Api::namespaced(client, SYSTEM_NAMESPACE);
    let ours = watcher::Config::default().labels(&format!("{LABEL}=true"));
    let mut events = watch_objects(leases.clone(), ours).backoff(Rewatch::default()).boxed();
    let mut ticks = interval(RENEW);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = Seen::default();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            event = events.next() => match event {
                Some(Ok(event)) => seen.take(event, Instant::now()),
                Some(Err(error)) => {
                    tracing::warn!(%error, "the watch on the Leases of replicas broke; it goes on by itself");
                    seen.broken = true;
                }
                None => anyhow::bail!("the watch on the Leases of replicas ended"),
            },
            _ = ticks.tick() => {}
        }
        let now = Instant::now();
        let (places, alive) = seen.others(&peers.instance, now);
        peers.found(places, alive);
        if *leading.borrow() {
            for (name, one) in seen.dead(now) {
                clear_away(&leases, name, one).await;
            }
        }
    }
}

/// One that came back meanwhile has another resourceVersion, and is left alone.
async fn clear_away(leases: &Api<Lease>, name: &str, one: &One) {
    let this = Preconditions { uid: None, resource_version: one.version.clone() };
    let this = DeleteParams { preconditions: Some(this), ..DeleteParams::default() };
    match timeout(RENEW, leases.delete(name, &this)).await {
        Ok(Ok(_)) => tracing::info!(lease = name, "deleted the Lease of a replica that is gone"),
        // The watch tells, or the next round tries again.
        Ok(Err(error)) => tracing::debug!(lease = name, %error, "the Lease of a replica that is gone stays"),
        Err(_) => tracing::debug!(lease = name, "the Lease of a replica that is gone stays"),
    }
}

/// One Lease.
#[derive(Debug, Clone)]
struct One {
    address: Option<SocketAddr>,
    version: Option<String>,
    /// When this replica saw it change.
    renewed: Instant,
}

/// All Leases of replicas, by name.
#[derive(Debug, Default)]
struct Seen {
    all: HashMap<String, One>,
    /// While a list arrives, what it held so far.
    arriving: Option<HashMap<String, One>>,
    /// Nobody tells what is renewed: no reason to think that nothing is.
    broken: bool,
}

impl Seen {
    fn take(&mut self, event: Event<Lease>, now: Instant) {
        match event {
            Event::Init => self.arriving = Some(HashMap::new()),
            Event::InitApply(lease) => {
                let (name, mut one) = read(&lease, now);
                // The same as before: it has not been renewed since.
                if let Some(known) = self.all.get(&name).filter(|known| known.version == one.version) {
                    one.renewed = known.renewed;
                }
                self.arriving.get_or_insert_default().insert(name, one);
            }
            Event::InitDone => {
                self.all = self.arriving.take().unwrap_or_default();
                self.broken = false;
            }
            Event::Apply(lease) => {
                self.broken = false;
                let (name, one) = read(&lease, now);
                if self.all.len() < MAX_LEASES || self.all.contains_key(&name) {
                    self.all.insert(name, one);
                }
            }
            Event::Delete(lease) => drop(self.all.remove(&lease.name_any())),
        }
    }

    /// Where the other replicas are, the freshest first if there are too many, and how many of them are alive.
    fn others(&self, own: &str, now: Instant) -> (BTreeMap<String, SocketAddr>, usize) {
        let mut all: Vec<(&str, &One, SocketAddr)> = self
            .all
            .iter()
            .filter_map(|(name, one)| {
                let instance =
                    name.strip_prefix(PREFIX).filter(|name| names_a_replica(name) && *name != own)?;
                Some((instance, one, one.address?))
            })
            .collect();
        all.sort_by_key(|(_, one, _)| std::cmp::Reverse(one.renewed));
        if all.len() > MAX_PEERS {
            tracing::debug!(replicas = all.len(), "there are more replicas than this one connects to");
            all.truncate(MAX_PEERS);
        }
        let alive =
            all.iter().filter(|(_, one, _)| self.broken || now.duration_since(one.renewed) < EXPIRE).count();
        (all.into_iter().map(|(instance, _, address)| (instance.to_owned(), address)).collect(), alive)
    }

    fn dead(&self, now: Instant) -> impl Iterator<Item = (&String, &One)> {
        let dead = move |one: &One| !self.broken && now.duration_since(one.renewed) >= DEAD;
        self.all.iter().filter(move |(_, one)| dead(one))
    }
}

fn read(lease: &Lease, now: Instant) -> (String, One) {
    let address = lease.annotations().get(ADDRESS).and_then(|address| address.parse().ok());
    (lease.name_any(), One { address, version: lease.resource_version(), renewed: now })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::control::fake_api::{FakeApi, Reaction};

    const PATH: &str =
        "/apis/coordination.k8s.io/v1/namespaces/clusternet-system/leases/clusternet-hub-hub-1";

    fn lease(instance: &str, version: &str) -> Lease {
        let metadata = json!({ "name": format!("{PREFIX}{instance}"), "resourceVersion": version,
                               "annotations": { ADDRESS: "10.0.0.7:8445" } });
        serde_json::from_value(json!({ "metadata": metadata })).unwrap()
    }

    fn at() -> SocketAddr {
        "10.0.0.7:8445".parse().unwrap()
    }

    #[tokio::test]
    async fn a_replica_has_a_lease_without_secrets_for_as_long_as_it_runs() {
        let (api, stop) = (FakeApi::start().await, Stop::new());
        let mut tasks = tokio::task::JoinSet::new();
        let (renewed, mut renewals) = tokio::sync::mpsc::unbounded_channel();
        api.hook(move |_, line| {
            if line.starts_with("PUT") {
                renewed.send(()).unwrap();
            }
            Reaction::Go
        });
        tasks.spawn(own(api.client(), "hub-1".to_owned(), at(), stop.clone()));
        timeout(Duration::from_secs(20), renewals.recv()).await.unwrap().unwrap();
        let there = api.get(PATH).unwrap();
        assert_eq!(there["metadata"]["annotations"], json!({ ADDRESS: "10.0.0.7:8445" }));
        assert_eq!(there["spec"]["leaseDurationSeconds"], 6);
        stop.cancel();
        tasks.join_next().await.unwrap().unwrap().unwrap();
        assert!(api.get(PATH).is_none(), "deleted on stop");
    }

    #[tokio::test]
    async fn a_lease_that_somebody_deletes_or_changes_is_written_again() {
        let api = FakeApi::start().await;
        let leases = Api::namespaced(api.client(), SYSTEM_NAMESPACE);
        let name = format!("{PREFIX}hub-1");
        let mut own = Own { leases, name, address: at(), holder: "hub-1_a".to_owned(), written: None };
        own.renew().await.unwrap();
        api.delete(PATH);
        own.renew().await.unwrap();
        own.renew().await.unwrap();
        let acquired = api.get(PATH).unwrap()["spec"]["acquireTime"].clone();
        own.renew().await.unwrap();
        assert_eq!(api.get(PATH).unwrap()["spec"]["acquireTime"], acquired);
        api.put(PATH, &json!({ "spec": { "holderIdentity": "somebody" } }));
        own.renew().await.unwrap();
        own.renew().await.unwrap();
        assert_eq!(api.get(PATH).unwrap()["spec"]["holderIdentity"], "hub-1_a");
    }

    #[test]
    fn a_replica_counts_while_its_lease_is_renewed_and_is_dialled_until_that_is_deleted() {
        let (mut seen, begun) = (Seen::default(), Instant::now());
        let after = |seconds| begun + Duration::from_secs(seconds);
        seen.take(Event::Init, begun);
        for instance in ["hub-1", "hub-2", "controllers"] {
            seen.take(Event::InitApply(lease(instance, "1")), begun);
        }
        seen.take(Event::InitDone, begun);
        let instances = |seen: &Seen, now| {
            let (places, alive) = seen.others("hub-1", now);
            (places.into_keys().collect::<Vec<_>>(), alive)
        };
        let hub_2 = || vec!["hub-2".to_owned()];
        assert_eq!(instances(&seen, after(5)), (hub_2(), 1), "neither itself nor what is no replica");
        assert_eq!(instances(&seen, after(6)), (hub_2(), 0), "not renewed");
        seen.take(Event::Apply(lease("hub-2", "2")), after(6));
        assert_eq!(instances(&seen, after(11)), (hub_2(), 1));
        // A list that is read again renews nothing.
        seen.take(Event::Init, after(11));
        seen.take(Event::InitApply(lease("hub-2", "2")), after(11));
        seen.take(Event::InitDone, after(11));
        assert_eq!(instances(&seen, after(13)).1, 0);
        assert_eq!(seen.dead(after(300)).count(), 0);
        assert_eq!(seen.dead(after(306)).count(), 1);
        seen.broken = true;
        assert_eq!((instances(&seen, after(400)).1, seen.dead(after(400)).count()), (1, 0), "nobody told");
        seen.take(Event::Delete(lease("hub-2", "2")), after(400));
        assert_eq!(instances(&seen, after(400)), (vec![], 0));
    }

    #[test]
    fn of_too_many_the_freshest_are_dialled() {
        let (mut seen, begun) = (Seen::default(), Instant::now());
        for number in 0..40 {
            seen.take(
                Event::Apply(lease(&format!("hub-{number}"), "1")),
                begun + Duration::from_secs(number),
            );
        }
        let (places, _) = seen.others("hub-39", begun + Duration::from_secs(40));
        assert_eq!(places.len(), MAX_PEERS);
        assert!(places.contains_key("hub-38") && !places.contains_key("hub-1"));
    }
}
