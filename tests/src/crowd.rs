//! Who works in the child meanwhile: fifty requests a second, two hundred watches that see a change every half second, and a
//! shell. Nothing repeats a request unseen; a watch that ends is begun again from the last event that it saw, as
//! informers and kubectl do, so a lost, repeated or broken event shows.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams, AttachedProcess};
use serde_json::{Value, json};
use tokio::io::{
    AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines, ReadHalf, SimplexStream, WriteHalf,
};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::kubectl::Kubectl;
use crate::process::{own_timeout, wait_until};
use crate::say;
use crate::world::POD;

const WATCHES: usize = 200;
/// Between two requests: fifty a second.
const PACE: Duration = Duration::from_millis(20);
/// Between two changes of what is watched.
const CHANGE: Duration = Duration::from_millis(500);
/// A request that takes longer has failed for whoever waits.
const PATIENCE: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_secs(45);
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const NAME: &str = "crowd";

/// What became of it all.
#[derive(Debug, Default)]
struct Tally {
    done: u64,
    failed: Vec<String>,
    /// Answers that say when to come again: a client of Kubernetes does so by itself.
    told_to_retry: u64,
    /// Watches that ended between two events, and those that broke.
    ended: u64,
    broken: Vec<String>,
    /// Events that a watch did not expect.
    wrong: Vec<String>,
    /// The change that each watch has seen last.
    seen: Vec<u64>,
    /// The change that was made last.
    made: u64,
}

/// The crowd; it goes home when it is dropped.
#[derive(Debug)]
pub struct Crowd {
    tally: Arc<Mutex<Tally>>,
    began: Instant,
    _tasks: JoinSet<()>,
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn client(kubeconfig: &Path) -> Result<kube::Client> {
    let kubeconfig = kube::config::Kubeconfig::read_from(kubeconfig)?;
    let options = kube::config::KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    config.proxy_url = None;
    config.default_retry = false;
    config.read_timeout = None;
    Ok(kube::Client::try_from(config)?)
}

fn get(path: &str) -> Result<http::Request<kube::client::Body>> {
    Ok(http::Request::get(path).body(kube::client::Body::empty())?)
}

impl Crowd {
    /// Everybody is at work when it returns. They come by a kubeconfig of the child that leads through the hub; `child` is
    /// the child as it is seen without one.
    ///
    /// # Errors
    /// Somebody cannot begin.
    pub async fn gather(kubeconfig: &Path, child: &Kubectl) -> Result<Self> {
        let client = client(kubeconfig).await?;
        let tally = Arc::new(Mutex::new(Tally { seen: vec![0; WATCHES], ..Tally::default() }));
        child.apply(&change(0)).await?;
        // A cluster whose agent is on its way from one hub to another is not there for a moment; that is before the crowd comes.
        let version = wait_until("the child to answer", SOON, async || {
            let object = client.send(get(&format!("{MAPS}/{NAME}"))?).await?;
            let object: Value = serde_json::from_slice(&object.into_body().collect().await?.to_bytes())?;
            let version = object["metadata"]["resourceVersion"].as_str();
            version.map(str::to_owned).with_context(|| format!("no version in {object}"))
        })
        .await?;

        let mut tasks = JoinSet::new();
        for number in 0..WATCHES {
            let (client, tally, version) = (client.clone(), Arc::clone(&tally), version.clone());
            tasks.spawn(async move { watch_for_ever(number, &client, &tally, version).await });
        }
        tasks.spawn(ask_for_ever(client.clone(), Arc::clone(&tally)));
        tasks.spawn(change_for_ever(client, Arc::clone(&tally)));
        let crowd = Self { tally, began: Instant::now(), _tasks: tasks };
        crowd.goes_on().await?;
        Ok(crowd)
    }

