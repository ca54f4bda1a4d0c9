//! `label`: labels of a registered cluster, as `kubectl label` writes them. The patch carries the version of the object
//! that was read, so nobody else's change is written over. The hub's own labels are refused.

use std::collections::BTreeMap;

use api::cluster::ManagedCluster;
use api::labels;
use kube::ResourceExt as _;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::args::{Label, LabelChange};
use crate::failure::Failure;
use crate::find;
use crate::output::{data, say, shown};
use crate::session::Session;

/// Runs the command.
pub(crate) async fn run(session: &Session, args: &Label) -> Result<(), Failure> {
    let cluster = find::registered(session, &args.cluster).await?;
    let name = shown(&cluster.name_any());
    let changes = effective(cluster.labels(), &args.changes);
    if changes.is_empty() {
        say(&format!("Cluster {name} has these labels already."));
        return Ok(());
    }
    let told: String = changes.iter().map(|change| format!("  {change}\n")).collect();
    if args.dry_run {
        return data(&format!("Would label cluster {name} (dry run):\n{told}"));
    }
    let api: Api<ManagedCluster> =
        Api::namespaced(session.client.clone(), &cluster.namespace().unwrap_or_default());
    let params = PatchParams { field_manager: Some("kubectl-towline".to_owned()), ..Default::default() };
    let doing = format!("label cluster {name}");
    let patch = Patch::Merge(patch(&cluster, &changes));
    session.ask(&doing, api.patch(&cluster.name_any(), &params, &patch)).await?;
    data(&format!("Labelled: cluster {name}.\n{told}"))?;
    say(&format!("next:  {} clusters -l SELECTOR", session.command()));
    Ok(())
}

/// What changes anything.
fn effective(there: &BTreeMap<String, String>, wanted: &[LabelChange]) -> Vec<LabelChange> {
    let changes = |change: &&LabelChange| match &change.value {
        Some(value) => there.get(&change.key) != Some(value),
        None => there.contains_key(&change.key),
    };
    wanted.iter().filter(changes).cloned().collect()
}

fn patch(cluster: &ManagedCluster, changes: &[LabelChange]) -> Value {
    // A merge patch: null takes a label away.
    let labels: BTreeMap<&str, Option<&str>> =
        changes.iter().map(|change| (change.key.as_str(), change.value.as_deref())).collect();
    json!({ "metadata": {
        "uid": cluster.uid(), "resourceVersion": cluster.resource_version(), "labels": labels,
    } })
}

/// Parses `KEY=VALUE` or `KEY-`.
///
/// # Errors
/// It is neither, no label, or one of the hub's.
pub(crate) fn parse(text: &str) -> Result<LabelChange, String> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => match text.strip_suffix('-') {
            Some(key) => (key, None),
            None => return Err("has to be KEY=VALUE, or KEY- to take it away".to_owned()),
        },
    };
    labels::check(key, value.as_deref().unwrap_or_default()).map_err(|error| error.to_string())?;
    Ok(LabelChange { key: key.to_owned(), value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> ManagedCluster {
        serde_json::from_value(json!({
            "apiVersion": "clusters.clusternet.io/v1beta1", "kind": "ManagedCluster",
            "metadata": { "name": "edge-1", "uid": "u", "resourceVersion": "7", "labels": { "env": "dev", "old": "x" } },
            "spec": { "clusterId": "id-1" },
        }))
        .unwrap()
    }

    #[test]
    fn labels_are_written_as_for_kubectl() {
        assert_eq!(
            parse("env=prod"),
            Ok(LabelChange { key: "env".to_owned(), value: Some("prod".to_owned()) })
        );
        assert_eq!(parse("env="), Ok(LabelChange { key: "env".to_owned(), value: Some(String::new()) }));
        assert_eq!(parse("env-"), Ok(LabelChange { key: "env".to_owned(), value: None }));
        for wrong in ["env", "=x", "-", "a b=c", "clusters.clusternet.io/cluster-id=x", "towline.io/x-"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_patch_names_the_version_that_was_seen_and_nothing_that_stays() {
        let cluster = cluster();
        let wanted: Vec<_> = ["env=prod", "old-", "gone-"].map(|text| parse(text).unwrap()).to_vec();
        let changes = effective(cluster.labels(), &wanted);
        assert_eq!(
            patch(&cluster, &changes),
            json!({ "metadata": { "uid": "u", "resourceVersion": "7", "labels": { "env": "prod", "old": null } } })
        );
        assert!(effective(cluster.labels(), &[parse("env=dev").unwrap()]).is_empty());
    }
}
