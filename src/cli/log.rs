//! The log on standard error.

use std::sync::Arc;

use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::reload::Handle;

use crate::app::{FilterChange, LogFilter};

/// Starts the log on standard error. A separate thread writes the lines, so that a slow terminal does not slow requests down. If
/// its queue is full, lines are dropped. Returns what changes its level.
pub(super) fn start_log(json: bool, default_filter: &'static str) -> (WorkerGuard, LogFilter) {
    let (writer, guard) = tracing_appender::non_blocking(std::io::stderr());
    let usual = move || {
        let wanted = std::env::var("DOMICILE_LOG").ok().filter(|text| !text.is_empty() && !is_unknown_level(text));
        wanted.and_then(|text| EnvFilter::try_new(text).ok()).unwrap_or_else(|| EnvFilter::new(default_filter))
    };
    let subscriber = tracing_subscriber::fmt().with_env_filter(usual()).with_writer(BoxMakeWriter::new(writer));
    let filter = if json {
        let subscriber = subscriber.json().flatten_event(true).with_filter_reloading();
        let handle = subscriber.reload_handle();
        subscriber.init();
        changer(handle, usual)
    } else {
        let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        let subscriber = subscriber.with_ansi(is_terminal).with_filter_reloading();
        let handle = subscriber.reload_handle();
        subscriber.init();
        changer(handle, usual)
    };
    if let Ok(text) = std::env::var("DOMICILE_LOG")
        && (is_unknown_level(&text) || EnvFilter::try_new(&text).is_err())
    {
        tracing::warn!(text, "DOMICILE_LOG is not a valid level or filter; using the default; write for example `debug`");
    }
    (guard, filter)
}

/// Whether a filter is a single word that is no level: it would be taken as the name of a module, and turn everything else off.
fn is_unknown_level(text: &str) -> bool {
    let is_word = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric());
    is_word && text.parse::<tracing_subscriber::filter::LevelFilter>().is_err()
}

fn changer<S: 'static>(handle: Handle<EnvFilter, S>, usual: impl Fn() -> EnvFilter + Send + Sync + 'static) -> LogFilter {
    Arc::new(move |change| {
        let filter = match change {
            FilterChange::Check(text) => return filter_of(text).map(|_| ()),
            FilterChange::Set(text) => filter_of(text)?,
            FilterChange::Reset => usual(),
        };
        handle.reload(filter).map_err(|error| error.to_string())
    })
}

fn filter_of(text: &str) -> Result<EnvFilter, String> {
    if is_unknown_level(text) {
        return Err(format!(
            "`{text}` is not a level; write error, warn, info, debug, or a filter such as `domicile::proxy=debug`"
        ));
    }
    EnvFilter::try_new(text).map_err(|error| {
        format!("`{text}` is not a valid level or filter: {error}; write one such as `debug` or `domicile::proxy=debug`")
    })
}
