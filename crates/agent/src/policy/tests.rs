//! Decisions, preset by preset and list by list, and that whatever is added to a policy only takes away.

use proptest::prelude::*;

use super::*;

fn policy(rest: &str) -> Policy {
    let head = "apiVersion: access.towline.io/v1alpha1\nkind: AgentPolicy\n";
    Policy::read(&format!("{head}{rest}")).unwrap_or_else(|mistakes| panic!("{mistakes}\n{rest}")).policy
}

/// `GET +` is an upgrade.
fn asked(method: &str, uri: &str) -> RequestInfo {
    let (method, upgrade) = method.strip_suffix(" +").map_or((method, false), |method| (method, true));
    let (path, query) = uri.split_once('?').map_or((uri, None), |(path, query)| (path, Some(query)));
    RequestInfo::parse(&method.parse().unwrap(), path, query, upgrade).unwrap()
}

fn alice(groups: &[&str]) -> Identity {
    Identity::of("alice", groups).unwrap()
}

fn noon() -> Timestamp {
    "2026-01-15T12:00:00Z".parse().unwrap()
}

fn rule(policy: &Policy, method: &str, uri: &str) -> &'static str {
    match policy.admit(&alice(&["dev"]), &asked(method, uri), noon()) {
        Ok(()) => "",
        Err(refused) => refused.rule.as_str(),
    }
}

