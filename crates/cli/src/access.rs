//! `access CLUSTER`: whom the parent's RBAC lets reach a cluster, and in which role. Read, not asked: RBAC has no
//! question "who can". What it cannot see is said: members of `system:masters`, other authorizers, and whom an identity
//! provider puts into a group.

use std::collections::{BTreeMap, BTreeSet};

use api::names::{ClusterId, PROXIES_GROUP, Role};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Subject};
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};

use crate::args::{Access, AccessCommand};
use crate::failure::{Exit, Failure};
use crate::find;
use crate::output::{data, say, shown, table};
use crate::session::Session;

pub(crate) mod can_i;
mod resource;

/// Verbs on `sockets/proxy` beyond looking.
const WRITES: [&str; 4] = ["create", "update", "patch", "delete"];

/// Runs the command.
pub(crate) async fn run(session: &Session, args: &Access) -> Result<(), Failure> {
    match (&args.command, &args.cluster) {
        (Some(AccessCommand::CanI(args)), _) => can_i::run(session, args).await,
        (None, Some(wanted)) => list(session, wanted).await,
        (None, None) => Err(Failure::new(Exit::Usage, "a cluster has to be named")
            .next(format!("{} access CLUSTER", session.command()))),
    }
}

async fn list(session: &Session, wanted: &ClusterId) -> Result<(), Failure> {
    let id = find::id(session, wanted).await?;
    let roles: Api<ClusterRole> = Api::all(session.client.clone());
    let bindings: Api<ClusterRoleBinding> = Api::all(session.client.clone());
    let own = |failure: Failure| {
        if failure.exit() != Exit::Denied {
            return failure;
        }
        failure.next(format!(
            "who has access cannot be told without that right; what you may do yourself: {} access can-i {wanted} VERB RESOURCE",
            session.command()
        ))
    };
    let roles = session.list("list clusterroles", &roles, ListParams::default()).await.map_err(own)?;
    let bindings =
        session.list("list clusterrolebindings", &bindings, ListParams::default()).await.map_err(own)?;
    let rows = rows(&roles, &bindings, &id);
    if rows.is_empty() {
        say("Nobody but the members of system:masters may reach this cluster.");
    } else {
        data(&rendered(&rows))?;
    }
    say(
        "Not seen here: members of system:masters (they may do everything), authorizers beside RBAC, and who is in a \
         group. What somebody may do in the cluster is for its own RBAC and policy to say.",
    );
    say(&format!("next:  {} access can-i {wanted} VERB RESOURCE --as SOMEBODY", session.command()));
    Ok(())
}

/// What one subject holds, over all bindings.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Held {
    verbs: BTreeSet<&'static str>,
    roles: BTreeSet<&'static str>,
    via: BTreeSet<String>,
}

/// Kind and name, and what is held.
type Row = ((String, String), Held);

fn rows(roles: &[ClusterRole], bindings: &[ClusterRoleBinding], id: &ClusterId) -> Vec<Row> {
    let held: BTreeMap<String, Held> = roles
        .iter()
        .map(|role| (role.name_any(), of_rules(role.rules.as_deref().unwrap_or_default(), id)))
        .filter(|(_, held)| !held.verbs.is_empty() || !held.roles.is_empty())
        .collect();
    let mut subjects: BTreeMap<(String, String), Held> = BTreeMap::new();
    for binding in bindings.iter().filter(|binding| binding.role_ref.kind == "ClusterRole") {
        let Some(held) = held.get(&binding.role_ref.name) else { continue };
        for subject in binding.subjects.as_deref().unwrap_or_default() {
            let all = subjects.entry((subject.kind.clone(), name(subject))).or_default();
            all.verbs.extend(&held.verbs);
            all.roles.extend(&held.roles);
            all.via.insert(format!("{} ({})", binding.name_any(), binding.role_ref.name));
        }
    }
    subjects.into_iter().collect()
}

fn name(subject: &Subject) -> String {
    match &subject.namespace {
        Some(namespace) if subject.kind == "ServiceAccount" => format!("{namespace}/{}", subject.name),
        Some(_) | None => subject.name.clone(),
    }
}

fn of_rules(rules: &[PolicyRule], id: &ClusterId) -> Held {
    let mut held = Held::default();
    for rule in rules {
        let may = |verb: &str, subresource: &str| admits(rule, verb, subresource, id);
        held.verbs.extend(["get"].into_iter().chain(WRITES).filter(|verb| may(verb, "proxy")));
        held.roles.extend(Role::ALL.map(Role::subresource).into_iter().filter(|role| may("assume", role)));
    }
    held
}

