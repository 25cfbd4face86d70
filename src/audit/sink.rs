//! The writer thread: all waiting lines go to disk with one write and one sync.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::record::Counts;
use super::{Entry, LedgerError, Tally};

/// The maximum number of batches of lines in one sync.
const BATCH: usize = 512;

/// While several lines arrive for each sync, the next sync begins this long after the last one, so that it covers more lines and
/// each pays for a smaller share of it. A line that is alone is synced at once.
const COMMIT_DELAY: Duration = Duration::from_micros(500);

const COUNTS_EVERY: Duration = Duration::from_secs(60);

struct Sink {
    path: PathBuf,
    file: File,
    /// The length of the file up to which every line is complete.
    length: u64,
    /// Whether the file ends in a partial line that could not be removed. Nothing may be appended to it.
    has_partial_line: bool,
}

pub(super) fn start(
    directory: &Path,
    path: &Path,
    (entries, waiting): (mpsc::Receiver<Entry>, Arc<AtomicUsize>),
    counts: Arc<Mutex<Counts>>,
    tally: Tally,
) -> Result<(), LedgerError> {
    let failed = |error: io::Error| LedgerError { file: path.into(), reason: error.to_string() };
    std::fs::create_dir_all(directory).map_err(failed)?;
    let sink = Sink::open(path).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(failed)?;
    let work = move || runtime.block_on(run(sink, (entries, &waiting), &counts, &tally));
    std::thread::Builder::new().name("ledger".into()).spawn(work).map_err(failed)?;
    Ok(())
}

async fn run(
    mut sink: Sink,
    (mut entries, waiting): (mpsc::Receiver<Entry>, &AtomicUsize),
    counts: &Mutex<Counts>,
    tally: &Tally,
) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut next_counts = tokio::time::interval(COUNTS_EVERY);
    next_counts.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick is immediate.
    next_counts.tick().await;
    let (mut last_sync, mut is_busy) = (Instant::now(), false);
    loop {
        let (is_due, ended) = tokio::select! {
            received = entries.recv_many(&mut batch, BATCH) => (false, received == 0),
            _ = next_counts.tick() => (true, false),
        };
        if !batch.is_empty() {
            if is_busy {
                std::thread::sleep(COMMIT_DELAY.saturating_sub(last_sync.elapsed()));
                while batch.len() < BATCH
                    && let Ok(entry) = entries.try_recv()
                {
                    batch.push(entry);
                }
            }
            let lines = batch.iter().map(|entry| entry.lines).sum();
            (is_busy, last_sync) = (lines > 1, Instant::now());
            sink.write_batch(&mut batch, lines, tally);
            waiting.fetch_sub(lines, Ordering::Relaxed);
        }
        if ended || is_due {
            sink.write_counts(counts, tally);
        }
        if ended {
            return;
        }
    }
}

impl Sink {
    fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        file.lock()?;
        let length = whole_lines(&mut file)?;
        if length < file.metadata()?.len() && file.metadata()?.is_file() {
            tracing::warn!(file = %path.display(), "incomplete last ledger line; removing it, because its transfer did not happen");
            file.set_len(length)?;
        }
        file.unlock()?;
        Ok(Self { path: path.into(), file, length, has_partial_line: false })
    }

    fn write_batch(&mut self, batch: &mut Vec<Entry>, lines: usize, tally: &Tally) {
        let text: String = batch.iter().map(|entry| entry.text.as_str()).collect();
        let outcome = self.append(text.as_bytes());
        match &outcome {
            Ok(()) => (tally.lines)(lines as u64),
            Err(error) => {
                (0..lines).for_each(|_| (tally.failures)());
                tracing::error!(%error, "ledger write failed; refusing the transfers");
            }
        }
        for entry in batch.drain(..) {
            // The request may have been cancelled. Its line stays, because a line records a transfer that is about to happen.
            let _ = entry.written.send(outcome.clone());
        }
    }

    fn write_counts(&mut self, counts: &Mutex<Counts>, tally: &Tally) {
        let lock = || counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let taken = lock().take();
        let Some(line) = taken.line() else { return };
        match self.append(line.as_bytes()) {
            Ok(()) => (tally.lines)(1),
            Err(error) => {
                lock().restore(taken);
                (tally.failures)();
                tracing::error!(%error, "ledger write failed; keeping the counts for the next attempt");
            }
        }
    }

    /// Appends whole lines or nothing. The lock separates the writes of a process and its successor during a handover.
    fn append(&mut self, text: &[u8]) -> Result<(), LedgerError> {
        let locked = self.repair().and_then(|()| self.file.lock()).and_then(|()| self.file.metadata());
        self.length = locked.map_err(|error| LedgerError { file: self.path.clone(), reason: error.to_string() })?.len();
        let outcome = self.append_locked(text);
        // An error does not matter, because closing the file unlocks it as well.
        let _ = self.file.unlock();
        outcome
    }

    fn append_locked(&mut self, text: &[u8]) -> Result<(), LedgerError> {
        let outcome = self.file.write_all(text).and_then(|()| self.file.sync_data());
        match outcome {
            Ok(()) => {
                self.length = self.length.saturating_add(text.len() as u64);
                Ok(())
            }
            Err(error) => {
                // INVARIANT: a line that was not acknowledged is not in the file. If the truncation fails, nothing is written
                // until a later one succeeds.
                self.has_partial_line = self.file.set_len(self.length).is_err();
                Err(LedgerError { file: self.path.clone(), reason: error.to_string() })
            }
        }
    }
}

impl Sink {
    /// Ensures that the next line is appended after whole lines, and to the file that has the ledger's path.
    fn repair(&mut self) -> io::Result<()> {
        use std::os::unix::fs::MetadataExt;
        if self.has_partial_line {
            self.file.set_len(self.length)?;
            self.has_partial_line = false;
        }
        let held = self.file.metadata()?;
        let named = std::fs::metadata(&self.path).ok();
        if named.is_some_and(|named| (named.dev(), named.ino()) == (held.dev(), held.ino())) {
            return Ok(());
        }
        // The file was rotated or removed; open a new one.
        tracing::warn!(file = %self.path.display(), "ledger file moved or removed; starting a new one");
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        *self = Self::open(&self.path)?;
        Ok(())
    }
}

/// The length of the file up to its last line feed.
fn whole_lines(file: &mut File) -> io::Result<u64> {
    const BLOCK: u64 = 4096;
    let mut end = file.metadata()?.len();
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(start))?;
        let mut part = Vec::new();
        Read::by_ref(file).take(end.saturating_sub(start)).read_to_end(&mut part)?;
        if let Some(at) = part.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start.saturating_add(at as u64).saturating_add(1));
        }
        end = start;
    }
    Ok(0)
}
