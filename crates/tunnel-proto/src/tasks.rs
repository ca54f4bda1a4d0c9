//! Owns the tasks that the HTTP library starts for one tunnel. They end with their owner: dropping
//! [`Tasks`] stops all of them, so no stream outlives its tunnel.

use std::{
    future::{Future, poll_fn},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use hyper::rt::Executor;
use tokio::task::JoinSet;

/// The tasks of one tunnel.
#[derive(Debug, Default)]
pub(crate) struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl Tasks {
    /// The handle that the HTTP library starts tasks with. It does not keep the tasks alive: some of them
    /// hold such a handle themselves, and would keep each other for ever.
    pub(crate) fn starter(&self) -> Starter {
        Starter(Arc::downgrade(&self.0))
    }

    /// Resolves when no task is left, also none that a task has started meanwhile.
    pub(crate) async fn finished(&self) {
        while poll_fn(|cx| lock(&self.0).poll_join_next(cx)).await.is_some() {}
    }
}

/// Starts tasks on [`Tasks`]; after those are gone it drops what it is given.
#[derive(Debug, Clone)]
pub(crate) struct Starter(Weak<Mutex<JoinSet<()>>>);

impl<F> Executor<F> for Starter
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        let Some(tasks) = self.0.upgrade() else { return };
        let mut tasks = lock(&tasks);
        // Collect those that have ended, or the set would grow with every request.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}

/// A task that panics does so outside of the lock, so a poisoned lock tells nothing.
fn lock(tasks: &Mutex<JoinSet<()>>) -> MutexGuard<'_, JoinSet<()>> {
    tasks.lock().unwrap_or_else(PoisonError::into_inner)
}
