//! What is left behind in hub and agent by what was open in them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::kubectl::{Kubectl, Running};
use tests::process::wait_until;
use tests::scratch::contained;
use tests::world::{POD, World};

use crate::Outcome;

/// Open at once, of each kind; each exec has a connection of its own on both sides.
const OPEN: usize = 8;
/// For kubectl, API servers and what lies between them to let go of a connection that is not used any more.
const SETTLES: Duration = Duration::from_secs(30);
/// Connections that are kept for the next request come and go: the aggregator's, the agent's to its API server.
const KEPT: usize = 6;

/// Open descriptors of the hub and of the agent.
fn descriptors(world: &World) -> Result<[usize; 2]> {
    let agents = contained(world.scratch().name(), "/towline-agent");
    let [agent] = agents[..] else { anyhow::bail!("{} agents run", agents.len()) };
    let count = |pid: u32| {
        let path = format!("/proc/{pid}/fd");
        anyhow::Ok(std::fs::read_dir(&path).context(path)?.count())
    };
    Ok([count(world.hub()?.pid())?, count(agent)?])
}

/// Opens logs, watches and execs, and waits until each has begun.
async fn open(kubectl: &Kubectl) -> Result<Vec<Running>> {
    let mut open = Vec::new();
    for _ in 0..OPEN {
        for command in [
            &["logs", "-f", POD, "--tail=1"][..],
            &["get", "configmaps", "-A", "--watch", "--no-headers"],
            &["exec", "-i", POD, "--", "sh", "-c", "echo here; cat"],
        ] {
            let mut running = kubectl.spawn(command)?;
            running.line(Duration::from_secs(30)).await?.context("it ended at once")?;
            open.push(running);
        }
    }
    Ok(open)
}

pub(crate) async fn what_was_open_leaves_no_descriptor_in_hub_or_agent(world: &mut World) -> Outcome {
    let kubectl = world.admin_through_hub().await?;
    // After all other tests of streams: whatever is opened once and kept, is there.
    let [hub, agent] = descriptors(world)?;
    let mut most = [0, 0];
    for _ in 0..3 {
        let running = open(&kubectl).await?;
        let [in_hub, in_agent] = descriptors(world)?;
        most = [most[0].max(in_hub), most[1].max(in_agent)];
        for running in running {
            running.kill().await?;
        }
    }
    let left = wait_until("hub and agent to let go", SETTLES, async || {
        let [in_hub, in_agent] = descriptors(world)?;
        ensure!(in_hub <= hub + KEPT && in_agent <= agent + KEPT, "{in_hub} and {in_agent}");
        Ok([in_hub, in_agent])
    })
    .await?;
    let was_open = most.iter().zip(left).all(|(most, left)| *most >= left + OPEN / 2);
    ensure!(was_open, "{most:?} while streams were open, {left:?} after: nothing was counted");
    tests::say(&format!(
        "    descriptors of hub and agent: {hub} and {agent}, {most:?} meanwhile, {left:?} after"
    ));
    Ok(())
}
