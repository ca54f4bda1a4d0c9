//! Kubeconfigs as an API and in the command line: each form that kubectl can run, run by kubectl, and a person's own
//! kubeconfig, which keeps what stands in it.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tests::kubectl::Kubectl;
use tests::world::{CHILD, World};

use crate::Outcome;

/// Asks the hub as the parent's administrator; the answer's status.
async fn issue(world: &World, spec: Value) -> anyhow::Result<Value> {
    let request = json!({ "apiVersion": "access.towline.io/v1alpha1", "kind": "KubeconfigRequest",
        "metadata": { "name": "wanted" }, "spec": spec });
    let command = ["create", "-f", "-", "-o", "json"];
    let answer = world.parent().kubectl().ok_with(&command, request.to_string().as_bytes()).await?;
    Ok(serde_json::from_str::<Value>(&answer)?["status"].clone())
}

fn text<'a>(value: &'a Value, pointer: &str) -> anyhow::Result<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).with_context(|| format!("no {pointer}"))
}

fn yaml(text: &str) -> anyhow::Result<Value> {
    Ok(serde_saphyr::from_str(text)?)
}

/// Whether kubectl reaches the child with this, at once, and is what it was issued as.
async fn reaches(world: &World, name: &str, kubeconfig: &str) -> Outcome {
    let path = world.gateway().keep(name, kubeconfig)?;
    let kubectl = Kubectl::new(world.binaries(), world.scratch(), &path);
    let pods = kubectl.ok(&["get", "pods", "-o", "name"]).await.with_context(|| name.to_owned())?;
    ensure!(pods.contains("pod/web"), "{name}: {pods}");
    let refused = kubectl.run(&["delete", "pod", "web", "--dry-run=server"], b"").await?;
    ensure!(refused.code != 0 && refused.stderr.contains("clusternet:service:tool"), "{name}: {refused:?}");
    Ok(())
}

/// A kubeconfig of what a tool holds instead.
fn kubeconfig(server: &str, ca_base64: &str, token: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{ "name": "x", "cluster": { "server": server, "certificate-authority-data": ca_base64 } }],
        "users": [{ "name": "x", "user": { "token": token } }],
        "contexts": [{ "name": "x", "context": { "cluster": "x", "user": "x" } }],
    })
    .to_string()
}

pub(crate) async fn every_format_that_kubectl_can_run_reaches_the_child(world: &mut World) -> Outcome {
    let ask = |format: &str, address: Option<&str>| {
        let mut spec = json!({ "cluster": CHILD, "role": "view", "service": "tool", "format": format });
        if let Some(address) = address {
            spec["address"] = address.into();
        }
        issue(world, spec)
    };
    for address in ["path", "root"] {
        let made = ask("kubeconfig", Some(address)).await?;
        reaches(world, address, text(&made, "/content")?).await?;
    }

    let flux = ask("flux-secret", None).await?;
    let secret = yaml(text(&flux, "/content")?)?;
    reaches(world, "flux", text(&secret, "/stringData/value")?).await?;

    let argo = ask("argocd-secret", None).await?;
    let secret = yaml(text(&argo, "/content")?)?;
    let config: Value = serde_json::from_str(text(&secret, "/stringData/config")?)?;
    let (ca, token) = (text(&config, "/tlsClientConfig/caData")?, text(&config, "/bearerToken")?);
    reaches(world, "argocd", &kubeconfig(text(&secret, "/stringData/server")?, ca, token)).await?;

    let exports = ask("env", None).await?;
    let [host, token, ca] = sourced(text(&exports, "/content")?).await?;
    reaches(world, "env", &kubeconfig(&host, &tests::world::base64(&ca), &token)).await?;

    // TKEStack uploads the kubeconfig; its objects lead to the same place.
    let tke = ask("tkestack", Some("root")).await?;
    reaches(world, "tkestack", text(&tke, "/kubeconfig")?).await?;
    let content = text(&tke, "/content")?;
    for line in
        [format!("API Server: {}", text(&tke, "/server")?), format!("Token: {}", text(&tke, "/token")?)]
    {
        ensure!(content.lines().any(|there| there == line), "{line}");
    }

    let terraform = ask("terraform", None).await?;
    let hcl = text(&terraform, "/content")?;
    ensure!(!hcl.contains(text(&terraform, "/token")?), "the token stands in what is committed");
    ensure!(hcl.contains(&format!("host                   = \"{}\"", text(&terraform, "/server")?)), "{hcl}");

    for (format, address) in [("argocd-secret", "root"), ("tkestack", "path")] {
        let refused = ask(format, Some(address)).await.err().map(|error| format!("{error:#}"));
        ensure!(
            refused.as_ref().is_some_and(|said| said.contains("use ")),
            "{format} {address}: {refused:?}"
        );
    }
    Ok(())
}

