//! `unregister`: takes a cluster off the hub. Only the parent's objects go, so it works when the child is
//! gone; the hub then ends the credential and the tunnel, and the request goes last. The command ends when that is
//! done, so that whoever invites the same cluster again in the next line finds nothing of the old one.

use std::time::{Duration, Instant};

use api::cluster::ManagedCluster;
use api::names::{ClusterId, registration_request_name};
use api::registration::ClusterRegistrationRequest;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, Preconditions};

use crate::args::Unregister;
use crate::failure::{Exit, Failure};
use crate::find;
use crate::output::{ask, data, pause, say, shown};
use crate::session::Session;

/// How long the hub may take to remove what belonged to the cluster: some ten calls of the parent's API.
const REMOVAL: Duration = Duration::from_secs(15);
/// How often to look whether it has.
const EVERY: Duration = Duration::from_millis(200);

/// Runs the command.
pub(crate) async fn run(session: &Session, args: &Unregister) -> Result<(), Failure> {
    let cluster = find::registered(session, &args.cluster).await?;
    let name = cluster.name_any();
    say(&format!("cluster      {}\nid           {}", shown(&name), shown(&cluster.spec.cluster_id)));
    if !args.yes {
        let reply = ask(&format!(
            "It can be reached no more and has to be invited again. Type {} to unregister: ",
            shown(&name)
        ));
        agreed(reply.as_deref(), &name, &session.command())?;
    }
    let api: Api<ManagedCluster> =
        Api::namespaced(session.client.clone(), &cluster.namespace().unwrap_or_default());
    // Exactly the cluster that was shown, not one that has taken its name since.
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: cluster.uid(), resource_version: None }),
        ..Default::default()
    };
    session.ask(&format!("unregister cluster {name}"), api.delete(&name, &params)).await?;
    removed(session, &cluster.spec.cluster_id, &name).await?;
    data(&format!("Unregistered: cluster {}.\n", shown(&name)))?;
    say("Its credential is void and its tunnel closes within 5 seconds.\n\
         next:  where the cluster is, if it still is: kubectl delete -f agent.yaml");
    Ok(())
}

/// Waits for the hub to remove the cluster's request, the last of what belonged to it.
async fn removed(session: &Session, id: &str, name: &str) -> Result<(), Failure> {
    let Ok(id) = id.parse::<ClusterId>() else { return Ok(()) };
    let requests: Api<ClusterRegistrationRequest> = Api::all(session.client.clone());
    let request = registration_request_name(&id);
    let began = Instant::now();
    let waiting = async {
        let mut old = None;
        loop {
            match session.ask("look up the registration request", requests.get_metadata_opt(&request)).await {
                Ok(None) => return Ok(()),
                // An agent with another invitation has asked anew.
                Ok(Some(now)) if *old.get_or_insert_with(|| now.uid()) != now.uid() => return Ok(()),
                // Whoever may remove a cluster need not be allowed to see requests.
                Err(failure) if failure.exit() == Exit::Denied => return Ok(()),
                Ok(Some(_)) => pause(EVERY, began).await,
                Err(failure) => return Err(failure),
            }
        }
    };
    tokio::time::timeout(REMOVAL, waiting).await.unwrap_or_else(|_| {
        let seconds = REMOVAL.as_secs();
        let command = session.command();
        Err(Failure::new(
            Exit::Timeout,
            format!(
                "cluster {} is deleted, but after {seconds} s the hub has not ended its credential; does the hub run?",
                shown(name)
            ),
        )
        .next(format!("kubectl get clsrr {request} (gone when it is done), or {command} doctor")))
    })
}

fn agreed(reply: Option<&str>, name: &str, command: &str) -> Result<(), Failure> {
    match reply {
        Some(reply) if reply == name => Ok(()),
        Some(_) => Err(Failure::new(Exit::Error, "not unregistered: the name was not typed")),
        None => Err(Failure::new(Exit::Usage, "not unregistered: there is no terminal to ask on")
            .next(format!("{command} unregister {name} --yes"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_typed_name_or_the_flag_is_a_yes() {
        assert!(agreed(Some("edge-1"), "edge-1", "c").is_ok());
        for (reply, exit) in [(Some("y"), Exit::Error), (Some(""), Exit::Error), (None, Exit::Usage)] {
            assert_eq!(agreed(reply, "edge-1", "c").unwrap_err().exit(), exit, "{reply:?}");
        }
    }
}
