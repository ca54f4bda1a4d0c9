//! Stands in for tokio where a test makes its runtime, and looks behind each test for what it has left:
//! `#[tokio::test(crate = "crate::leaks")]`. When the test's own values are gone, every task has to end by itself, and
//! with the tasks go their streams, dials, timers and sockets. What was given to [`must_go`] must be gone, too.

pub(crate) use ::tokio::pin;

use std::{
    any::Any,
    cell::RefCell,
    sync::{Arc, Weak},
};

std::thread_local! {
    static WATCHED: RefCell<Vec<(&'static str, Weak<dyn Any + Send + Sync>)>> = const { RefCell::new(Vec::new()) };
}

/// At the end of this test nobody may hold it any more.
pub(crate) fn must_go<T: Any + Send + Sync>(what: &'static str, value: &Arc<T>) {
    let weak: Weak<T> = Arc::downgrade(value);
    WATCHED.with_borrow_mut(|watched| watched.push((what, weak)));
}

/// What is still held.
fn held() -> Vec<&'static str> {
    WATCHED.with_borrow(|watched| {
        watched.iter().filter(|(_, weak)| weak.strong_count() > 0).map(|(what, _)| *what).collect()
    })
}

/// The names that the attribute asks for.
pub(crate) mod runtime {
    use std::{
        future::Future,
        io,
        pin::Pin,
        time::{Duration, Instant},
    };

    /// How long tasks may take to find that nobody needs them.
    const SETTLE: Duration = Duration::from_secs(10);
    /// The same in virtual time: longer than a tunnel may finish its streams.
    const SETTLE_PAUSED: Duration = Duration::from_secs(900);
    const STEP: Duration = Duration::from_millis(10);

    pub(crate) struct Builder(::tokio::runtime::Builder);

    impl Builder {
        pub(crate) fn new_current_thread() -> Self {
            Self(::tokio::runtime::Builder::new_current_thread())
        }

        pub(crate) fn start_paused(mut self, paused: bool) -> Self {
            self.0.start_paused(paused);
            self
        }

        pub(crate) fn enable_all(mut self) -> Self {
            self.0.enable_all();
            self
        }

        pub(crate) fn build(mut self) -> io::Result<Runtime> {
            self.0.build().map(Runtime)
        }
    }

    pub(crate) struct Runtime(::tokio::runtime::Runtime);

    impl Runtime {
        pub(crate) fn block_on<T>(self, test: Pin<&mut dyn Future<Output = T>>) -> T {
            let value = self.0.block_on(test);
            let tasks = self.0.block_on(settled());
            let held = super::held();
            assert!(tasks == 0 && held.is_empty(), "the test leaves {tasks} tasks and {held:?}");
            value
        }
    }

    /// Waits for the last task; how many are left when it has waited long enough.
    async fn settled() -> usize {
        let (began, virtually) = (Instant::now(), ::tokio::time::Instant::now());
        let metrics = ::tokio::runtime::Handle::current().metrics();
        while metrics.num_alive_tasks() > 0 && began.elapsed() < SETTLE && virtually.elapsed() < SETTLE_PAUSED
        {
            ::tokio::time::sleep(STEP).await;
        }
        metrics.num_alive_tasks()
    }
}

#[test]
#[should_panic(expected = "the test leaves 1 tasks and [\"a value\"]")]
fn a_test_that_leaves_something_fails() {
    let runtime = runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(std::pin::pin!(async {
        let value = Arc::new(7);
        must_go("a value", &value);
        #[expect(clippy::disallowed_methods, reason = "a task without an owner is what has to be found")]
        drop(::tokio::spawn(async move {
            std::future::pending::<()>().await;
            drop(value);
        }));
    }));
}
