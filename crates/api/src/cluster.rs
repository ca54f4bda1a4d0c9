//! `ManagedCluster`: a registered child, as `kubectl get mcls` shows it. Clusternet's group, kind and field
//! names (clusters.clusternet.io/v1beta1), plus what tells the truth about the tunnel.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is wanted of a registered child.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "clusters.clusternet.io",
    version = "v1beta1",
    kind = "ManagedCluster",
    namespaced,
    status = "ManagedClusterStatus",
    shortname = "mcls",
    category = "clusternet",
    category = "towline",
    printcolumn = r#"{"name":"READY","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"TUNNEL","type":"string","jsonPath":".status.conditions[?(@.type==\"TunnelConnected\")].reason"}"#,
    printcolumn = r#"{"name":"VERSION","type":"string","jsonPath":".status.k8sVersion"}"#,
    printcolumn = r#"{"name":"NODES","type":"string","jsonPath":".status.nodes"}"#,
    printcolumn = r#"{"name":"RTT","type":"string","jsonPath":".status.tunnel.rtt"}"#,
    printcolumn = r#"{"name":"LAST-SEEN","type":"date","jsonPath":".status.lastObservedTime"}"#,
    printcolumn = r#"{"name":"AGE","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"CLUSTER ID","type":"string","jsonPath":".spec.clusterId","priority":1}"#,
    printcolumn = r#"{"name":"PROVIDER","type":"string","jsonPath":".status.provider","priority":1}"#,
    printcolumn = r#"{"name":"SYNC MODE","type":"string","jsonPath":".spec.syncMode","priority":1}"#,
    printcolumn = r#"{"name":"KUBERNETES","type":"string","jsonPath":".status.k8sVersion","priority":1}"#,
    printcolumn = r#"{"name":"AGENT VERSION","type":"string","jsonPath":".status.agentVersion","priority":1}"#,
    printcolumn = r#"{"name":"REASON","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason","priority":1}"#,
    printcolumn = r#"{"name":"MESSAGE","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].message","priority":1}"#
)]
#[serde(rename_all = "camelCase")]
pub struct ManagedClusterSpec {
    /// The UID of the child's `kube-system` namespace.
    pub cluster_id: String,
    /// `StandardCluster` or `EdgeCluster`.
    #[serde(default = "standard_cluster")]
    pub cluster_type: String,
    /// Clusternet's; `Pull`, since nothing is ever pushed.
    #[serde(default = "pull")]
    pub sync_mode: String,
    /// Fingerprint (`SHA256:…`) of the key that this cluster's agent holds; no other may connect.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key_fingerprint: String,
    /// Set to true to shut the cluster out: its tunnel is closed and none is accepted.
    #[serde(default)]
    pub denied: bool,
}

fn standard_cluster() -> String {
    "StandardCluster".to_owned()
}

fn pull() -> String {
    "Pull".to_owned()
}

/// What is known of a registered child.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ManagedClusterStatus {
    /// When the hub last heard from the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_observed_time: Option<Time>,
    /// When the agent last said how its cluster is: versions, nodes, pods, resources, policy and impersonation are as of
    /// then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_report_time: Option<Time>,
    /// The tunnel that takes the requests; absent while there is none.
    pub tunnel: Option<TunnelStatus>,
    /// When the agent's credential ends, unless it is renewed before.
    pub credential_expiration_time: Option<Time>,
    /// The child's Kubernetes version.
    pub k8s_version: String,
    /// The agent's version.
    pub agent_version: String,
    /// `linux/amd64` and the like.
    pub platform: String,
    /// Who runs the nodes (`aws`, `gce`, `kind`, …), from their `spec.providerID`; empty if they do not say.
    pub provider: String,
    /// How long the child's API server takes to answer its agent, `3ms`; empty if that is not known now.
    #[serde(rename = "apiServerRTT")]
    pub api_server_rtt: String,
    /// Always true: this cluster is reached through a tunnel.
    pub use_socket: bool,
    /// The child's `/healthz`, `/livez`, `/readyz`, as its agent sees them.
    pub healthz: bool,
    #[allow(missing_docs, reason = "see healthz")]
    pub livez: bool,
    #[allow(missing_docs, reason = "see healthz")]
    pub readyz: bool,
    /// Ready and all nodes, `3/4`.
    pub nodes: String,
    /// Nodes by state.
    pub node_statistics: NodeStatistics,
    /// Pods by state; absent if the agent may not count them.
    pub pod_statistics: Option<PodStatistics>,
    /// Sums over the nodes.
    pub capacity: BTreeMap<String, String>,
    /// Sums over the nodes.
    pub allocatable: BTreeMap<String, String>,
    /// What the child's owner admits out of the tunnel, as the agent says; absent if it says nothing.
    pub policy: Option<PolicyStatus>,
    /// By which rules the agent acts as callers, as it says; absent if it says nothing or cannot.
    pub impersonation: Option<ImpersonationStatus>,
    /// `Ready`, `TunnelConnected`, `APIServerReachable`, …: docs/objects.md has them all.
    pub conditions: Vec<Condition>,
}

