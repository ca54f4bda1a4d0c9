//! A network namespace behind NAT: whoever is in it can dial out, and nobody can dial in. One veth pair leads to
//! the parent side; the firewall stands inside the namespace, so the rules of the machine stay untouched.

use std::fmt;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::binaries::Binaries;
use crate::process::run;
use crate::scratch::{Scratch, link_prefix};

/// The first address of the service network of every cluster: its apiserver, as pods see it.
pub const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// The port of the child's apiserver on its node.
pub const CHILD_PORT: u16 = 6443;

/// The networks of all runs together are four addresses each out of 10.77.0.0/16.
const SLOTS: u16 = u16::MAX / 4;

/// One namespace with its link; removed on drop.
#[derive(Debug)]
pub struct Network {
    name: String,
    parent_address: Ipv4Addr,
    child_address: Ipv4Addr,
}

impl Network {
    /// Makes the namespace, the link and the firewall.
    ///
    /// # Errors
    /// When a command fails; call [`capability`] first to learn whether this machine can do it at all.
    pub fn create(scratch: &Scratch) -> Result<Self> {
        let index = scratch.next_network();
        let name = format!("{}.{index}", scratch.name());
        let link = format!("{}.{index}", link_prefix(scratch.name()));
        let (parent_address, child_address) = free_addresses(index)?;
        let network = Self { name, parent_address, child_address };
        let (name, parent, child) = (network.name.as_str(), parent_address, child_address);
        run("ip", &["netns", "add", name])?;
        // The far end is made inside the namespace at once: two runs may both call it eth0.
        run("ip", &["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", name])?;
        run("ip", &["addr", "add", &format!("{parent}/30"), "dev", &link])?;
        run("ip", &["link", "set", &link, "up"])?;
        network.run("ip", &["link", "set", "lo", "up"])?;
        network.run("ip", &["addr", "add", &format!("{child}/30"), "dev", "eth0"])?;
        network.run("ip", &["link", "set", "eth0", "up"])?;
        network.run("ip", &["route", "add", "default", "via", &parent.to_string()])?;
        // kubelet 1.20 asks a cloud's metadata service for credentials, and waits 10 s for an answer.
        network.run("ip", &["route", "add", "unreachable", "169.254.0.0/16"])?;
        network.run("sh", &["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])?;
        let apiserver = format!("{child}:{CHILD_PORT}");
        for rule in [
            // Answers may come in; nothing else, neither to the node nor through it to a pod.
            "-A INPUT -i eth0 -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
            "-A INPUT -i eth0 -j DROP",
            "-A FORWARD -i eth0 -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
            "-A FORWARD -i eth0 -j DROP",
            // In place of kube-proxy: the service address of the apiserver, for pods and for the node itself.
            &format!("-t nat -A PREROUTING -d {SERVICE_ADDRESS} -p tcp --dport 443 -j DNAT --to {apiserver}"),
            &format!("-t nat -A OUTPUT -d {SERVICE_ADDRESS} -p tcp --dport 443 -j DNAT --to {apiserver}"),
        ] {
            network.run("iptables", &rule.split(' ').collect::<Vec<_>>())?;
        }
        Ok(network)
    }

    /// The address of the parent's end, at which the child can reach what listens there.
    pub fn parent_address(&self) -> Ipv4Addr {
        self.parent_address
    }

    /// The address of the child's end. Nothing that listens there can be reached from outside.
    pub fn child_address(&self) -> Ipv4Addr {
        self.child_address
    }

    /// The file that stands for the namespace.
    pub fn namespace_path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Runs a short command inside and returns what it printed.
    ///
    /// # Errors
    /// When the command fails.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let enter = format!("--net={}", self.namespace_path().display());
        run("nsenter", &[&[enter.as_str(), program], arguments].concat())
    }

    /// Lets everybody on this machine's side dial a port of the node.
    ///
    /// # Errors
    /// When the firewall refuses.
    pub fn open(&self, port: u16) -> Result<()> {
        let port = port.to_string();
        let rule = ["-I", "INPUT", "-i", "eth0", "-p", "tcp", "--dport", &port, "-j", "ACCEPT"];
        self.run("iptables", &rule).map(drop)
    }

    /// Cuts the link between parent and child, or mends it: packets vanish, connections stay open.
    ///
    /// # Errors
    /// When the firewall refuses.
    pub fn set_cut(&self, cut: bool) -> Result<()> {
        let action = if cut { "-I" } else { "-D" };
        for (chain, direction) in [("INPUT", "-i"), ("OUTPUT", "-o"), ("FORWARD", "-i"), ("FORWARD", "-o")] {
            self.run("iptables", &[action, chain, direction, "eth0", "-j", "DROP"])?;
        }
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The link goes with its far end. Whatever is left falls to the scratch directory's own clean-up.
        let _ = run("ip", &["netns", "del", &self.name]);
    }
}

/// A /30 that no interface of this machine uses. The start depends on the pid, so that runs started at the same
/// moment do not look at the same one.
fn free_addresses(index: u16) -> Result<(Ipv4Addr, Ipv4Addr)> {
    let used = run("ip", &["-o", "-4", "addr"])?;
    let start = u16::try_from(std::process::id() % u32::from(SLOTS))?;
    for step in 0..SLOTS {
        let slot = (start + index + step) % SLOTS;
        let [high, low] = (slot * 4).to_be_bytes();
        let (parent, child) = (Ipv4Addr::new(10, 77, high, low + 1), Ipv4Addr::new(10, 77, high, low + 2));
        if !used.contains(&format!(" {parent}/")) {
            return Ok((parent, child));
        }
    }
    bail!("every network in 10.77.0.0/16 is in use: remove the links of other runs (`ip link`)")
}

/// Why this machine cannot run a child cluster with a node.
#[derive(Debug, Clone)]
pub struct WhyNot(pub Vec<String>);

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.join("; "))
    }
}

