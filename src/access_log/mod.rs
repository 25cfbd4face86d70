//! The access log: one line for each request, collected by each worker and written by one thread.
//!
//! Promises: a line is formatted once, without allocation, into the buffer of its worker. Workers hand their buffers over when
//! they are full, and several times a second. Never: a request waits for the output. If the output is slower than the requests,
//! whole buffers are dropped, and their lines are counted.

mod entry;
mod format;
mod output;
pub mod reading;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use format::Formatter;
use output::{Sink, Stream};

pub use entry::Entry;
pub use format::Format;
pub use output::{JOURNAL, Output, SYSLOG};

/// The output, the format and the share of the requests that are logged.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    pub output: Output,
    pub format: Format,
    /// The share of the requests that are logged, from 0 to 1. Requests that failed are always logged.
    pub sample: f32,
}

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
    format: Format,
    sample: f32,
    /// Lines that the output refused, and that no worker has counted yet.
    refused: Arc<AtomicU64>,
}

enum Message {
    /// Whole lines, and their number.
    Lines(Vec<u8>, u64),
    /// Sends a reply when everything before has been written.
    Flush(SyncSender<()>),
    /// Opens the output again, because its file was renamed.
    Reopen,
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
    /// Opens the output, and starts the thread that writes to it.
    pub fn open(settings: &Settings) -> std::io::Result<(Self, Guard)> {
        Self::run(settings.output.open()?, settings.format.clone(), settings.sample)
    }

    /// Starts the thread that writes all requests to `output`.
    pub fn start(output: impl Write + Send + 'static, format: Format) -> std::io::Result<(Self, Guard)> {
        Self::run(Box::new(Stream(output)), format, 1.0)
    }

    fn run(mut sink: Box<dyn Sink>, format: Format, sample: f32) -> std::io::Result<(Self, Guard)> {
        let (batches, received) = sync_channel(MAX_WAITING);
        let refused = Arc::new(AtomicU64::new(0));
        let count_refused = Arc::clone(&refused);
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            for message in received {
                match message {
                    // The log cannot report its own error, but it is counted. A part of the lines may have been written.
                    Message::Lines(lines, count) => {
                        if sink.write(&lines).is_err() {
                            count_refused.fetch_add(count, Ordering::Relaxed);
                        }
                    }
                    Message::Reopen => match sink.reopen() {
                        Ok(()) => tracing::info!("access log opened again"),
                        Err(error) => tracing::error!(%error, "cannot open the access log again; writing to the previous file"),
                    },
                    Message::Flush(reply) => drop(reply.send(())),
                }
            }
        })?;
        Ok((Self { batches: batches.clone(), format, sample, refused }, Guard(batches)))
    }

    /// Opens the output again, after its file was renamed.
    pub fn reopen(&self) {
        // If the queue is full, the output is stuck, and opening it again would wait as well.
        if self.batches.try_send(Message::Reopen).is_err() {
            tracing::error!("the access log is stuck and was not opened again");
        }
    }
}

/// The lines of one worker that are not handed over yet.
pub struct Lines {
    log: Option<(AccessLog, Formatter)>,
    buffer: Vec<u8>,
    count: u64,
}

impl Lines {
    /// Without a log, no line is formatted.
    pub fn new(log: Option<AccessLog>) -> Self {
        let log = log.map(|log| {
            let formatter = Formatter::of(log.format.clone());
            (log, formatter)
        });
        Self { log, buffer: Vec::new(), count: 0 }
    }

    /// Whether a request is logged. All requests that failed are.
    pub fn wants(&self, has_failed: bool) -> bool {
        self.log.as_ref().is_some_and(|(log, _)| has_failed || log.sample >= 1.0 || fastrand::f32() < log.sample)
    }

    /// Adds a line. Returns the number of lines that had to be dropped.
    pub fn add(&mut self, entry: &Entry<'_>) -> u64 {
        let Some((_, formatter)) = &mut self.log else { return 0 };
        if self.buffer.capacity() == 0 {
            self.buffer.reserve(BATCH + BATCH / 8);
        }
        formatter.write(entry, &mut self.buffer);
        self.count += 1;
        if self.buffer.len() >= BATCH { self.hand_over() } else { 0 }
    }

    /// Hands the buffer over to the output. Returns the number of lines that had to be dropped.
    pub fn hand_over(&mut self) -> u64 {
        let Some((log, _)) = self.log.as_ref() else { return 0 };
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::entry::example;
    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_sample_contains_every_request_that_failed() {
        let settings = Settings { output: super::Output::Stderr, format: Format::Json, sample: 0.0 };
        let (log, _guard) = AccessLog::open(&settings).unwrap();
        let lines = Lines::new(Some(log));
        assert_eq!((lines.wants(true), lines.wants(false)), (true, false));
        let (all, _guard) = AccessLog::start(std::io::sink(), Format::Json).unwrap();
        assert!(Lines::new(Some(all)).wants(false));
        assert!(!Lines::new(None).wants(true));
    }

    #[test]
    fn a_full_buffer_is_handed_over() {
        let output = Memory::default();
        let (log, guard) = AccessLog::start(output.clone(), Format::Json).unwrap();
        let mut lines = Lines::new(Some(log));
        loop {
            assert_eq!(lines.add(&example()), 0);
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
        let (log, guard) = AccessLog::start(Stuck(released), Format::Json).unwrap();
        let mut lines = Lines::new(Some(log));
        let mut dropped = 0;
        for _ in 0..MAX_WAITING + 2 {
            lines.add(&example());
            lines.add(&example());
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
        let (log, guard) = AccessLog::start(Broken, Format::Json).unwrap();
        let mut lines = Lines::new(Some(log));
        for _ in 0..3 {
            lines.add(&example());
        }
        assert_eq!(lines.hand_over(), 0);
        drop(guard);
        assert_eq!(lines.hand_over(), 3);
    }

    #[test]
    fn the_last_lines_of_a_worker_are_written() {
        let output = Memory::default();
        let (log, guard) = AccessLog::start(output.clone(), Format::Json).unwrap();
        let mut lines = Lines::new(Some(log));
        lines.add(&example());
        drop(lines);
        drop(guard);
        assert!(!output.0.lock().unwrap().is_empty());
    }
}
