//! The clusters that exist, as the watch on `ManagedCluster` last told: a snapshot that the request path
//! reads without a lock and only `control/watch.rs` replaces.

use std::collections::HashMap;
use std::sync::Arc;

use api::names::{ClusterId, ClusterName};
use arc_swap::ArcSwap;
use jiff::Timestamp;
use tokio::sync::watch;

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
    changed: watch::Sender<u64>,
}

impl Default for Catalog {
    fn default() -> Self {
        Self { snapshot: ArcSwap::default(), changed: watch::Sender::new(0) }
    }
}

impl Catalog {
    /// The cluster of this id.
    pub fn get(&self, id: &ClusterId) -> Option<Arc<Cluster>> {
        self.snapshot.load().get(id).cloned()
    }

    /// All clusters.
    pub fn all(&self) -> Arc<HashMap<ClusterId, Arc<Cluster>>> {
        self.snapshot.load_full()
    }

    /// Takes the place of all that was known; whoever holds a receiver of [`Catalog::changes`] is woken.
    pub fn replace(&self, clusters: impl IntoIterator<Item = Cluster>) {
        let snapshot = clusters.into_iter().map(|cluster| (cluster.id.clone(), Arc::new(cluster))).collect();
        self.snapshot.store(Arc::new(snapshot));
        self.changed.send_modify(|generation| *generation += 1);
    }

    /// A generation that grows with each change; 0 until the first list has arrived.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_catalog_forgets_what_is_gone() {
        let cluster = |id: &str| Cluster {
            id: id.parse().unwrap(),
            name: id.parse().unwrap(),
            namespace: "clusternet-x".to_owned(),
            key_fingerprint: String::new(),
            denied: false,
            last_seen: None,
        };
        let catalog = Catalog::default();
        let changes = catalog.changes();
        catalog.replace([cluster("a"), cluster("b")]);
        catalog.replace([cluster("b")]);
        assert!(catalog.get(&"a".parse().unwrap()).is_none());
        assert!(catalog.get(&"b".parse().unwrap()).is_some());
        assert_eq!(*changes.borrow(), 2);
    }
}
