//! The same without a node, for archives that hold kube-apiserver, etcd and kubectl alone (envtest's do): the child is
//! a bare control plane on loopback, and its agent a process on this machine. Nothing is behind NAT, and nothing
//! that needs a pod can be tried.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Result, bail};
use tests::binaries::Binaries;
use tests::clusters::{Child, Parent};
use tests::gateway::Gateway;
use tests::kubectl::Kubectl;
use tests::process::{Process, Program, wait_until};
use tests::scratch::Scratch;
use tests::towline::Towline;
use tests::world::{CHILD, SYSTEM, install_hub, registration_data, start_hub};

/// How long an agent may take to ask, and to be Ready.
const JOIN: Duration = Duration::from_secs(60);

/// Parent, hub, child, agent.
#[derive(Debug)]
pub(crate) struct Bare {
    // Dropped in this order.
    _agent: Process,
    pub(crate) child: Child,
    pub(crate) hub: Process,
    _parent: Parent,
    /// `kubectl towline` as the parent's administrator.
    pub(crate) cli: Kubectl,
    pub(crate) through: Kubectl,
    pub(crate) scratch: Scratch,
}

impl Bare {
    /// Starts everything and lets the child join.
    pub(crate) async fn start(binaries: &Binaries, scratch: Scratch) -> Result<Self> {
        let mut towline = Towline::find()?;
        towline.hub_arguments.extend(Gateway::create(&scratch, free_port()?)?.arguments());
        let parent = Parent::start(binaries, &scratch, None).await?;
        let port = free_port()?;
        install_hub(&parent, port).await?;
        let hub = start_hub(&scratch, &towline, &parent, port).await?;
        let child = Child::start(binaries, &scratch, "child", None, &[]).await?;

        let cli = parent.kubectl().clone().with_binary(&towline.cli);
        let manifest = cli.ok(&["register", CHILD]).await?;
        child.kubectl().apply(&manifest).await?;
        let agent = start_agent(&scratch, &towline, &child, &manifest).await?;
        wait_until("the agent to ask", JOIN, async || {
            agent.check()?;
            let asked = parent.kubectl().ok(&["get", "clsrr", "-o", "name"]).await?;
            if asked.is_empty() { bail!("see {}", agent.log().display()) } else { Ok(()) }
        })
        .await?;
        cli.ok(&["approve", CHILD, "--yes"]).await?;
        let ready = r#"jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}"#;
        wait_until("the child to be Ready", JOIN, async || {
            agent.check()?;
            let found = parent.kubectl().ok(&["get", "mcls", "-A", "-o", ready]).await?;
            if found == "True" { Ok(()) } else { bail!("Ready is {found:?}; see {}", agent.log().display()) }
        })
        .await?;
        let path = scratch.directory("kubeconfigs")?.join(format!("{CHILD}.kubeconfig"));
        std::fs::write(&path, cli.ok(&["kubeconfig", CHILD]).await?)?;
        let through = Kubectl::new(binaries, &scratch, &path);
        Ok(Self { _agent: agent, child, hub, _parent: parent, cli, through, scratch })
    }
}

async fn start_agent(scratch: &Scratch, towline: &Towline, child: &Child, manifest: &str) -> Result<Process> {
    let registration = scratch.directory("agent/registration")?;
    for (key, value) in registration_data(manifest)? {
        std::fs::write(registration.join(key), value)?;
    }
    let create = ["-n", SYSTEM, "create", "token", "clusternet-agent", "--duration=8h"];
    let token = child.kubectl().ok(&create).await?;
    let directory = scratch.directory("agent")?;
    std::fs::write(directory.join("token"), token.trim())?;
    std::fs::write(directory.join("ca.crt"), child.plane.ca_pem())?;
    Program::new("towline-agent", &towline.agent)
        .arg("--registration-dir")
        .arg(&registration)
        .arg("--kube-apiserver")
        .arg(child.plane.url())
        .arg("--kube-ca-file")
        .arg(directory.join("ca.crt"))
        .arg("--token-file")
        .arg(directory.join("token"))
        .arg("--admin-listen")
        .arg(format!("127.0.0.1:{}", free_port()?))
        .start(scratch)
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
