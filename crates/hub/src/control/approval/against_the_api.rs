//! The controller against a parent's API: what it makes, what it leaves alone, and what happens when somebody
//! else changes things in between.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use api::registration::{ClusterRegistrationRequestSpec, ClusterRegistrationRequestStatus};
use runtime::stop::Stop;
use serde_json::Value;

use super::super::fake_api::{FakeApi, Objects, Reaction};
use super::super::objects::{KEY_FINGERPRINT, KEY_SINCE};
use super::*;
use crate::catalog::Catalog;
use crate::config::Settings;
use crate::tunnels::Tunnels;

const REQUEST: &str = "/apis/clusters.clusternet.io/v1beta1/clusterregistrationrequests/clusternet-c1";
const ROLE: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles/clusternet-c1";
const BINDING: &str = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/clusternet-c1";

fn id() -> ClusterId {
    "c1".parse().unwrap()
}

fn space() -> String {
    dedicated_namespace(&id())
}

fn account_path() -> String {
    format!("/api/v1/namespaces/{}/serviceaccounts/clusternet-agent", space())
}

fn cluster_path() -> String {
    format!("/apis/clusters.clusternet.io/v1beta1/namespaces/{}/managedclusters/edge", space())
}

fn request(key: &str, result: RegistrationResult, set_up: bool) -> Request {
    let spec = ClusterRegistrationRequestSpec {
        cluster_id: "c1".to_owned(),
        cluster_name: "edge".to_owned(),
        key_fingerprint: key.to_owned(),
        ..ClusterRegistrationRequestSpec::default()
    };
    let mut request = Request::new("clusternet-c1", spec);
    request.status = Some(ClusterRegistrationRequestStatus {
        result: Some(result),
        approved_key: if result == RegistrationResult::Approved { key.to_owned() } else { String::new() },
        managed_cluster_name: if set_up { "edge".to_owned() } else { String::new() },
        ..ClusterRegistrationRequestStatus::default()
    });
    request
}

struct World {
    api: FakeApi,
    context: Arc<Context>,
}

impl World {
    async fn start() -> Self {
        let api = FakeApi::start().await;
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
        let context = Arc::new(Context {
            control: Arc::new(control),
            retries: Mutex::default(),
            names: Claims::default(),
            clusters: Claims::default(),
            told: Requests::default(),
            story: super::super::events::story().0,
        });
        Self { api, context }
    }

    /// With this cluster set up for this key.
    async fn with_cluster(key: &str) -> Self {
        let world = Self::start().await;
        world.api.put(REQUEST, &request(key, RegistrationResult::Approved, false));
        world.reconcile().await.unwrap();
        assert_eq!(world.cluster()["spec"]["keyFingerprint"], key);
        world
    }

    async fn reconcile(&self) -> Result<Action, Trouble> {
        let cached = self.api.get(REQUEST).unwrap_or_else(|| {
            serde_json::to_value(request("k", RegistrationResult::Approved, false)).unwrap()
        });
        reconcile(Arc::new(serde_json::from_value(cached).unwrap()), Arc::clone(&self.context)).await
    }

    fn cluster(&self) -> Value {
        self.api.get(&cluster_path()).unwrap()
    }

    fn status(&self) -> Value {
        self.api.get(REQUEST).unwrap()["status"].clone()
    }
}

/// Calls `change` once, when this request comes.
fn when(
    asked: String,
    mut change: impl FnMut(&mut Objects) + Send + 'static,
) -> impl FnMut(&mut Objects, &str) -> Reaction + Send + 'static {
    let done = AtomicBool::new(false);
    move |objects, line| {
        if line == asked && !done.swap(true, Ordering::Relaxed) {
            change(objects);
        }
        Reaction::Go
    }
}

#[tokio::test]
async fn an_approved_request_becomes_a_whole_cluster() {
    let world = World::with_cluster("k").await;
    let wanted = [account_path(), cluster_path(), ROLE.to_owned(), BINDING.to_owned()];
    for path in wanted {
        assert!(world.api.get(&path).is_some(), "{path}");
    }
    assert_eq!(world.status()["result"], "Approved");
    assert_eq!(world.status()["managedClusterName"], "edge");
}

