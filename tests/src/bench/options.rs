//! What `make bench ARGS=...` may ask for, and how much is measured then. Pure.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

/// How much is measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Size {
    /// Rounds; in each the ways take turns, and each gives one value.
    pub rounds: usize,
    /// Small GETs, one after the other, in each round.
    pub gets: usize,
    /// How long requests come 64 at once, in each round.
    pub saturation: Duration,
    /// Bytes of a bulk body.
    pub body: usize,
    /// Small GETs beside a bulk transfer, in each round.
    pub beside: usize,
    /// Small GETs over a link, in each round.
    pub over_link: usize,
    /// Rounds of what takes long: links and watches.
    pub long_rounds: usize,
    /// Round trip in milliseconds and bits a second of each link.
    pub links: &'static [(u64, u64)],
    /// Watches on one tunnel.
    pub watches: &'static [usize],
    /// How long their events are timed, in each round.
    pub watching: Duration,
    /// Keystrokes in each round.
    pub keystrokes: usize,
    /// Execs that are opened in each round.
    pub execs: usize,
    /// Idle tunnels.
    pub tunnels: usize,
    /// Clusters that the command line lists.
    pub clusters: usize,
}

const GIGABIT: u64 = 1_000_000_000;

/// The whole benchmark.
pub const FULL: Size = Size {
    rounds: 7,
    gets: 1000,
    saturation: Duration::from_secs(3),
    body: 100_000_000,
    beside: 300,
    over_link: 40,
    long_rounds: 3,
    links: &[(0, GIGABIT), (20, GIGABIT), (50, GIGABIT), (100, GIGABIT), (50, GIGABIT / 10)],
    watches: &[1000, 5000],
    watching: Duration::from_secs(8),
    keystrokes: 1000,
    execs: 40,
    tunnels: 1000,
    clusters: 3000,
};
/// What `make test` runs: every part of it, and little of each.
pub const SMOKE: Size = Size {
    rounds: 3,
    gets: 200,
    saturation: Duration::from_secs(1),
    body: 50_000_000,
    beside: 50,
    over_link: 5,
    long_rounds: 1,
    links: &[(20, GIGABIT / 10)],
    watches: &[200],
    watching: Duration::from_secs(2),
    keystrokes: 50,
    execs: 5,
    tunnels: 100,
    clusters: 110,
};

/// The parts of the benchmark, in the order in which they run: what looks at memory first, on a hub that has done nothing
/// else.
pub const SECTIONS: [&str; 10] =
    ["idle", "watches", "latency", "throughput", "bulk", "fairness", "exec", "links", "apiserver", "people"];

/// Another tunnel, to be measured beside ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCommand {
    /// Its name in tables.
    pub name: String,
    /// What starts it, for `sh`.
    pub command: String,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// How much.
    pub size: Size,
    /// Which sections, of [`SECTIONS`].
    pub only: Vec<&'static str>,
    /// Whether to fail where figures that no neighbour changes are out of bounds.
    pub judge: bool,
    /// Whether to write `docs/performance.md`.
    pub publish: bool,
    /// Who takes part.
    pub peers: Vec<PeerCommand>,
}

impl Options {
    /// Reads the arguments.
    ///
    /// # Errors
    /// There is one that is not known; says which are.
    pub fn parse(arguments: &[String]) -> Result<Self> {
        let mut options =
            Self { size: FULL, only: SECTIONS.into(), judge: false, publish: false, peers: Vec::new() };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let (name, inline) = match argument.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (argument.as_str(), None),
            };
            let mut value = || {
                inline.clone().or_else(|| arguments.next().cloned()).context(format!("{name} needs a value"))
            };
            match name {
                "--smoke" => (options.size, options.judge) = (SMOKE, true),
                "--people" => options.only = vec!["people"],
                "--publish" => options.publish = true,
                "--only" => options.only = sections(&value()?)?,
                "--rounds" => {
                    let rounds = value()?.parse().ok().filter(|rounds| (1..=100).contains(rounds));
                    options.size.rounds = rounds.context("--rounds is a number from 1 to 100")?;
                    options.size.long_rounds = options.size.rounds.min(options.size.long_rounds);
                }
                "--peer" => options.peers.push(peer(&value()?)?),
                _ => bail!(
                    "make bench knows ARGS= --smoke, --only {}, --rounds N, --publish, --peer NAME=COMMAND, not {argument}",
                    SECTIONS.join(",")
                ),
            }
        }
        ensure!(
            !(options.publish && options.judge),
            "figures of --smoke are not published: it measures too little"
        );
        Ok(options)
    }

    /// Whether a section was asked for.
    #[must_use]
    pub fn wants(&self, section: &str) -> bool {
        self.only.contains(&section)
    }
}

/// In their own order, whatever the order they were asked for in.
fn sections(list: &str) -> Result<Vec<&'static str>> {
    let wanted: Vec<_> = list.split(',').collect();
    for name in &wanted {
        ensure!(SECTIONS.contains(name), "no section {name:?}: there are {}", SECTIONS.join(", "));
    }
    Ok(SECTIONS.into_iter().filter(|section| wanted.contains(section)).collect())
}

fn peer(text: &str) -> Result<PeerCommand> {
    let (name, command) = text.split_once('=').context("--peer is NAME=COMMAND")?;
    let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    ensure!(plain, "a peer's name is letters, digits, '-', '_' and '.', not {name:?}");
    ensure!(!command.trim().is_empty(), "the peer {name} has no command");
    Ok(PeerCommand { name: name.to_owned(), command: command.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options> {
        Options::parse(&arguments.iter().map(|&argument| argument.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn nothing_asked_for_is_everything() {
        let options = parse(&[]).unwrap();
        assert!(options.size == FULL && options.only == SECTIONS && !options.judge && !options.publish);
    }

    #[test]
    fn each_argument_does_what_it_says() {
        let peer = "kon=./start --port=1";
        let options = parse(&["--only", "links,exec", "--rounds=2", "--publish", "--peer", peer]).unwrap();
        assert_eq!(options.only, ["exec", "links"], "in the order in which they run");
        assert!(options.wants("exec") && !options.wants("bulk"));
        assert_eq!((options.size.rounds, options.size.long_rounds, options.publish), (2, 2, true));
        assert_eq!(
            options.peers,
            [PeerCommand { name: "kon".to_owned(), command: "./start --port=1".to_owned() }]
        );
        let smoke = parse(&["--smoke", "--peer=a=b"]).unwrap();
        assert!(smoke.judge && smoke.size == SMOKE && smoke.peers[0].command == "b");
    }

    #[test]
    fn what_is_not_known_is_refused_with_what_is() {
        for (arguments, why) in [
            (&["--fast"][..], "--only idle,watches"),
            (&["--only", "speed"], "there are idle"),
            (&["--only"], "needs a value"),
            (&["--rounds", "0"], "from 1 to 100"),
            (&["--peer", "x"], "NAME=COMMAND"),
            (&["--peer", "a b=c"], "letters"),
            (&["--peer", "a= "], "no command"),
            (&["--smoke", "--publish"], "not published"),
        ] {
            let error = parse(arguments).unwrap_err().to_string();
            assert!(error.contains(why), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn there_are_clusters_for_all_tunnels() {
        for size in [FULL, SMOKE] {
            assert!(size.clusters >= size.tunnels + 2 + size.links.len());
        }
    }
}
