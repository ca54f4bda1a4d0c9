//! `towline-agent`: reads the configuration, starts logging, runs [`agent::app`], and turns the result into
//! an exit code: 0 after a stop that was asked for, 64 for a mistake in the configuration, 1 for the rest.

use std::io::Write as _;
use std::process::ExitCode;

use agent::config::{Environment, Flags, Settings};
use clap::Parser as _;
use runtime::stop::{Stop, on_signals};

/// Small and steady under many short-lived buffers.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    // Before anything secret is in memory.
    if let Err(error) = runtime::dumps::forbid() {
        let _ = writeln!(std::io::stderr(), "towline-agent: core dumps cannot be switched off: {error}");
        return ExitCode::FAILURE;
    }
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        Err(error) => {
            // --help and --version arrive here too, and are no mistakes.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let settings = match Settings::new(flags, &Environment::read()) {
        Ok(settings) => settings,
        Err(mistakes) => {
            let _ = write!(std::io::stderr(), "{mistakes}");
            return ExitCode::from(USAGE);
        }
    };
    match run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the agent stops");
            ExitCode::FAILURE
        }
    }
}

fn run(settings: Settings) -> anyhow::Result<()> {
    runtime::logs::init(settings.log_format, &settings.log_filter)?;
    // One thread by default: no request crosses threads, which is what costs latency on small machines.
    let mut builder = match settings.threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        threads => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(threads);
            builder
        }
    };
    builder.enable_all().build()?.block_on(async {
        let stop = Stop::new();
        let mut app = std::pin::pin!(agent::app::run(settings, stop.clone()));
        tokio::select! {
            ended = app.as_mut() => return ended,
            signal = on_signals() => tracing::info!(signal = signal?, "asked to stop"),
        }
        stop.cancel();
        tokio::select! {
            ended = app => ended,
            signal = on_signals() => anyhow::bail!("a second {} came before the streams had ended", signal?),
        }
    })
}
