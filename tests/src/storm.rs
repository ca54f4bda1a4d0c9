//! A storm: a hub is killed and started again, and all of its agents come back at once. A real parent (etcd,
//! kube-apiserver) that is asked about each of them, one hub with a gateway, so many agents that dial it with real TLS,
//! WebSocket and HTTP/2 ([`crowd`]), a fake kube-apiserver for their children ([`child`]), and whoever measures, all on
//! this machine. Clusters are made as an approval makes them; only the way through an invitation is left out.

pub mod child;
pub mod crowd;

use std::collections::{BTreeMap, VecDeque};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};

use crate::bench::idle;
use crate::bench::load::{Client, Target, percentile};
use crate::bench::usage::{self, Whose};
use crate::binaries::Binaries;
use crate::clusters::Parent;
use crate::gateway::Gateway;
use crate::pki::Authority;
use crate::process::{Process, Program, RUN_VARIABLE, stolen, wait_until};
use crate::say;
use crate::scratch::Scratch;
use crate::towline::Towline;
use crate::world;

// Files in the directory that all parts share.
const CHILD_CERTIFICATE: &str = "child.crt";
const CHILD_KEY: &str = "child.key";
const CHILD_CA: &str = "child-ca.crt";
const GATEWAY_CA: &str = "gateway-ca.crt";
const SECRETS: &str = "secrets.json";

/// How often health and metrics are asked.
const EVERY: Duration = Duration::from_millis(100);
/// GETs to clusters that are not back yet, each [`EVERY`]: 500 a second, which the hub refuses from memory.
const TRIES: usize = 50;
/// All agents have tunnels for so long before the hub is killed; then they hurry back, as to any hub that was good. Each
/// cluster's status is written once meanwhile.
const CALM: Duration = Duration::from_secs(60);
/// Whoever is not back by then does not come.
const DEADLINE: Duration = Duration::from_secs(180);
/// Who asks at the hub's first door.
const ROOT: [(&str, &str); 2] = [("x-remote-user", "storm"), ("x-remote-group", "system:masters")];

