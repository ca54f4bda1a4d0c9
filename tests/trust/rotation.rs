//! Keys and certificates that change while people work: a steady stream of requests through the hub, of which none may
//! fail while old and new overlap, and a watch that lives through it where nothing cuts its connection.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tests::bench::load::{Client, Target};
use tests::kubectl::Running;
use tests::pki::Authority;
use tests::process::wait_until;
use tests::world::{SYSTEM, World, unbase64};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::Outcome;

/// A hub looks at its certificate every 20 s, and serves by a new CA a round after it has announced it.
const TWO_ROUNDS: Duration = Duration::from_secs(75);
const SOON: Duration = Duration::from_secs(30);
/// Pause between two requests of one stream.
const PACE: Duration = Duration::from_millis(40);
/// What a right may outlive the change that ends it.
const GONE: Duration = Duration::from_secs(60);
/// What is asked in the child, again and again.
const PATH: &str = "/api/v1/namespaces/default";
const HUB_TLS: &str = "clusternet-hub-tls";
const NEW_CERTIFICATE: &str = "a new serving certificate is in use";

/// What became of the requests so far.
#[derive(Debug, Default)]
struct Tally {
    done: u64,
    failed: Vec<(Instant, String)>,
}

/// Requests through parent, hub and tunnel, one after the other, until it is dropped.
struct Traffic {
    tally: Arc<Mutex<Tally>>,
    _stream: JoinSet<()>,
}

impl Traffic {
    /// As the parent's administrator, through the parent's kube-apiserver.
    async fn through_the_parent(world: &World) -> Result<Self> {
        world.admin_through_hub().await?;
        let path = world.scratch().path().join("kubeconfigs/edge-1.kubeconfig");
        let kubeconfig = kube::config::Kubeconfig::read_from(&path)?;
        let options = kube::config::KubeConfigOptions::default();
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        config.proxy_url = None;
        config.default_retry = false;
        let client = kube::Client::try_from(config)?;
        Ok(Self::start(move || {
            let client = client.clone();
            async move {
                let request = http::Request::get(PATH).body(Vec::new())?;
                client.request_text(request).await?;
                Ok(())
            }
        }))
    }

    /// As an aggregator that holds one connection.
    async fn held(target: Target) -> Result<Self> {
        let client = Arc::new(Client::connect(&target).await?);
        Ok(Self::start(move || {
            let client = Arc::clone(&client);
            async move { client.get(PATH).await.map(drop) }
        }))
    }

    /// As an aggregator that opens a connection for each request.
    fn anew(target: Target) -> Self {
        Self::start(move || {
            let target = target.clone();
            async move { Client::connect(&target).await?.get(PATH).await.map(drop) }
        })
    }

    fn start<F, Asking>(ask: F) -> Self
    where
        F: Fn() -> Asking + Send + Sync + 'static,
        Asking: Future<Output = Result<()>> + Send,
    {
        let tally = Arc::new(Mutex::new(Tally::default()));
        let shared = Arc::clone(&tally);
        let mut stream = JoinSet::new();
        stream.spawn(async move {
            let mut clock = tokio::time::interval(PACE);
            clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                clock.tick().await;
                let answered = ask().await;
                let mut tally = shared.lock().unwrap_or_else(PoisonError::into_inner);
                match answered {
                    Ok(()) => tally.done += 1,
                    Err(error) => tally.failed.push((Instant::now(), format!("{error:#}"))),
                }
            }
        });
        Self { tally, _stream: stream }
    }

    fn tally(&self) -> Tally {
        std::mem::take(&mut *self.tally.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until so many more requests have been answered well.
    async fn goes_on(&self, more: u64) -> Outcome {
        let done = || self.tally.lock().unwrap_or_else(PoisonError::into_inner).done;
        let goal = done() + more;
        wait_until("requests to go on", SOON, async || {
            let done = done();
            if done >= goal { Ok(()) } else { bail!("{done} of {goal}") }
        })
        .await
    }

    /// Ends it, and demands that nothing failed.
    fn unharmed(self, what: &str) -> Outcome {
        let tally = self.tally();
        ensure!(tally.done > 0, "{what}: nothing was asked");
        let first = tally.failed.first().map(|(_, why)| why.as_str()).unwrap_or_default();
        ensure!(
            tally.failed.is_empty(),
            "{what}: {} of {} requests failed, the first: {first}",
            tally.failed.len(),
            tally.done
        );
        tests::say(&format!("{what}: {} requests, none failed", tally.done));
        Ok(())
    }
}

/// A watch through the hub, which is shown that it lives by a change in the child.
async fn watch(world: &World) -> Result<Running> {
    world.child().kubectl().apply(&marker("before")).await?;
    let columns = "custom-columns=MARK:.data.mark";
    let arguments = ["get", "configmap", "rotation", "--watch", "--no-headers", "-o", columns];
    let mut watch = world.admin_through_hub().await?.spawn(&arguments)?;
    watch.line_with("before", SOON).await?;
    Ok(watch)
}

async fn still_sees(world: &World, mut watch: Running, mark: &str) -> Outcome {
    world.child().kubectl().apply(&marker(mark)).await?;
    watch.line_with(mark, SOON).await.context("the watch did not live through it")?;
    watch.kill().await
}

fn marker(mark: &str) -> String {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "rotation" }, "data": { "mark": mark } })
        .to_string()
}

