//! The whole surface of the command line: commands, flags, and the values that are parsed once, here.

use std::path::PathBuf;
use std::time::Duration;

use api::labels;
use api::names::{ClusterId, ClusterName};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::duration;

mod kubeconfig;

pub use kubeconfig::{Address, ExecCredential, IssuedRole, Kubeconfig, Tool, Use};

/// Manage the clusters behind a Towline hub.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-towline",
    bin_name = "kubectl towline",
    version,
    disable_help_subcommand = true,
    after_help = "Exit codes: 0 done, 1 error, 2 wrong usage, 3 not found, 4 denied, 5 unreachable, 124 timeout, 141 the reader of the output went away."
)]
pub struct Cli {
    /// Flags that every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command takes; the names are kubectl's.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Connection")]
pub struct Global {
    /// Kubeconfig of the parent cluster [default: $KUBECONFIG, then ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// User to impersonate
    #[arg(long = "as", global = true, value_name = "USER")]
    pub impersonate: Option<String>,
    /// Group to impersonate; may be repeated
    #[arg(long = "as-group", global = true, value_name = "GROUP")]
    pub impersonate_groups: Vec<String>,
    /// How long to wait for one answer of the parent
    #[arg(long, global = true, value_name = "DURATION", default_value = "30s", value_parser = duration::parse)]
    pub request_timeout: Duration,
    /// Say on stderr what is asked and how long it takes
    #[arg(short, global = true, value_name = "LEVEL", num_args = 0..=1, require_equals = true, default_missing_value = "1", default_value = "0", hide_default_value = true)]
    pub verbose: u8,
    /// Print no colours, also on a terminal
    #[arg(long, global = true)]
    pub no_color: bool,
    /// Namespace in the cluster, for `access can-i`; nothing else here is namespaced for the caller
    #[arg(short, long, global = true, hide = true)]
    pub namespace: Option<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an invitation: the agent.yaml with which one cluster can join
    Register(Register),
    /// List clusters
    #[command(visible_alias = "list")]
    Clusters(Clusters),
    /// Show one cluster, its conditions and what to do about them
    Status(Named),
    /// Let a cluster in that has asked to join, or that was shut out
    Approve(Approve),
    /// Turn away a cluster that has asked to join, or shut out one that is registered
    Deny(Deny),
    /// Give a cluster another name; its id, tunnel, roles and tokens stay
    Rename(Rename),
    /// Remove a cluster from the hub; works also when the cluster is gone
    Unregister(Unregister),
    /// Write a kubeconfig for one cluster, made from your own or with a token of its own (--role), or what another tool
    /// takes instead (--for)
    Kubeconfig(Kubeconfig),
    /// Put one cluster into your kubeconfig and switch to it
    Use(Use),
    /// Get a short token for one cluster; kubectl and other tools run this by themselves (kubeconfig --for exec)
    ExecCredential(ExecCredential),
    /// List or revoke the tokens of kubeconfigs that the hub has issued
    Credentials(Credentials),
    /// Look for what is wrong on the way to the hub, to a cluster, or at the agent (--child)
    Doctor(Doctor),
    /// Show who may reach a cluster, or ask whether somebody may do something in it
    Access(Access),
    /// Change labels of a cluster
    Label(Label),
    /// Collect what somebody who helps will ask for; what is confidential is cut
    SupportBundle(SupportBundle),
    /// Print a script that completes commands and names of clusters
    Completion(Completion),
    /// Answer a TAB, as cobra does
    #[command(name = "__complete", hide = true)]
    Complete {
        /// The words of the line; the last one is being written
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Print the version
    Version,
}

/// `register`
#[derive(Debug, Args)]
pub struct Register {
    /// Name of the cluster to be: a-z, 0-9 and '-', at most 60
    pub name: ClusterName,
    /// How long the invitation may be used, such as 30m, 24h, 7d
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration::parse)]
    pub ttl: Duration,
    /// Let the cluster in at first contact, without `approve`
    #[arg(long)]
    pub auto_approve: bool,
    /// Which address of the hub the agent is to dial
    #[arg(long, value_enum, default_value_t = Network::Public)]
    pub network: Network,
    /// Label for the cluster; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// Group of the parent that shall have a meaning in the cluster; may be repeated
    #[arg(long = "group", value_name = "GROUP")]
    pub groups: Vec<String>,
    /// Another image for the agent than the hub's default
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// yaml: the manifest; command: one command that holds it, to paste into a shell that reaches the cluster; url: a short
    /// one that fetches it from the hub's gateway, once, within the hour
    #[arg(short, long, value_enum, default_value_t = RegisterOutput::Yaml)]
    pub output: RegisterOutput,
    /// Write to FILE (mode 0600, must not exist) instead of stdout
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Replace FILE if it exists
    #[arg(long, requires = "out")]
    pub force: bool,
    /// Say what would be done, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Which of the hub's configured addresses stands in the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// Reachable from anywhere
    Public,
    /// Reachable inside the company's networks
    Intranet,
}

