//! What runs while it is measured, each part a process: a real parent (etcd, kube-apiserver) that the hub asks for
//! rights, the hub, two agents, a fake kube-apiserver as the child, peers, and this process, which speaks to the hub as
//! the aggregator does.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http::{HeaderValue, header};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::load::{Client, Target};
use super::machine::{Part, pin};
use super::options::{Options, Size};
use super::peer::Peer;
use super::usage::Whose;
use super::ways::Way;
use super::{backend, idle};
use crate::binaries::Binaries;
use crate::clusters::Parent;
use crate::kubectl::Kubectl;
use crate::process::{Process, Program, wait_until};
use crate::scratch::Scratch;
use crate::towline::Towline;
use crate::{pki, say, world};

// Files in the directory that all parts share.
/// The fake child's certificate.
pub const CHILD_CERTIFICATE: &str = "child.crt";
/// Its key.
pub const CHILD_KEY: &str = "child.key";
/// Its CA.
pub const CHILD_CA: &str = "child-ca.crt";
/// The agent's token there.
pub const TOKEN: &str = "token";
const AGENT_YAML: &str = "agent.yaml";
const HUB_CA: &str = "hub-ca.crt";
const FRONT_CERTIFICATE: &str = "front-proxy-client.crt";
const FRONT_KEY: &str = "front-proxy-client.key";

/// The cluster whose tunnel reaches the hub directly.
pub const DIRECT: usize = 0;

/// Everything that runs.
#[derive(Debug)]
pub struct Stage {
    // Dropped in this order.
    peers: Vec<Peer>,
    direct_agent: Option<Process>,
    agent: Process,
    _backend: Process,
    hub: Option<Process>,
    parent: Parent,
    towline: Towline,
    hub_address: SocketAddr,
    fake: Child,
    child: Target,
    front: Target,
    scratch: Scratch,
}

/// What an agent serves, as it finds it.
#[derive(Debug)]
pub struct Child {
    /// Its kube-apiserver.
    pub address: SocketAddr,
    /// Where its CA and the agent's token there are, with what the agent needs for the hub.
    pub directory: PathBuf,
    /// A path below which 1 KiB are.
    pub small: &'static str,
}

