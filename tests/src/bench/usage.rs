//! CPU time and memory of a process, from `/proc`.

use std::time::Duration;

use anyhow::{Context as _, Result};

/// Clock ticks a second in `/proc/<pid>/stat`: 100 on every Linux that is not 40 years old (USER_HZ).
const TICKS: u64 = 100;

/// User and system time that a process has used so far.
///
/// # Errors
/// The process is gone.
pub fn cpu(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Fields after the command, which is in parentheses and may hold anything (proc(5)): utime and stime are
    // the 14th and 15th of the line.
    let fields: Vec<&str> = stat.rsplit_once(')').context("stat")?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).context("stat");
    let ticks = ticks(11)? + ticks(12)?;
    Ok(Duration::from_millis(ticks * 1000 / TICKS))
}

/// Resident memory of a process in KiB.
///
/// # Errors
/// The process is gone.
pub fn resident_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse().ok())
        .context("VmRSS")
}
