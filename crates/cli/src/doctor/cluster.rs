//! One cluster as the parent's objects tell it: registration, what its credential stands on, conditions, policy,
//! versions. Pure but for [`credential`], which reads three objects.

use std::time::Duration;

use api::cluster::{
    CONDITION_API_SERVER, CONDITION_CONFLICT, CONDITION_POLICY, CONDITION_READY, CONDITION_TUNNEL,
    ManagedCluster,
};
use api::names::{AGENT_ACCOUNT, cluster_role_name};
use api::registration::{ClusterRegistrationRequest, RegistrationResult};
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Client, ResourceExt as _};

use super::codes::Code;
use super::finding::{Finding, worst};
use super::parent::skew;
use crate::ask::{Answer, NoAnswer, get};
use crate::clusters::condition;
use crate::duration::{age, human};
use crate::find;

/// The hub writes a status at least once a minute; two of them missed, and half a minute for clocks.
const STALE: i64 = 150;

/// What a cluster that is not registered is.
pub(crate) fn unregistered(request: Option<&ClusterRegistrationRequest>) -> Finding {
    const CHECK: &str = "registration";
    let Some(request) = request else {
        return Finding::fail(
            CHECK,
            Code::Unknown,
            "there is no such cluster, and none has asked to join by this name",
        );
    };
    let key = &request.spec.key_fingerprint;
    let why = request.status.as_ref().map(|status| status.error_message.clone()).unwrap_or_default();
    match find::decision(request) {
        None | Some(RegistrationResult::Pending) => {
            Finding::fail(CHECK, Code::Pending, format!("it waits for approval; the agent's key is {key}"))
        }
        Some(RegistrationResult::Denied) => {
            Finding::fail(CHECK, Code::ShutOut, format!("it was denied: {why}"))
        }
        Some(RegistrationResult::Failed) => Finding::fail(
            CHECK,
            Code::Unavailable,
            format!("it was approved, but the hub could not set it up: {why}"),
        ),
        Some(RegistrationResult::Approved) => {
            Finding::warn(CHECK, Code::Unavailable, "it is approved; the hub has not set it up yet")
        }
    }
}

/// Everything that stands in the object.
pub(crate) fn of_object(cluster: &ManagedCluster, now: Timestamp) -> Vec<Finding> {
    let status = cluster.status.clone().unwrap_or_default();
    let conditions = &status.conditions;
    let mut findings = vec![registration(cluster, now), tunnel(conditions)];
    findings.push(seen(status.last_observed_time.map(|time| time.0), now));
    findings.extend([api_server(conditions), conflict(conditions), ready(conditions)]);
    findings.push(match status.agent_version.as_str() {
        "" => Finding::warn("agent version", Code::Skipped, "the agent has never said it"),
        version => skew("agent version", version),
    });
    findings.push(policy(cluster));
    findings.push(impersonation(cluster));
    findings
}

fn registration(cluster: &ManagedCluster, now: Timestamp) -> Finding {
    const CHECK: &str = "registration";
    if cluster.spec.denied {
        return Finding::fail(CHECK, Code::ShutOut, "spec.denied is true");
    }
    if cluster.metadata.deletion_timestamp.is_some() {
        return Finding::fail(CHECK, Code::ShutOut, "it is being unregistered");
    }
    let since = age(cluster.creation_timestamp().map(|time| time.0), now);
    Finding::ok(CHECK, format!("registered {since} ago, key {}", cluster.spec.key_fingerprint))
}

fn told(condition: &Condition) -> String {
    format!("{}: {}", condition.reason, condition.message)
}

fn tunnel(conditions: &[Condition]) -> Finding {
    const CHECK: &str = "tunnel";
    match condition(conditions, CONDITION_TUNNEL) {
        Some(tunnel) if tunnel.status == "True" => Finding::ok(CHECK, &tunnel.message),
        Some(tunnel) => Finding::fail(CHECK, Code::NoTunnel, told(tunnel)),
        None => Finding::fail(CHECK, Code::NoTunnel, "the hub has never said anything of this cluster"),
    }
}

fn seen(seen: Option<Timestamp>, now: Timestamp) -> Finding {
    const CHECK: &str = "last seen";
    let Some(seen) = seen else { return Finding::warn(CHECK, Code::Stale, "never") };
    let ago = now.as_second() - seen.as_second();
    let message = format!("{} ago", human(ago.max(0)));
    if ago > STALE { Finding::warn(CHECK, Code::Stale, message) } else { Finding::ok(CHECK, message) }
}