pub(crate) fn read(directory: &Path, name: &str) -> Result<String> {
    let path = directory.join(name);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// What runs.
struct Stage {
    // Dropped in this order.
    agents: Vec<Process>,
    _child: Process,
    hub: Process,
    parent: Parent,
    gateway: Gateway,
    towline: Towline,
    hub_address: SocketAddr,
    scratch: Scratch,
}

/// Makes a storm of so many agents; what was measured, and whether all came back.
///
/// # Errors
/// Something could not be set up.
pub async fn run(agents: usize) -> Result<(Value, bool)> {
    ensure!(agents > 0, "a storm needs agents");
    let mut stage = set_up(agents).await?;
    wait_for_tunnels(&stage, agents).await?;
    wait_for_controllers(&stage, agents).await?;
    wait_for_reports(&stage, agents).await?;
    say(&format!("all {agents} are connected; calm for {CALM:?}"));
    let at_rest = rest(&stage).await?;
    let (mut result, all) = storm(&mut stage, agents).await?;
    result["at_rest"] = at_rest;
    Ok((result, all))
}

/// What so many tunnels cost while nobody asks anything: percent of one processor, by program, and the hub's memory.
async fn rest(stage: &Stage) -> Result<Value> {
    let (before, from) = (cpu_by_program(stage.scratch.name()), Timestamp::now());
    sleep(CALM).await;
    let after = cpu_by_program(stage.scratch.name());
    let percent = |(program, used): (&String, &Duration)| {
        let used = used.saturating_sub(before.get(program).copied().unwrap_or_default());
        (program.clone(), (used.as_secs_f64() / CALM.as_secs_f64() * 1000.0).round() / 10.0)
    };
    Ok(json!({
        "seconds": CALM.as_secs(),
        "percent_of_a_processor": after.iter().map(percent).collect::<BTreeMap<_, _>>(),
        "hub_resident_mib": usage::resident_kib(stage.hub.pid())? / 1024,
        "asked_of_the_parent": asked_of_the_parent(&stage.parent.plane.audit_events()?, from, Timestamp::now()),
    }))
}

async fn set_up(agents: usize) -> Result<Stage> {
    let (binaries, mut towline, scratch) =
        (Binaries::find()?, Towline::find()?, Scratch::create_with_signals()?);
    say("parent: etcd, kube-apiserver; hub with a gateway; fake child");
    let parent = Parent::start(&binaries, &scratch, None).await?;
    let (hub_address, child_address) = (free()?, free()?);
    let gateway = Gateway::create(&scratch, free()?.port())?;
    towline.hub_arguments = gateway.arguments();
    // Whoever measures asks all clusters as one user.
    towline.hub_arguments.push("--max-rate-per-user=1000000".to_owned());
    world::install_hub(&parent, hub_address.port()).await?;
    let hub = world::start_hub(&scratch, &towline, &parent, hub_address.port()).await?;

    let directory = scratch.directory("storm")?;
    let authority = Authority::new("storm-child")?;
    let serving = authority.server("kube-apiserver", &["127.0.0.1".to_owned()])?;
    for (name, text) in [
        (CHILD_CERTIFICATE, serving.certificate_pem),
        (CHILD_KEY, serving.key_pem),
        (CHILD_CA, authority.certificate_pem().to_owned()),
        (GATEWAY_CA, read(&scratch.directory("gateway")?, "ca.crt")?),
    ] {
        std::fs::write(directory.join(name), text)?;
    }
    say(&format!("{agents} clusters"));
    crowd::create(&parent, agents, &directory).await?;
    let child = Program::new("storm-child", std::env::current_exe()?)
        .args(["child", &child_address.to_string()])
        .arg(&directory)
        .start(&scratch)?;
    say(&format!("{agents} agents"));
    let agents = crowd::start(&scratch, &towline, &parent, &gateway, agents, child_address, &directory)?;
    Ok(Stage { agents, _child: child, hub, parent, gateway, towline, hub_address, scratch })
}

/// The hub's first door, as the parent's aggregator sees it.
async fn front(stage: &Stage) -> Result<Target> {
    let path = "jsonpath={.spec.caBundle}";
    let bundle = stage
        .parent
        .kubectl()
        .ok(&["get", "apiservice", "v1alpha1.proxies.clusternet.io", "-o", path])
        .await?;
    let ca = String::from_utf8(world::unbase64(&bundle)?)?;
    let of_parent = |name: &str| read(stage.parent.plane.directory(), name);
    let client = (of_parent("front-proxy-client.crt")?, of_parent("front-proxy-client.key")?);
    let name = "clusternet-hub.clusternet-system.svc";
    Ok(Target::new(stage.hub_address, name, &ca, Some((&client.0, &client.1)))?.below(String::new(), &ROOT))
}

/// The gateway, as a load balancer sees it.
fn door(stage: &Stage) -> Result<Target> {
    let ca = read(&stage.scratch.directory("gateway")?, "ca.crt")?;
    Target::new(SocketAddr::from(([127, 0, 0, 1], stage.gateway.port)), "127.0.0.1", &ca, None)
}

/// One GET on a connection of its own, as the kubelet probes.
async fn ask(target: &Target, path: &str, headers: &[(&str, &str)]) -> Result<(StatusCode, String)> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(target.dial(true).await?)).await?;
    let mut driver = JoinSet::new();
    driver.spawn(async move { drop(connection.await) });
    let mut request = Request::get(path).header(header::HOST, "hub");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// The sum of a metric's lines that begin so.
