//! OpenAPI v2 and v3 of the two groups. The parent merges v2 into its own document, and one that does not
//! merge breaks the parent's whole `/openapi/v2`; so there is nothing here but our own paths and our own
//! definition names, and no reference to a definition of Kubernetes.
//!
//! The create-only kinds show a PATCH that is answered with 405: kubectl looks only at the PATCH of a kind
//! to see whether a server validates fields, and otherwise fails on `create -f`
//! (kubernetes/kubernetes#124760, cli-runtime `query_param_verifier_v3.go`).

use api::names::{
    ACCESS_GROUP, ACCESS_VERSION, INVITATIONS_PATH, KUBECONFIG_REQUESTS_PATH, REGISTRATIONS_PATH,
};
use serde_json::{Map, Value, json};

const INVITATION: &str = "io.towline.access.v1alpha1.ClusterInvitation";
const REGISTRATION: &str = "io.towline.access.v1alpha1.ClusterRegistration";
const KUBECONFIG_REQUEST: &str = "io.towline.access.v1alpha1.KubeconfigRequest";
const PROXIES_PATH: &str = "/apis/proxies.clusternet.io/v1alpha1/";
const ACCESS_PATH: &str = "/apis/access.towline.io/v1alpha1/";

/// Which of the two dialects.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V2,
    V3,
}

fn kind(name: &str) -> Value {
    json!({ "group": ACCESS_GROUP, "version": ACCESS_VERSION, "kind": name })
}

fn text(description: &str) -> Value {
    json!({ "type": "string", "description": description })
}

fn object(description: &str, required: &[&str], properties: Value) -> Value {
    let mut object = json!({ "type": "object", "description": description, "properties": properties });
    if !required.is_empty() {
        object["required"] = json!(required);
    }
    object
}

/// A kind with spec and status, as `kubectl explain` shows it.
fn definition(name: &str, description: &str, spec: Value, status: Value) -> Value {
    let mut whole = object(
        description,
        &["spec"],
        json!({
            "apiVersion": text("access.towline.io/v1alpha1"),
            "kind": text(name),
            "metadata": { "type": "object", "description": "Standard object metadata. Only the name is read." },
            "spec": spec,
            "status": status,
        }),
    );
    whole["x-kubernetes-group-version-kind"] = json!([kind(name)]);
    whole
}

fn invitation() -> Value {
    let spec = object(
        "What is wanted.",
        &["clusterName"],
        json!({
            "clusterName": text("Name of the cluster to be: at most 60 of a-z, 0-9 and '-'."),
            "ttlSeconds": {
                "type": "integer", "format": "int64",
                "description": "How long the invitation may be used. 86400 (a day) if absent.",
            },
            "autoApprove": {
                "type": "boolean",
                "description": "Let the cluster in at first contact, without a person's approval.",
            },
            "address": text("Which address of the parent the agent dials: public (default) or intranet."),
            "clusterLabels": {
                "type": "object", "additionalProperties": { "type": "string" },
                "description": "Labels for the ManagedCluster.",
            },
            "groups": {
                "type": "array", "items": { "type": "string" },
                "description": "Groups of the parent that shall have a meaning in the child.",
            },
            "image": text("Another image than the hub's default for the agent."),
        }),
    );
    let status = object(
        "The answer. It holds a secret and is never stored.",
        &[],
        json!({
            "invitation": text("Public id of the invitation."),
            "expires": text("When it ends."),
            "manifest": text("The agent.yaml to apply in the child."),
            "command": text("The command to run in the child."),
        }),
    );
    definition(
        "ClusterInvitation",
        "ClusterInvitation is one expiring permission to register one cluster. It can only be created; the answer holds what to run in the child.",
        spec,
        status,
    )
}

fn registration() -> Value {
    let spec = object(
        "What an agent says to be let in.",
        &["invitation", "secret", "clusterId", "publicKey", "signature", "agentVersion"],
        json!({
            "invitation": text("Public id of the invitation."),
            "secret": text("Secret of the invitation."),
            "clusterId": text("UID of the child's kube-system namespace."),
            "publicKey": text("The agent's public key."),
            "signature": text("Proof that the agent holds the key."),
            "agentVersion": text("The agent's version."),
        }),
    );
    let status = object(
        "The decision so far.",
        &[],
        json!({
            "result": text("Pending, Approved, Denied or Failed."),
            "message": text("What is awaited, or why not."),
            "credential": {
                "type": "object", "description": "The credential, if approved.",
                "properties": { "token": text("A bearer token."), "expires": text("When it ends.") },
            },
            "retryAfterSeconds": { "type": "integer", "format": "int32", "description": "When to ask again." },
        }),
    );
    definition(
        "ClusterRegistration",
        "ClusterRegistration is how an agent asks to be let in; people do not make them.",
        spec,
        status,
    )
}

