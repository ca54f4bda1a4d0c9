//! The objects that stand for an approved cluster in the parent, as values. Pure.
//!
//! What a cluster's own account may do is all here: open the tunnel of that one cluster.

use api::cluster::{ManagedCluster, ManagedClusterSpec};
use api::labels;
use api::names::{
    AGENT_ACCOUNT, CREATED_BY_HUB, ClusterId, ClusterName, LABEL_CLUSTER_ID, LABEL_CLUSTER_NAME,
    LABEL_CREATED_BY, PREFIX, PROXIES_GROUP, cluster_role_name,
};
use api::registration::ClusterRegistrationRequestSpec;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, RoleRef, Subject};
use kube::ResourceExt as _;
use kube::api::ObjectMeta;

use crate::join::sha256_hex;

/// Annotation of an agent's account: the fingerprint of the key that it was made for.
pub const KEY_FINGERPRINT: &str = "access.towline.io/key-fingerprint";

/// Annotation of a `ManagedCluster`: since when it has its key, if an agent with another one may have been believed
/// until then. A hub that starts was not there, and waits until nobody is believed any more.
pub const KEY_SINCE: &str = "access.towline.io/key-since";

/// The namespace of a cluster: it follows from the id, so nobody has to look it up. Hashed, since an id may be
/// 63 characters long and a namespace too; eight digits, for people read it. Should two ids ever meet, the
/// second is refused with a message.
pub fn dedicated_namespace(id: &ClusterId) -> String {
    format!("{PREFIX}{}", &sha256_hex(id.as_str().as_bytes())[..8])
}

/// The place of an object among those of one cluster in its namespace: the first in this order is the cluster, all others
/// are nothing. The oldest is first, so whoever may only create takes nobody's place. Of two from the same second the one
/// with a status is, for only the hub writes that; then the name decides, on every replica alike.
pub(crate) fn place_of(object: &ManagedCluster) -> (Timestamp, bool, String) {
    let created = object.creation_timestamp().map_or(Timestamp::MAX, |time| time.0);
    let without_status = object.status.as_ref().is_none_or(|status| status.conditions.is_empty());
    (created, without_status, object.name_any())
}

/// Labels, owner and namespace of everything that belongs to a cluster.
fn metadata(name: &str, namespace: Option<&str>, id: &ClusterId, cluster: &ClusterName) -> ObjectMeta {
    let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: namespace.map(ToOwned::to_owned),
        labels: Some(
            [
                label(LABEL_CREATED_BY, CREATED_BY_HUB),
                label(LABEL_CLUSTER_ID, id.as_str()),
                label(LABEL_CLUSTER_NAME, cluster.as_str()),
            ]
            .into(),
        ),
        ..ObjectMeta::default()
    }
}

/// The dedicated namespace.
pub fn namespace(id: &ClusterId, cluster: &ClusterName) -> Namespace {
    Namespace { metadata: metadata(&dedicated_namespace(id), None, id, cluster), ..Namespace::default() }
}

/// The agent's account in it, for the agent with this key.
pub fn account(id: &ClusterId, cluster: &ClusterName, key: &str) -> ServiceAccount {
    ServiceAccount {
        metadata: ObjectMeta {
            annotations: Some([(KEY_FINGERPRINT.to_owned(), key.to_owned())].into()),
            ..metadata(AGENT_ACCOUNT, Some(&dedicated_namespace(id)), id, cluster)
        },
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// What that account may do.
pub fn role(id: &ClusterId, cluster: &ClusterName) -> ClusterRole {
    ClusterRole {
        metadata: metadata(&cluster_role_name(id), None, id, cluster),
        rules: Some(vec![PolicyRule {
            api_groups: Some(vec![PROXIES_GROUP.to_owned()]),
            resources: Some(vec!["sockets/attach".to_owned()]),
            resource_names: Some(vec![id.to_string()]),
            verbs: vec!["get".to_owned(), "create".to_owned()],
            ..PolicyRule::default()
        }]),
        ..ClusterRole::default()
    }
}

/// That it may.
pub fn role_binding(id: &ClusterId, cluster: &ClusterName) -> ClusterRoleBinding {
    ClusterRoleBinding {
        metadata: metadata(&cluster_role_name(id), None, id, cluster),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: "ClusterRole".to_owned(),
            name: cluster_role_name(id),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: AGENT_ACCOUNT.to_owned(),
            namespace: Some(dedicated_namespace(id)),
            ..Subject::default()
        }]),
    }
}

/// The cluster itself. Labels of the invitation never take the place of the hub's.
pub fn managed_cluster(
    id: &ClusterId,
    cluster: &ClusterName,
    spec: &ClusterRegistrationRequestSpec,
) -> ManagedCluster {
    let mut object = ManagedCluster::new(
        cluster.as_str(),
        ManagedClusterSpec {
            cluster_id: id.to_string(),
            cluster_type: spec.cluster_type.clone(),
            sync_mode: spec.sync_mode.clone(),
            key_fingerprint: spec.key_fingerprint.clone(),
            denied: false,
        },
    );
    object.metadata = metadata(cluster.as_str(), Some(&dedicated_namespace(id)), id, cluster);
    let wanted = spec.cluster_labels.iter().filter(|(key, _)| !labels::is_reserved(key));
    if let Some(labels) = &mut object.metadata.labels {
        labels.extend(wanted.map(|(key, value)| (key.clone(), value.clone())));
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_may_open_its_own_tunnel_and_nothing_else() {
        let id = "6f0a1b1e-0000-4000-8000-000000000000".parse().unwrap();
        let rules = role(&id, &"edge".parse().unwrap()).rules.unwrap();
        let wanted = serde_json::json!([{
            "apiGroups": ["proxies.clusternet.io"], "resources": ["sockets/attach"],
            "resourceNames": ["6f0a1b1e-0000-4000-8000-000000000000"], "verbs": ["get", "create"],
        }]);
        assert_eq!(serde_json::to_value(rules).unwrap(), wanted);
    }

    #[test]
    fn labels_of_an_invitation_never_replace_the_hubs() {
        let id = "c1".parse().unwrap();
        let spec = ClusterRegistrationRequestSpec {
            cluster_labels: [
                (LABEL_CLUSTER_ID.to_owned(), "victim".to_owned()),
                ("site".to_owned(), "ulm".to_owned()),
            ]
            .into(),
            ..ClusterRegistrationRequestSpec::default()
        };
        let labels = managed_cluster(&id, &"edge".parse().unwrap(), &spec).metadata.labels.unwrap();
        assert_eq!((labels[LABEL_CLUSTER_ID].as_str(), labels["site"].as_str()), ("c1", "ulm"));
    }

    #[test]
    fn a_namespace_follows_from_the_id() {
        // printf c1 | sha256sum
        assert_eq!(
            dedicated_namespace(&"c1".parse().unwrap()),
            format!("clusternet-{}", &sha256_hex(b"c1")[..8])
        );
        assert_eq!(dedicated_namespace(&"a".repeat(63).parse().unwrap()).len(), 19);
    }
}
