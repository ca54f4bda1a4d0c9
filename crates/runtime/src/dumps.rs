//! Memory holds tokens and keys, so none of it becomes a core file, and no other process of the same user reads it
//! with ptrace or through `/proc`. The one place where a process of ours says so.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Forbids core dumps of this process, for good: the hard limit goes too.
///
/// # Errors
/// The kernel refuses; whoever starts a process that will hold secrets should stop then.
pub fn forbid() -> io::Result<()> {
    // A kernel whose core_pattern is a pipe ignores the limit (core(5)), hence both.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    // Gives /proc/<pid> to root besides, with environ, mem and fd (PR_SET_DUMPABLE(2const)).
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_dumped_any_more() {
        forbid().unwrap();
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().collect::<Vec<_>>(), ["0", "0", "bytes"]);
        assert_eq!(rustix::process::dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        let raise = Rlimit { current: Some(1), maximum: Some(0) };
        assert!(setrlimit(Resource::Core, raise).is_err(), "the limit cannot be raised again");
    }
}
