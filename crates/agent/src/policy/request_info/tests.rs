//! Requests and their one reading, as kube-apiserver makes it, and those that have none.

use proptest::prelude::*;

use super::*;

/// Method, path and query, upgrade, and the reading: `verb group resource subresource namespace name`, `-` for none.
/// Those without an upgrade were read with kube-apiserver's own rules in mind, case by case of its
/// `requestinfo_test.go` where it has the case.
const READINGS: &[(&str, &str, &str)] = &[
    // requestinfo_test.go, "resource paths"
    ("GET", "/api/v1/namespaces", "list - namespaces - - -"),
    ("GET", "/api/v1/namespaces/other", "get - namespaces - other other"),
    ("GET", "/api/v1/namespaces/other/pods", "list - pods - other -"),
    ("GET", "/api/v1/namespaces/other/pods/foo", "get - pods - other foo"),
    ("HEAD", "/api/v1/namespaces/other/pods/foo", "get - pods - other foo"),
    ("GET", "/api/v1/pods", "list - pods - - -"),
    ("HEAD", "/api/v1/pods", "list - pods - - -"),
    // "special verbs"
    ("GET", "/api/v1/proxy/namespaces/other/pods/foo", "get - pods proxy other foo"),
    (
        "GET",
        "/api/v1/proxy/namespaces/other/pods/foo/subpath/not/a/subresource",
        "get - pods proxy other foo",
    ),
    ("POST", "/api/v1/proxy/nodes/n1/run/x", "create - nodes proxy - n1"),
    ("GET", "/api/v1/watch/pods", "watch - pods - - -"),
    ("GET", "/api/v1/pods?watch=true", "watch - pods - - -"),
    ("GET", "/api/v1/pods?watch=false", "list - pods - - -"),
    ("GET", "/api/v1/watch/namespaces/other/pods", "watch - pods - other -"),
    ("GET", "/api/v1/watch/namespaces/other/pods/foo", "watch - pods - other foo"),
    ("GET", "/apis/apps/v1/watch/deployments", "watch apps deployments - - -"),
    ("HEAD", "/api/v1/watch/pods", "watch - pods - - -"),
    ("GET", "/api/v1/watch/namespaces", "watch - namespaces - - -"),
    ("GET", "/api/v1/watch/namespaces/other", "watch - namespaces - other other"),
    ("GET", "/api/v1/namespaces/other/pods?watch=1", "watch - pods - other -"),
    ("GET", "/api/v1/namespaces/other/pods?watch=0", "list - pods - other -"),
    ("GET", "/api/v1/namespaces/other/pods?watch=FALSE", "list - pods - other -"),
    ("GET", "/api/v1/namespaces/other/pods?watch", "watch - pods - other -"),
    ("GET", "/api/v1/namespaces/other/pods?watch=", "watch - pods - other -"),
    ("GET", "/api/v1/namespaces/other/pods?watch=nonsense", "watch - pods - other -"),
    ("GET", "/api/v1/pods?watch=0&watch=1", "list - pods - - -"),
    ("GET", "/api/v1/pods?watch=1&watch=0", "watch - pods - - -"),
    ("GET", "/api/v1/pods?%77atch=1", "watch - pods - - -"),
    ("GET", "/api/v1/pods?watch=%31", "watch - pods - - -"),
    ("GET", "/api/v1/pods?watch=%30", "list - pods - - -"),
    ("GET", "/api/v1/pods?watch=%zz&watch=1", "watch - pods - - -"),
    ("GET", "/api/v1/pods?Watch=1", "list - pods - - -"),
    ("GET", "/api/v1/pods?watch=1&limit=abc", "watch - pods - - -"),
    ("GET", "/api/v1/pods?fieldSelector=metadata.name%3Dfoo&watch=1", "watch - pods - - -"),
    ("GET", "/api/v1/namespaces/other/pods/foo?watch=1", "get - pods - other foo"),
    // "subresource identification"
    ("GET", "/api/v1/namespaces/other/pods/foo/status", "get - pods status other foo"),
    ("GET", "/api/v1/namespaces/other/pods/foo/proxy/subpath", "get - pods proxy other foo"),
    ("PUT", "/api/v1/namespaces/other/finalize", "update - namespaces finalize other other"),
    ("PUT", "/api/v1/namespaces/other/status", "update - namespaces status other other"),
    ("GET", "/api/v1/namespaces/status", "get - namespaces - status status"),
    ("GET", "/api/v1/namespaces/other/status/foo", "get - namespaces status other other"),
    // "verb identification"
    ("PATCH", "/api/v1/namespaces/other/pods/foo", "patch - pods - other foo"),
    ("PATCH", "/api/v1/namespaces/o/pods/f?fieldManager=x&force=true", "patch - pods - o f"),
    ("DELETE", "/api/v1/namespaces/other/pods/foo", "delete - pods - other foo"),
    ("POST", "/api/v1/namespaces/other/pods", "create - pods - other -"),
    ("POST", "/api/v1/namespaces/other/pods/foo", "create - pods - other foo"),
    ("PUT", "/api/v1/nodes/n1", "update - nodes - - n1"),
    ("POST", "/api/v1/namespaces?dryRun=All", "create - namespaces - - -"),
    // "deletecollection verb identification"
    ("DELETE", "/api/v1/nodes", "deletecollection - nodes - - -"),
    ("DELETE", "/api/v1/namespaces", "deletecollection - namespaces - - -"),
    ("DELETE", "/api/v1/namespaces/other/pods", "deletecollection - pods - other -"),
    ("DELETE", "/apis/extensions/v1/namespaces/other/pods", "deletecollection extensions pods - other -"),
    // "api group identification"
    ("POST", "/apis/extensions/v1/namespaces/other/pods", "create extensions pods - other -"),
    ("GET", "/apis/apps/v1/namespaces/a/deployments/b/scale", "get apps deployments scale a b"),
    (
        "GET",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
        "list rbac.authorization.k8s.io clusterroles - - -",
    ),
    (
        "POST",
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        "create authorization.k8s.io selfsubjectaccessreviews - - -",
    ),
    (
        "PUT",
        "/apis/certificates.k8s.io/v1/certificatesigningrequests/c/approval",
        "update certificates.k8s.io certificatesigningrequests approval - c",
    ),
    ("POST", "/api/v1/namespaces/a/serviceaccounts/b/token", "create - serviceaccounts token a b"),
    ("POST", "/api/v1/namespaces/a/pods/b/eviction", "create - pods eviction a b"),
    ("PATCH", "/api/v1/namespaces/a/pods/b/ephemeralcontainers", "patch - pods ephemeralcontainers a b"),
    ("GET", "/api/v1/namespaces/a/pods/b/log?follow=true", "get - pods log a b"),
    ("GET", "/api/v1/nodes/n1/proxy/exec/a/b/c?command=sh", "get - nodes proxy - n1"),
    ("GET", "/api/v1/namespaces/a/services/https:b:443/proxy/", "get - services proxy a https:b:443"),
    // Decoded as kube-apiserver does it, one slash at the end is none.
    ("GET", "/api/v1/namespaces/a/%70ods", "list - pods - a -"),
    ("GET", "/api/v1/namespaces/a/secr%65ts/b", "get - secrets - a b"),
    ("GET", "/api/v1/namespaces/clusternet%2Dsystem/secrets", "list - secrets - clusternet-system -"),
    ("GET", "/api/v1/namespaces/a/pods/", "list - pods - a -"),
    ("GET", "/api/v1/namespaces/", "list - namespaces - - -"),
    ("GET", "/%61pi/v1/pods", "list - pods - - -"),
    (
        "GET",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
        "get rbac.authorization.k8s.io clusterroles - - system:node",
    ),
    // GET of a stream is a create, whoever asks for the upgrade (kubernetes 78741).
    ("GET", "/api/v1/namespaces/a/pods/b/exec?command=sh", "create - pods exec a b"),
    ("GET", "/api/v1/namespaces/a/pods/b/attach", "create - pods attach a b"),
    ("GET", "/api/v1/namespaces/a/pods/b/portforward", "create - pods portforward a b"),
    ("POST", "/api/v1/namespaces/a/pods/b/exec", "create - pods exec a b"),
    ("GET +", "/api/v1/namespaces/a/pods/b/exec", "create - pods exec a b"),
    ("POST +", "/api/v1/namespaces/a/pods/b/exec", "create - pods exec a b"),
    ("GET +", "/api/v1/namespaces/a/pods/b/log?follow=1", "get - pods log a b"),
    ("GET +", "/api/v1/namespaces/a/pods?watch=1", "watch - pods - a -"),
    ("GET +", "/api/v1/namespaces/a/pods", "create - pods - a -"),
    ("GET +", "/api/v1/namespaces/a/pods/b", "create - pods - a b"),
    (
        "GET +",
        "/apis/subresources.kubevirt.io/v1/namespaces/a/virtualmachineinstances/b/console",
        "create subresources.kubevirt.io virtualmachineinstances console a b",
    ),
    ("GET +", "/api/v1/namespaces/a/services/b/proxy/ws", "create - services proxy a b"),
    // No resources.
    ("GET", "/", "get /"),
    ("GET", "/api", "get /api"),
    ("GET", "/api/", "get /api"),
    ("GET", "/api/v1", "get /api/v1"),
    ("GET", "/apis", "get /apis"),
    ("GET", "/apis/apps", "get /apis/apps"),
    ("GET", "/apis/apps/v1", "get /apis/apps/v1"),
    ("HEAD", "/version", "get /version"),
    ("POST", "/healthz", "create /healthz"),
    ("GET", "/metrics", "get /metrics"),
    ("GET", "/%6detrics", "get /metrics"),
    ("GET", "/logs/kube-apiserver.log", "get /logs/kube-apiserver.log"),
    ("GET", "/debug/pprof/heap?debug=1", "get /debug/pprof/heap"),
    ("GET", "/openapi/v3/apis/apps/v1", "get /openapi/v3/apis/apps/v1"),
    ("GET", "/apix/v1/pods", "get /apix/v1/pods"),
    ("DELETE", "/API/v1/nodes", "delete /API/v1/nodes"),
];

