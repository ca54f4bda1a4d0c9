//! From kubectl to a pod of the child, through two hubs that are pods of the parent.

use anyhow::{Context as _, ensure};
use tests::kubectl::Kubectl;
use tests::world::{POD, SYSTEM};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::Outcome;
use crate::stage::{SOON, Stage};

/// The aggregator takes any of two: that one is never asked has a chance of one to half a million.
const ASKED: usize = 20;

pub(crate) async fn kubectl_reads_executes_and_forwards_through_both_hubs(stage: &mut Stage) -> Outcome {
    stage.two_tunnels().await?;
    let kubectl = stage.through_hub().await?;
    for _ in 0..ASKED {
        let phase = kubectl.ok(&["get", "pod", POD, "-o", "jsonpath={.status.phase}"]).await?;
        ensure!(phase == "Running", "{phase:?}");
    }
    let output = kubectl
        .run(&["exec", "-i", POD, "--", "sh", "-c", "cat; echo to stderr >&2; exit 7"], b"from stdin\n")
        .await?;
    ensure!(output.stdout == "from stdin\n", "{output:?}");
    ensure!(output.stderr.contains("to stderr") && output.code == 7, "{output:?}");
    let mut logs = kubectl.spawn(&["logs", "-f", POD, "--tail=1"])?;
    for _ in 0..3 {
        logs.line(SOON).await?.context("the log ended")?;
    }
    logs.kill().await?;
    forward(&kubectl).await?;
    for (pod, _) in stage.pods(&stage.parent, "clusternet-hub").await? {
        let log = stage.parent.kubectl().ok(&["-n", SYSTEM, "logs", &pod]).await?;
        let asked = log.lines().filter(|line| line.contains(&format!("/pods/{POD}"))).count();
        ensure!(asked > 0, "{pod} was never asked");
    }
    Ok(())
}

async fn forward(kubectl: &Kubectl) -> Outcome {
    let mut forward = kubectl.spawn(&["port-forward", &format!("pod/{POD}"), ":8080"])?;
    let line = forward.line_with("Forwarding from 127.0.0.1:", SOON).await?;
    let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).context("a port")?;
    let mut stream = TcpStream::connect(("127.0.0.1", port.parse()?)).await?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1."), "{answer:?}");
    forward.kill().await
}
