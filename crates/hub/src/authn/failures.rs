//! How many tokens that are nobody's one source address may show. What it saves is the parent: each unknown token is
//! a question to its authenticator, perhaps to an identity provider behind it.
//!
//! Promises: a token counts only when it failed; whoever is known to be good never meets the limit
//! ([`bearer`](super::bearer)), so a stranger behind the same load balancer or NAT locks nobody out who is at work;
//! memory is bounded, whatever comes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::refusal::Refusal;

/// So many tokens may fail one after the other: as many people behind one address may come with expired ones.
const AT_ONCE: u32 = 100;
/// After that, one in so long: two questions a second of each source are nothing to an API server.
const ONE_IN: Duration = Duration::from_millis(500);
/// Sources that are remembered, about 40 bytes each: below 1 MiB. Those beyond share what one of them has.
const MAX_SOURCES: usize = 16_384;
/// How often a full table is looked through for those whose failures are forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Failures of all sources.
#[derive(Debug)]
pub struct Failures {
    begun: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the failures of a source are forgotten, since [`Failures::begun`]: the theoretical arrival time of the
    /// generic cell rate algorithm (ITU-T I.371).
    forgotten: HashMap<Source, Duration>,
    /// The same for all that found no place.
    others: Duration,
    swept: Duration,
}

/// What counts as one source. Whoever has one IPv6 address has 2^64 of them (RFC 4291 section 2.5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Source {
    V4([u8; 4]),
    V6([u8; 8]),
}

impl Source {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

impl Default for Failures {
    fn default() -> Self {
        Self { begun: Instant::now(), state: Mutex::default() }
    }
}

impl Failures {
    /// Whether this source may show one more token that is not known.
    ///
    /// # Errors
    /// 429, with when it may.
    pub fn check(&self, from: IpAddr) -> Result<(), Refusal> {
        let now = self.begun.elapsed();
        let forgotten = self.with(|state| state.look(Source::of(from)));
        let over = (forgotten.saturating_sub(now) + ONE_IN).checked_sub(ONE_IN * AT_ONCE);
        match over.filter(|over| !over.is_zero()) {
            None => Ok(()),
            Some(over) => Err(Refusal::FailedTokens(u32::try_from(over.as_secs() + 1).unwrap_or(u32::MAX))),
        }
    }

    /// A token of this source was nobody's.
    pub fn count(&self, from: IpAddr) {
        let now = self.begun.elapsed();
        self.with(|state| {
            let forgotten = state.place(Source::of(from), now);
            // Never further away than the limit: those that were under way together do not make it longer.
            *forgotten = ((*forgotten).max(now) + ONE_IN).min(now + ONE_IN * AT_ONCE);
        });
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        // Nothing under this lock can panic half way through a change.
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    fn look(&self, source: Source) -> Duration {
        match self.forgotten.get(&source) {
            Some(own) => *own,
            None if self.forgotten.len() < MAX_SOURCES => Duration::ZERO,
            None => self.others,
        }
    }

    fn place(&mut self, source: Source, now: Duration) -> &mut Duration {
        if self.forgotten.len() >= MAX_SOURCES && now >= self.swept + SWEEP_EVERY {
            self.swept = now;
            self.forgotten.retain(|_, forgotten| *forgotten > now);
        }
        if self.forgotten.len() < MAX_SOURCES || self.forgotten.contains_key(&source) {
            return self.forgotten.entry(source).or_default();
        }
        &mut self.others
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn refused(failures: &Failures, from: &str) -> Option<u32> {
        failures.check(address(from)).err().map(|refusal| refusal.to_status().retry_after.unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_is_stopped_after_so_many_failures_and_let_on_at_a_rate() {
        let failures = Failures::default();
        for _ in 0..AT_ONCE {
            assert_eq!(refused(&failures, "192.0.2.1"), None);
            failures.count(address("192.0.2.1"));
        }
        assert_eq!(refused(&failures, "192.0.2.1"), Some(1));
        assert_eq!(refused(&failures, "::ffff:192.0.2.1"), Some(1), "the same address, spelt otherwise");
        assert_eq!(refused(&failures, "192.0.2.2"), None, "a neighbour");
        // However many were under way, it is not further away.
        for _ in 0..1000 {
            failures.count(address("192.0.2.1"));
        }
        tokio::time::advance(ONE_IN).await;
        assert_eq!(refused(&failures, "192.0.2.1"), None);
        failures.count(address("192.0.2.1"));
        assert_eq!(refused(&failures, "192.0.2.1"), Some(1));
        tokio::time::advance(ONE_IN * AT_ONCE).await;
        for _ in 0..AT_ONCE {
            assert_eq!(refused(&failures, "192.0.2.1"), None, "all is forgotten");
            failures.count(address("192.0.2.1"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_network_of_ipv6_is_one_source() {
        let failures = Failures::default();
        for n in 0..AT_ONCE {
            failures.count(address(&format!("2001:db8::{n:x}")));
        }
        assert!(refused(&failures, "2001:db8::ffff").is_some());
        assert!(refused(&failures, "2001:db8:0:1::1").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn more_sources_than_there_is_room_for_share_one_place_until_others_are_forgotten() {
        let failures = Failures::default();
        let nth = |n: u32| IpAddr::from(n.to_be_bytes());
        let most = u32::try_from(MAX_SOURCES).unwrap();
        for n in 0..most + 1000 {
            failures.count(nth(n));
        }
        let known = || failures.with(|state| state.forgotten.len());
        assert_eq!(known(), MAX_SOURCES);
        assert!(failures.check(nth(0)).is_ok(), "its own place, with one failure");
        assert!(failures.check(nth(most)).is_err(), "a stranger among strangers");
        tokio::time::advance(ONE_IN * AT_ONCE).await;
        assert!(failures.check(nth(most)).is_ok());
        failures.count(nth(most));
        assert_eq!(known(), 1);
    }
}
