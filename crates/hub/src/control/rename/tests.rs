//! Renames against a parent's API: what stays, what a crash leaves and how it is mended, and who is refused.

use std::sync::atomic::{AtomicUsize, Ordering};

use api::names::{CREATED_BY_HUB, LABEL_CLUSTER_ID, LABEL_CREATED_BY};
use runtime::stop::Stop;
use serde_json::Value;

use super::super::fake_api::{FakeApi, Reaction};
use super::super::{approval, events, watch};
use super::*;
use crate::catalog::Catalog;
use crate::config::Settings;
use crate::tunnels::Tunnels;

const REQUEST: &str = "/apis/clusters.clusternet.io/v1beta1/clusterregistrationrequests/clusternet-c1";

fn path(id: &str, name: &str) -> String {
    let space = dedicated_namespace(&id.parse().unwrap());
    format!("/apis/clusters.clusternet.io/v1beta1/namespaces/{space}/managedclusters/{name}")
}

fn object(id: &str, name: &str, wish: Option<&str>) -> Value {
    json!({
        "apiVersion": "clusters.clusternet.io/v1beta1", "kind": "ManagedCluster",
        "metadata": {
            "creationTimestamp": "2025-01-01T00:00:00Z",
            "annotations": { RENAME_TO: wish.unwrap_or_default(), "site": "ulm" },
            "labels": { LABEL_CREATED_BY: CREATED_BY_HUB, LABEL_CLUSTER_ID: id, LABEL_CLUSTER_NAME: name, "a": "b" },
        },
        "spec": { "clusterId": id, "clusterType": "StandardCluster", "syncMode": "Pull", "keyFingerprint": "k" },
        "status": { "k8sVersion": "v1.36.0", "conditions": [
            { "type": "Ready", "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" } ] },
    })
}

struct World {
    api: FakeApi,
    control: Arc<Control>,
    working: Working,
}

impl World {
    /// Cluster c1 is called old, and somebody wishes another name for it.
    async fn start(wish: Option<&str>) -> Self {
        let api = FakeApi::start().await;
        let mut cluster = object("c1", "old", wish);
        if wish.is_none() {
            cluster["metadata"]["annotations"].as_object_mut().unwrap().remove(RENAME_TO);
        }
        api.put(&path("c1", "old"), &cluster);
        api.put(
            REQUEST,
            &json!({ "apiVersion": "clusters.clusternet.io/v1beta1", "kind": "ClusterRegistrationRequest",
                     "metadata": { "labels": { LABEL_CLUSTER_NAME: "old" } },
                     "spec": { "clusterId": "c1", "clusterName": "old", "keyFingerprint": "k" },
                     "status": { "result": "Approved", "managedClusterName": "old" } }),
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
        control.catalog.replace([]);
        Self { api, control: Arc::new(control), working: (Claims::default(), Claims::default()) }
    }

    async fn settle(&self) -> Result<(), Trouble> {
        let (story, _remarks) = events::story();
        settle(&self.control, &self.working, &story, &"c1".parse().unwrap()).await
    }

    fn names(&self) -> Vec<String> {
        let all = self.api.paths();
        let clusters = all.iter().filter_map(|path| path.split_once("/managedclusters/"));
        clusters.map(|(_, name)| name.to_owned()).collect()
    }

    fn annotation(&self, name: &str, key: &str) -> Value {
        self.api.get(&path("c1", name)).unwrap()["metadata"]["annotations"][key].clone()
    }

    /// The cluster has this name, everywhere, and nothing is left of another.
    fn assert_is(&self, name: &str, what: &str) {
        assert_eq!(self.names(), [name], "{what}");
        let object = self.api.get(&path("c1", name)).unwrap();
        assert_eq!(object["spec"]["keyFingerprint"], "k", "{what}");
        assert_eq!(object["status"]["k8sVersion"], "v1.36.0", "{what}");
        assert_eq!(object["metadata"]["labels"][LABEL_CLUSTER_NAME], name, "{what}");
        assert_eq!(object["metadata"]["annotations"]["site"], "ulm", "{what}");
        let request = self.api.get(REQUEST).unwrap();
        assert_eq!(request["spec"]["clusterName"], name, "{what}");
        assert_eq!(request["metadata"]["labels"][LABEL_CLUSTER_NAME], name, "{what}");
        assert_eq!(request["status"]["managedClusterName"], name, "{what}");
        assert_eq!(request["status"]["result"], "Approved", "{what}");
    }
}

#[tokio::test]
async fn a_renamed_cluster_keeps_all_that_it_was() {
    let world = World::start(Some("new")).await;
    world.settle().await.unwrap();
    world.assert_is("new", "renamed");
    assert_eq!(world.annotation("new", FORMER_NAMES), "old");
    assert_eq!(world.annotation("new", RENAME_TO), Value::Null);
    // And back: a name that it has again is none that it had.
    let mut again = world.api.get(&path("c1", "new")).unwrap();
    again["metadata"]["annotations"][RENAME_TO] = json!("old");
    again["metadata"]["creationTimestamp"] = json!("2025-02-01T00:00:00Z");
    world.api.put(&path("c1", "new"), &again);
    world.settle().await.unwrap();
    world.assert_is("old", "and back");
    assert_eq!(world.annotation("old", FORMER_NAMES), "new");
}

#[tokio::test]
async fn a_hub_that_dies_at_any_step_goes_on_where_it_was() {
    let mut died = 0;
    for dies_at in 0.. {
        let world = World::start(Some("new")).await;
        let writes = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&writes);
        world.api.hook(move |objects, line| {
            if line.starts_with("GET") {
                return Reaction::Go;
            }
            // At no moment is the cluster without an object.
            assert!(objects.keys().any(|path| path.contains("/managedclusters/")));
            let count = counted.fetch_add(1, Ordering::Relaxed);
            if count == dies_at { Reaction::Refuse(500) } else { Reaction::Go }
        });
        let first = world.settle().await;
        if first.is_err() {
            died += 1;
            world.settle().await.unwrap();
        }
        world.assert_is("new", &format!("died at write {dies_at}"));
        if first.is_ok() {
            break;
        }
    }
    assert_eq!(died, 5, "create, status, request, its status, delete");
}