#[tokio::test]
async fn another_key_makes_the_old_keys_tokens_void_and_is_noted_on_the_account() {
    let world = World::with_cluster("old").await;
    let before = world.api.get(&account_path()).unwrap();
    world.api.put(REQUEST, &request("new", RegistrationResult::Approved, true));
    world.reconcile().await.unwrap();
    let after = world.api.get(&account_path()).unwrap();
    assert_ne!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(after["metadata"]["annotations"][KEY_FINGERPRINT], "new");
    assert_eq!(world.cluster()["spec"]["keyFingerprint"], "new");
}

#[tokio::test]
async fn a_request_that_is_deleted_while_it_is_carried_out_leaves_nothing_behind() {
    for asked in [
        // Before anything that agents notice,
        format!("POST {}", BINDING.rsplit_once('/').unwrap().0),
        // when the cluster is there already, and at the very end.
        format!("POST {}", cluster_path().rsplit_once('/').unwrap().0),
        format!("PATCH {REQUEST}/status"),
    ] {
        let world = World::start().await;
        world.api.put(REQUEST, &request("k", RegistrationResult::Approved, false));
        world.api.hook(when(asked.clone(), |objects| drop(objects.remove(REQUEST))));
        assert!(matches!(world.reconcile().await, Err(Trouble::Withdrawn)), "{asked}");
        let left = world.api.paths();
        // The namespace is never deleted: people may have put things there.
        assert_eq!(left, [format!("/api/v1/namespaces/{}", space())], "{asked}");
    }
}

#[tokio::test]
async fn an_approval_that_is_taken_back_in_time_makes_no_cluster() {
    let world = World::start().await;
    world.api.put(REQUEST, &request("k", RegistrationResult::Approved, false));
    let asked = format!("POST {}", BINDING.rsplit_once('/').unwrap().0);
    world.api.hook(when(asked, |objects| {
        objects.get_mut(REQUEST).unwrap()["status"]["result"] = "Denied".into();
    }));
    assert!(world.reconcile().await.is_err());
    assert!(world.api.get(&cluster_path()).is_none());
}

#[tokio::test]
async fn an_object_of_somebody_else_is_neither_used_nor_deleted() {
    let foreign = json!({ "metadata": { "labels": { "team": "x" } } });
    for path in [ROLE.to_owned(), BINDING.to_owned(), account_path()] {
        let world = World::start().await;
        world.api.put(&path, &foreign);
        world.api.put(REQUEST, &request("k", RegistrationResult::Approved, false));
        let trouble = world.reconcile().await.unwrap_err();
        assert!(
            matches!(trouble, Trouble::Belonging(belongings::Trouble::NotOurs { .. })),
            "{path}: {trouble}"
        );
        let message = world.status()["errorMessage"].as_str().unwrap().to_owned();
        assert_eq!(world.status()["result"], "Failed", "{path}");
        assert!(message.contains(path.rsplit_once('/').unwrap().1), "{message}");
        assert!(world.api.get(&cluster_path()).is_none(), "{path}");

        belongings::remove(&world.api.client(), &id()).await.unwrap();
        assert!(world.api.get(&path).is_some(), "{path} was deleted");
    }
}

#[tokio::test]
async fn a_managed_cluster_of_another_id_is_not_taken_over() {
    let world = World::start().await;
    let labels =
        json!({ "clusternet.io/created-by": "clusternet-hub", "clusters.clusternet.io/cluster-id": "c1" });
    world.api.put(
        &cluster_path(),
        &json!({ "apiVersion": "clusters.clusternet.io/v1beta1", "kind": "ManagedCluster",
                 "metadata": { "labels": labels }, "spec": { "clusterId": "c2", "keyFingerprint": "x" } }),
    );
    world.api.put(REQUEST, &request("k", RegistrationResult::Approved, false));
    assert!(world.reconcile().await.is_err());
    assert_eq!(world.status()["result"], "Failed");
    assert_eq!(world.cluster()["spec"]["keyFingerprint"], "x");
}