fn parse(method: &str, uri: &str) -> Result<RequestInfo, Unreadable> {
    let (method, upgrade) = method.strip_suffix(" +").map_or((method, false), |method| (method, true));
    let (path, query) = uri.split_once('?').map_or((uri, None), |(path, query)| (path, Some(query)));
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| Unreadable::Method)?;
    RequestInfo::parse(&method, path, query, upgrade)
}

fn written(info: &RequestInfo) -> String {
    match &info.target {
        Target::NonResource(path) => format!("{} {path}", info.verb),
        Target::Resource(resource) => {
            let Resource { group, resource, subresource, namespace, name } = resource;
            let parts = [group, resource, subresource, namespace, name];
            let parts = parts.map(|part| if part.is_empty() { "-" } else { part.as_str() });
            format!("{} {}", info.verb, parts.join(" "))
        }
    }
}

#[test]
fn a_request_is_read_as_kube_apiserver_reads_it() {
    assert!(READINGS.len() >= 80, "{}", READINGS.len());
    for (method, uri, reading) in READINGS {
        let info = parse(method, uri).unwrap_or_else(|error| panic!("{method} {uri}: {error}"));
        assert_eq!(written(&info), *reading, "{method} {uri}");
        assert_eq!(info.upgrade, method.ends_with('+'));
    }
}

