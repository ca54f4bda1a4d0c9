//! On what it was measured, and beside what: a figure without these is worth nothing. Reads `/proc`; the one thing that
//! it changes is on which processors our own processes run.

use std::path::Path;

use crate::process::run;

/// What does not change while it is measured.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The model of its processors.
    pub model: String,
    /// How many there are.
    pub processors: usize,
    kernel: String,
    commit: String,
}

impl Machine {
    /// This one, and the commit of the repository.
    #[must_use]
    pub fn read(repository: &Path) -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            model: model.map_or("unknown processors", |(_, model)| model).trim().to_owned(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: kernel.split('-').next().unwrap_or_default().trim().to_owned(),
            commit: commit(repository),
        }
    }

    /// In words.
    #[must_use]
    pub fn words(&self) -> String {
        let Self { model, processors, kernel, commit } = self;
        let pinned = match layout(*processors) {
            Some(_) => "each part pinned to its own",
            None => "nothing pinned: all parts share them",
        };
        let build = if cfg!(debug_assertions) { ", debug build of the client" } else { "" };
        format!("Commit {commit}{build}. {processors} × {model}, {pinned}; Linux {kernel}.")
    }
}

/// With `+` when what was built may differ from it.
fn commit(repository: &Path) -> String {
    let git = |arguments: &[&str]| {
        let place = repository.to_str().unwrap_or(".");
        run("git", &[&["-C", place], arguments].concat()).map(|text| text.trim().to_owned())
    };
    let Ok(commit) = git(&["rev-parse", "--short=7", "HEAD"]) else { return "unknown".to_owned() };
    let changed = git(&["status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs"]);
    if changed.is_ok_and(|changed| changed.is_empty()) { commit } else { format!("{commit}+") }
}

/// The parts that are worth a processor of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// This process, which measures.
    Client,
    /// The hub, or a peer in its place.
    Hub,
    /// Agents.
    Agent,
    /// The fake kube-apiserver, links, and the parent.
    Rest,
}

/// Which processors a part gets: the first three one each, the others the rest. `None` on machines with fewer than four,
/// where pinning would make parts wait for each other while another processor idles.
#[must_use]
pub fn layout(processors: usize) -> Option<impl Fn(Part) -> String> {
    (processors >= 4).then_some(move |part: Part| match part {
        Part::Client => "0".to_owned(),
        Part::Hub => "1".to_owned(),
        Part::Agent => "2".to_owned(),
        Part::Rest => format!("3-{}", processors - 1),
    })
}

/// Pins a process and what it starts later; does nothing on a small machine.
///
/// # Errors
/// There is no `taskset`, or the process is gone.
pub fn pin(pid: u32, part: Part) -> anyhow::Result<()> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    if let Some(layout) = layout(processors) {
        run("taskset", &["--all-tasks", "--cpu-list", "--pid", &layout(part), &pid.to_string()])?;
    }
    Ok(())
}

/// What the machine has done up to a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Moment {
    load: f64,
    all: f64,
    idle: f64,
    stolen: f64,
}

impl Moment {
    /// Now; zeros where the kernel does not say.
    #[must_use]
    pub fn now() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Self::parse(&read("/proc/loadavg"), &read("/proc/stat"))
    }

    fn parse(loadavg: &str, stat: &str) -> Self {
        // proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal; what follows is counted in user and nice.
        let line = stat.lines().next().unwrap_or_default();
        let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|tick| tick.parse().ok()).collect();
        let at = |at: usize| ticks.get(at).copied().unwrap_or_default();
        Self {
            load: loadavg.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default(),
            all: ticks.iter().take(8).sum(),
            idle: at(3) + at(4),
            stolen: at(7),
        }
    }

    /// What happened from then to now, in words.
    #[must_use]
    pub fn words_since(self, then: Self) -> String {
        let all = (self.all - then.all).max(1.0);
        let percent = |part: f64| part / all * 100.0;
        format!(
            "Load {:.1} before and {:.1} after; {:.0} % of the processors' time was idle, and other guests of the host took {:.0} %.",
            then.load,
            self.load,
            percent(self.idle - then.idle),
            percent(self.stolen - then.stolen)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_share_no_processor_where_there_are_enough() {
        assert!(layout(1).is_none() && layout(2).is_none() && layout(3).is_none());
        let of = layout(8).unwrap();
        assert_eq!([Part::Client, Part::Hub, Part::Agent, Part::Rest].map(of), ["0", "1", "2", "3-7"]);
        assert_eq!(layout(4).unwrap()(Part::Rest), "3-3");
    }

    #[test]
    fn what_others_took_is_a_share_of_all_time_between() {
        let then = Moment::parse("0.50 0.1 0.1 1/2 3", "cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 1\n");
        let now = Moment::parse("2.25 0.1 0.1 1/2 3", "cpu  120 0 60 840 60 0 0 20 0 0\n");
        let words = now.words_since(then);
        assert!(words.contains("Load 0.5 before and 2.2 after; 50 % of"), "{words}");
        assert!(words.contains("took 20 %"), "{words}");
        assert!(!Moment::parse("", "").words_since(Moment::default()).contains("NaN"));
    }

    #[test]
    fn a_process_can_be_pinned_on_this_machine() {
        pin(std::process::id(), Part::Rest).unwrap();
    }
}