fn metric(text: &str, begin: &str) -> u64 {
    let values = text.lines().filter(|line| line.starts_with(begin));
    values.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

async fn wait_for_tunnels(stage: &Stage, agents: usize) -> Result<()> {
    let front = front(stage).await?;
    wait_until("all agents to connect for the first time", Duration::from_secs(300), async || {
        stage.agents.iter().try_for_each(Process::check)?;
        stage.hub.check()?;
        let (_, text) = ask(&front, "/metrics", &ROOT).await?;
        match metric(&text, "towline_hub_tunnels ") {
            open if open >= agents as u64 => Ok(()),
            open => bail!("{open} of {agents} tunnels are open"),
        }
    })
    .await
}

/// Until the parent's controllers have done all that they do about that many namespaces: it is not part of a storm.
async fn wait_for_controllers(stage: &Stage, agents: usize) -> Result<()> {
    let all_have = async |what: &str, name: &str| {
        let selector = format!("metadata.name={name}");
        let found = stage
            .parent
            .kubectl()
            .ok(&["get", what, "-A", "-o", "name", "--field-selector", &selector])
            .await?;
        let found = found.lines().count();
        ensure!(found >= agents, "{found} of {agents} namespaces have their {what} {name}");
        Ok(())
    };
    wait_until("the parent's controllers", Duration::from_secs(300), async || {
        all_have("serviceaccounts", "default").await?;
        all_have("configmaps", "kube-root-ca.crt").await
    })
    .await
}

/// Until the parent has a first status of each cluster.
async fn wait_for_reports(stage: &Stage, agents: usize) -> Result<()> {
    let seen = "jsonpath={range .items[*]}{.status.lastObservedTime}{\"\\n\"}{end}";
    wait_until("a status of each cluster", Duration::from_secs(300), async || {
        let found = stage.parent.kubectl().ok(&["get", "managedclusters", "-A", "-o", seen]).await?;
        let found = found.lines().filter(|line| !line.is_empty()).count();
        ensure!(found >= agents, "{found} of {agents} clusters have one");
        Ok(())
    })
    .await
}

/// Starts the hub as it was started before, and waits for nothing.
fn start_again(stage: &Stage) -> Result<Process> {
    Program::new("towline-hub", &stage.towline.hub)
        .args(["--listen", &stage.hub_address.to_string()])
        .arg("--kubeconfig")
        .arg(stage.scratch.directory("hub")?.join("kubeconfig"))
        .args(["--public-url", &stage.parent.plane.url(), "--shutdown-delay", "0s", "--shutdown-grace", "1s"])
        .args(&stage.towline.hub_arguments)
        .start(&stage.scratch)
}

/// What the probes of one door saw, since the hub was killed.
#[derive(Debug, Default)]
struct Probed {
    /// The first answer of any kind: the hub is there again.
    listens: Option<Duration>,
    /// The first 200 of `/readyz`.
    ready: Option<Duration>,
    answers: Vec<Duration>,
    /// Those among them that were asked when the hub was ready.
    answers_when_ready: Vec<Duration>,
    /// Those that brought no answer after the first one.
    failed: u32,
}

/// What is seen while agents come back.
#[derive(Debug, Default)]
struct Seen {
    aggregated: Probed,
    gateway: Probed,
    /// When each cluster answered a GET.
    back: Vec<Duration>,
    /// When there were so many tunnels.
    tunnels: Vec<(Duration, u64)>,
    resident_kib: u64,
    metrics: String,
}

type Shared = Arc<Mutex<Seen>>;

fn with<T>(seen: &Shared, work: impl FnOnce(&mut Seen) -> T) -> T {
    work(&mut seen.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Asks a door for its health every so often, each time on a new connection, whether or not the last one was answered.
async fn probe(target: Target, killed: Instant, seen: Shared, which: fn(&mut Seen) -> &mut Probed) {
    let (mut ticks, mut probes) = (interval(EVERY), JoinSet::new());
    for path in ["/healthz", "/readyz"].into_iter().cycle() {
        ticks.tick().await;
        let (target, seen) = (target.clone(), Arc::clone(&seen));
        probes.spawn(async move {
            let asked = Instant::now();
            let answer = timeout(Duration::from_secs(30), ask(&target, path, &[])).await;
            with(&seen, |seen| {
                let probed = which(seen);
                match answer {
                    Ok(Ok((status, _))) => {
                        probed.listens.get_or_insert_with(|| killed.elapsed());
                        if probed.ready.is_some_and(|since| killed + since < asked) {
                            probed.answers_when_ready.push(asked.elapsed());
                        }
                        if path == "/readyz" && status == StatusCode::OK {
                            probed.ready.get_or_insert_with(|| killed.elapsed());
                        }
                        probed.answers.push(asked.elapsed());
                    }
                    Ok(Err(_)) | Err(_) if probed.listens.is_some_and(|since| killed + since < asked) => {
                        probed.failed += 1;
                    }
                    Ok(Err(_)) | Err(_) => {}
                }
            });
        });
        while probes.try_join_next().is_some() {}
    }
}

/// Reads the hub's metrics and memory every so often.
async fn watch(front: Target, hub: u32, killed: Instant, seen: Shared) {
    let mut ticks = interval(EVERY);
    loop {
        ticks.tick().await;
        let resident = usage::resident_kib(hub).unwrap_or_default();
        let answer = timeout(Duration::from_secs(30), ask(&front, "/metrics", &ROOT)).await;
        with(&seen, |seen| {
            seen.resident_kib = seen.resident_kib.max(resident);
            if let Ok(Ok((StatusCode::OK, text))) = answer {
                seen.tunnels.push((killed.elapsed(), metric(&text, "towline_hub_tunnels ")));
                seen.metrics = text;
            }
        });
    }
}

/// Asks each cluster for something until it answers.
async fn get_all(front: Target, agents: usize, killed: Instant, seen: Shared) {
    let (mut ticks, mut tries) = (interval(EVERY), JoinSet::new());
    let mut waiting: VecDeque<usize> = (0..agents).collect();
    let mut client: Option<Arc<Client>> = None;
    loop {
        ticks.tick().await;
        while let Some(tried) = tries.try_join_next() {
            match tried {
                Ok((_, true)) => with(&seen, |seen| seen.back.push(killed.elapsed())),
                Ok((n, false)) => waiting.push_back(n),
                Err(_) => {}
            }
        }
        if waiting.is_empty() && tries.is_empty() {
            return;
        }
        let Some(connected) = &client else {
            client = Client::connect(&front).await.ok().map(Arc::new);
            continue;
        };
        for _ in 0..TRIES.saturating_sub(tries.len()) {
            let Some(n) = waiting.pop_front() else { break };
            let client = Arc::clone(connected);
            tries.spawn(async move {
                let id = idle::cluster_id(n);
                let path =
                    format!("/apis/proxies.clusternet.io/v1alpha1/sockets/{id}/proxy/direct/bench/small");
                (n, matches!(timeout(Duration::from_secs(5), client.get(&path)).await, Ok(Ok(_))))
            });
        }
    }
}

/// CPU that the processes of this run have used so far, by program.
fn cpu_by_program(run: &str) -> BTreeMap<String, Duration> {
    let mark = format!("{RUN_VARIABLE}={run}");
    let mut used = BTreeMap::<String, Duration>::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if !environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) {
            continue;
        }
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = command.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        let program = words.next().unwrap_or_default();
        let mut program = program.rsplit('/').next().unwrap_or_default().to_owned();
        if program == "storm" {
            program = format!("{program} {}", words.next().unwrap_or_default());
        }
        *used.entry(program).or_default() += usage::cpu(Whose::Process(pid)).unwrap_or_default();
    }
    used
}

async fn storm(stage: &mut Stage, agents: usize) -> Result<(Value, bool)> {
    let (front, door) = (front(stage).await?, door(stage)?);
    let before = cpu_by_program(stage.scratch.name());
    let (stolen_before, own_before) = (stolen(), usage::cpu(Whose::Process(std::process::id()))?);
    say("the hub is killed, and started again at once");
    let (killed, killed_at) = (Instant::now(), Timestamp::now());
    stage.hub.kill();
    stage.hub = start_again(stage)?;
    let seen = Shared::default();
    let mut observers = JoinSet::new();
    observers.spawn(probe(front.clone(), killed, Arc::clone(&seen), |seen| &mut seen.aggregated));
    observers.spawn(probe(door, killed, Arc::clone(&seen), |seen| &mut seen.gateway));
    observers.spawn(watch(front.clone(), stage.hub.pid(), killed, Arc::clone(&seen)));
    let all = timeout(DEADLINE, get_all(front, agents, killed, Arc::clone(&seen))).await;
    let (after, all_at) = (cpu_by_program(stage.scratch.name()), Timestamp::now());
    let (stolen, own) = (
        stolen().saturating_sub(stolen_before),
        usage::cpu(Whose::Process(std::process::id()))?.saturating_sub(own_before),
    );
    // What the last probes saw.
    sleep(Duration::from_secs(2)).await;
    observers.shutdown().await;
    stage.hub.check()?;
    let used: BTreeMap<String, f64> = after
        .iter()
        .map(|(program, used)| {
            let since = match program.as_str() {
                // A new process.
                "towline-hub" => Duration::ZERO,
                program => before.get(program).copied().unwrap_or_default(),
            };
            (program.clone(), used.saturating_sub(since).as_secs_f64())
        })
        .collect();
    let asked = asked_of_the_parent(&stage.parent.plane.audit_events()?, killed_at, all_at);
    let result = with(&seen, |seen| {
        json!({
            "agents": agents,
            "processors": std::thread::available_parallelism().map_or(0, usize::from),
            "back_and_answering_seconds": quantiles(&mut seen.back, agents),
            "tunnels_open_seconds": opened(&seen.tunnels, agents),
            "aggregated_door": probed(&mut seen.aggregated),
            "gateway": probed(&mut seen.gateway),
            "cpu_seconds": used,
            "cpu_seconds_of_whoever_measures": own.as_secs_f64(),
            "stolen_seconds": stolen.as_secs_f64(),
            "hub_resident_mib_at_most": seen.resident_kib / 1024,
            "dials_refused": {
                "handshakes": metric(&seen.metrics, "towline_hub_handshakes_refused_total"),
                "tunnels_queued": metric(&seen.metrics, "towline_hub_refusals_total{reason=\"tunnels_queued\"}"),
            },
            "asked_of_the_parent": asked,
            "refusals": lines(&seen.metrics, "towline_hub_refusals_total"),
            "token_reviews": lines(&seen.metrics, "towline_hub_token_reviews_total"),
        })
    });
    Ok((result, all.is_ok()))
}

/// What the parent's API server was asked meanwhile, by verb and resource; most often first.
fn asked_of_the_parent(events: &[Value], from: Timestamp, until: Timestamp) -> Value {
    let mut counts = BTreeMap::<String, u64>::new();
    for event in events.iter().filter(|event| event["stage"] == "ResponseComplete") {
        let began =
            event["requestReceivedTimestamp"].as_str().and_then(|text| text.parse::<Timestamp>().ok());
        if began.is_none_or(|began| began < from || began > until) {
            continue;
        }
        let field = |name: &str| event["objectRef"][name].as_str().unwrap_or_default().to_owned();
        let verb = event["verb"].as_str().unwrap_or_default();
        let what = format!("{verb} {}/{}", field("resource"), field("subresource"));
        *counts.entry(what.trim_end_matches('/').to_owned()).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts.iter().take(12).map(|(what, count)| format!("{count} {what}")).collect()
}

fn lines(text: &str, begin: &str) -> Vec<String> {
    text.lines().filter(|line| line.starts_with(begin)).map(str::to_owned).collect()
}

fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

/// When the first, half, 99 % and all were there; null for what was not reached.
fn quantiles(times: &mut [Duration], of: usize) -> Value {
    times.sort_unstable();
    let at = |count: usize| count.checked_sub(1).and_then(|at| times.get(at)).copied().map(seconds);
    json!({ "first": at(1), "half": at(of.div_ceil(2)), "99%": at((of * 99).div_ceil(100)), "all": at(of) })
}

fn opened(tunnels: &[(Duration, u64)], of: usize) -> Value {
    let at =
        |count: usize| tunnels.iter().find(|(_, open)| *open >= count as u64).map(|(when, _)| seconds(*when));
    json!({ "first": at(1), "half": at(of.div_ceil(2)), "99%": at((of * 99).div_ceil(100)), "all": at(of) })
}

fn probed(probed: &mut Probed) -> Value {
    let spread = |answers: &mut [Duration]| {
        let mut at = |share: f64| seconds(percentile(answers, share));
        json!({ "half": at(0.5), "99%": at(0.99), "slowest": at(1.0) })
    };
    json!({
        "listens_seconds": probed.listens.map(seconds), "ready_seconds": probed.ready.map(seconds),
        "answers": probed.answers.len(), "unanswered": probed.failed,
        "answer_seconds": spread(&mut probed.answers),
        "answer_seconds_when_ready": spread(&mut probed.answers_when_ready),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_all_is_told_only_when_all_are_back() {
        let mut times: Vec<Duration> = (1..=99).rev().map(Duration::from_secs).collect();
        let told = quantiles(&mut times, 100);
        assert_eq!(told, json!({ "first": 1.0, "half": 50.0, "99%": 99.0, "all": null }));
        let tunnels =
            [(Duration::from_secs(1), 0), (Duration::from_secs(2), 60), (Duration::from_secs(3), 100)];
        assert_eq!(opened(&tunnels, 100), json!({ "first": 2.0, "half": 2.0, "99%": 3.0, "all": 3.0 }));
    }

    #[test]
    fn a_metric_is_read_with_all_its_labels() {
        let text = "# TYPE a counter\na_total{reason=\"x\"} 3\na_total{reason=\"y\"} 4\nab_total 9\n";
        assert_eq!(metric(text, "a_total"), 7);
        assert_eq!(metric(text, "a_total{reason=\"y\"}"), 4);
    }
}
