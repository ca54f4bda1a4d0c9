//! What belongs to one cluster in the parent: made, recognised and removed here. Nothing is the hub's because
//! of its name alone: an object that does not bear the hub's labels for this very cluster is neither used nor
//! deleted, and the person who approved is told its name.

use std::collections::BTreeMap;
use std::fmt::Debug;

use api::cluster::ManagedCluster;
use api::names::{
    AGENT_ACCOUNT, CREATED_BY_HUB, ClusterId, LABEL_CLUSTER_ID, LABEL_CREATED_BY, SYSTEM_NAMESPACE,
    cluster_role_name,
};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::objects::{KEY_FINGERPRINT, dedicated_namespace};
use crate::issued;
use crate::join::has_code;
use crate::join::stored::SECRET_TYPE;

/// Why an object was not made or removed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// The parent's API.
    #[error("{0}: {1}")]
    Api(&'static str, #[source] kube::Error),
    /// Something of that name is there, and it is somebody else's.
    #[error(
        "{kind} {name} belongs to somebody else; delete it, or label it {LABEL_CREATED_BY}={CREATED_BY_HUB},{LABEL_CLUSTER_ID}={id}"
    )]
    NotOurs {
        /// What.
        kind: String,
        /// Its name.
        name: String,
        /// Whose it would have to be.
        id: ClusterId,
    },
}

/// Whether an object had to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ensured {
    Created,
    WasThere,
}

/// Creates an object, or makes sure that the one of this name is this cluster's.
pub(super) async fn ensure<K>(
    api: &Api<K>,
    object: &K,
    id: &ClusterId,
    doing: &'static str,
) -> Result<Ensured, Trouble>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    match api.create(&PostParams::default(), object).await {
        Ok(_) => return Ok(Ensured::Created),
        Err(error) if has_code(&error, 409) => {}
        Err(error) => return Err(Trouble::Api(doing, error)),
    }
    let there = api.get_metadata(&object.name_any()).await.map_err(|error| Trouble::Api(doing, error))?;
    if is_of(there.labels(), id) { Ok(Ensured::WasThere) } else { Err(not_ours::<K>(object.name_any(), id)) }
}

/// Creates the agent's account, or makes sure that it is this cluster's and was made for this key. Tokens name
/// the account's UID, so a new account of the same name makes the tokens of another key void.
pub(super) async fn ensure_account(
    api: &Api<ServiceAccount>,
    account: &ServiceAccount,
    id: &ClusterId,
    new_key: bool,
) -> Result<(), Trouble> {
    let doing = "creating the account";
    let failed = |error| Trouble::Api(doing, error);
    if let Some(there) = api.get_metadata_opt(AGENT_ACCOUNT).await.map_err(failed)? {
        if !is_of(there.labels(), id) {
            return Err(not_ours::<ServiceAccount>(AGENT_ACCOUNT.to_owned(), id));
        }
        let keep = match there.annotations().get(KEY_FINGERPRINT) {
            Some(key) => account.annotations().get(KEY_FINGERPRINT) == Some(key),
            // Made before accounts were marked.
            None => !new_key,
        };
        if keep {
            return Ok(());
        }
        absent(api.delete(AGENT_ACCOUNT, &only(there.uid())).await).map_err(failed)?;
    }
    // Somebody was faster: a lost race, and looked at again.
    api.create(&PostParams::default(), account).await.map(|_| ()).map_err(failed)
}

/// Creates the cluster, or makes sure that the one of this name is this one.
pub(super) async fn ensure_cluster(
    api: &Api<ManagedCluster>,
    cluster: &ManagedCluster,
    id: &ClusterId,
) -> Result<(), Trouble> {
    let doing = "creating the cluster";
    match api.create(&PostParams::default(), cluster).await {
        Ok(_) => return Ok(()),
        Err(error) if has_code(&error, 409) => {}
        Err(error) => return Err(Trouble::Api(doing, error)),
    }
    let there = api.get(&cluster.name_any()).await.map_err(|error| Trouble::Api(doing, error))?;
    if is_of(there.labels(), id) && there.spec.cluster_id == id.as_str() {
        return Ok(());
    }
    Err(not_ours::<ManagedCluster>(cluster.name_any(), id))
}

/// Removes what lets a cluster's agent in, then the invitations that would let it back, and the tokens that lead to it: the
/// same cluster may come again, with the same id.
pub(super) async fn remove(client: &Client, id: &ClusterId) -> Result<(), Trouble> {
    let role = cluster_role_name(id);
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    remove_one(&bindings, &role, id, "deleting the role binding").await?;
    remove_one::<ClusterRole>(&Api::all(client.clone()), &role, id, "deleting the role").await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &dedicated_namespace(id));
    remove_one(&accounts, AGENT_ACCOUNT, id, "deleting the account").await?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let doing = "deleting the cluster's invitations and tokens";
    for type_ in [SECRET_TYPE, issued::stored::SECRET_TYPE] {
        let failed = |error| Trouble::Api(doing, error);
        for name in secrets_of(&secrets, id, type_).await.map_err(failed)? {
            absent(secrets.delete(&name, &DeleteParams::default()).await).map_err(failed)?;
        }
    }
    Ok(())
}

/// Deletes a `ManagedCluster` that was made for nothing.
pub(super) async fn remove_cluster(
    api: &Api<ManagedCluster>,
    name: &str,
    id: &ClusterId,
) -> Result<(), Trouble> {
    remove_one(api, name, id, "deleting the cluster").await
}

/// The names of the Secrets of all invitations that this cluster used. The type is the hub's own.
pub(crate) async fn used_invitations(
    secrets: &Api<Secret>,
    id: &ClusterId,
) -> Result<Vec<String>, kube::Error> {
    secrets_of(secrets, id, SECRET_TYPE).await
}

async fn secrets_of(secrets: &Api<Secret>, id: &ClusterId, type_: &str) -> Result<Vec<String>, kube::Error> {
    let theirs =
        ListParams::default().labels(&format!("{LABEL_CLUSTER_ID}={id}")).fields(&format!("type={type_}"));
    Ok(secrets.list_metadata(&theirs).await?.items.iter().map(kube::ResourceExt::name_any).collect())
}

async fn remove_one<K>(api: &Api<K>, name: &str, id: &ClusterId, doing: &'static str) -> Result<(), Trouble>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let failed = |error| Trouble::Api(doing, error);
    let Some(there) = api.get_metadata_opt(name).await.map_err(failed)? else { return Ok(()) };
    if !is_of(there.labels(), id) {
        tracing::warn!(kind = %K::kind(&()), name, cluster = %id, "not deleted: it does not bear the hub's labels");
        return Ok(());
    }
    absent(api.delete(name, &only(there.uid())).await).map_err(failed)
}

/// Whether an object says that the hub made it for this cluster.
pub(super) fn is_of(labels: &BTreeMap<String, String>, id: &ClusterId) -> bool {
    let label = |key: &str| labels.get(key).map(String::as_str).unwrap_or_default();
    label(LABEL_CREATED_BY) == CREATED_BY_HUB && label(LABEL_CLUSTER_ID) == id.as_str()
}

fn not_ours<K: Resource<DynamicType = ()>>(name: String, id: &ClusterId) -> Trouble {
    Trouble::NotOurs { kind: K::kind(&()).into_owned(), name, id: id.clone() }
}

fn only(uid: Option<String>) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions { uid, resource_version: None }),
        ..DeleteParams::default()
    }
}

/// What a deletion found; nothing there is what was wanted.
pub(super) fn absent<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if has_code(&error, 404) => Ok(()),
        Err(error) => Err(error),
    }
}