    /// Waits until everybody has seen what happens after this moment.
    ///
    /// # Errors
    /// Somebody does not.
    pub async fn goes_on(&self) -> Result<()> {
        let (made, done) = {
            let tally = lock(&self.tally);
            (tally.made, tally.done)
        };
        wait_until("everybody to go on", SOON, async || {
            let tally = lock(&self.tally);
            let last = tally.seen.iter().min().copied().unwrap_or_default();
            if last > made && tally.done > done + 50 {
                return Ok(());
            }
            bail!("change {last} of {made} is seen by all; {} of {} requests", tally.done, done + 50)
        })
        .await
    }

    /// Demands that nothing failed, broke or was wrong.
    ///
    /// # Errors
    /// Something was.
    pub fn unharmed(self, what: &str) -> Result<()> {
        let tally = lock(&self.tally);
        say(&format!(
            "    {what}: {} requests in {:.0} s, {} failed, {} told to try again; {WATCHES} watches of {} changes ended {} times \
             in order, {} times not",
            tally.done,
            self.began.elapsed().as_secs_f64(),
            tally.failed.len(),
            tally.told_to_retry,
            tally.made,
            tally.ended,
            tally.broken.len(),
        ));
        let first = |all: &[String]| all.first().cloned().unwrap_or_default();
        ensure!(
            tally.wrong.is_empty(),
            "{} wrong events, the first: {}",
            tally.wrong.len(),
            first(&tally.wrong)
        );
        ensure!(
            tally.failed.is_empty(),
            "{} requests failed, the first: {}",
            tally.failed.len(),
            first(&tally.failed)
        );
        ensure!(tally.told_to_retry == 0, "{} requests were told to try again", tally.told_to_retry);
        ensure!(
            tally.broken.is_empty(),
            "{} watches broke, the first: {}",
            tally.broken.len(),
            first(&tally.broken)
        );
        Ok(())
    }
}

fn change(number: u64) -> String {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": NAME },
            "data": { "change": number.to_string() } })
    .to_string()
}

async fn change_for_ever(client: kube::Client, tally: Arc<Mutex<Tally>>) {
    let mut clock = tokio::time::interval(CHANGE);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 1.. {
        clock.tick().await;
        let made = make(&client, number).await;
        let mut tally = lock(&tally);
        match made {
            Ok(()) => tally.made = number,
            Err(error) => return tally.failed.push(format!("change {number}: {error:#}")),
        }
    }
}

async fn make(client: &kube::Client, number: u64) -> Result<()> {
    let request = http::Request::patch(format!("{MAPS}/{NAME}"))
        .header("content-type", "application/merge-patch+json")
        .body(kube::client::Body::from(change(number).into_bytes()))?;
    let answer = client.send(request).await?;
    let status = answer.status();
    let text = answer.into_body().collect().await?.to_bytes();
    ensure!(status == 200, "{status}: {}", String::from_utf8_lossy(&text));
    Ok(())
}

async fn ask_for_ever(client: kube::Client, tally: Arc<Mutex<Tally>>) {
    let mut clock = tokio::time::interval(PACE);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut asked = JoinSet::new();
    loop {
        tokio::select! {
            _ = clock.tick() => {
                let (client, tally) = (client.clone(), Arc::clone(&tally));
                asked.spawn(async move { ask(&client, &tally).await });
            }
            Some(_) = asked.join_next() => {}
        }
    }
}

async fn ask(client: &kube::Client, tally: &Mutex<Tally>) {
    let answered = tokio::time::timeout(PATIENCE, async {
        let answer = client.send(get(&format!("{MAPS}/{NAME}"))?).await?;
        let (parts, body) = answer.into_parts();
        anyhow::Ok((parts, body.collect().await?.to_bytes()))
    });
    let answered = answered.await.unwrap_or_else(|_| bail!("no answer within {PATIENCE:?}"));
    let mut tally = lock(tally);
    match answered {
        Ok((parts, body)) if parts.status == 200 => match serde_json::from_slice::<Value>(&body) {
            Ok(object) if object["metadata"]["name"] == NAME => tally.done += 1,
            Ok(other) => tally.wrong.push(format!("a GET brought {other}")),
            Err(error) => tally.wrong.push(format!("a GET brought no JSON: {error}")),
        },
        Ok((parts, body)) if parts.headers.contains_key("retry-after") => {
            say(&format!("    told to try again: {}", String::from_utf8_lossy(&body)));
            tally.told_to_retry += 1;
        }
        Ok((parts, body)) => {
            tally.failed.push(format!("{}: {}", parts.status, String::from_utf8_lossy(&body)));
        }
        Err(error) => tally.failed.push(format!("{error:#}")),
    }
}

