//! The parent and the hub in it: who you are there, versions, the hub's APIs and CRDs, its Deployment, its gateway.

use std::path::PathBuf;
use std::time::Duration;

use api::cluster::ManagedCluster;
use api::names::SYSTEM_NAMESPACE;
use api::registration::ClusterRegistrationRequest;
use futures::future::join_all;
use jiff::Timestamp;
use kube::{Client, Config, CustomResourceExt as _};
use serde_json::{Value, json};

use super::codes::Code;
use super::finding::{Finding, Level, worst};
use super::network;
use crate::ask::{Answer, NoAnswer, get, post};
use crate::output::shown;

/// Oldest Kubernetes that Towline is tested with (docs/compatibility.md).
const OLDEST: (u64, u64) = (1, 20);
/// The two that the hub serves.
const API_SERVICES: [&str; 2] = ["v1alpha1.proxies.clusternet.io", "v1alpha1.access.towline.io"];
/// Where the hub's Deployment is.
const HUB: &str = "/apis/apps/v1/namespaces/clusternet-system/deployments/clusternet-hub";

/// Who the parent takes the caller for. Servers before 1.28 cannot say (and RBAC there refuses what does not exist); that
/// they answer at all is the point.
pub(crate) async fn authentication(client: &Client, limit: Duration) -> Finding {
    let review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview" });
    let first = post(client, "/apis/authentication.k8s.io/v1/selfsubjectreviews", &review, limit).await;
    if let Ok(Answer { status, .. }) = &first
        && matches!(status.as_u16(), 403 | 404)
    {
        let review = json!({ "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                             "spec": { "nonResourceAttributes": { "path": "/version", "verb": "get" } } });
        let second =
            post(client, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &review, limit).await;
        return known(second.as_ref());
    }
    known(first.as_ref())
}

fn known(answer: Result<&Answer, &NoAnswer>) -> Finding {
    const CHECK: &str = "authentication";
    match answer {
        Err(error) => Finding::fail(CHECK, Code::NoAnswer, error.to_string()),
        Ok(answer) if answer.is_ok() => {
            let user = answer.body["status"]["userInfo"]["username"].as_str();
            Finding::ok(
                CHECK,
                user.map_or_else(|| "the parent knows you".to_owned(), |user| format!("you are {user}")),
            )
        }
        Ok(answer) if answer.status.as_u16() == 401 => {
            Finding::fail(CHECK, Code::Unauthenticated, answer.said())
        }
        Ok(answer) => Finding::warn(CHECK, Code::Hidden, answer.said()),
    }
}

/// Version and clock of the parent, from one answer.
pub(crate) async fn version(client: &Client, limit: Duration) -> Vec<Finding> {
    match get(client, "/version", limit).await {
        Ok(answer) => vec![
            kubernetes("parent version", &answer),
            network::clock("clock", answer.date, Timestamp::now()),
        ],
        Err(error) => vec![
            Finding::fail("parent version", Code::NoAnswer, error.to_string()),
            Finding::skipped("clock", "no answer"),
        ],
    }
}

/// Whether a Kubernetes is one that Towline is tested with.
pub(crate) fn kubernetes(check: &'static str, answer: &Answer) -> Finding {
    if !answer.is_ok() {
        return Finding::warn(check, Code::Hidden, answer.said());
    }
    let version = answer.body["gitVersion"].as_str().unwrap_or_default();
    match line(version) {
        Some(line) if line >= OLDEST => {
            Finding::ok(check, format!("{} in {} ms", shown(version), answer.took.as_millis()))
        }
        Some(_) => Finding::warn(check, Code::OldKubernetes, version),
        None => Finding::warn(check, Code::NoAnswer, "the answer names no version"),
    }
}

/// Major and minor of `v1.33.1-eks-abc` or `0.1.0`.
fn line(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.trim_start_matches('v').split('.');
    let number = |part: Option<&str>| {
        let part = part?;
        let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..end].parse().ok()
    };
    Some((number(parts.next())?, number(parts.next())?))
}

/// Whether a part of Towline goes with this command: the hub's rule for agents (its condition `AgentUpToDate`), the same
/// major version and minor versions at most one apart.
pub(crate) fn skew(check: &'static str, theirs: &str) -> Finding {
    let ours = env!("CARGO_PKG_VERSION");
    let near = |theirs: (u64, u64)| {
        line(ours).is_some_and(|ours| theirs.0 == ours.0 && theirs.1.abs_diff(ours.1) <= 1)
    };
    match line(theirs) {
        Some(theirs_line) if near(theirs_line) => Finding::ok(check, theirs),
        Some(_) => Finding::warn(check, Code::Skew, format!("it is {theirs}, this command is {ours}")),
        None => Finding::warn(check, Code::Hidden, format!("it does not say its version ({theirs:?})")),
    }
}

/// Whether the parent's aggregator reaches the hub.
pub(crate) async fn api_services(client: &Client, limit: Duration) -> Finding {
    let findings = join_all(API_SERVICES.map(|name| api_service(client, name, limit))).await;
    worst("apiservices", &findings, "both are Available")
}

async fn api_service(client: &Client, name: &str, limit: Duration) -> Finding {
    let path = format!("/apis/apiregistration.k8s.io/v1/apiservices/{name}");
    let finding = available(name, get(client, &path, limit).await.as_ref());
    if finding.code.as_deref() != Some(Code::Hidden.as_str()) {
        return finding;
    }
    // Discovery is for everybody, and the hub itself answers it.
    let (version, group) = name.split_once('.').unwrap_or_default();
    discovered(name, get(client, &format!("/apis/{group}/{version}"), limit).await.as_ref())
}

fn available(name: &str, answer: Result<&Answer, &NoAnswer>) -> Finding {
    const CHECK: &str = "apiservices";
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return Finding::fail(CHECK, Code::NoAnswer, error.to_string()),
    };
    match answer.status.as_u16() {
        200 => {}
        404 => return Finding::fail(CHECK, Code::NotInstalled, format!("there is no APIService {name}")),
        _ => return Finding::warn(CHECK, Code::Hidden, answer.said()),
    }
    let conditions = answer.body["status"]["conditions"].as_array();
    let available = conditions.into_iter().flatten().find(|one| one["type"] == "Available");
    match available {
        Some(one) if one["status"] == "True" => Finding::ok(CHECK, name),
        Some(one) => Finding::fail(
            CHECK,
            Code::Unavailable,
            format!("{name}: {}", one["message"].as_str().unwrap_or_default()),
        ),
        None => Finding::fail(CHECK, Code::Unavailable, format!("{name} has not been tried yet")),
    }
}

