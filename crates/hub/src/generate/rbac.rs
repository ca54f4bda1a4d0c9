//! Every right that Towline asks for, in parent and child, as one list: `tests/golden/rbac.txt`, a line for each
//! rule. A change of a right is a change of that file, and whatever is dangerous by its nature is either not there
//! or stands in [`EXCEPTIONS`] with its reason.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::tests::deployed;
use crate::control::objects;

/// What one rule allows to whom.
#[derive(Debug)]
struct Rule {
    side: &'static str,
    who: String,
    /// `*` for the whole cluster.
    namespace: String,
    verbs: Vec<String>,
    /// With their API group behind a dot, as kubectl writes them; or a path; or a role of Kubernetes' own.
    what: Vec<String>,
    names: Vec<String>,
}

/// Who, what is dangerous about it, and why it is there all the same.
const EXCEPTIONS: [(&str, &str, &str); 15] = [
    (
        "parent: account clusternet-hub",
        "secrets of a namespace without names",
        "invitations have random names; RBAC knows no types. The namespace is Towline's own: put no other Secret there",
    ),
    (
        "parent: account clusternet-hub",
        "tokens in the whole cluster",
        "of one account name alone, clusternet-agent, in namespaces that are made for clusters",
    ),
    (
        "parent: account clusternet-hub",
        "writes rbac.authorization.k8s.io",
        "one role and one binding per cluster; Kubernetes lets nobody give what they do not hold (no bind, no escalate)",
    ),
    (
        "parent: account clusternet-hub",
        "creates service accounts",
        "the agent's account per cluster; RBAC cannot limit the name of what is created; an account alone has no rights",
    ),
    ("parent: account clusternet-hub", "creates namespaces", "one per cluster; never deletes one"),
    (
        "parent: account clusternet-hub",
        "writes apiregistration.k8s.io",
        "caBundle of the hub's own two, by name; patch alone",
    ),
    (
        "parent: account clusternet-hub",
        "a role of Kubernetes",
        "extension-apiserver-authentication-reader: one ConfigMap of certificates, read only",
    ),
    (
        "child: account clusternet-app-deployer",
        "impersonates",
        "what this account is for, and all that it may; it has no right of its own",
    ),
    (
        "child: account clusternet-app-deployer",
        "impersonates without names",
        "users are not known beforehand; groups are named. The child's owner may name users here",
    ),
    ("child: account clusternet-agent", "secrets of a namespace", "its own credential, by name"),
    (
        "child: account clusternet-agent",
        "workloads",
        "list pods: RBAC has no right to count. The agent keeps their number and reads nothing of them; without the right status.podStatistics is absent and all else works",
    ),
    ("child: account clusternet-agent", "tokens", "of the one account that may impersonate and nothing else"),
    (
        "child: group clusternet:admin",
        "a role of Kubernetes",
        "whoever may assume sockets/admin in the parent; the child's owner may remove the binding",
    ),
    ("child: group clusternet:edit", "a role of Kubernetes", "the same for sockets/edit"),
    ("child: group clusternet:view", "a role of Kubernetes", "the same for sockets/view"),
];

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect()
}

/// Who is bound to a role: one entry a subject; a role that nobody is bound to is for people.
fn subjects(objects: &[Value], role: &Value) -> Vec<(String, String)> {
    let everywhere = || "*".to_owned();
    let found: Vec<_> = objects
        .iter()
        .filter(|binding| {
            binding["roleRef"]["name"] == role["metadata"]["name"]
                && binding["roleRef"]["kind"] == role["kind"]
        })
        .flat_map(|binding| {
            let place = binding["metadata"]["namespace"].as_str().map_or_else(everywhere, str::to_owned);
            binding["subjects"].as_array().into_iter().flatten().map(move |one| (subject(one), place.clone()))
        })
        .collect();
    if found.is_empty() {
        let name = role["metadata"]["name"].as_str().unwrap();
        return vec![(format!("people bound to {name}"), everywhere())];
    }
    found
}

fn subject(subject: &Value) -> String {
    let kind = match subject["kind"].as_str().unwrap() {
        "ServiceAccount" => "account",
        "Group" => "group",
        "User" => "user",
        other => panic!("a subject of kind {other}"),
    };
    format!("{kind} {}", subject["name"].as_str().unwrap())
}