fn kubeconfig_request() -> Value {
    let spec = object(
        "What is wanted.",
        &["cluster"],
        json!({
            "cluster": text("Name or id of the cluster."),
            "role": text("admin, edit or view: the one role of the token. The caller's own identity if absent."),
            "service": text("Name of a tool: the child sees the user clusternet:service:<name>. Needs a role."),
            "ttlSeconds": {
                "type": "integer", "format": "int64",
                "description": "How long the token is good. 28800 (eight hours) if absent.",
            },
            "address": text("How the server is spelt: path, host or root; what the format needs if absent."),
            "format": text("What status.content is: kubeconfig (default), exec, tkestack, argocd-secret, flux-secret, clusterprofile, terraform or env."),
        }),
    );
    let status = object(
        "The answer. It holds a token and is never stored.",
        &[],
        json!({
            "credential": text("Id of the credential, to see and revoke it by."),
            "expires": text("When it ends."),
            "server": text("The server in the kubeconfig."),
            "token": text("The token, if one was issued."),
            "kubeconfig": text("A kubeconfig, whatever the format."),
            "content": text("The text in the format that was asked for."),
        }),
    );
    definition(
        "KubeconfigRequest",
        "KubeconfigRequest asks for a kubeconfig with a token of its own, good for one cluster. It can only be created.",
        spec,
        status,
    )
}

fn definitions() -> Value {
    json!({ INVITATION: invitation(), REGISTRATION: registration(), KUBECONFIG_REQUEST: kubeconfig_request() })
}

/// Query parameters of a write, as kubectl looks for them.
fn parameters(dialect: Dialect) -> Vec<Value> {
    ["dryRun", "fieldManager", "fieldValidation"]
        .map(|name| match dialect {
            Dialect::V2 => json!({ "name": name, "in": "query", "type": "string", "uniqueItems": true }),
            Dialect::V3 => {
                json!({ "name": name, "in": "query", "schema": { "type": "string", "uniqueItems": true } })
            }
        })
        .into()
}

fn responses(dialect: Dialect, reference: Option<&str>) -> Value {
    match (dialect, reference) {
        (_, None) => json!({ "200": { "description": "OK" } }),
        (Dialect::V2, Some(name)) => {
            json!({ "201": { "description": "Created", "schema": { "$ref": format!("#/definitions/{name}") } } })
        }
        (Dialect::V3, Some(name)) => {
            let schema = json!({ "$ref": format!("#/components/schemas/{name}") });
            json!({ "201": { "description": "Created", "content": { "application/json": { "schema": schema } } } })
        }
    }
}

/// Adds a create-only kind: its POST, and the PATCH that kubectl looks at.
fn add_create_only(
    paths: &mut Map<String, Value>,
    dialect: Dialect,
    path: &str,
    name: &str,
    reference: &str,
) {
    let operation = |verb: &str, id: &str| {
        let mut all = parameters(dialect);
        let mut operation = json!({
            "operationId": format!("{id}AccessTowlineIoV1alpha1{name}"),
            "tags": ["accessTowlineIo_v1alpha1"],
            "responses": responses(dialect, Some(reference)),
            "x-kubernetes-action": verb,
            "x-kubernetes-group-version-kind": kind(name),
        });
        match dialect {
            Dialect::V2 => {
                let schema = json!({ "$ref": format!("#/definitions/{reference}") });
                all.push(json!({ "name": "body", "in": "body", "required": true, "schema": schema }));
                operation["consumes"] = json!(["application/json"]);
                operation["produces"] = json!(["application/json"]);
            }
            Dialect::V3 => {
                let schema = json!({ "$ref": format!("#/components/schemas/{reference}") });
                operation["requestBody"] =
                    json!({ "required": true, "content": { "application/json": { "schema": schema } } });
            }
        }
        operation["parameters"] = json!(all);
        operation
    };
    let path_parameter = match dialect {
        Dialect::V2 => json!({ "name": "name", "in": "path", "required": true, "type": "string" }),
        Dialect::V3 => {
            json!({ "name": "name", "in": "path", "required": true, "schema": { "type": "string" } })
        }
    };
    let mut patch = operation("patch", "patch");
    patch["description"] = json!("Not served: this kind can only be created.");
    paths.insert(path.to_owned(), json!({ "post": operation("post", "create") }));
    paths.insert(format!("{path}/{{name}}"), json!({ "patch": patch, "parameters": [path_parameter] }));
}

fn resources_path(dialect: Dialect, id: &str) -> Value {
    json!({ "get": {
        "operationId": id, "description": "get available resources",
        "responses": responses(dialect, None),
    } })
}

