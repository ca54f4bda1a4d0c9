//! The kubeconfigs that the hub issues, and what stands in them: one for each spelling of an address at the gateway.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tests::kubectl::Kubectl;
use tests::process::wait_until;
use tests::world::{CHILD, unbase64};

/// The hub knows a token from its own watch, a moment after it was made.
const KNOWN: Duration = Duration::from_secs(20);

/// One kubeconfig, and its parts as files for a client that reads none.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    pub(crate) kubeconfig: PathBuf,
    pub(crate) server: String,
    pub(crate) ca_file: PathBuf,
    /// `Authorization: Bearer …`: a token on a command line is read by every process of the machine.
    pub(crate) header_file: PathBuf,
}

/// The same right by each spelling.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    /// `https://hub/k8s/clusters/NAME`
    pub(crate) path: Door,
    /// `https://hub`
    pub(crate) root: Door,
    /// `https://NAME.DOMAIN`
    pub(crate) host: Door,
}

impl Access {
    /// Has the hub issue them to the parent's administrator, with `kubectl towline kubeconfig`, and waits until they open.
    pub(crate) async fn issue(cli: &Kubectl, kubectl: &Kubectl, directory: &Path) -> Result<Self> {
        let root = Door::issue(cli, directory, "root").await?;
        let host = Door::issue(cli, directory, "host").await?;
        let path = Door::issue(cli, directory, "path").await?;
        // It was made last, and a watch tells things in their order: when it opens, all do.
        path.wait(kubectl).await?;
        Ok(Self { path, root, host })
    }
}

impl Door {
    async fn issue(cli: &Kubectl, directory: &Path, spelling: &str) -> Result<Self> {
        let text = cli.ok(&["kubeconfig", CHILD, "--role", "admin", "--address", spelling]).await?;
        let parsed: Value = serde_saphyr::from_str(&text)?;
        let (cluster, user) = (&parsed["clusters"][0]["cluster"], &parsed["users"][0]["user"]);
        let said = |part: &Value, key: &str| {
            part[key].as_str().map(str::to_owned).with_context(|| format!("the kubeconfig has no {key}"))
        };
        let token = said(user, "token")?;
        let keep = |name: &str, content: &[u8]| -> Result<PathBuf> {
            let file = directory.join(format!("{spelling}.{name}"));
            std::fs::write(&file, content).with_context(|| file.display().to_string())?;
            // Helm warns of a kubeconfig that others can read.
            std::fs::set_permissions(&file, Permissions::from_mode(0o600))?;
            Ok(file)
        };
        Ok(Self {
            kubeconfig: keep("kubeconfig", text.as_bytes())?,
            server: said(cluster, "server")?,
            ca_file: keep("ca.crt", &unbase64(&said(cluster, "certificate-authority-data")?)?)?,
            header_file: keep("header", format!("Authorization: Bearer {token}\n").as_bytes())?,
        })
    }

    /// Waits until the hub knows the token.
    async fn wait(&self, kubectl: &Kubectl) -> Result<()> {
        let kubectl = kubectl.clone().with_kubeconfig(&self.kubeconfig);
        wait_until("the hub to know the token", KNOWN, async || {
            kubectl.ok(&["get", "--raw", "/version"]).await.map(drop)
        })
        .await
    }
}