fn rules(side: &'static str, objects: &[Value]) -> Vec<Rule> {
    let mut all = Vec::new();
    let roles = objects.iter().filter(|object| object["rules"].is_array());
    for role in roles {
        for rule in role["rules"].as_array().unwrap() {
            let groups = strings(&rule["apiGroups"]);
            let mut what = strings(&rule["nonResourceURLs"]);
            for resource in strings(&rule["resources"]) {
                what.extend(groups.iter().map(|group| match group.as_str() {
                    "" => resource.clone(),
                    group => format!("{resource}.{group}"),
                }));
            }
            for (who, namespace) in subjects(objects, role) {
                let (verbs, names) = (strings(&rule["verbs"]), strings(&rule["resourceNames"]));
                all.push(Rule { side, who, namespace, verbs, what: what.clone(), names });
            }
        }
    }
    let defined = |reference: &Value| {
        objects.iter().any(|role| role["rules"].is_array() && role["metadata"]["name"] == reference["name"])
    };
    for binding in objects.iter().filter(|object| object["roleRef"].is_object()) {
        if defined(&binding["roleRef"]) {
            continue;
        }
        for one in binding["subjects"].as_array().unwrap() {
            all.push(Rule {
                side,
                who: subject(one),
                namespace: binding["metadata"]["namespace"].as_str().unwrap_or("*").to_owned(),
                verbs: Vec::new(),
                what: vec![format!("role {} of Kubernetes", binding["roleRef"]["name"].as_str().unwrap())],
                names: Vec::new(),
            });
        }
    }
    all
}

/// All rules: hub, agents before and after registration, and people in the parent; agent and people in the child.
fn all() -> Vec<Rule> {
    let mut parent = deployed("hub.yaml");
    let (id, name) = ("00000000-aaaa-4000-8000-000000000000".parse().unwrap(), "edge-1".parse().unwrap());
    // Typed objects do not name their kind.
    let mut agent = [
        serde_json::to_value(objects::role(&id, &name)).unwrap(),
        serde_json::to_value(objects::role_binding(&id, &name)).unwrap(),
    ];
    agent[0]["kind"] = "ClusterRole".into();
    agent[1]["kind"] = "ClusterRoleBinding".into();
    parent.extend(agent);
    let mut all = rules("parent", &parent);
    all.extend(rules("child", &deployed("agent.example.yaml")));
    all
}

fn line(rule: &Rule) -> String {
    let place =
        if rule.namespace == "*" { "everywhere".to_owned() } else { format!("in {}", rule.namespace) };
    let mut line = format!("{}: {}; {place}; ", rule.side, rule.who);
    if !rule.verbs.is_empty() {
        line.push_str(&format!("{} ", rule.verbs.join(",")));
    }
    line.push_str(&rule.what.join(","));
    if !rule.names.is_empty() {
        line.push_str(&format!("; named {}", rule.names.join(",")));
    }
    line
}

