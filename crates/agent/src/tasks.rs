//! Owns tasks that nobody waits for one by one: connection drivers, upgraded streams, and what the HTTP
//! library starts. They end with their owner: dropping [`Tasks`] stops all of them.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use hyper::rt::Executor;
use tokio::task::JoinSet;

/// A set of tasks.
#[derive(Debug, Default)]
pub struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl Tasks {
    /// Starts one.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        start(&self.0, task);
    }

    /// A handle that starts tasks and does not keep them alive: tasks hold such handles themselves.
    pub fn starter(&self) -> Starter {
        Starter(Arc::downgrade(&self.0))
    }
}

/// Starts tasks on [`Tasks`]; after those are gone it drops what it is given.
#[derive(Debug, Clone)]
pub struct Starter(Weak<Mutex<JoinSet<()>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Starter {
    fn execute(&self, task: F) {
        if let Some(tasks) = self.0.upgrade() {
            start(&tasks, task);
        }
    }
}

fn start(tasks: &Mutex<JoinSet<()>>, task: impl Future<Output = ()> + Send + 'static) {
    let mut tasks = lock(tasks);
    // Collect those that have ended, or the set would grow with every request.
    while tasks.try_join_next().is_some() {}
    tasks.spawn(task);
}

/// A task that panics does so outside of the lock, so a poisoned lock tells nothing.
fn lock(tasks: &Mutex<JoinSet<()>>) -> MutexGuard<'_, JoinSet<()>> {
    tasks.lock().unwrap_or_else(PoisonError::into_inner)
}
