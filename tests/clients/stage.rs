//! What the clients are tried against: a parent with the hub, and a child that has joined.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tests::binaries::Binaries;
use tests::kubectl::Kubectl;
use tests::network::capability;
use tests::say;
use tests::scratch::Scratch;
use tests::towline::Towline;
use tests::world::{CHILD, World};

use crate::access::Access;
use crate::bare::Bare;
use crate::commands::Client;

/// Parent, hub, child.
#[derive(Debug)]
pub(crate) struct Stage {
    place: Place,
    through: Kubectl,
    access: Access,
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
        let cli = place.cli()?;
        let access = Access::issue(&cli, &through, &place.scratch().directory("access")?).await?;
        let said = place.child().ok(&["get", "--raw", "/version"]).await?;
        let version: Value = serde_json::from_str(&said)?;
        let server = version["gitVersion"].as_str().context("the child says no version")?.to_owned();
        Ok(Self { place, through, access, newest, server })
    }

    /// What a table is about.
    pub(crate) fn heading(&self, by: &str) -> String {
        let (towline, server) = (env!("CARGO_PKG_VERSION"), &self.server);
        format!("Towline {towline}, parent and child Kubernetes {server}, {by}.")
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

    /// Why what needs a pod is not tried here.
    pub(crate) fn without_a_node(&self) -> Option<String> {
        match &self.place {
            Place::Bare(_, why) => Some(format!("there is no node: {why}")),
            Place::Nat(_) => None,
        }
    }

    /// The kubeconfigs that the hub has issued.
    pub(crate) fn access(&self) -> &Access {
        &self.access
    }

    /// Some program with the kubeconfig of the gateway's usual address.
    pub(crate) fn at_gateway(&self) -> Kubectl {
        self.through.clone().with_kubeconfig(&self.access.path.kubeconfig)
    }

    /// The newest kubectl, in the child's own network.
    pub(crate) fn child(&self) -> &Kubectl {
        self.place.child()
    }

    /// A directory of its own for a client.
    pub(crate) fn directory(&self, name: &str) -> Result<PathBuf> {
        self.place.scratch().directory(format!("clients/{name}"))
    }

    /// What the hub has logged.
    pub(crate) fn hub_log(&self) -> Result<String> {
        match &self.place {
            Place::Nat(world) => world.hub()?.log_text(),
            Place::Bare(bare, _) => bare.hub.log_text(),
        }
    }

    /// A condition of the child's `ManagedCluster`.
    pub(crate) async fn condition(&self, kind: &str) -> Result<Value> {
        match &self.place {
            Place::Nat(world) => world.condition(kind).await,
            Place::Bare(..) => bail!("without a node nobody looks at conditions"),
        }
    }

    /// A client with the kubeconfig that `kubectl towline kubeconfig` prints; the child may be behind NAT.
    pub(crate) fn through_hub(&self, kubectl: &str, version: &str) -> Result<Client> {
        self.client(&self.through, kubectl, version, "hub")
    }

    /// A client with the kubeconfig that `kubectl towline kubeconfig --role admin` prints.
    pub(crate) fn through_gateway(&self, kubectl: &str, version: &str) -> Result<Client> {
        let client = self.client(&self.at_gateway(), kubectl, version, "gateway")?;
        let by_root = client.kubectl.clone().with_kubeconfig(&self.access.root.kubeconfig);
        Ok(Client { by_root: Some(by_root), ..client })
    }

    /// The same in the child's own network, with the child's own kubeconfig.
    pub(crate) fn directly(&self, kubectl: &str, version: &str) -> Result<Client> {
        self.client(self.place.child(), kubectl, version, "direct")
    }

    fn client(&self, from: &Kubectl, path: &str, version: &str, way: &str) -> Result<Client> {
        let mark = format!("{way}-{}", version.replace('.', "-"));
        let directory = self.directory(&mark)?;
        let home = directory.display().to_string();
        // A cache of its own: what one version wrote, another need not understand.
        let kubectl = from
            .clone()
            .with_binary(path)
            .with_env("HOME", &home)
            .with_env("KUBECACHEDIR", &format!("{home}/cache"));
        let writer = self.place.child().clone();
        let curl = from.clone().with_binary("curl");
        Ok(Client { kubectl, by_root: None, writer, curl, directory, mark })
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

    /// `kubectl towline` as the parent's administrator.
    fn cli(&self) -> Result<Kubectl> {
        match self {
            Self::Bare(bare, _) => Ok(bare.cli.clone()),
            Self::Nat(world) => Ok(world.parent().kubectl().clone().with_binary(&Towline::find()?.cli)),
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