async fn secret(world: &World, key: &str) -> Result<String> {
    let path = format!("jsonpath={{.data.{}}}", key.replace('.', "\\."));
    let held = world.parent().kubectl().ok(&["-n", SYSTEM, "get", "secret", HUB_TLS, "-o", &path]).await?;
    Ok(String::from_utf8(unbase64(&held)?)?)
}

/// The hub at its own port, as the aggregator asks it for the child's API as the parent's administrator.
async fn as_aggregator(world: &World, client: Option<(&str, &str)>) -> Result<Target> {
    let prefix = format!("/apis/proxies.clusternet.io/v1alpha1/sockets/{}/proxy/direct", world.cluster_id);
    let headers = [("x-remote-user", "kubernetes-admin"), ("x-remote-group", "system:masters")];
    let Some(client) = client else {
        return Ok(world.hub_at(world.hub_port()).await?.below(prefix, &headers));
    };
    let address = ([127, 0, 0, 1], world.hub_port()).into();
    let ca = secret(world, "ca.crt").await?;
    let hub = Target::new(address, "clusternet-hub.clusternet-system.svc", &ca, Some(client))?;
    Ok(hub.below(prefix, &headers))
}

fn certificates_served(world: &World) -> Result<usize> {
    Ok(world.hub()?.log_text()?.matches(NEW_CERTIFICATE).count())
}

async fn wait_for_certificate(world: &World, before: usize) -> Outcome {
    wait_until("the hub to serve another certificate", TWO_ROUNDS, async || {
        if certificates_served(world)? > before { Ok(()) } else { bail!("not yet") }
    })
    .await
}

pub(crate) async fn a_new_serving_certificate_of_the_hub_fails_no_request(world: &mut World) -> Outcome {
    let before = (certificates_served(world)?, secret(world, "tls.crt").await?);
    let watch = watch(world).await?;
    let traffic = Traffic::through_the_parent(world).await?;
    let anew = Traffic::anew(as_aggregator(world, None).await?);
    // What an operator does who wants another one now.
    let patch = r#"{"data":{"tls.crt":"","tls.key":""}}"#;
    world.parent().kubectl().ok(&["-n", SYSTEM, "patch", "secret", HUB_TLS, "-p", patch]).await?;
    wait_for_certificate(world, before.0).await?;
    ensure!(secret(world, "tls.crt").await? != before.1, "the Secret holds the old certificate");
    traffic.goes_on(20).await?;
    anew.goes_on(20).await?;
    traffic.unharmed("a new serving certificate")?;
    anew.unharmed("a new serving certificate, each request on a new connection")?;
    still_sees(world, watch, "after-certificate").await
}