/// Who admits it: `view`, `no-exec`, `edit` and `admin`, in this order, `x` for yes.
const PRESETS: &[(&str, &str, &str)] = &[
    // Basics.
    ("GET", "/api", "xxxx"),
    ("GET", "/apis/apps/v1", "xxxx"),
    ("GET", "/openapi/v3", "xxxx"),
    ("GET", "/version", "xxxx"),
    ("HEAD", "/readyz", "xxxx"),
    ("GET", "/livez/etcd", "xxxx"),
    ("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", "xxxx"),
    ("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", "xxxx"),
    ("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", "xxxx"),
    // Reading.
    ("GET", "/api/v1/pods", "xxxx"),
    ("GET", "/api/v1/namespaces/a/pods?watch=1", "xxxx"),
    ("GET +", "/api/v1/namespaces/a/pods?watch=1", "xxxx"),
    ("GET", "/api/v1/namespaces/a/pods/b/log?follow=1", "xxxx"),
    ("HEAD", "/apis/apps/v1/namespaces/a/deployments/b", "xxxx"),
    ("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles", "xxxx"),
    ("GET", "/api/v1/watch/namespaces/a/configmaps", "xxxx"),
    ("GET", "/apis/metrics.k8s.io/v1beta1/nodes", "xxxx"),
    ("GET", "/api/v1/namespaces/clusternet-system/pods", "xxxx"),
    ("GET", "/api/v1/namespaces/clusternet-system/pods/p/log", "xxxx"),
    ("GET", "/api/v1/namespaces/clusternet-system/configmaps/clusternet-agent-policy", "xxxx"),
    ("GET", "/api/v1/namespaces/clusternet-system", "xxxx"),
    // Secrets.
    ("GET", "/api/v1/secrets", ".xxx"),
    ("GET", "/api/v1/namespaces/a/secrets/b", ".xxx"),
    ("GET", "/api/v1/namespaces/a/secrets?watch=1", ".xxx"),
    ("GET", "/api/v1/watch/secrets", ".xxx"),
    // Writing.
    ("POST", "/api/v1/namespaces/a/pods", ".xxx"),
    ("PUT", "/apis/apps/v1/namespaces/a/deployments/b", ".xxx"),
    ("PATCH", "/apis/apps/v1/namespaces/a/deployments/b?fieldManager=x&force=true", ".xxx"),
    ("DELETE", "/api/v1/namespaces/a/pods/b", ".xxx"),
    ("DELETE", "/api/v1/namespaces/a/pods", ".xxx"),
    ("POST", "/api/v1/namespaces/a/pods/b/eviction", ".xxx"),
    ("PATCH", "/apis/apps/v1/namespaces/a/deployments/b/scale", ".xxx"),
    ("POST", "/api/v1/namespaces?dryRun=All", ".xxx"),
    ("DELETE", "/api/v1/namespaces/a", ".xxx"),
    ("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", ".xxx"),
    ("POST", "/apis/certificates.k8s.io/v1/certificatesigningrequests", ".xxx"),
    // Streams into containers.
    ("GET +", "/api/v1/namespaces/a/pods/b/exec?command=sh", "..xx"),
    ("GET", "/api/v1/namespaces/a/pods/b/exec?command=sh", "..xx"),
    ("POST +", "/api/v1/namespaces/a/pods/b/exec", "..xx"),
    ("POST", "/api/v1/namespaces/a/pods/b/exec", "..xx"),
    ("GET +", "/api/v1/namespaces/a/pods/b/attach", "..xx"),
    ("POST +", "/api/v1/namespaces/a/pods/b/attach", "..xx"),
    ("GET +", "/api/v1/namespaces/a/pods/b/portforward", "..xx"),
    ("POST +", "/api/v1/namespaces/a/pods/b/portforward", "..xx"),
    ("PATCH", "/api/v1/namespaces/a/pods/b/ephemeralcontainers", "..xx"),
    ("PUT", "/api/v1/namespaces/a/pods/b/ephemeralcontainers", "..xx"),
    ("GET +", "/apis/subresources.kubevirt.io/v1/namespaces/a/virtualmachineinstances/b/console", "..xx"),
    ("GET", "/api/v1/namespaces/a/pods/%62/%65xec", "..xx"),
    // Keys of the cluster.
    ("GET", "/api/v1/nodes/n1/proxy/logs/", "...x"),
    ("POST", "/api/v1/nodes/n1/proxy/run/a/b/c", "...x"),
    ("GET +", "/api/v1/nodes/n1/proxy/exec/a/b/c", "...x"),
    ("GET", "/api/v1/proxy/nodes/n1/logs", "...x"),
    ("GET", "/api/v1/namespaces/a/pods/b:80/proxy/", "...x"),
    ("POST", "/api/v1/namespaces/a/services/b/proxy/x", "...x"),
    ("POST", "/api/v1/namespaces/a/serviceaccounts/b/token", "...x"),
    ("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", "...x"),
    ("PATCH", "/apis/rbac.authorization.k8s.io/v1/namespaces/a/roles/b", "...x"),
    ("DELETE", "/apis/rbac.authorization.k8s.io/v1/clusterroles", "...x"),
    ("POST", "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations", "...x"),
    ("PUT", "/apis/apiregistration.k8s.io/v1/apiservices/v1.x", "...x"),
    ("PUT", "/apis/certificates.k8s.io/v1/certificatesigningrequests/c/approval", "...x"),
    ("PATCH", "/apis/certificates.k8s.io/v1/certificatesigningrequests/c/status", "...x"),
    ("GET", "/.well-known/openid-configuration", "...x"),
    ("POST", "/version", "...x"),
    ("GET +", "/version", "...x"),
    // The server's insides: by nonResourceURLs alone.
    ("GET", "/metrics", "...."),
    ("GET", "/debug/pprof/heap", "...."),
    ("GET", "/logs/audit.log", "...."),
    ("GET", "/configz", "...."),
    ("GET", "/%6detrics", "...."),
    ("GET", "/statusz", "...."),
    // The floor.
    ("GET", "/api/v1/namespaces/clusternet-system/secrets", "...."),
    ("GET", "/api/v1/namespaces/clusternet-system/secrets/parent-cluster", "...."),
    ("GET", "/api/v1/watch/namespaces/clusternet-system/secrets", "...."),
    ("GET", "/api/v1/namespaces/clusternet%2Dsystem/secr%65ts", "...."),
    ("POST", "/api/v1/namespaces/clusternet-system/pods", "...."),
    ("GET +", "/api/v1/namespaces/clusternet-system/pods/p/exec", "...."),
    ("GET", "/api/v1/namespaces/clusternet-system/pods/p/proxy/metrics", "...."),
    ("GET", "/api/v1/proxy/namespaces/clusternet-system/pods/p/metrics", "...."),
    ("POST", "/api/v1/namespaces/clusternet-system/serviceaccounts/clusternet-agent/token", "...."),
    ("PATCH", "/api/v1/namespaces/clusternet-system/configmaps/clusternet-agent-policy", "...."),
    ("DELETE", "/api/v1/namespaces/clusternet-system/configmaps", "...."),
    ("PATCH", "/apis/apps/v1/namespaces/clusternet-system/deployments/clusternet-agent/scale", "...."),
    ("POST", "/apis/rbac.authorization.k8s.io/v1/namespaces/clusternet-system/rolebindings", "...."),
    ("DELETE", "/api/v1/namespaces/clusternet-system", "...."),
    ("PUT", "/api/v1/namespaces/clusternet-system/finalize", "...."),
    ("DELETE", "/api/v1/namespaces", "...."),
];

