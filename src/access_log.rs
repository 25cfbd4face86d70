//! The access log: one line for each request, collected by each worker and written by one thread.
//!
//! Promises: a line is formatted once, without allocation, into the buffer of its worker. Workers hand their buffers over when
//! they are full, and several times a second. Never: a request waits for the output. If the output is slower than the requests,
//! whole buffers are dropped, and their lines are counted.

use std::fmt::{self, Display};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The size at which a worker hands its buffer over, in bytes.
const BATCH: usize = 32 << 10;

/// The most buffers that wait for the output: 9 MiB.
const MAX_WAITING: usize = 256;

/// How long the process waits at its end for the output to take the last lines.
const FINAL_WAIT: Duration = Duration::from_secs(1);
const FINAL_RETRY: Duration = Duration::from_millis(10);

/// The output of the access log, which all workers share.
#[derive(Clone)]
pub struct AccessLog {
    batches: SyncSender<Message>,
    is_json: bool,
    /// Lines that the output refused, and that no worker has counted yet.
    refused: Arc<AtomicU64>,
}

enum Message {
    /// Whole lines, and their number.
    Lines(Vec<u8>, u64),
    /// Sends a reply when everything before has been written.
    Flush(SyncSender<()>),
}

/// Waits for the last lines when it is dropped.
pub struct Guard(SyncSender<Message>);

impl Drop for Guard {
    fn drop(&mut self) {
        let until = Instant::now() + FINAL_WAIT;
        let (reply, flushed) = sync_channel(1);
        let mut flush = Message::Flush(reply);
        // `send` would wait for an output that takes nothing.
        while let Err(TrySendError::Full(unsent)) = self.0.try_send(flush) {
            if Instant::now() >= until {
                return;
            }
            flush = unsent;
            std::thread::sleep(FINAL_RETRY);
        }
        let _ = flushed.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

impl AccessLog {
    /// Starts the thread that writes the lines to `output`, as JSON or as text.
    pub fn start(mut output: impl Write + Send + 'static, is_json: bool) -> std::io::Result<(Self, Guard)> {
        let (batches, received) = sync_channel(MAX_WAITING);
        let refused = Arc::new(AtomicU64::new(0));
        let count_refused = Arc::clone(&refused);
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            for message in received {
                match message {
                    // The log cannot report its own error, but it is counted. A part of the lines may have been written.
                    Message::Lines(lines, count) => {
                        if output.write_all(&lines).is_err() {
                            count_refused.fetch_add(count, Ordering::Relaxed);
                        }
                    }
                    Message::Flush(reply) => drop((output.flush(), reply.send(()))),
                }
            }
        })?;
        Ok((Self { batches: batches.clone(), is_json, refused }, Guard(batches)))
    }
}

/// The lines of one worker that are not handed over yet.
pub struct Lines {
    log: Option<AccessLog>,
    buffer: Vec<u8>,
    count: u64,
    /// The current second, and its text.
    second: (u64, String),
}

impl Lines {
    /// Without a log, no line is formatted.
    pub fn new(log: Option<AccessLog>) -> Self {
        Self { log, buffer: Vec::new(), count: 0, second: (u64::MAX, String::new()) }
    }

