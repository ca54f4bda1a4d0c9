//! CPU time and memory of processes, from `/proc`.

use std::time::Duration;

use anyhow::{Context as _, Result};

/// Clock ticks a second in `/proc/<pid>/stat`: 100 on every Linux that is not 40 years old (USER_HZ).
const TICKS: u64 = 100;

/// Whose time is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// One process's, by its id.
    Process(u32),
    /// That of all processes of a group, by the group's id: a peer may be several.
    Group(u32),
}

/// User and system time used so far.
///
/// # Errors
/// The process is gone, or nobody of the group is left.
pub fn cpu(whose: Whose) -> Result<Duration> {
    let group = match whose {
        Whose::Process(pid) => {
            let path = format!("/proc/{pid}/stat");
            return Ok(stat(&std::fs::read_to_string(&path).context(path)?)?.used);
        }
        Whose::Group(group) => group,
    };
    let mut used = None;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let number =
            entry.file_name().to_str().is_some_and(|name| name.starts_with(|c: char| c.is_ascii_digit()));
        if !number {
            continue;
        }
        // Whoever ends meanwhile is counted by its parent.
        let Ok(text) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let stat = stat(&text)?;
        if stat.group == group {
            used = Some(used.unwrap_or_default() + stat.used + stat.children);
        }
    }
    used.with_context(|| format!("process group {group} has ended"))
}

/// What proc_pid_stat(5) says of one process.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    group: u32,
    used: Duration,
    /// Of children that have ended and were waited for.
    children: Duration,
}

fn stat(text: &str) -> Result<Stat> {
    // After the command, which is in parentheses and may hold anything: the group is the 5th field of the line; utime,
    // stime, cutime and cstime are the 14th to 17th.
    let fields: Vec<&str> = text.rsplit_once(')').context("stat")?.1.split_whitespace().collect();
    let field = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).context("stat");
    let time = |at: usize| {
        Ok::<_, anyhow::Error>(Duration::from_millis((field(at)? + field(at + 1)?) * 1000 / TICKS))
    };
    Ok(Stat { group: u32::try_from(field(2)?)?, used: time(11)?, children: time(13)? })
}

/// Resident memory of a process in KiB.
///
/// # Errors
/// The process is gone.
pub fn resident_kib(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).context(path)?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse().ok())
        .context("VmRSS")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_cannot_lie_about_its_time() {
        let line = "42 (a) 1 2 3 (b)) S 1 40 40 0 -1 0 0 0 0 0 150 50 20 10 20 0 1 0 5 0 0";
        let expected = Stat { group: 40, used: Duration::from_secs(2), children: Duration::from_millis(300) };
        assert_eq!(stat(line).unwrap(), expected);
    }

    #[test]
    fn a_group_is_at_least_its_leader_and_an_empty_one_is_an_error() {
        let text = std::fs::read_to_string("/proc/self/stat").unwrap();
        let group = stat(&text).unwrap().group;
        let myself = cpu(Whose::Process(std::process::id())).unwrap();
        assert!(cpu(Whose::Group(group)).unwrap() >= myself);
        assert!(cpu(Whose::Group(u32::MAX)).is_err());
    }
}
