//! Names that stand in more than one place: API groups, namespaces, objects, labels, and the two newtypes
//! [`ClusterId`] and [`ClusterName`] that are parsed once, at the edge.
//!
//! Groups, object names and labels are Clusternet's wherever Clusternet has one, so that what people already
//! have keeps working.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Group of `ManagedCluster` and `ClusterRegistrationRequest` (CRDs).
pub const CLUSTERS_GROUP: &str = "clusters.clusternet.io";
/// Group of `sockets`, served by the hub.
pub const PROXIES_GROUP: &str = "proxies.clusternet.io";
/// Version of [`PROXIES_GROUP`].
pub const PROXIES_VERSION: &str = "v1alpha1";
/// Group of the create-only resources (invitations, registrations), served by the hub.
pub const ACCESS_GROUP: &str = "access.towline.io";
/// Version of [`ACCESS_GROUP`].
pub const ACCESS_VERSION: &str = "v1alpha1";

/// Namespace of the hub in the parent and of the agent in a child.
pub const SYSTEM_NAMESPACE: &str = "clusternet-system";

/// The agent's own account in the child; also the name of its account in the parent's dedicated namespace.
pub const AGENT_ACCOUNT: &str = "clusternet-agent";
/// The powerless account in the child that may impersonate and do nothing else.
pub const IMPERSONATOR_ACCOUNT: &str = "clusternet-app-deployer";
/// ClusterRole and ClusterRoleBinding of [`IMPERSONATOR_ACCOUNT`].
pub const IMPERSONATOR_ROLE: &str = "clusternet:app:deployer";
/// Account in the parent that an agent uses before it is registered; it may create registrations only.
pub const BOOTSTRAP_ACCOUNT: &str = "cluster-bootstrap-use";
/// Secret in the child with what the invitation gave: parent address, CA, invitation.
pub const REGISTRATION_SECRET: &str = "clusternet-agent-cluster-registration";
/// Secret in the child with what the agent made and was given: key, credential.
pub const CREDENTIAL_SECRET: &str = "parent-cluster";
/// ConfigMap in the child with its owner's policy, written by nobody but the owner.
pub const POLICY_CONFIGMAP: &str = "clusternet-agent-policy";
/// Secret in the parent with the hub's serving certificate and the CA that signed it.
pub const HUB_TLS_SECRET: &str = "clusternet-hub-tls";
/// Service of the hub in the parent.
pub const HUB_SERVICE: &str = "clusternet-hub";
/// Prefix of dedicated namespaces, per-cluster roles and registration requests.
pub const PREFIX: &str = "clusternet-";

/// Label with the cluster's id.
pub const LABEL_CLUSTER_ID: &str = "clusters.clusternet.io/cluster-id";
/// Label with the cluster's name.
pub const LABEL_CLUSTER_NAME: &str = "clusters.clusternet.io/cluster-name";
/// Label on registration requests: who wrote them.
pub const LABEL_REGISTERED_BY: &str = "clusters.clusternet.io/registered-by";
/// Label on what the hub made.
pub const LABEL_CREATED_BY: &str = "clusternet.io/created-by";
/// Value of [`LABEL_CREATED_BY`] and [`LABEL_REGISTERED_BY`].
pub const CREATED_BY_HUB: &str = "clusternet-hub";
/// Prefixes that labels asked for at registration may not have: they are ours.
pub const RESERVED_LABEL_DOMAINS: [&str; 2] = ["clusternet.io", "towline.io"];

/// The longest cluster id or name: a DNS label (RFC 1123 section 2.1), since both become object names.
pub const MAX_LABEL: usize = 63;
/// The longest cluster name. Shorter than a label, for it is a part of longer names.
pub const MAX_CLUSTER_NAME: usize = 60;

/// What stands in the way of a [`ClusterId`] or [`ClusterName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} has to be at most {max} of a-z, 0-9 and '-', with a letter or digit at both ends")]
pub struct InvalidName {
    what: &'static str,
    max: usize,
}