#[test]
fn each_preset_admits_what_it_says() {
    for (method, uri, admitted) in PRESETS {
        for (preset, expected) in Preset::ALL.into_iter().zip(admitted.chars()) {
            let found = rule(&Policy::of(preset), method, uri);
            assert_eq!(found.is_empty(), expected == 'x', "{preset}: {method} {uri}: {found:?}");
        }
    }
}

#[test]
fn the_default_is_edit() {
    assert_eq!(Policy::DEFAULT, Policy::of(Preset::Edit));
    assert_eq!(Policy::DEFAULT, policy("preset: edit\n"));
}

#[test]
fn a_refusal_names_the_rule_and_what_the_owner_would_write() {
    let refused = policy("preset: view\n")
        .admit(&alice(&[]), &asked("DELETE", "/api/v1/namespaces/a/pods/b"), noon())
        .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "rule preset: preset view admits reading alone: get, list and watch; to allow it, the cluster's owner would \
         set preset: no-exec or edit in ConfigMap clusternet-agent-policy"
    );
}

#[test]
fn closed_refuses_everybody_everything() {
    let closed = policy("preset: admin\nclosed: true\n");
    for uri in ["/version", "/api/v1/pods"] {
        assert_eq!(rule(&closed, "GET", uri), "closed");
    }
}

