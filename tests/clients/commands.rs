//! What people do with kubectl, each command with a check that it did what it says. Nothing in here knows whether
//! the child is reached through the hub or directly.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tests::kubectl::Kubectl;
use tests::process::wait_until;
use tests::world::POD;

/// For what comes at once on an idle machine.
const SOON: Duration = Duration::from_secs(30);

/// One kubectl, with what a command needs beside it.
#[derive(Debug)]
pub(crate) struct Client {
    /// Of the version that is tried, by the way that is tried.
    pub(crate) kubectl: Kubectl,
    /// The same by an address without a path, if there is one.
    pub(crate) by_root: Option<Kubectl>,
    /// Writes into the child, for a watch to see.
    pub(crate) writer: Kubectl,
    /// curl on the side where `kubectl` runs: it reaches what a port-forward opens there.
    pub(crate) curl: Kubectl,
    /// For files that are copied.
    pub(crate) directory: PathBuf,
    /// Part of the names of objects, so that no two clients meet.
    pub(crate) mark: String,
}

/// What is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Get,
    Watch,
    Apply,
    ServerSideApply,
    Explain,
    ApiResources,
    Logs,
    Exec,
    Copy,
    PortForward,
    Proxy,
    Root,
}

impl Command {
    /// At the gateway alone: what a tool does that drops the path of an address, as `kubectl proxy` does by itself.
    pub(crate) const GATEWAY: [Self; 2] = [Self::Proxy, Self::Root];
    pub(crate) const ALL: [Self; 10] = [
        Self::Get,
        Self::Watch,
        Self::Apply,
        Self::ServerSideApply,
        Self::Explain,
        Self::ApiResources,
        Self::Logs,
        Self::Exec,
        Self::Copy,
        Self::PortForward,
    ];

    /// As the table calls it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Watch => "get --watch",
            Self::Apply => "apply",
            Self::ServerSideApply => "apply --server-side",
            Self::Explain => "explain",
            Self::ApiResources => "api-resources",
            Self::Logs => "logs -f",
            Self::Exec => "exec -i, exit code",
            Self::Copy => "cp, both ways",
            Self::PortForward => "port-forward",
            Self::Proxy => "proxy, which drops the path",
            Self::Root => "address without a path",
        }
    }

    /// The trial's name.
    pub(crate) fn promise(self) -> &'static str {
        match self {
            Self::Get => "gets_and_lists",
            Self::Watch => "sees_a_change_in_a_watch",
            Self::Apply => "applies",
            Self::ServerSideApply => "applies_on_the_server_side",
            Self::Explain => "explains_the_childs_types",
            Self::ApiResources => "lists_the_childs_resources",
            Self::Logs => "follows_a_log",
            Self::Exec => "carries_stdin_and_the_exit_code_of_exec",
            Self::Copy => "copies_a_file_both_ways",
            Self::PortForward => "fetches_a_page_through_port_forward",
            Self::Proxy => "reaches_the_same_cluster_where_it_drops_the_path",
            Self::Root => "works_by_an_address_without_a_path",
        }
    }

    /// Whether there has to be a node.
    pub(crate) fn needs_a_pod(self) -> bool {
        match self {
            Self::Logs | Self::Exec | Self::Copy | Self::PortForward | Self::Root => true,
            Self::Get
            | Self::Watch
            | Self::Apply
            | Self::ServerSideApply
            | Self::Explain
            | Self::ApiResources
            | Self::Proxy => false,
        }
    }

    pub(crate) async fn try_it(self, client: &Client) -> Result<()> {
        match self {
            Self::Get => get(client).await,
            Self::Watch => watch(client).await,
            Self::Apply => apply(client).await,
            Self::ServerSideApply => server_side_apply(client).await,
            Self::Explain => explain(client).await,
            Self::ApiResources => api_resources(client).await,
            Self::Logs => logs(client).await,
            Self::Exec => exec(client).await,
            Self::Copy => copy(client).await,
            Self::PortForward => port_forward(client).await,
            Self::Proxy => proxy(client).await,
            Self::Root => root(client).await,
        }
    }
}

fn config_map(name: &str, value: &str) -> String {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "key": value } })
        .to_string()
}

async fn get(client: &Client) -> Result<()> {
    let named = client.kubectl.ok(&["get", "namespace", "kube-system", "-o", "jsonpath={.status.phase}"]);
    let phase = named.await?;
    ensure!(phase == "Active", "the phase of kube-system is {phase:?}");
    let listed = client.kubectl.ok(&["get", "namespaces"]).await?;
    ensure!(listed.contains("kube-system") && listed.contains("STATUS"), "{listed}");
    let missing = client.kubectl.run(&["get", "configmap", "nobody"], b"").await?;
    ensure!(missing.code == 1 && missing.stderr.contains("NotFound"), "{missing:?}");
    Ok(())
}

async fn watch(client: &Client) -> Result<()> {
    let name = format!("watched-{}", client.mark);
    client.writer.apply(&config_map(&name, "first")).await?;
    let columns = "custom-columns=KEY:.data.key";
    let mut watch =
        client.kubectl.spawn(&["get", "configmap", &name, "--watch", "--no-headers", "-o", columns])?;
    watch.line_with("first", SOON).await?;
    client.writer.apply(&config_map(&name, "second")).await?;
    watch.line_with("second", SOON).await?;
    watch.kill().await
}

async fn apply(client: &Client) -> Result<()> {
    let name = format!("applied-{}", client.mark);
    let created = client.kubectl.apply(&config_map(&name, "a")).await?;
    ensure!(created.contains("created"), "{created}");
    let changed = client.kubectl.apply(&config_map(&name, "b")).await?;
    ensure!(changed.contains("configured"), "{changed}");
    holds(client, &name, "b").await
}