fn discovered(name: &str, answer: Result<&Answer, &NoAnswer>) -> Finding {
    const CHECK: &str = "apiservices";
    match answer {
        Ok(answer) if answer.is_ok() => Finding::ok(CHECK, name),
        Ok(answer) if answer.status.as_u16() == 404 => {
            Finding::fail(CHECK, Code::NotInstalled, format!("there is no API {name}"))
        }
        Ok(answer) => Finding::fail(CHECK, Code::Unavailable, format!("{name}: {}", answer.said())),
        Err(error) => Finding::fail(CHECK, Code::NoAnswer, error.to_string()),
    }
}

/// Whether the CRDs are there and know what this version writes.
pub(crate) async fn crds(client: &Client, limit: Duration) -> Finding {
    let ours = [ManagedCluster::crd(), ClusterRegistrationRequest::crd()];
    let findings = join_all(ours.map(|crd| async move {
        let name = crd.metadata.name.clone().unwrap_or_default();
        let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
        let ours = serde_json::to_value(&crd).unwrap_or_default();
        match get(client, &path, limit).await {
            Ok(answer) => crd_is(&name, &ours, &answer),
            Err(error) => Finding::fail("crds", Code::NoAnswer, error.to_string()),
        }
    }))
    .await;
    worst("crds", &findings, "both are there, of this version")
}

fn crd_is(name: &str, ours: &Value, answer: &Answer) -> Finding {
    const CHECK: &str = "crds";
    match answer.status.as_u16() {
        200 => {}
        404 => return Finding::fail(CHECK, Code::NotInstalled, format!("there is no CRD {name}")),
        _ => return Finding::warn(CHECK, Code::Hidden, answer.said()),
    }
    let schema = |crd: &Value| -> Value {
        let versions = crd["spec"]["versions"].as_array().cloned().unwrap_or_default();
        let served = versions.into_iter().find(|version| version["served"] == true);
        served.map_or(Value::Null, |version| version["schema"]["openAPIV3Schema"].clone())
    };
    match missing(&schema(ours), &schema(&answer.body), "") {
        None => Finding::ok(CHECK, name),
        Some(field) => Finding::warn(CHECK, Code::Crds, format!("{name} does not know {field}")),
    }
}

