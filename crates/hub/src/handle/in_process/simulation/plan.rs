//! What happens in one run: pure, from the seed.

use std::time::Duration;

use super::faults::link::LinkFaults;
use super::faults::schedule::{Dice, End, Faults, When};

/// Clusters c0, c1 and so on.
pub(super) const CLUSTERS: usize = 3;
/// Who asks; each may use some of the clusters.
pub(super) const USERS: [&str; 3] = ["alice", "bob", "carol"];
/// How long things go wrong.
pub(super) const TROUBLE: Duration = Duration::from_secs(40);

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Get,
    /// What was sent comes back.
    Post,
    /// An answer that begins some seconds later.
    Slow,
    /// Numbered lines with time between them.
    Watch,
}

#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) id: usize,
    /// The replica that is asked.
    pub(super) at: usize,
    pub(super) user: &'static str,
    /// One more than there are, at times.
    pub(super) cluster: usize,
    pub(super) kind: Kind,
    /// After so long nobody waits any more.
    pub(super) patience: Option<Duration>,
}

#[derive(Debug, Clone)]
pub(super) enum Event {
    Ask(Ask),
    /// A replica dies without a word.
    Kill(usize),
    /// It is back, or was never gone.
    Revive(usize),
    /// It cannot ask the parent, and is not found by the others, until [`Event::FindParent`].
    LoseParent(usize),
    FindParent(usize),
    /// The first believes that the second holds a tunnel of this cluster.
    Believe(usize, usize, usize),
    /// The agent's process is replaced by a newer one, which the older one names as its successor, or does not.
    Replace(usize, bool),
    /// Somebody has copied the agent's credential.
    Copy(usize),
    /// A replica is told to stop.
    Leave(usize),
    /// The cluster is shut out, or let in again; each replica hears of it some time later.
    Deny(usize),
    Admit(usize),
}

#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) replicas: usize,
    /// Tunnels of each agent.
    pub(super) seats: usize,
    pub(super) events: Vec<(Duration, Event)>,
}

impl Plan {
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let replicas = dice.between(2, 4) as usize;
        let mut events = Vec::new();
        for id in 0..dice.between(20, 50) as usize {
            let ask = ask(&mut dice, id, replicas);
            events.push((moment(&mut dice), Event::Ask(ask)));
        }
        for _ in 0..dice.between(0, 12) {
            let (at, replica) = (moment(&mut dice), dice.between(0, replicas as u64) as usize);
            let (cluster, later) = (dice.between(0, CLUSTERS as u64) as usize, at + moment(&mut dice) / 3);
            let other = (replica + 1 + dice.between(0, replicas as u64 - 1) as usize) % replicas;
            match dice.between(0, 13) {
                0 | 1 => {
                    events.push((at, Event::Kill(replica)));
                    events.push((later, Event::Revive(replica)));
                }
                2 => {
                    events.push((at, Event::LoseParent(replica)));
                    events.push((later, Event::FindParent(replica)));
                }
                3 | 4 => events.push((at, Event::Believe(replica, other, cluster))),
                5..=7 => events.push((at, Event::Replace(cluster, dice.chance(60)))),
                8 => events.push((at, Event::Copy(cluster))),
                9 | 10 => {
                    events.push((at, Event::Leave(replica)));
                    events.push((later, Event::Revive(replica)));
                }
                _ => {
                    events.push((at, Event::Deny(cluster)));
                    events.push((later, Event::Admit(cluster)));
                }
            }
        }
        events.sort_by_key(|(at, _)| *at);
        Self { seed, replicas, seats: dice.between(1, 3) as usize, events }
    }
}

fn moment(dice: &mut Dice) -> Duration {
    Duration::from_millis(dice.between(0, TROUBLE.as_millis() as u64))
}

fn ask(dice: &mut Dice, id: usize, replicas: usize) -> Ask {
    let kind = match dice.between(0, 10) {
        0..=2 => Kind::Get,
        3 | 4 => Kind::Post,
        5..=7 => Kind::Slow,
        _ => Kind::Watch,
    };
    let unknown = dice.chance(3);
    Ask {
        id,
        at: dice.between(0, replicas as u64) as usize,
        user: USERS[dice.between(0, USERS.len() as u64) as usize],
        cluster: if unknown { CLUSTERS } else { dice.between(0, CLUSTERS as u64) as usize },
        kind,
        patience: dice.chance(25).then(|| Duration::from_millis(dice.between(0, 5_000))),
    }
}

/// Who may use which: the first user the first two, and so on round.
pub(super) fn may_use(user: &str, cluster: usize) -> bool {
    let number = USERS.iter().position(|one| *one == user);
    number
        .is_some_and(|number| cluster < CLUSTERS && (cluster == number || cluster == (number + 1) % CLUSTERS))
}

/// The one role that somebody holds on a cluster, if any.
pub(super) fn role_of(user: &str, cluster: usize) -> &'static str {
    let number = USERS.iter().position(|one| *one == user).unwrap_or_default();
    ["view", "edit", "none"][(number + 2 * cluster) % 3]
}

/// What is wrong with one connection: nothing, it is slow, it breaks, or it falls silent.
pub(super) fn link(dice: &mut Dice) -> LinkFaults {
    let millis = |dice: &mut Dice, high| Duration::from_millis(dice.between(0, high));
    let mut faults = LinkFaults::default();
    if dice.chance(40) {
        for way in [&mut faults.there, &mut faults.back] {
            *way = Faults { delay: Some((millis(dice, 40), millis(dice, 60))), ..Faults::default() };
        }
    }
    if dice.chance(35) {
        let end = [End::Reset, End::HalfClose, End::Stall][dice.between(0, 3) as usize];
        let when = if dice.chance(50) {
            When::Byte(dice.between(0, 20_000))
        } else {
            When::After(Duration::from_secs(dice.between(0, 30)))
        };
        faults.there.end = dice.chance(70).then_some((when, end));
        faults.back.end = dice.chance(70).then_some((when, end));
    }
    faults
}
