//! Prints the two CRDs as a JSON `List`, which is YAML too; `make manifests` writes it to deploy/crds.yaml.

use std::io::Write as _;

use api::cluster::ManagedCluster;
use api::registration::ClusterRegistrationRequest;
use kube::CustomResourceExt as _;
use serde_json::Value;

fn main() -> std::io::Result<()> {
    let mut list = serde_json::json!({
        "apiVersion": "v1",
        "kind": "List",
        "items": [ManagedCluster::crd(), ClusterRegistrationRequest::crd()],
    });
    remove_empty_defaults(&mut list);
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &list)?;
    writeln!(out)
}

/// Kubernetes 1.20 reads a default of "" as null and refuses the schema. Absent fields are read as empty by our
/// types anyway, so such defaults say nothing.
fn remove_empty_defaults(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let empty = |default: &Value| match default {
                Value::String(text) => text.is_empty(),
                Value::Array(items) => items.is_empty(),
                Value::Object(_) => true,
                Value::Bool(set) => !set,
                Value::Number(_) | Value::Null => default.as_u64().unwrap_or(0) == 0,
            };
            // A schema, not a field that happens to be called so.
            if fields.contains_key("type") && fields.get("default").is_some_and(empty) {
                fields.remove("default");
            }
            fields.values_mut().for_each(remove_empty_defaults);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_empty_defaults),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