/// The first property of `ours` that `theirs` does not have.
fn missing(ours: &Value, theirs: &Value, at: &str) -> Option<String> {
    if let Some(properties) = ours["properties"].as_object() {
        for (name, inner) in properties {
            let at = format!("{at}.{name}");
            let Some(other) = theirs["properties"].get(name) else { return Some(at) };
            if let Some(found) = missing(inner, other, &at) {
                return Some(found);
            }
        }
    }
    if ours["items"].is_object() {
        return missing(&ours["items"], &theirs["items"], at);
    }
    None
}

/// The hub: its Deployment, its version, and its gateway if one is known.
pub(crate) async fn hub(client: &Client, limit: Duration, gateway: &GatewayAt) -> Vec<Finding> {
    let (deployment, openapi) = tokio::join!(
        get(client, HUB, limit),
        get(client, "/openapi/v3/apis/proxies.clusternet.io/v1alpha1", limit),
    );
    let known = gateway.url.clone().or_else(|| gateway_of(deployment.as_ref().ok()));
    vec![
        replicas("hub", deployment.as_ref()),
        hub_version(openapi.as_ref().ok(), deployment.as_ref().ok()),
        match known {
            None => Finding::ok("gateway", "none is known here (--gateway URL names one)"),
            Some(url) => of_gateway(&url, gateway.ca.clone(), limit).await,
        },
    ]
}

/// Where a person says that the gateway is.
#[derive(Debug, Clone, Default)]
pub(crate) struct GatewayAt {
    /// `https://…`
    pub(crate) url: Option<String>,
    /// Its CA, if not one that every tool trusts.
    pub(crate) ca: Option<PathBuf>,
}

/// Whether a Deployment of Towline has ready replicas.
fn replicas(check: &'static str, answer: Result<&Answer, &NoAnswer>) -> Finding {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return Finding::warn(check, Code::NoAnswer, error.to_string()),
    };
    match answer.status.as_u16() {
        200 => {}
        404 => {
            return Finding::ok(check, format!("no Deployment in {SYSTEM_NAMESPACE}: it runs elsewhere"));
        }
        _ => return Finding::warn(check, Code::Hidden, answer.said()),
    }
    let wanted = answer.body["spec"]["replicas"].as_u64().unwrap_or(1);
    let ready = answer.body["status"]["readyReplicas"].as_u64().unwrap_or(0);
    let told = format!("{ready} of {wanted} ready");
    match ready {
        0 => Finding::fail(check, Code::Hub, told),
        ready if ready < wanted => Finding::warn(check, Code::Hub, told),
        _ => Finding::ok(check, told),
    }
}

/// From its OpenAPI, which parents from 1.27 on serve, else from the image of its Deployment.
fn hub_version(openapi: Option<&Answer>, deployment: Option<&Answer>) -> Finding {
    const CHECK: &str = "hub version";
    let said = openapi.and_then(|answer| answer.body["info"]["version"].as_str());
    let image = deployment
        .and_then(|answer| answer.body["spec"]["template"]["spec"]["containers"][0]["image"].as_str());
    let tag = image.and_then(|image| image.rsplit_once(':')).map(|(_, tag)| tag);
    match said.or(tag) {
        Some(version) => skew(CHECK, version),
        None => Finding::warn(CHECK, Code::Hidden, "neither its OpenAPI nor its Deployment says it"),
    }
}

fn gateway_of(deployment: Option<&Answer>) -> Option<String> {
    let containers = deployment?.body["spec"]["template"]["spec"]["containers"].as_array()?;
    let env = containers.iter().filter_map(|container| container["env"].as_array()).flatten();
    let mut urls = env.filter(|one| one["name"] == "TOWLINE_GATEWAY_URL");
    urls.next().and_then(|one| one["value"].as_str()).map(str::to_owned)
}

