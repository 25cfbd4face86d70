//! The thread that writes: whatever is waiting goes to disk in one write and one sync.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::record::Counts;
use super::{Entry, LedgerError, Tally};

/// The most lines that are synced together.
const BATCH: usize = 512;

const COUNTS_EVERY: Duration = Duration::from_secs(60);

struct Sink {
    path: PathBuf,
    file: File,
    /// The length up to which every line is whole.
    length: u64,
    /// A half line could not be cut off: nothing may be written behind it.
    is_torn: bool,
}

pub(super) fn start(
    directory: &Path,
    path: &Path,
    entries: mpsc::Receiver<Entry>,
    counts: Arc<Mutex<Counts>>,
    tally: Tally,
) -> Result<(), LedgerError> {
    let failed = |error: io::Error| LedgerError { file: path.into(), reason: error.to_string() };
    std::fs::create_dir_all(directory).map_err(failed)?;
    let sink = Sink::open(path).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(failed)?;
    let work = move || runtime.block_on(run(sink, entries, &counts, &tally));
    std::thread::Builder::new().name("ledger".into()).spawn(work).map_err(failed)?;
    Ok(())
}

async fn run(mut sink: Sink, mut entries: mpsc::Receiver<Entry>, counts: &Mutex<Counts>, tally: &Tally) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut next_counts = Instant::now() + COUNTS_EVERY;
    loop {
        let received = tokio::time::timeout_at(next_counts, entries.recv_many(&mut batch, BATCH)).await;
        if !batch.is_empty() {
            sink.write_batch(&mut batch, tally);
        }
        let ended = matches!(received, Ok(0));
        if ended || Instant::now() >= next_counts {
            sink.write_counts(counts, tally);
            next_counts = Instant::now() + COUNTS_EVERY;
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
            tracing::warn!(file = %path.display(), "the ledger's last line was torn by a crash; what it told of did not happen, and it is cut off");
            file.set_len(length)?;
        }
        file.unlock()?;
        Ok(Self { path: path.into(), file, length, is_torn: false })
    }

    fn write_batch(&mut self, batch: &mut Vec<Entry>, tally: &Tally) {
        let text: String = batch.iter().map(|entry| entry.line.as_str()).collect();
        let outcome = self.append(text.as_bytes());
        match &outcome {
            Ok(()) => (tally.lines)(batch.len() as u64),
            Err(error) => {
                batch.iter().for_each(|_| (tally.failures)());
                tracing::error!(%error, "the ledger cannot be written: transfers that need a line are refused");
            }
        }
        for entry in batch.drain(..) {
            // Whoever asked may be gone: the line stays, it only says that something was about to happen.
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
                tracing::error!(%error, "the ledger cannot be written: counts are kept for the next try");
            }
        }
    }

    /// Writes whole lines or none. A process that is succeeded and its successor write one ledger for a while: in turn.
    fn append(&mut self, text: &[u8]) -> Result<(), LedgerError> {
        let locked = self.mend().and_then(|()| self.file.lock()).and_then(|()| self.file.metadata());
        self.length = locked.map_err(|error| LedgerError { file: self.path.clone(), reason: error.to_string() })?.len();
        let outcome = self.append_alone(text);
        // Closing the file unlocks it as well.
        let _ = self.file.unlock();
        outcome
    }

    fn append_alone(&mut self, text: &[u8]) -> Result<(), LedgerError> {
        let outcome = self.file.write_all(text).and_then(|()| self.file.sync_data());
        match outcome {
            Ok(()) => {
                self.length += text.len() as u64;
                Ok(())
            }
            Err(error) => {
                // INVARIANT: a line that was not acknowledged is not in the file. If even cutting fails, nothing is written
                // until it succeeds.
                self.is_torn = self.file.set_len(self.length).is_err();
                Err(LedgerError { file: self.path.clone(), reason: error.to_string() })
            }
        }
    }
}

impl Sink {
    /// Makes sure that the next line lands where an auditor will look for it: behind whole lines, in the file of that name.
    fn mend(&mut self) -> io::Result<()> {
        use std::os::unix::fs::MetadataExt;
        if self.is_torn {
            self.file.set_len(self.length)?;
            self.is_torn = false;
        }
        let held = self.file.metadata()?;
        let named = std::fs::metadata(&self.path).ok();
        if named.is_some_and(|named| (named.dev(), named.ino()) == (held.dev(), held.ino())) {
            return Ok(());
        }
        // It was rotated or removed: go on in a new file.
        tracing::warn!(file = %self.path.display(), "the ledger's file was moved or removed; a new one is begun");
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        *self = Self::open(&self.path)?;
        Ok(())
    }
}

/// The length of the file up to its last line feed.
fn whole_lines(file: &mut File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut block = [0; 4096];
    while end > 0 {
        let size = end.min(block.len() as u64) as usize;
        file.seek(SeekFrom::Start(end - size as u64))?;
        file.read_exact(&mut block[..size])?;
        if let Some(at) = block[..size].iter().rposition(|byte| *byte == b'\n') {
            return Ok(end - (size - at - 1) as u64);
        }
        end -= size as u64;
    }
    Ok(0)
}