async fn server_side_apply(client: &Client) -> Result<()> {
    let name = format!("applied-by-the-server-{}", client.mark);
    for value in ["a", "b"] {
        let applied = client
            .kubectl
            .ok_with(&["apply", "--server-side", "-f", "-"], config_map(&name, value).as_bytes())
            .await?;
        ensure!(applied.contains("serverside-applied"), "{applied}");
    }
    let managers = "jsonpath={.metadata.managedFields[*].operation}";
    let managed =
        client.writer.ok(&["get", "configmap", &name, "--show-managed-fields", "-o", managers]).await?;
    ensure!(managed == "Apply", "the fields were written by {managed:?}");
    holds(client, &name, "b").await
}

/// What is in the child, read by another client; and the object is removed by this one.
async fn holds(client: &Client, name: &str, value: &str) -> Result<()> {
    let found = client.writer.ok(&["get", "configmap", name, "-o", "jsonpath={.data.key}"]).await?;
    ensure!(found == value, "the child holds {found:?}");
    client.kubectl.ok(&["delete", "configmap", name]).await?;
    Ok(())
}

async fn explain(client: &Client) -> Result<()> {
    let explained = client.kubectl.ok(&["explain", "pod.spec.containers"]).await?;
    ensure!(explained.contains("imagePullPolicy"), "{explained}");
    Ok(())
}

async fn api_resources(client: &Client) -> Result<()> {
    let resources = client.kubectl.ok(&["api-resources", "-o", "name"]).await?;
    ensure!(resources.contains("deployments.apps"), "{resources}");
    // The child's discovery is the child's: the hub's own groups are not in it.
    ensure!(!resources.contains("clusternet.io"), "{resources}");
    Ok(())
}

async fn logs(client: &Client) -> Result<()> {
    let mut logs = client.kubectl.spawn(&["logs", "-f", POD, "--tail=1"])?;
    // The pod writes a line a second; three of them cannot have been there before.
    for _ in 0..3 {
        logs.line(SOON).await?.context("the log ended")?;
    }
    logs.kill().await
}

async fn exec(client: &Client) -> Result<()> {
    let script = "cat; echo to stderr >&2; exit 7";
    let output = client.kubectl.run(&["exec", "-i", POD, "--", "sh", "-c", script], b"from stdin\n").await?;
    ensure!(output.stdout == "from stdin\n", "{output:?}");
    ensure!(output.stderr.contains("to stderr") && output.code == 7, "{output:?}");
    Ok(())
}

async fn copy(client: &Client) -> Result<()> {
    let (up, down) = (client.directory.join("up"), client.directory.join("down"));
    let content: String = (0..60_000).map(|line| format!("line {line} of {}\n", client.mark)).collect();
    std::fs::write(&up, &content)?;
    let there = format!("{POD}:/tmp/{}", client.mark);
    client.kubectl.ok(&["cp", &up.display().to_string(), &there]).await?;
    client.kubectl.ok(&["cp", &there, &down.display().to_string()]).await?;
    let back = std::fs::read(&down).context("what was copied back")?;
    std::fs::remove_file(&down)?;
    ensure!(back == content.as_bytes(), "{} bytes went, {} came back", content.len(), back.len());
    Ok(())
}

async fn port_forward(client: &Client) -> Result<()> {
    let page = format!("a page for {}", client.mark);
    let script = format!("mkdir -p /www; echo {page} > /www/{}.html", client.mark);
    client.writer.ok(&["exec", POD, "--", "sh", "-c", &script]).await?;
    let mut forward = client.kubectl.spawn(&["port-forward", &format!("pod/{POD}"), ":8080"])?;
    let line = forward.line_with("Forwarding from 127.0.0.1:", SOON).await?;
    let port = line
        .split_once("127.0.0.1:")
        .and_then(|(_, rest)| rest.split(' ').next())
        .with_context(|| format!("no port in {line:?}"))?;
    let url = format!("http://127.0.0.1:{port}/{}.html", client.mark);
    wait_until("the page", SOON, async || {
        let fetched =
            client.curl.ok(&["--silent", "--show-error", "--fail", "--max-time", "5", &url]).await?;
        if fetched.trim() == page { Ok(()) } else { bail!("{fetched:?}") }
    })
    .await?;
    forward.kill().await
}

async fn proxy(client: &Client) -> Result<()> {
    let wanted =
        client.writer.ok(&["get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}"]).await?;
    let mut proxy = client.kubectl.spawn(&["proxy", "--port=0"])?;
    let line = proxy.line_with("Starting to serve on ", SOON).await?;
    let (_, address) = line.rsplit_once(' ').with_context(|| format!("no address in {line:?}"))?;
    let url = format!("http://{address}/api/v1/namespaces/kube-system");
    let fetched = client.curl.ok(&["--silent", "--show-error", "--max-time", "5", &url]).await?;
    // An error would name the cluster by the same id.
    let found: Value = serde_json::from_str(&fetched)?;
    let ours = found["kind"] == "Namespace" && found["metadata"]["uid"] == wanted.as_str();
    ensure!(ours, "it is not the child's kube-system: {fetched}");
    proxy.kill().await
}

async fn root(client: &Client) -> Result<()> {
    let kubectl = client.by_root.as_ref().unwrap_or(&client.kubectl);
    let listed = kubectl.ok(&["get", "pods", "-o", "name"]).await?;
    ensure!(listed.contains(POD), "{listed}");
    let said = kubectl.ok_with(&["exec", "-i", POD, "--", "cat"], b"by the token alone").await?;
    ensure!(said == "by the token alone", "{said:?}");
    Ok(())
}
