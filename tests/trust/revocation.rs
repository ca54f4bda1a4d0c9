//! How fast a right ends: what a person does in the parent, and how long the cluster's open streams, its tunnel and
//! its agent's credential outlive it. The figures are printed.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use http::{Method, StatusCode};
use serde_json::json;
use tests::kubectl::{Kubectl, Running};
use tests::process::wait_until;
use tests::world::{CHILD, POD, World};

use crate::Outcome;
use crate::credential::{Holder, held};

/// Streams, tunnel and reconnect end by then.
const LIMIT: Duration = Duration::from_secs(5);
/// A kube-apiserver believes a token for up to 10 s after its account was deleted (apiserver
/// `authenticator/token/cache`), and its informer is a moment behind.
const TOKEN_CACHE: Duration = Duration::from_secs(12);
const SOON: Duration = Duration::from_secs(20);

/// What is open through the hub while the right ends.
struct Open(Vec<(&'static str, Running)>);

impl Open {
    async fn start(kubectl: &Kubectl) -> anyhow::Result<Self> {
        let tick = "while true; do echo tick; sleep 0.2; done";
        let columns = "custom-columns=NAME:.metadata.name";
        let mut open = vec![
            ("logs", kubectl.spawn(&["logs", "-f", POD, "--tail=1"])?),
            ("exec", kubectl.spawn(&["exec", "-i", POD, "--", "sh", "-c", tick])?),
            ("watch", kubectl.spawn(&["get", "configmaps", "-w", "--no-headers", "-o", columns])?),
        ];
        for (what, running) in &mut open {
            running.line(SOON).await?.with_context(|| format!("{what} printed nothing"))?;
        }
        Ok(Self(open))
    }

    /// How long each still said something after this moment.
    async fn ended(self, since: Instant) -> anyhow::Result<Vec<(&'static str, Duration)>> {
        let all = self.0.into_iter().map(|(what, mut running)| async move {
            let mut last = since;
            while running.line(SOON).await?.is_some() {
                last = Instant::now();
            }
            ensure!(since.elapsed() < SOON, "{what} goes on");
            // The end of the stream is what its user sees; the last byte came before.
            tests::say(&format!("  {what}: last line after {:.1?}", last - since));
            Ok((what, since.elapsed()))
        });
        futures::future::try_join_all(all).await
    }
}

/// Does it, and measures what outlives it.
async fn revoke(world: &World, what: &str, act: impl AsyncFnOnce() -> Outcome) -> Outcome {
    let through_hub = world.admin_through_hub().await?;
    let holder = Holder::new(world, &held(world).await?).await?;
    let before = holder.attach(&world.cluster_id).await?;
    ensure!(before == StatusCode::SWITCHING_PROTOCOLS, "{what}: the credential was no good before: {before}");
    let open = Open::start(&through_hub).await?;

    let began = Instant::now();
    act().await?;
    // From the command's own end on: what a person waits for it is not the hub's.
    let since = Instant::now();
    let streams = open.ended(since);
    let refused = async {
        let code = wait_until("the credential to be refused", SOON, async || {
            let code = holder.attach(&world.cluster_id).await?;
            if code == StatusCode::SWITCHING_PROTOCOLS { bail!("it opens a tunnel") } else { Ok(code) }
        })
        .await?;
        anyhow::Ok((code, since.elapsed()))
    };
    let offline = async {
        // When it was sent: a kubectl that is told 503 tries ten times before it says so.
        wait_until("requests to be refused", SOON, async || {
            let sent = since.elapsed();
            let answer = through_hub.run(&["get", "--raw", "/version"], b"").await?;
            if answer.code == 0 { bail!("the child answers") } else { Ok(sent) }
        })
        .await
    };
    let (streams, (code, refused), offline) = futures::try_join!(streams, refused, offline)?;
    tests::say(&format!("{what}: the command took {:.1?}", since - began));
    for (stream, took) in &streams {
        tests::say(&format!("{what}: {stream} ended after {took:.1?}"));
    }
    tests::say(&format!(
        "{what}: requests refused from {offline:.1?} on, a new tunnel after {refused:.1?} ({code})"
    ));
    for (stream, took) in streams.into_iter().chain([("requests", offline), ("a new tunnel", refused)]) {
        ensure!(took <= LIMIT, "{what}: {stream} for {took:?}");
    }
    // And it stays so, whatever the agent tries meanwhile.
    let id = &world.cluster_id;
    while since.elapsed() < TOKEN_CACHE {
        let code = holder.attach(id).await?;
        ensure!(code != StatusCode::SWITCHING_PROTOCOLS, "{what}: let in again after {:?}", since.elapsed());
    }
    Ok(())
}

/// When the parent itself says that the credential is none.
async fn void(holder: &Holder, what: &str, since: Instant) -> Outcome {
    wait_until("the parent to forget the credential", SOON, async || {
        match holder.ask(Method::GET, "/version").await? {
            StatusCode::UNAUTHORIZED => Ok(()),
            code => bail!("{code}"),
        }
    })
    .await?;
    tests::say(&format!("{what}: the parent's API answers 401 after {:.1?}", since.elapsed()));
    ensure!(since.elapsed() <= TOKEN_CACHE + LIMIT, "{what}: {:?}", since.elapsed());
    Ok(())
}

async fn join_again(world: &mut World) -> Outcome {
    world.register_and_apply().await?;
    world.wait_for_request().await?;
    world.cli(&["approve", CHILD, "--yes"]).await?;
    world.wait_ready(Duration::from_secs(90)).await
}

pub(crate) async fn deleting_the_request_of_a_registered_cluster_takes_nothing_from_it(
    world: &mut World,
) -> Outcome {
    let through_hub = world.admin_through_hub().await?;
    let mut open = through_hub.spawn(&["logs", "-f", POD, "--tail=1"])?;
    open.line(SOON).await?.context("the log ended")?;
    let request = format!("clusternet-{}", world.cluster_id);
    world.parent().kubectl().ok(&["delete", "clsrr", &request]).await?;
    let since = Instant::now();
    while since.elapsed() < LIMIT {
        open.line(SOON).await?.context("the log ended with the request")?;
    }
    through_hub.ok(&["get", "--raw", "/version"]).await?;
    open.kill().await
}

pub(crate) async fn denying_ends_everything_within_five_seconds_and_approving_brings_it_back(
    world: &mut World,
) -> Outcome {
    let holder = Holder::new(world, &held(world).await?).await?;
    revoke(world, "deny", async || world.cli(&["deny", CHILD]).await.map(drop)).await?;
    let refused = holder.attach(&world.cluster_id).await?;
    ensure!(refused == StatusCode::FORBIDDEN, "straight at the parent: {refused}");
    world.cli(&["approve", CHILD, "--yes"]).await?;
    world.wait_ready(Duration::from_secs(90)).await
}

pub(crate) async fn deleting_the_service_account_ends_everything_within_five_seconds(
    world: &mut World,
) -> Outcome {
    let object = world.managed_cluster().await?;
    let space = object["metadata"]["namespace"].as_str().context("namespace")?.to_owned();
    let holder = Holder::new(world, &held(world).await?).await?;
    let began = Instant::now();
    revoke(world, "delete the service account", async || {
        let delete = ["-n", &space, "delete", "serviceaccount", "clusternet-agent"];
        world.parent().kubectl().ok(&delete).await.map(drop)
    })
    .await?;
    void(&holder, "delete the service account", began).await?;
    // The way back is the one that the agent's log names.
    world.cli(&["unregister", CHILD, "--yes"]).await?;
    join_again(world).await
}

pub(crate) async fn deleting_the_cluster_ends_everything_within_five_seconds(world: &mut World) -> Outcome {
    let object = world.managed_cluster().await?;
    let space = object["metadata"]["namespace"].as_str().context("namespace")?.to_owned();
    let name = object["metadata"]["name"].as_str().context("name")?.to_owned();
    let holder = Holder::new(world, &held(world).await?).await?;
    let began = Instant::now();
    revoke(world, "delete the cluster", async || {
        world.parent().kubectl().ok(&["-n", &space, "delete", "mcls", &name]).await.map(drop)
    })
    .await?;
    void(&holder, "delete the cluster", began).await?;
    let left = json!(world.parent().kubectl().ok(&["get", "clsrr", "-o", "name"]).await?);
    ensure!(!left.to_string().contains(&world.cluster_id), "its request is left: {left}");
    join_again(world).await
}