#[tokio::test]
async fn a_key_that_could_not_be_replaced_is_told() {
    let world = World::with_cluster("old").await;
    world.api.put(REQUEST, &request("new", RegistrationResult::Approved, true));
    let asked = format!("PATCH {}", cluster_path());
    world.api.hook(move |_, line| if line == asked { Reaction::Refuse(403) } else { Reaction::Go });
    world.reconcile().await.unwrap_err();
    assert_eq!(world.status()["result"], "Failed");
    let message = world.status()["errorMessage"].as_str().unwrap().to_owned();
    assert!(message.contains("writing the cluster's key"), "{message}");
    assert_eq!(world.cluster()["spec"]["keyFingerprint"], "old");
    // Once the cause is gone it goes on.
    world.api.hook(|_, _| Reaction::Go);
    lock(&world.context.retries).clear();
    world.reconcile().await.unwrap();
    assert_eq!(
        (&world.status()["result"], &world.status()["errorMessage"]),
        (&json!("Approved"), &Value::Null)
    );
}

#[tokio::test]
async fn a_parent_that_never_answers_holds_no_request_for_ever() {
    let world = World::with_cluster("old").await;
    world.api.put(REQUEST, &request("new", RegistrationResult::Approved, true));
    world.api.hook(|_, _| Reaction::Hang);
    // Over the connection that there is, so that it is not the connecting that ends.
    tokio::time::pause();
    let done = tokio::time::timeout(DEADLINE * 2, world.reconcile()).await;
    assert!(matches!(done, Ok(Err(Trouble::Slow))), "{done:?}");
}

#[tokio::test]
async fn unregistering_removes_what_is_the_clusters() {
    let world = World::with_cluster("k").await;
    let invitation = "/api/v1/namespaces/clusternet-system/secrets/invitation-0123456789abcdef";
    world.api.put(
        invitation,
        &json!({ "type": crate::join::stored::SECRET_TYPE,
                 "metadata": { "labels": { "clusters.clusternet.io/cluster-id": "c1" } } }),
    );
    // The same cluster may come again, and so would whoever had a kubeconfig of it.
    let token = crate::issued::tests::stored("twl-own", None);
    let token_path = |id: &str| format!("/api/v1/namespaces/clusternet-system/secrets/credential-{id}");
    world.api.put(&token_path("0123456789abcdef"), &token.to_secret());
    let of_another = crate::issued::stored::Stored { cluster: "c2".parse().unwrap(), ..token };
    world.api.put(&token_path("fedcba9876543210"), &of_another.to_secret());
    world.api.delete(&cluster_path());
    world.reconcile().await.unwrap();
    let left = [format!("/api/v1/namespaces/{}", space()), token_path("fedcba9876543210")];
    assert_eq!(BTreeSet::from_iter(world.api.paths()), BTreeSet::from(left));
}

/// As `kubectl patch clsrr --subresource=status` approves: nothing is said of a key.
fn approve_plainly(world: &World) {
    let mut request = world.api.get(REQUEST).unwrap();
    request["status"]["result"] = "Approved".into();
    request["status"].as_object_mut().unwrap().remove("approvedKey");
    world.api.put(REQUEST, &request);
}

#[tokio::test]
async fn an_approval_that_names_no_key_lets_a_new_cluster_in_and_replaces_no_key() {
    let world = World::start().await;
    world.api.put(REQUEST, &request("k", RegistrationResult::Pending, false));
    approve_plainly(&world);
    world.reconcile().await.unwrap();
    assert_eq!(world.cluster()["spec"]["keyFingerprint"], "k");

    // Its request was deleted, and another key asks in a new one.
    world.api.put(REQUEST, &request("thief", RegistrationResult::Pending, true));
    approve_plainly(&world);
    world.reconcile().await.unwrap();
    assert_eq!(world.cluster()["spec"]["keyFingerprint"], "k");
    assert_eq!(world.status()["result"], "Pending");
    let message = world.status()["errorMessage"].as_str().unwrap().to_owned();
    assert!(message.contains("kubectl towline approve edge --fingerprint thief"), "{message}");
}

