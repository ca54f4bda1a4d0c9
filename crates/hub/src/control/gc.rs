//! Deletes what nobody owns any more: invitations that ended (which ends their tokens too), and roles of
//! clusters of which neither a request nor a `ManagedCluster` is left, as when somebody deleted both at once
//! while no hub was running. Looks at the API itself before it deletes.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use api::names::{
    CREATED_BY_HUB, LABEL_CLUSTER_ID, LABEL_CREATED_BY, SYSTEM_NAMESPACE, registration_request_name,
};
use api::registration::ClusterRegistrationRequest;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{DeleteParams, ListParams, Preconditions};
use kube::{Api, ResourceExt as _};
use tokio::time::{MissedTickBehavior, interval};

use super::{Control, catalog_is_filled};
use crate::join::has_code;
use crate::join::stored::{SECRET_TYPE, Stored};

/// How often. An invitation refuses by itself once it ended, so nothing depends on this.
const EVERY: Duration = Duration::from_secs(60);
/// Orphans are rare and looking for them lists all roles: every tenth round.
const ORPHANS_EVERY: u32 = 10;
/// Objects per page of a list: about 1 MiB of Secrets.
const PAGE: u32 = 500;

/// Runs until stop.
pub(super) async fn run(control: Arc<Control>) -> anyhow::Result<()> {
    if !catalog_is_filled(&control).await {
        return Ok(());
    }
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for round in (0..ORPHANS_EVERY).cycle() {
        tokio::select! {
            biased;
            () = control.stop.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        // The next round tries again.
        if let Err(error) = invitations(&control).await {
            tracing::warn!(%error, "ended invitations could not be deleted");
        }
        if round != 0 {
            continue;
        }
        if let Err(error) = orphans(&control).await {
            tracing::warn!(%error, "roles of forgotten clusters could not be deleted");
        }
    }
    Ok(())
}

/// Whether an invitation is over. One that cannot be read is nobody's: the hub alone writes this type, and it
/// cannot be used.
fn is_over(secret: &Secret, now: Timestamp) -> bool {
    Stored::from_secret(secret).is_none_or(|stored| stored.expires <= now)
}

async fn invitations(control: &Control) -> Result<(), kube::Error> {
    let secrets: Api<Secret> = Api::namespaced(control.client.clone(), SYSTEM_NAMESPACE);
    let now = Timestamp::now();
    let mut page = ListParams::default().fields(&format!("type={SECRET_TYPE}")).limit(PAGE);
    loop {
        let list = secrets.list(&page).await?;
        for secret in list.items.iter().filter(|secret| is_over(secret, now)) {
            let this_one = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: secret.uid(),
                    resource_version: secret.resource_version(),
                }),
                ..DeleteParams::default()
            };
            match secrets.delete(&secret.name_any(), &this_one).await {
                Ok(_) => tracing::info!(invitation = secret.name_any(), "deleted an invitation that ended"),
                Err(error) if has_code(&error, 404) || has_code(&error, 409) => {}
                Err(error) => return Err(error),
            }
        }
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page.continue_token = Some(token),
            None => return Ok(()),
        }
    }
}

/// Set-up writes a request before a role and removal deletes the role before the request, so a role without
/// both is an orphan. Roles are listed first: whatever is set up meanwhile is not in the list.
async fn orphans(control: &Control) -> Result<(), kube::Error> {
    let bindings: Api<ClusterRoleBinding> = Api::all(control.client.clone());
    let roles: Api<ClusterRole> = Api::all(control.client.clone());
    let ours =
        ListParams::default().labels(&format!("{LABEL_CREATED_BY}={CREATED_BY_HUB},{LABEL_CLUSTER_ID}"));
    let mut found: HashSet<(String, String)> = HashSet::new();
    for object in bindings.list_metadata(&ours).await?.items {
        found.extend(object.labels().get(LABEL_CLUSTER_ID).map(|id| (object.name_any(), id.clone())));
    }
    for object in roles.list_metadata(&ours).await?.items {
        found.extend(object.labels().get(LABEL_CLUSTER_ID).map(|id| (object.name_any(), id.clone())));
    }
    let requests: Api<ClusterRegistrationRequest> = Api::all(control.client.clone());
    let clusters = control.catalog.all();
    for (name, id) in found {
        let Ok(id) = id.parse() else { continue };
        if clusters.contains_key(&id) || name != registration_request_name(&id) {
            continue;
        }
        if requests.get_metadata_opt(&name).await?.is_some() {
            continue;
        }
        tracing::info!(role = name, "deleting the role of a cluster that is gone");
        absent(bindings.delete(&name, &DeleteParams::default()).await)?;
        absent(roles.delete(&name, &DeleteParams::default()).await)?;
    }
    Ok(())
}

fn absent<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if has_code(&error, 404) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invitation_is_over_when_it_ended_or_is_none() {
        let stored = Stored {
            id: "0123456789abcdef".to_owned(),
            hash: String::new(),
            cluster_name: "edge".parse().unwrap(),
            expires: "2030-01-02T03:04:05Z".parse().unwrap(),
            auto_approve: false,
            labels: [].into(),
            groups: vec![],
            used_by: None,
            made: None,
        };
        let secret = stored.to_secret("alice", None);
        assert!(!is_over(&secret, "2030-01-02T03:04:04Z".parse().unwrap()));
        assert!(is_over(&secret, "2030-01-02T03:04:05Z".parse().unwrap()));
        assert!(is_over(&Secret::default(), Timestamp::UNIX_EPOCH));
    }
}
