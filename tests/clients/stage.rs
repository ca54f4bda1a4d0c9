//! What the clients are tried against: a parent with the hub, and a child that has joined.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tests::binaries::Binaries;
use tests::kubectl::Kubectl;
use tests::network::capability;
use tests::scratch::Scratch;
use tests::world::{CHILD, World};

use crate::commands::{Client, Command};

/// Parent, hub, child.
#[derive(Debug)]
pub(crate) struct Stage {
    world: World,
    through: Kubectl,
    server: String,
}

impl Stage {
    /// Starts everything and lets the child join.
    pub(crate) async fn set_up() -> Result<Self> {
        if let Err(why) = capability(&Binaries::find()?) {
            anyhow::bail!("{why}");
        }
        let mut world = World::start(Scratch::create_with_signals()?).await?;
        world.register_and_apply().await?;
        world.wait_for_request().await?;
        world.cli(&["approve", CHILD]).await?;
        world.wait_ready(Duration::from_secs(90)).await?;
        world.deploy_pod().await?;
        let through = world.admin_through_hub().await?;
        let version: Value =
            serde_json::from_str(&world.child().kubectl().ok(&["get", "--raw", "/version"]).await?)?;
        let server = version["gitVersion"].as_str().context("the child says no version")?.to_owned();
        Ok(Self { world, through, server })
    }

    /// What the table is about.
    pub(crate) fn heading(&self) -> String {
        format!(
            "Towline {}, parent and child Kubernetes {}, through hub and tunnel.",
            env!("CARGO_PKG_VERSION"),
            self.server
        )
    }

    /// The name of the run.
    pub(crate) fn run(&self) -> &str {
        self.world.scratch().name()
    }

    /// The kubectl that all other tests use.
    pub(crate) fn newest(&self) -> &Path {
        &self.world.binaries().kubectl
    }

    /// Some kubectl.
    pub(crate) fn plain(&self) -> &Kubectl {
        &self.through
    }

    /// Why a command is not tried here.
    pub(crate) fn left_out(&self, command: Command) -> Option<String> {
        let node = self.world.child().node().is_some();
        (command.needs_a_pod() && !node).then(|| "there is no node".to_owned())
    }

    /// A client on this side of the NAT, with the kubeconfig that `kubectl towline kubeconfig` prints.
    pub(crate) fn through_hub(&self, kubectl: &str, version: &str) -> Result<Client> {
        self.client(&self.through, kubectl, version, "hub")
    }

    /// The same in the child's own network, with the child's own kubeconfig.
    pub(crate) fn directly(&self, kubectl: &str, version: &str) -> Result<Client> {
        self.client(self.world.child().kubectl(), kubectl, version, "direct")
    }

    fn client(&self, from: &Kubectl, path: &str, version: &str, way: &str) -> Result<Client> {
        let mark = format!("{way}-{}", version.replace('.', "-"));
        let directory: PathBuf = self.world.scratch().directory(format!("clients/{mark}"))?;
        let home = directory.display().to_string();
        // A cache of its own: what one version wrote, another need not understand.
        let kubectl = from
            .clone()
            .with_binary(path)
            .with_env("HOME", &home)
            .with_env("KUBECACHEDIR", &format!("{home}/cache"));
        Ok(Client {
            kubectl,
            writer: self.world.child().kubectl().clone(),
            curl: from.clone().with_binary("curl"),
            directory,
            mark,
        })
    }
}
