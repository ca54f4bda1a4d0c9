//! How a cluster joins: `ClusterInvitation` (create-only, answered with an agent.yaml), the agent's own
//! `ClusterRegistration` (create-only, answered with a credential) and Clusternet's
//! `ClusterRegistrationRequest`, the object that people see, approve and deny. No credential ever stands in
//! an object: the first two are answers over TLS and are never stored.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names::{ClusterId, ClusterName};
use crate::secret::{self, Secret};

/// A child that asks to join. Written by the hub alone; a person sets `status.result`.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "clusters.clusternet.io",
    version = "v1beta1",
    kind = "ClusterRegistrationRequest",
    plural = "clusterregistrationrequests",
    status = "ClusterRegistrationRequestStatus",
    shortname = "clsrr",
    category = "clusternet",
    category = "towline",
    printcolumn = r#"{"name":"CLUSTER","type":"string","jsonPath":".spec.clusterName"}"#,
    printcolumn = r#"{"name":"STATUS","type":"string","jsonPath":".status.result"}"#,
    printcolumn = r#"{"name":"KEY FINGERPRINT","type":"string","jsonPath":".spec.keyFingerprint"}"#,
    printcolumn = r#"{"name":"AGE","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"CLUSTER ID","type":"string","jsonPath":".spec.clusterId","priority":1}"#,
    printcolumn = r#"{"name":"MESSAGE","type":"string","jsonPath":".status.errorMessage","priority":1}"#
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRegistrationRequestSpec {
    /// The UID of the child's `kube-system` namespace.
    pub cluster_id: String,
    /// The name that the invitation was made for.
    pub cluster_name: String,
    /// `StandardCluster` or `EdgeCluster`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cluster_type: String,
    /// Clusternet's; `Pull`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sync_mode: String,
    /// Labels for the `ManagedCluster`, chosen in the invitation, never by the child.
    #[serde(default)]
    pub cluster_labels: BTreeMap<String, String>,
    /// Fingerprint of the key that the agent made; the agent logs the same.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key_fingerprint: String,
    /// Id of the invitation that was used.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub invitation: String,
}

/// What became of a [`ClusterRegistrationRequest`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterRegistrationRequestStatus {
    /// The namespace that holds the `ManagedCluster`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub dedicated_namespace: String,
    /// The `ManagedCluster`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub managed_cluster_name: String,
    /// `Pending`, `Approved`, `Denied` or `Failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<RegistrationResult>,
    /// Fingerprint of the key that `Approved` is meant for, as whoever decided saw it. Without it an approval counts only
    /// where no other key can be meant.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub approved_key: String,
    /// Why, and what to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error_message: String,
}

/// The decision on a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RegistrationResult {
    /// Nobody has decided yet.
    Pending,
    /// The cluster may join.
    Approved,
    /// It may not.
    Denied,
    /// It was approved, but the hub could not set it up.
    Failed,
}

/// Which of the hub's configured addresses the agent is to dial.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AddressKind {
    /// Reachable from anywhere.
    #[default]
    Public,
    /// Reachable inside the company's networks.
    Intranet,
}

/// A request for an invitation: `kubectl create -f` of it, or `kubectl towline register NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterInvitationSpec {
    /// The name of the cluster to be.
    pub cluster_name: ClusterName,
    /// How long the invitation may be used, in seconds. 24 h if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Let the cluster in at first contact, without a person's approval.
    #[serde(default)]
    pub auto_approve: bool,
    /// Which address stands in the manifest.
    #[serde(default)]
    pub address: AddressKind,
    /// Labels for the `ManagedCluster`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cluster_labels: BTreeMap<String, String>,
    /// Groups of the parent that shall have a meaning in the child: those named here may be impersonated
    /// there, all others are dropped by the agent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Another image than the hub's default for the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Leave the manifest at an address of the gateway's, to be fetched once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub one_time_address: bool,
}

/// The answer to a [`ClusterInvitationSpec`]. Holds a secret inside `manifest`; it is never stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterInvitationStatus {
    /// Public id of the invitation.
    pub invitation: String,
    /// When it ends.
    pub expires: Timestamp,
    /// The agent.yaml for `kubectl apply -f` in the child.
    #[serde(serialize_with = "secret::revealed")]
    pub manifest: Secret,
    /// The command to run in the child.
    pub command: String,
    /// Where the manifest can be fetched, once; whoever has this address has the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "revealed_if_any")]
    pub one_time_address: Option<Secret>,
    /// Base64 of the SHA-256 of the key that the gateway shows there (SubjectPublicKeyInfo), if its CA is one that nobody
    /// trusts beforehand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<String>,
}

