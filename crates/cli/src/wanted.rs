//! What to ask the hub for, from what was typed: form, address and identity that fit a tool. Pure.

use api::kubeconfig::{Format, KubeconfigRequestSpec, Spelling};
use clap::ValueEnum as _;

use crate::args::{Address, IssuedRole, Kubeconfig, Tool};
use crate::failure::{Exit, Failure};

/// Where the kubeconfig comes from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The caller's own, with the cluster's path: nobody is asked for a token.
    Own,
    /// The hub.
    Issued(Box<KubeconfigRequestSpec>),
}

/// Reads the arguments.
///
/// # Errors
/// They do not go together.
pub(crate) fn wanted(args: &Kubeconfig) -> Result<Wanted, Failure> {
    let format = args.tool.map_or(Format::Kubeconfig, format);
    if args.merge && !matches!(format, Format::Kubeconfig | Format::Exec) {
        return Err(Failure::new(Exit::Usage, "--merge takes what is a kubeconfig, and this is none")
            .next("leave --merge away, or choose --for kubectl or --for exec"));
    }
    if format != Format::Kubeconfig && args.cluster_id.is_some() {
        return Err(Failure::new(Exit::Usage, "--cluster-id is for kubeconfigs that are made from your own")
            .next("give the id as CLUSTER: the hub takes either"));
    }
    let role = match (args.role, args.tool) {
        (Some(_), Some(Tool::Clusterprofile)) => {
            return Err(Failure::new(Exit::Usage, "a ClusterProfile holds no token and names nobody").next(
                "leave --role away; whoever reads it runs: kubectl-towline exec-credential --role ROLE",
            ));
        }
        (Some(role), _) => role,
        (None, Some(Tool::Exec | Tool::Clusterprofile)) => IssuedRole::Own,
        (None, None | Some(Tool::Kubectl)) if args.address.is_some() => {
            return Err(needs_role("--address is for kubeconfigs with a token of the hub"));
        }
        (None, None | Some(Tool::Kubectl)) => return Ok(Wanted::Own),
        (None, Some(_)) => {
            return Err(needs_role("this holds a token, and somebody has to say what it may do"));
        }
    };
    Ok(Wanted::Issued(Box::new(KubeconfigRequestSpec {
        cluster: args.cluster.to_string(),
        role: role.role(),
        service: args.service.clone(),
        ttl_seconds: args.ttl.map(|ttl| ttl.as_secs()),
        address: args.address.map(spelling).or_else(|| args.tool.and_then(fitting)),
        format,
    })))
}

fn needs_role(what: &str) -> Failure {
    Failure::new(Exit::Usage, what)
        .next("add --role view, edit or admin, or --role own for all that you may do")
}

fn format(tool: Tool) -> Format {
    match tool {
        Tool::Kubectl
        | Tool::Python
        | Tool::Javascript
        | Tool::Java
        | Tool::Rust
        | Tool::Lens
        | Tool::Headlamp
        | Tool::Kubesphere
        | Tool::Vscode => Format::Kubeconfig,
        Tool::Exec => Format::Exec,
        Tool::Tkestack => Format::Tkestack,
        Tool::Argocd => Format::ArgocdSecret,
        Tool::Flux => Format::FluxSecret,
        Tool::Clusterprofile => Format::ClusterProfile,
        Tool::Terraform => Format::Terraform,
        Tool::Env => Format::Env,
    }
}

/// The address that a tool needs, where it is not the one that the hub would choose.
fn fitting(tool: Tool) -> Option<Spelling> {
    // Headlamp before v0.43 loses the path in exec, logs and port-forward; KubeSphere keeps host and port alone.
    matches!(tool, Tool::Headlamp | Tool::Kubesphere).then_some(Spelling::Root)
}

fn spelling(address: Address) -> Spelling {
    match address {
        Address::Path => Spelling::Path,
        Address::Host => Spelling::Host,
        Address::Root => Spelling::Root,
    }
}

