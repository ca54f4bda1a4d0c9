//! What a faulty link does with each piece that passes: decided by a seed and by how many bytes and how much time
//! have passed, and by nothing else. Does no IO and reads no clock, so that the same seed is the same fault.

use std::time::Duration;

/// Most bytes in one piece when nothing cuts them smaller.
const PIECE: usize = 64 * 1024;

/// SplitMix64 (Steele, Lea, Flood 2014): small, the same on every machine and in every version.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Equal seeds throw equal numbers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from `low` up to and without `high`; `low` when there is none.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.throw() % high.saturating_sub(low).max(1)
    }

    /// True so many times in a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.between(0, 100) < percent
    }
}

/// When something happens to one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Just before the byte with this number, counted from 0.
    Byte(u64),
    /// So long after the link was made.
    After(Duration),
}

/// How one direction ends before its source does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The connection is reset, both ways.
    Reset,
    /// This direction ends as if its source had said so; the other goes on.
    HalfClose,
    /// Nothing passes any more, and nobody is told: a black hole from `When::Byte(0)` on, else a stall.
    Stall,
}

/// What is wrong with one direction. The default is nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    /// Each piece arrives so much later, and up to the second so much more; the order stays.
    pub delay: Option<(Duration, Duration)>,
    /// Bytes in a second.
    pub rate: Option<u64>,
    /// Pieces of one byte up to so many, by chance; 1 is byte by byte.
    pub slice: Option<usize>,
    /// Nothing passes for so long, once.
    pub pause: Option<(When, Duration)>,
    /// How it ends too early.
    pub end: Option<(When, End)>,
    /// The bits of `.1` are flipped in the byte with this number.
    pub corrupt: Option<(u64, u8)>,
}

/// What to do with the bytes that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Pass so many of them on.
    Pass(Piece),
    /// Pass nothing any more.
    End(End),
}

/// Bytes that stay together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// At least one.
    pub bytes: usize,
    /// How long the link is busy before it can take them.
    pub busy: Duration,
    /// How much later than that they arrive.
    pub late: Duration,
    /// Which of them is damaged, and which of its bits.
    pub flip: Option<(usize, u8)>,
}

/// The faults of one direction as they happen.
#[derive(Debug, Clone)]
pub struct Schedule {
    faults: Faults,
    dice: Dice,
    passed: u64,
}

impl Schedule {
    /// Equal faults and seeds make equal schedules.
    #[must_use]
    pub fn new(faults: Faults, seed: u64) -> Self {
        Self { faults, dice: Dice::new(seed), passed: 0 }
    }

    /// What happens now, when `waiting` bytes wait (at least one) and the link is `age` old.
    pub fn step(&mut self, waiting: usize, age: Duration) -> Step {
        let mut most = waiting.clamp(1, PIECE);
        if let Some((when, end)) = self.faults.end {
            match self.until(when, age) {
                Some(0) => return Step::End(end),
                Some(left) => most = most.min(left),
                None => {}
            }
        }
        let mut busy = Duration::ZERO;
        if let Some((when, pause)) = self.faults.pause {
            match self.until(when, age) {
                Some(0) => {
                    self.faults.pause = None;
                    busy = pause;
                }
                Some(left) => most = most.min(left),
                None => {}
            }
        }
        let bytes = match self.faults.slice {
            Some(slice) => (self.dice.between(1, slice as u64 + 1) as usize).min(most),
            None => most,
        };
        if let Some(rate) = self.faults.rate {
            busy += Duration::from_nanos(bytes as u64 * 1_000_000_000 / rate.max(1));
        }
        let late = self.faults.delay.map_or(Duration::ZERO, |(least, jitter)| {
            least + jitter.mul_f64(self.dice.between(0, 1_000) as f64 / 1_000.0)
        });
        let flip = self.faults.corrupt.and_then(|(byte, bits)| {
            let at = byte.checked_sub(self.passed)?;
            (at < bytes as u64).then_some((at as usize, bits))
        });
        self.passed += bytes as u64;
        Step::Pass(Piece { bytes, busy, late, flip })
    }

    /// When this direction ends although nothing passes.
    #[must_use]
    pub fn ends_at(&self) -> Option<(Duration, End)> {
        match self.faults.end {
            Some((When::After(age), end)) => Some((age, end)),
            Some((When::Byte(0), end)) => Some((Duration::ZERO, end)),
            _ => None,
        }
    }