impl std::error::Error for WhyNot {}

/// Whether this machine can run a NAT'd child with a node and pods; else every reason at once.
///
/// # Errors
/// [`WhyNot`] lists what is missing.
pub fn capability(binaries: &Binaries) -> Result<(), WhyNot> {
    let mut reasons = binaries.missing_for_a_node();
    if !is_root() {
        reasons.push("not root (namespaces, mounts and a kubelet need it)".to_owned());
        return Err(WhyNot(reasons));
    }
    // In throw-away namespaces, so that the attempts leave nothing behind.
    let network = "ip link set lo up && ip link add probe0 type veth peer name probe1 && \
                   ip link add probe2 type bridge && \
                   iptables -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT && \
                   iptables -t nat -A POSTROUTING -j MASQUERADE";
    let probes: [(&str, &[&str]); 2] = [
        ("network namespaces, veth, bridge and iptables with NAT", &["--net", "sh", "-c", network]),
        (
            "mount and process namespaces",
            &["--mount", "--pid", "--fork", "mount", "-t", "tmpfs", "none", "/mnt"],
        ),
    ];
    for (what, arguments) in probes {
        if let Err(error) = run("unshare", arguments) {
            reasons.push(format!("this kernel gives us no {what}: {error:#}"));
        }
    }
    if let Err(error) = try_control_group() {
        reasons.push(format!("control groups cannot be made: {error:#}"));
    }
    if !Path::new("/dev/kmsg").exists() {
        reasons.push("there is no /dev/kmsg, which the kubelet reads".to_owned());
    }
    if reasons.is_empty() { Ok(()) } else { Err(WhyNot(reasons)) }
}

/// Whether we are root.
pub fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
}

fn try_control_group() -> Result<()> {
    // Version 1 has one directory per controller, version 2 none.
    let top = Path::new("/sys/fs/cgroup");
    let memory = top.join("memory");
    let parent = if memory.is_dir() { &memory } else { top };
    let probe = parent.join(format!("towline-{}", std::process::id()));
    fs::create_dir(&probe).with_context(|| probe.display().to_string())?;
    fs::remove_dir(&probe).with_context(|| probe.display().to_string())
}