#[tokio::test]
async fn an_approval_that_names_no_key_is_none_once_two_have_asked() {
    let world = World::start().await;
    let mut second = serde_json::to_value(request("second", RegistrationResult::Pending, false)).unwrap();
    second["metadata"]["generation"] = 2.into();
    world.api.put(REQUEST, &second);
    approve_plainly(&world);
    world.reconcile().await.unwrap();
    assert_eq!(world.status()["result"], "Pending");
    assert!(world.api.get(&cluster_path()).is_none());
}

#[tokio::test]
async fn an_approval_for_the_key_that_was_seen_is_none_for_the_one_that_asks_now() {
    let world = World::start().await;
    let mut overtaken = request("now", RegistrationResult::Approved, false);
    overtaken.status.as_mut().unwrap().approved_key = "seen".to_owned();
    world.api.put(REQUEST, &overtaken);
    world.reconcile().await.unwrap();
    assert_eq!(world.status()["result"], "Pending");
    assert_eq!(world.status()["approvedKey"], Value::Null, "it does not wait for its key to come back");
    let message = world.status()["errorMessage"].as_str().unwrap().to_owned();
    assert!(message.contains("for key seen") && message.contains("--fingerprint now"), "{message}");
    assert!(world.api.get(&cluster_path()).is_none());
}

#[tokio::test]
async fn an_object_tells_since_when_a_cluster_has_its_key_if_another_was_believed_before() {
    let since = |world: &World| world.cluster()["metadata"]["annotations"][KEY_SINCE].clone();
    let world = World::with_cluster("old").await;
    assert_eq!(since(&world), Value::Null, "nobody was believed before");
    world.api.put(REQUEST, &request("new", RegistrationResult::Approved, true));
    world.reconcile().await.unwrap();
    let at: Timestamp = since(&world).as_str().unwrap().parse().unwrap();
    assert!(Timestamp::now().duration_since(at).as_secs() < 60);

    // Unregistered, and registered anew: the namespace tells that there was an account.
    world.api.delete(&cluster_path());
    world.reconcile().await.unwrap();
    assert!(world.api.get(REQUEST).is_none());
    world.api.put(REQUEST, &request("third", RegistrationResult::Approved, false));
    world.reconcile().await.unwrap();
    assert!(since(&world).is_string());
}

#[tokio::test]
async fn a_key_that_comes_back_after_its_cluster_was_removed_waits_for_a_person() {
    let world = World::with_cluster("k").await;
    let before = world.api.get(&account_path()).unwrap()["metadata"]["uid"].clone();
    world.api.delete(&cluster_path());
    world.reconcile().await.unwrap();
    world.api.put(REQUEST, &request("k", RegistrationResult::Pending, false));
    world.reconcile().await.unwrap();
    assert!(world.api.get(&cluster_path()).is_none());
    world.api.put(REQUEST, &request("k", RegistrationResult::Approved, false));
    world.reconcile().await.unwrap();
    assert_ne!(world.api.get(&account_path()).unwrap()["metadata"]["uid"], before, "no old token is good");
}

#[tokio::test]
async fn approved_deleted_and_approved_again_leaves_one_whole_cluster() {
    let world = World::start().await;
    for _ in 0..3 {
        world.api.put(REQUEST, &request("k", RegistrationResult::Approved, false));
        let asked = format!("POST {}", cluster_path().rsplit_once('/').unwrap().0);
        world.api.hook(when(asked, |objects| drop(objects.remove(REQUEST))));
        assert!(matches!(world.reconcile().await, Err(Trouble::Withdrawn)));
    }
    world.api.put(REQUEST, &request("k", RegistrationResult::Approved, false));
    world.reconcile().await.unwrap();
    for path in [account_path(), cluster_path(), ROLE.to_owned(), BINDING.to_owned()] {
        assert!(world.api.get(&path).is_some(), "{path}");
    }
    assert_eq!(world.status()["result"], "Approved");
}

