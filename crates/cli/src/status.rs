//! `status`: one cluster as a readable page, and the next step if something is wrong with it.

use api::cluster::{CONDITION_CONFLICT, CONDITION_READY, CONDITION_TUNNEL, ManagedCluster};
use api::registration::ClusterRegistrationRequest;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;

use crate::args::Named;
use crate::clusters::condition;
use crate::duration::age;
use crate::failure::Failure;
use crate::output::{Mood, colored, data, line, say, shown, table, widths};
use crate::session::Session;
use crate::{config, find};

/// Runs the command.
pub(crate) async fn run(session: &Session, args: &Named) -> Result<(), Failure> {
    let command = session.command();
    let (now, color) = (Timestamp::now(), config::color(&session.global));
    if let Some(cluster) = find::cluster(session, &args.cluster).await? {
        data(&of_cluster(&cluster, now, color))?;
        say(&next(&cluster, &command));
        return Ok(());
    }
    match find::request(session, &args.cluster).await? {
        Some(request) => {
            data(&of_request(&request, now))?;
            say(&format!("next:  {command} approve {}", args.cluster));
            Ok(())
        }
        None => Err(find::registered(session, &args.cluster).await.err().unwrap_or_else(|| {
            // It joined between the two questions.
            Failure::new(crate::failure::Exit::Error, "the cluster has just joined; ask again")
        })),
    }
}

fn of_cluster(cluster: &ManagedCluster, now: Timestamp, color: bool) -> String {
    let status = cluster.status.clone().unwrap_or_default();
    let (word, mood) = summary(cluster, &status.conditions);
    let mut text = format!("{}: {}\n\n", shown(&cluster.name_any()), colored(word, mood, color));
    let seen = status
        .last_observed_time
        .map_or_else(|| "never".to_owned(), |time| format!("{} ago", age(Some(time.0), now)));
    text.push_str(&facts(&[
        ("Cluster id", shown(&cluster.spec.cluster_id)),
        ("Namespace", shown(&cluster.namespace().unwrap_or_default())),
        ("Agent's key", shown(&cluster.spec.key_fingerprint)),
        ("Agent", shown(&status.agent_version)),
        ("Kubernetes", shown(&status.k8s_version)),
        ("Platform", shown(&status.platform)),
        ("Nodes ready", shown(&status.nodes)),
        ("Last seen", seen),
        ("Registered", age(cluster.creation_timestamp().map(|time| time.0), now)),
    ]));
    if status.conditions.is_empty() {
        return text;
    }
    text.push_str("\nConditions\n");
    let rows: Vec<Vec<String>> =
        status.conditions.iter().map(|condition| condition_row(condition, now)).collect();
    let widths = widths(&rows);
    for (row, condition) in rows.iter().zip(&status.conditions) {
        text.push_str(&colored(line(row, &widths).trim_end(), mood_of(condition), color));
        text.push('\n');
    }
    text
}

fn of_request(request: &ClusterRegistrationRequest, now: Timestamp) -> String {
    let status = request.status.clone().unwrap_or_default();
    let result = status.result.map_or_else(|| "Pending".to_owned(), |result| format!("{result:?}"));
    let mut text = format!("{}: not registered, {result}\n\n", shown(&request.spec.cluster_name));
    text.push_str(&facts(&[
        ("Cluster id", shown(&request.spec.cluster_id)),
        ("Agent's key", shown(&request.spec.key_fingerprint)),
        ("Invitation", shown(&request.spec.invitation)),
        ("Asked", format!("{} ago", age(request.creation_timestamp().map(|time| time.0), now))),
        ("Message", shown(&status.error_message)),
    ]));
    text
}

fn facts(facts: &[(&str, String)]) -> String {
    table(&facts.iter().map(|(name, value)| vec![format!("  {name}"), value.clone()]).collect::<Vec<_>>())
}

fn summary(cluster: &ManagedCluster, conditions: &[Condition]) -> (&'static str, Mood) {
    if cluster.metadata.deletion_timestamp.is_some() {
        return ("leaving", Mood::Unclear);
    }
    if cluster.spec.denied {
        return ("shut out", Mood::Bad);
    }
    match condition(conditions, CONDITION_READY).map(|ready| ready.status.as_str()) {
        Some("True") => ("ready", Mood::Good),
        Some("False") => ("not ready", Mood::Bad),
        Some(_) | None => ("not known yet", Mood::Unclear),
    }
}

