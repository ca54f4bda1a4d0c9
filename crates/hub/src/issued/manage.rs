//! `GET issuedcredentials` and `DELETE issuedcredentials/<id>`: everybody sees and revokes their own; whoever may
//! list or delete `issuedcredentials/all`, all.

use std::sync::Arc;

use api::identity::Identity;
use api::kubeconfig::{CREDENTIAL_KIND, IssuedCredentialSpec};
use api::names::{ACCESS_GROUP, ACCESS_VERSION, SYSTEM_NAMESPACE};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use serde_json::{Value, json};

use super::Issued;
use super::stored::{Stored, secret_name};
use crate::authz::Action;
use crate::handle::Hub;
use crate::join::{has_code, in_time, parent_trouble};
use crate::refusal::Refusal;

const RESOURCE: &str = "issuedcredentials";

/// Those that the caller may see.
///
/// # Errors
/// The parent did not say whether that is all.
pub async fn list(hub: &Hub, who: &Arc<Identity>) -> Result<Value, Refusal> {
    let all = hub.authz.allowed(who, Action::All { verb: "list", resource: RESOURCE }).await?;
    let mut seen = hub.issued.all();
    seen.retain(|issued| all || issued.owner.user() == who.user());
    seen.sort_by(|one, two| (one.stored.expires, &one.stored.id).cmp(&(two.stored.expires, &two.stored.id)));
    let items: Vec<_> = seen.iter().map(|issued| object(issued)).collect();
    Ok(json!({
        "apiVersion": format!("{ACCESS_GROUP}/{ACCESS_VERSION}"),
        "kind": format!("{CREDENTIAL_KIND}List"), "metadata": {}, "items": items,
    }))
}

fn object(issued: &Issued) -> Value {
    let spec = IssuedCredentialSpec {
        cluster_id: issued.stored.cluster.to_string(),
        owner: issued.owner.user().to_owned(),
        role: issued.stored.role,
        service: issued.stored.service.clone(),
        expires: issued.stored.expires,
        last_used: issued.last_used(),
    };
    json!({
        "apiVersion": format!("{ACCESS_GROUP}/{ACCESS_VERSION}"), "kind": CREDENTIAL_KIND,
        "metadata": { "name": issued.stored.id }, "spec": spec,
    })
}

/// Revokes one: what it opened ends as soon as the hubs see the Secret gone.
///
/// # Errors
/// 404 for one that is not there or not the caller's to revoke: the same answer, so that nobody learns which.
pub async fn revoke(hub: &Hub, who: &Arc<Identity>, id: &str) -> Result<Value, Refusal> {
    let missing = || Refusal::NotFound(format!("{RESOURCE}.{ACCESS_GROUP} {id:?} not found"));
    let any = hub.authz.allowed(who, Action::All { verb: "delete", resource: RESOURCE }).await?;
    let secrets: Api<Secret> = Api::namespaced(hub.join.client.clone(), SYSTEM_NAMESPACE);
    let name = secret_name(id);
    in_time("revoking the credential", async {
        // From the parent, not from memory: it may have been issued a moment ago, by another replica.
        let secret = secrets
            .get_opt(&name)
            .await
            .map_err(|error| parent_trouble("revoking the credential", &error))?;
        let stored = secret.as_ref().and_then(Stored::from_secret).ok_or_else(missing)?;
        if !any && stored.owner.user() != who.user() {
            return Err(missing());
        }
        let uid = secret.and_then(|secret| secret.metadata.uid);
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid, resource_version: None }),
            ..DeleteParams::default()
        };
        match secrets.delete(&name, &params).await {
            Ok(_) => Ok(()),
            Err(error) if has_code(&error, 404) => Ok(()),
            Err(error) => Err(parent_trouble("revoking the credential", &error)),
        }
    })
    .await?;
    tracing::info!(credential = id, by = who.user(), "revoked a credential");
    Ok(json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" }))
}