#[test]
fn what_could_be_read_in_two_ways_is_not_read() {
    for (method, uri) in [
        ("GET", ""),
        ("GET", "api/v1/pods"),
        ("GET", "//"),
        ("GET", "//api/v1/pods"),
        ("GET", "/api//v1/pods"),
        ("GET", "/api/v1/namespaces//pods"),
        ("GET", "/api/v1/pods//"),
        ("GET", "/api/v1/namespaces/a/pods/../secrets"),
        ("GET", "/api/v1/namespaces/a/./pods"),
        ("GET", "/api/v1/namespaces/a/%2e%2E/b"),
        ("GET", "/api/v1/namespaces/a/.%2e/b"),
        ("GET", "/api/v1/namespaces/a/%2e/b"),
        ("GET", "/api/v1/namespaces/a%2fsecrets"),
        ("GET", "/api/v1/namespaces/a/pods/b%2Fexec"),
        ("GET", "/api/v1/namespaces/a/services/b/proxy/c%2fd"),
        ("GET", "/api/v1/namespaces/a/pods%5cb"),
        ("GET", "/api/v1/namespaces/a\\pods"),
        ("GET", "/api/v1/namespaces/a/pods;x=1"),
        ("GET", "/api/v1/namespaces/a/pods%3Bx"),
        ("GET", "/api/v1/namespaces/a/pods%00"),
        ("GET", "/api/v1/namespaces/a/pods%0d%0a"),
        ("GET", "/api/v1/namespaces/a/pods%7f"),
        ("GET", "/api/v1/namespaces/a/pods%"),
        ("GET", "/api/v1/namespaces/a/pods%2"),
        ("GET", "/api/v1/namespaces/a/pods%zz"),
        ("GET", "/api/v1/namespaces/a/pods%ff"),
        ("GET", "/api/v1/namespaces/ä/pods"),
        ("GET", "/api/v1/name spaces"),
        ("GET", "/api/v1/watch"),
        ("GET", "/api/v1/proxy"),
        ("POST", "/api/v1/watch/pods"),
        ("DELETE", "/api/v1/watch/namespaces/a/pods"),
        ("GET", "/api/v1/pods?x=1;watch=1"),
        ("OPTIONS", "/api/v1/pods"),
        ("TRACE", "/api/v1/pods"),
        ("CONNECT", "/api/v1/pods"),
        ("FOO", "/version"),
        ("get", "/version"),
    ] {
        assert!(parse(method, uri).is_err(), "{method} {uri}: {:?}", parse(method, uri));
    }
    assert!(parse("GET", &format!("/{}", "a".repeat(MAX_PATH))).is_err());
}

