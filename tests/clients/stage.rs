//! What the clients are tried against: a parent with the hub, and a child that has joined.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tests::binaries::Binaries;
use tests::kubectl::Kubectl;
use tests::network::capability;
use tests::say;
use tests::scratch::Scratch;
use tests::world::{CHILD, World};

use crate::bare::Bare;
use crate::commands::{Client, Command};

/// Parent, hub, child.
#[derive(Debug)]
pub(crate) struct Stage {
    place: Place,
    through: Kubectl,
    newest: PathBuf,
    server: String,
}

#[derive(Debug)]
enum Place {
    /// The child is behind NAT and has a node.
    Nat(Box<World>),
    /// It has no node, for this reason.
    Bare(Box<Bare>, String),
}

impl Stage {
    /// Starts everything and lets the child join.
    pub(crate) async fn set_up() -> Result<Self> {
        let binaries = Binaries::find()?;
        let newest = binaries.kubectl.clone();
        let scratch = Scratch::create_with_signals()?;
        let (place, through) = match capability(&binaries) {
            Ok(()) => {
                let world = joined(scratch).await?;
                let through = world.admin_through_hub().await?;
                (Place::Nat(Box::new(world)), through)
            }
            Err(why) => {
                say(&format!("!!! LEFT OUT: NAT, and every command that needs a pod, because {why}"));
                let bare = Box::pin(Bare::start(&binaries, scratch)).await?;
                let through = bare.through.clone();
                (Place::Bare(Box::new(bare), why.to_string()), through)
            }
        };
        let said = place.child().ok(&["get", "--raw", "/version"]).await?;
        let version: Value = serde_json::from_str(&said)?;
        let server = version["gitVersion"].as_str().context("the child says no version")?.to_owned();
        Ok(Self { place, through, newest, server })
    }

    /// What the table is about.
    pub(crate) fn heading(&self) -> String {
        let (towline, server) = (env!("CARGO_PKG_VERSION"), &self.server);
        format!("Towline {towline}, parent and child Kubernetes {server}, through hub and tunnel.")
    }

    /// The name of the run.
    pub(crate) fn run(&self) -> &str {
        self.place.scratch().name()
    }

    /// The kubectl that all other tests use.
    pub(crate) fn newest(&self) -> &Path {
        &self.newest
    }

    /// Some kubectl.
    pub(crate) fn plain(&self) -> &Kubectl {
        &self.through
    }

    /// Why a command is not tried here.
    pub(crate) fn left_out(&self, command: Command) -> Option<String> {
        match &self.place {
            Place::Bare(_, why) if command.needs_a_pod() => Some(format!("there is no node: {why}")),
            Place::Bare(..) | Place::Nat(_) => None,
        }
    }

    /// A client with the kubeconfig that `kubectl towline kubeconfig` prints; the child may be behind NAT.
    pub(crate) fn through_hub(&self, kubectl: &str, version: &str) -> Result<Client> {
        self.client(&self.through, kubectl, version, "hub")
    }

    /// The same in the child's own network, with the child's own kubeconfig.
    pub(crate) fn directly(&self, kubectl: &str, version: &str) -> Result<Client> {
        self.client(self.place.child(), kubectl, version, "direct")
    }

    fn client(&self, from: &Kubectl, path: &str, version: &str, way: &str) -> Result<Client> {
        let mark = format!("{way}-{}", version.replace('.', "-"));
        let directory = self.place.scratch().directory(format!("clients/{mark}"))?;
        let home = directory.display().to_string();
        // A cache of its own: what one version wrote, another need not understand.
        let kubectl = from
            .clone()
            .with_binary(path)
            .with_env("HOME", &home)
            .with_env("KUBECACHEDIR", &format!("{home}/cache"));
        let writer = self.place.child().clone();
        Ok(Client { kubectl, writer, curl: from.clone().with_binary("curl"), directory, mark })
    }
}

impl Place {
    /// The newest kubectl, in the child's own network.
    fn child(&self) -> &Kubectl {
        match self {
            Self::Nat(world) => world.child().kubectl(),
            Self::Bare(bare, _) => bare.child.kubectl(),
        }
    }

    fn scratch(&self) -> &Scratch {
        match self {
            Self::Nat(world) => world.scratch(),
            Self::Bare(bare, _) => &bare.scratch,
        }
    }
}

async fn joined(scratch: Scratch) -> Result<World> {
    let mut world = World::start(scratch).await?;
    world.register_and_apply().await?;
    world.wait_for_request().await?;
    world.cli(&["approve", CHILD, "--yes"]).await?;
    world.wait_ready(Duration::from_secs(90)).await?;
    world.deploy_pod().await?;
    Ok(world)
}
