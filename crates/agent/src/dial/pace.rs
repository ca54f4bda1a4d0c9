//! How long a lane waits before its next try. Pure but for the random numbers: the time is an argument.

use std::time::Duration;

use runtime::backoff::Backoff;
use tokio::time::Instant;

use crate::limits::{
    DIAL_FIRST, DIAL_MAX, RETURN_LIVED, RETURN_MAX, RETURN_WINDOW, SAME_HUB_FIRST, SAME_HUB_REST,
    SAME_HUB_TRIES, TUNNEL_LIVED,
};

/// What the pauses of one lane depend on.
#[derive(Debug)]
pub(crate) struct Pace {
    backoff: Backoff,
    hurry: Backoff,
    lost_at: Option<Instant>,
    same_hub: Backoff,
    same_hub_tries: u32,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self {
            backoff: Backoff::new(DIAL_FIRST, DIAL_MAX),
            hurry: Backoff::new(DIAL_FIRST, RETURN_MAX),
            lost_at: None,
            same_hub: Backoff::new(SAME_HUB_FIRST, SAME_HUB_REST),
            same_hub_tries: 0,
        }
    }

    /// A tunnel ended that had stood for so long.
    pub(crate) fn ended(&mut self, lived: Duration, now: Instant) {
        self.same_hub.reset();
        self.same_hub_tries = 0;
        if lived >= TUNNEL_LIVED {
            self.backoff.reset();
        }
        if lived >= RETURN_LIVED {
            self.hurry_from(now);
        }
    }

    /// People wait for the next tunnel from now on.
    pub(crate) fn hurry_from(&mut self, now: Instant) {
        self.lost_at = Some(now);
        self.hurry.reset();
    }

    /// The pause after a failure.
    pub(crate) fn after_trouble(&mut self, now: Instant) -> Duration {
        match self.lost_at {
            Some(lost_at) if now.duration_since(lost_at) < RETURN_WINDOW => self.hurry.delay(),
            _ => self.backoff.delay(),
        }
    }

    /// The pause after it met the replica that has a tunnel of this agent already.
    pub(crate) fn after_same_hub(&mut self) -> Duration {
        if self.same_hub_tries >= SAME_HUB_TRIES {
            return jittered(SAME_HUB_REST);
        }
        self.same_hub_tries += 1;
        self.same_hub.delay()
    }
}

/// Between three quarters of it and all of it, so that many that wait do not ask together.
pub(crate) fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(1.0 - rand::random::<f64>() / 4.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_that_meet_the_same_hub_become_rare() {
        let mut pace = Pace::new();
        let hurried: Duration = (0..SAME_HUB_TRIES).map(|_| pace.after_same_hub()).sum();
        assert!(hurried < Duration::from_secs(16), "{hurried:?}");
        for _ in 0..100 {
            let pause = pace.after_same_hub();
            assert!((SAME_HUB_REST * 3 / 4..=SAME_HUB_REST).contains(&pause), "{pause:?}");
        }
        pace.ended(Duration::ZERO, Instant::now());
        assert!(pace.after_same_hub() <= SAME_HUB_FIRST, "a new tunnel, a new search");
    }

    #[test]
    fn after_the_loss_of_a_good_tunnel_the_pauses_stay_short_for_a_while() {
        let (mut pace, now) = (Pace::new(), Instant::now());
        for _ in 0..20 {
            pace.after_trouble(now);
        }
        pace.ended(RETURN_LIVED, now);
        assert!((0..20).all(|_| pace.after_trouble(now) <= RETURN_MAX));
        let later = now + RETURN_WINDOW;
        assert!((0..200).any(|_| pace.after_trouble(later) > RETURN_MAX));
    }
}
