//! The watch on `ManagedCluster` that fills the catalog. Never writes.
//!
//! Only an object in the dedicated namespace of its own cluster id counts: whoever may write in another
//! namespace cannot make traffic of a cluster that is not theirs go elsewhere (Clusternet did, by label).
//! One object that cannot be read is logged and left out; it stops nothing.
//!
//! Of two objects of one cluster one counts, by [`place_of`]; who has a wish for another name, or two objects because of
//! one, is told to [`super::rename`].
//!
//! A hub that was not there when a cluster got its key reads in the object since when the cluster has it, and holds the
//! tunnel of one that got it moments ago.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use api::cluster::{ManagedCluster, RENAME_TO, RENAMED_FROM};
use api::names::{ClusterId, ClusterName};
use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch_objects};
use kube::{Api, ResourceExt as _};
use tokio::sync::watch::Sender;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use super::Control;
use super::objects::{KEY_SINCE, dedicated_namespace, place_of};
use super::rename::former_names;
use crate::catalog::{Cluster, KEY_HOLD, same_but_seen};
use crate::rewatch::Rewatch;

/// Heartbeats change nothing but `last_seen`; with 10,000 clusters there are 170 of them each second, and
/// every replacement copies the catalog. They are gathered for so long.
const GATHER: Duration = Duration::from_secs(5);

/// By how much the clocks of two hubs may differ. It costs no more than [`KEY_HOLD`], once, for clusters that got a
/// key this long before a hub started.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(5);

/// One object.
#[derive(Debug, Clone)]
struct Entry {
    place: (Timestamp, bool, String),
    key_since: Option<Timestamp>,
    wish: Option<Wish>,
    former: Vec<ClusterName>,
    cluster: Cluster,
}

/// What an object has to do with a change of its cluster's name; the text is compared, since another one is another wish.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wish {
    /// Somebody wishes this name.
    To(String),
    /// It was made for a wish of the object of this uid.
    MadeFor(String),
}

type Entries = BTreeMap<(String, String), Entry>;

/// All that the watch has told, by namespace and name.
#[derive(Debug, Default)]
struct Seen {
    objects: Entries,
    /// While a list arrives, what it held so far.
    arriving: Option<Entries>,
    /// When the first list was complete: from then on this hub sees each change of a key by itself.
    complete: Option<Instant>,
}

/// How soon the catalog has to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    Nothing,
    Heartbeat,
    Now,
}

/// Runs until stop.
pub(super) async fn run(control: Arc<Control>, wished: Sender<Vec<ClusterId>>) -> anyhow::Result<()> {
    let clusters: Api<DeserializeGuard<ManagedCluster>> = Api::all(control.client.clone());
    // From the API server's memory: to read 2,000 of them from etcd takes it 3 s of CPU (1.20), when all agents wait for
    // it. The list may be as old as that memory is, and so is all that a watch tells; what is newer follows at once.
    let config = watcher::Config::default().any_semantic();
    let mut events = watch_objects(clusters, config).backoff(Rewatch::default()).boxed();
    let mut seen = Seen::default();
    let mut ticks: Interval = interval(GATHER);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut waiting = false;
    loop {
        let urgency = tokio::select! {
            biased;
            () = control.stop.cancelled() => return Ok(()),
            _ = ticks.tick() => if waiting { Urgency::Now } else { Urgency::Nothing },
            event = events.next() => match event {
                Some(Ok(event)) => seen.take(event),
                Some(Err(error)) => {
                    tracing::warn!(%error, "the watch on managedclusters broke; it goes on by itself");
                    Urgency::Nothing
                }
                None => anyhow::bail!("the watch on managedclusters ended"),
            },
        };
        waiting |= urgency == Urgency::Heartbeat;
        if urgency == Urgency::Now {
            waiting = false;
            // Before anybody can see the cluster.
            for (id, since) in seen.young(Timestamp::now()) {
                control.catalog.hold(id, since);
            }
            control.catalog.remember_names(seen.former_names());
            control.catalog.replace(seen.clusters());
            let wishes = seen.wishes();
            wished.send_if_modified(|before| {
                let any = !wishes.is_empty() || !before.is_empty();
                *before = wishes;
                any
            });
        }
    }
}

