//! What a person waits for at the command line: a list of thousands of clusters, a kubeconfig, an answer about a cluster
//! whose agent has died. Whole processes are timed, from their start to their end, beside `kubectl` for the same objects.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::options::Size;
use super::report::{Grid, Section};
use super::ways::millis;
use crate::kubectl::Kubectl;

/// Times `kubectl towline` (`cli`) and `kubectl`, both as the parent's administrator, with so many clusters there.
///
/// # Errors
/// A command fails, or lists fewer clusters than there are.
pub async fn people(cli: &Kubectl, kubectl: &Kubectl, size: &Size) -> Result<Section> {
    let (clusters, rounds) = (size.clusters, size.rounds);
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
    let mut grid = Grid::new([("ms", "ms")]);
    grid.row("kubeconfig", "`kubectl towline kubeconfig NAME`", 0, vec![kubeconfig]);
    grid.row("list", "`kubectl towline clusters`", 0, vec![list]);
    grid.row("kubectl_get", "`kubectl get mcls -A`, for comparison", 0, vec![plain]);
    Ok(Section {
        name: "people",
        about: format!(
            "At the command line: whole processes, from their start to their end, with {clusters} clusters in the parent. {rounds} rounds."
        ),
        grid,
        charts: Vec::new(),
        circumstances: String::new(),
    })
}

async fn timed(
    command: &Kubectl,
    arguments: &[&str],
    rounds: usize,
    right: impl Fn(&str) -> Result<()>,
) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let asked = Instant::now();
        let answer = command.ok(arguments).await?;
        times.push(millis(asked.elapsed()));
        right(&answer)?;
    }
    Ok(times)
}
