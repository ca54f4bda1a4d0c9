//! The watch on agents' accounts. Whoever deletes one has taken the agent's credential back, and that counts at once: the
//! tunnel is cut, and none is let in for as long as the parent may still believe a token of that account. Never writes.
//!
//! The account's metadata is all that is watched. A key that is replaced, and a cluster that is unregistered, come by here
//! too, for their account is deleted; what happens then has happened already, or is about to.

use std::collections::HashMap;
use std::sync::Arc;

use api::names::AGENT_ACCOUNT;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch_objects};
use kube::{Api, ResourceExt as _};
use tokio::time::Instant;

use super::{Control, catalog_is_filled};
use crate::rewatch::Rewatch;
use crate::tunnels::end::End;

type Account = PartialObjectMeta<ServiceAccount>;

/// The UIDs of all agents' accounts, by namespace: about 150 bytes each.
#[derive(Debug, Default)]
struct Seen {
    uids: HashMap<String, String>,
    /// While a list arrives, what it held so far.
    arriving: Option<HashMap<String, String>>,
    complete: bool,
}

/// Runs until stop.
pub(super) async fn run(control: Arc<Control>) -> anyhow::Result<()> {
    if !catalog_is_filled(&control).await {
        return Ok(());
    }
    let accounts: Api<Account> = Api::all(control.client.clone());
    // The hub may see accounts of this name only, and a kube-apiserver takes the name from here.
    let named = watcher::Config::default().fields(&format!("metadata.name={AGENT_ACCOUNT}")).any_semantic();
    let mut events = watch_objects(accounts, named).backoff(Rewatch::default()).boxed();
    let mut seen = Seen::default();
    loop {
        let event = tokio::select! {
            biased;
            () = control.stop.cancelled() => return Ok(()),
            event = events.next() => event,
        };
        match event {
            Some(Ok(event)) => shut_out(&control, &seen.take(event, || namespaces(&control))),
            Some(Err(error)) => {
                tracing::warn!(%error, "the watch on agents' accounts broke; it goes on by itself");
            }
            None => anyhow::bail!("the watch on agents' accounts ended"),
        }
    }
}

/// Where there should be an account.
fn namespaces(control: &Control) -> Vec<String> {
    control.catalog.all().values().map(|cluster| cluster.namespace.clone()).collect()
}

/// Cuts the tunnels of these namespaces' clusters, and lets none in for a while.
fn shut_out(control: &Control, gone: &[String]) {
    if gone.is_empty() {
        return;
    }
    for cluster in control.catalog.all().values().filter(|cluster| gone.contains(&cluster.namespace)) {
        // In this order: whoever is cut comes back at once.
        control.catalog.hold(&cluster.id, Instant::now());
        control.tunnels.close(&cluster.id, End::AccountDeleted);
    }
}

