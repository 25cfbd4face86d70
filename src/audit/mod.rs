//! The ledger: an append-only record of what crossed a border, written before it crossed.
//!
//! Promises: [`Ledger::record`] returns only when the line is on disk; a failed write leaves no half line behind and the
//! caller an error, so that no transfer goes unrecorded; users appear as keyed pseudonyms. Never: a raw user key, a path,
//! an address. Refusals and movements of unrestricted data are counted into one line a minute, so that no flood of them
//! can fill the disk.

mod pseudonym;
mod record;
mod sink;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, oneshot};

pub use pseudonym::{KeyError, Pseudonyms};
pub use record::{Count, Direction, Movement};

use record::Counts;

/// Where the ledger is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    pub directory: PathBuf,
}

/// The ledger cannot be used: nothing that needs a line may happen.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot write the ledger `{}`: {reason}; free space or mend the directory, nothing that needs a line is transferred until then", file.display())]
pub struct LedgerError {
    file: PathBuf,
    reason: String,
}

/// Lines waiting to be written. A line takes about a millisecond to sync and they are synced together: a queue of this
/// length is a disk that has stopped.
const QUEUE: usize = 8192;

struct Entry {
    line: String,
    written: oneshot::Sender<Result<(), LedgerError>>,
}

/// A handle on the ledger; its thread writes until the last handle is gone.
#[derive(Clone)]
pub struct Ledger {
    file: PathBuf,
    queue: mpsc::Sender<Entry>,
    counts: Arc<Mutex<Counts>>,
    tally: Tally,
}

/// What the ledger tells of itself, called on its own thread.
#[derive(Clone)]
pub struct Tally {
    pub lines: Arc<dyn Fn(u64) + Send + Sync>,
    pub failures: Arc<dyn Fn() + Send + Sync>,
}

impl Ledger {
    /// Opens the ledger, creating its directory; cuts off a last line that was torn by a crash.
    pub fn open(settings: &Settings, tally: Tally) -> Result<Self, LedgerError> {
        let file = settings.directory.join("ledger.jsonl");
        let (queue, entries) = mpsc::channel(QUEUE);
        let counts = Arc::new(Mutex::new(Counts::default()));
        sink::start(&settings.directory, &file, entries, Arc::clone(&counts), tally.clone())?;
        Ok(Self { file, queue, counts, tally })
    }

    /// Writes a movement; returns when its line is safely on disk, before which nothing may move.
    pub async fn record(&self, movement: &Movement<'_>) -> Result<(), LedgerError> {
        let (written, outcome) = oneshot::channel();
        let entry = Entry { line: movement.line(), written };
        // Waiting for room would only pile up requests behind a disk that has stopped.
        if self.queue.try_send(entry).is_err() {
            (self.tally.failures)();
            return Err(self.failed("its queue is full"));
        }
        outcome.await.unwrap_or_else(|_| Err(self.failed("its thread has ended")))
    }

    /// Counts what is not worth a line of its own.
    pub fn count(&self, what: Count) {
        let mut counts = self.counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        counts.add(what);
    }

    fn failed(&self, reason: &str) -> LedgerError {
        LedgerError { file: self.file.clone(), reason: reason.into() }
    }
}

#[cfg(test)]
mod tests;
