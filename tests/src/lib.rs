//! A real Kubernetes for demo and tests: a parent control plane on this machine, and children behind NAT with a
//! node that runs pods. In reading order:
//!
//! - `binaries`: where kube-apiserver and the others come from
//! - `scratch`: the directory and the name of a run, and the removal of everything that bears it
//! - `process`: child processes that die with us; waiting for a condition
//! - `pki`: throw-away certificates
//! - `network`: a namespace behind NAT, and whether this machine can make one
//! - `control_plane`: etcd, kube-apiserver, kube-controller-manager
//! - `images`: container images made by hand
//! - `node`: containerd and kubelet
//! - `scheduler`: gives pods to the one node
//! - `kubectl`: the real client, for assertions
//! - `clusters`: `Parent` and `Child`, put together from the above
//! - `towline`: our own programs and image
//! - `gateway`: the hub's gateway on this machine
//! - `front`: one address for several servers
//! - `world`: a parent with the hub, a child with the agent
//! - `crowd`: who works in a child meanwhile
//! - `suite`: tests that share one world
//! - `compatibility`: the table of what was tried with which kubectl
//! - `faults`: a bad network, from a seed
//! - `bench`: what the benchmark is made of
//! - `storm`: all agents come back at once

pub mod bench;
pub mod binaries;
pub mod clusters;
pub mod compatibility;
pub mod control_plane;
pub mod crowd;
pub mod faults;
pub mod front;
pub mod gateway;
pub mod images;
pub mod kubectl;
pub mod network;
pub mod node;
pub mod pki;
pub mod process;
pub mod scheduler;
pub mod scratch;
pub mod storm;
pub mod suite;
pub mod towline;
pub mod world;

/// Tells the person at the terminal what is going on. Standard error, so that results on standard output stay
/// clean.
pub fn say(text: &str) {
    use std::io::Write as _;
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(std::io::stderr().lock(), "==> {text}");
}