    /// How many bytes may still pass before; `None` when bytes do not bring it nearer.
    fn until(&self, when: When, age: Duration) -> Option<usize> {
        match when {
            When::Byte(byte) => Some(usize::try_from(byte.saturating_sub(self.passed)).unwrap_or(usize::MAX)),
            When::After(after) => (age >= after).then_some(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn when() -> impl Strategy<Value = When> {
        prop_oneof![
            (0_u64..5_000).prop_map(When::Byte),
            (0_u64..50).prop_map(|ms| When::After(Duration::from_millis(ms))),
        ]
    }

    prop_compose! {
        fn faults()(
            slice in proptest::option::of(1_usize..400),
            rate in proptest::option::of(1_u64..1_000_000),
            delay in proptest::option::of((0_u64..50, 0_u64..50)),
            pause in proptest::option::of((when(), 1_u64..90)),
            end in proptest::option::of((when(), prop_oneof![Just(End::Reset), Just(End::HalfClose), Just(End::Stall)])),
            corrupt in proptest::option::of((0_u64..5_000, 1_u8..)),
        ) -> Faults {
            let millis = Duration::from_millis;
            Faults {
                delay: delay.map(|(least, jitter)| (millis(least), millis(jitter))),
                rate, slice, end, corrupt,
                pause: pause.map(|(when, ms)| (when, millis(ms))),
            }
        }
    }

    /// Offers `total` bytes, one millisecond a step, and tells what became of them.
    fn run(faults: &Faults, seed: u64, total: usize) -> (Vec<Piece>, Option<End>) {
        let mut schedule = Schedule::new(faults.clone(), seed);
        let (mut left, mut pieces) = (total, Vec::new());
        while left > 0 {
            match schedule.step(left, Duration::from_millis(pieces.len() as u64)) {
                Step::Pass(piece) => {
                    assert!((1..=left).contains(&piece.bytes));
                    left -= piece.bytes;
                    pieces.push(piece);
                }
                Step::End(end) => return (pieces, Some(end)),
            }
        }
        (pieces, None)
    }

    proptest! {
        #[test]
        fn equal_seeds_are_equal_faults(faults in faults(), seed: u64, total in 1_usize..6_000) {
            prop_assert_eq!(run(&faults, seed, total), run(&faults, seed, total));
        }

        #[test]
        fn every_byte_passes_until_the_end_and_none_after_it(faults in faults(), seed: u64, total in 1_usize..6_000) {
            let (pieces, end) = run(&faults, seed, total);
            let passed: usize = pieces.iter().map(|piece| piece.bytes).sum();
            match (faults.end, end) {
                (Some((When::Byte(byte), wanted)), Some(found)) => {
                    prop_assert_eq!((passed as u64, found), (byte, wanted));
                }
                (Some((When::After(after), wanted)), Some(found)) => {
                    prop_assert_eq!(found, wanted);
                    prop_assert_eq!(pieces.len() as u128, after.as_millis());
                }
                (None, Some(found)) => prop_assert!(false, "{:?} out of nothing", found),
                (_, None) => prop_assert_eq!(passed, total),
            }
        }

        #[test]
        fn pieces_and_times_are_within_what_was_asked_for(faults in faults(), seed: u64, total in 1_usize..6_000) {
            let (pieces, _) = run(&faults, seed, total);
            let busy: Duration = pieces.iter().map(|piece| piece.busy).sum();
            let passed: usize = pieces.iter().map(|piece| piece.bytes).sum();
            let least = faults.rate.map_or(0.0, |rate| passed as f64 / rate as f64);
            let pause = faults.pause.map_or(0.0, |(_, pause)| pause.as_secs_f64());
            prop_assert!(busy.as_secs_f64() >= least - 0.001 && busy.as_secs_f64() <= least + pause + 0.001);
            for piece in &pieces {
                prop_assert!(faults.slice.is_none_or(|slice| piece.bytes <= slice));
                let (least, jitter) = faults.delay.unwrap_or_default();
                prop_assert!(piece.late >= least && piece.late <= least + jitter);
            }
        }

        #[test]
        fn one_byte_is_damaged_and_it_is_the_one(faults in faults(), seed: u64, total in 1_usize..6_000) {
            let (pieces, _) = run(&faults, seed, total);
            let (mut before, mut damaged) = (0_u64, Vec::new());
            for piece in &pieces {
                damaged.extend(piece.flip.map(|(at, bits)| (before + at as u64, bits)));
                before += piece.bytes as u64;
            }
            let wanted: Vec<_> = faults.corrupt.into_iter().filter(|(byte, _)| *byte < before).collect();
            prop_assert_eq!(damaged, wanted);
        }
    }
}
