//! `towline-hub`: reads its configuration, starts logging, runs the hub until a signal. Exit code 64 (BSD's
//! `EX_USAGE`) for a configuration that is wrong, 1 for a hub that failed.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use hub::app;
use hub::config::{Config, Settings};
use runtime::stop::{self, Stop};

/// glibc's allocator keeps what many short connections on many threads have freed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BAD_CONFIGURATION: u8 = 64;

fn main() -> ExitCode {
    // Before anything secret is in memory.
    if let Err(error) = runtime::dumps::forbid() {
        let _ = writeln!(std::io::stderr(), "towline-hub: core dumps cannot be switched off: {error}");
        return ExitCode::FAILURE;
    }
    let settings = match configure() {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    match serve(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Settings and logs; what is wrong is told on standard error, since there is no log yet.
fn configure() -> Result<Settings, ExitCode> {
    let config = Config::try_parse().map_err(|error| {
        // Help and version are no mistakes.
        let code = if error.use_stderr() { ExitCode::from(BAD_CONFIGURATION) } else { ExitCode::SUCCESS };
        let _ = error.print();
        code
    })?;
    let complain = |what: &dyn std::fmt::Display| {
        let _ = writeln!(std::io::stderr(), "towline-hub: {what}");
        ExitCode::from(BAD_CONFIGURATION)
    };
    let settings = config.check().map_err(|mistakes| complain(&mistakes))?;
    runtime::logs::init(settings.log_format, &settings.log_filter)
        .map_err(|error| complain(&format!("{error:#}")))?;
    Ok(settings)
}

#[tokio::main]
async fn serve(settings: Settings) -> anyhow::Result<()> {
    let stop = Stop::new();
    let hub = app::run(settings, stop.clone());
    let signal = async {
        let signal = stop::on_signals().await?;
        tracing::info!(signal, "told to stop");
        stop.cancel();
        std::future::pending::<std::io::Result<()>>().await
    };
    tokio::select! {
        ended = hub => ended,
        failed = signal => Ok(failed?),
    }
}
