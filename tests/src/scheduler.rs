//! Gives every pod that has no node to the one node there is. In place of kube-scheduler, which is not among the
//! programs that are built; it looks at nothing but the name of the pod.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::kubectl::Kubectl;
use crate::process::run;

/// How long it waits before it looks again after the apiserver went away.
const RETRY: Duration = Duration::from_millis(500);

/// A thread that watches pods without a node; ended on drop.
#[derive(Debug)]
pub struct Scheduler {
    stop_tx: Option<mpsc::Sender<()>>,
    watch_pid: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

impl Scheduler {
    /// Starts watching.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(kubectl: &Kubectl, node: &str) -> Result<Self> {
        let (stop_tx, stop_rx) = mpsc::channel();
        let watch_pid = Arc::new(AtomicU32::new(0));
        let (kubectl, node, pid) = (kubectl.clone(), node.to_owned(), Arc::clone(&watch_pid));
        let stopped = AtomicBool::new(false);
        let thread = std::thread::Builder::new().name(format!("schedule-{node}")).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // An apiserver that restarts ends the watch; that is ordinary here.
                let _ = watch(&kubectl, &node, &pid);
                let ended = stop_rx.recv_timeout(RETRY) != Err(mpsc::RecvTimeoutError::Timeout);
                stopped.store(ended, Ordering::Relaxed);
            }
        })?;
        Ok(Self { stop_tx: Some(stop_tx), watch_pid, thread: Some(thread) })
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.stop_tx = None;
        let pid = self.watch_pid.swap(0, Ordering::SeqCst);
        if pid != 0 {
            let _ = run("kill", &["-s", "KILL", &pid.to_string()]);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Watches until the connection ends. A pod shows once more when it leaves the selection; that second binding is
/// refused as a conflict.
fn watch(kubectl: &Kubectl, node: &str, pid: &AtomicU32) -> Result<()> {
    let format = r#"jsonpath={.metadata.namespace}{" "}{.metadata.name}{"\n"}"#;
    let mut child = kubectl
        .command(&["get", "pods", "-A", "--watch", "--field-selector=spec.nodeName=", "-o", format])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    pid.store(child.id(), Ordering::SeqCst);
    let stdout = child.stdout.take().context("standard output is piped")?;
    for line in BufReader::new(stdout).lines() {
        if let Some((namespace, pod)) = line?.split_once(' ') {
            // A pod that is gone or bound already is none of our business.
            let _ = bind(kubectl, node, namespace, pod);
        }
    }
    pid.store(0, Ordering::SeqCst);
    child.wait()?;
    Ok(())
}

fn bind(kubectl: &Kubectl, node: &str, namespace: &str, pod: &str) -> Result<()> {
    let binding = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": { "name": pod, "namespace": namespace },
        "target": { "apiVersion": "v1", "kind": "Node", "name": node },
    });
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/binding");
    let mut child = kubectl
        .command(&["create", "--raw", &path, "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(binding.to_string().as_bytes())?;
    }
    child.wait()?;
    Ok(())
}
