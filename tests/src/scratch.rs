//! One directory per run, `towline-<pid>` under the temporary directory, and the clean-up of everything that a run
//! leaves on the machine: processes, mounts, network namespaces, links, control groups and the directory itself.
//!
//! Everything bears the run's name, so clean-up needs no list that could be lost: it works the same on drop, after
//! Ctrl-C, and for a run that was killed, whose remains the next run removes. It touches nothing without that name.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::process::{RUN_VARIABLE, refuse_new, run, wait_until_blocking};
use crate::say;

const PREFIX: &str = "towline-";

/// How long killed processes may take to go, and a directory to become empty.
const CLEAN_UP_DEADLINE: Duration = Duration::from_secs(10);

/// The place and the name of this run. One per process; dropping it removes everything the run has made.
#[derive(Debug)]
pub struct Scratch {
    name: String,
    path: PathBuf,
    networks: AtomicU16,
}

impl Scratch {
    /// Makes the directory, after removing what runs that are no more have left behind.
    ///
    /// # Errors
    /// When this process has a run already, or the directory cannot be made.
    pub fn create() -> Result<Self> {
        remove_dead_runs();
        let pid = std::process::id();
        let name = format!("{PREFIX}{pid}");
        let path = std::env::temp_dir().join(&name);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot make {}: one process has one run at a time", path.display()))?;
        let scratch = Self { name, path, networks: AtomicU16::new(0) };
        fs::write(scratch.path.join("owner"), started_at(pid).unwrap_or_default())?;
        Ok(scratch)
    }

    /// The same, and from now on SIGINT, SIGTERM and SIGHUP clean up before they end the process.
    ///
    /// # Errors
    /// As for [`Scratch::create`], or when no signal handler can be installed.
    pub fn create_with_signals() -> Result<Self> {
        let scratch = Self::create()?;
        clean_up_on_signal(scratch.name.clone())?;
        Ok(scratch)
    }

    /// `towline-<pid>`: the mark on everything that belongs to this run.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory of the run.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A directory inside it, made if needed, for the owner's eyes only.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn directory(&self, name: impl AsRef<Path>) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// The number of the next network of this run.
    pub(crate) fn next_network(&self) -> u16 {
        self.networks.fetch_add(1, Ordering::Relaxed)
    }
}

impl Drop for Scratch {
    #[expect(clippy::disallowed_methods, reason = "a switch for the person who runs the tests")]
    fn drop(&mut self) {
        // TOWLINE_KEEP_LOGS names a directory to which the logs of the run are copied before they go.
        if let Some(keep) = std::env::var_os("TOWLINE_KEEP_LOGS")
            && let (Some(from), Some(to)) = (self.path.join("logs").to_str(), Path::new(&keep).to_str())
            && self.path.join("logs").exists()
            && let Err(error) = run("cp", &["-rT", from, to])
        {
            say(&format!("the logs could not be kept: {error:#}"));
        }
        if let Err(error) = remove_run(&self.name) {
            say(&format!("clean-up is not complete: {error:#}"));
        }
    }
}

/// What is still on the machine under the name of a run, in words; empty when everything is gone.
pub fn remains(name: &str) -> Vec<String> {
    let root = std::env::temp_dir().join(name);
    let mut found: Vec<String> =
        processes(name).into_iter().map(|pid| format!("process {pid} ({})", command_line(pid))).collect();
    found.extend(mounts_under(&root).into_iter().map(|path| format!("mount {}", path.display())));
    found.extend(namespaces(name).into_iter().map(|namespace| format!("network namespace {namespace}")));
    found.extend(links(name).into_iter().map(|link| format!("network link {link}")));
    found.extend(control_groups(name).into_iter().map(|path| format!("control group {}", path.display())));
    if root.exists() {
        found.push(format!("directory {}", root.display()));
    }
    found
}

/// The first processes of a run's containers whose command line begins with a text. A container has an environment
/// of its own, so they are known by their parent, the shim.
pub fn contained(name: &str, command: &str) -> Vec<u32> {
    let ours = processes(name);
    let child_of_ours = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
        parent.is_some_and(|parent| ours.contains(&parent))
    };
    entries(Path::new("/proc"))
        .into_iter()
        .filter_map(|pid| pid.parse().ok())
        .filter(|&pid| command_line(pid).starts_with(command))
        .filter(child_of_ours)
        .collect()
}

/// Removes everything that bears the name of a run. Safe to repeat.
pub(crate) fn remove_run(name: &str) -> Result<()> {
    let gone = wait_until_blocking(CLEAN_UP_DEADLINE, || {
        let left = processes(name);
        for pid in &left {
            let _ = run("kill", &["-s", "KILL", &pid.to_string()]);
        }
        left.is_empty()
    });
    let root = std::env::temp_dir().join(name);
    for mount in mounts_under(&root).into_iter().rev() {
        // Lazily: a mount that somebody still looks into must not stop the clean-up.
        let _ = run("umount", &["-l", &mount.to_string_lossy()]);
    }
    for namespace in namespaces(name) {
        let _ = run("ip", &["netns", "del", &namespace]);
    }
    for link in links(name) {
        let _ = run("ip", &["link", "del", &link]);
    }
    // A group is busy until the kernel has buried its last process.
    wait_until_blocking(CLEAN_UP_DEADLINE, || {
        let left = control_groups(name);
        left.iter().for_each(|group| remove_control_group(group));
        left.is_empty()
    });
    // The mark of the owner goes with the rest, so an interrupted removal is taken up by the next run.
    wait_until_blocking(CLEAN_UP_DEADLINE, || !root.exists() || fs::remove_dir_all(&root).is_ok());
    let left = remains(name);
    if !gone || !left.is_empty() {
        bail!("these remain: {}", left.join(", "));
    }
    Ok(())
}