/// Form of the invitation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RegisterOutput {
    /// The manifest
    Yaml,
    /// One shell command that holds the manifest
    Command,
    /// One shell command that fetches it from the hub's gateway, once
    Url,
}

/// `clusters`
#[derive(Debug, Args)]
pub struct Clusters {
    /// Form of the list
    #[arg(short, long, value_enum, default_value_t = ListOutput::Table)]
    pub output: ListOutput,
    /// Label selector, as for kubectl
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: Option<String>,
    /// Leave the column heads out
    #[arg(long)]
    pub no_headers: bool,
    /// After the list, print each cluster that changes
    #[arg(short, long)]
    pub watch: bool,
}

/// Form of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ListOutput {
    /// For people
    Table,
    /// The same with id, agent and reason
    Wide,
    /// Whole objects as a JSON list
    Json,
    /// Whole objects as a YAML list
    Yaml,
    /// Bare names, one a line, for other `towline` commands
    Name,
}

/// A command about one cluster.
#[derive(Debug, Args)]
pub struct Named {
    /// Name or id of the cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: ClusterId,
}

/// `approve`
#[derive(Debug, Args)]
pub struct Approve {
    /// Name or id of the cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: ClusterId,
    /// Approve only if the agent's key has this fingerprint (SHA256:…); the agent logs it
    #[arg(long, value_name = "FINGERPRINT")]
    pub fingerprint: Option<String>,
    /// Wait until the cluster is ready
    #[arg(long)]
    pub wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration::parse)]
    pub timeout: Duration,
    /// Do not ask; without a terminal this or --fingerprint has to be there
    #[arg(short, long)]
    pub yes: bool,
    /// Say what would be done, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `deny`
