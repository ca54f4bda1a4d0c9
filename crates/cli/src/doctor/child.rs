//! `doctor --child`: the agent's side, with the child's own kubeconfig. Secrets are looked for by their metadata alone;
//! what they hold is never asked for.

use std::time::Duration;

use api::names::{
    AGENT_ACCOUNT, CREDENTIAL_SECRET, IMPERSONATOR_ACCOUNT, IMPERSONATOR_ROLE, REGISTRATION_SECRET,
};
use futures::future::join_all;
use http::{Request, header};
use jiff::Timestamp;
use kube::Client;
use kube::client::Body;
use serde_json::Value;

use super::codes::Code;
use super::finding::{Finding, Level, worst};
use super::through::pod_security;
use super::{network, parent};
use crate::ask::{Answer, NoAnswer, finish, get};

/// Where the agent lives.
const NAMESPACE: &str = "/api/v1/namespaces/clusternet-system";
/// Lines of the agent's log that are read. It logs a trouble once, not once a try.
const LOG_LINES: u32 = 500;
/// Only the metadata of an object (KEP-2334): the server leaves the rest out.
const METADATA_ALONE: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
/// Why a container waits when its image is the reason (kubelet `pkg/kubelet/images/types.go`).
const IMAGE_REASONS: [&str; 5] =
    ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"];

/// The server: whether it answers, and its clock.
pub(crate) async fn server(client: &Client, limit: Duration) -> Vec<Finding> {
    match get(client, "/version", limit).await {
        Ok(answer) => vec![
            parent::kubernetes("child api", &answer),
            network::clock("child clock", answer.date, Timestamp::now()),
        ],
        Err(error) => vec![
            Finding::fail("child api", Code::NoAnswer, error.to_string()),
            Finding::skipped("child clock", "no answer"),
        ],
    }
}

/// The agent: namespace, Deployment, pods, log.
pub(crate) async fn agent(client: &Client, limit: Duration) -> Vec<Finding> {
    let deployment = format!("/apis/apps/v1/namespaces/clusternet-system/deployments/{AGENT_ACCOUNT}");
    let pods = format!("{NAMESPACE}/pods?labelSelector=app.kubernetes.io%2Fname%3D{AGENT_ACCOUNT}&limit=20");
    let events = format!("{NAMESPACE}/events?limit=200");
    let (namespace, deployment, pods, events) = tokio::join!(
        get(client, NAMESPACE, limit),
        get(client, &deployment, limit),
        get(client, &pods, limit),
        get(client, &events, limit),
    );
    let mut running = pods_run(pods.as_ref());
    if running.level == Level::Fail
        && let Some(why) = events.as_ref().ok().and_then(last_warning)
    {
        running.message = crate::output::shown(&format!("{}; last event: {why}", running.message));
    }
    let name = pods.as_ref().ok().and_then(|pods| pods.body["items"][0]["metadata"]["name"].as_str());
    let log = match name {
        None => Finding::skipped("agent log", "there is no pod"),
        Some(pod) => {
            let path = format!("{NAMESPACE}/pods/{pod}/log?tailLines={LOG_LINES}");
            log(get(client, &path, limit).await.as_ref())
        }
    };
    vec![pod_security("pod security", namespace.as_ref()), deployed(deployment.as_ref()), running, log]
}

fn deployed(answer: Result<&Answer, &NoAnswer>) -> Finding {
    const CHECK: &str = "agent deployment";
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return Finding::fail(CHECK, Code::NoAnswer, error.to_string()),
    };
    match answer.status.as_u16() {
        200 => {}
        404 => return Finding::fail(CHECK, Code::NoAgent, "there is no Deployment clusternet-agent"),
        _ => return Finding::warn(CHECK, Code::Hidden, answer.said()),
    }
    let containers = &answer.body["spec"]["template"]["spec"]["containers"];
    let image = containers[0]["image"].as_str().unwrap_or_default();
    match answer.body["spec"]["replicas"].as_u64().unwrap_or(1) {
        0 => Finding::fail(CHECK, Code::ScaledDown, "spec.replicas is 0"),
        1 => Finding::ok(CHECK, image),
        more => Finding::warn(
            CHECK,
            Code::Conflict,
            format!("spec.replicas is {more}; one agent serves a cluster"),
        ),
    }
}

