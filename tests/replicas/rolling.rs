//! The two rolling restarts. What a Deployment and a Service do to the hub is done here by hand, since the parent has no
//! node; the agent's Deployment is a real one.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tests::bench::load::{Client, Target};
use tests::crowd::{Crowd, Shell};
use tests::front::Front;
use tests::process::{Process, wait_until};
use tests::world::{SYSTEM, World};

use crate::Outcome;

const SOON: Duration = Duration::from_secs(60);
/// What the hub that goes is started with. Within the delay the endpoints follow the readiness, and the agent comes.
const LEAVING: [&str; 6] = ["--hub-id", "leaving", "--shutdown-delay", "8s", "--shutdown-grace", "15s"];

/// The path of the administrator's kubeconfig of the child.
async fn kubeconfig(world: &World) -> Result<PathBuf> {
    world.admin_through_hub().await?;
    Ok(world.scratch().path().join("kubeconfigs/edge-1.kubeconfig"))
}

/// The agent's pods: their names, and whether each is on its way out.
async fn pods(world: &World) -> Result<Vec<(String, bool)>> {
    let listed = world.child().kubectl().ok(&["-n", SYSTEM, "get", "pods", "-o", "json"]).await?;
    let listed: Value = serde_json::from_str(&listed)?;
    let items = listed["items"].as_array().cloned().unwrap_or_default();
    let agents = items.into_iter().filter_map(|pod| {
        let name = pod["metadata"]["name"].as_str()?.to_owned();
        name.starts_with("clusternet-agent").then(|| (name, !pod["metadata"]["deletionTimestamp"].is_null()))
    });
    Ok(agents.collect())
}

pub(crate) async fn a_rolling_update_of_the_agent_fails_no_request_and_cuts_no_watch(
    world: &mut World,
) -> Outcome {
    let path = kubeconfig(world).await?;
    let crowd = Crowd::gather(&path, world.child().kubectl()).await?;
    let mut shell = Shell::open(&path).await?;
    let before = pods(world).await?;
    let child = world.child().kubectl();
    child.ok(&["-n", SYSTEM, "rollout", "restart", "deployment/clusternet-agent"]).await?;
    wait_until("the former agent to be told to stop", SOON, async || {
        let now = pods(world).await?;
        let leaving = now.iter().any(|(name, leaving)| *leaving && before.iter().any(|(old, _)| old == name));
        if leaving { Ok(()) } else { bail!("{now:?}") }
    })
    .await?;
    shell.answers("in the grace period").await.context("the shell")?;
    drop(shell);
    crowd.goes_on().await?;
    wait_until("the former agent to be gone", SOON, async || {
        let now = pods(world).await?;
        if now.len() == 1 && !before.contains(&now[0]) { Ok(()) } else { bail!("{now:?}") }
    })
    .await?;
    crowd.goes_on().await?;
    let conflict = world.condition("Conflict").await?;
    ensure!(conflict["status"] != "True", "the successor was taken for another agent: {conflict}");
    crowd.unharmed("a rolling update of the agent")
}

/// What a kubelet asks.
async fn readyz(target: &Target) -> Result<usize> {
    Client::connect(target).await?.get("/readyz").await
}

async fn ready(world: &World, hub: &Process, port: u16) -> Result<Target> {
    let target = world.hub_at(port).await?;
    wait_until("the hub to be ready", SOON, async || {
        hub.check()?;
        readyz(&target).await.map(drop)
    })
    .await?;
    Ok(target)
}

pub(crate) async fn a_rolling_restart_of_the_hub_fails_no_request_and_cuts_no_watch(
    world: &mut World,
) -> Outcome {
    // The one that goes is the second one, since it is started as the test wants it.
    let (leaving, port) = world.launch_second_hub(&LEAVING.map(str::to_owned)).await?;
    let target = ready(world, &leaving, port).await?;
    let front = Front::start(vec![port]).await?;
    world.lead_parent_to(front.port()).await?;
    world.stop_hub().context("the hub ran")?;
    world.wait_ready(SOON).await?;

    let path = kubeconfig(world).await?;
    let crowd = Crowd::gather(&path, world.child().kubectl()).await?;
    let mut shell = Shell::open(&path).await?;
    // The new one is up before the old one goes.
    world.launch_hub().await?;
    ready(world, world.hub()?, world.hub_port()).await?;
    leaving.signal("TERM");
    wait_until("the old hub to call itself unready", SOON, async || match readyz(&target).await {
        Ok(_) => bail!("it is ready"),
        Err(_) => Ok(()),
    })
    .await?;
    front.lead_to(vec![world.hub_port()]);
    crowd.goes_on().await?;
    shell.answers("in the grace period").await.context("the shell")?;
    drop(shell);
    wait_until("the old hub to end", SOON, async || leaving.exit_status().map(drop).context("it runs"))
        .await?;
    let status = leaving.exit_status().context("it has ended")?;
    ensure!(status.success(), "SIGTERM ended the hub with {status}");
    crowd.goes_on().await?;
    let unharmed = crowd.unharmed("a rolling restart of the hub");

    world.lead_parent_to(world.hub_port()).await?;
    drop((leaving, front));
    world.wait_ready(SOON).await?;
    unharmed
}
