//! Child processes that die with us. Each runs under `setpriv --pdeathsig KILL`, in its own process group, with
//! its output in a log file of the run, and carries the run's name in its environment so that a later run can
//! find it. Dropping a [`Process`] stops it. The only poll interval of the package stands here.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::network::Network;
use crate::scratch::Scratch;

/// The variable by which a run finds its own processes; its value is the name of the run.
pub const RUN_VARIABLE: &str = "TOWLINE_RUN";

/// How often a condition is looked at again. Short against the seconds a control plane takes, long against the
/// cost of one look (a kubectl process, about 50 ms of a core).
const POLL: Duration = Duration::from_millis(100);

/// How long a process may take to end after SIGTERM before it gets SIGKILL. kube-apiserver 1.20 finishes open
/// requests first; tests that leave watches open must not wait for them.
const TERM_GRACE: Duration = Duration::from_secs(3);

/// How much of the end of a log an error shows.
const LOG_TAIL_BYTES: u64 = 4 * 1024;

/// Set once the run is being torn down: nothing may start any more.
static STOPPING: AtomicBool = AtomicBool::new(false);

/// Makes every later start fail, so that clean-up after Ctrl-C does not race with a set-up still under way.
pub(crate) fn refuse_new() {
    STOPPING.store(true, Ordering::SeqCst);
}

/// What to run and where.
#[derive(Debug, Clone)]
pub struct Program {
    name: String,
    path: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    prefix: Vec<OsString>,
}

impl Program {
    /// A program to be known as `name` in logs and errors.
    pub fn new(name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            path: path.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            prefix: Vec::new(),
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().into());
        self
    }

    /// Adds several arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|a| a.as_ref().into()));
        self
    }

    /// Sets one variable of the environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().into(), value.as_ref().into()));
        self
    }

    /// Takes another executable with the same arguments.
    #[must_use]
    pub fn with_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.path = path.into();
        self
    }

    /// Runs it inside a network namespace. `nsenter` and not `ip netns exec`: the latter remounts /sys, which
    /// hides the cgroups from the kubelet.
    #[must_use]
    pub fn within(self, network: &Network) -> Self {
        let enter = format!("--net={}", network.namespace_path().display());
        self.through(["nsenter", &enter])
    }

    /// Runs it through another command, given as its first arguments.
    #[must_use]
    pub(crate) fn through<S: AsRef<OsStr>>(mut self, prefix: impl IntoIterator<Item = S>) -> Self {
        self.prefix.extend(prefix.into_iter().map(|p| p.as_ref().into()));
        self
    }

    /// The whole command, ready to start: it dies with the thread that starts it.
    pub(crate) fn command(&self, run: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).args(&self.prefix).arg(&self.path).args(&self.arguments);
        command.env(RUN_VARIABLE, run).envs(self.environment.iter().map(|(k, v)| (k, v)));
        // A proxy for the outside world must not sit between a test and its own cluster.
        for name in
            ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "KUBECONFIG"]
        {
            if !self.environment.iter().any(|(k, _)| k == name) {
                command.env_remove(name);
            }
        }
        // Own group: Ctrl-C at the terminal reaches us alone, and we stop the others in order.
        command.process_group(0);
        command
    }

    /// Starts it; its output goes to `logs/<name>.log` of the run.
    ///
    /// # Errors
    /// When it cannot be started. A program that does not exist shows by [`Process::check`].
    pub fn start(self, scratch: &Scratch) -> Result<Process> {
        if STOPPING.load(Ordering::SeqCst) {
            bail!("{} was not started: the run is being stopped", self.name);
        }
        let log = scratch.directory("logs")?.join(format!("{}.log", self.name));
        let output = File::options().create(true).append(true).open(&log).context("its log")?;
        let mut command = self.command(scratch.name());
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);

        let end = Arc::new(End::default());
        let (started_tx, started_rx) = mpsc::channel();
        let thread_end = Arc::clone(&end);
        // The parent-death signal is tied to the *thread* that forked (prctl(2), PR_SET_PDEATHSIG), so that thread
        // stays and waits for the child.
        let waiter = std::thread::Builder::new().name(format!("wait-{}", self.name)).spawn(move || {
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => return drop(started_tx.send(Err(error))),
            };
            let _ = started_tx.send(Ok(child.id()));
            let status = child.wait().unwrap_or_else(|_| ExitStatus::from_raw(-1));
            thread_end.set(status);
        })?;
        let pid =
            started_rx.recv().context("the starting thread died")?.with_context(|| self.name.clone())?;
        Ok(Process { name: self.name, pid, log, end, waiter: Some(waiter) })
    }
}

/// A running child process; stopped on drop.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: u32,
    log: PathBuf,
    end: Arc<End>,
    waiter: Option<JoinHandle<()>>,
}