#[test]
fn each_list_has_to_admit_a_request() {
    for (rest, method, uri, refused_by) in [
        ("verbs: {allow: [get, list]}", "GET", "/api/v1/pods", ""),
        ("verbs: {allow: [get, list]}", "GET", "/api/v1/pods?watch=1", "verbs"),
        ("verbs: {allow: []}", "GET", "/version", ""),
        ("verbs: {deny: [deletecollection]}", "DELETE", "/api/v1/namespaces/a/pods", "verbs"),
        ("verbs: {deny: [deletecollection]}", "DELETE", "/api/v1/namespaces/a/pods/b", ""),
        ("verbs: {allow: [get], deny: [get]}", "GET", "/api/v1/nodes/a", "verbs"),
        ("resources: {deny: [secrets]}", "GET", "/api/v1/secrets", "resources"),
        ("resources: {deny: [pods]}", "GET +", "/api/v1/namespaces/a/pods/b/exec", "resources"),
        ("resources: {deny: [deployments]}", "GET", "/apis/apps/v1/deployments", "resources"),
        ("resources: {allow: [pods]}", "GET", "/api/v1/pods", ""),
        ("resources: {allow: [pods]}", "GET", "/api/v1/namespaces/a/pods/b/log", "resources"),
        ("resources: {allow: [pods, pods/log]}", "GET", "/api/v1/namespaces/a/pods/b/log", ""),
        ("resources: {allow: [deployments]}", "GET", "/apis/apps/v1/deployments", "resources"),
        ("resources: {allow: [deployments.apps]}", "GET", "/apis/apps/v1/deployments", ""),
        ("resources: {allow: []}", "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", ""),
        ("namespaces: {allow: [a]}", "GET", "/api/v1/namespaces/a/pods", ""),
        ("namespaces: {allow: [a]}", "GET", "/api/v1/namespaces/a", ""),
        ("namespaces: {allow: [a]}", "GET", "/api/v1/namespaces/b/pods", "namespaces"),
        ("namespaces: {allow: [a]}", "GET", "/api/v1/pods", "namespaces"),
        ("namespaces: {allow: [a]}", "GET", "/api/v1/nodes", "namespaces"),
        ("namespaces: {allow: [a], clusterScoped: [nodes]}", "GET", "/api/v1/nodes", ""),
        ("namespaces: {allow: [a], clusterScoped: [nodes]}", "GET", "/api/v1/pods", "namespaces"),
        ("namespaces: {deny: [a]}", "GET", "/api/v1/namespaces/a/pods", "namespaces"),
        ("namespaces: {deny: [a]}", "GET", "/api/v1/namespaces/b/pods", ""),
        ("namespaces: {deny: [a]}", "GET", "/api/v1/pods", "namespaces"),
        ("namespaces: {deny: [a], clusterScoped: [\"*\"]}", "GET", "/api/v1/pods", ""),
        ("namespaces: {allow: [\"*\"]}", "GET", "/api/v1/namespaces/clusternet-system/secrets", "floor"),
        ("nonResourceURLs: [/metrics]", "GET", "/metrics", ""),
        ("nonResourceURLs: [/metrics]", "GET", "/metrics/slis", "nonResourceURLs"),
        ("nonResourceURLs: [/debug/*]", "GET", "/debug/pprof", ""),
        ("nonResourceURLs: [/metrics]", "POST", "/metrics", "preset"),
        ("nonResourceURLs: [/metrics]\nverbs: {allow: [list]}", "GET", "/metrics", "verbs"),
        ("hours: {timeZone: UTC, from: \"08:00\", to: \"12:00\"}", "GET", "/version", "hours"),
        ("hours: {timeZone: UTC, from: \"08:00\", to: \"12:01\"}", "GET", "/version", ""),
        ("users: [bob]", "GET", "/version", "users"),
        ("users: [\"al*\"]", "GET", "/version", ""),
        ("groups: [dev]", "GET", "/version", ""),
        ("groups: [ops]", "GET", "/version", "users"),
        ("users: [alice]\ngroups: [ops]", "GET", "/version", ""),
        ("users: [bob]\ngroups: [dev]", "GET", "/version", ""),
        ("groups: [\"clusternet:*\"]", "GET", "/version", "users"),
    ] {
        let found = rule(&policy(&format!("preset: edit\n{rest}\n")), method, uri);
        assert_eq!(found, refused_by, "{rest}: {method} {uri}");
    }
}

#[test]
fn only_groups_and_roles_that_are_believed_go_on_to_the_child() {
    let who = alice(&["dev", "ops", "clusternet:admin", "clusternet:view"]);
    for (rest, groups) in [
        ("", &["dev", "ops", "clusternet:admin", "clusternet:view"][..]),
        ("groups: [\"d*\"]", &["dev", "clusternet:admin", "clusternet:view"]),
        ("roles: [view]", &["dev", "ops", "clusternet:view"]),
        ("groups: [dev]\nroles: []", &["dev"]),
        ("groups: [\"*\"]\nroles: [edit]", &["dev", "ops"]),
    ] {
        let believed = policy(&format!("preset: edit\n{rest}\n")).believed(who.clone()).unwrap();
        assert_eq!(believed.user(), "alice");
        assert_eq!(believed.groups(), groups, "{rest}");
    }
}