fn add_access(paths: &mut Map<String, Value>, dialect: Dialect) {
    paths.insert(ACCESS_PATH.to_owned(), resources_path(dialect, "getAccessTowlineIoV1alpha1APIResources"));
    add_create_only(paths, dialect, INVITATIONS_PATH, "ClusterInvitation", INVITATION);
    add_create_only(paths, dialect, REGISTRATIONS_PATH, "ClusterRegistration", REGISTRATION);
    add_create_only(paths, dialect, KUBECONFIG_REQUESTS_PATH, "KubeconfigRequest", KUBECONFIG_REQUEST);
}

fn add_proxies(paths: &mut Map<String, Value>, dialect: Dialect) {
    paths.insert(
        PROXIES_PATH.to_owned(),
        resources_path(dialect, "getProxiesClusternetIoV1alpha1APIResources"),
    );
}

fn info() -> Value {
    json!({ "title": "Towline", "version": concat!("v", env!("CARGO_PKG_VERSION")) })
}

/// `/openapi/v2`
pub(super) fn v2() -> Value {
    let mut paths = Map::new();
    add_access(&mut paths, Dialect::V2);
    add_proxies(&mut paths, Dialect::V2);
    json!({
        "swagger": "2.0", "info": info(), "paths": paths,
        "definitions": definitions(),
    })
}

/// `/openapi/v3/apis/access.towline.io/v1alpha1`
pub(super) fn access_v3() -> Value {
    let mut paths = Map::new();
    add_access(&mut paths, Dialect::V3);
    json!({
        "openapi": "3.0.0", "info": info(), "paths": paths,
        "components": { "schemas": definitions() },
    })
}

/// `/openapi/v3/apis/proxies.clusternet.io/v1alpha1`
pub(super) fn proxies_v3() -> Value {
    let mut paths = Map::new();
    add_proxies(&mut paths, Dialect::V3);
    json!({ "openapi": "3.0.0", "info": info(), "paths": paths, "components": { "schemas": {} } })
}

/// `/openapi/v3`
pub(super) fn root_v3(proxies: &str, access: &str) -> Value {
    let entry =
        |path: &str, hash: &str| json!({ "serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}") });
    json!({ "paths": {
        "apis/proxies.clusternet.io/v1alpha1": entry("apis/proxies.clusternet.io/v1alpha1", proxies),
        "apis/access.towline.io/v1alpha1": entry("apis/access.towline.io/v1alpha1", access),
    } })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What cli-runtime's verifier does.
    fn validates_fields(document: &Value, wanted: &str) -> bool {
        document["paths"].as_object().unwrap().values().any(|path| {
            let patch = &path["patch"];
            patch["x-kubernetes-group-version-kind"] == kind(wanted)
                && patch["parameters"].as_array().unwrap().iter().any(|one| one["name"] == "fieldValidation")
        })
    }

    #[test]
    fn kubectl_finds_field_validation_and_the_kinds() {
        for wanted in ["ClusterInvitation", "ClusterRegistration", "KubeconfigRequest"] {
            assert!(validates_fields(&access_v3(), wanted) && validates_fields(&v2(), wanted));
        }
        let gvk = &access_v3()["components"]["schemas"][INVITATION]["x-kubernetes-group-version-kind"];
        assert_eq!(*gvk, json!([kind("ClusterInvitation")]));
    }

    #[test]
    fn references_lead_to_definitions_of_this_document() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(reference)) = map.get("$ref") {
                        found.push(reference.clone());
                    }
                    map.values().for_each(|value| references(value, found));
                }
                Value::Array(values) => values.iter().for_each(|value| references(value, found)),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
            }
        }
        for document in [v2(), access_v3(), proxies_v3()] {
            let mut found = Vec::new();
            references(&document, &mut found);
            for reference in found {
                // Definition names hold dots, JSON pointers split at slashes only.
                assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
            }
            for path in document["paths"].as_object().unwrap().keys() {
                assert!(path.starts_with(PROXIES_PATH) || path.starts_with(ACCESS_PATH), "{path}");
            }
        }
    }

    #[test]
    fn the_schema_names_every_field_that_is_read() {
        // An invitation with all fields, as the API crate writes it, has no field that the schema lacks.
        let spec: api::registration::ClusterInvitationSpec = serde_json::from_value(json!({
            "clusterName": "a", "ttlSeconds": 60, "autoApprove": true, "address": "intranet",
            "clusterLabels": { "a": "b" }, "groups": ["g"], "image": "i",
        }))
        .unwrap();
        let written = serde_json::to_value(spec).unwrap();
        let spec: api::kubeconfig::KubeconfigRequestSpec = serde_json::from_value(json!({
            "cluster": "a", "role": "view", "service": "s", "ttlSeconds": 60, "address": "root",
            "format": "env",
        }))
        .unwrap();
        let asked = serde_json::to_value(spec).unwrap();
        for (written, definition) in [(written, invitation()), (asked, kubeconfig_request())] {
            let known = &definition["properties"]["spec"]["properties"];
            for field in written.as_object().unwrap().keys() {
                assert!(known.get(field).is_some(), "{field}");
            }
        }
    }
}
