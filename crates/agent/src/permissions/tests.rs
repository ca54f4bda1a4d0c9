//! Probes against a scripted child, which evaluates rules as RBAC does and impersonation as kube-apiserver 1.36
//! does; the constrained rules were tried on a real one once, by hand.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::*;
use crate::account::Bearer;
use crate::testing::{Child, Rules, Server, secret};
use crate::upstream::Upstream;

/// The child and its two accounts.
async fn start(child: &Child) -> (Server, Account, Account) {
    let server = child.serve().await;
    let upstream = Arc::new(Upstream::new(&server.address(), server.ca_file()).unwrap());
    let account = |token| Account::new(Arc::clone(&upstream), Bearer::Token(secret(token)));
    let (impersonator, agent) = (account("deployer-token"), account("agent-token"));
    (server, impersonator, agent)
}

async fn probed(child: &Child) -> Verdict {
    let (_server, impersonator, agent) = start(child).await;
    Permissions::probe(&impersonator, &agent).await
}

fn rule(group: &str, resource: &str, verb: &str, names: &[&str]) -> Value {
    let mut rule = json!({ "apiGroups": [group], "resources": [resource], "verbs": [verb] });
    if !names.is_empty() {
        rule["resourceNames"] = json!(names);
    }
    rule
}

const AUTHENTICATION: &str = "authentication.k8s.io";
const WHO: &str = "impersonate:user-info";

/// What docs/impersonation.md grants on 1.36 and later.
fn constrained() -> Rules {
    let create = "impersonate-on:user-info:create";
    vec![
        rule(AUTHENTICATION, "users", WHO, &[]),
        rule(AUTHENTICATION, "groups", WHO, &["clusternet:view", "dev"]),
        rule(AUTHENTICATION, "selfsubjectreviews", create, &[]),
        rule("authorization.k8s.io", "selfsubjectaccessreviews", create, &[]),
    ]
}

fn may(verdict: &Verdict) -> &Standing {
    let Verdict::May(standing) = verdict else { panic!("{verdict:?}") };
    standing
}

#[tokio::test]
async fn what_agent_yaml_grants_is_enough_and_nothing_is_wrong_with_it() {
    let standing = Standing { mode: Mode::Legacy, any_user: true, warnings: vec![] };
    for constrained in [true, false] {
        let child = Child::new(&["clusternet:view", "dev"]);
        child.constrained.store(constrained, Ordering::SeqCst);
        assert_eq!(probed(&child).await, Verdict::May(standing.clone()));
    }
}