fn api_server(conditions: &[Condition]) -> Finding {
    const CHECK: &str = "child api (hub)";
    match condition(conditions, CONDITION_API_SERVER) {
        Some(found) if found.status == "True" => Finding::ok(CHECK, "the agent reaches it"),
        Some(found) if found.status == "False" => Finding::fail(CHECK, Code::ChildApi, told(found)),
        Some(found) => Finding::warn(CHECK, Code::Skipped, told(found)),
        None => Finding::warn(CHECK, Code::Skipped, "not known"),
    }
}

fn conflict(conditions: &[Condition]) -> Finding {
    const CHECK: &str = "conflict";
    match condition(conditions, CONDITION_CONFLICT) {
        Some(found) if found.status == "True" => Finding::fail(CHECK, Code::Conflict, told(found)),
        Some(found) if found.status == "False" => Finding::ok(CHECK, "one agent"),
        Some(_) | None => Finding::warn(CHECK, Code::Skipped, "not known"),
    }
}

fn ready(conditions: &[Condition]) -> Finding {
    const CHECK: &str = "ready";
    match condition(conditions, CONDITION_READY) {
        Some(found) if found.status == "True" => Finding::ok(CHECK, "True"),
        Some(found) if found.reason == "NotConnected" || found.reason == "NeverConnected" => {
            Finding::skipped(CHECK, "no tunnel")
        }
        Some(found) => Finding::fail(CHECK, Code::ChildApi, told(found)),
        None => Finding::skipped(CHECK, "no tunnel"),
    }
}

fn policy(cluster: &ManagedCluster) -> Finding {
    const CHECK: &str = "policy";
    let status = cluster.status.clone().unwrap_or_default();
    let condition = condition(&status.conditions, CONDITION_POLICY);
    let Some(policy) = &status.policy else {
        return Finding::warn(CHECK, Code::Skipped, "the agent has not told it");
    };
    if policy.closed {
        return Finding::warn(CHECK, Code::Policy, "the owner has closed the cluster: nobody is admitted");
    }
    if condition.is_some_and(|condition| condition.status == "False") || !policy.error.is_empty() {
        return Finding::warn(CHECK, Code::Policy, format!("{}; in force: {}", policy.error, policy.preset));
    }
    Finding::ok(CHECK, format!("{} ({})", policy.preset, policy.source))
}

fn impersonation(cluster: &ManagedCluster) -> Finding {
    const CHECK: &str = "impersonation";
    let status = cluster.status.clone().unwrap_or_default();
    match status.impersonation {
        None => Finding::warn(CHECK, Code::Skipped, "the agent has not told how it acts as people"),
        Some(how) if how.warnings.is_empty() => Finding::ok(CHECK, how.mode),
        Some(how) => Finding::warn(CHECK, Code::Impersonation, how.warnings.join("; ")),
    }
}

/// What the agent's credential stands on: the account in the cluster's namespace, its role and its binding. The token
/// itself is stored nowhere.
pub(crate) async fn credential(client: &Client, cluster: &ManagedCluster, limit: Duration) -> Finding {
    let namespace = cluster.namespace().unwrap_or_default();
    let Ok(id) = cluster.spec.cluster_id.parse() else {
        return Finding::fail("credential", Code::Credential, "the cluster has a broken id");
    };
    let role = cluster_role_name(&id);
    let paths = [
        format!("/api/v1/namespaces/{namespace}/serviceaccounts/{AGENT_ACCOUNT}"),
        format!("/apis/rbac.authorization.k8s.io/v1/clusterroles/{role}"),
        format!("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{role}"),
    ];
    let asked = paths.map(|path| async move { stands(&path, get(client, &path, limit).await.as_ref()) });
    let findings = join_all(asked).await;
    worst("credential", &findings, "its account, role and binding are there")
}

