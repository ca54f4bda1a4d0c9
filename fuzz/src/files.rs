//! Files for people and for `kubectl`: what a YAML reader finds in them is what they were made from, and nothing more,
//! whatever stands in the names and groups that others chose.

use api::names::ClusterId;
use api::secret::Secret;
use api::yaml as writer;
use cli::args::Global;
use hub::generate::agent_manifest::{AgentManifest, generate};
use jiff::Timestamp;
use serde_json::Value;

use crate::head::first_line;

const CA: &str = include_str!("testdata/ca.pem");
const URL: &str = "https://parent.example:6443";
/// Objects of an agent.yaml.
const OBJECTS: usize = 15;
/// Deeper than anything that is written; the reader has a limit of its own.
const DEEPEST: usize = 24;

fn read(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// Any JSON without fractions, which are nowhere written, is read back from YAML as it was.
pub(crate) fn yaml(data: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(data) else { return };
    if !is_plain(&value, DEEPEST) {
        return;
    }
    let value = serde_json::json!({ "value": value });
    assert_eq!(read(&writer::document(&value)), [value]);
    let text = String::from_utf8_lossy(data);
    let comment = writer::comment(&text);
    assert!(comment.is_ascii() && comment.starts_with('#') && comment.lines().count() == 1, "{comment:?}");
}

fn is_plain(value: &Value, depth: usize) -> bool {
    let Some(depth) = depth.checked_sub(1) else { return false };
    match value {
        Value::Number(number) => number.is_i64() || number.is_u64(),
        Value::Array(items) => items.iter().all(|item| is_plain(item, depth)),
        Value::Object(fields) => fields.values().all(|field| is_plain(field, depth)),
        Value::Null | Value::Bool(_) | Value::String(_) => true,
    }
}

/// The body of an invitation, and the manifest that it leads to; or any lines, straight into the manifest.
pub(crate) fn manifest(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let plain = AgentManifest {
        cluster_name: "edge-1".parse().unwrap(),
        parent_url: URL.to_owned(),
        parent_ca_pem: CA.to_owned(),
        invitation: "00112233445566ff".to_owned(),
        invitation_secret: Secret::from("secret".to_owned()),
        token: Secret::from("token".to_owned()),
        expires: Timestamp::UNIX_EPOCH,
        groups: Vec::new(),
        image: "towline:1".to_owned(),
        gateway: None,
    };
    let Ok(spec) = hub::fuzzing::invitation(data) else {
        let mut lines = text.lines().map(str::to_owned);
        let mut line = || lines.next().unwrap_or_default();
        let (invitation, image) = (line(), line());
        let (invitation_secret, token) = (Secret::from(line()), Secret::from(line()));
        let groups = lines.collect();
        check_manifest(&AgentManifest { invitation, image, invitation_secret, token, groups, ..plain });
        return;
    };
    for group in &spec.groups {
        let lower = group.to_ascii_lowercase();
        let reserved = ["system:", "kubeadm:", "clusternet:"].iter().any(|prefix| lower.starts_with(prefix));
        assert!(!reserved && group != "*" && !group.trim().is_empty(), "group {group:?} was taken");
    }
    let image = spec.image.unwrap_or_else(|| "towline:1".to_owned());
    assert!(image.bytes().all(|byte| byte.is_ascii_graphic()), "image {image:?} was taken");
    check_manifest(&AgentManifest { cluster_name: spec.cluster_name, groups: spec.groups, image, ..plain });
}

fn check_manifest(values: &AgentManifest) {
    let Ok(text) = generate(values) else { panic!("a manifest of checked values can be made") };
    let text = text.reveal();
    assert!(text.is_ascii());
    let objects = read(text);
    assert_eq!(objects, hub::fuzzing::manifest_objects(values, URL, CA));
    assert_eq!(objects.len(), OBJECTS, "an object too many");
    let names: Vec<&Value> = objects
        .iter()
        .filter(|object| {
            object["kind"] == "ClusterRole" && object["metadata"]["name"] == "clusternet:app:deployer"
        })
        .map(|object| &object["rules"][1]["resourceNames"])
        .collect();
    let roles = ["clusternet:admin", "clusternet:edit", "clusternet:view"].map(str::to_owned);
    assert_eq!(
        names,
        [&Value::from([&roles[..], &values.groups].concat())],
        "the groups that may be impersonated"
    );
    let pods: Vec<&Value> = objects.iter().filter(|object| object["kind"] == "Deployment").collect();
    assert_eq!(pods.len(), 1);
    assert_eq!(pods[0]["spec"]["template"]["spec"]["containers"][0]["image"], values.image.as_str());
}

/// A cluster's name, then a kubeconfig of the parent: what is written is one cluster, one user, one context, over TLS
/// that is verified, and nothing besides.
pub(crate) fn kubeconfig(data: &[u8]) {
    let (name, source) = first_line(data);
    let Ok(source) = std::str::from_utf8(source) else { return };
    let id: ClusterId = "6f0a1b1e-0000-4000-8000-000000000000".parse().unwrap();
    let made = cli::fuzzing::kubeconfig(source, &Global::default(), name, &id);
    let Some((value, text)) = made else { return };
    assert_eq!(read(&text), std::slice::from_ref(&value), "{text}");
    let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["apiVersion", "clusters", "contexts", "current-context", "kind", "users"]);
    for (list, part) in [("clusters", "cluster"), ("users", "user"), ("contexts", "context")] {
        let list = value[list].as_array().unwrap();
        assert_eq!((list.len(), list[0]["name"].as_str()), (1, Some(name)));
        assert!(list[0].as_object().unwrap().keys().all(|key| key == "name" || key == part));
    }
    assert_eq!(value["contexts"][0]["context"], serde_json::json!({ "cluster": name, "user": name }));
    let cluster = value["clusters"][0]["cluster"].as_object().unwrap();
    let server = cluster["server"].as_str().unwrap();
    let path = format!("/apis/proxies.clusternet.io/v1alpha1/sockets/{id}/proxy/direct");
    assert!(server.starts_with("https://") && server.ends_with(&path), "{server}");
    assert!(!cluster.contains_key("insecure-skip-tls-verify"));
}