#[tokio::test]
async fn a_wish_that_is_taken_back_half_way_is_undone() {
    for dies_at in 1..5 {
        let world = World::start(Some("new")).await;
        let writes = AtomicUsize::new(0);
        world.api.hook(move |_, line| {
            let write = !line.starts_with("GET");
            if write && writes.fetch_add(1, Ordering::Relaxed) == dies_at {
                return Reaction::Refuse(500);
            }
            Reaction::Go
        });
        world.settle().await.unwrap_err();
        assert_eq!(world.names(), ["new", "old"]);
        let mut first = world.api.get(&path("c1", "old")).unwrap();
        first["metadata"]["annotations"].as_object_mut().unwrap().remove(RENAME_TO);
        world.api.put(&path("c1", "old"), &first);
        world.settle().await.unwrap();
        world.assert_is("old", &format!("died at write {dies_at}"));
    }
}

#[tokio::test]
async fn two_clusters_never_get_one_name() {
    for (wish, why) in [
        ("taken", "taken by another cluster"),
        ("c2", "the id of another cluster"),
        ("No Name", "has to be at most"),
        (&"x".repeat(61), "has to be at most"),
    ] {
        let world = World::start(Some(wish)).await;
        world.api.put(&path("c2", "taken"), &object("c2", "taken", None));
        world.control.catalog.replace([crate::catalog::Cluster {
            id: "c2".parse().unwrap(),
            name: "taken".parse().unwrap(),
            namespace: dedicated_namespace(&"c2".parse().unwrap()),
            key_fingerprint: String::new(),
            denied: false,
            last_seen: None,
        }]);
        world.settle().await.unwrap();
        let refused = world.annotation("old", RENAME_REFUSED);
        assert!(refused.as_str().unwrap().contains(why), "{wish}: {refused}");
        assert_eq!(world.annotation("old", RENAME_TO), Value::Null, "{wish}");
        world.api.delete(&path("c2", "taken"));
        world.assert_is("old", wish);
    }
}

#[tokio::test]
async fn a_name_that_is_taken_meanwhile_is_given_back() {
    let world = World::start(Some("new")).await;
    let mut other = object("c2", "new", None);
    other["metadata"]["name"] = json!("new");
    let mut once = Some((path("c2", "new"), other));
    world.api.hook(move |objects, line| {
        if line.starts_with("PATCH")
            && line.contains("/managedclusters/new")
            && let Some((path, object)) = once.take()
        {
            objects.insert(path, object);
        }
        Reaction::Go
    });
    world.settle().await.unwrap();
    assert!(world.annotation("old", RENAME_REFUSED).as_str().unwrap().contains("taken"));
    world.api.delete(&path("c2", "new"));
    world.assert_is("old", "the other one has it");
}

