//! The log on standard error.

use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// Starts the log on standard error. A separate thread writes the lines, so that a slow terminal does not slow requests down. If
/// its queue is full, lines are dropped.
pub(super) fn start_log(json: bool, default_filter: &str) -> WorkerGuard {
    let (writer, guard) = tracing_appender::non_blocking(std::io::stderr());
    let filter = EnvFilter::try_from_env("DOMICILE_LOG").unwrap_or_else(|_| EnvFilter::new(default_filter));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(BoxMakeWriter::new(writer));
    if json {
        subscriber.json().flatten_event(true).init();
    } else {
        let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        subscriber.with_ansi(is_terminal).init();
    }
    guard
}