#[tokio::test]
async fn every_right_that_agent_yaml_never_gives_is_named_and_nobody_is_served() {
    let legacy = |resource, names: &[&str]| rule("", resource, "impersonate", names);
    let new = |resource, verb, names: &[&str]| rule(AUTHENTICATION, resource, verb, names);
    let rbac = |verb, resource| rule("rbac.authorization.k8s.io", resource, verb, &[]);
    let own = |mut rule: Value| {
        rule["namespace"] = json!("clusternet-system");
        rule
    };
    let policy = "clusternet-agent-policy";
    // Rule, words of the sentence, and whether the other account may not have it either.
    let cases = [
        (legacy("groups", &["system:masters"]), "group system:masters", false),
        (legacy("groups", &["system:nodes"]), "group system:nodes", false),
        (legacy("groups", &["kubeadm:cluster-admins"]), "group kubeadm:cluster-admins", false),
        (legacy("groups", &["system:serviceaccounts:kube-system"]), "group system:serviceaccounts", false),
        (legacy("groups", &[]), "group system:masters", false),
        (legacy("*", &[]), "group system:masters", false),
        (new("groups", WHO, &["system:nodes"]), "group system:nodes", false),
        (new("groups", WHO, &[]), "group system:nodes", false),
        (legacy("serviceaccounts", &[]), "service accounts of namespace kube-system", false),
        (own(legacy("serviceaccounts", &[])), "service accounts of namespace clusternet-system", false),
        (new("serviceaccounts", "impersonate:serviceaccount", &[]), "service accounts", false),
        (new("nodes", "impersonate:arbitrary-node", &[]), "impersonate nodes", false),
        (new("nodes", "impersonate:associated-node", &[]), "impersonate nodes", false),
        (own(rule("", "configmaps", "update", &[policy])), "update ConfigMap", true),
        (own(rule("", "configmaps", "patch", &[])), "patch ConfigMap", true),
        (own(rule("", "configmaps", "delete", &[policy])), "delete ConfigMap", true),
        (own(rule("", "configmaps", "create", &[])), "create ConfigMap", true),
        (rule("", "configmaps", "deletecollection", &[]), "deletecollection ConfigMap", true),
        (rbac("create", "clusterrolebindings"), "create clusterrolebindings", true),
        (rbac("escalate", "clusterroles"), "escalate clusterroles", true),
        (rbac("bind", "clusterroles"), "bind clusterroles", true),
        (rbac("update", "clusterroles"), "update clusterroles", true),
        (rule("", "serviceaccounts/token", "create", &[]), "create tokens", true),
        (rule("", "secrets", "get", &[]), "read all Secrets", false),
        (json!({ "apiGroups": ["*"], "resources": ["*"], "verbs": ["*"] }), "system:masters", true),
    ];
    for (granted, words, both) in cases {
        let child = Child::new(&["dev"]);
        child.impersonator.lock().unwrap().push(granted.clone());
        let verdict = probed(&child).await;
        let Verdict::Dangerous(why) = &verdict else { panic!("{granted}: {verdict:?}") };
        assert!(why.contains(words) && why.contains("its account clusternet-app-deployer may "), "{why}");
        if both {
            let child = Child::new(&["dev"]);
            child.agent.lock().unwrap().push(granted.clone());
            let verdict = probed(&child).await;
            let Verdict::Dangerous(why) = &verdict else { panic!("{granted}: {verdict:?}") };
            assert!(why.contains("its account clusternet-agent may "), "{why}");
        }
    }
}

#[tokio::test]
async fn a_surplus_that_bounds_nobody_less_is_a_warning() {
    let child = Child::new(&["dev"]);
    let mut rules = child.impersonator.lock().unwrap().clone();
    for resource in ["pods", "nodes", "events", "leases"] {
        rules.push(rule("", resource, "list", &[]));
    }
    rules.push(rule("authorization.k8s.io", "selfsubjectaccessreviews", "create", &[]));
    *child.impersonator.lock().unwrap() = rules;
    child.agent.lock().unwrap().push(rule("", "secrets", "get", &[]));
    let verdict = probed(&child).await;
    let [first, second] = &may(&verdict).warnings[..] else { panic!("{verdict:?}") };
    assert!(first.contains("it also may list pods; list nodes; list events and 1 more"), "{first}");
    assert!(second.contains("clusternet-agent may read all Secrets"), "{second}");
}

#[tokio::test]
async fn constrained_rules_alone_are_found_and_proven() {
    let child = Child::with_rules(constrained());
    let verdict = probed(&child).await;
    assert_eq!(verdict, Verdict::May(Standing { mode: Mode::Constrained, any_user: true, warnings: vec![] }));

    // Groups are asked about by the rules of this generation.
    let (_server, impersonator, _) = start(&child).await;
    let groups = ["dev", "hr", "clusternet:view"].map(str::to_owned);
    let permissions = Permissions::new();
    let allowed = permissions.allowed_groups(&impersonator, Mode::Constrained, &groups).await;
    assert_eq!(allowed.unwrap(), ["dev", "clusternet:view"]);
    let none = permissions.allowed_groups(&impersonator, Mode::Legacy, &groups).await;
    assert!(none.unwrap().is_empty());
}

#[tokio::test]
async fn constrained_rules_on_a_child_that_does_not_know_them_are_told_as_what_they_are() {
    let old = Child::with_rules(constrained());
    old.constrained.store(false, Ordering::SeqCst);
    let without = Child::with_rules(constrained()[..2].to_vec());
    for child in [old, without] {
        let verdict = probed(&child).await;
        let Verdict::MayNot(why) = &verdict else { panic!("{verdict:?}") };
        assert!(why.contains("1.36") && why.contains("impersonate-on:user-info:create"), "{why}");
    }
}

