//! Deletes what nobody owns any more: invitations that ended (which ends their tokens too), and the roles, the
//! account and the used invitations of clusters of which neither a request nor a `ManagedCluster` is left, as when
//! the request was deleted by hand before the cluster was unregistered. Looks at the API itself before it deletes.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use api::cluster::ManagedCluster;
use api::names::{
    CREATED_BY_HUB, ClusterId, LABEL_CLUSTER_ID, LABEL_CREATED_BY, SYSTEM_NAMESPACE,
    registration_request_name,
};
use api::registration::ClusterRegistrationRequest;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{DeleteParams, ListParams, Preconditions};
use kube::{Api, ResourceExt as _};
use tokio::time::{MissedTickBehavior, interval};

use super::belongings;
use super::claims::Claims;
use super::objects::dedicated_namespace;
use super::{Control, DEADLINE, catalog_is_filled};
use crate::join::has_code;
use crate::join::stored::{SECRET_TYPE, Stored};

/// How often. An invitation refuses by itself once it ended, so nothing depends on this.
const EVERY: Duration = Duration::from_secs(60);
/// Orphans are rare and looking for them lists all roles: every tenth round.
const ORPHANS_EVERY: u32 = 10;
/// Objects per page of a list: about 1 MiB of Secrets.
const PAGE: u32 = 500;
/// An invitation that this version cannot read is deleted when the longest-lived one of any version has ended: a
/// newer hub beside this one may read it.
const UNREADABLE: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Why a round did not end well.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Belonging(#[from] belongings::Trouble),
    #[error("the parent's API did not answer within {} s", DEADLINE.as_secs())]
    Slow,
}

/// Runs until stop.
pub(super) async fn run(control: Arc<Control>, clusters: Claims<ClusterId>) -> anyhow::Result<()> {
    if !catalog_is_filled(&control).await {
        return Ok(());
    }
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut registrations = control.catalog.registrations();
    // What is there now is known first of all.
    registrations.mark_changed();
    let mut known: HashSet<ClusterId> = HashSet::new();
    let mut suspects = BTreeSet::new();
    let mut rounds = (0..ORPHANS_EVERY).cycle();
    loop {
        let gone = tokio::select! {
            biased;
            () = control.stop.cancelled() => return Ok(()),
            changed = registrations.changed() => {
                changed?;
                let now: HashSet<ClusterId> = control.catalog.all().keys().cloned().collect();
                let gone = known.difference(&now).cloned().collect();
                known = now;
                Some(gone)
            }
            _ = ticks.tick() => None,
        };
        // What fails is tried again by a round to come.
        if let Some(gone) = gone {
            warn(
                "what belonged to a cluster that is gone could not be deleted",
                in_time(forget(&control, &clusters, gone)).await,
            );
            continue;
        }
        warn("ended invitations could not be deleted", in_time(invitations(&control)).await);
        if rounds.next() == Some(0) {
            let all = in_time(orphans(&control, &clusters, &mut suspects)).await;
            warn("what belonged to forgotten clusters could not be deleted", all);
        }
    }
}

/// A round that takes longer is begun again by the next tick, and finds less to do.
async fn in_time(round: impl Future<Output = Result<(), Trouble>>) -> Result<(), Trouble> {
    tokio::time::timeout(DEADLINE, Box::pin(round)).await.unwrap_or(Err(Trouble::Slow))
}

fn warn(what: &str, result: Result<(), Trouble>) {
    if let Err(error) = result {
        tracing::warn!(%error, "{what}");
    }
}

/// Whether an invitation is over. One that cannot be read cannot be used by this hub, but perhaps by a newer one.
fn is_over(secret: &Secret, now: Timestamp) -> bool {
    match Stored::from_secret(secret) {
        Some(stored) => stored.expires <= now,
        None => {
            let made = secret.metadata.creation_timestamp.as_ref();
            made.is_some_and(|made| now.duration_since(made.0) > UNREADABLE)
        }
    }
}

