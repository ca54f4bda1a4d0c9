//! A kubeconfig as an API: `KubeconfigRequest` (create-only, answered with the file and never stored) and
//! `IssuedCredential`, what is known of the token in it afterwards. The token is good for one cluster, one
//! identity, until a given time, and is stored as a hash.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::names::Role;
use crate::secret::Secret;

/// Kind of the request.
pub const KUBECONFIG_REQUEST_KIND: &str = "KubeconfigRequest";
/// Kind of what is known of an issued token.
pub const CREDENTIAL_KIND: &str = "IssuedCredential";
/// Begins every token that the hub issues, so that leaks are found by whoever scans for them, and so that the hub
/// tells its own from the parent's.
pub const TOKEN_PREFIX: &str = "twl-";

/// What somebody wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KubeconfigRequestSpec {
    /// Name or id of the cluster.
    pub cluster: String,
    /// The role that the token has in the child, and nothing else; the caller's own identity if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// For a tool: the child sees the user `clusternet:service:<name>` instead of the caller. Needs a role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// How long the token is good, in seconds; eight hours if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// How the server is spelt.
    #[serde(default)]
    pub address: Spelling,
}

/// How the address of a cluster is spelt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Spelling {
    /// `https://hub/k8s/clusters/NAME`
    #[default]
    Path,
    /// `https://NAME.DOMAIN`
    Host,
    /// `https://hub`: the token says which cluster. For tools that know host and port alone.
    Root,
}

/// The answer, once.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KubeconfigRequestStatus {
    /// Id of the credential, to see and revoke it by.
    pub credential: String,
    /// The end.
    pub expires: Timestamp,
    /// The server that stands in the kubeconfig.
    pub server: String,
    /// The token that stands in it.
    #[serde(serialize_with = "crate::secret::revealed")]
    pub token: Secret,
    /// The file.
    #[serde(serialize_with = "crate::secret::revealed")]
    pub kubeconfig: Secret,
}

/// What is known of an issued token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IssuedCredentialSpec {
    /// The cluster's id.
    pub cluster_id: String,
    /// Whose rights it has.
    pub owner: String,
    /// The one role, if it is not the owner's identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// The tool that it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The end.
    pub expires: Timestamp,
    /// When it was last used, to the minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used: Option<Timestamp>,
}