async fn of_gateway(url: &str, ca: Option<PathBuf>, limit: Duration) -> Finding {
    let broken = |why: String| Finding::fail("gateway", Code::Gateway, format!("{}: {why}", shown(url)));
    let uri: http::Uri = match url.parse() {
        Ok(uri) => uri,
        Err(error) => return broken(format!("it is no address: {error}")),
    };
    if uri.scheme_str() != Some("https") {
        return broken("a token must not travel without TLS".to_owned());
    }
    let mut config = Config::new(uri);
    let has_ca = ca.is_some();
    config.root_cert_file = ca;
    config.default_retry = false;
    let way = network::way(&config, limit, Timestamp::now()).await;
    let worst = of_ca(worst("gateway", &way, ""), url, has_ca);
    // Nothing more can be asked of a server that is not verified.
    if worst.level == Level::Fail || worst.code.as_deref() == Some(Code::TlsIssuer.as_str()) {
        return worst;
    }
    let client = match Client::try_from(config) {
        Ok(client) => client,
        Err(error) => return broken(crate::ask::innermost(&error)),
    };
    match get(&client, "/livez", limit).await {
        Ok(answer) if answer.is_ok() && worst.level == Level::Ok => {
            Finding::ok("gateway", format!("{} in {} ms", shown(url), answer.took.as_millis()))
        }
        Ok(answer) if answer.is_ok() => worst,
        Ok(answer) => broken(format!("/livez answers {}", answer.said())),
        Err(error) => broken(error.to_string()),
    }
}

