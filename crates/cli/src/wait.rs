//! Waiting for a cluster to become ready, telling the person what it waits for.

use std::time::{Duration, Instant};

use api::cluster::{CONDITION_READY, CONDITION_TUNNEL, ManagedCluster};
use api::names::{ClusterId, LABEL_CLUSTER_ID, registration_request_name};
use api::registration::{ClusterRegistrationRequest, RegistrationResult};
use kube::api::{Api, ListParams};

use crate::clusters::condition;
use crate::failure::{Exit, Failure};
use crate::find;
use crate::output::{pause, say, shown};
use crate::session::Session;

/// How often the parent is asked: a person does not notice less, and two small reads a second are nothing.
const EVERY: Duration = Duration::from_secs(1);

/// Waits until the cluster is ready, at most so long.
pub(crate) async fn until_ready(
    session: &Session,
    id: &ClusterId,
    name: &str,
    timeout: Duration,
) -> Result<(), Failure> {
    let (mut told, began) = (String::new(), Instant::now());
    let waiting = async {
        loop {
            let stage = match look(session, id).await {
                Ok(stage) => stage,
                // The hub may restart meanwhile; that is a reason to wait, not to give up.
                Err(failure) if matches!(failure.exit(), Exit::Unreachable | Exit::Timeout) => {
                    Stage::Waiting(failure.to_string())
                }
                Err(failure) => return Err(failure),
            };
            match stage {
                Stage::Ready => return Ok(()),
                Stage::Refused(why) => {
                    return Err(Failure::new(Exit::Error, format!("cluster {name} did not join: {why}"))
                        .next(format!("{} status {name}", session.command())));
                }
                Stage::Waiting(what) if what != told => {
                    say(&format!("waiting: {what}"));
                    told = what;
                }
                Stage::Waiting(_) => {}
            }
            pause(EVERY, began).await;
        }
    };
    if let Ok(end) = tokio::time::timeout(timeout, waiting).await {
        end?;
        say(&format!("Ready: cluster {name}."));
        return Ok(());
    }
    Err(Failure::new(Exit::Timeout, format!("cluster {name} is not ready after {} s", timeout.as_secs()))
        .next(format!("{} status {name}", session.command())))
}

async fn look(session: &Session, id: &ClusterId) -> Result<Stage, Failure> {
    let requests: Api<ClusterRegistrationRequest> = Api::all(session.client.clone());
    let name = registration_request_name(id);
    let request = session.ask("look up the registration request", requests.get_opt(&name)).await?;
    let clusters: Api<ManagedCluster> = Api::all(session.client.clone());
    let params = ListParams::default().labels(&format!("{LABEL_CLUSTER_ID}={id}"));
    let found = session.list_cached("look up the cluster", &clusters, params).await?;
    Ok(stage(request.as_ref(), found.first()))
}

/// How far the cluster is.
#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Waiting(String),
    Ready,
    Refused(String),
}

fn stage(request: Option<&ClusterRegistrationRequest>, cluster: Option<&ManagedCluster>) -> Stage {
    let decision = request.and_then(find::decision);
    if let Some(RegistrationResult::Denied | RegistrationResult::Failed) = decision {
        let why =
            request.and_then(|request| request.status.as_ref()).map_or("", |status| &status.error_message);
        return Stage::Refused(shown(why));
    }
    let Some(cluster) = cluster else {
        return Stage::Waiting("the hub sets the cluster up".to_owned());
    };
    if cluster.spec.denied {
        return Stage::Refused("it is shut out".to_owned());
    }
    let none = Vec::new();
    let conditions = cluster.status.as_ref().map_or(&none, |status| &status.conditions);
    let ready = condition(conditions, CONDITION_READY);
    if ready.is_some_and(|ready| ready.status == "True") {
        return Stage::Ready;
    }
    match condition(conditions, CONDITION_TUNNEL) {
        Some(tunnel) if tunnel.status == "True" => Stage::Waiting(format!(
            "the cluster's API server ({})",
            shown(ready.map_or("", |ready| &ready.message))
        )),
        Some(_) | None => Stage::Waiting("the agent connects".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::find::tests::asking;

    fn cluster(conditions: &[(&str, &str)], denied: bool) -> ManagedCluster {
        let conditions: Vec<_> = conditions
            .iter()
            .map(|(kind, status)| {
                json!({ "type": kind, "status": status, "reason": "r", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z" })
            })
            .collect();
        serde_json::from_value(json!({
            "apiVersion": "clusters.clusternet.io/v1beta1", "kind": "ManagedCluster", "metadata": { "name": "a" },
            "spec": { "clusterId": "i", "denied": denied }, "status": { "conditions": conditions },
        }))
        .unwrap()
    }

    #[test]
    fn each_stage_is_told_apart() {
        let approved = asking("i", "a", Some(RegistrationResult::Approved));
        let failed = asking("i", "a", Some(RegistrationResult::Failed));
        let waits = |stage: Stage, what: &str| match stage {
            Stage::Waiting(text) => assert!(text.contains(what), "{text}"),
            Stage::Ready | Stage::Refused(_) => panic!("{stage:?}"),
        };
        waits(stage(Some(&approved), None), "sets the cluster up");
        waits(stage(Some(&approved), Some(&cluster(&[], false))), "agent connects");
        let half = cluster(&[("TunnelConnected", "True"), ("Ready", "False")], false);
        waits(stage(Some(&approved), Some(&half)), "API server");
        assert_eq!(stage(Some(&approved), Some(&cluster(&[("Ready", "True")], false))), Stage::Ready);
        assert!(matches!(stage(Some(&failed), None), Stage::Refused(_)));
        assert!(matches!(stage(None, Some(&cluster(&[("Ready", "True")], true))), Stage::Refused(_)));
    }
}