pub(crate) async fn a_new_ca_of_the_hub_fails_no_request_also_if_another_replica_made_it(
    world: &mut World,
) -> Outcome {
    let before = (certificates_served(world)?, secret(world, "ca.crt").await?);
    let watch = watch(world).await?;
    let traffic = Traffic::through_the_parent(world).await?;
    world.parent().kubectl().ok(&["-n", SYSTEM, "delete", "secret", HUB_TLS]).await?;
    let (mut second, port) = world.launch_second_hub(&[]).await?;
    wait_until("a new CA, beside the old one", TWO_ROUNDS, async || {
        second.check()?;
        let now = secret(world, "ca.crt").await?;
        ensure!(now != before.1 && now.contains(before.1.trim()), "not there yet");
        // Verified with what the parent was told.
        Client::connect(&world.hub_at(port).await?).await.map(drop)
    })
    .await?;
    // The bundle is announced; the first hub still serves by the old CA or serves by the new one: either is good.
    let anew = Traffic::anew(as_aggregator(world, None).await?);
    wait_for_certificate(world, before.0).await?;
    traffic.goes_on(20).await?;
    anew.goes_on(20).await?;
    second.stop();
    traffic.unharmed("a new CA of the hub")?;
    anew.unharmed("a new CA of the hub, each request on a new connection")?;
    still_sees(world, watch, "after-ca").await
}

pub(crate) async fn an_agents_credential_is_renewed_in_its_tunnel_and_nobody_notices(
    world: &mut World,
) -> Outcome {
    let child = world.child().kubectl().clone();
    let held = async |key: &str| -> Result<String> {
        let path = format!("jsonpath={{.data.{key}}}");
        let held = child.ok(&["-n", SYSTEM, "get", "secret", "parent-cluster", "-o", &path]).await?;
        Ok(String::from_utf8(unbase64(&held)?)?)
    };
    let (token, expires) = (held("token").await?, held("expires").await?);
    // An agent that says that its credential ends within a third of a day is given another one at once.
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(2);
    let soon = tests::world::base64(&soon.to_string());
    let patch = json!({ "data": { "expires": soon } }).to_string();
    child.ok(&["-n", SYSTEM, "patch", "secret", "parent-cluster", "-p", &patch]).await?;
    let traffic = Traffic::through_the_parent(world).await?;
    world.kill_agent()?;
    traffic.tally();
    wait_until("requests to fail without an agent", SOON, async || {
        if traffic.tally().failed.is_empty() { bail!("not yet") } else { Ok(()) }
    })
    .await?;
    world.wait_ready(Duration::from_secs(60)).await?;
    traffic.goes_on(5).await?;
    // From here on nothing has a reason to fail.
    traffic.tally();
    let watch = watch(world).await?;
    wait_until("another credential in the child", SOON, async || {
        let (now, until) = (held("token").await?, held("expires").await?);
        ensure!(now != token, "it is still the old one");
        ensure!(until >= expires, "it ends at {until}, the former one at {expires}");
        Ok(())
    })
    .await?;
    traffic.goes_on(20).await?;
    traffic.unharmed("a renewed credential")?;
    still_sees(world, watch, "after-renewal").await
}

pub(crate) async fn a_revoked_impersonator_is_replaced_within_seconds(world: &mut World) -> Outcome {
    let traffic = Traffic::through_the_parent(world).await?;
    traffic.goes_on(5).await?;
    let child = world.child().kubectl();
    child.ok(&["-n", SYSTEM, "delete", "serviceaccount", "clusternet-app-deployer"]).await?;
    child.apply(world.manifest()?).await?;
    // kube-apiserver believes a token for ten more seconds (apiserver `authenticator` cache); then comes a refusal,
    // or none, if the agent's renewal was first.
    let mut seen = Vec::new();
    let began = Instant::now();
    wait_until("the account of before to be worth nothing any more", GONE, async || {
        seen.extend(traffic.tally().failed);
        ensure!(!seen.is_empty() || began.elapsed() > Duration::from_secs(25), "it is still believed");
        Ok(())
    })
    .await?;
    traffic.goes_on(50).await?;
    seen.extend(traffic.tally().failed);
    if let (Some((first, why)), Some((last, _))) = (seen.first(), seen.last()) {
        ensure!(*last - *first < Duration::from_secs(10), "refused for {:?}: {why}", *last - *first);
        ensure!(
            !why.contains("401") && !why.contains("Unauthorized"),
            "the person was told to log in: {why}"
        );
    }
    tests::say(&format!("a revoked impersonator: {} requests were refused", seen.len()));
    traffic.goes_on(50).await?;
    traffic.unharmed("behind a revoked impersonator")
}