fn is_label(text: &str, max: usize) -> bool {
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    bytes.len() <= max && plain(first) && plain(last) && bytes.iter().all(|byte| plain(byte) || *byte == b'-')
}

macro_rules! label_newtype {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        // Shared: each request clones it several times.
        pub struct $name(Arc<str>);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                if !is_label(text, $max) {
                    return Err(InvalidName { what: $what, max: $max });
                }
                Ok(Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

label_newtype! {
    /// What a cluster is known by for good: the UID of its `kube-system` namespace. Stays when the cluster is
    /// renamed, re-registered or its agent is installed again.
    ClusterId, "a cluster id", MAX_LABEL
}
label_newtype! {
    /// What people call a cluster.
    ClusterName, "a cluster name", MAX_CLUSTER_NAME
}

/// Prefix of every path that the hub serves for clusters.
pub const SOCKETS_PATH: &str = "/apis/proxies.clusternet.io/v1alpha1/sockets/";

/// Path at which an agent opens the tunnel of a cluster. `attach` is a long-running subresource in every
/// kube-apiserver (pkg/controlplane/apiserver/config.go), so a tunnel holds no seat and meets no timeout there.
pub fn attach_path(id: &ClusterId) -> String {
    format!("{SOCKETS_PATH}{id}/attach")
}

/// Path below which a cluster's whole API stands.
pub fn proxy_path(id: &ClusterId) -> String {
    format!("{SOCKETS_PATH}{id}/proxy/direct")
}

/// Path at which agents that are not registered yet ask to be.
pub const REGISTRATIONS_PATH: &str = "/apis/access.towline.io/v1alpha1/clusterregistrations";
/// Path at which people ask for invitations.
pub const INVITATIONS_PATH: &str = "/apis/access.towline.io/v1alpha1/clusterinvitations";
/// Path at which people and tools ask for kubeconfigs.
pub const KUBECONFIG_REQUESTS_PATH: &str = "/apis/access.towline.io/v1alpha1/kubeconfigrequests";
/// Path of the tokens in them.
pub const CREDENTIALS_PATH: &str = "/apis/access.towline.io/v1alpha1/issuedcredentials";

/// Name of the registration request of a cluster; Clusternet demands exactly this shape.
pub fn registration_request_name(id: &ClusterId) -> String {
    format!("{PREFIX}{id}")
}

/// Name of the per-cluster ClusterRole and ClusterRoleBinding in the parent.
pub fn cluster_role_name(id: &ClusterId) -> String {
    format!("{PREFIX}{id}")
}

/// Group that a caller of the given role belongs to in the child.
pub fn role_group(role: Role) -> &'static str {
    match role {
        Role::Admin => "clusternet:admin",
        Role::Edit => "clusternet:edit",
        Role::View => "clusternet:view",
    }
}

/// The three roles that the hub asks the parent's RBAC about, with verb `assume` on `sockets/<role>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Bound to `cluster-admin` in the child.
    Admin,
    /// Bound to `edit`.
    Edit,
    /// Bound to `view`.
    View,
}

impl Role {
    /// All of them, most powerful first.
    pub const ALL: [Self; 3] = [Self::Admin, Self::Edit, Self::View];

    /// The subresource of `sockets` that stands for the role.
    pub fn subresource(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Edit => "edit",
            Self::View => "view",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_ids_are_dns_labels_and_nothing_else() {
        for good in ["a", "0", "a-b", "6f0a1b1e-0000-4000-8000-000000000000", &"a".repeat(63)] {
            assert!(good.parse::<ClusterId>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-",
            "a-",
            "-a",
            "A",
            "a.b",
            "a/b",
            "*",
            "_",
            ".",
            "..",
            "a b",
            "ä",
            "system:hub",
            &"a".repeat(64),
        ] {
            assert!(bad.parse::<ClusterId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bad_name_is_refused_by_serde_too() {
        assert!(serde_json::from_str::<ClusterName>("\"edge-1\"").is_ok());
        assert!(serde_json::from_str::<ClusterName>("\"a: b\"").is_err());
    }
}