    /// Adds a line, whose fields `write` adds. Returns the number of lines that had to be dropped.
    pub fn add(&mut self, now: SystemTime, write: impl FnOnce(&mut Line<'_>)) -> u64 {
        let Some(is_json) = self.log.as_ref().map(|log| log.is_json) else { return 0 };
        if self.buffer.capacity() == 0 {
            self.buffer.reserve(BATCH + BATCH / 8);
        }
        self.begin(now, is_json);
        write(&mut Line { out: &mut self.buffer, is_json });
        self.buffer.extend_from_slice(if is_json { b",\"target\":\"domicile::request\"}\n" } else { b"\n" });
        self.count += 1;
        if self.buffer.len() >= BATCH { self.hand_over() } else { 0 }
    }

    /// The time, the level and the message, in the format of all other lines of the log.
    fn begin(&mut self, now: SystemTime, is_json: bool) {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.second.0 != now.as_secs() {
            let time = i64::try_from(now.as_secs()).ok().and_then(|second| jiff::Timestamp::from_second(second).ok());
            self.second = (now.as_secs(), time.map(|time| time.to_string()).unwrap_or_default());
        }
        let (start, end): (&[u8], &[u8]) = if is_json {
            (b"{\"timestamp\":\"", b"Z\",\"level\":\"INFO\",\"message\":\"request\"")
        } else {
            (b"", b"Z  INFO domicile::request: request")
        };
        self.buffer.extend_from_slice(start);
        self.buffer.extend_from_slice(self.second.1.trim_end_matches('Z').as_bytes());
        self.buffer.push(b'.');
        digits(&mut self.buffer, u64::from(now.subsec_micros()), 6);
        self.buffer.extend_from_slice(end);
    }

    /// Hands the buffer over to the output. Returns the number of lines that had to be dropped.
    pub fn hand_over(&mut self) -> u64 {
        let Some(log) = self.log.as_ref() else { return 0 };
        let refused = log.refused.swap(0, Ordering::Relaxed);
        if self.count == 0 {
            return refused;
        }
        let (lines, count) = (std::mem::take(&mut self.buffer), std::mem::take(&mut self.count));
        match log.batches.try_send(Message::Lines(lines, count)) {
            Ok(()) => refused,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => refused + count,
        }
    }
}

impl Drop for Lines {
    /// The last requests of a worker end with it, for example when the drain timeout has passed.
    fn drop(&mut self) {
        self.hand_over();
    }
}

/// One line that is being written.
pub struct Line<'a> {
    out: &'a mut Vec<u8>,
    is_json: bool,
}

impl Line<'_> {
    fn name(&mut self, name: &str) {
        if self.is_json {
            self.out.extend_from_slice(b",\"");
            self.out.extend_from_slice(name.as_bytes());
            self.out.extend_from_slice(b"\":");
        } else {
            self.out.push(b' ');
            self.out.extend_from_slice(name.as_bytes());
            self.out.push(b'=');
        }
    }

    /// Adds a text, in quotes. A field without a value is left out.
    pub fn text(&mut self, name: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.name(name);
            self.quoted(text);
        }
    }

    /// Adds the text form of a value, in quotes.
    pub fn display(&mut self, name: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.name(name);
            self.out.push(b'"');
            fmt::write(&mut Escaped(self), format_args!("{value}")).expect("a buffer takes every byte");
            self.out.push(b'"');
        }
    }

    /// Adds a number.
    pub fn number(&mut self, name: &str, number: u64) {
        self.name(name);
        digits(self.out, number, 1);
    }

    /// Adds a duration in seconds, to the microsecond.
    pub fn seconds(&mut self, name: &str, duration: Duration) {
        self.name(name);
        digits(self.out, duration.as_secs(), 1);
        self.out.push(b'.');
        digits(self.out, u64::from(duration.subsec_micros()), 6);
    }

    fn quoted(&mut self, text: &str) {
        self.out.push(b'"');
        self.escaped(text);
        self.out.push(b'"');
    }

    /// Escapes quotes, backslashes, control characters and everything outside ASCII. Most texts need no escape.
    fn escaped(&mut self, text: &str) {
        if text.bytes().all(|byte| matches!(byte, b' ' | b'!' | b'#'..=b'[' | b']'..=b'~')) {
            return self.out.extend_from_slice(text.as_bytes());
        }
        if self.is_json {
            let quoted = serde_json::to_string(text).expect("a text is valid JSON");
            self.out.extend_from_slice(&quoted.as_bytes()[1..quoted.len() - 1]);
        } else {
            let quoted = format!("{text:?}");
            self.out.extend_from_slice(&quoted.as_bytes()[1..quoted.len() - 1]);
        }
    }
}

/// Writes to the line, with escapes.
struct Escaped<'l, 'a>(&'l mut Line<'a>);

impl fmt::Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.escaped(text);
        Ok(())
    }
}