#[tokio::test]
async fn denying_after_the_approval_shuts_out_and_the_last_word_counts() {
    let world = World::with_cluster("k").await;
    world.api.put(REQUEST, &request("k", RegistrationResult::Denied, true));
    world.reconcile().await.unwrap();
    assert_eq!(world.cluster()["spec"]["denied"], true);
    // A denial that comes while the approval is being carried out.
    let world = World::start().await;
    world.api.put(REQUEST, &request("k", RegistrationResult::Approved, false));
    world.api.hook(when(format!("PATCH {REQUEST}/status"), |objects| {
        let request = objects.get_mut(REQUEST).unwrap();
        request["status"]["result"] = "Denied".into();
        request["metadata"]["resourceVersion"] = "999".into();
    }));
    assert!(matches!(world.reconcile().await, Err(Trouble::Withdrawn)));
    assert_eq!(world.status()["result"], "Denied");
    let known = world.cluster();
    world.context.control.catalog.replace([crate::catalog::Cluster {
        id: id(),
        name: "edge".parse().unwrap(),
        namespace: space(),
        key_fingerprint: known["spec"]["keyFingerprint"].as_str().unwrap().to_owned(),
        denied: false,
        last_seen: None,
    }]);
    world.reconcile().await.unwrap();
    assert_eq!(world.cluster()["spec"]["denied"], true);
}

#[tokio::test]
async fn a_hub_that_was_away_finishes_what_was_approved_once() {
    let world = World::start().await;
    world.api.put(REQUEST, &request("k", RegistrationResult::Approved, false));
    // It stops in the middle: the account is there, the cluster is not.
    let stops = format!("POST {}", cluster_path().rsplit_once('/').unwrap().0);
    world.api.hook(move |_, line| if line == stops { Reaction::Refuse(503) } else { Reaction::Go });
    world.reconcile().await.unwrap_err();
    let account = world.api.get(&account_path()).unwrap()["metadata"]["uid"].clone();
    world.api.hook(|_, _| Reaction::Go);
    lock(&world.context.retries).clear();
    for _ in 0..2 {
        world.reconcile().await.unwrap();
    }
    assert_eq!(world.status()["result"], "Approved");
    assert_eq!(world.api.get(&account_path()).unwrap()["metadata"]["uid"], account, "one account");
}

#[tokio::test]
async fn a_cluster_that_is_being_cleared_away_is_set_up_after_that() {
    let world = World::start().await;
    world.api.put(REQUEST, &request("k", RegistrationResult::Approved, false));
    let clearing = world.context.clusters.take(&id()).unwrap();
    let trouble = world.reconcile().await.unwrap_err();
    assert!(trouble.is_lost_race(), "{trouble}");
    assert!(world.api.get(ROLE).is_none());
    drop(clearing);
    world.reconcile().await.unwrap();
    assert!(world.api.get(&cluster_path()).is_some());
}

#[tokio::test]
async fn a_name_that_another_cluster_has_is_not_given_twice() {
    let world = World::start().await;
    let other: ClusterId = "c2".parse().unwrap();
    let theirs = format!(
        "/apis/clusters.clusternet.io/v1beta1/namespaces/{}/managedclusters/edge",
        dedicated_namespace(&other)
    );
    let labels = json!({ "clusters.clusternet.io/cluster-name": "edge" });
    world.api.put(
        &theirs,
        &json!({ "apiVersion": "clusters.clusternet.io/v1beta1", "kind": "ManagedCluster",
                 "metadata": { "labels": labels }, "spec": { "clusterId": "c2", "keyFingerprint": "x" } }),
    );
    world.api.put(REQUEST, &request("k", RegistrationResult::Approved, false));
    world.reconcile().await.unwrap_err();
    assert_eq!(world.status()["result"], "Failed");
    let message = world.status()["errorMessage"].as_str().unwrap().to_owned();
    assert!(message.contains("the name edge is taken"), "{message}");
    assert_eq!(world.api.paths(), [REQUEST.to_owned(), theirs], "nothing was made");
}