#[derive(Debug, Args)]
pub struct Deny {
    /// Name or id of the cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: ClusterId,
    /// Why; the agent shows it
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
    /// Say what would be done, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `rename`
#[derive(Debug, Args)]
pub struct Rename {
    /// Name or id of the cluster
    #[arg(value_name = "OLD")]
    pub cluster: ClusterId,
    /// The new name: a-z, 0-9 and '-', at most 60
    #[arg(value_name = "NEW")]
    pub new: ClusterName,
}

/// `unregister`
#[derive(Debug, Args)]
pub struct Unregister {
    /// Name or id of the cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: ClusterId,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Say what would be done, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `credentials`
#[derive(Debug, Args)]
pub struct Credentials {
    /// What to do; list if absent
    #[command(subcommand)]
    pub command: Option<CredentialsCommand>,
}

/// What can be done with issued tokens.
#[derive(Debug, Subcommand)]
pub enum CredentialsCommand {
    /// List yours, or everybody's if you may
    List,
    /// End one at once, with all that it has open
    Revoke {
        /// Id of the credential, from the list
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

/// `doctor`
#[derive(Debug, Clone, Default, Args)]
pub struct Doctor {
    /// Name or id of a cluster; without it the way to the parent and the hub is looked at
    #[arg(value_name = "CLUSTER", conflicts_with_all = ["child", "child_kubeconfig", "child_context"])]
    pub cluster: Option<ClusterId>,
    /// Look at the agent's side instead, with a kubeconfig of the cluster itself
    #[arg(long)]
    pub child: bool,
    /// Kubeconfig of the cluster itself; implies --child
    #[arg(long, value_name = "FILE")]
    pub child_kubeconfig: Option<PathBuf>,
    /// Context of the cluster itself; implies --child
    #[arg(long, value_name = "NAME")]
    pub child_context: Option<String>,
    /// Address of the hub's gateway, if its Deployment does not say it
    #[arg(long, value_name = "URL")]
    pub gateway: Option<String>,
    /// CA of the gateway's certificate, PEM
    #[arg(long, value_name = "FILE")]
    pub gateway_ca: Option<PathBuf>,
    /// Form of the findings
    #[arg(short, long, value_enum, default_value_t)]
    pub output: ReportOutput,
}

impl Doctor {
    /// Whether the agent's side is meant.
    pub fn is_child(&self) -> bool {
        self.child || self.child_kubeconfig.is_some() || self.child_context.is_some()
    }

    /// How to reach the child: its own file or context, else what leads to the parent elsewhere.
    pub fn child_side(&self, global: &Global) -> Global {
        Global {
            kubeconfig: self.child_kubeconfig.clone().or_else(|| global.kubeconfig.clone()),
            context: self.child_context.clone().or_else(|| global.context.clone()),
            ..global.clone()
        }
    }
}

/// `access`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Access {
    /// Name or id of the cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: Option<ClusterId>,
    /// A question instead of the list
    #[command(subcommand)]
    pub command: Option<AccessCommand>,
}

/// What can be asked about access.
#[derive(Debug, Subcommand)]
pub enum AccessCommand {
    /// May I (or --as SOMEBODY) do this in the cluster, and if not, who says no; the exit code is 0 for a yes alone
    CanI(CanI),
}

/// `access can-i`
#[derive(Debug, Args)]
pub struct CanI {
    /// Name or id of the cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: ClusterId,
    /// get, list, watch, create, update, patch, delete, or any other verb of RBAC
    pub verb: String,
    /// pods, pods/exec, deployments.apps; in the namespace of -n, else in default
    pub resource: String,
}

/// `label`
#[derive(Debug, Args)]
pub struct Label {
    /// Name or id of the cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: ClusterId,
    /// KEY=VALUE to set a label, KEY- to take it away
    #[arg(value_name = "KEY=VALUE|KEY-", required = true, value_parser = crate::label::parse)]
    pub changes: Vec<LabelChange>,
    /// Say what would be changed, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// One label to be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelChange {
    /// The key.
    pub key: String,
    /// The value; none to take the label away.
    pub value: Option<String>,
}

impl std::fmt::Display for LabelChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}={value}", self.key),
            None => write!(f, "{}-", self.key),
        }
    }
}

/// `support-bundle`
#[derive(Debug, Args)]
pub struct SupportBundle {
    /// Name or id of a cluster; without it the parent and the hub alone
    #[arg(value_name = "CLUSTER")]
    pub cluster: Option<ClusterId>,
    /// Write to FILE (.tar.gz, mode 0600, must not exist)
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// `completion`
#[derive(Debug, Args)]
pub struct Completion {
    /// Of which shell; kubectl: the executable that kubectl itself asks
    #[arg(value_enum)]
    pub shell: Shell,
}

/// What a completion script is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// source <(kubectl towline completion bash)
    Bash,
    /// source <(kubectl towline completion zsh)
    Zsh,
    /// kubectl towline completion fish | source
    Fish,
    /// Save it on PATH as kubectl_complete-towline, executable
    Kubectl,
}

/// Form of what is found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ReportOutput {
    /// For people
    #[default]
    Table,
    /// For machines
    Json,
}

