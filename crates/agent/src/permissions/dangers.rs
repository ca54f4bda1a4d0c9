//! The rights that neither account may have, because one of them would undo what bounds the hub. None of them
//! stands in agent.yaml: whoever finds one here has granted it, and is told which it is.

use api::names::{AGENT_ACCOUNT, IMPERSONATOR_ACCOUNT, SYSTEM_NAMESPACE};
use futures::stream::{self, StreamExt as _};

use super::{Ask, Mode, may, may_impersonate};
use crate::account::Account;

/// Questions at once. There are about forty of them every five minutes, and the child answers each from memory.
const AT_ONCE: usize = 8;

/// The ConfigMap in which the child's owner bounds the hub.
pub(crate) const POLICY: &str = "clusternet-agent-policy";

/// Groups of which each alone is a way to take over the cluster, and why.
const GROUPS: [(&str, &str); 4] = [
    ("system:masters", "passes all authorization"),
    ("system:nodes", "reads the Secrets of pods"),
    ("system:serviceaccounts:kube-system", "is what the cluster's own controllers belong to"),
    ("kubeadm:cluster-admins", "is cluster-admin in clusters that kubeadm made"),
];

/// Users of the control plane; asked about where users are listed by name.
const CONTROL_PLANE: [&str; 5] = [
    "system:admin",
    "system:apiserver",
    "system:kube-controller-manager",
    "system:kube-scheduler",
    "kubernetes-admin",
];

/// A right with a sentence for the child's owner: `may` continues "its account … may".
struct Danger<'a> {
    ask: Ask<'a>,
    may: String,
}

/// The first danger there is, as a sentence.
///
/// # Errors
/// A question has no answer.
pub(super) async fn find(impersonator: &Account, agent: &Account) -> Result<Option<String>, String> {
    // A name that nobody has granted: an authorizer that says yes to it says yes to all.
    let nobody = format!("towline-nobody-{:016x}", rand::random::<u64>());
    let impersonating = impersonating(&nobody);
    let (beyond, secrets) = (beyond(), secrets());
    let questions = impersonating
        .iter()
        .map(|danger| (impersonator, IMPERSONATOR_ACCOUNT, danger))
        .chain(beyond.iter().map(|danger| (impersonator, IMPERSONATOR_ACCOUNT, danger)))
        .chain([(impersonator, IMPERSONATOR_ACCOUNT, &secrets)])
        .chain(beyond.iter().map(|danger| (agent, AGENT_ACCOUNT, danger)))
        .map(|(account, name, danger)| async move {
            let found = may(account, danger.ask).await?;
            Ok(found.then(|| sentence(name, &danger.may)))
        })
        .collect::<Vec<_>>();
    let mut answers = stream::iter(questions).buffered(AT_ONCE);
    while let Some(answer) = answers.next().await {
        let answer: Result<Option<String>, String> = answer;
        if let Some(found) = answer? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Where users are listed by name, one of the control plane is there because somebody put it there. Where any
/// user may be impersonated they are in it too, for RBAC cannot say "all but these"; then it is the agent
/// alone that refuses them.
///
/// # Errors
/// A question has no answer.
pub(super) async fn listed_by_name(account: &Account, mode: Mode) -> Result<Option<String>, String> {
    for user in CONTROL_PLANE {
        if may_impersonate(account, mode, "users", user).await? {
            let may = format!("impersonate user {user}, which belongs to the control plane");
            return Ok(Some(sentence(IMPERSONATOR_ACCOUNT, &may)));
        }
    }
    Ok(None)
}

fn sentence(account: &str, may: &str) -> String {
    format!("its account {account} may {may}; remove whatever grants that (agent.yaml does not)")
}

fn impersonating(nobody: &str) -> Vec<Danger<'_>> {
    let mut dangers = Vec::new();
    for mode in [Mode::Legacy, Mode::Constrained] {
        let (group, verb) = mode.rule();
        let groups =
            |name, may| Danger { ask: Ask { verb, group, resource: "groups", name, ..Ask::default() }, may };
        for (name, why) in GROUPS {
            // Constrained impersonation refuses system:masters by itself, whatever is granted.
            if mode == Mode::Legacy || name != "system:masters" {
                dangers.push(groups(name, format!("impersonate group {name}, which {why}")));
            }
        }
        for name in ["", nobody] {
            dangers
                .push(groups(name, "impersonate any group, where agent.yaml lists them by name".to_owned()));
        }
    }
    let accounts = |verb, group, namespace| Danger {
        ask: Ask { verb, group, resource: "serviceaccounts", namespace, ..Ask::default() },
        may: format!("impersonate service accounts of namespace {namespace}"),
    };
    for namespace in ["kube-system", SYSTEM_NAMESPACE] {
        dangers.push(accounts("impersonate", "", namespace));
        dangers.push(accounts("impersonate:serviceaccount", "authentication.k8s.io", namespace));
    }
    for verb in ["impersonate:arbitrary-node", "impersonate:associated-node"] {
        dangers.push(Danger {
            ask: Ask { verb, group: "authentication.k8s.io", resource: "nodes", ..Ask::default() },
            may: "impersonate nodes".to_owned(),
        });
    }
    dangers
}

/// What no account of the agent may, whether it impersonates or not.
fn beyond() -> Vec<Danger<'static>> {
    let mut dangers = Vec::new();
    for verb in ["update", "patch", "delete", "deletecollection", "create"] {
        // A new object has no name yet when it is authorized (apiserver `pkg/endpoints/request`).
        let name = if matches!(verb, "create" | "deletecollection") { "" } else { POLICY };
        dangers.push(Danger {
            ask: Ask { verb, resource: "configmaps", namespace: SYSTEM_NAMESPACE, name, ..Ask::default() },
            may: format!(
                "{verb} ConfigMap {SYSTEM_NAMESPACE}/{POLICY}, with which the owner of this cluster bounds the hub"
            ),
        });
    }
    const RBAC: &str = "rbac.authorization.k8s.io";
    for (verb, resource) in [
        ("create", "clusterrolebindings"),
        ("escalate", "clusterroles"),
        ("bind", "clusterroles"),
        ("update", "clusterroles"),
    ] {
        dangers.push(Danger {
            ask: Ask { verb, group: RBAC, resource, ..Ask::default() },
            may: format!("{verb} {resource}, and so give itself any right"),
        });
    }
    dangers.push(Danger {
        ask: Ask {
            verb: "create",
            resource: "serviceaccounts",
            subresource: "token",
            namespace: "kube-system",
            ..Ask::default()
        },
        may: "create tokens of the service accounts of kube-system".to_owned(),
    });
    dangers
}

/// A request whose identity got lost would run with it.
fn secrets() -> Danger<'static> {
    Danger {
        ask: Ask { verb: "get", resource: "secrets", ..Ask::default() },
        may: "read all Secrets of this cluster".to_owned(),
    }
}