impl Seen {
    fn take(&mut self, event: Event<DeserializeGuard<ManagedCluster>>) -> Urgency {
        match event {
            Event::Init => {
                self.arriving = Some(BTreeMap::new());
                Urgency::Nothing
            }
            Event::InitApply(object) => {
                if let (Some(arriving), Some((key, entry))) = (&mut self.arriving, read(object)) {
                    arriving.insert(key, entry);
                }
                Urgency::Nothing
            }
            Event::InitDone => {
                self.objects = self.arriving.take().unwrap_or_default();
                self.complete.get_or_insert_with(Instant::now);
                Urgency::Now
            }
            Event::Apply(object) => {
                let Some((key, entry)) = read(object) else { return Urgency::Nothing };
                match self.objects.insert(key, entry.clone()) {
                    Some(old)
                        if old.place == entry.place
                            && old.wish == entry.wish
                            && old.former == entry.former
                            && same_but_seen(&old.cluster, &entry.cluster) =>
                    {
                        Urgency::Heartbeat
                    }
                    _ => Urgency::Now,
                }
            }
            Event::Delete(object) => {
                let (namespace, name) = names(&object);
                self.objects.remove(&(namespace, name)).map_or(Urgency::Nothing, |_| Urgency::Now)
            }
        }
    }

    /// One per id.
    fn chosen(&self) -> HashMap<&ClusterId, &Entry> {
        let mut chosen: HashMap<&ClusterId, &Entry> = HashMap::new();
        for entry in self.objects.values() {
            let id = &entry.cluster.id;
            if chosen.get(id).is_none_or(|other| entry.place < other.place) {
                chosen.insert(id, entry);
            }
        }
        chosen
    }

    fn clusters(&self) -> Vec<Cluster> {
        self.chosen().into_values().map(|entry| entry.cluster.clone()).collect()
    }

    /// Clusters with a wish for another name, or with a second object that was made for one.
    fn wishes(&self) -> Vec<ClusterId> {
        let chosen = self.chosen();
        let concerned = |entry: &&Entry| {
            let first = chosen.get(&entry.cluster.id).is_some_and(|first| first.place == entry.place);
            matches!((first, &entry.wish), (true, Some(Wish::To(_))) | (false, Some(Wish::MadeFor(_))))
        };
        let mut ids: Vec<ClusterId> =
            self.objects.values().filter(concerned).map(|entry| entry.cluster.id.clone()).collect();
        ids.dedup();
        ids
    }

    /// Which cluster had which name.
    fn former_names(&self) -> HashMap<ClusterName, ClusterId> {
        let chosen = self.chosen();
        let all = chosen.values().flat_map(|entry| entry.former.iter().map(|name| (name, &entry.cluster.id)));
        all.map(|(name, id)| (name.clone(), id.clone())).collect()
    }

    /// Clusters that may have got their key before this hub could see it, moments ago; and since when they are held.
    fn young(&self, now: Timestamp) -> Vec<(&ClusterId, Instant)> {
        let Some(complete) = self.complete.filter(|complete| complete.elapsed() < KEY_HOLD) else {
            return Vec::new();
        };
        let hold = SignedDuration::try_from(KEY_HOLD).unwrap_or_default();
        // A time to come is that of a clock that is ahead.
        let young = |since: &Timestamp| now.duration_since(*since) < hold + CLOCK_SKEW;
        let young = self.objects.values().filter(|entry| entry.key_since.as_ref().is_some_and(young));
        young.map(|entry| (&entry.cluster.id, complete)).collect()
    }
}

fn names(object: &DeserializeGuard<ManagedCluster>) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}

fn read(object: DeserializeGuard<ManagedCluster>) -> Option<((String, String), Entry)> {
    let (namespace, name) = names(&object);
    let key_since = object.annotations().get(KEY_SINCE).and_then(|since| since.parse().ok());
    let annotation = |key: &str| object.annotations().get(key).cloned();
    let wish = annotation(RENAME_TO).map(Wish::To).or_else(|| annotation(RENAMED_FROM).map(Wish::MadeFor));
    let former = former_names(object.annotations());
    let read = object.0.map_err(|error| error.to_string());
    let read = read.and_then(|object| Ok((place_of(&object), cluster(&object)?)));
    match read {
        Ok((place, cluster)) => Some(((namespace, name), Entry { place, key_since, wish, former, cluster })),
        Err(error) => {
            tracing::warn!(namespace, name, error, "this ManagedCluster is left out");
            None
        }
    }
}