/// What is dangerous about a rule by its nature, whoever holds it.
fn dangers(rule: &Rule) -> Vec<String> {
    let everywhere = rule.namespace == "*";
    let reads_only = rule.verbs.iter().all(|verb| ["get", "list", "watch"].contains(&verb.as_str()));
    let may = |verb: &str| rule.verbs.iter().any(|one| one == verb);
    let mut found = Vec::new();
    let mut note = |danger: &str| found.push(danger.to_owned());
    if [&rule.verbs, &rule.what, &rule.names].into_iter().flatten().any(|text| text.contains('*')) {
        note("a star");
    }
    for verb in ["escalate", "bind", "deletecollection", "approve", "sign"] {
        if may(verb) {
            note(verb);
        }
    }
    if may("impersonate") {
        note("impersonates");
        if rule.names.is_empty() {
            note("impersonates without names");
        }
    }
    for what in &rule.what {
        let (resource, group) = what.split_once('.').unwrap_or((what, ""));
        match (resource, group) {
            ("secrets", "") if everywhere => note("secrets of the whole cluster"),
            ("secrets", "") if rule.names.is_empty() => note("secrets of a namespace without names"),
            ("secrets", "") => note("secrets of a namespace"),
            ("serviceaccounts/token", "") if rule.names.is_empty() => note("tokens without names"),
            ("serviceaccounts/token", "") if everywhere => note("tokens in the whole cluster"),
            // Of the account whose tokens stand in invitations: they let an agent ask, and nothing else.
            ("serviceaccounts/token", "") if rule.names == ["cluster-bootstrap-use"] => {}
            ("serviceaccounts/token", "") => note("tokens"),
            ("serviceaccounts", "") if may("create") => note("creates service accounts"),
            ("namespaces", "") if may("create") => note("creates namespaces"),
            ("namespaces", "") if !reads_only => note("changes namespaces"),
            ("nodes/proxy", "") => note("nodes/proxy"),
            (_, "apps" | "batch") => note("workloads"),
            (_, "") if resource.starts_with("pods") || resource == "replicationcontrollers" => {
                note("workloads")
            }
            (_, "admissionregistration.k8s.io") => note("admission"),
            (_, "certificates.k8s.io") => note("certificates"),
            (_, "rbac.authorization.k8s.io" | "apiregistration.k8s.io") if !reads_only => {
                note(&format!("writes {group}"));
            }
            _ if resource.starts_with("role ") => note("a role of Kubernetes"),
            _ => {}
        }
    }
    found
}

#[test]
fn every_right_stands_in_the_golden_list() {
    let mut lines: Vec<_> = all().iter().map(line).collect();
    lines.sort();
    let wanted = lines.join("\n") + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/rbac.txt");
    #[expect(clippy::disallowed_methods, reason = "a switch of the test, not of the product")]
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap();
    let (there, wanted): (BTreeSet<_>, BTreeSet<_>) = (there.lines().collect(), wanted.lines().collect());
    let gone: Vec<_> = there.difference(&wanted).collect();
    let new: Vec<_> = wanted.difference(&there).collect();
    assert!(
        gone.is_empty() && new.is_empty(),
        "gone: {gone:#?}\nnew: {new:#?}\nbless it with UPDATE_GOLDEN=1"
    );
}

#[test]
fn no_right_is_dangerous_without_a_reason() {
    let mut used = BTreeSet::new();
    for rule in all() {
        for danger in dangers(&rule) {
            let who = format!("{}: {}", rule.side, rule.who);
            let reason = EXCEPTIONS.iter().find(|(whose, what, _)| *whose == who && *what == danger);
            let Some(exception) = reason else { panic!("{danger}: {}", line(&rule)) };
            used.insert(*exception);
        }
    }
    let unused: Vec<_> = EXCEPTIONS.iter().filter(|exception| !used.contains(exception)).collect();
    assert!(unused.is_empty(), "a reason for nothing: {unused:#?}");
}

#[test]
fn what_is_dangerous_is_noticed() {
    let texts = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    for (namespace, verbs, what, danger) in [
        ("*", &["*"][..], "pods", "a star"),
        ("*", &["get"], "*", "a star"),
        ("*", &["get"], "secrets", "secrets of the whole cluster"),
        ("x", &["create"], "serviceaccounts/token", "tokens without names"),
        ("*", &["bind"], "clusterroles.rbac.authorization.k8s.io", "bind"),
        ("*", &["escalate"], "roles.rbac.authorization.k8s.io", "escalate"),
        ("*", &["impersonate"], "users", "impersonates without names"),
        ("*", &["get"], "nodes/proxy", "nodes/proxy"),
        ("x", &["create"], "pods/exec", "workloads"),
        ("x", &["patch"], "deployments.apps", "workloads"),
        ("*", &["update"], "mutatingwebhookconfigurations.admissionregistration.k8s.io", "admission"),
    ] {
        let rule = Rule {
            side: "parent",
            who: "account x".to_owned(),
            namespace: namespace.to_owned(),
            verbs: texts(verbs),
            what: texts(&[what]),
            names: Vec::new(),
        };
        assert!(dangers(&rule).iter().any(|found| found == danger), "{rule:?}: {:?}", dangers(&rule));
    }
}
