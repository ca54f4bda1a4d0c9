//! An invitation as it stands in the parent: a Secret of its own type in `clusternet-system`. It holds the
//! hash of the invitation's secret, so whoever reads it cannot use it. Pure; reading and writing is elsewhere.

use std::collections::BTreeMap;

use api::names::{
    CREATED_BY_HUB, ClusterId, ClusterName, LABEL_CLUSTER_ID, LABEL_CREATED_BY, SYSTEM_NAMESPACE,
};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ObjectMeta;

/// Type of the Secrets, by which they are listed.
pub const SECRET_TYPE: &str = "access.towline.io/invitation";
/// Annotation with the user who invited.
pub const INVITED_BY: &str = "access.towline.io/invited-by";
/// Length of an id: 64 random bits in hex.
const ID_LENGTH: usize = 16;

/// Name of an invitation's Secret.
pub fn secret_name(id: &str) -> String {
    format!("invitation-{id}")
}

/// Whether this can be the id of an invitation or credential at all; nothing else becomes part of an object's name.
pub fn is_id(text: &str) -> bool {
    text.len() == ID_LENGTH && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// What an invitation promises, and who used it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Public id.
    pub id: String,
    /// SHA-256 of the secret, hex.
    pub hash: String,
    /// The cluster to be.
    pub cluster_name: ClusterName,
    /// The end.
    pub expires: Timestamp,
    /// No person has to approve.
    pub auto_approve: bool,
    /// For the `ManagedCluster`.
    pub labels: BTreeMap<String, String>,
    /// That may be impersonated in the child.
    pub groups: Vec<String>,
    /// Who used it.
    pub used_by: Option<User>,
    /// When it was made, as the parent says of its Secret; never written.
    pub made: Option<Timestamp>,
}

/// The one cluster and key that used an invitation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The cluster.
    pub cluster: ClusterId,
    /// The key's fingerprint.
    pub fingerprint: String,
}

impl Stored {
    /// The Secret; `resource_version` is that of the one it replaces.
    pub fn to_secret(&self, invited_by: &str, resource_version: Option<String>) -> Secret {
        let json = |value: serde_json::Value| value.to_string();
        let mut data = BTreeMap::from([
            ("hash", self.hash.clone()),
            ("cluster-name", self.cluster_name.to_string()),
            ("expires", self.expires.to_string()),
            ("auto-approve", self.auto_approve.to_string()),
            ("labels", json(serde_json::json!(self.labels))),
            ("groups", json(serde_json::json!(self.groups))),
        ]);
        let mut labels = BTreeMap::from([(LABEL_CREATED_BY.to_owned(), CREATED_BY_HUB.to_owned())]);
        if let Some(user) = &self.used_by {
            data.insert("cluster-id", user.cluster.to_string());
            data.insert("key-fingerprint", user.fingerprint.clone());
            // So that unregistering a cluster finds the invitations that would let it back in.
            labels.insert(LABEL_CLUSTER_ID.to_owned(), user.cluster.to_string());
        }
        Secret {
            metadata: ObjectMeta {
                name: Some(secret_name(&self.id)),
                namespace: Some(SYSTEM_NAMESPACE.to_owned()),
                labels: Some(labels),
                annotations: Some([(INVITED_BY.to_owned(), invited_by.to_owned())].into()),
                resource_version,
                ..ObjectMeta::default()
            },
            type_: Some(SECRET_TYPE.to_owned()),
            data: Some(
                data.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))).collect(),
            ),
            ..Secret::default()
        }
    }

    /// Reads a Secret; `None` if it is no invitation that the hub wrote.
    pub fn from_secret(secret: &Secret) -> Option<Self> {
        if secret.type_.as_deref() != Some(SECRET_TYPE) {
            return None;
        }
        let text = |key: &str| std::str::from_utf8(&secret.data.as_ref()?.get(key)?.0).ok();
        let used_by = match (text("cluster-id"), text("key-fingerprint")) {
            (Some(cluster), Some(fingerprint)) => {
                Some(User { cluster: cluster.parse().ok()?, fingerprint: fingerprint.to_owned() })
            }
            _ => None,
        };
        Some(Self {
            id: secret.metadata.name.as_deref()?.strip_prefix("invitation-")?.to_owned(),
            hash: text("hash")?.to_owned(),
            cluster_name: text("cluster-name")?.parse().ok()?,
            expires: text("expires")?.parse().ok()?,
            auto_approve: text("auto-approve")?.parse().ok()?,
            labels: serde_json::from_str(text("labels")?).ok()?,
            groups: serde_json::from_str(text("groups")?).ok()?,
            used_by,
            made: secret.metadata.creation_timestamp.as_ref().map(|time| time.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_what_is_read() {
        let mut stored = Stored {
            id: "0123456789abcdef".to_owned(),
            hash: "00".repeat(32),
            cluster_name: "edge-1".parse().unwrap(),
            expires: "2030-01-02T03:04:05Z".parse().unwrap(),
            auto_approve: true,
            labels: [("site".to_owned(), "ulm".to_owned())].into(),
            groups: vec!["dev".to_owned()],
            used_by: None,
            made: None,
        };
        assert_eq!(Stored::from_secret(&stored.to_secret("alice", None)), Some(stored.clone()));
        stored.used_by = Some(User { cluster: "c1".parse().unwrap(), fingerprint: "SHA256:x".to_owned() });
        let secret = stored.to_secret("alice", Some("7".to_owned()));
        assert_eq!(secret.metadata.labels.as_ref().unwrap()[LABEL_CLUSTER_ID], "c1");
        assert_eq!(Stored::from_secret(&secret), Some(stored));
        let other = Secret { type_: Some("Opaque".to_owned()), ..secret };
        assert_eq!(Stored::from_secret(&other), None);
    }

    #[test]
    fn only_an_id_becomes_part_of_a_name() {
        assert!(is_id("0123456789abcdef"));
        for bad in ["", "0123456789abcde", "0123456789abcdeF", "../../secrets/xx", "0123456789abcdef0"] {
            assert!(!is_id(bad), "{bad}");
        }
    }
}
