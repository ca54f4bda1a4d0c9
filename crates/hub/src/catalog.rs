//! The clusters that exist, as the watch on `ManagedCluster` last told: a snapshot that the request path
//! reads without a lock and only `control/watch.rs` replaces. It also remembers for some seconds that a
//! cluster had another key, for as long as the parent may still believe a token of that key.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::names::{ClusterId, ClusterName};
use arc_swap::ArcSwap;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

/// After a cluster got another key, nobody opens its tunnel for so long: a kube-apiserver believes a token for
/// up to 10 s after its account was deleted (apiserver `authenticator/token/cache`, success TTL), and the hub
/// cannot tell the tokens of two accounts of one name apart. The rest is for the time that a watch takes.
pub const KEY_HOLD: Duration = Duration::from_secs(15);

/// In place of a former key that this hub does not know: it is no fingerprint, so it is nobody's.
const UNKNOWN_KEY: &str = "unknown";

/// One registered child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Its id, for good.
    pub id: ClusterId,
    /// What people call it.
    pub name: ClusterName,
    /// The dedicated namespace that holds its `ManagedCluster` and its agent's account.
    pub namespace: String,
    /// Fingerprint of the only key that may hold its credential.
    pub key_fingerprint: String,
    /// Shut out by a person.
    pub denied: bool,
    /// When any hub replica last heard from it.
    pub last_seen: Option<Timestamp>,
}

/// The clusters, by id.
#[derive(Debug)]
pub struct Catalog {
    snapshot: ArcSwap<HashMap<ClusterId, Arc<Cluster>>>,
    /// `None` for a name that two clusters have: then it names neither.
    names: ArcSwap<HashMap<ClusterName, Option<ClusterId>>>,
    /// Names that clusters had before, at most five each: about 150 bytes a name.
    former_names: ArcSwap<HashMap<ClusterName, ClusterId>>,
    /// Keys that clusters had until less than [`KEY_HOLD`] ago: about 200 bytes for each that was changed.
    former: Mutex<HashMap<ClusterId, (String, Instant)>>,
    changed: watch::Sender<u64>,
    registrations: watch::Sender<u64>,
}

impl Default for Catalog {
    fn default() -> Self {
        Self {
            snapshot: ArcSwap::default(),
            names: ArcSwap::default(),
            former_names: ArcSwap::default(),
            former: Mutex::default(),
            changed: watch::Sender::new(0),
            registrations: watch::Sender::new(0),
        }
    }
}

impl Catalog {
    /// The cluster of this id.
    pub fn get(&self, id: &ClusterId) -> Option<Arc<Cluster>> {
        self.snapshot.load().get(id).cloned()
    }

    /// The id of the cluster that is called so, or that has this text as its id.
    pub fn named(&self, name: &ClusterName) -> Option<ClusterId> {
        let names = self.names.load();
        let id = name.as_str().parse::<ClusterId>().ok().filter(|id| self.snapshot.load().contains_key(id));
        // The id first: whoever may choose a name could otherwise choose the id of another cluster.
        id.or_else(|| names.get(name).cloned().flatten())
    }

    /// The cluster that was called so before it was renamed. `None` for a name that a cluster has.
    pub fn formerly(&self, name: &ClusterName) -> Option<Arc<Cluster>> {
        if self.named(name).is_some() || self.names.load().contains_key(name) {
            return None;
        }
        self.get(self.former_names.load().get(name)?)
    }

    /// Takes the place of all former names that were known.
    pub(crate) fn remember_names(&self, former: HashMap<ClusterName, ClusterId>) {
        if **self.former_names.load() != former {
            self.former_names.store(Arc::new(former));
        }
    }

    /// All clusters.
    pub fn all(&self) -> Arc<HashMap<ClusterId, Arc<Cluster>>> {
        self.snapshot.load_full()
    }

