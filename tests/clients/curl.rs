//! curl, with nothing but the address, the CA and the token of a kubeconfig: by HTTP/1.1 and by HTTP/2.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests::kubectl::Kubectl;
use tests::world::POD;

use crate::access::Door;
use crate::stage::Stage;
use crate::tool::Report;

/// For what comes at once on an idle machine.
const SOON: Duration = Duration::from_secs(30);
/// Set apart from the body, on a line of its own.
const TOLD: &str = "\n%{http_version} %{http_code}";

pub(crate) async fn run(stage: &Stage) -> Report {
    let mut report = Report::default();
    let access = stage.access();
    let curl = Curl { program: stage.at_gateway().with_binary("curl"), door: &access.path };
    report.enter("list", list(&curl).await);
    report.enter("missing", missing(&curl).await);
    report.enter("write", write(&curl).await);
    report.enter("watch", watch(&curl).await);
    report.enter("log", log(&curl).await);
    report.enter("root", list(&Curl { door: &access.root, ..curl.clone() }).await);
    report.enter("host", list(&Curl { door: &access.host, ..curl.clone() }).await);
    report.enter("wrong-token", wrong_token(&curl).await);
    report
}

#[derive(Clone)]
struct Curl<'a> {
    program: Kubectl,
    door: &'a Door,
}

/// What came: the version of HTTP, the code, the body.
struct Answer {
    version: String,
    code: u16,
    body: String,
}

impl Curl<'_> {
    fn arguments(&self, path: &str) -> Vec<String> {
        vec![
            "--silent".to_owned(),
            "--show-error".to_owned(),
            "--max-time".to_owned(),
            SOON.as_secs().to_string(),
            "--cacert".to_owned(),
            self.door.ca_file.display().to_string(),
            format!("{}{path}", self.door.server),
        ]
    }

    /// With the token of the kubeconfig.
    fn known(&self, path: &str) -> Vec<String> {
        let header = ["--header".to_owned(), format!("@{}", self.door.header_file.display())];
        [&header[..], &self.arguments(path)].concat()
    }

    async fn ask(&self, arguments: &[String], more: &[&str], body: &str) -> Result<Answer> {
        let told = ["--write-out", TOLD];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let said = self.program.ok_with(&[&arguments[..], &told].concat(), body.as_bytes()).await?;
        let (body, told) = said.rsplit_once('\n').unwrap_or((&said, ""));
        let (version, code) = told.split_once(' ').unwrap_or((told, ""));
        Ok(Answer { version: version.to_owned(), code: code.parse()?, body: body.to_owned() })
    }
}

async fn list(curl: &Curl<'_>) -> Result<()> {
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let answer = curl.ask(&curl.known("/api/v1/namespaces"), &[flag], "").await?;
        ensure!(answer.version == version, "{flag} got HTTP/{}", answer.version);
        ensure!(answer.code == 200 && answer.body.contains("\"kube-system\""), "{}", answer.body);
    }
    Ok(())
}

async fn missing(curl: &Curl<'_>) -> Result<()> {
    let answer = curl.ask(&curl.known("/api/v1/namespaces/default/configmaps/nobody"), &[], "").await?;
    let status: Value = serde_json::from_str(&answer.body)?;
    ensure!(answer.code == 404 && status["reason"] == "NotFound", "{} {status}", answer.code);
    Ok(())
}

async fn write(curl: &Curl<'_>) -> Result<()> {
    let (all, one) =
        ("/api/v1/namespaces/default/configmaps", "/api/v1/namespaces/default/configmaps/curl-written");
    let object = |value: &str| {
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "curl-written" }, "data": { "key": value } })
            .to_string()
    };
    let json = ["--header", "Content-Type: application/json", "--data", "@-"];
    let merge =
        ["--request", "PATCH", "--header", "Content-Type: application/merge-patch+json", "--data", "@-"];
    let created = curl.ask(&curl.known(all), &json, &object("a")).await?;
    ensure!(created.code == 201, "create: {} {}", created.code, created.body);
    let changed = curl.ask(&curl.known(one), &merge, r#"{"data":{"key":"b"}}"#).await?;
    ensure!(changed.code == 200, "patch: {} {}", changed.code, changed.body);
    let found: Value = serde_json::from_str(&curl.ask(&curl.known(one), &[], "").await?.body)?;
    ensure!(found["data"]["key"] == "b", "{found}");
    let deleted = curl.ask(&curl.known(one), &["--request", "DELETE"], "").await?;
    ensure!(deleted.code == 200, "delete: {} {}", deleted.code, deleted.body);
    Ok(())
}

async fn watch(curl: &Curl<'_>) -> Result<()> {
    let path = "/api/v1/namespaces/default/configmaps?watch=true&fieldSelector=metadata.name%3Dcurl-watched";
    let arguments = curl.known(path);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(["--no-buffer"]).collect();
    let mut events = curl.program.spawn(&arguments)?;
    let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "curl-watched" } })
        .to_string();
    let json = ["--header", "Content-Type: application/json", "--data", "@-"];
    let created = curl.ask(&curl.known("/api/v1/namespaces/default/configmaps"), &json, &object).await?;
    ensure!(created.code == 201, "create: {} {}", created.code, created.body);
    events.line_with(r#""type":"ADDED""#, SOON).await?;
    let one = curl.known("/api/v1/namespaces/default/configmaps/curl-watched");
    curl.ask(&one, &["--request", "DELETE"], "").await?;
    events.line_with(r#""type":"DELETED""#, SOON).await?;
    events.kill().await
}

async fn log(curl: &Curl<'_>) -> Result<()> {
    let path = format!("/api/v1/namespaces/default/pods/{POD}/log?tailLines=1");
    let answer = curl.ask(&curl.known(&path), &[], "").await?;
    ensure!(answer.code == 200 && answer.body.contains(':'), "{} {:?}", answer.code, answer.body);
    Ok(())
}

async fn wrong_token(curl: &Curl<'_>) -> Result<()> {
    for (what, more) in
        [("a wrong token", &["--header", "Authorization: Bearer wrong"][..]), ("no token", &[])]
    {
        let answer = curl.ask(&curl.arguments("/api/v1/namespaces"), more, "").await?;
        let status: Value = serde_json::from_str(&answer.body)?;
        ensure!(answer.code == 401, "{what}: {}", answer.code);
        ensure!(status["kind"] == "Status" && status["reason"] == "Unauthorized", "{what}: {status}");
    }
    Ok(())
}