impl Seen {
    /// The namespaces whose account is gone, or is another one by now.
    fn take(&mut self, event: Event<Account>, wanted: impl FnOnce() -> Vec<String>) -> Vec<String> {
        match event {
            Event::Init => {
                self.arriving = Some(HashMap::new());
                Vec::new()
            }
            Event::InitApply(account) => {
                let arriving = self.arriving.get_or_insert_default();
                arriving.insert(account.namespace().unwrap_or_default(), account.uid().unwrap_or_default());
                Vec::new()
            }
            Event::InitDone => {
                let now = self.arriving.take().unwrap_or_default();
                let before = std::mem::replace(&mut self.uids, now);
                let gone = before.iter().filter(|(space, uid)| self.uids.get(*space) != Some(uid));
                let mut gone: Vec<String> = gone.map(|(space, _)| space.clone()).collect();
                // Deleted before this hub was there; moments ago, perhaps.
                if !std::mem::replace(&mut self.complete, true) {
                    gone.extend(wanted().into_iter().filter(|space| !self.uids.contains_key(space)));
                }
                gone
            }
            Event::Apply(account) => {
                let (space, uid) =
                    (account.namespace().unwrap_or_default(), account.uid().unwrap_or_default());
                match self.uids.insert(space.clone(), uid.clone()) {
                    Some(before) if before != uid => vec![space],
                    Some(_) | None => Vec::new(),
                }
            }
            Event::Delete(account) => {
                let space = account.namespace().unwrap_or_default();
                self.uids.remove(&space).map_or_else(Vec::new, |_| vec![space])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use runtime::stop::Stop;
    use serde_json::json;

    use super::*;
    use crate::catalog::{Catalog, Cluster};
    use crate::config::Settings;
    use crate::control::fake_api::FakeApi;
    use crate::tunnels::Tunnels;
    use crate::tunnels::tests::pair_with_key;

    fn account(space: &str, uid: &str) -> Account {
        let metadata = json!({ "name": AGENT_ACCOUNT, "namespace": space, "uid": uid });
        serde_json::from_value(json!({ "metadata": metadata })).unwrap()
    }

    #[test]
    fn an_account_that_is_gone_is_noticed_however_the_watch_tells() {
        let mut seen = Seen::default();
        let wanted = || ["a", "b", "c"].map(ToOwned::to_owned).to_vec();
        let list = |seen: &mut Seen, all: &[(&str, &str)]| {
            seen.take(Event::Init, wanted);
            for (space, uid) in all {
                seen.take(Event::InitApply(account(space, uid)), wanted);
            }
            let mut gone = seen.take(Event::InitDone, wanted);
            gone.sort();
            gone
        };
        assert_eq!(list(&mut seen, &[("a", "1"), ("b", "2")]), ["c"], "before this hub was there");
        assert_eq!(seen.take(Event::Delete(account("a", "1")), wanted), ["a"]);
        assert!(seen.take(Event::Delete(account("a", "1")), wanted).is_empty());
        assert!(seen.take(Event::Apply(account("a", "3")), wanted).is_empty(), "a new one");
        assert!(seen.take(Event::Apply(account("a", "3")), wanted).is_empty(), "a label");
        assert_eq!(seen.take(Event::Apply(account("a", "4")), wanted), ["a"], "a deletion that was missed");
        assert_eq!(list(&mut seen, &[("a", "5")]), ["a", "b"], "two that were missed");
        assert!(list(&mut seen, &[("a", "5")]).is_empty(), "said once");
    }

    #[tokio::test]
    async fn a_deleted_account_cuts_its_clusters_tunnel_and_holds_the_door() {
        let api = FakeApi::start().await;
        let cluster = |id: &str| Cluster {
            id: id.parse().unwrap(),
            name: id.parse().unwrap(),
            namespace: format!("clusternet-{id}"),
            key_fingerprint: "k".to_owned(),
            denied: false,
            last_seen: None,
        };
        let control = Control {
            client: api.client(),
            catalog: Arc::new(Catalog::default()),
            tunnels: Arc::new(Tunnels::default()),
            peers: crate::control::fake_api::no_peers(),
            leading: crate::control::fake_api::always_leading(),
            settings: Arc::new(Settings::default()),
            stop: Stop::new(),
        };
        control.catalog.replace([cluster("c1"), cluster("c2")]);
        let (one, two) = (pair_with_key("c1", "a", "k").await, pair_with_key("c2", "a", "k").await);
        let _entered = [&one, &two].map(|pair| control.tunnels.insert(Arc::clone(&pair.live)).unwrap());
        shut_out(&control, &[]);
        assert!(!one.live.is_cut() && control.catalog.held(&cluster("c1")).is_none());
        shut_out(&control, &["clusternet-c1".to_owned()]);
        assert!(one.live.is_cut() && control.catalog.held(&cluster("c1")).is_some());
        assert!(!two.live.is_cut() && control.catalog.held(&cluster("c2")).is_none());
    }
}
