//! Gives a cluster another name. A person wishes it by an annotation ([`RENAME_TO`]) on the `ManagedCluster`, and since
//! the name of an object cannot change, the hub makes a second object of the same id in the same namespace and deletes
//! the first. Nothing else knows the name: tunnel, roles, account, issued tokens and open requests go by the id.
//!
//! At every moment one object is the cluster, the same for every replica: the first by [`place_of`]. The second is
//! younger, so it is nothing until the first is gone, and so is whatever somebody makes who may only create. The first is
//! deleted last, by UID and resourceVersion, only when the second is its likeness, the request names the second, and
//! no third object stands there that could take its place. A namespace with an object of the id is never empty meanwhile,
//! which is what unregistering looks at.
//!
//! Each step looks at what the API says and does one thing, so a hub that died in between goes on where it was: what is
//! wished stands in the first object until that is gone. A wish that is taken back undoes what was done for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::cluster::{
    FORMER_NAMES, ManagedCluster, ManagedClusterStatus, RENAME_REFUSED, RENAME_TO, RENAMED_FROM,
};
use api::names::{ClusterId, ClusterName, LABEL_CLUSTER_NAME, registration_request_name};
use api::registration::ClusterRegistrationRequest;
use api::status::printable;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::DeserializeGuard;
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio::sync::watch::Receiver;

use super::belongings::{absent, is_of};
use super::claims::Claims;
use super::events::{Happened, Story};
use super::health::patch as status_patch;
use super::objects::{dedicated_namespace, place_of};
use super::{Control, DEADLINE, catalog_is_filled};
use crate::join::has_code;

/// Pause before a rename that could not be carried out is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// Steps of one go: six are needed, and a heartbeat may repeat the last one.
const STEPS: usize = 20;
/// Former names that an object remembers, for a sentence to whoever still uses one.
const MAX_FORMER: usize = 5;
/// Longest sentence of a refusal.
const MAX_WHY: usize = 256;

/// Why a rename did not come to its end.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0}: {1}")]
    Api(&'static str, #[source] kube::Error),
    #[error("the cluster, or one of the new name, is being worked on at this moment")]
    Busy,
    #[error("its objects changed {STEPS} times meanwhile")]
    Contended,
}

/// What a step left.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    Nothing,
    More,
}

/// What is being worked on.
pub(super) type Working = (Claims<ClusterId>, Claims<ClusterName>);

/// Runs until stop. `wished` holds the clusters that have a wish, or two objects.
pub(super) async fn run(
    control: Arc<Control>,
    mut wished: Receiver<Vec<ClusterId>>,
    working: Working,
    story: Story,
) -> anyhow::Result<()> {
    if !catalog_is_filled(&control).await {
        return Ok(());
    }
    loop {
        let ids = wished.borrow_and_update().clone();
        let mut again = false;
        for id in ids {
            let settled = settle(&control, &working, &story, &id);
            match tokio::time::timeout(DEADLINE, Box::pin(settled)).await {
                Ok(Ok(())) => {}
                Ok(Err(trouble)) => {
                    tracing::warn!(cluster = %id, %trouble, "a cluster was not renamed yet; trying again");
                    again = true;
                }
                Err(_) => {
                    tracing::warn!(cluster = %id, "a cluster was not renamed in time; trying again");
                    again = true;
                }
            }
        }
        if again {
            // Whatever changes meanwhile, for it may be what was tried here that did.
            tokio::select! {
                () = control.stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(RETRY) => continue,
            }
        }
        tokio::select! {
            biased;
            () = control.stop.cancelled() => return Ok(()),
            changed = wished.changed() => changed?,
        }
    }
}

/// Brings a cluster to where its first object says that it shall be.
async fn settle(control: &Control, working: &Working, story: &Story, id: &ClusterId) -> Result<(), Trouble> {
    let _claim = working.0.take(id).ok_or(Trouble::Busy)?;
    let clusters: Api<ManagedCluster> = Api::namespaced(control.client.clone(), &dedicated_namespace(id));
    let rename = Rename { control, names: &working.1, story, id, clusters };
    for _ in 0..STEPS {
        match rename.step().await {
            Ok(Left::Nothing) => return Ok(()),
            Ok(Left::More) => {}
            // Somebody was faster: looked at again.
            Err(Trouble::Api(_, error)) if has_code(&error, 409) => {}
            Err(trouble) => return Err(trouble),
        }
    }
    Err(Trouble::Contended)
}

struct Rename<'a> {
    control: &'a Control,
    names: &'a Claims<ClusterName>,
    story: &'a Story,
    id: &'a ClusterId,
    clusters: Api<ManagedCluster>,
}