/// Appends a number with at least `width` digits.
fn digits(out: &mut Vec<u8>, mut number: u64, width: usize) {
    let mut text = [b'0'; 20];
    let mut start = text.len();
    while number > 0 || text.len() - start < width {
        start -= 1;
        text[start] = b'0' + (number % 10) as u8;
        number /= 10;
    }
    out.extend_from_slice(&text[start..]);
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn write(line: &mut Line<'_>) {
        line.text("id", Some("0a"));
        line.text("user", None);
        line.display("client", Some("81.2.69.0/24"));
        line.text("path", Some("/caf\u{e9}/\"it's\"\\\n"));
        line.number("status", 200);
        line.number("request_bytes", u64::MAX);
        line.number("response_bytes", 0);
        line.seconds("seconds", Duration::from_nanos(1_000_012_999));
    }

    fn written(is_json: bool) -> String {
        let output = Output::default();
        let (log, guard) = AccessLog::start(output.clone(), is_json).unwrap();
        let mut lines = Lines::new(Some(log));
        assert_eq!(lines.add(UNIX_EPOCH + Duration::from_micros(951_782_399_000_012), write), 0);
        assert!(output.0.lock().unwrap().is_empty(), "lines are collected");
        assert_eq!(lines.hand_over(), 0);
        drop(guard);
        let bytes = output.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_line_of_text_has_the_format_of_all_other_lines() {
        let expected = "2000-02-28T23:59:59.000012Z  INFO domicile::request: request id=\"0a\" client=\"81.2.69.0/24\" \
                        path=\"/caf\u{e9}/\\\"it's\\\"\\\\\\n\" status=200 request_bytes=18446744073709551615 response_bytes=0 \
                        seconds=1.000012\n";
        assert_eq!(written(false), expected);
    }

    #[test]
    fn a_line_of_json_is_one_object() {
        let line: serde_json::Value = serde_json::from_str(&written(true)).unwrap();
        let expected = serde_json::json!({
            "timestamp": "2000-02-28T23:59:59.000012Z", "level": "INFO", "message": "request", "id": "0a",
            "client": "81.2.69.0/24", "path": "/caf\u{e9}/\"it's\"\\\n", "status": 200, "request_bytes": u64::MAX,
            "response_bytes": 0, "seconds": 1.000_012, "target": "domicile::request",
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn a_full_buffer_is_handed_over() {
        let output = Output::default();
        let (log, guard) = AccessLog::start(output.clone(), true).unwrap();
        let mut lines = Lines::new(Some(log));
        loop {
            assert_eq!(lines.add(UNIX_EPOCH, write), 0);
            if lines.buffer.is_empty() {
                break;
            }
        }
        drop(guard);
        assert!(output.0.lock().unwrap().len() >= BATCH);
    }

    /// An output that takes nothing until it is released.
    struct Stuck(std::sync::mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_the_output_does_not_take_are_dropped_and_counted() {
        let (release, released) = std::sync::mpsc::channel();
        let (log, guard) = AccessLog::start(Stuck(released), true).unwrap();
        let mut lines = Lines::new(Some(log));
        let mut dropped = 0;
        for _ in 0..MAX_WAITING + 2 {
            lines.add(UNIX_EPOCH, write);
            lines.add(UNIX_EPOCH, write);
            dropped += lines.hand_over();
        }
        // The thread may have taken one buffer out of the queue.
        assert!(matches!(dropped, 2 | 4), "{dropped}");
        // The process ends although the output takes nothing.
        drop(guard);
        drop(release);
    }

    /// An output that refuses everything.
    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_the_output_refuses_are_counted() {
        let (log, guard) = AccessLog::start(Broken, true).unwrap();
        let mut lines = Lines::new(Some(log));
        for _ in 0..3 {
            lines.add(UNIX_EPOCH, write);
        }
        assert_eq!(lines.hand_over(), 0);
        drop(guard);
        assert_eq!(lines.hand_over(), 3);
    }

    #[test]
    fn the_last_lines_of_a_worker_are_written() {
        let output = Output::default();
        let (log, guard) = AccessLog::start(output.clone(), true).unwrap();
        let mut lines = Lines::new(Some(log));
        lines.add(UNIX_EPOCH, write);
        drop(lines);
        drop(guard);
        assert!(!output.0.lock().unwrap().is_empty());
    }
}