async fn invitations(control: &Control) -> Result<(), Trouble> {
    let secrets: Api<Secret> = Api::namespaced(control.client.clone(), SYSTEM_NAMESPACE);
    let now = Timestamp::now();
    let mut page = ListParams::default().fields(&format!("type={SECRET_TYPE}")).limit(PAGE);
    loop {
        let list = secrets.list(&page).await?;
        for secret in list.items.iter().filter(|secret| is_over(secret, now)) {
            let this_one = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: secret.uid(),
                    resource_version: secret.resource_version(),
                }),
                ..DeleteParams::default()
            };
            match secrets.delete(&secret.name_any(), &this_one).await {
                Ok(_) => tracing::info!(invitation = secret.name_any(), "deleted an invitation that ended"),
                Err(error) if has_code(&error, 404) || has_code(&error, 409) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page.continue_token = Some(token),
            None => return Ok(()),
        }
    }
}

/// Set-up writes a request before anything else and removal deletes the request last, so what bears the label of a
/// cluster without both is an orphan. What bears the label is listed first: whatever is set up meanwhile is not in
/// the list. An account is never without its role: it is made after it, and removed with it. An invitation has no
/// owner between its first use and the request that follows: it has to be found twice, and `suspects` are those of
/// the round before.
async fn orphans(
    control: &Control,
    clusters: &Claims<ClusterId>,
    suspects: &mut BTreeSet<String>,
) -> Result<(), Trouble> {
    let bindings: Api<ClusterRoleBinding> = Api::all(control.client.clone());
    let roles: Api<ClusterRole> = Api::all(control.client.clone());
    let secrets: Api<Secret> = Api::namespaced(control.client.clone(), SYSTEM_NAMESPACE);
    let ours =
        ListParams::default().labels(&format!("{LABEL_CREATED_BY}={CREATED_BY_HUB},{LABEL_CLUSTER_ID}"));
    let invitations = ours.clone().fields(&format!("type={SECRET_TYPE}"));
    let mut ids: BTreeSet<String> = BTreeSet::new();
    for object in bindings.list_metadata(&ours).await?.items {
        ids.extend(object.labels().get(LABEL_CLUSTER_ID).cloned());
    }
    for object in roles.list_metadata(&ours).await?.items {
        ids.extend(object.labels().get(LABEL_CLUSTER_ID).cloned());
    }
    let mut used: BTreeSet<String> = BTreeSet::new();
    for object in secrets.list_metadata(&invitations).await?.items {
        used.extend(object.labels().get(LABEL_CLUSTER_ID).cloned());
    }
    ids.extend(used.intersection(suspects).cloned());
    *suspects = used;
    forget(control, clusters, ids.iter().filter_map(|id| id.parse().ok()).collect()).await
}