/// As RBAC reads a rule (apiserver `pkg/apis/rbac/v1/evaluation_helpers.go`): `*`, the exact words, and `*/subresource`.
fn admits(rule: &PolicyRule, verb: &str, subresource: &str, id: &ClusterId) -> bool {
    let any = |list: Option<&Vec<String>>, wanted: &[&str]| {
        list.into_iter().flatten().any(|one| one == "*" || wanted.contains(&one.as_str()))
    };
    let resource = [format!("sockets/{subresource}"), format!("*/{subresource}")];
    let names = rule.resource_names.as_deref().unwrap_or_default();
    any(Some(&rule.verbs), &[verb])
        && any(rule.api_groups.as_ref(), &[PROXIES_GROUP])
        && any(rule.resources.as_ref(), &[&resource[0], &resource[1]])
        && (names.is_empty() || names.iter().any(|name| name == id.as_str()))
}

/// The roles, or that only the own name counts, and what is missing.
fn role(held: &Held) -> String {
    let roles = if held.roles.is_empty() {
        "own".to_owned()
    } else {
        held.roles.iter().copied().collect::<Vec<_>>().join(",")
    };
    if held.verbs.is_empty() {
        return format!("{roles} (cannot reach it: no sockets/proxy)");
    }
    if !held.verbs.contains("get") {
        return format!("{roles} (writes alone)");
    }
    if WRITES.iter().any(|verb| held.verbs.contains(verb)) { roles } else { format!("{roles} (reads alone)") }
}

fn rendered(rows: &[Row]) -> String {
    let head = ["SUBJECT", "KIND", "ROLE", "VIA"].map(str::to_owned).to_vec();
    let lines = rows.iter().map(|((kind, name), held)| {
        let via: Vec<String> = held.via.iter().map(|via| shown(via)).collect();
        vec![shown(name), shown(kind), role(held), via.join(", ")]
    });
    table(&std::iter::once(head).chain(lines).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn roles(value: Value) -> Vec<ClusterRole> {
        serde_json::from_value(value).unwrap()
    }

    fn bound(role: &str, kind: &str, name: &str) -> ClusterRoleBinding {
        serde_json::from_value(json!({
            "metadata": { "name": format!("b-{role}") },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
            "subjects": [{ "kind": kind, "name": name, "namespace": "ci" }],
        }))
        .unwrap()
    }

    fn rule(resources: &[&str], verbs: &[&str], names: &[&str]) -> Value {
        json!({ "apiGroups": ["proxies.clusternet.io"], "resources": resources, "verbs": verbs, "resourceNames": names })
    }

    #[test]
    fn subjects_are_listed_with_role_and_binding() {
        let roles = roles(json!([
            { "metadata": { "name": "use" }, "rules": [rule(&["sockets/proxy"], &["get", "create"], &["id-1"])] },
            { "metadata": { "name": "view" }, "rules": [rule(&["sockets/view"], &["assume"], &["id-1"])] },
            { "metadata": { "name": "all" }, "rules": [{ "apiGroups": ["*"], "resources": ["*"], "verbs": ["*"] }] },
            { "metadata": { "name": "look" }, "rules": [rule(&["*/proxy"], &["get"], &[])] },
            { "metadata": { "name": "other" }, "rules": [rule(&["sockets/proxy"], &["get"], &["id-2"])] },
            { "metadata": { "name": "tunnel" }, "rules": [rule(&["sockets/attach"], &["get", "create"], &["id-1"])] },
        ]));
        let bindings = [
            bound("use", "User", "alice"),
            bound("view", "User", "alice"),
            bound("all", "Group", "ops"),
            bound("look", "ServiceAccount", "argo"),
            bound("view", "User", "bob"),
            bound("other", "User", "carol"),
            bound("tunnel", "User", "dave"),
            bound("gone", "User", "erin"),
        ];
        let text = rendered(&rows(&roles, &bindings, &"id-1".parse().unwrap()));
        let cells = |line: &str| -> Vec<String> {
            line.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
        };
        let lines: Vec<Vec<String>> = text.lines().map(cells).collect();
        assert_eq!(
            lines,
            [
                ["SUBJECT", "KIND", "ROLE", "VIA"],
                ["ops", "Group", "admin,edit,view", "b-all (all)"],
                ["ci/argo", "ServiceAccount", "own (reads alone)", "b-look (look)"],
                ["alice", "User", "view", "b-use (use), b-view (view)"],
                ["bob", "User", "view (cannot reach it: no sockets/proxy)", "b-view (view)"],
            ]
        );
    }

    #[test]
    fn a_rule_is_read_as_rbac_reads_it() {
        let id = "id-1".parse().unwrap();
        let admitted = |value: Value| admits(&serde_json::from_value(value).unwrap(), "get", "proxy", &id);
        assert!(admitted(rule(&["sockets/proxy"], &["*"], &[])));
        // Not RBAC's: a star behind the slash means nothing there.
        assert!(!admitted(rule(&["sockets/*"], &["get"], &[])));
        assert!(!admitted(rule(&["sockets"], &["get"], &[])));
        assert!(!admitted(rule(&["sockets/proxy"], &["list"], &[])));
        assert!(!admitted(json!({ "apiGroups": [""], "resources": ["sockets/proxy"], "verbs": ["get"] })));
        assert!(!admitted(json!({ "nonResourceURLs": ["*"], "verbs": ["*"] })));
    }
}