fn pods_run(answer: Result<&Answer, &NoAnswer>) -> Finding {
    const CHECK: &str = "agent pod";
    let answer = match answer {
        Ok(answer) if answer.is_ok() => answer,
        Ok(answer) => return Finding::warn(CHECK, Code::Hidden, answer.said()),
        Err(error) => return Finding::fail(CHECK, Code::NoAnswer, error.to_string()),
    };
    let none = Vec::new();
    let pods = answer.body["items"].as_array().unwrap_or(&none);
    if pods.is_empty() {
        return Finding::fail(CHECK, Code::Pod, "there is none");
    }
    let findings: Vec<Finding> = pods.iter().map(pod_runs).collect();
    // While a pod is replaced there may be an old one that ends: one that is ready is enough.
    match findings.iter().find(|finding| finding.level == Level::Ok) {
        Some(ready) => ready.clone(),
        None => worst(CHECK, &findings, ""),
    }
}

fn pod_runs(pod: &Value) -> Finding {
    const CHECK: &str = "agent pod";
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let status = &pod["status"]["containerStatuses"][0];
    let waiting = &status["state"]["waiting"];
    if let Some(reason) = waiting["reason"].as_str() {
        let message = waiting["message"].as_str().unwrap_or_default();
        let code = if IMAGE_REASONS.contains(&reason) { Code::Image } else { Code::Pod };
        if reason != "ContainerCreating" {
            return Finding::fail(CHECK, code, format!("{name}: {reason}: {message}"));
        }
    }
    let none = Vec::new();
    let conditions = pod["status"]["conditions"].as_array().unwrap_or(&none);
    let is = |kind: &str| conditions.iter().find(|one| one["type"] == kind);
    let restarts = status["restartCount"].as_u64().unwrap_or(0);
    match is("Ready") {
        Some(ready) if ready["status"] == "True" => {
            Finding::ok(CHECK, format!("{name} is ready, {restarts} restarts"))
        }
        // The agent is ready when its tunnel stands.
        Some(_) if status["state"]["running"].is_object() => {
            Finding::fail(CHECK, Code::NoTunnel, format!("{name} runs and is not ready, {restarts} restarts"))
        }
        Some(_) | None => {
            let why =
                is("PodScheduled").and_then(|one| one["message"].as_str()).unwrap_or("it has not started");
            Finding::fail(CHECK, Code::Pod, format!("{name}: {why}"))
        }
    }
}

/// The last event that warns: Pod Security, quota and webhooks speak there when no pod is made.
fn last_warning(answer: &Answer) -> Option<String> {
    let mut warnings: Vec<&Value> =
        answer.body["items"].as_array()?.iter().filter(|event| event["type"] == "Warning").collect();
    warnings.sort_by_key(|event| event["lastTimestamp"].as_str().unwrap_or_default());
    let last = warnings.last()?;
    Some(format!(
        "{}: {}",
        last["reason"].as_str().unwrap_or_default(),
        last["message"].as_str().unwrap_or_default()
    ))
}

/// The last trouble in the agent's log, if no connection came after it.
fn log(answer: Result<&Answer, &NoAnswer>) -> Finding {
    const CHECK: &str = "agent log";
    let answer = match answer {
        Ok(answer) if answer.is_ok() => answer,
        Ok(answer) => return Finding::warn(CHECK, Code::Hidden, answer.said()),
        Err(error) => return Finding::warn(CHECK, Code::NoAnswer, error.to_string()),
    };
    let mut trouble = None;
    for line in answer.text.lines() {
        if let Some(code) = agent_code(line) {
            trouble = Some((code, line));
        } else if is_connected(line) {
            trouble = None;
        }
    }
    let Some((code, line)) = trouble else { return Finding::ok(CHECK, "no trouble since it connected") };
    let (reason, remedy) = (field(line, "reason"), field(line, "remedy").or_else(|| field(line, "next")));
    let mut finding = Finding::fail(CHECK, Code::AgentLog, reason.unwrap_or_else(|| line.to_owned()));
    finding.code = Some(code.to_owned());
    if let Some(remedy) = remedy {
        finding.remedy = crate::output::shown(&remedy);
    }
    finding
}