impl Global {
    /// How the next command has to begin to reach the same parent as this one.
    pub fn command(&self) -> String {
        let mut words = vec!["kubectl towline".to_owned()];
        if let Some(file) = &self.kubeconfig {
            words.push(format!("--kubeconfig {}", shell_word(&file.display().to_string())));
        }
        if let Some(context) = &self.context {
            words.push(format!("--context {}", shell_word(context)));
        }
        if let Some(user) = &self.impersonate {
            words.push(format!("--as {}", shell_word(user)));
        }
        words.extend(self.impersonate_groups.iter().map(|group| format!("--as-group {}", shell_word(group))));
        words.join(" ")
    }
}

/// The text as one word of a POSIX shell.
pub(crate) fn shell_word(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:@%+=,".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// One `KEY=VALUE`, as the hub would accept it: here the mistake is found before anything is made.
fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("has to be KEY=VALUE")?;
    labels::check(key, value).map_err(|bad| bad.to_string())?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("kubectl-towline").chain(line.split_whitespace()))
    }

    #[test]
    fn the_surface_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_stand_before_or_after_the_command() {
        for line in [
            "--context p --as alice --as-group dev clusters",
            "clusters --context p --as alice --as-group dev",
        ] {
            let global = parse(line).unwrap().global;
            assert_eq!(global.context.as_deref(), Some("p"), "{line}");
            assert_eq!(global.impersonate.as_deref(), Some("alice"), "{line}");
            assert_eq!(global.impersonate_groups, ["dev"], "{line}");
        }
    }

    #[test]
    fn verbosity_is_written_as_in_kubectl() {
        for (line, level) in [("clusters", 0), ("clusters -v", 1), ("-v=6 clusters", 6), ("-v clusters", 1)] {
            assert_eq!(parse(line).unwrap().global.verbose, level, "{line}");
        }
    }

    #[test]
    fn register_has_safe_defaults() {
        let Command::Register(args) = parse("register edge-1").unwrap().command else { panic!("register") };
        assert_eq!(args.ttl, Duration::from_hours(24));
        assert_eq!((args.auto_approve, args.network, args.force), (false, Network::Public, false));
    }

    #[test]
    fn mistakes_are_usage_errors() {
        for line in [
            "",
            "nonsense",
            "register",
            "register Edge_1",
            "register a --ttl x",
            "register a --network home",
            "register a --label x",
            "register a --label clusternet.io/x=y",
            "register a --force",
            "approve",
            "rename a",
            "rename a B_c",
            "approve ../x",
            "clusters -o xml",
            "kubeconfig a --cluster-id */b",
            // What is not offered: whatever would weaken what is generated.
            "kubeconfig a --insecure-skip-tls-verify",
            "register a --insecure-skip-tls-verify",
            "register a --rules *",
            "register a --node-selector a=b",
            "register -a",
            "register kube_system",
            // A secret on the command line is read by every process of the machine.
            "clusters --token secret",
            "clusters --token=secret",
            "clusters --password secret",
            "register a --ttl -1s",
            "register a --ttl 1e9h",
            "register a --ttl NaN",
            "register a --ttl 10",
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.use_stderr() && error.exit_code() == 2, "{line}: {error}");
            assert!(!error.to_string().contains("secret"), "{line}: {error}");
        }
    }

    #[test]
    fn labels_have_kubernetes_syntax_and_are_not_ours() {
        for good in ["env=prod", "a/b=", "example.com/site=gz-1", "x_y.z=1", "notclusternet.io/a=b"] {
            assert!(label(good).is_ok(), "{good}");
        }
        for bad in [
            "env",
            "=x",
            "a=b c",
            "-a=b",
            "a=b-",
            "/a=b",
            "A.com/x=y",
            "a//b=c",
            "clusters.clusternet.io/cluster-id=x",
            "towline.io/x=y",
            "a=ä",
        ] {
            assert!(label(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_next_command_reaches_the_same_parent() {
        let global = parse("--context my:ctx --as o'neil clusters").unwrap().global;
        assert_eq!(global.command(), r"kubectl towline --context my:ctx --as 'o'\''neil'");
        assert_eq!(Global::default().command(), "kubectl towline");
    }
}
