//! `rename`: writes the wish for another name on a cluster and waits until the hub has fulfilled or refused it. Id,
//! tunnel, roles, issued credentials and open requests stay as they are.

use std::time::{Duration, Instant};

use api::cluster::{ManagedCluster, RENAME_REFUSED, RENAME_TO};
use api::names::{ClusterName, LABEL_CLUSTER_ID};
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::args::Rename;
use crate::failure::{Exit, Failure};
use crate::find;
use crate::output::{data, pause, say, shown};
use crate::session::Session;

/// How often the hub's answer is looked for.
const EVERY: Duration = Duration::from_millis(500);
/// The hub needs a second; one that is starting, some more.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the command.
pub(crate) async fn run(session: &Session, args: &Rename) -> Result<(), Failure> {
    let cluster = find::registered(session, &args.cluster).await?;
    let (old, id) = (cluster.name_any(), cluster.spec.cluster_id.clone());
    if old == args.new.as_str() {
        return data(&format!("Unchanged: cluster {} has this name.\n", shown(&old)));
    }
    let space = cluster.namespace().unwrap_or_default();
    let api: Api<ManagedCluster> = Api::namespaced(session.client.clone(), &space);
    let (params, patch) = (PatchParams::default(), Patch::Merge(wish(&cluster, &args.new)));
    session.ask(&format!("rename cluster {old}"), api.patch(&old, &params, &patch)).await?;

    let began = Instant::now();
    let waiting = async {
        loop {
            let params = ListParams::default().labels(&format!("{LABEL_CLUSTER_ID}={id}"));
            let found = session.list("look for the hub's answer", &api, params).await?;
            match answer(&found, &old, &args.new) {
                Answer::Renamed => return Ok(()),
                Answer::Refused(why) => {
                    return Err(Failure::new(Exit::Error, format!("not renamed: {why}"))
                        .next(format!("{} clusters", session.command())));
                }
                Answer::None => pause(EVERY, began).await,
            }
        }
    };
    let Ok(answered) = tokio::time::timeout(PATIENCE, waiting).await else {
        let failure =
            format!("the hub has not renamed cluster {old} in {} s; it will yet", PATIENCE.as_secs());
        return Err(Failure::new(Exit::Timeout, failure)
            .next("is the hub running? kubectl -n clusternet-system get pods"));
    };
    answered?;
    data(&format!("Renamed: cluster {} is {} now.\n", shown(&old), args.new))?;
    say(&format!(
        "Its id is the same, and so are its tunnel, roles and tokens. Kubeconfigs that spell the old name in their address get \
         404.\nnext:  {} kubeconfig {} --out {}.kubeconfig",
        session.command(),
        args.new,
        args.new
    ));
    Ok(())
}

/// Exactly the cluster that was found, as it was then; an older refusal is taken away.
fn wish(cluster: &ManagedCluster, new: &ClusterName) -> Value {
    json!({ "metadata": {
        "uid": cluster.metadata.uid,
        "annotations": { RENAME_TO: new, RENAME_REFUSED: null },
    } })
}

/// What the hub has done so far.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    None,
    Renamed,
    Refused(String),
}

fn answer(found: &[ManagedCluster], old: &str, new: &ClusterName) -> Answer {
    let Some(first) = found.iter().find(|cluster| cluster.name_any() == old) else {
        let renamed = found.iter().any(|cluster| cluster.name_any() == new.as_str());
        // Neither: it was unregistered, or renamed again; the list of clusters tells.
        return if renamed { Answer::Renamed } else { Answer::Refused("the cluster is gone".to_owned()) };
    };
    match first.annotations().get(RENAME_REFUSED) {
        Some(why) if !first.annotations().contains_key(RENAME_TO) => Answer::Refused(shown(why)),
        Some(_) | None => Answer::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(name: &str, annotations: Value) -> ManagedCluster {
        serde_json::from_value(json!({
            "apiVersion": "clusters.clusternet.io/v1beta1", "kind": "ManagedCluster",
            "metadata": { "name": name, "uid": "u", "annotations": annotations }, "spec": { "clusterId": "i" },
        }))
        .unwrap()
    }

    #[test]
    fn the_wish_is_for_the_cluster_that_was_found() {
        let wish = wish(&cluster("old", json!({})), &"new".parse().unwrap());
        assert_eq!(
            wish,
            json!({ "metadata": { "uid": "u", "annotations": { RENAME_TO: "new", RENAME_REFUSED: null } } })
        );
    }

    #[test]
    fn a_rename_is_done_when_the_old_object_is_gone() {
        let (new, plain) = ("new".parse().unwrap(), json!({}));
        let wishing = cluster("old", json!({ RENAME_TO: "new" }));
        let made = cluster("new", plain.clone());
        for (what, found, wanted) in [
            ("wished", vec![wishing.clone()], Answer::None),
            ("half way", vec![made.clone(), wishing], Answer::None),
            ("done", vec![made], Answer::Renamed),
            ("unregistered meanwhile", vec![], Answer::Refused("the cluster is gone".to_owned())),
            (
                "refused",
                vec![cluster("old", json!({ RENAME_REFUSED: "taken\u{1b}[2J" }))],
                Answer::Refused("taken\u{fffd}[2J".to_owned()),
            ),
            (
                "refused before, and wished again",
                vec![cluster("old", json!({ RENAME_REFUSED: "taken", RENAME_TO: "new" }))],
                Answer::None,
            ),
            ("not yet seen", vec![cluster("old", plain)], Answer::None),
        ] {
            assert_eq!(answer(&found, "old", &new), wanted, "{what}");
        }
    }
}