/// Nodes by state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatistics {
    /// Ready.
    pub ready_nodes: u32,
    /// Not ready.
    pub not_ready_nodes: u32,
    /// State unknown.
    pub unknown_nodes: u32,
}

/// Pods by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatistics {
    /// In phase Running; absent where there are too many others to count.
    pub running_pods: Option<u32>,
    /// All.
    pub total_pods: u32,
}

/// One tunnel, as the hub that holds it sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TunnelStatus {
    /// Its name in the logs of both sides.
    pub id: String,
    /// The hub replica that holds it.
    pub hub: String,
    /// Since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// How long an empty request takes to the agent and back, `12ms`; empty until it was measured.
    pub rtt: String,
}

/// The policy that holds in a child, as its agent says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyStatus {
    /// `default` while the owner has written nothing, else `configmap`.
    pub source: String,
    /// `admin`, `edit`, `view` or `no-exec`.
    pub preset: String,
    /// What it admits, in plain words.
    pub summary: String,
    /// Of the ConfigMap that it was read from.
    pub resource_version: String,
    /// The owner has closed the cluster: nobody is admitted.
    pub closed: bool,
    /// Why what stands in the ConfigMap now is not in force; empty if it is.
    pub error: String,
    /// What was refused last, the latest first.
    pub last_refusals: Vec<PolicyRefusal>,
    /// Set by the hub while the agent says nothing: all of this is as of then (RFC 3339), and may hold no more.
    pub as_of: String,
}

/// How an agent acts as callers in its child.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ImpersonationStatus {
    /// `legacy` or `constrained`, with what that is.
    pub mode: String,
    /// Rights of the agent's accounts that the child's owner should look at.
    pub warnings: Vec<String>,
    /// Set by the hub while the agent says nothing: all of this is as of then (RFC 3339), and may hold no more.
    pub as_of: String,
}

/// One request that the child's policy refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyRefusal {
    /// When, RFC 3339, to the second.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub time: String,
    /// Who asked.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// For what: `delete pods/web in namespace default`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub asked: String,
    /// Which rule of the policy refused it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub rule: String,
}

/// Annotation with which a person wishes another name for a cluster. The hub renames and takes it away.
pub const RENAME_TO: &str = "access.towline.io/rename-to";
/// Annotation with the hub's sentence why it did not rename; gone with the next rename.
pub const RENAME_REFUSED: &str = "access.towline.io/rename-refused";
/// Annotation with the names that a cluster had before, latest first, separated by commas.
pub const FORMER_NAMES: &str = "access.towline.io/former-names";
/// Annotation of the object that a rename made: the UID of the one whose place it takes.
pub const RENAMED_FROM: &str = "access.towline.io/renamed-from";

/// The summary: requests get through to the child.
pub const CONDITION_READY: &str = "Ready";
/// A hub replica holds a live tunnel.
pub const CONDITION_TUNNEL: &str = "TunnelConnected";
/// The agent reaches its API server.
pub const CONDITION_API_SERVER: &str = "APIServerReachable";
/// The policy that the child's owner has written holds.
pub const CONDITION_POLICY: &str = "PolicyInForce";
/// A person has let the cluster in.
pub const CONDITION_REGISTERED: &str = "Registered";
/// The agent's credential will let it in again.
pub const CONDITION_CREDENTIALS: &str = "CredentialsValid";
/// Agent and hub are at most one minor version apart.
pub const CONDITION_AGENT: &str = "AgentUpToDate";
/// Another agent uses the same identity.
pub const CONDITION_CONFLICT: &str = "Conflict";
