//! kube-rs, with a kubeconfig that the hub issued and without a setting of its own.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::api::{
    Api, AttachParams, AttachedProcess, DeleteParams, LogParams, Patch, PatchParams, PostParams, WatchEvent,
    WatchParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;
use tests::process::own_timeout;
use tests::world::POD;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::access::Door;
use crate::stage::Stage;
use crate::tool::Report;

/// For what comes at once on an idle machine.
const SOON: Duration = Duration::from_secs(30);

pub(crate) async fn run(stage: &Stage) -> Report {
    let mut report = Report::default();
    let access = stage.access();
    let client = match client(&access.path, None).await {
        Ok(client) => client,
        Err(error) => {
            report.enter("", Err(error));
            return report;
        }
    };
    report.enter("list", list(&client).await);
    report.enter("missing", missing(&client).await);
    report.enter("write", write(&client).await);
    report.enter("watch", watch(&client).await);
    report.enter("log", log(&client).await);
    report.enter("exec", exec(&client).await);
    report.enter("exit-code", exit_code(&client).await);
    report.enter("root", root(&access.root).await);
    report.enter("wrong-token", wrong_token(&access.path).await);
    report
}

async fn client(door: &Door, token: Option<&str>) -> Result<Client> {
    let mut kubeconfig = Kubeconfig::read_from(&door.kubeconfig)?;
    if let (Some(token), Some(user)) = (token, kubeconfig.auth_infos.first_mut()) {
        user.auth_info.get_or_insert_default().token = Some(token.to_owned().into());
    }
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

async fn list(client: &Client) -> Result<()> {
    let namespaces = Api::<Namespace>::all(client.clone()).list(&Default::default()).await?;
    let there = namespaces.iter().any(|item| item.metadata.name.as_deref() == Some("kube-system"));
    ensure!(there, "no kube-system");
    Ok(())
}

async fn missing(client: &Client) -> Result<()> {
    match config_maps(client).get("nobody").await {
        Err(kube::Error::Api(status)) => {
            ensure!(status.code == 404 && status.reason == "NotFound", "{status:?}");
            Ok(())
        }
        other => bail!("{other:?}"),
    }
}

fn config_maps(client: &Client) -> Api<ConfigMap> {
    Api::namespaced(client.clone(), "default")
}

fn config_map(name: &str, value: &str) -> Result<ConfigMap> {
    Ok(serde_json::from_value(json!({ "metadata": { "name": name }, "data": { "key": value } }))?)
}

async fn write(client: &Client) -> Result<()> {
    let api = config_maps(client);
    api.create(&PostParams::default(), &config_map("kube-rs-written", "a")?).await?;
    let patch = Patch::Merge(json!({ "data": { "key": "b" } }));
    api.patch("kube-rs-written", &PatchParams::default(), &patch).await?;
    let found = api.get("kube-rs-written").await?;
    ensure!(
        found.data.unwrap_or_default().get("key").is_some_and(|value| value == "b"),
        "it was not changed"
    );
    api.delete("kube-rs-written", &DeleteParams::default()).await?;
    Ok(())
}

async fn watch(client: &Client) -> Result<()> {
    let api = config_maps(client);
    api.create(&PostParams::default(), &config_map("kube-rs-watched", "first")?).await?;
    let only = WatchParams::default().fields("metadata.name=kube-rs-watched");
    let mut events = api.watch(&only, "0").await?.boxed();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let event = own_timeout(SOON, events.try_next()).await.context("nothing more came")??;
        let (WatchEvent::Added(object) | WatchEvent::Modified(object)) = event.context("the watch ended")?
        else {
            continue;
        };
        seen.push(object.data.unwrap_or_default().remove("key").unwrap_or_default());
        if seen.len() == 1 {
            let patch = Patch::Merge(json!({ "data": { "key": "second" } }));
            api.patch("kube-rs-watched", &PatchParams::default(), &patch).await?;
        }
    }
    ensure!(seen == ["first", "second"], "{seen:?}");
    api.delete("kube-rs-watched", &DeleteParams::default()).await?;
    Ok(())
}

async fn log(client: &Client) -> Result<()> {
    let last = LogParams { tail_lines: Some(1), ..LogParams::default() };
    let line = Api::<Pod>::default_namespaced(client.clone()).logs(POD, &last).await?;
    ensure!(line.contains(':'), "{line:?}");
    Ok(())
}

async fn shell(client: &Client, script: &str) -> Result<AttachedProcess> {
    let pods = Api::<Pod>::namespaced(client.clone(), "default");
    let all = AttachParams::default().stdin(true).stdout(true).stderr(true);
    Ok(pods.exec(POD, ["sh", "-c", script], &all).await?)
}

async fn exec(client: &Client) -> Result<()> {
    let mut shell = shell(client, "read line; echo got $line; echo to stderr >&2").await?;
    let mut stdin = shell.stdin().context("stdin")?;
    stdin.write_all(b"from stdin\n").await?;
    stdin.flush().await?;
    let (mut stdout, mut stderr) = (shell.stdout().context("stdout")?, shell.stderr().context("stderr")?);
    let (mut said, mut warned) = (String::new(), String::new());
    let read =
        async { tokio::try_join!(stdout.read_to_string(&mut said), stderr.read_to_string(&mut warned)) };
    own_timeout(SOON, read).await.context("exec did not end")??;
    ensure!(said == "got from stdin\n" && warned == "to stderr\n", "{said:?} {warned:?}");
    own_timeout(SOON, shell.join()).await.context("the connection did not end")??;
    Ok(())
}

async fn exit_code(client: &Client) -> Result<()> {
    let mut shell = shell(client, "exit 7").await?;
    let status = shell.take_status().context("the status is there once")?;
    let status = own_timeout(SOON, status).await.context("no status came")?.context("no status")?;
    let causes = status.details.context("no details")?.causes.unwrap_or_default();
    let code = causes.iter().find(|cause| cause.reason.as_deref() == Some("ExitCode"));
    ensure!(code.is_some_and(|cause| cause.message.as_deref() == Some("7")), "{causes:?}");
    Ok(())
}

async fn root(door: &Door) -> Result<()> {
    let client = client(door, None).await?;
    list(&client).await?;
    exec(&client).await
}

async fn wrong_token(door: &Door) -> Result<()> {
    match list(&client(door, Some("wrong")).await?).await {
        Ok(()) => bail!("a wrong token is believed"),
        Err(error) => match error.downcast_ref::<kube::Error>() {
            Some(kube::Error::Api(status)) if status.code == 401 && status.reason == "Unauthorized" => Ok(()),
            _ => Err(error),
        },
    }
}
