//! Asks the hub for access to one cluster: a token of its own, or a form that needs none. The token is shown this once;
//! the hub keeps a hash.

use api::kubeconfig::{KUBECONFIG_REQUEST_KIND, KubeconfigRequestSpec, KubeconfigRequestStatus};
use api::names::{ACCESS_GROUP, ACCESS_VERSION, KUBECONFIG_REQUESTS_PATH};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::failure::{Exit, Failure};
use crate::session::Session;

#[derive(Deserialize)]
struct Answer {
    status: Option<KubeconfigRequestStatus>,
}

/// Asks.
pub(crate) async fn issue(
    session: &Session,
    spec: &KubeconfigRequestSpec,
) -> Result<KubeconfigRequestStatus, Failure> {
    let wrong = |error: String| Failure::new(Exit::Error, format!("could not write the request: {error}"));
    let body = serde_json::to_vec(&question(spec)).map_err(|error| wrong(error.to_string()))?;
    let request = http::Request::post(KUBECONFIG_REQUESTS_PATH)
        .header(http::header::CONTENT_TYPE, "application/json")
        .header(http::header::ACCEPT, "application/json")
        .body(body)
        .map_err(|error| wrong(error.to_string()))?;
    let doing = format!("get access to cluster {}", spec.cluster);
    let answer: Answer = session.ask(&doing, session.client.request(request)).await?;
    answer.status.ok_or_else(|| {
        Failure::new(Exit::Error, format!("could not {doing}: the hub's answer holds no kubeconfig"))
            .next("compare the versions of hub and command: kubectl towline version")
    })
}

/// The object that is sent, and that a dry run shows: `kubectl create -f` takes it too.
pub(crate) fn question(spec: &KubeconfigRequestSpec) -> Value {
    json!({
        "apiVersion": format!("{ACCESS_GROUP}/{ACCESS_VERSION}"), "kind": KUBECONFIG_REQUEST_KIND,
        "metadata": { "name": spec.cluster }, "spec": spec,
    })
}
