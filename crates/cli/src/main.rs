//! The program `kubectl-towline`: parse, run, leave with the right exit code.

use std::process::ExitCode;

use clap::Parser;
use cli::args::Cli;
use cli::failure::{Exit, Failure};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` arrive here too; a reader that went away is no reason to complain.
            drop(error.print());
            return ExitCode::from(if error.use_stderr() { Exit::Usage.code() } else { 0 });
        }
    };
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report();
            ExitCode::from(failure.exit().code())
        }
    }
}

fn start(cli: Cli) -> Result<(), Failure> {
    // Fails only if a provider is installed already, and then there is one.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Error, format!("the runtime did not start: {error}")))?;
    runtime.block_on(cli::run(cli))
}
