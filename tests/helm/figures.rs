//! How soon hub and agent are ready after their process starts, and how much memory they hold at rest. The aims are those of
//! release builds; what is demanded here is what debug builds on a busy machine keep, too.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::clusters::Child;
use tests::process::wait_until;
use tests::say;
use tests::scratch::contained;
use tests::world::unbase64;

use crate::Outcome;
use crate::stage::{SOON, Stage};

/// A process that takes longer is broken, whatever it was built with.
const START: Duration = Duration::from_secs(20);
/// Of memory, in KiB.
const REST: u64 = 200 * 1024;
const HUB: &str = "clusternet-hub.clusternet-system.svc";

/// Resident memory in KiB (proc(5), `VmRSS`).
fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim_end_matches("kB").trim().parse()?)
}

/// Since the process began, to a hundredth of a second (proc(5): field 22 of `stat`, in ticks of 1/100 s after boot).
fn age(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").context("a name in brackets")?;
    let ticks: u64 = rest.split(' ').nth(19).context("field 22")?.parse()?;
    let uptime = std::fs::read_to_string("/proc/uptime")?;
    let seconds: f64 = uptime.split(' ').next().context("seconds")?.parse()?;
    Ok(Duration::from_secs_f64(seconds).saturating_sub(Duration::from_millis(ticks * 10)))
}

/// Kills the process of a pod, and tells how old the next one is when it answers `/readyz` with 200.
async fn start(stage: &Stage, cluster: &Child, command: &str, pid: u32, curl: &[&str]) -> Result<Duration> {
    let before = contained(stage.scratch().name(), command);
    let network = cluster.network().context("a cluster with a node has a network")?;
    network.run("kill", &["-KILL", &pid.to_string()])?;
    let next = wait_until("the next process", SOON, async || {
        let now = contained(stage.scratch().name(), command);
        now.into_iter().find(|pid| !before.contains(pid)).context("none yet")
    })
    .await?;
    let began = Instant::now();
    loop {
        ensure!(began.elapsed() < SOON, "{command} is not ready");
        if network.run("curl", curl).is_ok() {
            return age(next);
        }
    }
}

async fn measure(
    stage: &Stage,
    cluster: &Child,
    app: &str,
    command: &str,
    more: &[String],
    url: &str,
) -> Outcome {
    let pids = contained(stage.scratch().name(), command);
    let memory: Vec<u64> = pids.iter().map(|pid| resident(*pid)).collect::<Result<_>>()?;
    let pods = stage.pods(cluster, app).await?;
    ensure!(pids.len() == pods.len(), "{pids:?} are the processes of {pods:?}");
    let pid = *pids.first().context("a process")?;
    // Which of the pods it is says its host name.
    let environment = std::fs::read(format!("/proc/{pid}/environ"))?;
    let environment = String::from_utf8_lossy(&environment).into_owned();
    let (_, address) = pods
        .iter()
        .find(|(pod, _)| environment.split('\0').any(|one| one == format!("HOSTNAME={pod}")))
        .context("a pod of that process")?;
    let resolve = format!("{HUB}:8443:{address}");
    let url = url.replace("ADDRESS", address);
    let mut curl = vec!["-sf", "--max-time", "2", "-o", "/dev/null", "--resolve", &resolve];
    curl.extend(more.iter().map(String::as_str));
    curl.push(&url);
    let ready = start(stage, cluster, command, pid, &curl).await?;
    let megabytes: Vec<u64> = memory.iter().map(|kib| kib / 1024).collect();
    say(&format!(
        "    {app}: ready {:.2} s after its process began; resident at rest: {megabytes:?} MiB",
        ready.as_secs_f64()
    ));
    ensure!(ready < START, "{app} took {ready:?} to be ready");
    ensure!(memory.iter().all(|kib| *kib < REST), "{app} holds {megabytes:?} MiB");
    Ok(())
}

pub(crate) async fn hub_and_agent_start_soon_and_rest_small(stage: &mut Stage) -> Outcome {
    let path = "jsonpath={.spec.caBundle}";
    let bundle = stage
        .parent
        .kubectl()
        .ok(&["get", "apiservice", "v1alpha1.proxies.clusternet.io", "-o", path])
        .await?;
    let ca = stage.scratch().path().join("hub-ca.crt");
    std::fs::write(&ca, unbase64(&bundle)?)?;
    let more = ["--cacert".to_owned(), ca.display().to_string()];
    let url = format!("https://{HUB}:8443/readyz");
    measure(stage, &stage.parent, "clusternet-hub", "/towline-hub", &more, &url).await?;
    stage.wait_ready().await?;
    measure(stage, &stage.child, "clusternet-agent", "/towline-agent", &[], "http://ADDRESS:8080/readyz")
        .await?;
    stage.wait_ready().await
}
