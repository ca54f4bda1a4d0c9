//! Tests that share one [`World`], or another one of their own, and run one after the other. Without what a network namespace needs, a suite says
//! loudly what it leaves out, and why.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

use crate::binaries::Binaries;
use crate::network::capability;
use crate::say;
use crate::scratch::Scratch;
use crate::world::World;

/// The world that the tests share, and the runtime that it lives on.
#[derive(Debug, Clone)]
pub struct Suite<W = World> {
    runtime: Arc<Runtime>,
    world: Arc<Mutex<W>>,
}

impl<W: Send + 'static> Suite<W> {
    /// A test of this suite.
    pub fn trial<F>(&self, name: &str, test: F) -> Trial
    where
        F: AsyncFnOnce(&mut W) -> Result<()> + Send + 'static,
    {
        let (runtime, world, named) = (self.runtime.clone(), self.world.clone(), name.to_owned());
        Trial::test(name, move || {
            runtime.block_on(async { test(&mut *world.lock().await).await }).map_err(|error| {
                // Where it happens, too: a log that is cut short keeps what a summary at its end would lose.
                say(&format!("!!! {named}: {error:#}"));
                Failed::from(format!("{error:?}"))
            })
        })
    }
}

/// The trials of a suite, named as their functions are.
#[macro_export]
macro_rules! trials {
    ($suite:ident; $($module:ident :: $test:ident),* $(,)?) => {
        vec![$($suite.trial(concat!(stringify!($module), "::", stringify!($test)), $module::$test)),*]
    };
}

/// Starts the world, lets `prepare` bring it to where the tests begin, and runs the tests in their order.
///
/// # Errors
/// When the world does not start.
pub fn run(
    prepare: impl AsyncFnOnce(&mut World) -> Result<()>,
    trials: impl FnOnce(&Suite) -> Vec<Trial>,
) -> Result<ExitCode> {
    let start = async |scratch| {
        let mut world = World::start(scratch).await?;
        prepare(&mut world).await?;
        Ok(world)
    };
    run_in(start, trials)
}

/// Starts a world of the suite's own, which lives in the run's directory, and runs the tests in their order.
///
/// # Errors
/// When the world does not start.
pub fn run_in<W: Send + 'static>(
    start: impl AsyncFnOnce(Scratch) -> Result<W>,
    trials: impl FnOnce(&Suite<W>) -> Vec<Trial>,
) -> Result<ExitCode> {
    let mut arguments = Arguments::from_args();
    // One world: what one test breaks, the next would see.
    arguments.test_threads = Some(1);
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let runtime =
        Arc::new(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?);
    if arguments.list {
        return Ok(libtest_mimic::run(&arguments, Vec::new()).exit_code());
    }
    if let Err(why) = capability(&Binaries::find()?) {
        say(&format!(
            "!!! LEFT OUT: every test of this suite; a child behind NAT cannot be made here: {why}"
        ));
        say("!!! Run `make test` as root on a Linux machine with network namespaces to have them.");
        return Ok(ExitCode::SUCCESS);
    }
    let scratch = Scratch::create_with_signals()?;
    let name = scratch.name().to_owned();
    let world = runtime.block_on(start(scratch))?;
    let suite = Suite { runtime: runtime.clone(), world: Arc::new(Mutex::new(world)) };
    let conclusion = libtest_mimic::run(&arguments, trials(&suite));
    let entered = runtime.enter();
    drop(suite);
    drop(entered);
    let remains = crate::scratch::remains(&name);
    if !remains.is_empty() {
        say(&format!("!!! left behind: {}", remains.join(", ")));
        return Ok(ExitCode::FAILURE);
    }
    Ok(conclusion.exit_code())
}
