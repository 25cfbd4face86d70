//! The log on standard error: batches of lines, and a fast format for the lines of requests.

use std::fmt;
use std::io::{BufWriter, Write};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The pause after each flush of the log.
const LOG_INTERVAL: Duration = Duration::from_millis(10);

/// Writes log lines in batches. The log's thread flushes when its queue is empty, and lines that arrive during the pause after a
/// flush are written together: a system call and a wake-up of the thread for each line would cost more than judging its request.
struct Batches<W: Write>(BufWriter<W>);

impl<W: Write> Write for Batches<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        // The log cannot report its own error. Returning it would delay the end of the process.
        let _ = self.0.flush();
        std::thread::sleep(LOG_INTERVAL);
        Ok(())
    }
}

/// Starts the log on standard error. A separate thread writes the lines, so that a slow terminal does not slow requests down. If
/// its queue is full, lines are dropped and not counted.
pub(super) fn start_log(json: bool, default_filter: &str) -> tracing_appender::non_blocking::WorkerGuard {
    let (writer, guard) = tracing_appender::non_blocking(Batches(BufWriter::with_capacity(64 << 10, std::io::stderr())));
    let filter = EnvFilter::try_from_env("DOMICILE_LOG").unwrap_or_else(|_| EnvFilter::new(default_filter));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(BoxMakeWriter::new(writer));
    let format = tracing_subscriber::fmt::format();
    if json {
        subscriber.json().event_format(Lines { others: format.json().flatten_event(true), is_json: true }).init();
    } else {
        let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        subscriber.with_ansi(is_terminal).event_format(Lines { others: format, is_json: false }).init();
    }
    guard
}

/// The target of the lines of requests.
const REQUEST: &str = "domicile::request";

/// Formats the lines of requests in the same way as `others`, which formats all other lines, but without its cost for each field.
struct Lines<F> {
    others: F,
    is_json: bool,
}

impl<S, N, F> FormatEvent<S, N> for Lines<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'w> FormatFields<'w> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        if event.metadata().target() != REQUEST || writer.has_ansi_escapes() {
            return self.others.format_event(context, writer, event);
        }
        let (start, level, end) =
            if self.is_json { ("{\"timestamp\":\"", "\",\"level\":\"", "\"") } else { ("", "  ", " domicile::request:") };
        writer.write_str(start)?;
        SystemTime.format_time(&mut writer)?;
        writer.write_str(level)?;
        writer.write_str(event.metadata().level().as_str())?;
        writer.write_str(end)?;
        let mut fields = Fields { out: writer.by_ref(), is_json: self.is_json, outcome: Ok(()) };
        event.record(&mut fields);
        fields.outcome?;
        writer.write_str(if self.is_json { ",\"target\":\"domicile::request\"}\n" } else { "\n" })
    }
}

/// Writes the fields of one line.
struct Fields<'w> {
    out: Writer<'w>,
    is_json: bool,
    outcome: fmt::Result,
}

impl Fields<'_> {
    fn write(&mut self, field: &Field, value: impl FnOnce(&mut Writer<'_>, bool) -> fmt::Result) {
        let write = || {
            let name = field.name();
            if self.is_json {
                self.out.write_str(",\"")?;
                self.out.write_str(name)?;
                self.out.write_str("\":")?;
            } else {
                self.out.write_char(' ')?;
                if name != "message" {
                    self.out.write_str(name)?;
                    self.out.write_char('=')?;
                }
            }
            value(&mut self.out, self.is_json)
        };
        if self.outcome.is_ok() {
            self.outcome = write();
        }
    }
}

/// Writes a text in quotes. Most need no escapes.
fn write_quoted(out: &mut Writer<'_>, text: &str, is_json: bool) -> fmt::Result {
    let is_plain = text.bytes().all(|byte| matches!(byte, b' ' | b'!' | b'#'..=b'[' | b']'..=b'~'));
    match (is_plain, is_json) {
        (true, _) => {
            out.write_char('"')?;
            out.write_str(text)?;
            out.write_char('"')
        }
        (false, true) => out.write_str(&serde_json::to_string(text).map_err(|_| fmt::Error)?),
        (false, false) => write!(out, "{text:?}"),
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, text: &str) {
        self.write(field, |out, is_json| write_quoted(out, text, is_json));
    }

    fn record_u64(&mut self, field: &Field, number: u64) {
        self.write(field, |out, _| write!(out, "{number}"));
    }

    fn record_f64(&mut self, field: &Field, number: f64) {
        self.write(field, |out, _| write!(out, "{number:?}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let is_message = field.name() == "message";
        self.write(field, |out, is_json| match is_json {
            true => write_quoted(out, &format!("{value:?}"), true),
            false if is_message => write!(out, "{value:?}"),
            false => write_quoted(out, &format!("{value:?}"), false),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn events() {
        tracing::info!(
            target: "domicile::request",
            id = "0a",
            user = None::<&str>,
            path = Some("/caf\u{e9}/\"x\"\\\n"),
            status = 200_u16,
            request_bytes = u64::MAX,
            seconds = 0.000_012_5,
            long = 1e20,
            "request"
        );
        tracing::warn!(answer = 42, "another line");
    }

    /// The lines of [`events`], without their times.
    fn lines(is_json: bool, is_ours: bool) -> Vec<String> {
        let shared = Shared::default();
        let writer = shared.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone());
        let format = tracing_subscriber::fmt::format();
        match (is_json, is_ours) {
            (true, true) => {
                let lines = Lines { others: format.json().flatten_event(true), is_json };
                tracing::subscriber::with_default(subscriber.json().event_format(lines).finish(), events);
            }
            (true, false) => tracing::subscriber::with_default(subscriber.json().flatten_event(true).finish(), events),
            (false, true) => {
                let lines = Lines { others: format, is_json };
                tracing::subscriber::with_default(subscriber.with_ansi(false).event_format(lines).finish(), events);
            }
            (false, false) => tracing::subscriber::with_default(subscriber.with_ansi(false).finish(), events),
        }
        let text = String::from_utf8(shared.0.lock().unwrap().clone()).unwrap();
        let without_time = |line: &str| match line.split_once("Z") {
            Some((_, rest)) => rest.to_owned(),
            None => line.to_owned(),
        };
        text.lines().map(without_time).collect()
    }

    #[test]
    fn lines_of_requests_have_the_format_of_all_others() {
        assert_eq!(lines(false, true), lines(false, false));
        let fields = |line: &String| serde_json::from_str::<serde_json::Value>(&format!("{{\"time\":\"{line}")).unwrap();
        let (ours, theirs) = (lines(true, true), lines(true, false));
        assert_eq!(ours.iter().map(fields).collect::<Vec<_>>(), theirs.iter().map(fields).collect::<Vec<_>>());
        assert_eq!(ours.len(), 2);
    }
}
