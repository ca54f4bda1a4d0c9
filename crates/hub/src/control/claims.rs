//! What is being worked on at this moment, so that no other part of this hub works on it too: a name that is being set
//! up, a cluster that is being set up or cleared away. Another replica is kept off by resourceVersions and UIDs alone.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Who claims what. As many entries as there are things worked on: a dozen.
pub(super) struct Claims<T>(Arc<Mutex<HashSet<T>>>);

impl<T> Default for Claims<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Clone for Claims<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Eq + Hash + Clone> Claims<T> {
    /// Claims it until the guard is dropped; `None` if somebody else has it.
    pub(super) fn take(&self, what: &T) -> Option<Claim<T>> {
        lock(&self.0).insert(what.clone()).then(|| Claim { all: self.clone(), what: what.clone() })
    }
}

/// A claim, given up on drop.
pub(super) struct Claim<T: Eq + Hash + Clone> {
    all: Claims<T>,
    what: T,
}

impl<T: Eq + Hash + Clone> Drop for Claim<T> {
    fn drop(&mut self) {
        lock(&self.all.0).remove(&self.what);
    }
}

fn lock<T>(mutex: &Mutex<HashSet<T>>) -> MutexGuard<'_, HashSet<T>> {
    // Nothing under this lock can panic half way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_one_and_ends_with_its_guard() {
        let claims = Claims::default();
        let claim = claims.take(&"edge").unwrap();
        assert!(claims.clone().take(&"edge").is_none());
        assert!(claims.take(&"other").is_some());
        drop(claim);
        assert!(claims.take(&"edge").is_some());
    }
}