    /// Takes the place of all that was known; whoever holds a receiver of [`Catalog::changes`] is woken.
    pub fn replace(&self, clusters: impl IntoIterator<Item = Cluster>) {
        let new: HashMap<_, _> =
            clusters.into_iter().map(|cluster| (cluster.id.clone(), Arc::new(cluster))).collect();
        let old = self.snapshot.load_full();
        let heartbeat = old.len() == new.len()
            && new.values().all(|new| old.get(&new.id).is_some_and(|old| same_but_seen(old, new)));
        if !heartbeat {
            // Before anybody can see the new key.
            self.remember(&old, &new);
        }
        if !heartbeat {
            self.names.store(Arc::new(by_name(new.values())));
        }
        self.snapshot.store(Arc::new(new));
        self.changed.send_modify(|generation| *generation += 1);
        if !heartbeat || *self.registrations.borrow() == 0 {
            self.registrations.send_modify(|generation| *generation += 1);
        }
    }

    /// Keeps the keys that are no longer those of their clusters.
    fn remember(&self, old: &HashMap<ClusterId, Arc<Cluster>>, new: &HashMap<ClusterId, Arc<Cluster>>) {
        let now = Instant::now();
        let mut former = self.former();
        former.retain(|_, (_, since)| now.duration_since(*since) < KEY_HOLD);
        for old in old.values() {
            if new.get(&old.id).is_none_or(|new| new.key_fingerprint != old.key_fingerprint) {
                former.insert(old.id.clone(), (old.key_fingerprint.clone(), now));
            }
        }
    }

    /// Holds this cluster's tunnel for [`KEY_HOLD`] from `since` on: a token of an account that is gone may be
    /// believed for as long.
    pub(crate) fn hold(&self, id: &ClusterId, since: Instant) {
        let mut former = self.former();
        if former.get(id).is_none_or(|(_, known)| *known < since) {
            former.insert(id.clone(), (UNKNOWN_KEY.to_owned(), since));
        }
    }

    /// How long nobody may open this cluster's tunnel, because it had another key or account until moments ago.
    pub fn held(&self, cluster: &Cluster) -> Option<Duration> {
        let (key, since) = self.former().get(&cluster.id).cloned()?;
        let rest = KEY_HOLD.saturating_sub(since.elapsed());
        (key != cluster.key_fingerprint && !rest.is_zero()).then_some(rest)
    }

    fn former(&self) -> MutexGuard<'_, HashMap<ClusterId, (String, Instant)>> {
        // Nothing under this lock can panic half way through a change.
        self.former.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the first list has arrived: until then a cluster that is not here may well exist.
    pub fn is_known(&self) -> bool {
        *self.changed.borrow() > 0
    }

    /// A generation that grows with each change; 0 until the first list has arrived.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The same without heartbeats: it grows when a cluster comes, goes or changes otherwise than in `last_seen`.
    pub fn registrations(&self) -> watch::Receiver<u64> {
        self.registrations.subscribe()
    }
}

fn by_name<'a>(clusters: impl Iterator<Item = &'a Arc<Cluster>>) -> HashMap<ClusterName, Option<ClusterId>> {
    let mut names = HashMap::new();
    for cluster in clusters {
        names
            .entry(cluster.name.clone())
            .and_modify(|id| *id = None)
            .or_insert_with(|| Some(cluster.id.clone()));
    }
    names
}

