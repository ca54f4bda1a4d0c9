//! `towline-hub`: reads its configuration, starts logging, runs the hub until a signal. Exit code 64 (BSD's
//! `EX_USAGE`) for a configuration that is wrong, 1 for a hub that failed. `towline-hub check` and `--print-config` start
//! nothing.

use std::io::Write as _;
use std::process::ExitCode;

use hub::app;
use hub::config::Settings;
use hub::config::line::{self, BAD_CONFIGURATION, Task};
use runtime::stop::{self, Stop};

/// glibc's allocator keeps what many short connections on many threads have freed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Before anything secret is in memory.
    if let Err(error) = runtime::dumps::forbid() {
        let _ = writeln!(std::io::stderr(), "towline-hub: core dumps cannot be switched off: {error}");
        return ExitCode::FAILURE;
    }
    let settings = match line::read(std::env::args_os().collect()) {
        Task::Run(settings) => *settings,
        Task::Tell { output, errors, code } => {
            let _ = write!(std::io::stdout(), "{output}");
            let _ = write!(std::io::stderr(), "{errors}");
            return ExitCode::from(code);
        }
        Task::Clap(error) => {
            let _ = error.print();
            // Help and version are no mistakes.
            return if error.use_stderr() { ExitCode::from(BAD_CONFIGURATION) } else { ExitCode::SUCCESS };
        }
    };
    if let Err(error) = runtime::logs::init(settings.log_format, &settings.log_filter) {
        let _ = writeln!(std::io::stderr(), "towline-hub: {error:#}");
        return ExitCode::FAILURE;
    }
    match serve(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
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
