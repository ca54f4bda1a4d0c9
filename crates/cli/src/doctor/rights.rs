//! What the caller may do in the parent, asked as `kubectl auth can-i` asks: SelfSubjectAccessReview, one a question.

use std::time::Duration;

use api::names::{ACCESS_GROUP, CLUSTERS_GROUP, ClusterId, PROXIES_GROUP, Role};
use futures::future::join_all;
use kube::Client;
use serde_json::{Value, json};

use super::codes::Code;
use super::finding::Finding;
use crate::ask::{NoAnswer, post};

/// One question: what it is good for, and the attributes of the review.
struct Question {
    /// The command.
    what: &'static str,
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    subresource: &'static str,
}

const fn question(
    what: &'static str,
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    subresource: &'static str,
) -> Question {
    Question { what, verb, group, resource, subresource }
}

/// What the commands need.
const COMMANDS: [Question; 7] = [
    question("clusters", "list", CLUSTERS_GROUP, "managedclusters", ""),
    question("register", "create", ACCESS_GROUP, "clusterinvitations", ""),
    question("approve", "patch", CLUSTERS_GROUP, "clusterregistrationrequests", "status"),
    question("deny", "patch", CLUSTERS_GROUP, "managedclusters", ""),
    question("unregister", "delete", CLUSTERS_GROUP, "managedclusters", ""),
    question("kubeconfig --role", "create", ACCESS_GROUP, "kubeconfigrequests", ""),
    question("credentials", "list", ACCESS_GROUP, "issuedcredentials", ""),
];

/// Asks one question of an API server; `root` stands before the path (empty for the server itself).
pub(crate) async fn may(
    client: &Client,
    root: &str,
    attributes: Value,
    limit: Duration,
) -> Result<bool, NoAnswer> {
    let review = json!({ "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                         "spec": { "resourceAttributes": attributes } });
    let path = format!("{root}/apis/authorization.k8s.io/v1/selfsubjectaccessreviews");
    let answer = post(client, &path, &review, limit).await?;
    if !answer.is_ok() {
        return Err(NoAnswer::Broken(answer.said()));
    }
    let status = &answer.body["status"];
    Ok(status["allowed"] == true && status["denied"] != true)
}

/// The right to a verb on a socket of this cluster.
pub(crate) fn socket(id: &ClusterId, verb: &str, subresource: &str) -> Value {
    json!({ "group": PROXIES_GROUP, "version": "v1alpha1", "resource": "sockets", "subresource": subresource,
            "name": id.as_str(), "verb": verb })
}

/// Which commands the caller may use.
pub(crate) async fn of_commands(client: &Client, limit: Duration) -> Finding {
    let asked = COMMANDS.iter().map(|question| async move {
        let attributes = json!({ "group": question.group, "resource": question.resource, "verb": question.verb,
                                 "subresource": question.subresource });
        (question.what, may(client, "", attributes, limit).await)
    });
    commands(&join_all(asked).await)
}

fn commands(answers: &[(&'static str, Result<bool, NoAnswer>)]) -> Finding {
    const CHECK: &str = "rights";
    if let Some((_, Err(error))) = answers.iter().find(|(_, answer)| answer.is_err()) {
        return Finding::warn(CHECK, Code::NoAnswer, error.to_string());
    }
    let with = |wanted: bool| -> Vec<&str> {
        answers.iter().filter(|(_, answer)| *answer == Ok(wanted)).map(|(what, _)| *what).collect()
    };
    let (yes, no) = (with(true), with(false));
    if no.is_empty() {
        return Finding::ok(CHECK, format!("you may use {}", yes.join(", ")));
    }
    Finding::warn(CHECK, Code::Rights, format!("you may not use {}", no.join(", ")))
}

/// What the caller may do with one cluster, as the hub will ask.
pub(crate) async fn of_cluster(client: &Client, id: &ClusterId, limit: Duration) -> Finding {
    let verbs = ["get", "create"].map(|verb| may(client, "", socket(id, verb, "proxy"), limit));
    let roles = Role::ALL.map(|role| async move {
        let held = may(client, "", socket(id, "assume", role.subresource()), limit).await;
        (role.subresource(), held)
    });
    let (verbs, roles) = tokio::join!(join_all(verbs), join_all(roles));
    cluster(&verbs, &roles)
}

fn cluster(verbs: &[Result<bool, NoAnswer>], roles: &[(&str, Result<bool, NoAnswer>)]) -> Finding {
    const CHECK: &str = "cluster rights";
    if let Some(Err(error)) = verbs.iter().chain(roles.iter().map(|(_, held)| held)).find(|one| one.is_err())
    {
        return Finding::warn(CHECK, Code::NoAnswer, error.to_string());
    }
    if verbs.first() != Some(&Ok(true)) {
        return Finding::fail(CHECK, Code::Rights, "you may not get sockets/proxy of this cluster");
    }
    let held: Vec<&str> = roles.iter().filter(|(_, held)| *held == Ok(true)).map(|(role, _)| *role).collect();
    let held =
        if held.is_empty() { "no role: your own name and groups count".to_owned() } else { held.join(", ") };
    if verbs.iter().all(|verb| *verb == Ok(true)) {
        return Finding::ok(CHECK, format!("read and write; {held}"));
    }
    Finding::ok(CHECK, format!("read alone; {held}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Level;

    #[test]
    fn a_missing_right_is_told_by_the_command_that_needs_it() {
        assert_eq!(commands(&[("clusters", Ok(true)), ("register", Ok(true))]).level, Level::Ok);
        let finding = commands(&[("clusters", Ok(true)), ("register", Ok(false))]);
        assert_eq!(finding.code.as_deref(), Some("TWL-D019"));
        assert!(finding.message.ends_with("register"), "{finding:?}");
        let broken = commands(&[("clusters", Err(NoAnswer::Broken("x".to_owned())))]);
        assert_eq!((broken.level, broken.code.as_deref()), (Level::Warn, Some("TWL-D003")));
    }

    #[test]
    fn who_may_not_read_a_cluster_cannot_use_it() {
        let roles = |admin: bool| vec![("admin", Ok(admin)), ("view", Ok(true))];
        assert_eq!(cluster(&[Ok(false), Ok(true)], &roles(true)).level, Level::Fail);
        assert_eq!(cluster(&[Ok(true), Ok(true)], &roles(true)).message, "read and write; admin, view");
        assert_eq!(cluster(&[Ok(true), Ok(false)], &roles(false)).message, "read alone; view");
        assert!(cluster(&[Ok(true), Ok(true)], &[]).message.contains("no role"));
        let late = Err(NoAnswer::Late(Duration::from_secs(1)));
        assert_eq!(cluster(&[Ok(true), late], &[]).level, Level::Warn);
    }
}