/// What to do with the file, as the last line of what is said.
pub(crate) fn next(tool: Option<Tool>, file: &str, cluster: &str) -> String {
    let Some(tool) = tool else { return format!("kubectl --kubeconfig {file} get namespaces") };
    match tool {
        Tool::Kubectl | Tool::Exec => format!("kubectl --kubeconfig {file} get namespaces"),
        Tool::Tkestack => format!("upload {file} in TKEStack: Clusters, Import, KubeConfig File"),
        Tool::Argocd => format!("kubectl -n argocd apply --server-side -f {file}, at Argo CD's cluster"),
        Tool::Flux => format!(
            "kubectl -n NAMESPACE apply --server-side -f {file}, and in the Kustomization there: spec.kubeConfig.secretRef.name: {cluster}-kubeconfig"
        ),
        Tool::Clusterprofile => format!(
            "kubectl -n NAMESPACE apply -f {file}; kubectl -n NAMESPACE patch clusterprofile {cluster} --subresource=status --type=merge --patch-file {file}"
        ),
        Tool::Terraform => "terraform plan; keep *.auto.tfvars out of the repository".to_owned(),
        Tool::Env => format!(". {file}"),
        Tool::Python | Tool::Javascript | Tool::Java | Tool::Rust => format!("export KUBECONFIG={file}"),
        Tool::Lens | Tool::Headlamp | Tool::Vscode => {
            format!("add the kubeconfig {file} in the settings of {}", name(tool))
        }
        Tool::Kubesphere => format!("paste {file} into Add Cluster, Direct connection"),
    }
}

fn name(tool: Tool) -> String {
    tool.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn parsed(line: &str) -> Option<Kubeconfig> {
        let words = ["kubectl-towline", "kubeconfig", "edge-1"].into_iter().chain(line.split_whitespace());
        let command = Cli::try_parse_from(words).ok()?.command;
        if let Command::Kubeconfig(args) = command { Some(args) } else { None }
    }

    fn spec(line: &str) -> serde_json::Value {
        match wanted(&parsed(line).unwrap_or_else(|| panic!("{line}"))) {
            Ok(Wanted::Issued(spec)) => serde_json::to_value(spec).unwrap(),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_question_is_what_was_typed() {
        for (line, expected) in [
            (
                "--role view --ttl 2h --service argo --address root",
                serde_json::json!({ "cluster": "edge-1", "role": "view", "service": "argo", "ttlSeconds": 7200, "address": "root" }),
            ),
            ("--role own", serde_json::json!({ "cluster": "edge-1" })),
            ("--for kubectl --role edit", serde_json::json!({ "cluster": "edge-1", "role": "edit" })),
            ("--for exec", serde_json::json!({ "cluster": "edge-1", "format": "exec" })),
            ("--for clusterprofile", serde_json::json!({ "cluster": "edge-1", "format": "clusterprofile" })),
            (
                "--for headlamp --role view",
                serde_json::json!({ "cluster": "edge-1", "role": "view", "address": "root" }),
            ),
            (
                "--for headlamp --role view --address host",
                serde_json::json!({ "cluster": "edge-1", "role": "view", "address": "host" }),
            ),
        ] {
            assert_eq!(spec(line), expected, "{line}");
        }
    }

    #[test]
    fn a_tool_may_be_called_as_people_call_it() {
        for (names, format) in [
            ("argocd argo argo-cd argocd-secret", "argocd-secret"),
            ("flux fluxcd flux-secret", "flux-secret"),
            ("tkestack tke", "tkestack"),
            ("terraform tofu opentofu", "terraform"),
            ("env shell sh", "env"),
        ] {
            for name in names.split(' ') {
                assert_eq!(spec(&format!("--for {name} --role view"))["format"], format, "{name}");
            }
        }
        for name in ["python", "py", "js", "node", "kube-rs", "freelens", "vscode", "fabric8", "helm", "k9s"]
        {
            assert!(spec(&format!("--for {name} --role view")).get("format").is_none(), "{name}");
        }
    }

    #[test]
    fn what_does_not_go_together_is_a_usage_error_that_says_what_to_do() {
        for line in [
            "--for argocd",
            "--for tkestack",
            "--for env",
            "--for python",
            "--for kubectl --address root",
            "--for argocd --role view --merge",
            "--for clusterprofile --role view",
            "--for exec --cluster-id c1",
        ] {
            let failure = wanted(&parsed(line).unwrap()).unwrap_err();
            assert_eq!(failure.exit(), Exit::Usage, "{line}");
        }
        for line in ["", "--for kubectl", "--cluster-id c1", "--merge"] {
            assert_eq!(wanted(&parsed(line).unwrap()), Ok(Wanted::Own), "{line}");
        }
        // These clap finds.
        for line in ["--ttl 2h", "--service a", "--address root", "--role root", "--for x", "--force"] {
            assert!(parsed(line).is_none(), "{line}");
        }
    }
}
