//! Readiness as named checks: each starts as failed and is set by whoever keeps the promise it names.

use std::sync::{Arc, RwLock};

/// A check's name and, if it fails, why.
pub type Check = (&'static str, Result<(), String>);

/// The named checks of a process.
#[derive(Debug, Clone)]
pub struct Readiness {
    checks: Arc<RwLock<Vec<Check>>>,
}

impl Readiness {
    /// Checks of these names, all failing with "starting".
    pub fn new(names: &[&'static str]) -> Self {
        let checks = names.iter().map(|&name| (name, Err("starting".to_owned()))).collect();
        Self { checks: Arc::new(RwLock::new(checks)) }
    }

    /// Sets a check; a name that was not announced is added.
    pub fn set(&self, name: &'static str, state: Result<(), String>) {
        // A poisoned lock only means that a writer panicked between two plain assignments.
        let mut checks = self.checks.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        match checks.iter_mut().find(|(known, _)| *known == name) {
            Some((_, current)) => *current = state,
            None => checks.push((name, state)),
        }
    }

    /// All checks, in the order in which they were announced.
    pub fn report(&self) -> Vec<Check> {
        self.checks.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// True if none fails.
    pub fn is_ready(&self) -> bool {
        self.checks
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .iter()
            .all(|(_, state)| state.is_ok())
    }
}
