//! `Parent` and `Child`: whole clusters, put together from control plane, network and node.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::Result;

use crate::binaries::Binaries;
use crate::control_plane::ControlPlane;
use crate::images::BUSYBOX;
use crate::kubectl::Kubectl;
use crate::network::Network;
use crate::node::Node;
use crate::scheduler::Scheduler;
use crate::scratch::Scratch;

/// The cluster that holds the hub: a control plane on this machine's side of the network.
#[derive(Debug)]
pub struct Parent {
    /// etcd, kube-apiserver, kube-controller-manager.
    pub plane: ControlPlane,
}

impl Parent {
    /// Starts it at an address of this machine: at a network's parent side this machine and the children (those of
    /// other networks, too) reach it and nobody else does. Without an address on loopback.
    ///
    /// # Errors
    /// When the control plane does not become ready.
    pub async fn start(binaries: &Binaries, scratch: &Scratch, address: Option<Ipv4Addr>) -> Result<Self> {
        let address = address.unwrap_or(Ipv4Addr::LOCALHOST);
        Ok(Self { plane: ControlPlane::start(binaries, scratch, "parent", address, None).await? })
    }

    /// kubectl as `system:masters`.
    pub fn kubectl(&self) -> &Kubectl {
        self.plane.kubectl()
    }
}

/// A cluster that an agent runs in. Behind NAT with a node, or a bare control plane on loopback.
#[derive(Debug)]
pub struct Child {
    // Dropped in this order: node before control plane before network.
    scheduler: Option<Scheduler>,
    node: Option<Node>,
    /// etcd, kube-apiserver, kube-controller-manager.
    pub plane: ControlPlane,
    network: Option<Network>,
}

impl Child {
    /// Starts a child. With a network it stands inside, and has a node on which the images of the archives can run
    /// (besides busybox). The name must differ from that of other clusters of the run.
    ///
    /// # Errors
    /// When the control plane or the node does not become ready.
    pub async fn start(
        binaries: &Binaries,
        scratch: &Scratch,
        name: &str,
        network: Option<Network>,
        archives: &[PathBuf],
    ) -> Result<Self> {
        let address = network.as_ref().map_or(Ipv4Addr::LOCALHOST, Network::child_address);
        let mut plane = ControlPlane::launch(binaries, scratch, name, address, network.as_ref())?;
        let node = match &network {
            Some(network) => Some(Node::launch(binaries, scratch, network, &plane, name, archives).await?),
            None => None,
        };
        plane.wait(binaries, scratch, network.as_ref()).await?;
        let mut scheduler = None;
        if let Some(node) = &node {
            node.wait_ready(&plane).await?;
            scheduler = Some(Scheduler::start(plane.kubectl(), name)?);
        }
        Ok(Self { scheduler, node, plane, network })
    }

    /// kubectl as `system:masters`, run inside the child's network.
    pub fn kubectl(&self) -> &Kubectl {
        self.plane.kubectl()
    }

    /// The node, if the child has one.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// The network, if the child stands behind NAT.
    pub fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// Whether pods without a node get one.
    pub fn has_scheduler(&self) -> bool {
        self.scheduler.is_some()
    }
}

/// The manifest of a busybox pod: `httpd` serves a page on port 8080, the log ticks once a second, and a shell is
/// there for `exec`.
pub fn busybox_pod(name: &str) -> String {
    let script = "httpd -p 8080 -h /www; while true; do date; sleep 1; done";
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": name } },
        "spec": {
            // sh as the first process would ignore SIGTERM; nobody waits for it.
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main",
                "image": BUSYBOX,
                "imagePullPolicy": "Never",
                "command": ["/bin/sh", "-c", script],
                "ports": [{ "containerPort": 8080 }],
            }],
        },
    })
    .to_string()
}
