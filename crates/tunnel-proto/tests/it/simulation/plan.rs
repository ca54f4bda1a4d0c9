//! What happens in one run: pure, from the seed.

use std::time::Duration;

use crate::faults::{
    link::LinkFaults,
    schedule::{Dice, End, Faults, When},
};

/// What is tried with a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    /// The link is slow, late, uneven, but carries every byte.
    Bad,
    /// The link dies.
    Dead,
    /// The link is bad, and one of the sides leaves in order.
    Leaving,
    /// A byte is damaged, as TLS would never let it through.
    Damaged,
}

/// Who leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaves {
    Hub,
    Agent,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A body of this size.
    Get,
    /// What was sent comes back.
    Echo,
    /// A body in small pieces with time between them.
    Watch,
    /// A body that fails half-way in the child.
    Breaks,
    /// A body of which nobody reads a byte.
    Unread,
    /// An upgraded stream that sends back what comes, and ends after it.
    Exec,
}

#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) id: u32,
    pub(super) at: Duration,
    pub(super) kind: Kind,
    pub(super) size: usize,
    /// After so long nobody waits any more.
    pub(super) patience: Option<Duration>,
    /// Up to so many milliseconds between two reads.
    pub(super) hurry: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) sort: Sort,
    pub(super) seed: u64,
    pub(super) pipe: usize,
    pub(super) faults: LinkFaults,
    pub(super) asks: Vec<Ask>,
    pub(super) leaves: Option<(Duration, Leaves)>,
    /// How long nobody asks anything at the end.
    pub(super) silence: Duration,
}

impl Plan {
    pub(super) fn new(sort: Sort, seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ (sort as u64) << 56);
        let millis = |dice: &mut Dice, high| Duration::from_millis(dice.between(0, high));
        let mut faults = LinkFaults { there: bad(&mut dice), back: bad(&mut dice), idle_kill: None };
        // Longer than the tunnel is ever silent: 15 s, and what the link itself adds.
        if dice.chance(30) {
            faults.idle_kill = Some(Duration::from_secs(dice.between(30, 60)));
        }
        let asks = (0..dice.between(1, 9) as u32).map(|id| ask(&mut dice, id, sort)).collect();
        match sort {
            Sort::Bad | Sort::Leaving => {}
            Sort::Dead => die(&mut dice, &mut faults),
            Sort::Damaged => {
                let way = if dice.chance(50) { &mut faults.there } else { &mut faults.back };
                way.corrupt = Some((dice.between(0, 4_000), dice.between(1, 256) as u8));
            }
        }
        let leaves = (sort == Sort::Leaving)
            .then(|| (millis(&mut dice, 8_000), if dice.chance(50) { Leaves::Hub } else { Leaves::Agent }));
        let pipe = [300, 4_096, 64 * 1024][dice.between(0, 3) as usize];
        Self { sort, seed, pipe, faults, asks, leaves, silence: Duration::from_secs(dice.between(0, 600)) }
    }
}

/// One direction of a bad link.
fn bad(dice: &mut Dice) -> Faults {
    let millis = |dice: &mut Dice, high| Duration::from_millis(dice.between(0, high));
    let mut faults = Faults::default();
    if dice.chance(50) {
        faults.delay = Some((millis(dice, 300), millis(dice, 200)));
    }
    if dice.chance(30) {
        faults.rate = Some(dice.between(60_000, 2_000_000));
    }
    if dice.chance(50) {
        // Few of them are tiny, for those cost most of the time.
        let least = if dice.chance(10) { 1 } else { 200 };
        faults.slice = Some(dice.between(least, least * 100) as usize);
    }
    if dice.chance(30) {
        // Shorter than what a missed keep-alive takes; in the opening, than the hello may take.
        let at = when(dice);
        let opening = match at {
            When::Byte(byte) => byte < 2_000,
            When::After(age) => age < Duration::from_secs(8),
        };
        faults.pause = Some((at, millis(dice, if opening { 3_000 } else { 12_000 })));
    }
    faults
}

fn when(dice: &mut Dice) -> When {
    match dice.between(0, 4) {
        0 => When::After(Duration::from_millis(dice.between(0, 20_000))),
        1 => When::Byte(dice.between(0, 2_000)),
        _ => When::Byte(dice.between(0, 100_000)),
    }
}

fn die(dice: &mut Dice, faults: &mut LinkFaults) {
    if dice.chance(10) {
        // Shorter than the silence between two keep-alives.
        faults.idle_kill = Some(Duration::from_secs(dice.between(1, 10)));
        return;
    }
    let end = [End::Reset, End::HalfClose, End::Stall][dice.between(0, 3) as usize];
    let which = dice.between(0, 3);
    let at = when(dice);
    if which != 1 {
        faults.there.end = Some((at, end));
    }
    if which != 0 {
        faults.back.end = Some((at, end));
    }
    // Whatever the bytes do, it dies while somebody looks.
    if faults.there.end.is_none() {
        faults.there.end = Some((When::After(Duration::from_secs(60)), End::Stall));
    }
}

fn ask(dice: &mut Dice, id: u32, sort: Sort) -> Ask {
    let kind = match dice.between(0, 20) {
        0..6 => Kind::Get,
        6..11 => Kind::Echo,
        11..14 => Kind::Watch,
        14..16 => Kind::Breaks,
        16 => Kind::Unread,
        _ => Kind::Exec,
    };
    let size = match kind {
        Kind::Unread => 1_100_000,
        Kind::Watch => dice.between(1, 40) as usize * 50,
        _ if dice.chance(10) => dice.between(1, 120_000) as usize,
        _ if dice.chance(10) => 0,
        Kind::Get | Kind::Echo | Kind::Breaks | Kind::Exec => dice.between(1, 20_000) as usize,
    };
    let patience = dice.chance(20) || kind == Kind::Unread || sort == Sort::Damaged;
    Ask {
        id,
        at: Duration::from_millis(dice.between(0, 5_000)),
        kind,
        size,
        patience: patience.then(|| Duration::from_millis(dice.between(0, 10_000))),
        hurry: if dice.chance(20) { dice.between(1, 400) } else { 0 },
    }
}
