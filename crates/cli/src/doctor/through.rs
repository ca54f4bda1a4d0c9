//! One cluster as it is through the hub and the tunnel: its version and health with the time that they take, an
//! upgrade, who you are there, the agent's namespace. Everything asked only looks.

use std::time::Duration;

use api::names::{ClusterId, proxy_path};
use http::{HeaderValue, Request, StatusCode, header};
use jiff::Timestamp;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

use super::codes::Code;
use super::finding::Finding;
use super::{network, parent, rights};
use crate::ask::{Answer, NoAnswer, finish, get, post};

/// A small answer that takes longer is worth a word: people feel it in each command.
const SLOW: Duration = Duration::from_secs(2);
/// A watch of one object, over within a second: the one upgrade that starts nothing and changes nothing.
const HARMLESS_UPGRADE: &str = "/api/v1/namespaces?watch=true&timeoutSeconds=1&resourceVersion=0&fieldSelector=metadata.name%3Dkube-system";
/// The nonce of RFC 6455 section 1.3; nobody speaks over this connection.
const WEBSOCKET_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// Names of the checks that need an answer of the child first.
const DEPENDENT: [&str; 5] = ["child clock", "child health", "upgrade", "identity", "pod security"];

/// All of it, in order.
pub(crate) async fn all(client: &Client, id: &ClusterId, limit: Duration) -> Vec<Finding> {
    let root = proxy_path(id);
    let first = get(client, &format!("{root}/version"), limit).await;
    let version = reached(first.as_ref());
    let Ok(answer) = first.as_ref() else { return not_reached(version) };
    if !answer.is_ok() {
        return not_reached(version);
    }
    let (ready, home) = (format!("{root}/readyz"), format!("{root}/api/v1/namespaces/clusternet-system"));
    let (health, upgrade, identity, namespace) = tokio::join!(
        get(client, &ready, limit),
        upgrade(client, &root, limit),
        identity(client, &root, limit),
        get(client, &home, limit),
    );
    vec![
        version,
        network::clock("child clock", answer.date, Timestamp::now()),
        healthy(health.as_ref()),
        upgrade,
        identity,
        pod_security("pod security", namespace.as_ref()),
    ]
}

fn not_reached(first: Finding) -> Vec<Finding> {
    let mut findings = vec![first];
    findings.extend(DEPENDENT.map(|check| Finding::skipped(check, "the cluster does not answer")));
    findings
}

fn reached(answer: Result<&Answer, &NoAnswer>) -> Finding {
    const CHECK: &str = "child api";
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return Finding::fail(CHECK, Code::NoAnswer, error.to_string()),
    };
    match answer.status.as_u16() {
        200 if answer.took > SLOW => {
            Finding::warn(CHECK, Code::Slow, format!("/version took {} ms", answer.took.as_millis()))
        }
        200 => parent::kubernetes(CHECK, answer),
        401 | 403 => Finding::fail(CHECK, Code::Refused, answer.said()),
        503 => Finding::fail(CHECK, Code::NoTunnel, answer.said()),
        _ => Finding::fail(CHECK, Code::ChildApi, answer.said()),
    }
}

fn healthy(answer: Result<&Answer, &NoAnswer>) -> Finding {
    const CHECK: &str = "child health";
    match answer {
        Err(error) => Finding::fail(CHECK, Code::NoAnswer, error.to_string()),
        Ok(answer) if answer.is_ok() => {
            Finding::ok(CHECK, format!("/readyz in {} ms", answer.took.as_millis()))
        }
        Ok(answer) if answer.status.as_u16() == 403 => Finding::warn(CHECK, Code::Hidden, answer.said()),
        Ok(answer) => Finding::fail(CHECK, Code::ChildApi, format!("/readyz says {}", answer.said())),
    }
}