/// `TWL-A` and three digits, as the agent's log lines carry it.
fn agent_code(line: &str) -> Option<&str> {
    let start = line.find("TWL-A")?;
    let code = line.get(start..start + 8)?;
    code[5..].bytes().all(|byte| byte.is_ascii_digit()).then_some(code)
}

/// The agent's line for an open tunnel (crates/agent/src/dial.rs), as text or as JSON.
fn is_connected(line: &str) -> bool {
    line.contains(": connected tunnel=") || line.contains(r#""message":"connected""#)
}

/// A field of a log line, as text (`reason=words up to the next field`) or as JSON.
fn field(line: &str, name: &str) -> Option<String> {
    if let Ok(Value::Object(fields)) = serde_json::from_str(line) {
        return fields.get(name).and_then(Value::as_str).map(str::to_owned);
    }
    let (_, rest) = line.split_once(&format!(" {name}="))?;
    if let Some(quoted) = rest.strip_prefix('"') {
        return quoted.split_once('"').map(|(text, _)| text.to_owned());
    }
    let end = [" remedy=", " next=", " reason="].iter().filter_map(|next| rest.find(next)).min();
    Some(rest[..end.unwrap_or(rest.len())].to_owned())
}

/// What agent.yaml brings besides: Secrets, rights; and the cluster's DNS.
pub(crate) async fn belongings(client: &Client, limit: Duration) -> Vec<Finding> {
    let (secrets, rbac, dns) = tokio::join!(
        secrets(client, limit),
        rbac(client, limit),
        get(client, "/api/v1/namespaces/kube-system/endpoints/kube-dns", limit),
    );
    vec![secrets, rbac, resolver(dns.as_ref())]
}

async fn secrets(client: &Client, limit: Duration) -> Finding {
    let asked = [REGISTRATION_SECRET, CREDENTIAL_SECRET].map(|name| async move {
        let request = Request::get(format!("{NAMESPACE}/secrets/{name}"))
            .header(header::ACCEPT, METADATA_ALONE)
            .body(Body::empty());
        let answer = match request {
            Ok(request) => finish(client, request, limit).await,
            Err(error) => Err(NoAnswer::Broken(error.to_string())),
        };
        there("agent secrets", Code::Secret, name, answer.as_ref())
    });
    worst("agent secrets", &join_all(asked).await, "both are there")
}

async fn rbac(client: &Client, limit: Duration) -> Finding {
    const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
    let asked = [
        (format!("{RBAC}/clusterroles/clusternet:agent"), "ClusterRole clusternet:agent"),
        (format!("{RBAC}/clusterrolebindings/clusternet:agent"), "ClusterRoleBinding clusternet:agent"),
        (
            format!("{RBAC}/namespaces/clusternet-system/rolebindings/clusternet:agent"),
            "RoleBinding clusternet:agent",
        ),
        (format!("{NAMESPACE}/serviceaccounts/{IMPERSONATOR_ACCOUNT}"), "the account that impersonates"),
        (
            format!("{RBAC}/clusterrolebindings/{IMPERSONATOR_ROLE}"),
            "ClusterRoleBinding clusternet:app:deployer",
        ),
    ]
    .map(|(path, name)| async move {
        there("agent rights", Code::ChildRbac, name, get(client, &path, limit).await.as_ref())
    });
    let role = format!("{RBAC}/clusterroles/{IMPERSONATOR_ROLE}");
    let (mut findings, role) = tokio::join!(join_all(asked), get(client, &role, limit));
    findings.push(impersonates(role.as_ref()));
    worst("agent rights", &findings, "roles and bindings are there")
}

fn there(check: &'static str, code: Code, name: &str, answer: Result<&Answer, &NoAnswer>) -> Finding {
    match answer {
        Ok(answer) if answer.is_ok() => Finding::ok(check, name),
        Ok(answer) if answer.status.as_u16() == 404 => {
            Finding::fail(check, code, format!("{name} is missing"))
        }
        Ok(answer) => Finding::warn(check, Code::Hidden, answer.said()),
        Err(error) => Finding::warn(check, Code::NoAnswer, error.to_string()),
    }
}

/// Either generation of rules (docs/impersonation.md).
fn impersonates(answer: Result<&Answer, &NoAnswer>) -> Finding {
    const CHECK: &str = "agent rights";
    let found = there(CHECK, Code::ChildRbac, "ClusterRole clusternet:app:deployer", answer);
    let Ok(answer) = answer else { return found };
    if found.level != Level::Ok {
        return found;
    }
    let none = Vec::new();
    let rules = answer.body["rules"].as_array().unwrap_or(&none);
    let has = |resource: &str| {
        rules.iter().any(|rule| {
            let list = |key: &str| rule[key].as_array().cloned().unwrap_or_default();
            list("resources").iter().any(|one| one == resource)
                && list("verbs").iter().any(|one| one == "impersonate" || one == "impersonate:user-info")
        })
    };
    match ["users", "groups"].into_iter().find(|resource| !has(resource)) {
        None => found,
        Some(missing) => Finding::fail(
            CHECK,
            Code::ChildRbac,
            format!("ClusterRole clusternet:app:deployer may not impersonate {missing}"),
        ),
    }
}

fn resolver(answer: Result<&Answer, &NoAnswer>) -> Finding {
    const CHECK: &str = "child dns";
    match answer {
        Ok(answer) if answer.is_ok() => {
            let subsets = answer.body["subsets"].as_array().map(Vec::as_slice).unwrap_or_default();
            let ready: usize =
                subsets.iter().filter_map(|one| one["addresses"].as_array()).map(Vec::len).sum();
            match ready {
                0 => Finding::fail(CHECK, Code::ChildDns, "Service kube-dns has no ready address"),
                ready => Finding::ok(CHECK, format!("{ready} servers")),
            }
        }
        Ok(answer) if answer.status.as_u16() == 404 => {
            Finding::warn(CHECK, Code::ChildDns, "there is no Service kube-dns; the nodes' DNS may do")
        }
        Ok(answer) => Finding::warn(CHECK, Code::Hidden, answer.said()),
        Err(error) => Finding::warn(CHECK, Code::NoAnswer, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ask::tests::answer;

    fn code(finding: &Finding) -> (Level, &str) {
        (finding.level, finding.code.as_deref().unwrap_or("ok"))
    }

    fn log_of(text: &str) -> Finding {
        let answer = Answer { text: text.to_owned(), ..answer(200, Value::Null) };
        log(Ok(&answer))
    }

    #[test]
    fn the_last_trouble_counts_unless_a_connection_came_after_it() {
        let connected =
            "2026-01-01T00:00:00Z  INFO agent::dial: connected tunnel=\"t\" hub=\"h\" version=\"0.1.0\"";
        let dns = "2026-01-01T00:00:00Z  WARN agent::trouble: in trouble code=TWL-A001 reason=no such name remedy=\"check DNS\"";
        assert_eq!(code(&log_of(&format!("{dns}\n{connected}"))), (Level::Ok, "ok"));
        let finding = log_of(&format!("{connected}\n{dns}"));
        assert_eq!(code(&finding), (Level::Fail, "TWL-A001"));
        assert_eq!((finding.message.as_str(), finding.remedy.as_str()), ("no such name", "check DNS"));
        let json = json!({ "level": "WARN", "message": "in trouble", "code": "TWL-A003", "reason": "other CA", "remedy": "invite again" });
        let finding = log_of(&json.to_string());
        assert_eq!((finding.code.as_deref(), finding.message.as_str()), (Some("TWL-A003"), "other CA"));
        assert_eq!(code(&log_of("TWL-Axyz TWL-A")), (Level::Ok, "ok"));
        assert_eq!(code(&log_of("TWL-A12ä")), (Level::Ok, "ok"));
    }

    #[test]
    fn a_pod_that_does_not_run_says_why() {
        let list = |pod: Value| answer(200, json!({ "items": [pod] }));
        let waiting = |reason: &str| json!({ "metadata": { "name": "a" }, "status": { "containerStatuses": [{ "state": { "waiting": { "reason": reason } } }] } });
        assert_eq!(code(&pods_run(Ok(&list(waiting("ImagePullBackOff"))))), (Level::Fail, "TWL-D038"));
        assert_eq!(code(&pods_run(Ok(&list(waiting("CrashLoopBackOff"))))), (Level::Fail, "TWL-D039"));
        let ready = |status: &str| {
            json!({ "metadata": { "name": "a" }, "status": { "conditions": [{ "type": "Ready", "status": status }],
                    "containerStatuses": [{ "state": { "running": {} } }] } })
        };
        assert_eq!(code(&pods_run(Ok(&list(ready("False"))))), (Level::Fail, "TWL-D026"));
        assert_eq!(code(&pods_run(Ok(&list(ready("True"))))), (Level::Ok, "ok"));
        assert_eq!(code(&pods_run(Ok(&answer(200, json!({ "items": [] }))))), (Level::Fail, "TWL-D039"));
        let both = answer(200, json!({ "items": [waiting("CrashLoopBackOff"), ready("True")] }));
        assert_eq!(code(&pods_run(Ok(&both))), (Level::Ok, "ok"));
    }

    #[test]
    fn a_deployment_is_missing_scaled_to_zero_or_there() {
        let with = |replicas: u64| answer(200, json!({ "spec": { "replicas": replicas } }));
        assert_eq!(code(&deployed(Ok(&with(0)))), (Level::Fail, "TWL-D037"));
        assert_eq!(code(&deployed(Ok(&with(1)))), (Level::Ok, "ok"));
        assert_eq!(code(&deployed(Ok(&with(2)))), (Level::Warn, "TWL-D029"));
        assert_eq!(code(&deployed(Ok(&answer(404, json!({}))))), (Level::Fail, "TWL-D036"));
    }

    #[test]
    fn either_generation_of_rules_impersonates() {
        let role = |verb: &str, groups: bool| {
            let resources = if groups { json!(["users", "groups"]) } else { json!(["users"]) };
            answer(200, json!({ "rules": [{ "resources": resources, "verbs": [verb] }] }))
        };
        assert_eq!(code(&impersonates(Ok(&role("impersonate", true)))), (Level::Ok, "ok"));
        assert_eq!(code(&impersonates(Ok(&role("impersonate:user-info", true)))), (Level::Ok, "ok"));
        assert_eq!(code(&impersonates(Ok(&role("impersonate", false)))), (Level::Fail, "TWL-D041"));
        assert_eq!(code(&impersonates(Ok(&role("get", true)))), (Level::Fail, "TWL-D041"));
    }

    #[test]
    fn dns_without_a_server_is_a_failure_and_another_dns_a_warning() {
        let some = json!({ "subsets": [{ "addresses": [{ "ip": "10.0.0.1" }] }] });
        assert_eq!(code(&resolver(Ok(&answer(200, some)))), (Level::Ok, "ok"));
        assert_eq!(code(&resolver(Ok(&answer(200, json!({}))))), (Level::Fail, "TWL-D042"));
        assert_eq!(code(&resolver(Ok(&answer(404, json!({}))))), (Level::Warn, "TWL-D042"));
    }

    #[test]
    fn the_last_warning_is_the_one_that_is_told() {
        let events = answer(
            200,
            json!({ "items": [
            { "type": "Warning", "reason": "FailedCreate", "message": "violates PodSecurity", "lastTimestamp": "2026-01-02T00:00:00Z" },
            { "type": "Warning", "reason": "Old", "message": "x", "lastTimestamp": "2026-01-01T00:00:00Z" },
            { "type": "Normal", "reason": "New", "message": "x", "lastTimestamp": "2026-01-03T00:00:00Z" },
        ] }),
        );
        assert_eq!(last_warning(&events).as_deref(), Some("FailedCreate: violates PodSecurity"));
    }
}
