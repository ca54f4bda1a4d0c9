//! What happens to open and to new requests when a part dies.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tests::kubectl::{Kubectl, Running};
use tests::process::wait_until;
use tests::world::{POD, SYSTEM, World};

use crate::Outcome;

/// "What is new works within 5 s."
const BACK: Duration = Duration::from_secs(5);
/// How long an open stream may take to learn that its other end is gone.
const ENDS: Duration = Duration::from_secs(20);

async fn follow(kubectl: &Kubectl) -> Result<Running> {
    let mut logs = kubectl.spawn(&["logs", "-f", POD, "--tail=1"])?;
    logs.line(Duration::from_secs(15)).await?.context("the log ended at once")?;
    Ok(logs)
}

/// Reads the stream to its end, which must come, and must not look like a success.
async fn ends_with_an_error(mut stream: Running) -> Outcome {
    let end = Instant::now() + ENDS;
    while stream.line(ENDS).await?.is_some() {
        ensure!(Instant::now() < end, "the stream is still open");
    }
    let code = stream.end(ENDS).await?;
    ensure!(code != 0, "an open stream was cut, and kubectl ended with 0");
    Ok(())
}

async fn works_within(kubectl: &Kubectl, limit: Duration) -> Outcome {
    let started = Instant::now();
    wait_until("a new request to work", limit, async || kubectl.ok(&["get", "pod", POD]).await.map(drop))
        .await?;
    tests::say(&format!("    new requests work after {:.1} s", started.elapsed().as_secs_f64()));
    Ok(())
}

pub(crate) async fn a_killed_agent_ends_what_was_open_and_is_back_within_seconds(
    world: &mut World,
) -> Outcome {
    let kubectl = world.admin_through_hub().await?;
    let open = follow(&kubectl).await?;
    world.kill_agent()?;
    // First the new, for it is the one in a hurry.
    works_within(&kubectl, BACK).await?;
    ends_with_an_error(open).await
}

pub(crate) async fn a_restarted_child_apiserver_is_reached_again_within_seconds(
    world: &mut World,
) -> Outcome {
    let kubectl = world.admin_through_hub().await?;
    let mut open = kubectl.spawn(&["get", "configmaps", "--watch", "--no-headers"])?;
    open.line(Duration::from_secs(15)).await?;
    let (child, scratch) = world.child_mut();
    child.plane.restart_apiserver(scratch).await?;
    works_within(&kubectl, BACK).await?;
    let end = Instant::now() + ENDS;
    while open.line(ENDS).await?.is_some() {
        ensure!(Instant::now() < end, "the watch on the old apiserver is still open");
    }
    Ok(())
}

pub(crate) async fn a_stopped_hub_leaves_cleanly_and_agents_come_back(world: &mut World) -> Outcome {
    let kubectl = world.admin_through_hub().await?;
    let open = follow(&kubectl).await?;
    let status = world.stop_hub().context("the hub ran")?;
    ensure!(status.success(), "SIGTERM ended the hub with {status}");
    ends_with_an_error(open).await?;
    world.start_hub().await?;
    works_within(&kubectl, BACK).await
}

pub(crate) async fn a_killed_hub_ends_what_was_open_and_agents_come_back(world: &mut World) -> Outcome {
    let kubectl = world.admin_through_hub().await?;
    let open = follow(&kubectl).await?;
    world.kill_hub();
    ends_with_an_error(open).await?;
    world.start_hub().await?;
    works_within(&kubectl, BACK).await
}

/// Not before what it is now has settled: a kubelet 1.20 that is told of a pod's end while it starts it looks at that pod again a
/// minute and a half later.
pub(crate) async fn scale_agent(world: &World, replicas: u32) -> Outcome {
    let (child, agent) = (world.child().kubectl(), "deployment/clusternet-agent");
    child.ok(&["-n", SYSTEM, "rollout", "status", agent, "--timeout=25s"]).await?;
    child.ok(&["-n", SYSTEM, "scale", agent, &format!("--replicas={replicas}")]).await.map(drop)
}

pub(crate) async fn an_offline_cluster_is_refused_within_a_second_and_says_since_when(
    world: &mut World,
) -> Outcome {
    let kubectl = world.admin_through_hub().await?;
    scale_agent(world, 0).await?;
    wait_until("the parent to call it not ready", Duration::from_secs(30), async || {
        let ready = world.condition("Ready").await?;
        if ready["status"] == "False" { Ok(()) } else { bail!("{ready}") }
    })
    .await?;
    // Moments after the loss a client is told to retry; then the answer is final, and comes at once.
    let refused = wait_until("a final refusal within a second", Duration::from_secs(40), async || {
        let asked = Instant::now();
        let refused = kubectl.run(&["get", "--raw", "/version"], b"").await?;
        let took = asked.elapsed();
        ensure!(refused.code != 0, "an offline cluster answers");
        ensure!(refused.stderr.contains("is not connected"), "{}", refused.stderr);
        ensure!(took < Duration::from_secs(1), "refused after {took:?}");
        Ok(refused)
    })
    .await?;
    ensure!(refused.stderr.contains("since"), "{refused:?}");
    scale_agent(world, 1).await?;
    world.wait_ready(Duration::from_secs(60)).await
}

pub(crate) async fn a_silent_link_is_noticed_and_mends(world: &mut World) -> Outcome {
    let network = world.child().network().context("behind NAT")?;
    let kubectl = world.admin_through_hub().await?;
    network.set_cut(true)?;
    let cut = Instant::now();
    wait_until("the hub to notice", Duration::from_secs(60), async || {
        let tunnel = world.condition("TunnelConnected").await?;
        if tunnel["status"] == "False" { Ok(()) } else { bail!("{tunnel}") }
    })
    .await?;
    // 45 s for the tunnel, 10 s for the object.
    ensure!(cut.elapsed() < Duration::from_secs(56), "the hub noticed after {:?}", cut.elapsed());
    tests::say(&format!("    the hub noticed after {:.0} s", cut.elapsed().as_secs_f64()));
    network.set_cut(false)?;
    world.wait_ready(Duration::from_secs(75)).await?;
    works_within(&kubectl, BACK).await
}