impl Process {
    /// The process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The log file, which holds standard output and standard error.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Everything it has written so far.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn log_text(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(&self.log)?).into_owned())
    }

    /// Whether it, or another process in its network namespace, listens at a TCP port. Costs next to nothing, where
    /// a client that is refused again and again takes the time of a starting server.
    pub fn listens(&self, port: u16) -> bool {
        // proc_pid_net(5): the second column is the local address in hexadecimal, the fourth the state, 0A is LISTEN.
        let suffix = format!(":{port:04X}");
        ["tcp", "tcp6"].iter().any(|family| {
            let table =
                std::fs::read_to_string(format!("/proc/{}/net/{family}", self.pid)).unwrap_or_default();
            table.lines().any(|line| {
                let mut columns = line.split_whitespace().skip(1);
                columns.next().is_some_and(|local| local.ends_with(&suffix)) && columns.nth(1) == Some("0A")
            })
        })
    }

    /// How it ended, if it has.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.end.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails with [`Died`] and the end of its log when it runs no more.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn check(&self) -> Result<()> {
        match self.exit_status() {
            None => Ok(()),
            Some(status) => {
                bail!(Died { name: self.name.clone(), status, log: self.log.clone(), tail: tail(&self.log) })
            }
        }
    }

    /// Sends a signal by name (`TERM`, `KILL`, `STOP`, `CONT`, `HUP`) to the process and its group.
    pub fn signal(&self, signal: &str) {
        if self.exit_status().is_some() {
            return;
        }
        let group = format!("-{}", self.pid);
        let _ = Command::new("kill").args(["-s", signal, "--", &group]).stderr(Stdio::null()).status();
    }

    /// Ends it: SIGTERM, and SIGKILL after a grace period. Returns how it ended.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        if self.end.wait(TERM_GRACE).is_none() {
            self.signal("KILL");
        }
        self.join()
    }

    /// Ends it at once by SIGKILL.
    pub fn kill(&mut self) -> ExitStatus {
        self.signal("KILL");
        self.join()
    }

    fn join(&mut self) -> ExitStatus {
        if let Some(waiter) = self.waiter.take() {
            let _ = waiter.join();
        }
        self.exit_status().unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.waiter.is_some() {
            self.stop();
        }
    }
}

/// Where the waiting thread leaves the exit status.
#[derive(Debug, Default)]
struct End {
    status: Mutex<Option<ExitStatus>>,
    changed: Condvar,
}

impl End {
    fn set(&self, status: ExitStatus) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
        self.changed.notify_all();
    }

    fn wait(&self, limit: Duration) -> Option<ExitStatus> {
        let guard = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(guard, limit, |status| status.is_none());
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// A process ended that should be running. [`wait_until`] gives up at once when it meets this error.
#[derive(Debug)]
pub struct Died {
    name: String,
    status: ExitStatus,
    log: PathBuf,
    tail: String,
}

impl std::fmt::Display for Died {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, status, log, tail } = self;
        write!(f, "{name} ended early ({status}); the end of {}:\n{tail}", log.display())
    }
}

impl std::error::Error for Died {}

/// Waits until an asynchronous condition holds: looks, and looks again until it succeeds, a process turns out to
/// have died, or the deadline has passed. The error says what was awaited and why the last look failed.
///
/// # Errors
/// When the condition does not hold in time.
pub async fn wait_until<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let (began, before) = (Instant::now(), stolen());
    loop {
        let error = match own_timeout_from(began, before, deadline, Box::pin(condition())).await {
            Some(Ok(value)) => return Ok(value),
            Some(Err(error)) => error,
            None => bail!("waited {deadline:?} for {what}; the last look at it did not return in time"),
        };
        if error.is::<Died>() || STOPPING.load(Ordering::SeqCst) {
            return Err(error.context(format!("waiting for {what}")));
        }
        if Instant::now() + POLL > began + deadline + stolen().saturating_sub(before) {
            return Err(error.context(format!("waited {deadline:?} for {what}; the last look at it")));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Like tokio's timeout, without the time that was stolen meanwhile; `None` when it is over. On a host that gives its
/// processors to other guests for 86 % of half a minute (it was seen), five seconds of this machine are 36 on the wall.
pub async fn own_timeout<F: Future>(limit: Duration, work: F) -> Option<F::Output> {
    own_timeout_from(Instant::now(), stolen(), limit, work).await
}

async fn own_timeout_from<F: Future>(
    began: Instant,
    before: Duration,
    limit: Duration,
    work: F,
) -> Option<F::Output> {
    let mut work = std::pin::pin!(work);
    let mut end = began + limit + stolen().saturating_sub(before);
    loop {
        if let Ok(done) = tokio::time::timeout_at(end.into(), work.as_mut()).await {
            return Some(done);
        }
        let later = began + limit + stolen().saturating_sub(before);
        if later <= Instant::now() {
            return None;
        }
        end = later;
    }
}

/// For how long other guests of the host have had this machine's processors since it started, as the mean of all
/// processors (proc(5), `steal`); nothing where the kernel does not say.
pub fn stolen() -> Duration {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let processors = stat.lines().filter(|line| line.starts_with("cpu")).count().saturating_sub(1).max(1);
    let ticks = stat.lines().next().and_then(|all| all.split_whitespace().nth(8)?.parse::<u64>().ok());
    // 100 ticks a second (USER_HZ).
    Duration::from_millis(ticks.unwrap_or_default() * 10 / processors as u64)
}

/// The same for code that cannot wait asynchronously (`Drop`, clean-up). Returns whether the condition held.
pub(crate) fn wait_until_blocking(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    while !condition() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}

fn tail(log: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("(the log cannot be read: {error})"),
    }
}

/// Runs a short command to its end and returns what it printed; the error shows its standard error.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{program} {}` failed ({}): {}", arguments.join(" "), output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_condition_that_never_holds_names_itself_and_its_last_error() {
        let limit = Duration::from_millis(1);
        let error =
            wait_until("the moon", limit, async || -> Result<()> { bail!("it is day") }).await.unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("the moon") && text.contains("it is day"), "{text}");
    }

    #[tokio::test]
    async fn a_dead_process_ends_the_wait_at_once() {
        let died = || Died {
            name: "etcd".to_owned(),
            status: ExitStatus::default(),
            log: PathBuf::from("/x"),
            tail: "no space".to_owned(),
        };
        let long = Duration::from_secs(600);
        let error = wait_until("etcd", long, async || -> Result<()> { bail!(died()) }).await.unwrap_err();
        assert!(format!("{error:#}").contains("no space"));
    }
}
