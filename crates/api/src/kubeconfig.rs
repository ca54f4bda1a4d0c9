//! A kubeconfig as an API: `KubeconfigRequest` (create-only, answered with the file and never stored) and
//! `IssuedCredential`, what is known of the token in it afterwards. The token is good for one cluster, one
//! identity, until a given time, and is stored as a hash.

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};

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
    /// How the server is spelt; as the format needs it if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Spelling>,
    /// For which tool `status.content` is written.
    #[serde(default, skip_serializing_if = "Format::is_kubeconfig")]
    pub format: Format,
}

/// What `status.content` is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// A kubeconfig with a token and nothing else, which every tool carries.
    #[default]
    Kubeconfig,
    /// A kubeconfig that asks `kubectl towline exec-credential` for its tokens and holds none.
    Exec,
    /// What TKEStack's import form takes, and the two objects that it makes of it.
    Tkestack,
    /// The Secret by which Argo CD knows a cluster.
    ArgocdSecret,
    /// The Secret that Flux reads a kubeconfig from.
    FluxSecret,
    /// The SIG-Multicluster inventory's object, without a credential.
    #[serde(rename = "clusterprofile")]
    ClusterProfile,
    /// A provider block of Terraform and OpenTofu; the token is a variable, and not in it.
    Terraform,
    /// Exports for a shell.
    Env,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Kubeconfig,
        Self::Exec,
        Self::Tkestack,
        Self::ArgocdSecret,
        Self::FluxSecret,
        Self::ClusterProfile,
        Self::Terraform,
        Self::Env,
    ];

    /// Whether a token is issued for it.
    pub fn has_token(self) -> bool {
        !matches!(self, Self::Exec | Self::ClusterProfile)
    }

    fn is_kubeconfig(&self) -> bool {
        *self == Self::Kubeconfig
    }
}

/// The variable that holds the token of a cluster in Terraform. Its name is also one for a shell (`TF_VAR_…`).
pub fn terraform_variable(cluster: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    format!("towline_{}_token", cluster.chars().map(plain).collect::<String>())
}

/// How the address of a cluster is spelt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Spelling {
    /// `https://hub/k8s/clusters/NAME`
    Path,
    /// `https://NAME.DOMAIN`
    Host,
    /// `https://hub`: the token says which cluster. For tools that know host and port alone.
    Root,
}

/// The answer, once. What holds no token (`exec`, `clusterprofile`) names no credential either: none was issued.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KubeconfigRequestStatus {
    /// Id of the credential, to see and revoke it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// The end of the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// The server that stands in what follows.
    pub server: String,
    /// The token.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "revealed")]
    pub token: Option<Secret>,
    /// A kubeconfig, whatever the format: with the token, or with the command that asks for one.
    #[serde(serialize_with = "crate::secret::revealed")]
    pub kubeconfig: Secret,
    /// What was asked for: the text in `spec.format`.
    #[serde(serialize_with = "crate::secret::revealed")]
    pub content: Secret,
}

fn revealed<S: Serializer>(token: &Option<Secret>, serializer: S) -> Result<S::Ok, S::Error> {
    match token {
        Some(token) => crate::secret::revealed(token, serializer),
        None => serializer.serialize_none(),
    }
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(spec: Value) -> Result<KubeconfigRequestSpec, String> {
        serde_json::from_value(spec).map_err(|error| error.to_string())
    }

    #[test]
    fn formats_are_called_as_documented_and_nothing_else_is_taken() {
        let names = [
            "kubeconfig",
            "exec",
            "tkestack",
            "argocd-secret",
            "flux-secret",
            "clusterprofile",
            "terraform",
            "env",
        ];
        for (format, name) in Format::ALL.into_iter().zip(names) {
            assert_eq!(serde_json::to_value(format).unwrap(), name);
            assert_eq!(read(json!({ "cluster": "a", "format": name })).unwrap().format, format);
        }
        for wrong in ["", "Exec", "argocd", "argocdSecret", "yaml"] {
            assert!(read(json!({ "cluster": "a", "format": wrong })).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_request_without_a_format_is_as_it_was() {
        let spec = read(json!({ "cluster": "a", "role": "view" })).unwrap();
        assert_eq!((spec.format, spec.address), (Format::Kubeconfig, None));
        assert_eq!(serde_json::to_value(spec).unwrap(), json!({ "cluster": "a", "role": "view" }));
    }

    #[test]
    fn what_was_not_issued_is_not_mentioned() {
        let status = KubeconfigRequestStatus {
            credential: None,
            expires: None,
            server: "s".to_owned(),
            token: None,
            kubeconfig: Secret::from("k".to_owned()),
            content: Secret::from("c".to_owned()),
        };
        let written = serde_json::to_value(&status).unwrap();
        assert_eq!(written, json!({ "server": "s", "kubeconfig": "k", "content": "c" }));
        let read: KubeconfigRequestStatus = serde_json::from_value(written).unwrap();
        assert_eq!((read.token, read.content.reveal()), (None, "c"));
    }
}