/// Removes what runs have left whose process is gone.
fn remove_dead_runs() {
    let mut names: Vec<String> = entries(&std::env::temp_dir());
    names.extend(entries(Path::new("/run/netns")).into_iter().map(|n| match n.rsplit_once('.') {
        Some((run, _)) => run.to_owned(),
        None => n,
    }));
    names.sort();
    names.dedup();
    for name in names {
        let Some(pid) = name.strip_prefix(PREFIX).and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        let owner = fs::read_to_string(std::env::temp_dir().join(&name).join("owner")).unwrap_or_default();
        // A run writes its mark right after it has made its directory; without one only the pid can tell.
        let alive = started_at(pid).is_some_and(|started| owner.is_empty() || owner == started);
        if alive && pid != std::process::id() {
            continue;
        }
        say(&format!("removing what the dead run {name} left behind"));
        if let Err(error) = remove_run(&name) {
            say(&format!("the dead run {name} could not be removed: {error:#}"));
        }
    }
}

/// Waits for a signal on a thread of its own, so that it works whatever the rest of the process is doing.
fn clean_up_on_signal(name: String) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate, mut hang_up) = {
        let _entered = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
    };
    std::thread::Builder::new().name("clean-up".to_owned()).spawn(move || {
        let code = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => 130,
                _ = terminate.recv() => 143,
                _ = hang_up.recv() => 129,
            }
        });
        say("stopping: removing everything this run has made");
        refuse_new();
        if let Err(error) = remove_run(&name) {
            say(&format!("clean-up is not complete: {error:#}"));
        }
        std::process::exit(code);
    })?;
    Ok(())
}

/// The processes that carry the run's name in their environment. By environment and not by command line: a person
/// who reads a log of the run with `less` has the path in the command line, too.
fn processes(name: &str) -> Vec<u32> {
    let mark = format!("{RUN_VARIABLE}={name}");
    let own = std::process::id();
    entries(Path::new("/proc"))
        .into_iter()
        .filter_map(|pid| pid.parse().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|b| *b == 0).any(|variable| variable == mark.as_bytes())
        })
        .collect()
}

/// The beginning of a command line: enough to know the program.
fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").chars().take(80).collect()
}

/// Mount points at or below a path, in the order they were mounted.
fn mounts_under(root: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|path| path.starts_with(root))
        .collect()
}

fn namespaces(name: &str) -> Vec<String> {
    entries(Path::new("/run/netns")).into_iter().filter(|n| belongs(n, name)).collect()
}

/// Links cannot have long names (15 characters), so theirs is made from the pid alone.
fn links(name: &str) -> Vec<String> {
    let short = link_prefix(name);
    entries(Path::new("/sys/class/net")).into_iter().filter(|n| belongs(n, &short)).collect()
}

/// The beginning of the names of a run's links.
pub(crate) fn link_prefix(name: &str) -> String {
    format!("tl{}", name.trim_start_matches(PREFIX))
}

/// A run's things are called `<name>` or `<name>.<something>`; `towline-12` does not own `towline-123`.
fn belongs(thing: &str, name: &str) -> bool {
    thing.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The run's control groups: one per hierarchy with version 1, a single one with version 2.
fn control_groups(name: &str) -> Vec<PathBuf> {
    let top = PathBuf::from("/sys/fs/cgroup");
    let hierarchies = entries(&top).into_iter().map(|hierarchy| top.join(hierarchy)).chain([top.clone()]);
    hierarchies
        .flat_map(|hierarchy| {
            let own = entries(&hierarchy).into_iter().filter(|n| belongs(n, name));
            own.map(|n| hierarchy.join(n)).collect::<Vec<_>>()
        })
        .collect()
}

/// Control groups are removed from the leaves up; their files go by themselves.
fn remove_control_group(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_control_group(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}

/// When a process was started, in ticks since boot: tells it from a later one with the same id.
fn started_at(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in brackets, which may hold anything (proc_pid_stat(5)); the start
    // time is field 22.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19).map(str::to_owned)
}

fn entries(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_owns_its_own_names_only() {
        for (thing, name, owned) in [
            ("towline-12", "towline-12", true),
            ("towline-12.0", "towline-12", true),
            ("towline-123", "towline-12", false),
            ("towline-1", "towline-12", false),
        ] {
            assert_eq!(belongs(thing, name), owned, "{thing} of {name}");
        }
    }

    #[test]
    fn a_process_knows_when_it_started() {
        assert!(started_at(std::process::id()).unwrap().parse::<u64>().is_ok());
        assert_eq!(started_at(u32::MAX), None);
    }
}