impl Rename<'_> {
    async fn step(&self) -> Result<Left, Trouble> {
        let listed = self.clusters.list(&ListParams::default()).await;
        let mut all = listed.map_err(|error| Trouble::Api("reading the cluster", error))?.items;
        all.retain(|object| object.spec.cluster_id == self.id.as_str());
        all.sort_by_key(place_of);
        let Some((first, others)) = all.split_first() else { return Ok(Left::Nothing) };
        if first.metadata.deletion_timestamp.is_some() {
            return Ok(Left::Nothing);
        }
        let (made, foreign): (Vec<_>, Vec<_>) =
            others.iter().partition(|object| self.was_made_for(object, first));
        let Some(wish) = first.annotations().get(RENAME_TO) else { return self.undo(first, &made).await };
        if *wish == first.name_any() {
            return self.answer(first, None).await;
        }
        let wanted = match wish.parse::<ClusterName>() {
            Ok(wanted) => wanted,
            Err(error) => return self.refuse(first, &made, &error.to_string()).await,
        };
        let _name = self.names.take(&wanted).ok_or(Trouble::Busy)?;
        let why = match foreign.first() {
            Some(foreign) => Some(format!(
                "there is another object of this cluster, {}, in namespace {}: delete it first",
                foreign.name_any(),
                foreign.namespace().unwrap_or_default()
            )),
            None => self.taken(&wanted).await?,
        };
        if let Some(why) = why {
            return self.refuse(first, &made, &why).await;
        }
        let wanted = likeness(first, &wanted);
        if let Some(other) = made.iter().find(|object| !is_like(object, &wanted)) {
            // Of an earlier wish, or the first was changed since: shut out, for example.
            self.delete(other).await?;
            return Ok(Left::More);
        }
        let Some(second) = made.first() else {
            let made = self.clusters.create(&PostParams::default(), &wanted).await;
            made.map_err(|error| Trouble::Api("creating the cluster under its new name", error))?;
            return Ok(Left::More);
        };
        self.carry_on(first, second).await
    }

    /// Both are there, and nothing stands in the way.
    async fn carry_on(&self, first: &ManagedCluster, second: &ManagedCluster) -> Result<Left, Trouble> {
        let has_status = |object: &ManagedCluster| {
            object.status.as_ref().is_some_and(|status| !status.conditions.is_empty())
        };
        if has_status(first) && !has_status(second) {
            let status = first.status.clone().unwrap_or_default();
            let patch = Patch::Merge(status_patch(&ManagedClusterStatus::default(), &status));
            let patched =
                self.clusters.patch_status(&second.name_any(), &PatchParams::default(), &patch).await;
            patched.map_err(|error| Trouble::Api("writing the status under the new name", error))?;
            return Ok(Left::More);
        }
        self.name_in_request(first, second).await?;
        self.delete(first).await?;
        let (old, new) = (first.name_any(), second.name_any());
        tracing::info!(cluster = %self.id, old, new, "a cluster was renamed");
        self.story.tell_of(second, Happened::Renamed, format!("renamed from {old}; its id is the same"));
        Ok(Left::Nothing)
    }

    /// Nobody wishes anything (any more): what was made for a wish goes.
    async fn undo(&self, first: &ManagedCluster, made: &[&ManagedCluster]) -> Result<Left, Trouble> {
        for object in made {
            self.name_in_request(object, first).await?;
            self.delete(object).await?;
        }
        Ok(Left::Nothing)
    }

    async fn refuse(
        &self,
        first: &ManagedCluster,
        made: &[&ManagedCluster],
        why: &str,
    ) -> Result<Left, Trouble> {
        self.undo(first, made).await?;
        self.answer(first, Some(why)).await
    }

    /// Takes the wish away, with the reason why it was not fulfilled.
    async fn answer(&self, first: &ManagedCluster, why: Option<&str>) -> Result<Left, Trouble> {
        let why = why.map(|why| printable(why, MAX_WHY));
        let patch = Patch::Merge(json!({ "metadata": {
            "resourceVersion": first.metadata.resource_version,
            "annotations": { RENAME_TO: null, RENAME_REFUSED: why },
        } }));
        let patched = self.clusters.patch(&first.name_any(), &PatchParams::default(), &patch).await;
        patched.map_err(|error| Trouble::Api("answering the wish", error))?;
        if let Some(why) = why {
            tracing::info!(cluster = %self.id, why, "a cluster was not renamed");
            self.story.tell_of(first, Happened::RenameRefused, why);
        }
        Ok(Left::Nothing)
    }

    /// Whether the hub made it for a wish of the first.
    fn was_made_for(&self, object: &ManagedCluster, first: &ManagedCluster) -> bool {
        let from = object.annotations().get(RENAMED_FROM);
        from.is_some() && from == first.metadata.uid.as_ref() && is_of(object.labels(), self.id)
    }

    /// Why the cluster may not have this name.
    async fn taken(&self, name: &ClusterName) -> Result<Option<String>, Trouble> {
        let other = name.as_str().parse::<ClusterId>().ok().filter(|other| other != self.id);
        if other.is_some_and(|other| self.control.catalog.get(&other).is_some()) {
            return Ok(Some(format!("{name} is the id of another cluster")));
        }
        let everywhere: Api<DeserializeGuard<ManagedCluster>> = Api::all(self.control.client.clone());
        let named = ListParams::default().fields(&format!("metadata.name={name}"));
        let found =
            everywhere.list(&named).await.map_err(|error| Trouble::Api("looking for the name", error))?;
        // What cannot be read may be a cluster for another hub.
        let is_other = |object: &DeserializeGuard<ManagedCluster>| {
            object.0.as_ref().map_or(true, |object| object.spec.cluster_id != self.id.as_str())
        };
        let taken = found.items.iter().any(is_other);
        Ok(taken.then(|| format!("the name {name} is taken by another cluster")))
    }

    /// Lets the registration request name `to` where it names `from`.
    async fn name_in_request(&self, from: &ManagedCluster, to: &ManagedCluster) -> Result<(), Trouble> {
        let requests: Api<ClusterRegistrationRequest> = Api::all(self.control.client.clone());
        let name = registration_request_name(self.id);
        let doing = "writing the name into the registration request";
        let failed = |error| Trouble::Api(doing, error);
        let Some(mut request) = requests.get_opt(&name).await.map_err(failed)? else { return Ok(()) };
        let (from, to) = (from.name_any(), to.name_any());
        if request.spec.cluster_name == from {
            request.spec.cluster_name.clone_from(&to);
            request.labels_mut().insert(LABEL_CLUSTER_NAME.to_owned(), to.clone());
            request = requests.replace(&name, &PostParams::default(), &request).await.map_err(failed)?;
        }
        let set_up = request.status.as_ref().is_some_and(|status| status.managed_cluster_name == from);
        if set_up {
            let patch = Patch::Merge(json!({
                "metadata": { "resourceVersion": request.metadata.resource_version },
                "status": { "managedClusterName": to },
            }));
            requests.patch_status(&name, &PatchParams::default(), &patch).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Deletes exactly what was looked at.
    async fn delete(&self, object: &ManagedCluster) -> Result<(), Trouble> {
        let this_one = DeleteParams {
            preconditions: Some(Preconditions {
                uid: object.uid(),
                resource_version: object.resource_version(),
            }),
            ..DeleteParams::default()
        };
        absent(self.clusters.delete(&object.name_any(), &this_one).await)
            .map_err(|error| Trouble::Api("deleting the cluster under its old name", error))
    }
}

/// The same cluster under another name.
fn likeness(first: &ManagedCluster, name: &ClusterName) -> ManagedCluster {
    let mut second = ManagedCluster::new(name.as_str(), first.spec.clone());
    second.metadata.namespace = first.namespace();
    let mut labels = first.labels().clone();
    labels.insert(LABEL_CLUSTER_NAME.to_owned(), name.to_string());
    second.metadata.labels = Some(labels);
    let mut annotations = first.annotations().clone();
    let before = annotations.remove(FORMER_NAMES).unwrap_or_default();
    let mut former = vec![first.name_any()];
    former.extend(before.split(',').filter(|old| !old.is_empty()).map(str::to_owned));
    let mut seen = BTreeSet::from([name.to_string()]);
    former.retain(|old| seen.insert(old.clone()));
    former.truncate(MAX_FORMER);
    annotations.insert(FORMER_NAMES.to_owned(), former.join(","));
    annotations.insert(RENAMED_FROM.to_owned(), first.uid().unwrap_or_default());
    for gone in [RENAME_TO, RENAME_REFUSED, "kubectl.kubernetes.io/last-applied-configuration"] {
        annotations.remove(gone);
    }
    second.metadata.annotations = Some(annotations);
    second
}

fn is_like(object: &ManagedCluster, wanted: &ManagedCluster) -> bool {
    object.name_any() == wanted.name_any()
        && object.spec == wanted.spec
        && holds(object.labels(), wanted.labels())
        && holds(object.annotations(), wanted.annotations())
}

/// More may stand there: what an admission webhook adds to every object is no reason to begin again.
fn holds(there: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| there.get(key) == Some(value))
}

/// The names that an object says its cluster had.
pub(super) fn former_names(annotations: &BTreeMap<String, String>) -> Vec<ClusterName> {
    let names = annotations.get(FORMER_NAMES).map(String::as_str).unwrap_or_default();
    names.split(',').take(MAX_FORMER).filter_map(|name| name.parse().ok()).collect()
}

#[cfg(test)]
mod tests;