/// A watch asked for as a WebSocket: a server that sees the upgrade answers 101, one that does not sees a plain watch
/// and answers 200 (apiserver `endpoints/handlers/watch.go`). An exec of a pod that does not exist would be 404 in
/// both cases.
async fn upgrade(client: &Client, root: &str, limit: Duration) -> Finding {
    let request = Request::get(format!("{root}{HARMLESS_UPGRADE}"))
        .header(header::CONNECTION, HeaderValue::from_static("Upgrade"))
        .header(header::UPGRADE, HeaderValue::from_static("websocket"))
        .header(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"))
        .header(header::SEC_WEBSOCKET_KEY, HeaderValue::from_static(WEBSOCKET_KEY))
        .body(Body::empty());
    match request {
        Ok(request) => upgraded(finish(client, request, limit).await.as_ref()),
        Err(error) => Finding::warn("upgrade", Code::NoAnswer, error.to_string()),
    }
}

fn upgraded(answer: Result<&Answer, &NoAnswer>) -> Finding {
    const CHECK: &str = "upgrade";
    match answer {
        Ok(answer) if answer.status == StatusCode::SWITCHING_PROTOCOLS => {
            Finding::ok(CHECK, format!("a WebSocket opens in {} ms", answer.took.as_millis()))
        }
        Ok(answer) if answer.is_ok() => Finding::fail(
            CHECK,
            Code::Upgrade,
            "the Upgrade header was lost on the way: the answer is a plain one",
        ),
        Ok(answer) if is_of_websocket(answer) => {
            Finding::ok(CHECK, format!("the cluster saw it after {} ms", answer.took.as_millis()))
        }
        Ok(answer) if answer.status.as_u16() == 403 => Finding::warn(CHECK, Code::Hidden, answer.said()),
        Ok(answer) => Finding::fail(CHECK, Code::Upgrade, answer.said()),
        Err(error) => Finding::fail(CHECK, Code::Upgrade, error.to_string()),
    }
}

/// The WebSocket library of kube-apiserver refuses a handshake without `Origin` with a 403 that is no Status (x/net
/// `websocket/server.go`), and the hub passes no `Origin` on. Only who saw the upgrade can say so: RBAC, policy and hub
/// refuse with a Status.
fn is_of_websocket(answer: &Answer) -> bool {
    answer.status == StatusCode::FORBIDDEN && matches!(answer.text.trim(), "" | "null origin")
}

/// Who the child takes you for. Servers before 1.28 cannot say; there a right that everybody has shows that some
/// identity arrives.
async fn identity(client: &Client, root: &str, limit: Duration) -> Finding {
    let review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview" });
    let path = format!("{root}/apis/authentication.k8s.io/v1/selfsubjectreviews");
    match post(client, &path, &review, limit).await {
        Ok(answer) if matches!(answer.status.as_u16(), 403 | 404) => {
            let attributes = json!({ "resource": "pods", "verb": "list", "namespace": "default" });
            arrived(rights::may(client, root, attributes, limit).await.as_ref())
        }
        answer => who(answer.as_ref()),
    }
}

fn who(answer: Result<&Answer, &NoAnswer>) -> Finding {
    const CHECK: &str = "identity";
    match answer {
        Ok(answer) if answer.is_ok() => {
            let info = &answer.body["status"]["userInfo"];
            let groups = info["groups"].as_array().map(Vec::as_slice).unwrap_or_default();
            let groups: Vec<&str> = groups.iter().filter_map(Value::as_str).collect();
            match info["username"].as_str() {
                Some(user) if !user.starts_with("system:serviceaccount:clusternet-system:") => {
                    Finding::ok(CHECK, format!("{user} in {}", groups.join(", ")))
                }
                Some(user) => Finding::fail(CHECK, Code::Impersonation, format!("requests arrive as {user}")),
                None => Finding::warn(CHECK, Code::NoAnswer, "the cluster names no user"),
            }
        }
        Ok(answer) if answer.status.as_u16() == 403 => Finding::fail(CHECK, Code::Refused, answer.said()),
        Ok(answer) => Finding::fail(CHECK, Code::Impersonation, answer.said()),
        Err(error) => Finding::fail(CHECK, Code::NoAnswer, error.to_string()),
    }
}

fn arrived(answer: Result<&bool, &NoAnswer>) -> Finding {
    const CHECK: &str = "identity";
    match answer {
        Ok(true) => Finding::ok(CHECK, "you arrive as yourself and may list pods in default"),
        Ok(false) => Finding::ok(CHECK, "you arrive as yourself; the cluster gives you few rights"),
        Err(error) => Finding::fail(CHECK, Code::Refused, error.to_string()),
    }
}

/// The profile that the agent's namespace enforces.
pub(crate) fn pod_security(check: &'static str, answer: Result<&Answer, &NoAnswer>) -> Finding {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return Finding::warn(check, Code::NoAnswer, error.to_string()),
    };
    match answer.status.as_u16() {
        200 => {}
        404 => return Finding::fail(check, Code::NoAgent, "there is no namespace clusternet-system"),
        _ => return Finding::warn(check, Code::Hidden, answer.said()),
    }
    match answer.body["metadata"]["labels"]["pod-security.kubernetes.io/enforce"].as_str() {
        Some("restricted") => Finding::ok(check, "restricted"),
        Some(other) => Finding::warn(check, Code::PodSecurity, format!("it enforces {other}")),
        None => Finding::warn(check, Code::PodSecurity, "it enforces none"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::tests::answer;
    use crate::doctor::finding::Level;

    fn code(finding: &Finding) -> (Level, &str) {
        (finding.level, finding.code.as_deref().unwrap_or("ok"))
    }

    #[test]
    fn each_answer_to_the_first_question_has_its_meaning() {
        let version = json!({ "gitVersion": "v1.33.1" });
        for (status, wanted) in [
            (200, (Level::Ok, "ok")),
            (403, (Level::Fail, "TWL-D030")),
            (503, (Level::Fail, "TWL-D026")),
            (502, (Level::Fail, "TWL-D028")),
            (504, (Level::Fail, "TWL-D028")),
        ] {
            assert_eq!(code(&reached(Ok(&answer(status, version.clone())))), wanted, "{status}");
        }
        let slow = Answer { took: SLOW * 2, ..answer(200, version) };
        assert_eq!(code(&reached(Ok(&slow))), (Level::Warn, "TWL-D035"));
    }

    #[test]
    fn what_needs_the_cluster_is_not_tried_without_it() {
        let findings = not_reached(Finding::fail("child api", Code::NoTunnel, "x"));
        assert_eq!(findings.len(), 6);
        assert!(
            findings[1..].iter().all(|finding| code(finding) == (Level::Warn, "TWL-D002")),
            "{findings:?}"
        );
    }

    #[test]
    fn a_stripped_upgrade_is_told_from_one_that_is_refused() {
        for (status, wanted) in [
            (101, (Level::Ok, "ok")),
            (200, (Level::Fail, "TWL-D031")),
            (400, (Level::Fail, "TWL-D031")),
            (403, (Level::Warn, "TWL-D001")),
        ] {
            assert_eq!(code(&upgraded(Ok(&answer(status, json!({}))))), wanted, "{status}");
        }
        let of_websocket = Answer { text: "null origin".to_owned(), ..answer(403, Value::Null) };
        assert_eq!(code(&upgraded(Ok(&of_websocket))), (Level::Ok, "ok"));
        let of_a_proxy = Answer { text: "<html>no</html>".to_owned(), ..answer(403, Value::Null) };
        assert_eq!(code(&upgraded(Ok(&of_a_proxy))), (Level::Warn, "TWL-D001"));
    }

    #[test]
    fn a_request_that_arrives_as_the_agents_account_is_a_failure() {
        let review = |user: &str| {
            answer(
                201,
                json!({ "status": { "userInfo": { "username": user, "groups": ["clusternet:view"] } } }),
            )
        };
        assert_eq!(who(Ok(&review("alice"))).message, "alice in clusternet:view");
        let own = review("system:serviceaccount:clusternet-system:clusternet-app-deployer");
        assert_eq!(code(&who(Ok(&own))), (Level::Fail, "TWL-D032"));
        assert_eq!(code(&who(Ok(&answer(403, json!({}))))), (Level::Fail, "TWL-D030"));
    }

    #[test]
    fn the_profile_of_the_agents_namespace_is_looked_at() {
        let with = |profile: &str| {
            answer(
                200,
                json!({ "metadata": { "labels": { "pod-security.kubernetes.io/enforce": profile } } }),
            )
        };
        assert_eq!(code(&pod_security("x", Ok(&with("restricted")))), (Level::Ok, "ok"));
        assert_eq!(code(&pod_security("x", Ok(&with("privileged")))), (Level::Warn, "TWL-D034"));
        assert_eq!(code(&pod_security("x", Ok(&answer(200, json!({}))))), (Level::Warn, "TWL-D034"));
        assert_eq!(code(&pod_security("x", Ok(&answer(404, json!({}))))), (Level::Fail, "TWL-D036"));
    }
}