/// Without its CA nothing is known of a gateway whose certificate the hub has made itself, which is the usual one. The CA
/// stands in a Secret beside the keys, so it is not looked up from here.
fn of_ca(found: Finding, url: &str, has_ca: bool) -> Finding {
    if has_ca || found.code.as_deref() != Some(Code::TlsIssuer.as_str()) {
        return found;
    }
    Finding {
        remedy: "name the CA: --gateway-ca FILE; for the hub's own certificate it is ca.crt of Secret \
                 clusternet-hub-gateway-tls in clusternet-system, and stands in every kubeconfig of the hub"
            .to_owned(),
        ..Finding::warn(found.check, Code::TlsIssuer, format!("{}: its CA is not known here", shown(url)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::tests::answer;

    fn code(finding: &Finding) -> (Level, &str) {
        (finding.level, finding.code.as_deref().unwrap_or("ok"))
    }

    #[test]
    fn who_you_are_is_told_from_who_you_are_not() {
        let review = json!({ "status": { "userInfo": { "username": "alice" } } });
        assert_eq!(known(Ok(&answer(201, review))).message, "you are alice");
        assert_eq!(code(&known(Ok(&answer(201, json!({}))))), (Level::Ok, "ok"));
        assert_eq!(code(&known(Ok(&answer(401, json!({}))))), (Level::Fail, "TWL-D013"));
        assert_eq!(code(&known(Ok(&answer(403, json!({}))))), (Level::Warn, "TWL-D001"));
        assert_eq!(code(&known(Err(&NoAnswer::Late(Duration::from_secs(1))))), (Level::Fail, "TWL-D003"));
    }

    #[test]
    fn versions_are_compared_by_their_line() {
        let version = |text: &str| answer(200, json!({ "gitVersion": text }));
        for (text, level) in [
            ("v1.33.1", Level::Ok),
            ("v1.20.2", Level::Ok),
            ("v1.30+", Level::Ok),
            ("v2.0.0-eks-1", Level::Ok),
            ("v1.19.16", Level::Warn),
            ("", Level::Warn),
        ] {
            assert_eq!(kubernetes("v", &version(text)).level, level, "{text}");
        }
        assert_eq!(code(&skew("v", concat!("v", env!("CARGO_PKG_VERSION")))), (Level::Ok, "ok"));
        let (major, minor) = line(env!("CARGO_PKG_VERSION")).unwrap();
        for (major, minor, level) in [
            (major, minor + 1, Level::Ok),
            (major, minor.saturating_sub(1), Level::Ok),
            (major, minor + 2, Level::Warn),
            (major + 1, minor, Level::Warn),
        ] {
            assert_eq!(skew("v", &format!("v{major}.{minor}.9")).level, level, "{major}.{minor}");
        }
        assert_eq!(code(&skew("v", "99.0.0")), (Level::Warn, "TWL-D018"));
        assert_eq!(code(&skew("v", "latest")), (Level::Warn, "TWL-D001"));
    }

    #[test]
    fn an_api_service_is_available_missing_or_refused() {
        let with = |status: &str| json!({ "status": { "conditions": [{ "type": "Available", "status": status, "message": "no route" }] } });
        for (given, wanted) in [
            (answer(200, with("True")), (Level::Ok, "ok")),
            (answer(200, with("False")), (Level::Fail, "TWL-D016")),
            (answer(200, json!({})), (Level::Fail, "TWL-D016")),
            (answer(404, json!({})), (Level::Fail, "TWL-D015")),
            (answer(403, json!({})), (Level::Warn, "TWL-D001")),
        ] {
            assert_eq!(code(&available("x", Ok(&given))), wanted, "{given:?}");
        }
        assert_eq!(code(&discovered("x", Ok(&answer(503, json!({}))))), (Level::Fail, "TWL-D016"));
        assert_eq!(code(&discovered("x", Ok(&answer(200, json!({}))))), (Level::Ok, "ok"));
    }

    #[test]
    fn an_older_crd_is_found_by_what_it_does_not_know() {
        let ours = serde_json::to_value(ManagedCluster::crd()).unwrap();
        assert_eq!(code(&crd_is("x", &ours, &answer(200, ours.clone()))), (Level::Ok, "ok"));
        let mut older = ours.clone();
        let schema = &mut older["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        schema["properties"]["status"]["properties"].as_object_mut().unwrap().remove("policy");
        let finding = crd_is("x", &ours, &answer(200, older));
        assert_eq!(code(&finding), (Level::Warn, "TWL-D017"));
        assert!(finding.message.ends_with(".status.policy"), "{finding:?}");
        assert_eq!(code(&crd_is("x", &ours, &answer(404, json!({})))), (Level::Fail, "TWL-D015"));
    }

    #[test]
    fn a_hub_without_a_ready_pod_is_a_failure_and_one_that_runs_elsewhere_is_none() {
        let with = |ready: u64| {
            answer(200, json!({ "spec": { "replicas": 2 }, "status": { "readyReplicas": ready } }))
        };
        assert_eq!(code(&replicas("hub", Ok(&with(0)))), (Level::Fail, "TWL-D021"));
        assert_eq!(code(&replicas("hub", Ok(&with(1)))), (Level::Warn, "TWL-D021"));
        assert_eq!(code(&replicas("hub", Ok(&with(2)))), (Level::Ok, "ok"));
        assert_eq!(code(&replicas("hub", Ok(&answer(404, json!({}))))), (Level::Ok, "ok"));
    }

    #[test]
    fn a_gateway_whose_ca_nobody_has_named_is_no_failure() {
        let unknown = || Finding::fail("gateway", Code::TlsIssuer, "unknown issuer");
        let found = of_ca(unknown(), "https://g", false);
        assert_eq!(code(&found), (Level::Warn, "TWL-D008"));
        assert!(
            found.remedy.contains("--gateway-ca FILE") && found.remedy.contains("clusternet-hub-gateway-tls")
        );
        // The CA that was named is the wrong one, or something else is wrong.
        assert_eq!(of_ca(unknown(), "https://g", true), unknown());
        let expired = Finding::fail("gateway", Code::TlsExpiry, "expired");
        assert_eq!(of_ca(expired.clone(), "https://g", false), expired);
    }

    #[test]
    fn version_and_gateway_of_the_hub_are_read_from_its_deployment() {
        let image = format!("registry:5000/towline:{}", env!("CARGO_PKG_VERSION"));
        let deployment = answer(
            200,
            json!({ "spec": { "template": { "spec": { "containers": [{ "image": image, "env": [
                { "name": "TOWLINE_PUBLIC_URL", "value": "https://p" },
                { "name": "TOWLINE_GATEWAY_URL", "value": "https://g" } ] }] } } } }),
        );
        assert_eq!(gateway_of(Some(&deployment)).as_deref(), Some("https://g"));
        assert_eq!(hub_version(None, Some(&deployment)).level, Level::Ok);
        let newer = answer(200, json!({ "info": { "version": "v99.1.0" } }));
        assert_eq!(code(&hub_version(Some(&newer), Some(&deployment))), (Level::Warn, "TWL-D018"));
        assert_eq!(code(&hub_version(None, None)), (Level::Warn, "TWL-D001"));
    }
}