#[test]
fn a_request_is_told_in_kubectls_words() {
    for (method, uri, told) in [
        ("DELETE", "/api/v1/namespaces/a/pods/b", r#"delete pods "b" in namespace "a""#),
        ("GET +", "/api/v1/namespaces/a/pods/b/exec", r#"create pods/exec "b" in namespace "a" (upgraded)"#),
        ("GET", "/apis/apps/v1/deployments", "list deployments.apps"),
        ("DELETE", "/api/v1/namespaces/a", r#"delete namespaces "a""#),
        ("GET", "/metrics", r#"get path "/metrics""#),
    ] {
        assert_eq!(parse(method, uri).unwrap().to_string(), told);
    }
}

proptest! {
    #[test]
    fn every_path_has_one_reading_or_none(
        path in "(/(api|apis|v1|watch|proxy|namespaces|pods|exec|status|%2e|%2f|\\PC{0,3}|[a-z%;.]{0,4})){0,9}/?",
        query in proptest::option::of("(watch|%77atch|x)?=?[01a-z%;&]{0,8}"),
        method in prop_oneof![Just("GET"), Just("POST"), Just("DELETE"), Just("HEAD"), Just("OPTIONS")],
        upgrade in any::<bool>(),
    ) {
        let method: Method = method.parse().unwrap();
        if let Ok(info) = RequestInfo::parse(&method, &path, query.as_deref(), upgrade) {
            match &info.target {
                Target::NonResource(path) => prop_assert!(path.starts_with('/') && !path.contains("//")),
                Target::Resource(resource) => {
                    prop_assert!(!resource.resource.is_empty());
                    for part in [&resource.group, &resource.resource, &resource.subresource, &resource.namespace, &resource.name] {
                        prop_assert!(!part.contains('/') && part != ".." && !part.contains('\0'));
                    }
                    // No subresource without an object.
                    prop_assert!(resource.subresource.is_empty() || !resource.name.is_empty() || path.contains("proxy"));
                }
            }
            prop_assert!(upgrade == info.upgrade);
        }
    }

    #[test]
    fn reading_any_text_does_not_panic(path in "\\PC{0,60}", query in "\\PC{0,30}") {
        let _ = RequestInfo::parse(&Method::GET, &path, Some(&query), false);
    }

    #[test]
    fn an_escape_changes_no_reading(
        path in "/(api/v1|apis/apps/v1)(/(namespaces|pods|secrets|exec|a|b)){1,5}",
        at in any::<proptest::sample::Index>(),
    ) {
        let plain: Vec<usize> =
            path.bytes().enumerate().filter(|(_, byte)| *byte != b'/').map(|(at, _)| at).collect();
        let at = *at.get(&plain);
        let escaped = format!("{}%{:02x}{}", &path[..at], path.as_bytes()[at], &path[at + 1..]);
        prop_assert_eq!(
            RequestInfo::parse(&Method::GET, &escaped, None, false),
            RequestInfo::parse(&Method::GET, &path, None, false)
        );
    }
}