fn stands(path: &str, answer: Result<&Answer, &NoAnswer>) -> Finding {
    const CHECK: &str = "credential";
    let object = path.rsplit('/').take(2).collect::<Vec<_>>();
    let object = object.into_iter().rev().collect::<Vec<_>>().join("/");
    match answer {
        Ok(answer) if answer.is_ok() => Finding::ok(CHECK, object),
        Ok(answer) if answer.status.as_u16() == 404 => {
            Finding::fail(CHECK, Code::Credential, format!("{object} is missing"))
        }
        Ok(answer) => Finding::warn(CHECK, Code::Hidden, answer.said()),
        Err(error) => Finding::warn(CHECK, Code::NoAnswer, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::doctor::finding::{Level, healthy};
    use crate::find::tests::asking;

    fn cluster(change: impl Fn(&mut Value)) -> ManagedCluster {
        let condition = |kind: &str, status: &str, reason: &str| json!({ "type": kind, "status": status, "reason": reason, "message": "because", "lastTransitionTime": "2026-01-01T00:00:00Z" });
        let mut value = json!({
            "apiVersion": "clusters.clusternet.io/v1beta1", "kind": "ManagedCluster",
            "metadata": { "name": "edge-1", "namespace": "n", "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": { "clusterId": "id-1", "keyFingerprint": "SHA256:abc" },
            "status": {
                "agentVersion": env!("CARGO_PKG_VERSION"), "lastObservedTime": "2026-01-01T02:59:30Z",
                "policy": { "preset": "edit", "source": "default" }, "impersonation": { "mode": "legacy" },
                "conditions": [
                    condition("Ready", "True", "x"), condition("TunnelConnected", "True", "Connected"),
                    condition("APIServerReachable", "True", "x"), condition("PolicyInForce", "True", "Default"),
                    condition("Conflict", "False", "OneAgent"),
                ],
            },
        });
        change(&mut value);
        serde_json::from_value(value).unwrap()
    }

    fn findings(change: impl Fn(&mut Value)) -> Vec<Finding> {
        of_object(&cluster(change), "2026-01-01T03:00:00Z".parse().unwrap())
    }

    #[test]
    fn a_healthy_cluster_has_nothing_to_say() {
        let findings = findings(|_| {});
        assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:?}");
        assert_eq!(findings.len(), 9);
    }

    #[test]
    fn each_trouble_has_its_code() {
        type Change = fn(&mut Value);
        let rows: [(&str, &str, Change); 10] = [
            ("registration", "TWL-D024", |value| value["spec"]["denied"] = json!(true)),
            ("registration", "TWL-D024", |value| {
                value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")
            }),
            ("tunnel", "TWL-D026", |value| value["status"]["conditions"][1]["status"] = json!("False")),
            ("last seen", "TWL-D027", |value| {
                value["status"]["lastObservedTime"] = json!("2026-01-01T02:57:29Z")
            }),
            ("child api (hub)", "TWL-D028", |value| {
                value["status"]["conditions"][2]["status"] = json!("False")
            }),
            ("conflict", "TWL-D029", |value| value["status"]["conditions"][4]["status"] = json!("True")),
            ("ready", "TWL-D028", |value| value["status"]["conditions"][0]["status"] = json!("False")),
            ("agent version", "TWL-D018", |value| value["status"]["agentVersion"] = json!("99.0.0")),
            ("policy", "TWL-D033", |value| value["status"]["policy"]["closed"] = json!(true)),
            ("impersonation", "TWL-D032", |value| {
                value["status"]["impersonation"]["warnings"] = json!(["it may read all Secrets"]);
            }),
        ];
        for (check, code, change) in rows {
            let findings = findings(change);
            let wrong: Vec<_> = findings.iter().filter(|finding| finding.level != Level::Ok).collect();
            assert_eq!(wrong.len(), 1, "{check}: {wrong:?}");
            assert_eq!((wrong[0].check, wrong[0].code.as_deref()), (check, Some(code)));
        }
    }

    #[test]
    fn without_a_tunnel_that_alone_is_the_failure() {
        let findings = findings(|value| {
            for index in [0, 1] {
                value["status"]["conditions"][index]["status"] = json!("False");
                value["status"]["conditions"][index]["reason"] = json!("NotConnected");
            }
            for index in [2, 3, 4] {
                value["status"]["conditions"][index]["status"] = json!("Unknown");
            }
        });
        let failed: Vec<_> = findings.iter().filter(|finding| finding.level == Level::Fail).collect();
        assert!(!healthy(&findings) && failed.len() == 1 && failed[0].check == "tunnel", "{failed:?}");
    }

    #[test]
    fn a_cluster_that_is_not_registered_is_unknown_waiting_or_denied() {
        let code = |result| unregistered(Some(&asking("id", "edge-1", result))).code.unwrap();
        assert_eq!(unregistered(None).code.as_deref(), Some("TWL-D022"));
        assert_eq!(code(None), "TWL-D023");
        assert_eq!(code(Some(RegistrationResult::Denied)), "TWL-D024");
    }

    #[test]
    fn a_missing_account_is_named() {
        let answer = crate::ask::tests::answer(404, json!({}));
        let finding = stands("/api/v1/namespaces/n/serviceaccounts/clusternet-agent", Ok(&answer));
        assert_eq!(finding.message, "serviceaccounts/clusternet-agent is missing");
        assert_eq!((finding.level, finding.code.as_deref()), (Level::Fail, Some("TWL-D025")));
    }
}
