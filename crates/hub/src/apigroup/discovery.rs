//! The discovery documents (apimachinery `meta/v1`, api `apidiscovery`). Verbs are those that really work.
//! `sockets` itself has none: listing, watching and deleting it together would make the parent's garbage
//! collector watch it (`GetDeletableResources`).

use api::names::{ACCESS_GROUP, ACCESS_VERSION, PROXIES_GROUP, PROXIES_VERSION};
use serde_json::{Value, json};

/// The resources of access.towline.io: name, singular, kind, verbs.
const ACCESS: [(&str, &str, &str, &[&str]); 4] = [
    ("clusterinvitations", "clusterinvitation", "ClusterInvitation", &["create"]),
    ("clusterregistrations", "clusterregistration", "ClusterRegistration", &["create"]),
    ("kubeconfigrequests", "kubeconfigrequest", "KubeconfigRequest", &["create"]),
    // Not watched: a resource with list, watch and delete is one that the parent's garbage collector follows.
    ("issuedcredentials", "issuedcredential", "IssuedCredential", &["delete", "list"]),
];
const PROXY_VERBS: [&str; 5] = ["create", "delete", "get", "patch", "update"];

pub(super) fn version() -> Value {
    json!({
        "major": env!("CARGO_PKG_VERSION_MAJOR"),
        "minor": env!("CARGO_PKG_VERSION_MINOR"),
        "gitVersion": concat!("v", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    })
}

fn group_fields(name: &str, version: &str) -> Value {
    let version = json!({ "groupVersion": format!("{name}/{version}"), "version": version });
    json!({ "name": name, "versions": [version], "preferredVersion": version })
}

fn group(name: &str, version: &str) -> Value {
    let mut group = group_fields(name, version);
    group["kind"] = json!("APIGroup");
    group["apiVersion"] = json!("v1");
    group
}

pub(super) fn proxies_group() -> Value {
    group(PROXIES_GROUP, PROXIES_VERSION)
}

pub(super) fn access_group() -> Value {
    group(ACCESS_GROUP, ACCESS_VERSION)
}

pub(super) fn group_list() -> Value {
    json!({
        "kind": "APIGroupList", "apiVersion": "v1",
        "groups": [group_fields(PROXIES_GROUP, PROXIES_VERSION), group_fields(ACCESS_GROUP, ACCESS_VERSION)],
    })
}

pub(super) fn proxies_resources() -> Value {
    let part = |name: &str, verbs: &[&str]| json!({ "name": name, "singularName": "", "namespaced": false, "kind": "Socket", "verbs": verbs });
    let mut sockets = part("sockets", &[]);
    sockets["singularName"] = json!("socket");
    json!({
        "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": format!("{PROXIES_GROUP}/{PROXIES_VERSION}"),
        "resources": [sockets, part("sockets/attach", &["get"]), part("sockets/proxy", &PROXY_VERBS)],
    })
}

pub(super) fn access_resources() -> Value {
    let resources = ACCESS.map(|(name, singular, kind, verbs)| {
        json!({ "name": name, "singularName": singular, "namespaced": false, "kind": kind, "verbs": verbs })
    });
    json!({
        "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": format!("{ACCESS_GROUP}/{ACCESS_VERSION}"),
        "resources": resources,
    })
}

/// Both groups in one document, for parents from 1.26 on; `v2` and `v2beta1` differ by name only.
pub(super) fn aggregated(version: &str) -> Value {
    // Never without a kind: client-go 0.26.0 to 0.26.3 panics on a missing responseKind.
    let kind = |kind: &str| json!({ "group": "", "version": "", "kind": kind });
    let subresource = |name: &str, verbs: &[&str]| json!({ "subresource": name, "responseKind": kind("Socket"), "verbs": verbs });
    let sockets = json!({
        "resource": "sockets", "responseKind": kind("Socket"), "scope": "Cluster", "singularResource": "socket",
        "verbs": [],
        "subresources": [subresource("attach", &["get"]), subresource("proxy", &PROXY_VERBS)],
    });
    let access = ACCESS.map(|(name, singular, response, verbs)| {
        json!({
            "resource": name, "responseKind": kind(response), "scope": "Cluster",
            "singularResource": singular, "verbs": verbs,
        })
    });
    let item = |group: &str, group_version: &str, resources: Value| {
        json!({
            "metadata": { "name": group, "creationTimestamp": null },
            "versions": [{ "version": group_version, "freshness": "Current", "resources": resources }],
        })
    };
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {},
        "items": [
            item(PROXIES_GROUP, PROXIES_VERSION, json!([sockets])),
            item(ACCESS_GROUP, ACCESS_VERSION, json!(access)),
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_are_what_aggregators_and_kubectl_read() {
        assert_eq!(
            proxies_resources().to_string(),
            concat!(
                r#"{"apiVersion":"v1","groupVersion":"proxies.clusternet.io/v1alpha1","kind":"APIResourceList","resources":["#,
                r#"{"kind":"Socket","name":"sockets","namespaced":false,"singularName":"socket","verbs":[]},"#,
                r#"{"kind":"Socket","name":"sockets/attach","namespaced":false,"singularName":"","verbs":["get"]},"#,
                r#"{"kind":"Socket","name":"sockets/proxy","namespaced":false,"singularName":"","verbs":["create","delete","get","patch","update"]}]}"#,
            )
        );
        assert_eq!(
            access_group().to_string(),
            concat!(
                r#"{"apiVersion":"v1","kind":"APIGroup","name":"access.towline.io","#,
                r#""preferredVersion":{"groupVersion":"access.towline.io/v1alpha1","version":"v1alpha1"},"#,
                r#""versions":[{"groupVersion":"access.towline.io/v1alpha1","version":"v1alpha1"}]}"#,
            )
        );
    }

    #[test]
    fn aggregated_discovery_names_a_kind_everywhere() {
        let document = aggregated("v2");
        for item in document["items"].as_array().unwrap() {
            for resource in item["versions"][0]["resources"].as_array().unwrap() {
                assert!(resource["responseKind"]["kind"].is_string());
                let subresources = resource["subresources"].as_array().into_iter().flatten();
                assert!(subresources.into_iter().all(|part| part["responseKind"]["kind"].is_string()));
            }
        }
    }
}
