//! Log output: one line an event on standard error, as text or as JSON; what is logged can be changed at any time. A panic is such an event too, and says where
//! it happened, but not what of: its message may quote what a client or a child has sent.

use std::panic::{self, PanicHookInfo};
use std::str::FromStr;
use std::sync::OnceLock;

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

/// Puts another filter in the place of the one that is in force.
type Replace = Box<dyn Fn(EnvFilter) -> Result<(), tracing_subscriber::reload::Error> + Send + Sync>;
/// Of the one log that a process has.
static REPLACE: OnceLock<Replace> = OnceLock::new();

/// How a log line looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

impl FromStr for Format {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("the log format is text or json"),
        }
    }
}

/// Starts logging, of panics too. `filter` is what tracing-subscriber calls directives: `info`, `hub=debug,h2=warn`.
///
/// # Errors
/// The filter is malformed, or logging was started before.
pub fn init(format: Format, filter: &str) -> anyhow::Result<()> {
    let lines = tracing_subscriber::fmt().with_env_filter(parse(filter)?).with_writer(std::io::stderr);
    let (started, replace): (_, Replace) = match format {
        Format::Text => {
            let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
            let lines = lines.with_ansi(ansi).with_filter_reloading();
            let handle = lines.reload_handle();
            (lines.try_init(), Box::new(move |filter| handle.reload(filter)))
        }
        Format::Json => {
            let lines = lines.json().flatten_event(true).with_filter_reloading();
            let handle = lines.reload_handle();
            (lines.try_init(), Box::new(move |filter| handle.reload(filter)))
        }
    };
    started.map_err(|error| anyhow::anyhow!("logging was started twice: {error}"))?;
    // There is one log, so nobody was here before.
    let _ = REPLACE.set(replace);
    panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// Logs by another filter from now on.
///
/// # Errors
/// It is malformed, or nothing is logged yet; what was logged still is.
pub fn set_filter(filter: &str) -> anyhow::Result<()> {
    let filter = parse(filter)?;
    let replace = REPLACE.get().context("logging has not been started")?;
    replace(filter).context("the log filter cannot be replaced")
}

/// Whether it is a filter.
///
/// # Errors
/// What is wrong with it.
pub fn check_filter(filter: &str) -> Result<(), String> {
    parse(filter).map(drop).map_err(|error| format!("{error:#}; it is like info, or info,hub=debug"))
}

fn parse(filter: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::try_new(filter).with_context(|| format!("log filter {filter:?}"))
}

/// One line, whatever the panic says. A literal stands in the source and is shown; a message that was put together,
/// as by `unwrap` on an error or by an index, may hold anything.
fn log_panic(info: &PanicHookInfo<'_>) {
    let at = info.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let what = info.payload().downcast_ref::<&'static str>().copied().unwrap_or("(not shown)");
    tracing::error!(at, thread = thread.name(), what, "a panic; this is a defect, please report it");
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().map_err(|_| io::Error::other("a test has failed"))?.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_log_follows_a_filter_that_is_changed() {
        init(Format::Json, "info").unwrap();
        assert!(!tracing::enabled!(target: "towline_test", tracing::Level::DEBUG));
        set_filter("warn,towline_test=debug").unwrap();
        assert!(tracing::enabled!(target: "towline_test", tracing::Level::DEBUG));
        assert!(!tracing::enabled!(target: "another", tracing::Level::INFO));
        assert!(set_filter("info,=x=").is_err());
        assert!(
            tracing::enabled!(target: "towline_test", tracing::Level::DEBUG),
            "a bad one changes nothing"
        );
        assert!(check_filter("info,=x=").is_err() && check_filter("info,hub=debug").is_ok());
    }

    #[test]
    fn a_panic_is_one_line_without_data() {
        let (lines, before) = (Lines::default(), panic::take_hook());
        let writer = lines.clone();
        let log = tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
        panic::set_hook(Box::new(log_panic));
        tracing::subscriber::with_default(log, || {
            let parse = || "hunter2".parse::<u8>().map_err(|_| "hunter2\nsecond line").unwrap();
            assert!(panic::catch_unwind(parse).is_err());
            assert!(panic::catch_unwind(|| panic!("a lock was lost")).is_err());
        });
        panic::set_hook(before);
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(!text.contains("hunter2") && text.contains("a lock was lost"), "{text}");
        assert!(text.contains("logs.rs:"), "{text}");
    }
}
