//! Delays between tries: exponential with full jitter, so that many that failed together do not come back
//! together. Pure but for the random number.

use std::time::Duration;

/// Grows from `first` to `max`; each delay is drawn evenly between zero and the current bound.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    bound: Duration,
}

impl Backoff {
    /// Starts at `first`.
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, bound: first }
    }

    /// The next delay.
    pub fn delay(&mut self) -> Duration {
        let bound = self.bound;
        self.bound = (bound * 2).min(self.max);
        bound.mul_f64(rand::random::<f64>())
    }

    /// The bound under which the next delay will be drawn.
    pub fn bound(&self) -> Duration {
        self.bound
    }

    /// Begins again at `first`, after a success.
    pub fn reset(&mut self) {
        self.bound = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_doubles_up_to_the_maximum_and_delays_stay_under_it() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(backoff.bound(), Duration::from_secs(seconds));
            assert!(backoff.delay() <= Duration::from_secs(seconds));
        }
        backoff.reset();
        assert_eq!(backoff.bound(), Duration::from_secs(1));
    }

    #[test]
    fn thousands_that_failed_together_come_back_evenly_over_the_whole_bound() {
        let (all, slices) = (20_000, 10);
        let mut come = vec![0; slices];
        for _ in 0..all {
            let delay = Backoff::new(Duration::from_secs(1), Duration::from_secs(60)).delay();
            come[(delay.as_secs_f64() * 10.0) as usize] += 1;
        }
        // 2,000 are expected in each tenth, with a standard deviation of 42.
        assert!(come.iter().all(|tenth| (1_700..2_300).contains(tenth)), "{come:?}");
    }
}
