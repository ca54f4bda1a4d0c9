//! When a broken watch is begun again. kube's own default waits up to 30 s; after the parent's API server has come
//! back, people and the request path wait for what the watch tells.

use std::time::Duration;

use kube::runtime::utils::Backoff;

/// The first pause is drawn below this.
const FIRST: Duration = Duration::from_millis(200);
/// And no later one above this. A hub has two watches, so that a thousand hubs would be no burden.
const MAX: Duration = Duration::from_secs(3);

/// Full jitter between zero and three seconds, for [`kube::runtime::WatchStreamExt::backoff`].
#[derive(Debug)]
pub(crate) struct Rewatch(runtime::backoff::Backoff);

impl Default for Rewatch {
    fn default() -> Self {
        Self(runtime::backoff::Backoff::new(FIRST, MAX))
    }
}

impl Iterator for Rewatch {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.0.delay())
    }
}

impl Backoff for Rewatch {
    fn reset(&mut self) {
        self.0.reset();
    }
}
