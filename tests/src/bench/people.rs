//! What a person waits for at the command line: a list of thousands of clusters, a kubeconfig, an answer about a cluster
//! whose agent has died. Whole processes are timed, from their start to their end, beside `kubectl` for the same objects.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::load::percentile;
use crate::kubectl::Kubectl;

/// Times `kubectl towline` (`cli`) and `kubectl`, both as the parent's administrator, with so many clusters there.
///
/// # Errors
/// A command fails, or lists fewer clusters than there are.
pub async fn figures(cli: &Kubectl, kubectl: &Kubectl, clusters: usize, rounds: usize) -> Result<Value> {
    let all = |text: &str| {
        let shown = text.lines().count();
        ensure!(shown > clusters, "{shown} lines for {clusters} clusters");
        Ok(())
    };
    let list = timed(cli, &["clusters"], rounds, all).await?;
    let plain = timed(kubectl, &["get", "mcls", "-A"], rounds, all).await?;
    let kubeconfig = timed(cli, &["kubeconfig", "bench-0"], rounds, |text| {
        ensure!(text.contains("current-context"), "no kubeconfig: {text}");
        Ok(())
    })
    .await?;
    Ok(json!({ "clusters": clusters, "list_ms": list, "kubectl_get_ms": plain, "kubeconfig_ms": kubeconfig }))
}

async fn timed(
    command: &Kubectl,
    arguments: &[&str],
    rounds: usize,
    right: impl Fn(&str) -> Result<()>,
) -> Result<Value> {
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let asked = Instant::now();
        let answer = command.ok(arguments).await?;
        times.push(asked.elapsed());
        right(&answer)?;
    }
    let millis = |time: Duration| (time.as_secs_f64() * 1e4).round() / 10.0;
    Ok(json!({ "p50": millis(percentile(&mut times, 0.5)), "most": millis(percentile(&mut times, 1.0)) }))
}
