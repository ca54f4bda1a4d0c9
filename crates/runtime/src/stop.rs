//! The end of a process: one token that everything listens to, and the signals that set it off.

use tokio::signal::unix::{SignalKind, signal};
pub use tokio_util::sync::CancellationToken as Stop;

/// Waits for SIGTERM or SIGINT and tells which came.
///
/// # Errors
/// The handlers could not be installed.
pub async fn on_signals() -> std::io::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
    }
}