fn condition_row(condition: &Condition, now: Timestamp) -> Vec<String> {
    let since = age(Some(condition.last_transition_time.0), now);
    let why = match (condition.reason.as_str(), condition.message.as_str()) {
        (reason, "") => shown(reason),
        ("", message) => shown(message),
        (reason, message) => format!("{}: {}", shown(reason), shown(message)),
    };
    vec![format!("  {}", shown(&condition.type_)), shown(&condition.status), since, why]
}

fn mood_of(condition: &Condition) -> Mood {
    // Of all conditions only Conflict is bad when true.
    let good = if condition.type_ == CONDITION_CONFLICT { "False" } else { "True" };
    match condition.status.as_str() {
        status if status == good => Mood::Good,
        "True" | "False" => Mood::Bad,
        _ => Mood::Unclear,
    }
}

fn next(cluster: &ManagedCluster, command: &str) -> String {
    let name = shown(&cluster.name_any());
    let none = Vec::new();
    let conditions = cluster.status.as_ref().map_or(&none, |status| &status.conditions);
    let is =
        |kind: &str, status: &str| condition(conditions, kind).is_some_and(|found| found.status == status);
    if cluster.spec.denied {
        return format!("next:  {command} approve {name}");
    }
    if is(CONDITION_CONFLICT, "True") {
        return "next:  two agents use one identity; remove the copy, or register it as a cluster of its own"
            .to_owned();
    }
    if is(CONDITION_READY, "True") {
        return format!("next:  {command} kubeconfig {name} --out {name}.kubeconfig");
    }
    if is(CONDITION_TUNNEL, "True") {
        return "next:  the tunnel stands but the cluster's own API server does not answer; look at it there"
            .to_owned();
    }
    "next:  where the cluster is: kubectl -n clusternet-system logs deployment/clusternet-agent".to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cluster(ready: &str, tunnel: &str, conflict: &str) -> ManagedCluster {
        let condition = |kind: &str, status: &str| {
            json!({ "type": kind, "status": status, "reason": format!("{kind}Reason"), "message": "because",
                    "lastTransitionTime": "2026-01-01T00:00:00Z" })
        };
        serde_json::from_value(json!({
            "apiVersion": "clusters.clusternet.io/v1beta1", "kind": "ManagedCluster",
            "metadata": { "name": "edge-1", "namespace": "clusternet-0a0a0a0a", "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": { "clusterId": "id-1", "keyFingerprint": "SHA256:abc" },
            "status": { "k8sVersion": "v1.33.1", "lastObservedTime": "2026-01-01T02:59:30Z", "conditions": [
                condition("Ready", ready), condition("TunnelConnected", tunnel), condition("Conflict", conflict),
            ] },
        }))
        .unwrap()
    }

    fn now() -> Timestamp {
        "2026-01-01T03:00:00Z".parse().unwrap()
    }

    #[test]
    fn a_cluster_reads_as_a_page() {
        let text = of_cluster(&cluster("False", "True", "False"), now(), false);
        assert!(text.starts_with("edge-1: not ready\n\n  Cluster id    id-1\n"), "{text}");
        assert!(text.contains("\n  Last seen     30s ago\n"), "{text}");
        assert!(
            text.contains("\nConditions\n  Ready             False   3h   ReadyReason: because\n"),
            "{text}"
        );
    }

    #[test]
    fn colour_follows_the_meaning_not_the_word() {
        let text = of_cluster(&cluster("True", "True", "True"), now(), true);
        let conflict = text.lines().find(|line| line.contains("Conflict")).unwrap();
        assert!(conflict.starts_with("\u{1b}[31m"), "{conflict:?}");
        assert!(!of_cluster(&cluster("True", "True", "True"), now(), false).contains('\u{1b}'));
    }

    #[test]
    fn the_next_step_fits_what_is_wrong() {
        for (ready, tunnel, conflict, hint) in [
            ("True", "True", "False", "kubeconfig edge-1"),
            ("False", "True", "False", "own API server"),
            ("False", "False", "False", "logs deployment/clusternet-agent"),
            ("False", "True", "True", "two agents"),
        ] {
            let text = next(&cluster(ready, tunnel, conflict), "kubectl towline");
            assert!(text.contains(hint), "{text}");
        }
        let mut denied = cluster("False", "False", "False");
        denied.spec.denied = true;
        assert!(next(&denied, "kubectl towline").ends_with("approve edge-1"));
    }
}