/// Removes what belonged to those of these clusters that are really gone. A cluster is claimed before anything is looked
/// at: one that comes back meanwhile is set up when all is away, not in the middle of it.
async fn forget(control: &Control, clusters: &Claims<ClusterId>, ids: Vec<ClusterId>) -> Result<(), Trouble> {
    let requests: Api<ClusterRegistrationRequest> = Api::all(control.client.clone());
    let known = control.catalog.all();
    for id in ids.into_iter().filter(|id| !known.contains_key(id)) {
        // Being set up: it is not gone.
        let Some(_claim) = clusters.take(&id) else { continue };
        let objects: Api<ManagedCluster> = Api::namespaced(control.client.clone(), &dedicated_namespace(&id));
        // Any object there counts, also one that cannot be read.
        if !objects.list_metadata(&ListParams::default().limit(1)).await?.items.is_empty() {
            continue;
        }
        // With a request it is the approvals' to remove, which need the request to begin again with.
        if requests.get_metadata_opt(&registration_request_name(&id)).await?.is_some() {
            continue;
        }
        belongings::remove(&control.client, &id).await?;
        tracing::info!(cluster = %id, "removed what belonged to a cluster that is gone");
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use runtime::stop::Stop;
    use serde_json::json;

    use super::super::fake_api::{FakeApi, Reaction};
    use super::*;
    use crate::catalog::{Catalog, Cluster};
    use crate::config::Settings;
    use crate::tunnels::Tunnels;

    /// Clears a cluster away that the catalog does not know, if it is gone.
    pub(crate) async fn forget_one(control: &Control, id: &str) {
        forget(control, &Claims::default(), vec![id.parse().unwrap()]).await.unwrap();
    }

    #[test]
    fn an_invitation_is_over_when_it_ended() {
        let stored = Stored {
            id: "0123456789abcdef".to_owned(),
            hash: String::new(),
            cluster_name: "edge".parse().unwrap(),
            expires: "2030-01-02T03:04:05Z".parse().unwrap(),
            auto_approve: false,
            labels: [].into(),
            groups: vec![],
            used_by: None,
            made: None,
        };
        let secret = stored.to_secret("alice", None);
        assert!(!is_over(&secret, "2030-01-02T03:04:04Z".parse().unwrap()));
        assert!(is_over(&secret, "2030-01-02T03:04:05Z".parse().unwrap()));
    }
    #[test]
    fn what_a_newer_hub_wrote_is_left_to_it_for_as_long_as_it_may_live() {
        let made = |at: &str| {
            serde_json::from_value::<Secret>(
                json!({ "type": SECRET_TYPE, "metadata": { "creationTimestamp": at } }),
            )
            .unwrap()
        };
        let now = "2030-01-08T00:00:00Z".parse().unwrap();
        assert!(!is_over(&made("2030-01-07T00:00:00Z"), now));
        assert!(!is_over(&made("2030-01-01T00:00:00Z"), now));
        assert!(is_over(&made("2029-12-31T23:59:59Z"), now));
        assert!(!is_over(&Secret::default(), now));
    }

    const INVITATION: &str = "/api/v1/namespaces/clusternet-system/secrets/invitation-0123456789abcdef";
    const REQUEST: &str = "/apis/clusters.clusternet.io/v1beta1/clusterregistrationrequests/clusternet-c1";

    fn cluster_path() -> String {
        let space = dedicated_namespace(&"c1".parse().unwrap());
        format!("/apis/clusters.clusternet.io/v1beta1/namespaces/{space}/managedclusters/edge")
    }

    /// A parent with what is left of cluster c1, and a hub that does not know it.
    async fn leftovers() -> (FakeApi, Arc<Control>) {
        let api = FakeApi::start().await;
        let labels = json!({ LABEL_CREATED_BY: CREATED_BY_HUB, LABEL_CLUSTER_ID: "c1" });
        let space = dedicated_namespace(&"c1".parse().unwrap());
        for (path, kind) in [
            ("/apis/rbac.authorization.k8s.io/v1/clusterroles/clusternet-c1".to_owned(), "ClusterRole"),
            (
                "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/clusternet-c1".to_owned(),
                "ClusterRoleBinding",
            ),
            (format!("/api/v1/namespaces/{space}/serviceaccounts/clusternet-agent"), "ServiceAccount"),
            (INVITATION.to_owned(), "Secret"),
        ] {
            api.put(&path, &json!({ "kind": kind, "type": SECRET_TYPE,
                                "metadata": { "labels": labels, "creationTimestamp": "2100-01-01T00:00:00Z" } }));
        }
        let catalog = Catalog::default();
        catalog.replace([]);
        let control = Control {
            client: api.client(),
            catalog: Arc::new(catalog),
            tunnels: Arc::new(Tunnels::default()),
            peers: crate::control::fake_api::no_peers(),
            leading: crate::control::fake_api::always_leading(),
            settings: Arc::new(Settings::default()),
            stop: Stop::new(),
        };
        (api, Arc::new(control))
    }

    #[tokio::test]
    async fn all_that_a_forgotten_cluster_left_is_removed() {
        let (api, control) = leftovers().await;
        orphans(&control, &Claims::default(), &mut BTreeSet::new()).await.unwrap();
        assert_eq!(api.paths(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn what_has_a_cluster_or_a_request_is_no_orphan() {
        for owner in [REQUEST.to_owned(), cluster_path()] {
            let (api, control) = leftovers().await;
            // Neither is in the catalog: a watch may be late.
            api.put(&owner, &json!({ "metadata": {}, "spec": "not to be read" }));
            orphans(&control, &Claims::default(), &mut BTreeSet::new()).await.unwrap();
            assert_eq!(api.paths().len(), 5, "{owner}");
        }
    }

    #[tokio::test]
    async fn a_cluster_that_is_being_set_up_is_no_orphan() {
        let (api, control) = leftovers().await;
        let clusters = Claims::default();
        let claim = clusters.take(&"c1".parse().unwrap()).unwrap();
        orphans(&control, &clusters, &mut BTreeSet::new()).await.unwrap();
        assert_eq!(api.paths().len(), 4);
        drop(claim);
        // The other way round: nobody sets up what is being cleared away.
        let (asked, held) = (clusters.clone(), Arc::new(std::sync::atomic::AtomicBool::new(false)));
        let found = Arc::clone(&held);
        api.hook(move |_, line| {
            if line.starts_with("DELETE") {
                let busy = asked.take(&"c1".parse().unwrap()).is_none();
                found.store(busy, std::sync::atomic::Ordering::Relaxed);
            }
            Reaction::Go
        });
        orphans(&control, &clusters, &mut BTreeSet::new()).await.unwrap();
        assert_eq!(api.paths(), Vec::<String>::new());
        assert!(held.load(std::sync::atomic::Ordering::Relaxed));
    }

    #[tokio::test]
    async fn an_invitation_alone_is_an_orphan_only_when_it_is_found_twice() {
        let (api, control) = leftovers().await;
        for path in api.paths().iter().filter(|path| *path != INVITATION) {
            api.delete(path);
        }
        let mut suspects = BTreeSet::new();
        orphans(&control, &Claims::default(), &mut suspects).await.unwrap();
        assert!(api.get(INVITATION).is_some(), "its request may be on its way");
        orphans(&control, &Claims::default(), &mut suspects).await.unwrap();
        assert!(api.get(INVITATION).is_none());
    }

    #[tokio::test]
    async fn unregistering_a_cluster_without_a_request_leaves_nothing() {
        let (api, control) = leftovers().await;
        control.catalog.replace([Cluster {
            id: "c1".parse().unwrap(),
            name: "edge".parse().unwrap(),
            namespace: dedicated_namespace(&"c1".parse().unwrap()),
            key_fingerprint: String::new(),
            denied: false,
            last_seen: None,
        }]);
        let (asked, mut noticed) = tokio::sync::mpsc::unbounded_channel();
        api.hook(move |_, line| {
            asked.send(line.to_owned()).unwrap();
            Reaction::Go
        });
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(run(Arc::clone(&control), Claims::default()));
        // Its first round is over when it has looked for the invitations of orphans, after those that ended.
        let secrets = "GET /api/v1/namespaces/clusternet-system/secrets";
        let mut wait_for = async |wanted: &str| {
            tokio::time::timeout(Duration::from_secs(20), async {
                while noticed.recv().await.unwrap() != wanted {}
            })
            .await
            .unwrap();
        };
        wait_for(secrets).await;
        wait_for(secrets).await;
        assert_eq!(api.paths().len(), 4, "it is registered");
        control.catalog.replace([]);
        wait_for(&format!("DELETE {INVITATION}")).await;
        control.stop.cancel();
        tasks.join_next().await.unwrap().unwrap().unwrap();
        assert_eq!(api.paths(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_round_ends_even_if_the_parent_does_not_answer() {
        let (api, control) = leftovers().await;
        invitations(&control).await.unwrap();
        api.hook(|_, _| Reaction::Hang);
        // Over the connection that there is, so that it is not the connecting that ends.
        tokio::time::pause();
        let round = tokio::time::timeout(DEADLINE * 2, in_time(invitations(&control))).await;
        assert!(matches!(round, Ok(Err(Trouble::Slow))), "{round:?}");
    }
}