fn cluster(object: &ManagedCluster) -> Result<Cluster, String> {
    let id: ClusterId = object.spec.cluster_id.parse().map_err(|error| format!("spec.clusterId: {error}"))?;
    let namespace = object.namespace().unwrap_or_default();
    let wanted = dedicated_namespace(&id);
    if namespace != wanted {
        return Err(format!("it has to be in namespace {wanted}"));
    }
    Ok(Cluster {
        name: object.name_any().parse().map_err(|error| format!("metadata.name: {error}"))?,
        id,
        namespace,
        key_fingerprint: object.spec.key_fingerprint.clone(),
        denied: object.spec.denied,
        last_seen: object
            .status
            .as_ref()
            .and_then(|status| status.last_observed_time.as_ref())
            .map(|time| time.0),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The clusters that are told to the renaming.
    pub(crate) fn wished(objects: &[Value]) -> Vec<String> {
        let mut seen = Seen::default();
        for object in objects {
            seen.take(Event::Apply(serde_json::from_value(object.clone()).unwrap()));
        }
        seen.wishes().iter().map(ToString::to_string).collect()
    }

    fn object(name: &str, id: &str, created: &str, changes: Value) -> DeserializeGuard<ManagedCluster> {
        let mut value = json!({
            "apiVersion": "clusters.clusternet.io/v1beta1", "kind": "ManagedCluster",
            "metadata": { "name": name, "namespace": dedicated_namespace(&id.parse().unwrap()), "creationTimestamp": created },
            "spec": { "clusterId": id },
        });
        for (key, change) in changes.as_object().unwrap() {
            value[key] = change.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    const EARLY: &str = "2026-01-01T00:00:00Z";
    const LATE: &str = "2026-01-02T00:00:00Z";

    #[test]
    fn a_new_list_forgets_what_is_gone_only_when_it_is_complete() {
        let mut seen = Seen::default();
        seen.take(Event::Init);
        seen.take(Event::InitApply(object("a", "1", EARLY, json!({}))));
        assert_eq!(seen.take(Event::InitDone), Urgency::Now);
        seen.take(Event::Init);
        assert_eq!(seen.clusters().len(), 1, "the old list stands until the new one is there");
        assert_eq!(seen.take(Event::InitDone), Urgency::Now);
        assert!(seen.clusters().is_empty());
    }

    #[test]
    fn heartbeats_wait_and_changes_do_not() {
        let mut seen = Seen::default();
        assert_eq!(seen.take(Event::Apply(object("a", "1", EARLY, json!({})))), Urgency::Now);
        let beat = json!({ "status": { "lastObservedTime": LATE } });
        assert_eq!(seen.take(Event::Apply(object("a", "1", EARLY, beat))), Urgency::Heartbeat);
        let denied = json!({ "spec": { "clusterId": "1", "denied": true } });
        assert_eq!(seen.take(Event::Apply(object("a", "1", EARLY, denied))), Urgency::Now);
        assert!(seen.clusters()[0].denied);
        assert_eq!(seen.take(Event::Delete(object("a", "1", EARLY, json!({})))), Urgency::Now);
        assert_eq!(seen.take(Event::Delete(object("a", "1", EARLY, json!({})))), Urgency::Nothing);
    }

    #[test]
    fn an_object_elsewhere_cannot_speak_for_a_cluster() {
        let mut seen = Seen::default();
        let elsewhere = json!({ "metadata": { "name": "a", "namespace": "team-x" } });
        assert_eq!(seen.take(Event::Apply(object("a", "1", EARLY, elsewhere))), Urgency::Nothing);
        seen.take(Event::Apply(object("younger", "1", LATE, json!({}))));
        seen.take(Event::Apply(object("older", "1", EARLY, json!({}))));
        let names: Vec<_> = seen.clusters().into_iter().map(|cluster| cluster.name.to_string()).collect();
        assert_eq!(names, ["older"]);
        // Of one second: the one that the hub has written to, which nobody can who may only create.
        let status = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True", "reason": "x",
            "message": "", "lastTransitionTime": LATE }] } });
        let mut seen = Seen::default();
        seen.take(Event::Apply(object("a-newcomer", "1", EARLY, json!({}))));
        seen.take(Event::Apply(object("written-to", "1", EARLY, status)));
        assert_eq!(seen.clusters()[0].name.as_str(), "written-to");
    }

    #[test]
    fn a_rename_is_one_change_of_one_cluster() {
        let mut seen = Seen::default();
        let named = |seen: &Seen| seen.clusters().iter().map(|one| one.name.to_string()).collect::<Vec<_>>();
        seen.take(Event::Apply(object("old", "1", EARLY, json!({}))));
        let namespace = dedicated_namespace(&"1".parse().unwrap());
        let annotations = json!({ RENAMED_FROM: "u", api::cluster::FORMER_NAMES: "old" });
        let metadata = json!({ "name": "new", "namespace": namespace, "creationTimestamp": LATE, "annotations": annotations });
        assert_eq!(
            seen.take(Event::Apply(object("new", "1", LATE, json!({ "metadata": metadata })))),
            Urgency::Now
        );
        assert_eq!(named(&seen), ["old"]);
        assert!(seen.former_names().is_empty(), "of the one that counts");
        assert_eq!(seen.take(Event::Delete(object("old", "1", EARLY, json!({})))), Urgency::Now);
        assert_eq!(named(&seen), ["new"]);
        assert_eq!(seen.former_names()[&"old".parse().unwrap()].as_str(), "1");
        assert!(seen.wishes().is_empty(), "it is over");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hub_that_starts_holds_those_that_got_a_key_while_it_was_away() {
        let with_key_since = |id: &str, since: &str| {
            let namespace = dedicated_namespace(&id.parse().unwrap());
            let metadata = json!({ "name": id, "namespace": namespace, "annotations": { KEY_SINCE: since } });
            object(id, id, EARLY, json!({ "metadata": metadata }))
        };
        let mut seen = Seen::default();
        let now: Timestamp = "2026-06-01T12:00:00Z".parse().unwrap();
        let young = |seen: &Seen| {
            let mut ids: Vec<_> = seen.young(now).into_iter().map(|(id, _)| id.to_string()).collect();
            ids.sort();
            ids
        };
        seen.take(Event::Init);
        for (id, since) in [
            ("just-now", "2026-06-01T11:59:57Z"),
            ("by-a-slow-clock", "2026-06-01T11:55:00Z"),
            ("by-a-fast-clock", "2026-06-01T12:04:00Z"),
            ("long-ago", "2026-06-01T11:50:00Z"),
            ("no-time", "yesterday"),
        ] {
            seen.take(Event::InitApply(with_key_since(id, since)));
        }
        seen.take(Event::InitApply(object("never", "never", EARLY, json!({}))));
        assert!(young(&seen).is_empty(), "nobody is let in before the list is complete");
        seen.take(Event::InitDone);
        assert_eq!(young(&seen), ["by-a-fast-clock", "by-a-slow-clock", "just-now"]);
        // One that comes back at once under another key was removed before this hub was there.
        seen.take(Event::Apply(with_key_since("again", "2026-06-01T12:00:00Z")));
        assert!(young(&seen).contains(&"again".to_owned()));
        // A list that is read again makes nobody wait again.
        tokio::time::advance(KEY_HOLD).await;
        seen.take(Event::Init);
        seen.take(Event::InitApply(with_key_since("just-now", "2026-06-01T11:59:57Z")));
        seen.take(Event::InitDone);
        assert!(young(&seen).is_empty());
    }

    #[test]
    fn a_malformed_object_hides_no_other() {
        let mut seen = Seen::default();
        seen.take(Event::Apply(object("a", "1", EARLY, json!({}))));
        let malformed = json!({ "spec": { "clusterId": 7 } });
        assert_eq!(seen.take(Event::Apply(object("b", "2", EARLY, malformed))), Urgency::Nothing);
        assert_eq!(
            seen.take(Event::Apply(object("b", "2", EARLY, json!({ "spec": { "clusterId": "A/B" } })))),
            Urgency::Nothing
        );
        assert_eq!(seen.clusters().len(), 1);
    }
}