/// A file of the directory.
///
/// # Errors
/// It cannot be read.
pub fn read(directory: &Path, name: &str) -> Result<String> {
    let path = directory.join(name);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// The hub, as the parent's aggregator sees it.
///
/// # Errors
/// A file is missing.
pub fn front(hub: SocketAddr, directory: &Path) -> Result<Target> {
    let client = (read(directory, FRONT_CERTIFICATE)?, read(directory, FRONT_KEY)?);
    let ca = read(directory, HUB_CA)?;
    Target::new(hub, "clusternet-hub.clusternet-system.svc", &ca, Some((&client.0, &client.1)))
}

/// A free port of loopback.
///
/// # Errors
/// There is none.
pub fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

impl Stage {
    /// Starts it all, and waits until it works.
    ///
    /// # Errors
    /// A part does not start.
    pub async fn start(options: &Options) -> Result<Self> {
        let (binaries, mut towline, scratch) =
            (Binaries::find()?, Towline::find()?, Scratch::create_with_signals()?);
        // One user who asks one cluster as fast as it goes is what the limits are there to stop. All else is as usual, the
        // audit log included.
        towline.hub_arguments =
            ["--max-rate-per-user=1000000", "--max-rate-per-cluster=1000000"].map(str::to_owned).into();
        say("parent: etcd, kube-apiserver; hub; fake child; agents");
        pin(std::process::id(), Part::Client)?;
        let parent = Parent::start(&binaries, &scratch, None).await?;
        let hub_address = free()?;
        world::install_hub(&parent, hub_address.port()).await?;
        let hub = world::start_hub(&scratch, &towline, &parent, hub_address.port()).await?;
        pin(hub.pid(), Part::Hub)?;

        let directory = scratch.directory("bench")?;
        let authority = pki::Authority::new("bench-child")?;
        write_files(&directory, &parent, &authority).await?;
        let child_address = free()?;
        let backend =
            itself("bench-backend", ["backend", &child_address.to_string()], &directory)?.start(&scratch)?;
        pin(backend.pid(), Part::Rest)?;
        let agent = start_agent(&scratch, &towline, &parent, &directory, child_address).await?;
        pin(agent.pid(), Part::Agent)?;

        create_clusters(&parent, clusters(options)).await?;
        let child = Target::new(child_address, "127.0.0.1", authority.certificate_pem(), None)?;
        let mut peers = Vec::new();
        for peer in &options.peers {
            say(&format!("peer {}: {}", peer.name, peer.command));
            peers.push(Peer::start(peer, &scratch, &child, &directory).await?);
        }
        let mut stage = Self {
            peers,
            direct_agent: None,
            agent,
            _backend: backend,
            hub: Some(hub),
            parent,
            towline,
            front: front(hub_address, &directory)?,
            hub_address,
            fake: Child { address: child_address, directory, small: "/bench/small" },
            child,
            scratch,
        };
        stage.direct_agent =
            Some(stage.tunnel("bench-agent", DIRECT, stage.hub_address, stage.fake()).await?);
        Ok(stage)
    }

    /// Another hub in place of the one that runs, so that its memory is that of nothing but what comes; and the agents
    /// connected to it.
    ///
    /// # Errors
    /// It does not start.
    pub async fn fresh_hub(&mut self) -> Result<()> {
        drop((self.direct_agent.take(), self.hub.take()));
        let port = self.hub_address.port();
        let hub = world::start_hub(&self.scratch, &self.towline, &self.parent, port).await?;
        pin(hub.pid(), Part::Hub)?;
        self.hub = Some(hub);
        self.direct_agent = Some(self.tunnel("bench-agent", DIRECT, self.hub_address, self.fake()).await?);
        let through = self.cluster(backend::CLUSTER_ID, "bench");
        wait_until("the agent to be back", Duration::from_secs(60), async || {
            Client::connect(&through).await?.small().await.map(drop)
        })
        .await
    }

    /// Directly, over a direct tunnel, over one through the parent, and then each peer.
    ///
    /// # Errors
    /// One cannot be reached.
    pub async fn ways(&self) -> Result<Vec<Way>> {
        let (hub, parent) = (Whose::Process(self.hub_pid()), vec![("parent", self.parent_role()?)]);
        let direct = self.direct_agent.as_ref().context("no agent")?.pid();
        let roles = |agent: u32| vec![("hub", hub), ("agent", Whose::Process(agent))];
        let mut ways = vec![
            Way::new("no_tunnel", "no tunnel", self.child.clone(), Vec::new()).await?,
            Way::new(
                "direct_tunnel",
                "direct tunnel",
                self.cluster(&idle::cluster_id(DIRECT), "bench"),
                roles(direct),
            )
            .await?,
            Way::new(
                "through_parent",
                "through the parent",
                self.cluster(backend::CLUSTER_ID, "bench"),
                [roles(self.agent.pid()), parent].concat(),
            )
            .await?,
        ];
        for peer in &self.peers {
            ways.push(peer.way().await?);
        }
        Ok(ways)
    }

    /// The parent's kube-apiserver.
    ///
    /// # Errors
    /// It is gone.
    pub fn parent_role(&self) -> Result<Whose> {
        let port = self.parent.plane.port();
        Ok(Whose::Process(listener(port)?.with_context(|| format!("nobody listens at port {port}"))?))
    }

    /// An agent of the nth cluster in a process of its own, with a tunnel to the hub at this address; a link may be in
    /// between.
    ///
    /// # Errors
    /// No tunnel.
    pub async fn tunnel(&self, name: &str, n: usize, hub: SocketAddr, child: &Child) -> Result<Process> {
        // The hub's watch has to see the cluster first; once one tunnel was let in, the next is too.
        wait_until("the hub to know the clusters", Duration::from_secs(60), async || {
            idle::connect(&self.front, n, &mut JoinSet::new()).await.map(drop)
        })
        .await?;
        let [n_text, hub, address] = [n.to_string(), hub.to_string(), child.address.to_string()];
        let process =
            itself(name, ["agent", &n_text, &hub, &address], &child.directory)?.start(&self.scratch)?;
        pin(process.pid(), Part::Agent)?;
        let through = self.cluster(&idle::cluster_id(n), "bench").asking(child.small);
        wait_until("the direct tunnel", Duration::from_secs(30), async || {
            process.check()?;
            Client::connect(&through).await?.small().await.map(drop)
        })
        .await?;
        Ok(process)
    }

    /// A cluster's kube-apiserver through the hub, as a user who may do everything.
    #[must_use]
    pub fn cluster(&self, id: &str, user: &'static str) -> Target {
        let prefix = format!("/apis/proxies.clusternet.io/v1alpha1/sockets/{id}/proxy/direct");
        self.front.clone().below(prefix, &[("x-remote-user", user), ("x-remote-group", "system:masters")])
    }

    /// The hub as the aggregator sees it.
    #[must_use]
    pub fn front(&self) -> &Target {
        &self.front
    }

    /// The child, directly.
    #[must_use]
    pub fn child(&self) -> &Target {
        &self.child
    }

    /// The parent as a child, whose kube-apiserver is a real one, as an agent finds it; and the same as one finds it who has
    /// a token.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn parent_as_child(
        &self,
        agents_token: &str,
        token: &str,
        small: &'static str,
    ) -> Result<(Child, Target)> {
        let directory = self.scratch.directory("bench-apiserver")?;
        for name in [HUB_CA, FRONT_CERTIFICATE, FRONT_KEY] {
            std::fs::write(directory.join(name), read(&self.fake.directory, name)?)?;
        }
        let plane = &self.parent.plane;
        std::fs::write(directory.join(CHILD_CA), plane.ca_pem())?;
        std::fs::write(directory.join(TOKEN), agents_token)?;
        let address = SocketAddr::from((plane.address(), plane.port()));
        let bearer = HeaderValue::try_from(format!("Bearer {token}"))?;
        let target = Target::new(address, &plane.address().to_string(), plane.ca_pem(), None)?;
        let target = target.asking(small).with_header(header::AUTHORIZATION, bearer);
        Ok((Child { address, directory, small }, target))
    }

    /// What a person applies in a child.
    ///
    /// # Errors
    /// The file is gone.
    pub fn agent_yaml(&self) -> Result<String> {
        read(&self.fake.directory, AGENT_YAML)
    }

    /// The fake child, as an agent finds it.
    #[must_use]
    pub fn fake(&self) -> &Child {
        &self.fake
    }

    /// Where the hub listens.
    #[must_use]
    pub fn hub_address(&self) -> SocketAddr {
        self.hub_address
    }

    /// The hub's process.
    #[must_use]
    pub fn hub_pid(&self) -> u32 {
        self.hub.as_ref().map_or(0, Process::pid)
    }

    /// The process of the agent on the direct tunnel.
    #[must_use]
    pub fn agent_pid(&self) -> u32 {
        self.direct_agent.as_ref().map_or(0, Process::pid)
    }

    /// Fails with the end of its log when hub or agent runs no more.
    ///
    /// # Errors
    /// One has ended.
    pub fn check(&self) -> Result<()> {
        for process in
            [self.hub.as_ref(), self.direct_agent.as_ref(), Some(&self.agent)].into_iter().flatten()
        {
            process.check()?;
        }
        Ok(())
    }

    /// Where processes are kept.
    #[must_use]
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// kubectl as the parent's administrator.
    #[must_use]
    pub fn kubectl(&self) -> &Kubectl {
        self.parent.kubectl()
    }

    /// `kubectl towline` and kubectl, both as the parent's administrator.
    #[must_use]
    pub fn command_lines(&self) -> (Kubectl, &Kubectl) {
        let kubectl = self.parent.kubectl();
        (kubectl.clone().with_binary(&self.towline.cli), kubectl)
    }
}

