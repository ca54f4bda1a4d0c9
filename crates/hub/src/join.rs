//! How clusters get in: the two create-only resources of `access.towline.io`. [`Join::invite`] answers a
//! person with an agent.yaml, [`Join::register`] answers an agent with a credential. The request path has
//! authenticated the caller, asked the parent's RBAC for `create` on the resource and bounded the body.
//!
//! Threats: a stolen or guessed invitation, one used twice, a registration for somebody else's cluster, labels
//! that are the hub's. What holds them: 256-bit secrets of which only the hash is stored, one use (bound to a
//! key by compare-and-swap), proof of the private key, everything but the cluster's id chosen by whoever
//! invited and nothing by the child. Secrets are never logged and stand readable in no object of the
//! parent ([`one_time`]).

pub mod invitation;
pub mod one_time;
pub mod registration;
pub mod stored;

use std::sync::Arc;

use api::names::{ACCESS_GROUP, ACCESS_VERSION};
use api::status::{Reason, Status, printable};
use aws_lc_rs::digest;
use http::StatusCode;
use kube::Client;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::catalog::Catalog;
use crate::config::Settings;
use crate::control::DEADLINE;
use crate::refusal::Refusal;

/// Answers invitations and registrations.
#[derive(Clone)]
pub struct Join {
    pub(crate) client: Client,
    pub(crate) settings: Arc<Settings>,
    pub(crate) catalog: Arc<Catalog>,
}

impl std::fmt::Debug for Join {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Join").finish_non_exhaustive()
    }
}

impl Join {
    /// With the parent's client.
    pub fn new(client: Client, settings: Arc<Settings>, catalog: Arc<Catalog>) -> Self {
        Self { client, settings, catalog }
    }
}

/// An object as `kubectl create` sends it. Strict: a misspelt field must not be silently ignored.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Envelope<Spec> {
    api_version: String,
    kind: String,
    #[serde(default)]
    metadata: Map<String, Value>,
    spec: Spec,
    /// Some clients send `status: {}`; it is the hub's to write.
    #[serde(default, rename = "status")]
    _status: serde::de::IgnoredAny,
}

/// What a caller sent, once it is known to be of the right kind.
#[derive(Debug)]
pub(crate) struct Question<Spec> {
    /// `metadata.name`, if any. Nothing else of the metadata is read or echoed.
    pub(crate) name: Option<String>,
    pub(crate) spec: Spec,
}

/// Reads a body.
pub(crate) fn parse<Spec: DeserializeOwned>(kind: &str, body: &[u8]) -> Result<Question<Spec>, Refusal> {
    let envelope: Envelope<Spec> = serde_json::from_slice(body)
        .map_err(|error| Refusal::BadRequest(format!("the {kind} cannot be read: {error}")))?;
    let version = format!("{ACCESS_GROUP}/{ACCESS_VERSION}");
    if envelope.kind != kind || envelope.api_version != version {
        return Err(Refusal::BadRequest(format!(
            "this is kind {:?} of {:?}; here it has to be {kind} of {version}",
            printable(&envelope.kind, 100),
            printable(&envelope.api_version, 100),
        )));
    }
    let name = envelope.metadata.get("name").and_then(Value::as_str).map(|name| printable(name, 253));
    Ok(Question { name, spec: envelope.spec })
}

/// The object that answers, with the hub's status.
pub(crate) fn answer(kind: &str, name: &str, spec: Value, status: Value, now: jiff::Timestamp) -> Value {
    json!({
        "apiVersion": format!("{ACCESS_GROUP}/{ACCESS_VERSION}"),
        "kind": kind,
        "metadata": { "name": name, "creationTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string() },
        "spec": spec,
        "status": status,
    })
}

/// A refusal of what stands in a field.
pub(crate) fn invalid(message: impl Into<String>) -> Refusal {
    Status::new(StatusCode::UNPROCESSABLE_ENTITY, Reason::Invalid, message).into()
}

/// The parent's API did not do what the hub asked. The caller learns that; the log has the rest.
pub(crate) fn parent_trouble(doing: &str, error: &kube::Error) -> Refusal {
    tracing::warn!(doing, %error, "the parent's API refused or did not answer");
    let refused = if let kube::Error::Api(status) = error { Some(status.code) } else { None };
    let (code, reason, what) = match refused {
        Some(403) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            Reason::InternalError,
            "the parent does not allow the hub to do it; compare its rights with deploy/hub.yaml",
        ),
        Some(..500) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            Reason::InternalError,
            "the parent refused it; see the hub's log",
        ),
        Some(500..) | None => (
            StatusCode::SERVICE_UNAVAILABLE,
            Reason::ServiceUnavailable,
            "the parent's API did not answer; try again",
        ),
    };
    Status::new(code, reason, format!("{doing} failed: {what}")).into()
}

/// What the parent's API has to do with, ended by [`DEADLINE`]: the caller, and the kube-apiserver before it, have
/// gone by then.
pub(crate) async fn in_time<T>(
    doing: &str,
    work: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(done) => done,
        Err(_) => {
            tracing::warn!(doing, "the parent's API did not answer in time");
            let message = format!("{doing} failed: the parent's API did not answer in time; try again");
            Err(Status::new(StatusCode::SERVICE_UNAVAILABLE, Reason::ServiceUnavailable, message).into())
        }
    }
}

/// Whether an API error has this code.
pub(crate) fn has_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// SHA-256 in lower-case hex.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use api::registration::{ClusterInvitationSpec, INVITATION_KIND};

    use super::*;

    fn read(body: &str) -> Result<Question<ClusterInvitationSpec>, String> {
        parse(INVITATION_KIND, body.as_bytes()).map_err(|refusal| refusal.to_status().message)
    }

    #[test]
    fn kubectl_create_is_understood() {
        let body = r#"{"apiVersion":"access.towline.io/v1alpha1","kind":"ClusterInvitation",
            "metadata":{"name":"edge-1","creationTimestamp":null,"annotations":{"a":"b"}},
            "spec":{"clusterName":"edge-1"},"status":{}}"#;
        let question = read(body).unwrap();
        assert_eq!(question.name.as_deref(), Some("edge-1"));
        assert_eq!(question.spec.cluster_name.as_str(), "edge-1");
    }

    #[test]
    fn what_is_misspelt_doubled_or_of_another_kind_is_named() {
        let head = r#""apiVersion":"access.towline.io/v1alpha1","kind":"ClusterInvitation""#;
        for (body, names) in [
            (format!(r#"{{{head},"spec":{{"clusterName":"a","ttl":"1h"}}}}"#), "ttl"),
            (format!(r#"{{{head},"spec":{{"clusterName":"a","clusterName":"b"}}}}"#), "clusterName"),
            (format!(r#"{{{head},"spec":{{"clusterName":"a"}},"extra":1}}"#), "extra"),
            (format!(r#"{{{head},"spec":{{"clusterName":"A b"}}}}"#), "a cluster name"),
            (format!(r#"{{{head}}}"#), "spec"),
            (r#"{"apiVersion":"v1","kind":"Secret","spec":{"clusterName":"a"}}"#.to_owned(), "Secret"),
            ("[".repeat(10_000), "cannot be read"),
            ("{".to_owned(), "cannot be read"),
        ] {
            let message = read(&body).unwrap_err();
            assert!(message.contains(names), "{message}");
        }
    }
}