/// What a shell holds after it has read this.
async fn sourced(exports: &str) -> anyhow::Result<[String; 3]> {
    let print = "\nprintf '%s\\0%s\\0%s' \"$KUBE_HOST\" \"$KUBE_TOKEN\" \"$KUBE_CLUSTER_CA_CERT_DATA\"\n";
    let mut shell = tokio::process::Command::new("sh")
        .arg("-s")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut input = shell.stdin.take().context("standard input is piped")?;
    tokio::io::AsyncWriteExt::write_all(&mut input, format!("{exports}{print}").as_bytes()).await?;
    drop(input);
    let output = String::from_utf8(shell.wait_with_output().await?.stdout)?;
    let values: Vec<String> = output.split('\0').map(str::to_owned).collect();
    values.try_into().map_err(|values| anyhow::anyhow!("{values:?}"))
}

/// kubectl, or the plugin itself, as a person has both: the plugin on PATH, a home and a cache of their own.
fn at_home(world: &World, home: &Path, kubeconfig: &Path) -> anyhow::Result<Kubectl> {
    let folder = |path: &Path| path.parent().map(|folder| folder.display().to_string()).unwrap_or_default();
    let path = format!("{}:{}:/usr/bin:/bin", folder(&world.binaries().kubectl), folder(world.cli_path()));
    let cache = home.join("cache").display().to_string();
    Ok(Kubectl::new(world.binaries(), world.scratch(), kubeconfig)
        .with_env("PATH", &path)
        .with_env("XDG_CACHE_HOME", &cache))
}

/// The parent administrator's kubeconfig with somebody else's entries in it, in a home of its own.
async fn home(world: &World, name: &str) -> anyhow::Result<(PathBuf, PathBuf)> {
    let home = world.scratch().directory(name)?;
    let raw = world.parent().kubectl().ok(&["config", "view", "--raw", "--flatten", "-o", "json"]).await?;
    let mut config: Value = serde_json::from_str(&raw)?;
    for (list, entry) in [
        (
            "clusters",
            json!({ "name": "other", "cluster": { "server": "https://other:6443", "x-own": ["a"] } }),
        ),
        ("users", json!({ "name": "other", "user": { "token": "0123", "x-own": "yes" } })),
        (
            "contexts",
            json!({ "name": "other", "context": { "cluster": "other", "user": "other", "namespace": "n" } }),
        ),
    ] {
        config[list].as_array_mut().context("a list")?.push(entry);
    }
    let path = home.join("config");
    std::fs::write(&path, config.to_string())?;
    #[cfg(unix)]
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok((home, path))
}

async fn credentials(world: &World) -> anyhow::Result<usize> {
    let list = world.parent().kubectl().ok(&["get", "--raw", api::names::CREDENTIALS_PATH]).await?;
    let list: Value = serde_json::from_str(&list)?;
    Ok(list["items"].as_array().context("a list")?.len())
}

