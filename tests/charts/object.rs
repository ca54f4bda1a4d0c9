//! Rendered objects: read as Kubernetes reads them, and held against Pod Security `restricted`. Pure.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::{Ingress, NetworkPolicy};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Kinds of others, whose types are not at hand: they are parsed, and no more.
const OF_OTHERS: [&str; 4] =
    ["monitoring.coreos.com", "cert-manager.io", "gateway.networking.k8s.io", "access.towline.io"];

/// All objects of a YAML stream.
pub(crate) fn parse(text: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// Kind/name.
pub(crate) fn name(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    format!("{}/{}", text(&object["kind"]), text(&object["metadata"]["name"]))
}

/// The objects by [`name`].
pub(crate) fn by_name(objects: Vec<Value>) -> BTreeMap<String, Value> {
    objects.into_iter().map(|object| (name(&object), object)).collect()
}

/// Where two differ first, as a JSON pointer with both values. 1 and 1.0 are the same.
pub(crate) fn difference(one: &Value, other: &Value) -> Option<String> {
    let nothing = &Value::Null;
    match (one, other) {
        (Value::Number(one), Value::Number(other)) if one.as_f64() == other.as_f64() => None,
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => one
            .iter()
            .zip(other)
            .enumerate()
            .find_map(|(at, (one, other))| difference(one, other).map(|rest| format!("/{at}{rest}"))),
        (Value::Object(one), Value::Object(other)) => one.keys().chain(other.keys()).find_map(|key| {
            let sides = (one.get(key).unwrap_or(nothing), other.get(key).unwrap_or(nothing));
            difference(sides.0, sides.1).map(|rest| format!("/{key}{rest}"))
        }),
        _ if one == other => None,
        _ => Some(format!(": {one} and {other}")),
    }
}

/// Verbs of a rule mean the same in any order.
pub(crate) fn sort_what_has_no_order(object: &mut Value) {
    for rule in object["rules"].as_array_mut().into_iter().flatten() {
        if let Some(verbs) = rule["verbs"].as_array_mut() {
            verbs.sort_by_key(Value::to_string);
        }
    }
    if object["rules"].is_null()
        && let Some(fields) = object.as_object_mut()
    {
        fields.remove("rules");
    }
}

/// Whether Kubernetes would read all of it: each required field is there, and none that it does not know; and whether
/// what runs fits the namespace.
pub(crate) fn check(object: &Value) -> Result<()> {
    let version = object["apiVersion"].as_str().context("no apiVersion")?;
    let kind = object["kind"].as_str().context("no kind")?;
    match (version, kind) {
        ("v1", "Namespace") => reads::<Namespace>(object)?,
        ("v1", "ServiceAccount") => reads::<ServiceAccount>(object)?,
        ("v1", "Secret") => reads::<Secret>(object)?,
        ("v1", "ConfigMap") => reads::<ConfigMap>(object)?,
        ("v1", "Service") => reads::<Service>(object)?,
        ("v1", "Pod") => reads::<Pod>(object)?,
        ("apps/v1", "Deployment") => reads::<Deployment>(object)?,
        ("policy/v1", "PodDisruptionBudget") => reads::<PodDisruptionBudget>(object)?,
        ("networking.k8s.io/v1", "NetworkPolicy") => reads::<NetworkPolicy>(object)?,
        ("networking.k8s.io/v1", "Ingress") => reads::<Ingress>(object)?,
        ("rbac.authorization.k8s.io/v1", "Role") => reads::<Role>(object)?,
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => reads::<ClusterRole>(object)?,
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => reads::<RoleBinding>(object)?,
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => reads::<ClusterRoleBinding>(object)?,
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition") => reads::<CustomResourceDefinition>(object)?,
        ("apiregistration.k8s.io/v1", "APIService") => {
            reads::<APIService>(object)?;
            ensure!(object["spec"].get("insecureSkipTLSVerify").is_none(), "verification is never off");
        }
        _ if OF_OTHERS.iter().any(|group| version.starts_with(&format!("{group}/"))) => {
            ensure!(object["spec"].is_object(), "no spec");
        }
        _ => bail!("{version} {kind} is not known here"),
    }
    let metadata = &object["metadata"];
    let cluster_wide = matches!(kind, "Namespace" | "ClusterRole" | "ClusterRoleBinding" | "APIService")
        || kind == "CustomResourceDefinition";
    ensure!(metadata["name"].is_string(), "no name");
    ensure!(cluster_wide == metadata["namespace"].is_null(), "namespace {}", metadata["namespace"]);
    for pod in [object.pointer("/spec/template/spec"), (kind == "Pod").then_some(&object["spec"])] {
        pod.filter(|pod| !pod.is_null()).map_or(Ok(()), restricted)?;
    }
    Ok(())
}

fn reads<T: DeserializeOwned + Serialize>(object: &Value) -> Result<()> {
    let typed: T = serde_json::from_value(object.clone())?;
    let again = serde_json::to_value(typed)?;
    difference(object, &again).map_or(Ok(()), |at| bail!("written and read{at}"))
}

/// What the Pod Security Standards ask for at `restricted`, a user that is 65532, and a file system to read alone.
fn restricted(pod: &Value) -> Result<()> {
    let wanted = [
        ("runAsNonRoot", json!(true)),
        ("runAsUser", json!(65532)),
        ("seccompProfile", json!({ "type": "RuntimeDefault" })),
    ];
    for (key, wanted) in wanted {
        let found = &pod["securityContext"][key];
        ensure!(*found == wanted, "{key} is {found}");
    }
    for key in ["hostNetwork", "hostPID", "hostIPC"] {
        ensure!(pod[key].is_null(), "{key}");
    }
    let containers = pod["containers"].as_array().context("no containers")?;
    for container in containers {
        let wanted = json!({ "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                             "capabilities": { "drop": ["ALL"] } });
        if let Some(at) = difference(&container["securityContext"], &wanted) {
            bail!("securityContext, found and wanted{at}");
        }
        ensure!(container["ports"].as_array().into_iter().flatten().all(|port| port["hostPort"].is_null()));
    }
    const KINDS: [&str; 6] = ["configMap", "secret", "emptyDir", "persistentVolumeClaim", "projected", "csi"];
    for volume in pod["volumes"].as_array().into_iter().flatten() {
        let kinds = volume.as_object().context("a volume")?.keys().filter(|key| *key != "name");
        for kind in kinds {
            ensure!(KINDS.contains(&kind.as_str()), "a volume of kind {kind}");
        }
    }
    Ok(())
}
