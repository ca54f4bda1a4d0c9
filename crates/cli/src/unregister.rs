//! `unregister`: takes a cluster off the hub. Only the parent's objects go, so it works when the child is
//! gone; the hub then ends the credential and the tunnel.

use api::cluster::ManagedCluster;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, Preconditions};

use crate::args::Unregister;
use crate::failure::{Exit, Failure};
use crate::find;
use crate::output::{ask, data, say, shown};
use crate::session::Session;

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
    data(&format!("Unregistered: cluster {}.\n", shown(&name)))?;
    say("Its credential is void and its tunnel closes within 5 seconds.\n\
         next:  where the cluster is, if it still is: kubectl delete -f agent.yaml");
    Ok(())
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