async fn watch_for_ever(number: usize, client: &kube::Client, tally: &Mutex<Tally>, mut version: String) {
    let mut seen = None;
    loop {
        let ended = watch_once(number, client, tally, &mut version, &mut seen).await;
        match ended {
            Ok(()) => lock(tally).ended += 1,
            Err(error) => lock(tally).broken.push(format!("{error:#}")),
        }
        // As client-go's reflector, which waits 800 ms at first.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn note(tally: &mut Tally, number: usize, seen: Option<u64>, change: u64) {
    if seen.is_some_and(|seen| change != seen + 1) {
        tally.wrong.push(format!("watch {number} saw change {change} after {seen:?}"));
    }
    tally.seen[number] = change;
}

async fn watch_once(
    number: usize,
    client: &kube::Client,
    tally: &Mutex<Tally>,
    version: &mut String,
    seen: &mut Option<u64>,
) -> Result<()> {
    let path = format!("{MAPS}?watch=true&fieldSelector=metadata.name%3D{NAME}&resourceVersion={version}");
    let answer = client.send(get(&path)?).await?;
    let status = answer.status();
    let mut body = answer.into_body();
    if status != 200 {
        let text = body.collect().await?.to_bytes();
        bail!("a watch was answered {status}: {}", String::from_utf8_lossy(&text));
    }
    let mut rest = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let event: Value = serde_json::from_slice(&line).context("an event that is no JSON")?;
            let object = &event["object"];
            let change: u64 = object["data"]["change"]
                .as_str()
                .unwrap_or_default()
                .parse()
                .with_context(|| format!("an event without a change: {event}"))?;
            note(&mut lock(tally), number, *seen, change);
            *seen = Some(change);
            *version = object["metadata"]["resourceVersion"].as_str().context("a version")?.to_owned();
        }
    }
    ensure!(rest.is_empty(), "the watch ended within an event: {:?}", String::from_utf8_lossy(&rest));
    Ok(())
}

/// A shell that is open.
pub struct Shell {
    stdin: WriteHalf<SimplexStream>,
    lines: Lines<BufReader<ReadHalf<SimplexStream>>>,
    _process: AttachedProcess,
}

impl std::fmt::Debug for Shell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shell").finish_non_exhaustive()
    }
}

impl Shell {
    /// Opens one in the pod, as a crowd comes.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn open(kubeconfig: &Path) -> Result<Self> {
        let pods: Api<Pod> = Api::default_namespaced(client(kubeconfig).await?);
        let parameters = AttachParams::default().stdin(true).stdout(true).stderr(false);
        let mut process = pods.exec(POD, ["cat"], &parameters).await?;
        let stdin = process.stdin().context("stdin")?;
        let lines = BufReader::new(process.stdout().context("stdout")?).lines();
        let mut shell = Self { stdin, lines, _process: process };
        shell.answers("first").await?;
        Ok(shell)
    }

    /// What is typed comes back.
    ///
    /// # Errors
    /// It does not.
    pub async fn answers(&mut self, text: &str) -> Result<()> {
        self.stdin.write_all(format!("{text}\n").as_bytes()).await?;
        let line = own_timeout(SOON, self.lines.next_line()).await.context("no line came back")??;
        ensure!(line.as_deref() == Some(text), "{line:?} came back instead of {text:?}");
        Ok(())
    }
}
