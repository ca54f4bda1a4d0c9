//! Log output: one line an event on standard error, as text or as JSON. A panic is such an event too, and says where
//! it happened, but not what of: its message may quote what a client or a child has sent.

use std::panic::{self, PanicHookInfo};
use std::str::FromStr;

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

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
    let filter = EnvFilter::try_new(filter).with_context(|| format!("log filter {filter:?}"))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        Format::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        Format::Json => lines.json().flatten_event(true).try_init(),
    }
    .map_err(|error| anyhow::anyhow!("logging was started twice: {error}"))?;
    panic::set_hook(Box::new(log_panic));
    Ok(())
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
