//! `towline-agent`: reads the configuration, starts logging, runs [`agent::app`], and turns the result into
//! an exit code: 0 after a stop that was asked for, 64 for a mistake in the configuration, 1 for the rest.
//! `towline-agent check`, `--print-config` and `policy check` start nothing.
//! `policy check` has the exit codes of [`agent::policy::check::Exit`].

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use agent::config::{self, CheckFlags, Environment, LIVE, Mistakes, Settings, Task, USAGE};
use agent::policy::check::{self, Exit};
use jiff::Timestamp;
use runtime::config::follow::Follower;
use runtime::config::{Effective, Source};
use runtime::stop::{Stop, on_signals};

/// Small and steady under many short-lived buffers.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Before anything secret is in memory.
    if let Err(error) = runtime::dumps::forbid() {
        let _ = writeln!(std::io::stderr(), "towline-agent: core dumps cannot be switched off: {error}");
        return ExitCode::FAILURE;
    }
    let environment = Environment::read();
    let settings = match config::read(std::env::args_os().collect(), &environment) {
        Task::Run(settings) => *settings,
        Task::CheckPolicy(flags) => return ExitCode::from(check_policy(&flags) as u8),
        Task::Tell { output, errors, code } => {
            let _ = write!(std::io::stdout(), "{output}");
            let _ = write!(std::io::stderr(), "{errors}");
            return ExitCode::from(code);
        }
        Task::Clap(error) => {
            // --help and --version arrive here too, and are no mistakes.
            let _ = error.print();
            let of_policy = std::env::args_os().nth(1).is_some_and(|word| word == "policy");
            let usage = if of_policy { Exit::Usage as u8 } else { USAGE };
            return if error.use_stderr() { ExitCode::from(usage) } else { ExitCode::SUCCESS };
        }
    };
    match run(settings, &environment) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the agent stops");
            ExitCode::FAILURE
        }
    }
}

fn check_policy(flags: &CheckFlags) -> Exit {
    let text = match read(&flags.file) {
        Ok(text) => text,
        Err(error) => {
            let file = flags.file.display();
            let _ = writeln!(std::io::stderr(), "towline-agent: {file} cannot be read: {error}");
            return Exit::Invalid;
        }
    };
    let (told, exit) = check::check(&text, flags.question().as_ref(), Timestamp::now());
    let _ = match exit {
        Exit::Good | Exit::Refused => write!(std::io::stdout(), "{told}"),
        Exit::Invalid | Exit::Usage => write!(std::io::stderr(), "{told}"),
    };
    exit
}

/// One byte more than is taken, so that what is too long is not taken for its beginning.
fn read(file: &Path) -> std::io::Result<String> {
    let most = check::MAX_INPUT as u64 + 1;
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin().take(most).read_to_string(&mut text)?;
    } else {
        std::fs::File::open(file)?.take(most).read_to_string(&mut text)?;
    }
    Ok(text)
}

fn run(settings: Settings, environment: &Environment) -> anyhow::Result<()> {
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
        let following = follow(settings.source.clone(), settings.effective.clone(), environment);
        let mut app = std::pin::pin!(agent::app::run(settings, stop.clone()));
        tokio::select! {
            ended = app.as_mut() => return ended,
            () = following => anyhow::bail!("whoever follows the configuration file has ended"),
            signal = on_signals() => tracing::info!(signal = signal?, "asked to stop"),
        }
        stop.cancel();
        tokio::select! {
            ended = app => ended,
            signal = on_signals() => anyhow::bail!("a second {} came before the streams had ended", signal?),
        }
    })
}

/// Follows the configuration file, if there is one, for ever.
async fn follow(source: Option<Source>, running: Effective, environment: &Environment) {
    let Some(source) = source.filter(|_| running.file.is_some()) else { return std::future::pending().await };
    let mut follower = Follower::new(source, LIVE, running);
    loop {
        let news = follower.next(|matches| {
            let filter = config::again(matches, environment).map_err(|Mistakes(mistakes)| mistakes)?;
            runtime::logs::set_filter(&filter).map_err(|error| vec![format!("--log-filter: {error:#}")])
        });
        news.await.log();
    }
}