/// Whether nothing but the time of the last sign of life is another.
pub(crate) fn same_but_seen(old: &Cluster, new: &Cluster) -> bool {
    old.id == new.id
        && old.name == new.name
        && old.namespace == new.namespace
        && old.key_fingerprint == new.key_fingerprint
        && old.denied == new.denied
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(id: &str) -> Cluster {
        Cluster {
            id: id.parse().unwrap(),
            name: id.parse().unwrap(),
            namespace: "clusternet-x".to_owned(),
            key_fingerprint: String::new(),
            denied: false,
            last_seen: None,
        }
    }

    fn with_key(id: &str, key: &str) -> Cluster {
        Cluster { key_fingerprint: key.to_owned(), ..cluster(id) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cluster_with_another_key_is_held_for_as_long_as_old_tokens_are_believed() {
        let catalog = Catalog::default();
        let held = || catalog.held(&catalog.get(&"a".parse().unwrap()).unwrap()).is_some();
        catalog.replace([with_key("a", "old"), with_key("b", "k")]);
        assert!(!held(), "one that is new to this hub");
        catalog.replace([with_key("a", "new"), with_key("b", "k")]);
        assert!(held());
        assert!(catalog.held(&with_key("b", "k")).is_none());
        // Away and back with a third key; then the first one again.
        catalog.replace([with_key("b", "k")]);
        catalog.replace([with_key("a", "third"), with_key("b", "k")]);
        assert!(held());
        catalog.replace([with_key("a", "old")]);
        assert!(held());
        tokio::time::advance(KEY_HOLD - Duration::from_millis(1)).await;
        assert!(held());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!held());
        catalog.replace([]);
        catalog.replace([with_key("a", "old")]);
        assert!(!held(), "the same agent comes back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_cluster_is_held_whatever_key_it_has_when_its_account_went() {
        let catalog = Catalog::default();
        let id: ClusterId = "a".parse().unwrap();
        catalog.replace([with_key("a", ""), with_key("b", "k")]);
        let began = Instant::now();
        catalog.hold(&id, began);
        assert_eq!(catalog.held(&with_key("a", "")), Some(KEY_HOLD));
        assert!(catalog.held(&with_key("b", "k")).is_none());
        tokio::time::advance(KEY_HOLD / 3).await;
        // Said again of the same moment, it is no longer for that; said of a later one, it is.
        catalog.hold(&id, began);
        assert_eq!(catalog.held(&with_key("a", "k")), Some(KEY_HOLD - KEY_HOLD / 3));
        catalog.hold(&id, Instant::now());
        tokio::time::advance(KEY_HOLD - Duration::from_millis(1)).await;
        assert!(catalog.held(&with_key("a", "k")).is_some());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(catalog.held(&with_key("a", "k")).is_none());
    }

    #[test]
    fn a_heartbeat_is_no_change_of_a_registration() {
        let catalog = Catalog::default();
        let registrations = catalog.registrations();
        let count = || *registrations.borrow();
        catalog.replace([]);
        assert_eq!(count(), 1, "the first list, even if it is empty");
        catalog.replace([cluster("a"), cluster("b")]);
        assert_eq!(count(), 2);
        let beat = Cluster { last_seen: Some(Timestamp::UNIX_EPOCH), ..cluster("a") };
        catalog.replace([beat, cluster("b")]);
        assert_eq!((count(), *catalog.changes().borrow()), (2, 3));
        for changed in [
            vec![cluster("a")],
            vec![cluster("b")],
            vec![Cluster { denied: true, ..cluster("b") }],
            vec![with_key("b", "k")],
        ] {
            let before = count();
            catalog.replace(changed);
            assert_eq!(count(), before + 1);
        }
    }

    #[test]
    fn a_former_name_leads_to_its_cluster_until_another_has_it() {
        let catalog = Catalog::default();
        let formerly = || catalog.formerly(&"old".parse().unwrap()).map(|cluster| cluster.name.to_string());
        catalog.replace([cluster("a")]);
        assert_eq!(formerly(), None);
        catalog.remember_names([("old".parse().unwrap(), "a".parse().unwrap())].into());
        assert_eq!(formerly().as_deref(), Some("a"));
        assert_eq!(catalog.named(&"old".parse().unwrap()), None);
        catalog.replace([cluster("a"), Cluster { name: "old".parse().unwrap(), ..cluster("b") }]);
        assert_eq!(formerly(), None, "it is another's");
        catalog.replace([Cluster { name: "c".parse().unwrap(), ..cluster("d") }]);
        assert_eq!(formerly(), None, "unregistered");
    }

    #[test]
    fn a_replaced_catalog_forgets_what_is_gone() {
        let catalog = Catalog::default();
        let changes = catalog.changes();
        catalog.replace([cluster("a"), cluster("b")]);
        catalog.replace([cluster("b")]);
        assert!(catalog.get(&"a".parse().unwrap()).is_none());
        assert!(catalog.get(&"b".parse().unwrap()).is_some());
        assert_eq!(*changes.borrow(), 2);
    }
}
