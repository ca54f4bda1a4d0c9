//! Two replicas of the hub and one tunnel: whoever asks the replica that has none reaches the child through the other one,
//! and when that one is killed, the agent and the controllers come to the first.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tests::bench::load::{Client, Target};
use tests::process::wait_until;
use tests::world::{SYSTEM, World, free_port};

use crate::Outcome;

const SOON: Duration = Duration::from_secs(30);
/// A Lease counts for 10 s, then another replica takes it.
const LEADS: Duration = Duration::from_secs(40);
/// Fifty requests a second, as many as nobody is told to wait for.
const PACE: Duration = Duration::from_millis(20);
/// What a request may be answered with while its cluster is on its way to another replica.
const AWAY: [&str; 2] = ["502", "503"];

fn peer_arguments(name: &str, port: u16) -> Vec<String> {
    let address = format!("127.0.0.1:{port}");
    ["--hub-id", name, "--peer-listen", &address, "--peer-address", &address].map(str::to_owned).into()
}

/// The child's API at a replica, as the aggregator asks there for the parent's administrator.
async fn child_at(world: &World, port: u16) -> Result<Target> {
    let prefix = format!("/apis/proxies.clusternet.io/v1alpha1/sockets/{}/proxy/direct", world.cluster_id);
    let headers = [("x-remote-user", "kubernetes-admin"), ("x-remote-group", "system:masters")];
    Ok(world.hub_at(port).await?.below(prefix, &headers))
}

async fn leader(world: &World) -> Result<String> {
    let holder =
        ["-n", SYSTEM, "get", "lease", "clusternet-hub-controllers", "-o", "jsonpath={.spec.holderIdentity}"];
    world.parent().kubectl().ok(&holder).await
}

pub(crate) async fn any_replica_serves_the_cluster_and_one_of_two_may_be_killed(
    world: &mut World,
) -> Outcome {
    let usual = world.set_hub_arguments(&[]);
    let with_peers = [usual.clone(), peer_arguments("hub-1", free_port()?)].concat();
    world.set_hub_arguments(&with_peers.iter().map(String::as_str).collect::<Vec<_>>());
    world.stop_hub();
    world.start_hub().await?;
    let admin = world.admin_through_hub().await?;
    wait_until("the agent to be back at the first", SOON, async || {
        admin.ok(&["get", "--raw", "/version"]).await
    })
    .await?;
    wait_until("the first to lead", LEADS, async || {
        let leads = leader(world).await?;
        if leads.starts_with("hub-1_") { Ok(()) } else { bail!("{leads:?} leads") }
    })
    .await?;

    let (second, port) = world.launch_second_hub(&peer_arguments("hub-2", free_port()?)).await?;
    let at_second = child_at(world, port).await?;
    wait_until("the second to reach the child through the first", SOON, async || {
        second.check()?;
        Client::connect(&at_second).await?.get("/version").await
    })
    .await?;
    // The agent's tunnel stays where it is; what people ask goes to the second from now on.
    world.lead_parent_to(port).await?;
    let said = admin.ok_with(&["exec", "-i", "web", "--", "cat"], b"through two hubs").await?;
    ensure!(said == "through two hubs", "{said:?}");
    let pods = admin.ok(&["get", "pods", "-o", "name"]).await?;
    ensure!(pods.contains("pod/web"), "{pods}");
    let mut open = admin.spawn(&["logs", "-f", "web", "--tail=1"])?;
    open.line(SOON).await?.context("a line of the log through two hubs")?;

    let client = Client::connect(&at_second).await?;
    world.kill_hub();
    let killed = Instant::now();
    let (mut refused, mut back) = (Vec::new(), 0_u32);
    let mut pace = tokio::time::interval(PACE);
    while back < 20 {
        pace.tick().await;
        ensure!(killed.elapsed() < SOON, "the child is not back: {refused:?}");
        match client.get("/version").await {
            Ok(_) => back += 1,
            Err(error) => {
                let why = format!("{error:#}");
                ensure!(AWAY.iter().any(|status| why.contains(status)), "a wrong answer: {why}");
                ensure!(back == 0, "answered, then not again: {why}");
                refused.push(killed.elapsed());
            }
        }
    }
    tests::say(&format!(
        "    {} requests were refused, the last {:.2} s after the kill",
        refused.len(),
        refused.last().copied().unwrap_or_default().as_secs_f64()
    ));
    while open.line(SOON).await?.is_some() {
        ensure!(killed.elapsed() < SOON, "a log through a dead hub goes on");
    }
    wait_until("the second to lead", LEADS, async || {
        let leads = leader(world).await?;
        if leads.starts_with("hub-2_") { Ok(()) } else { bail!("{leads:?} leads") }
    })
    .await?;
    tests::say(&format!("    the second leads {:.1} s after the kill", killed.elapsed().as_secs_f64()));

    world.set_hub_arguments(&usual.iter().map(String::as_str).collect::<Vec<_>>());
    world.launch_hub().await?;
    world.lead_parent_to(world.hub_port()).await?;
    drop(second);
    world.wait_ready(Duration::from_secs(60)).await
}