#[tokio::test]
async fn the_old_verb_beside_constrained_rules_counts_and_is_told() {
    let mut any = constrained();
    any.push(rule("", "users", "impersonate", &[]));
    let mut named = constrained();
    named.push(rule("", "users", "impersonate", &["alice"]));
    for (rules, mode) in [(any, Mode::Legacy), (named, Mode::Constrained)] {
        let verdict = probed(&Child::with_rules(rules)).await;
        let standing = may(&verdict);
        assert_eq!(standing.mode, mode);
        assert!(standing.warnings.iter().any(|warning| warning.contains("cancels them")), "{standing:?}");
    }
}

#[tokio::test]
async fn users_that_are_listed_by_name_are_served_unless_one_is_of_the_control_plane() {
    for (mode, group, verb) in [(Mode::Legacy, "", "impersonate"), (Mode::Constrained, AUTHENTICATION, WHO)] {
        let verdict = probed(&Child::with_rules(vec![rule(group, "users", verb, &["alice"])])).await;
        assert_eq!(verdict, Verdict::May(Standing { mode, any_user: false, warnings: vec![] }));
        for user in ["system:kube-controller-manager", "system:apiserver", "kubernetes-admin"] {
            let verdict =
                probed(&Child::with_rules(vec![rule(group, "users", verb, &["alice", user])])).await;
            assert!(matches!(&verdict, Verdict::Dangerous(why) if why.contains(user)), "{verdict:?}");
        }
    }
    let nobody = probed(&Child::with_rules(vec![])).await;
    assert!(
        matches!(&nobody, Verdict::MayNot(why) if why.contains("may not impersonate users")),
        "{nobody:?}"
    );
}

#[tokio::test]
async fn a_child_that_sees_our_own_account_instead_of_the_person_serves_nobody() {
    for before_1_28 in [false, true] {
        let rules = [
            vec![rule("", "users", "impersonate", &[])],
            vec![
                rule("", "users", "impersonate", &["alice"]),
                rule("", "groups", "impersonate", &["clusternet:view"]),
            ],
        ];
        for rules in rules {
            let child = Child::with_rules(rules);
            child.odd("headers are lost");
            if before_1_28 {
                child.odd("before 1.28");
            }
            let verdict = probed(&child).await;
            assert!(
                matches!(&verdict, Verdict::Dangerous(why) if why.contains("drops the impersonation headers")),
                "{verdict:?}"
            );
        }
        let child = Child::new(&[]);
        if before_1_28 {
            child.odd("before 1.28");
        }
        assert!(matches!(probed(&child).await, Verdict::May(_)));
    }
}

#[tokio::test]
async fn a_child_that_adds_groups_to_people_serves_nobody() {
    let child = Child::new(&["dev"]);
    child.odd("groups are added");
    let verdict = probed(&child).await;
    assert!(matches!(&verdict, Verdict::Dangerous(why) if why.contains("\"system:masters\"")), "{verdict:?}");
}

#[tokio::test]
async fn without_an_answer_nothing_is_known_and_no_group_is_left_out() {
    let child = Child::new(&["dev"]);
    child.odd("reviews fail");
    let (_server, impersonator, agent) = start(&child).await;
    assert!(matches!(Permissions::probe(&impersonator, &agent).await, Verdict::Unknown(_)));
    let groups = ["dev".to_owned(), "hr".to_owned()];
    let permissions = Permissions::new();
    assert!(permissions.allowed_groups(&impersonator, Mode::Legacy, &groups).await.is_err());
    // A failure is not kept as an answer.
    child.odd.lock().unwrap().clear();
    let allowed = permissions.allowed_groups(&impersonator, Mode::Legacy, &groups).await;
    assert_eq!(allowed.unwrap(), ["dev"]);
}