pub(crate) async fn a_kubeconfig_with_a_command_gets_short_tokens_and_keeps_them(
    world: &mut World,
) -> Outcome {
    let (home, parent) = home(world, "exec").await?;
    let towline = at_home(world, &home, &parent)?.with_binary(world.cli_path());
    let made = home.join("edge.kubeconfig");
    let out = made.display().to_string();
    let arguments =
        ["kubeconfig", CHILD, "--for", "exec", "--role", "view", "--service", "tool", "--out", &out];
    towline.ok(&arguments).await?;
    let written = std::fs::read_to_string(&made)?;
    ensure!(!written.contains("twl-") && written.contains("exec-credential"), "{written}");

    let before = credentials(world).await?;
    let kubectl = at_home(world, &home, &made)?;
    for _ in 0..3 {
        let pods = kubectl.ok(&["get", "pods", "-o", "name"]).await?;
        ensure!(pods.contains("pod/web"), "{pods}");
    }
    let refused = kubectl.run(&["delete", "pod", "web", "--dry-run=server"], b"").await?;
    ensure!(refused.code != 0 && refused.stderr.contains("clusternet:service:tool"), "{refused:?}");
    ensure!(credentials(world).await? == before + 1, "one token for four commands");

    // As a client asks that reads a ClusterProfile.
    let info = json!({ "apiVersion": "client.authentication.k8s.io/v1beta1", "kind": "ExecCredential",
        "spec": { "interactive": false, "cluster": { "server": "x", "config": { "clusterName": CHILD } } } });
    let asked = towline.with_env("KUBERNETES_EXEC_INFO", &info.to_string());
    let answer: Value = serde_json::from_str(&asked.ok(&["exec-credential", "--role", "view"]).await?)?;
    ensure!(answer["apiVersion"] == info["apiVersion"] && answer["kind"] == "ExecCredential", "{answer}");
    ensure!(text(&answer, "/status/token")?.starts_with("twl-"));
    let unknown = asked.run(&["exec-credential", "nowhere"], b"").await?;
    ensure!(unknown.code == 3 && unknown.stdout.is_empty(), "{unknown:?}");
    Ok(())
}

pub(crate) async fn what_stands_in_a_kubeconfig_outlives_use_and_merge(world: &mut World) -> Outcome {
    let (home, path) = home(world, "use").await?;
    let read = || -> anyhow::Result<Value> { yaml(&std::fs::read_to_string(&path)?) };
    let old = read()?;
    let parent = text(&old, "/current-context")?.to_owned();
    let kubectl = at_home(world, &home, &path)?;
    let towline = kubectl.clone().with_binary(world.cli_path());

    towline.ok(&["use", CHILD, "--dry-run"]).await?;
    towline.ok(&["use", CHILD, "--role", "view", "--dry-run"]).await?;
    ensure!(read()? == old, "a dry run has written");
    let issued = credentials(world).await?;

    for more in [&[][..], &["--role", "view"], &["--exec"]] {
        towline.ok(&[&["use", CHILD], more].concat()).await?;
        let pods = kubectl.ok(&["get", "pods", "-o", "name"]).await.with_context(|| format!("{more:?}"))?;
        ensure!(pods.contains("pod/web"), "{more:?}: {pods}");
        // Commands about clusters go on at the parent, and the parent's own context works as before.
        let names = towline.ok(&["clusters", "-o", "name"]).await?;
        ensure!(names.contains(CHILD), "{more:?}: {names}");
        kubectl.ok(&["--context", &parent, "get", "managedclusters.clusters.clusternet.io", "-A"]).await?;
        let new = read()?;
        ensure!(new["current-context"] == CHILD);
        for list in ["clusters", "users", "contexts"] {
            let (old, new) =
                (old[list].as_array().context("a list")?, new[list].as_array().context("a list")?);
            ensure!(new.len() == old.len() + 1 && new.starts_with(old), "{more:?}: {list} changed");
        }
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path)?.permissions());
        ensure!(mode & 0o777 == 0o600, "{mode:o}");
    }
    ensure!(credentials(world).await? == issued + 2, "one for --role, one for --exec");

    // Somebody else's entry of the same name stays, and so does a broken file.
    kubectl.ok(&["config", "set-context", "taken", "--cluster", "other", "--user", "other"]).await?;
    let text_before = std::fs::read_to_string(&path)?;
    let broken = home.join("broken");
    std::fs::write(&broken, "clusters: {")?;
    let refused =
        towline.run(&["kubeconfig", CHILD, "--merge", "--out", &broken.display().to_string()], b"").await?;
    ensure!(refused.code == 1 && refused.stderr.contains("nothing was changed"), "{refused:?}");
    ensure!(std::fs::read_to_string(&broken)? == "clusters: {");
    let renamed = text_before.replace("name: towline.io", "name: not-ours");
    std::fs::write(&path, &renamed)?;
    let refused = towline.run(&["--context", &parent, "use", CHILD], b"").await?;
    ensure!(refused.code == 1 && refused.stderr.contains("--force"), "{refused:?}");
    ensure!(std::fs::read_to_string(&path)? == renamed);
    Ok(())
}