fn revealed_if_any<S: serde::Serializer>(secret: &Option<Secret>, serializer: S) -> Result<S::Ok, S::Error> {
    match secret {
        Some(secret) => secret::revealed(secret, serializer),
        None => serializer.serialize_none(),
    }
}

/// An object in the hub's create-only resources: kind, metadata, spec, and the hub's status in the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Virtual<Spec, State> {
    /// `access.towline.io/v1alpha1`
    pub api_version: String,
    /// `ClusterInvitation` or `ClusterRegistration`
    pub kind: String,
    /// Only the name is read; `kubectl create` demands metadata.
    #[serde(default)]
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// The question.
    pub spec: Spec,
    /// The answer.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub status: Option<State>,
}

fn none<T>() -> Option<T> {
    None
}

/// `ClusterInvitation` of access.towline.io/v1alpha1.
pub type ClusterInvitation = Virtual<ClusterInvitationSpec, ClusterInvitationStatus>;
/// `ClusterRegistration` of access.towline.io/v1alpha1.
pub type ClusterRegistration = Virtual<ClusterRegistrationSpec, ClusterRegistrationStatus>;
/// Kind of [`ClusterInvitation`].
pub const INVITATION_KIND: &str = "ClusterInvitation";
/// Kind of [`ClusterRegistration`].
pub const REGISTRATION_KIND: &str = "ClusterRegistration";

/// What an agent says to be let in. Sent again until the answer is final: it is idempotent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterRegistrationSpec {
    /// The invitation's public id.
    pub invitation: String,
    /// The invitation's secret, 256 bits, base64url.
    #[serde(serialize_with = "secret::revealed")]
    pub secret: Secret,
    /// The UID of the child's `kube-system` namespace.
    pub cluster_id: String,
    /// The agent's public key: base64 of a DER SubjectPublicKeyInfo, ECDSA P-256.
    pub public_key: String,
    /// Base64 of the ECDSA (SHA-256, ASN.1) signature over [`signed_message`], made with that key.
    pub signature: String,
    /// The agent's version.
    pub agent_version: String,
}

/// The answer to a [`ClusterRegistrationSpec`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRegistrationStatus {
    /// The decision so far.
    pub result: RegistrationResult,
    /// For the agent's log: what is awaited, or why not.
    #[serde(default)]
    pub message: String,
    /// The credential, if approved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<Credential>,
    /// When to ask again, in seconds.
    #[serde(default)]
    pub retry_after_seconds: u32,
}

/// What an approved agent dials with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Credential {
    /// A bearer token of the parent, good for this cluster's own tunnel and nothing else.
    #[serde(serialize_with = "secret::revealed")]
    pub token: Secret,
    /// When it ends.
    pub expires: Timestamp,
}

/// Below it, agents open their tunnels at the hub's gateway.
pub const CONNECT_PATH: &str = "/connect/";

/// Path at which an agent opens the tunnel of a cluster at the gateway.
pub fn connect_path(id: &ClusterId) -> String {
    format!("{CONNECT_PATH}{id}")
}

/// The bytes that an agent signs to prove that it holds the key. Every part is bound, so that a signature
/// for one invitation or cluster proves nothing for another.
pub fn signed_message(invitation: &str, cluster_id: &str, public_key: &str) -> Vec<u8> {
    format!("towline registration v1\n{invitation}\n{cluster_id}\n{public_key}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invitation_with_an_unknown_field_is_refused() {
        let text = r#"{"apiVersion":"access.towline.io/v1alpha1","kind":"ClusterInvitation","metadata":{},
                       "spec":{"clusterName":"edge-1","ttl":"24h"}}"#;
        let error = serde_json::from_str::<ClusterInvitation>(text).unwrap_err().to_string();
        assert!(error.contains("ttl"), "{error}");
    }

    #[test]
    fn a_printed_answer_shows_no_secret() {
        let credential =
            Credential { token: Secret::from("s3cr3t".to_owned()), expires: Timestamp::UNIX_EPOCH };
        assert!(!format!("{credential:?}").contains("s3cr3t"));
    }
}