/// This program as another part, with the shared directory as its last argument.
///
/// # Errors
/// It does not know where it is.
pub fn itself<const N: usize>(name: &str, arguments: [&str; N], directory: &Path) -> Result<Program> {
    Ok(Program::new(name, std::env::current_exe()?).args(arguments).arg(directory))
}

/// Who listens at a port of loopback: `ss` is not everywhere.
fn listener(port: u16) -> Result<Option<u32>> {
    // proc_pid_net(5): local address, state 0A is LISTEN, the tenth column is the inode of the socket.
    let suffix = format!(":{port:04X}");
    let table = ["/proc/net/tcp", "/proc/net/tcp6"]
        .map(|path| std::fs::read_to_string(path).unwrap_or_default())
        .concat();
    let inode = table.lines().find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        (columns.get(1)?.ends_with(&suffix) && *columns.get(3)? == "0A").then(|| columns.get(9).copied())?
    });
    let Some(inode) = inode else { return Ok(None) };
    let socket = format!("socket:[{inode}]");
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(files) = std::fs::read_dir(entry.path().join("fd")) else { continue };
        if files
            .flatten()
            .any(|file| std::fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == socket.as_str()))
        {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

async fn write_files(directory: &Path, parent: &Parent, authority: &pki::Authority) -> Result<()> {
    let serving = authority.server("kube-apiserver", &["127.0.0.1".to_owned()])?;
    let of_parent = |name: &str| read(parent.plane.directory(), name);
    for (name, text) in [
        (CHILD_CERTIFICATE, serving.certificate_pem),
        (CHILD_KEY, serving.key_pem),
        (CHILD_CA, authority.certificate_pem().to_owned()),
        (TOKEN, "agent".to_owned()),
        (HUB_CA, hub_ca(parent).await?),
        (FRONT_CERTIFICATE, of_parent(FRONT_CERTIFICATE)?),
        (FRONT_KEY, of_parent(FRONT_KEY)?),
    ] {
        std::fs::write(directory.join(name), text)?;
    }
    Ok(())
}

/// So many as the sections that were asked for need.
fn clusters(options: &Options) -> usize {
    let Size { clusters, tunnels, links, .. } = &options.size;
    if options.wants("people") { *clusters } else { tunnels + 2 + links.len() }
}

/// Several commands at once: each waits for one object after the other.
async fn create_clusters(parent: &Parent, count: usize) -> Result<()> {
    const AT_ONCE: usize = 8;
    let mut creating = JoinSet::new();
    for first in (0..count).step_by(count.div_ceil(AT_ONCE)) {
        let objects = idle::objects(first..count.min(first + count.div_ceil(AT_ONCE))).to_string();
        let kubectl = parent.kubectl().clone().with_time_limit(Duration::from_secs(300));
        creating.spawn(
            async move { kubectl.ok_with(&["create", "-f", "-"], objects.as_bytes()).await.map(drop) },
        );
    }
    creating.join_all().await.into_iter().collect()
}

async fn hub_ca(parent: &Parent) -> Result<String> {
    let bundle = parent
        .kubectl()
        .ok(&["get", "apiservice", "v1alpha1.proxies.clusternet.io", "-o", "jsonpath={.spec.caBundle}"])
        .await?;
    Ok(String::from_utf8(world::unbase64(&bundle)?)?)
}

/// Registers the fake child with an invitation that approves by itself, and waits until it is Ready.
async fn start_agent(
    scratch: &Scratch,
    towline: &Towline,
    parent: &Parent,
    directory: &Path,
    child: SocketAddr,
) -> Result<Process> {
    let invitation = json!({ "apiVersion": "access.towline.io/v1alpha1", "kind": "ClusterInvitation",
                             "metadata": {}, "spec": { "clusterName": "bench", "autoApprove": true } });
    let answer = parent
        .kubectl()
        .ok_with(
            &["create", "--raw", api::names::INVITATIONS_PATH, "-f", "-"],
            invitation.to_string().as_bytes(),
        )
        .await?;
    let answer: Value = serde_json::from_str(&answer)?;
    let manifest = answer["status"]["manifest"].as_str().context("manifest")?;
    std::fs::write(directory.join(AGENT_YAML), manifest)?;
    let registration = directory.join("registration");
    std::fs::create_dir_all(&registration)?;
    for (key, value) in world::registration_data(manifest)? {
        std::fs::write(registration.join(key), value)?;
    }
    let agent = Program::new("towline-agent", &towline.agent)
        .arg("--registration-dir")
        .arg(&registration)
        .arg("--kube-apiserver")
        .arg(format!("https://{child}"))
        .arg("--kube-ca-file")
        .arg(directory.join(CHILD_CA))
        .arg("--token-file")
        .arg(directory.join(TOKEN))
        .arg("--admin-listen")
        .arg(free()?.to_string())
        .start(scratch)?;
    wait_until("the fake child to be Ready", Duration::from_secs(60), async || {
        agent.check()?;
        let ready = parent
            .kubectl()
            .ok(&[
                "get",
                "mcls",
                "-A",
                "-o",
                r#"jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}"#,
            ])
            .await?;
        if ready == "True" { Ok(()) } else { bail!("Ready is {ready:?}; see {}", agent.log().display()) }
    })
    .await?;
    Ok(agent)
}
