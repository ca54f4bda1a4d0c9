//! Fair shares: no user and no cluster takes more than its part of the hub, counted as requests at once and as
//! requests a second. Two of these stand in the request path, one keyed by user, before anything is asked of the
//! parent, and one keyed by cluster, after the caller has been allowed, so that nobody can use up the share of a
//! cluster that they may not use.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

/// Entries that are kept before those without use are looked for. An entry is its name and about 120 bytes.
const KEEP: usize = 1024;

/// The shares of all users, or of all clusters.
#[derive(Debug)]
pub struct Shares {
    most: AtomicU32,
    /// Nanoseconds between two requests at the full rate.
    gap: AtomicU64,
    /// So much may be asked ahead of the rate: two seconds' worth.
    ahead: u64,
    begun: Instant,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    shares: HashMap<String, Arc<Share>>,
    /// At this many entries those without use are thrown out.
    sweep_at: usize,
}

#[derive(Debug, Default)]
struct Share {
    in_flight: AtomicU32,
    /// When the next request is due at the full rate, in nanoseconds since [`Shares::begun`]: the theoretical
    /// arrival time of the generic cell rate algorithm (ITU-T I.371).
    due: AtomicU64,
}

/// One request's place, given back on drop.
#[derive(Debug)]
pub struct Place(Arc<Share>);

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// So many are open, which is the limit.
    InFlight(u32),
    /// Too many a second; this is the limit.
    Rate(u32),
}

impl Shares {
    /// At most so many at once and a second, each.
    pub fn new(in_flight: u32, rate: u32) -> Self {
        Self {
            most: AtomicU32::new(in_flight),
            gap: AtomicU64::new(gap(rate)),
            ahead: 2_000_000_000,
            begun: Instant::now(),
            known: Mutex::new(Known { shares: HashMap::new(), sweep_at: KEEP }),
        }
    }

    /// From now on so many. Who has more open keeps them.
    pub fn change(&self, in_flight: u32, rate: u32) {
        self.most.store(in_flight, Ordering::Relaxed);
        self.gap.store(gap(rate), Ordering::Relaxed);
    }

    /// A place for one request.
    ///
    /// # Errors
    /// Which limit is reached.
    pub fn take(&self, name: &str) -> Result<Place, Full> {
        let now = u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let place = Place(self.share(name, now));
        let open = place.0.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        // From here on dropping the place takes the count back.
        let most = self.most.load(Ordering::Relaxed);
        if open > most {
            return Err(Full::InFlight(most));
        }
        let gap = self.gap.load(Ordering::Relaxed);
        let next = |due: u64| {
            let due = due.max(now);
            (due - now <= self.ahead).then_some(due + gap)
        };
        match place.0.due.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            Ok(_) => Ok(place),
            Err(_) => Err(Full::Rate(u32::try_from(1_000_000_000 / gap).unwrap_or(u32::MAX))),
        }
    }

    fn share(&self, name: &str, now: u64) -> Arc<Share> {
        // Nothing under this lock can panic half way through a change.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = known.shares.get(name) {
            return Arc::clone(share);
        }
        if known.shares.len() >= known.sweep_at {
            let used = |share: &Share| {
                share.in_flight.load(Ordering::Relaxed) > 0 || share.due.load(Ordering::Relaxed) > now
            };
            known.shares.retain(|_, share| Arc::strong_count(share) > 1 || used(share));
            known.sweep_at = KEEP.max(2 * known.shares.len());
        }
        Arc::clone(known.shares.entry(name.to_owned()).or_default())
    }
}

fn gap(rate: u32) -> u64 {
    1_000_000_000 / u64::from(rate.max(1))
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_that_is_full_leaves_the_others_alone() {
        let shares = Shares::new(2, 1000);
        let (one, _two) = (shares.take("a").unwrap(), shares.take("a").unwrap());
        assert_eq!(shares.take("a").unwrap_err(), Full::InFlight(2));
        assert!(shares.take("b").is_ok());
        drop(one);
        assert!(shares.take("a").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_of_two_seconds_passes_and_then_the_rate_holds() {
        let shares = Shares::new(1000, 10);
        let passed = (0..100).filter(|_| shares.take("a").is_ok()).count();
        assert_eq!(passed, 21);
        assert_eq!(shares.take("a").unwrap_err(), Full::Rate(10));
        tokio::time::advance(Duration::from_secs(1)).await;
        let passed = (0..100).filter(|_| shares.take("a").is_ok()).count();
        assert_eq!(passed, 10, "one second's worth");
        assert!(shares.take("b").is_ok(), "another has a rate of its own");
    }

    #[tokio::test(start_paused = true)]
    async fn changed_limits_hold_for_the_next_request() {
        let shares = Shares::new(1, 1000);
        let held = shares.take("a").unwrap();
        assert_eq!(shares.take("a").unwrap_err(), Full::InFlight(1));
        shares.change(2, 1000);
        let second = shares.take("a").unwrap();
        shares.change(1, 10);
        drop(second);
        assert_eq!(shares.take("a").unwrap_err(), Full::InFlight(1), "what is open counts");
        drop(held);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!((0..100).filter(|_| shares.take("a").is_ok()).count(), 21);
        assert_eq!(shares.take("a").unwrap_err(), Full::Rate(10));
    }

    #[tokio::test(start_paused = true)]
    async fn names_without_use_are_forgotten_and_those_in_use_are_not() {
        let shares = Shares::new(10, 1000);
        let held: Vec<_> = (0..10).map(|n| shares.take(&format!("held-{n}")).unwrap()).collect();
        tokio::time::advance(Duration::from_secs(10)).await;
        for n in 0..10 * KEEP {
            drop(shares.take(&format!("passing-{n}")));
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        let known = shares.known.lock().unwrap();
        assert!(known.shares.len() <= KEEP + held.len(), "{} are kept", known.shares.len());
        assert!((0..10).all(|n| known.shares.contains_key(&format!("held-{n}"))));
    }
}