fn any_request() -> impl Strategy<Value = RequestInfo> {
    let from_table = proptest::sample::select(PRESETS).prop_map(|(method, uri, _)| asked(method, uri));
    let made = (
        proptest::sample::select(&["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "GET +", "POST +"][..]),
        proptest::sample::select(
            &[
                "/api/v1",
                "/apis/apps/v1",
                "/apis/rbac.authorization.k8s.io/v1",
                "/api/v1/watch",
                "/api/v1/proxy",
            ][..],
        ),
        proptest::sample::select(
            &["", "/namespaces/a", "/namespaces/b", "/namespaces/clusternet-system"][..],
        ),
        proptest::sample::select(
            &["/pods", "/secrets", "/nodes", "/deployments", "/serviceaccounts", "/roles"][..],
        ),
        proptest::sample::select(&["", "/x"][..]),
        proptest::sample::select(&["", "/exec", "/proxy", "/token", "/log", "/status"][..]),
    );
    let made = made.prop_filter_map("readable", |(method, prefix, namespace, kind, name, sub)| {
        let sub = if name.is_empty() { "" } else { sub };
        let (method, upgrade) = method.strip_suffix(" +").map_or((method, false), |method| (method, true));
        let path = format!("{prefix}{namespace}{kind}{name}{sub}");
        RequestInfo::parse(&method.parse().unwrap(), &path, None, upgrade).ok()
    });
    prop_oneof![from_table, made]
}

/// Lines that restrict, at most one of each key.
fn any_restrictions() -> impl Strategy<Value = Vec<&'static str>> {
    let keys: [&'static [&'static str]; 7] = [
        &["closed: true"],
        &["users: [alice]", "users: [bob]", "groups: [dev]", "groups: []"],
        &["roles: [view]", "roles: []"],
        &[
            "namespaces: {allow: [a]}",
            "namespaces: {deny: [a]}",
            "namespaces: {allow: [a], clusterScoped: [nodes]}",
        ],
        &["verbs: {allow: [get, list, watch]}", "verbs: {deny: [delete]}"],
        &["resources: {allow: [pods, pods/log]}", "resources: {deny: [secrets]}"],
        &[
            "hours: {timeZone: UTC, from: \"08:00\", to: \"09:00\"}",
            "hours: {timeZone: UTC, from: \"20:00\", to: \"19:00\"}",
        ],
    ];
    keys.map(|lines| proptest::option::weighted(0.3, proptest::sample::select(lines)))
        .to_vec()
        .prop_map(|lines| lines.into_iter().flatten().collect())
}

proptest! {
    #[test]
    fn a_narrower_preset_never_admits_more(asked in any_request(), lines in any_restrictions()) {
        let admitted: Vec<bool> = Preset::ALL
            .into_iter()
            .map(|preset| {
                let policy = policy(&format!("preset: {preset}\nnonResourceURLs: [/metrics]\n{}\n", lines.join("\n")));
                policy.admit(&alice(&["dev"]), &asked, noon()).is_ok()
            })
            .collect();
        prop_assert!(admitted.is_sorted(), "{asked}: {admitted:?}");
    }

    #[test]
    fn whatever_is_added_only_takes_away(
        asked in any_request(),
        lines in any_restrictions(),
        drop in any::<proptest::sample::Index>(),
        preset in proptest::sample::select(&Preset::ALL[..]),
    ) {
        prop_assume!(!lines.is_empty());
        let who = alice(&["dev", "ops", "clusternet:admin"]);
        let strict = policy(&format!("preset: {preset}\n{}\n", lines.join("\n")));
        let mut fewer = lines.clone();
        fewer.remove(drop.index(lines.len()));
        let lax = policy(&format!("preset: {preset}\n{}\n", fewer.join("\n")));
        if strict.admit(&who, &asked, noon()).is_ok() {
            prop_assert!(lax.admit(&who, &asked, noon()).is_ok(), "{asked}: {lines:?} against {fewer:?}");
        }
        let (few, many) = (strict.believed(who.clone()).unwrap(), lax.believed(who).unwrap());
        prop_assert!(few.groups().iter().all(|group| many.groups().contains(group)));
    }

    #[test]
    fn no_policy_lifts_the_floor(asked in any_request(), lines in any_restrictions()) {
        let policy = policy(&format!("preset: admin\nnonResourceURLs: [/metrics]\n{}\n", lines.join("\n")));
        if let Target::Resource(resource) = &asked.target
            && resource.namespace == api::names::SYSTEM_NAMESPACE
            && policy.admit(&alice(&["dev"]), &asked, noon()).is_ok()
        {
            prop_assert!(asked.verb.reads() && resource.resource != "secrets");
            prop_assert!(!["exec", "proxy", "token"].contains(&resource.subresource.as_str()));
        }
    }
}
