//! Two replicas of the hub. With one tunnel, whoever asks the replica that has none reaches the child through the other one,
//! and when that one is killed, the agent and the controllers come to the first. With a tunnel at each, nobody notices.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tests::bench::load::{Client, Target};
use tests::front::Front;
use tests::process::{Process, wait_until};
use tests::world::{SYSTEM, World, free_port};

use crate::Outcome;

const SOON: Duration = Duration::from_secs(30);
/// A Lease counts for 10 s, then another replica takes it.
const LEADS: Duration = Duration::from_secs(40);
/// Agents are asked for a report at least once a minute.
const TOLD: Duration = Duration::from_secs(90);
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

/// The hub that runs is started again as one of two, and then the other one.
struct Two {
    second: Process,
    /// Where the second listens.
    port: u16,
    /// What the hub is usually started with.
    usual: Vec<String>,
}

impl Two {
    async fn start(world: &mut World) -> Result<Self> {
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
        Ok(Self { second, port, usual })
    }

    async fn end(self, world: &mut World) -> Outcome {
        world.set_hub_arguments(&self.usual.iter().map(String::as_str).collect::<Vec<_>>());
        world.launch_hub().await?;
        world.lead_parent_to(world.hub_port()).await?;
        drop(self.second);
        world.wait_ready(Duration::from_secs(60)).await
    }
}

/// Asks fifty times a second until the child has answered for a while; how long after the kill others than it answered.
async fn refusals(client: &Client, killed: Instant) -> Result<Vec<Duration>> {
    let (mut refused, mut back) = (Vec::new(), 0_u32);
    let mut pace = tokio::time::interval(PACE);
    while back < 20 || killed.elapsed() < Duration::from_secs(1) {
        pace.tick().await;
        ensure!(killed.elapsed() < SOON, "the child is not back: {refused:?}");
        match client.get("/version").await {
            Ok(_) => back += 1,
            Err(error) => {
                let why = format!("{error:#}");
                ensure!(AWAY.iter().any(|status| why.contains(status)), "a wrong answer: {why}");
                ensure!(back < 20, "answered, then not again: {why}");
                back = 0;
                refused.push(killed.elapsed());
            }
        }
    }
    tests::say(&format!(
        "    {} requests were refused, the last {:.2} s after the kill",
        refused.len(),
        refused.last().copied().unwrap_or_default().as_secs_f64()
    ));
    Ok(refused)
}

/// Replaces the agent by one that has this in its environment.
async fn limit_tunnels(world: &World, variable: &str) -> Outcome {
    let child = world.child().kubectl();
    let agent = "deployment/clusternet-agent";
    child.ok(&["-n", SYSTEM, "set", "env", agent, variable]).await?;
    child.ok(&["-n", SYSTEM, "rollout", "status", agent, "--timeout=60s"]).await?;
    world.wait_ready(SOON).await
}

pub(crate) async fn any_replica_serves_the_cluster_and_one_of_two_may_be_killed(
    world: &mut World,
) -> Outcome {
    limit_tunnels(world, "TOWLINE_TUNNELS=1").await?;
    let two = Two::start(world).await?;
    let admin = world.admin_through_hub().await?;
    // The agent's one tunnel stays where it is; what people ask goes to the second from now on.
    world.lead_parent_to(two.port).await?;
    let said = admin.ok_with(&["exec", "-i", "web", "--", "cat"], b"through two hubs").await?;
    ensure!(said == "through two hubs", "{said:?}");
    let pods = admin.ok(&["get", "pods", "-o", "name"]).await?;
    ensure!(pods.contains("pod/web"), "{pods}");
    let mut open = admin.spawn(&["logs", "-f", "web", "--tail=1"])?;
    open.line(SOON).await?.context("a line of the log through two hubs")?;

    let client = Client::connect(&child_at(world, two.port).await?).await?;
    world.kill_hub();
    let killed = Instant::now();
    refusals(&client, killed).await?;
    while open.line(SOON).await?.is_some() {
        ensure!(killed.elapsed() < SOON, "a log through a dead hub goes on");
    }
    wait_until("the second to lead", LEADS, async || {
        let leads = leader(world).await?;
        if leads.starts_with("hub-2_") { Ok(()) } else { bail!("{leads:?} leads") }
    })
    .await?;
    tests::say(&format!("    the second leads {:.1} s after the kill", killed.elapsed().as_secs_f64()));
    two.end(world).await?;
    limit_tunnels(world, "TOWLINE_TUNNELS-").await
}

pub(crate) async fn an_agent_with_a_tunnel_at_each_of_two_replicas_is_lost_with_neither(
    world: &mut World,
) -> Outcome {
    let two = Two::start(world).await?;
    // An agent cannot have come to the second yet; a log may have lines of an earlier test.
    let opened = || anyhow::Ok(two.second.log_text()?.matches("a tunnel is open").count());
    let before = opened()?;
    // The agent hears of the second replica with the next report that it is asked for, and dials once more; the parent
    // leads to the second now, as a Service leads to any.
    let front = Front::start(vec![two.port, world.hub_port()]).await?;
    world.lead_parent_to(front.port()).await?;
    wait_until("a tunnel at the second", TOLD, async || {
        two.second.check()?;
        if opened()? > before { Ok(()) } else { bail!("none yet") }
    })
    .await?;
    let client = Client::connect(&child_at(world, two.port).await?).await?;
    world.kill_hub();
    let refused = refusals(&client, Instant::now()).await?;
    ensure!(refused.is_empty(), "the second had a tunnel of its own, and refused: {refused:?}");
    two.end(world).await
}
