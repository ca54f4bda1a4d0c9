//! Arguments of the commands that give access to one cluster: `kubeconfig`, `use`, `exec-credential`.

use std::path::PathBuf;
use std::time::Duration;

use api::names::{ClusterId, Role};
use clap::{ArgGroup, Args, ValueEnum};

use crate::duration;

/// `kubeconfig`
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("issued").args(["tool", "role"]).multiple(true)))]
#[command(group(ArgGroup::new("target").args(["out", "merge"]).multiple(true)))]
pub struct Kubeconfig {
    /// Name or id of the cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: ClusterId,
    /// For which tool: picks the form that it takes and an address that it can use, and says what to do next
    #[arg(long = "for", value_enum, value_name = "TOOL")]
    pub tool: Option<Tool>,
    /// Have the hub issue a token of its own for this one cluster, with this role of yours, or with your own identity;
    /// the kubeconfig then leads to the hub's gateway and every tool can use it
    #[arg(long, value_enum, conflicts_with = "cluster_id")]
    pub role: Option<IssuedRole>,
    /// How long the token is good, such as 8h, 30d
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, requires = "role")]
    pub ttl: Option<Duration>,
    /// Name of a tool: the cluster sees the user clusternet:service:NAME instead of you
    #[arg(long, value_name = "NAME", requires = "role")]
    pub service: Option<String>,
    /// How the server is spelt: path, host (NAME.DOMAIN), or root (host and port alone; the token says which cluster)
    /// [default: what the tool can use]
    #[arg(long, value_enum, requires = "issued")]
    pub address: Option<Address>,
    /// The cluster's id, for callers who may use the cluster but not look it up
    #[arg(long, value_name = "ID")]
    pub cluster_id: Option<ClusterId>,
    /// Write to FILE (mode 0600, must not exist) instead of stdout
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Put cluster, user and context into the kubeconfig --out FILE, or into yours; all else in it stays
    #[arg(long)]
    pub merge: bool,
    /// Replace FILE if it exists; with --merge, entries of the same name that are not from here
    #[arg(long, requires = "target")]
    pub force: bool,
    /// Say what would be asked and written, and do neither
    #[arg(long)]
    pub dry_run: bool,
}

/// `use`
#[derive(Debug, Args)]
pub struct Use {
    /// Name or id of the cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: ClusterId,
    /// With a token of the hub, of this role of yours, instead of your own credential of the parent
    #[arg(long, value_enum, conflicts_with = "cluster_id")]
    pub role: Option<IssuedRole>,
    /// How long the token is good, such as 8h, 30d
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, requires = "role")]
    pub ttl: Option<Duration>,
    /// Write no token down: get a short one whenever one is needed
    #[arg(long, conflicts_with = "cluster_id")]
    pub exec: bool,
    /// The cluster's id, for callers who may use the cluster but not look it up
    #[arg(long, value_name = "ID")]
    pub cluster_id: Option<ClusterId>,
    /// Another kubeconfig than yours
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Replace entries of the same name that are not from here
    #[arg(long)]
    pub force: bool,
    /// Say what would be asked and written, and do neither
    #[arg(long)]
    pub dry_run: bool,
}

/// `exec-credential`
#[derive(Debug, Args)]
pub struct ExecCredential {
    /// Name or id of the cluster [default: clusterName of the cluster's configuration in KUBERNETES_EXEC_INFO]
    #[arg(value_name = "CLUSTER")]
    pub cluster: Option<ClusterId>,
    /// The one role of the token, or your own identity
    #[arg(long, value_enum, default_value_t = IssuedRole::Own)]
    pub role: IssuedRole,
    /// Name of a tool: the cluster sees the user clusternet:service:NAME instead of you
    #[arg(long, value_name = "NAME", requires = "role")]
    pub service: Option<String>,
    /// How long a token is good; a new one is got after two thirds of it, and after ten minutes at most
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "1h")]
    pub ttl: Duration,
}

/// What takes the credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Tool {
    /// kubectl and what is built as it is: helm, k9s, kustomize
    #[value(aliases = ["kubeconfig", "helm", "k9s", "kustomize", "go"])]
    Kubectl,
    /// A kubeconfig without a token, which asks for a short one when it is used
    Exec,
    /// TKEStack 1.8 and 1.9: the file to upload, the values of the form, and the objects
    #[value(aliases = ["tke"])]
    Tkestack,
    /// The Secret of Argo CD
    #[value(aliases = ["argo", "argo-cd", "argocd-secret"])]
    Argocd,
    /// The Secret of Flux
    #[value(aliases = ["fluxcd", "flux-secret"])]
    Flux,
    /// The ClusterProfile of SIG-Multicluster's inventory
    #[value(aliases = ["cluster-profile", "inventory"])]
    Clusterprofile,
    /// Provider block of Terraform and OpenTofu, and a file with the token
    #[value(aliases = ["opentofu", "tofu"])]
    Terraform,
    /// Exports for a shell
    #[value(aliases = ["shell", "sh"])]
    Env,
    /// The Python clients
    #[value(aliases = ["py"])]
    Python,
    /// @kubernetes/client-node
    #[value(aliases = ["js", "node", "typescript"])]
    Javascript,
    /// fabric8 and the Java client
    #[value(aliases = ["fabric8"])]
    Java,
    /// kube-rs
    #[value(aliases = ["kube-rs"])]
    Rust,
    /// Lens and Freelens
    #[value(aliases = ["freelens"])]
    Lens,
    /// Headlamp
    Headlamp,
    /// KubeSphere's direct connection
    #[value(aliases = ["kube-sphere"])]
    Kubesphere,
    /// VS Code's Kubernetes extension
    #[value(aliases = ["code", "vs-code"])]
    Vscode,
}

/// What an issued token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum IssuedRole {
    /// cluster-admin
    Admin,
    /// edit
    Edit,
    /// view
    View,
    /// Whatever you may do yourself
    Own,
}

impl IssuedRole {
    /// As the API has it.
    pub fn role(self) -> Option<Role> {
        match self {
            Self::Admin => Some(Role::Admin),
            Self::Edit => Some(Role::Edit),
            Self::View => Some(Role::View),
            Self::Own => None,
        }
    }
}

/// How a server is spelt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Address {
    /// `https://hub/k8s/clusters/NAME`
    Path,
    /// `https://NAME.DOMAIN`
    Host,
    /// `https://hub`
    Root,
}

impl From<Use> for Kubeconfig {
    /// `use` is `kubeconfig --merge` and a switch.
    fn from(given: Use) -> Self {
        Self {
            cluster: given.cluster,
            tool: given.exec.then_some(Tool::Exec),
            role: given.role,
            ttl: given.ttl,
            service: None,
            address: None,
            cluster_id: given.cluster_id,
            out: given.out,
            merge: true,
            force: given.force,
            dry_run: given.dry_run,
        }
    }
}