pub(crate) async fn a_new_front_proxy_ca_overlaps_and_the_old_one_is_cut_off(world: &mut World) -> Outcome {
    let directory = world.parent().plane.directory().to_owned();
    let file = |name: &str| std::fs::read_to_string(directory.join(name)).with_context(|| name.to_owned());
    let old_ca = file("front-proxy-ca.crt")?;
    let old = (file("front-proxy-client.crt")?, file("front-proxy-client.key")?);
    let authority = Authority::new("front-proxy-ca-2")?;
    let new_ca = authority.certificate_pem().to_owned();
    let new = authority.client("front-proxy-client", &[])?;
    let both = format!("{old_ca}{new_ca}");

    let watch = watch(world).await?;
    let traffic = Traffic::through_the_parent(world).await?;
    let held = Traffic::held(as_aggregator(world, Some((&old.0, &old.1))).await?).await?;
    let stranger =
        Client::connect(&as_aggregator(world, Some((&new.certificate_pem, &new.key_pem))).await?).await?;
    ensure!(stranger.get("/version").await.is_err(), "a certificate of an unknown CA was believed");

    // Both. The file, since kube-apiserver would otherwise write the ConfigMap back to what it has read.
    std::fs::write(directory.join("front-proxy-ca.crt"), &both)?;
    publish(world, &both).await?;
    // Also on the connection that was refused: certificates are looked at per request.
    wait_until("the new front-proxy CA to be believed", SOON, async || stranger.get("/version").await)
        .await?;
    traffic.goes_on(50).await?;
    held.goes_on(50).await?;
    still_sees(world, watch, "both-front-proxies").await?;
    traffic.unharmed("two front-proxy CAs, the aggregator")?;
    held.unharmed("two front-proxy CAs, a connection with the old certificate")?;

    // The parent gets its new certificate, and with it loses the old CA.
    std::fs::write(directory.join("front-proxy-ca.crt"), &new_ca)?;
    std::fs::write(directory.join("front-proxy-client.crt"), &new.certificate_pem)?;
    std::fs::write(directory.join("front-proxy-client.key"), &new.key_pem)?;
    let (parent, scratch) = world.parent_mut();
    parent.plane.restart_apiserver(scratch).await?;
    world.wait_for_hub().await?;
    // The tunnel goes through that kube-apiserver, and was cut.
    let admin = world.admin_through_hub().await?;
    wait_until("the agent to be back", GONE, async || admin.ok(&["get", "--raw", "/version"]).await).await?;
    let traffic = Traffic::through_the_parent(world).await?;
    let held = Traffic::held(as_aggregator(world, Some((&new.certificate_pem, &new.key_pem))).await?).await?;
    let last = Client::connect(&as_aggregator(world, Some((&old.0, &old.1))).await?).await?;
    last.get("/version").await.context("the old certificate is good while its CA is in the ConfigMap")?;
    publish(world, &new_ca).await?;
    wait_until("the old certificate to be refused on its open connection", GONE, async || {
        match last.get("/version").await {
            Ok(_) => bail!("it is still believed"),
            Err(error) if format!("{error:#}").contains("401") => Ok(()),
            Err(error) => Err(error),
        }
    })
    .await?;
    traffic.goes_on(50).await?;
    held.goes_on(50).await?;
    traffic.unharmed("the old front-proxy CA goes, the aggregator")?;
    held.unharmed("the old front-proxy CA goes, a connection with the new certificate")
}

/// Writes the request-header CA, and waits until it stays: kube-apiserver merges what its own file holds.
async fn publish(world: &World, ca: &str) -> Outcome {
    const NAME: &str = "extension-apiserver-authentication";
    let patch = json!({ "data": { "requestheader-client-ca-file": ca } }).to_string();
    wait_until("the ConfigMap to hold this CA and no other", GONE, async || {
        let kubectl = world.parent().kubectl();
        kubectl.ok(&["-n", "kube-system", "patch", "configmap", NAME, "-p", &patch]).await?;
        let now = kubectl.ok(&["-n", "kube-system", "get", "configmap", NAME, "-o", "json"]).await?;
        let now: Value = serde_json::from_str(&now)?;
        let held = now["data"]["requestheader-client-ca-file"].as_str().unwrap_or_default();
        let count = |text: &str| text.matches("BEGIN CERTIFICATE").count();
        ensure!(count(held) == count(ca), "it holds {} certificates", count(held));
        Ok(())
    })
    .await
}
