//! Tunnels that are being opened. Each costs the parent two questions (whose token it is, and may it), and after a
//! restart of the hub all agents come within seconds: a few are asked about at once, so that the parent and whoever
//! else asks it something get their time; some thousands wait; and whoever finds no room is given an appointment, in
//! `Retry-After`, one for so many in a second. Appointments do not bind the hub: they only spread who comes back.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::queue::{Queue, Turn};
use crate::refusal::Refusal;

/// Tunnels asked about at once: three quarters of what the authenticator asks for strangers (`bearer::MAX_STRANGERS`),
/// which all tokens are to a hub that has just begun. The rest is for people.
const AT_ONCE: usize = 24;
/// Those that wait: what a hub on two processors opens within five seconds. 60 KiB each, mostly their connections: 120
/// MiB at worst.
const WAITING: usize = 2_048;
/// Longest wait: below the 20 s after which an agent gives up an answer, with time left for the questions. Whoever is sent
/// away costs another handshake.
const PATIENCE: Duration = Duration::from_secs(14);
/// Earliest appointment.
const SOONEST: Duration = Duration::from_secs(1);
/// Latest appointment; those beyond come together, and are refused or not.
const LATEST: Duration = Duration::from_secs(60);
/// Between two appointments: 400 in a second are what two processors open beside their other work.
const EACH: Duration = Duration::from_micros(2_500);

/// The queue and its appointments.
#[derive(Debug)]
pub struct Openings {
    queue: Queue,
    /// The next one that nobody has.
    next: Mutex<Instant>,
}

impl Default for Openings {
    fn default() -> Self {
        Self::new(AT_ONCE, WAITING)
    }
}

impl Openings {
    /// So many at once, and so many that wait.
    pub fn new(at_once: usize, waiting: usize) -> Self {
        Self { queue: Queue::new(at_once, waiting), next: Mutex::new(Instant::now()) }
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// 503, with when to come again: there is no room, or the wait was too long.
    pub async fn turn(&self) -> Result<Turn, Refusal> {
        match timeout(PATIENCE, self.queue.turn()).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) | Err(_) => Err(Refusal::TunnelsQueued(self.appointment(Instant::now()))),
        }
    }

    /// Whether agents wait for their turn: whatever else is asked of the parent can wait for them.
    pub fn are_waiting(&self) -> bool {
        self.queue.is_waiting()
    }

    #[cfg(test)]
    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
    }

    /// In how many seconds the next one may come again.
    fn appointment(&self, now: Instant) -> u32 {
        // Nothing under this lock can panic half way through a change.
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let at = (*next).max(now + SOONEST).min(now + LATEST);
        *next = at + EACH;
        u32::try_from(at.duration_since(now).as_secs()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn seconds(refused: Result<Turn, Refusal>) -> u32 {
        let status = refused.unwrap_err().to_status();
        assert_eq!(status.code.as_u16(), 503);
        status.retry_after.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_room_is_spread_over_the_seconds_that_the_others_will_take() {
        let openings = Openings::new(1, 0);
        let held = openings.turn().await.unwrap();
        let mut appointments = BTreeMap::<u32, u32>::new();
        for _ in 0..2_000 {
            *appointments.entry(seconds(openings.turn().await)).or_default() += 1;
        }
        assert_eq!(appointments, (1..=5).map(|second| (second, 400)).collect());
        // Those who came at their time are not in the way of who comes later.
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(seconds(openings.turn().await), 1);
        drop(held);
        assert!(openings.turn().await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn no_appointment_is_further_away_than_the_longest_delay_of_an_agent() {
        let openings = Openings::new(1, 0);
        let _held = openings.turn().await.unwrap();
        let mut latest = 0;
        for _ in 0..100_000 {
            latest = latest.max(seconds(openings.turn().await));
        }
        assert_eq!(latest, 60);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_is_told_to_come_again_before_the_agent_gives_up() {
        let openings = Openings::new(1, 1);
        let _held = openings.turn().await.unwrap();
        let began = Instant::now();
        assert_eq!(seconds(openings.turn().await), 1);
        assert_eq!(began.elapsed(), PATIENCE);
        assert_eq!(openings.queue.free(), (1, 0), "it has left the queue");
    }
}