#[tokio::test]
async fn whoever_may_only_create_takes_no_clusters_place() {
    // An object of the id is there already, waiting for the first to go.
    let world = World::start(Some("new")).await;
    let mut evil = object("c1", "evil", None);
    evil["metadata"]["creationTimestamp"] = json!("2025-06-01T00:00:00Z");
    evil["spec"]["keyFingerprint"] = json!("evil");
    world.api.put(&path("c1", "evil"), &evil);
    world.settle().await.unwrap();
    assert!(world.annotation("old", RENAME_REFUSED).as_str().unwrap().contains("evil"));
    assert_eq!(world.names(), ["evil", "old"], "the first is not deleted while another waits");

    // One that pretends to be the hub's own second object is no likeness: it goes.
    let world = World::start(Some("new")).await;
    let uid = world.api.get(&path("c1", "old")).unwrap()["metadata"]["uid"].clone();
    evil["metadata"]["annotations"] = json!({ RENAMED_FROM: uid });
    world.api.put(&path("c1", "new"), &evil);
    world.settle().await.unwrap();
    world.assert_is("new", "with its own key");
}

#[tokio::test]
async fn a_cluster_that_is_shut_out_meanwhile_stays_shut_out() {
    let world = World::start(Some("new")).await;
    let mut once = true;
    let old = path("c1", "old");
    world.api.hook(move |objects, line| {
        // The second is there; now somebody denies the first.
        if line.starts_with("PATCH") && std::mem::take(&mut once) {
            let first = objects.get_mut(&old).unwrap();
            first["spec"]["denied"] = json!(true);
            first["metadata"]["resourceVersion"] = json!("9999");
        }
        Reaction::Go
    });
    world.settle().await.unwrap();
    assert_eq!(world.api.get(&path("c1", "new")).unwrap()["spec"]["denied"], true);
    assert_eq!(world.names(), ["new"]);
}

#[tokio::test]
async fn a_rename_in_progress_is_no_unregistering() {
    // Whatever the others see between two writes of a rename, they leave the cluster alone.
    for dies_at in 1..5 {
        let world = World::start(Some("new")).await;
        let writes = AtomicUsize::new(0);
        world.api.hook(move |_, line| {
            let write = !line.starts_with("GET");
            if write && writes.fetch_add(1, Ordering::Relaxed) == dies_at {
                return Reaction::Refuse(500);
            }
            Reaction::Go
        });
        world.settle().await.unwrap_err();
        assert_eq!(approval::tests::step_for(&world.control, "c1").await, "Nothing", "{dies_at}");
        super::super::gc::tests::forget_one(&world.control, "c1").await;
        assert_eq!(world.names(), ["new", "old"]);
        assert!(world.api.get(REQUEST).is_some());
    }
}

#[tokio::test]
async fn a_cluster_that_is_being_worked_on_is_renamed_later() {
    let world = World::start(Some("new")).await;
    let claim = world.working.0.take(&"c1".parse().unwrap()).unwrap();
    assert!(matches!(world.settle().await, Err(Trouble::Busy)));
    drop(claim);
    let name = world.working.1.take(&"new".parse().unwrap()).unwrap();
    assert!(matches!(world.settle().await, Err(Trouble::Busy)), "another cluster is set up under that name");
    drop(name);
    world.settle().await.unwrap();
    world.assert_is("new", "at last");
}

#[test]
fn an_object_remembers_a_few_former_names() {
    let mut cluster: ManagedCluster = serde_json::from_value(object("c1", "n0", None)).unwrap();
    for n in 1..10 {
        cluster = likeness(&cluster, &format!("n{n}").parse().unwrap());
    }
    let names: Vec<_> = former_names(cluster.annotations()).iter().map(ToString::to_string).collect();
    assert_eq!(names, ["n8", "n7", "n6", "n5", "n4"]);
    let odd = [(FORMER_NAMES.to_owned(), "a,,B C,../x,b".to_owned())].into();
    assert_eq!(former_names(&odd).len(), 2);
}

#[test]
fn the_watch_tells_of_wishes_and_of_what_a_rename_left() {
    let ids = |objects: &[Value]| watch::tests::wished(objects);
    let mut plain = object("c1", "old", None);
    plain["metadata"]["annotations"] = json!({});
    plain["metadata"]["name"] = json!("old");
    plain["metadata"]["namespace"] = json!(dedicated_namespace(&"c1".parse().unwrap()));
    assert!(ids(&[plain.clone()]).is_empty());
    let mut wishing = plain.clone();
    wishing["metadata"]["annotations"] = json!({ RENAME_TO: "new" });
    assert_eq!(ids(&[wishing]), ["c1"]);
    let mut second = plain.clone();
    second["metadata"]["name"] = json!("new");
    second["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert!(ids(&[plain.clone(), second.clone()]).is_empty(), "somebody's object");
    second["metadata"]["annotations"] = json!({ RENAMED_FROM: "u" });
    assert_eq!(ids(&[plain, second]), ["c1"]);
}
