//! The ledger: an append-only record of what crossed a border, written before it crossed.
//!
//! Promises: [`Ledger::record`] returns only when the line is on disk; a failed write leaves no half line behind and the
//! caller an error, so that no transfer goes unrecorded; users appear as keyed pseudonyms. Never: a raw user key, a path,
//! an address. Refusals and movements of unrestricted data are counted into one line a minute, so that no flood of them
//! can fill the disk.

mod pseudonym;
mod record;
mod sink;

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
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
    /// Locked as long as this process writes.
    guard: Arc<File>,
}

/// What the ledger tells of itself, called on its own thread.
#[derive(Clone)]
pub struct Tally {
    pub lines: Arc<dyn Fn(u64) + Send + Sync>,
    pub failures: Arc<dyn Fn() + Send + Sync>,
}

/// Keeps two processes from taking one ledger for their own.
fn guard(directory: &Path, is_successor: bool) -> Result<Arc<File>, LedgerError> {
    let path = directory.join("ledger.lock");
    let failed = |reason: String| LedgerError { file: path.clone(), reason };
    std::fs::create_dir_all(directory).map_err(|error| failed(error.to_string()))?;
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(|error| failed(error.to_string()))?;
    let locked = if is_successor { file.try_lock_shared() } else { file.try_lock() };
    match locked {
        Ok(()) => Ok(Arc::new(file)),
        Err(_) => Err(failed("another process writes this ledger; give each region a directory of its own".into())),
    }
}

impl Ledger {
    /// Opens the ledger, creating its directory; cuts off a last line that was torn by a crash.
    /// A successor opens it beside its predecessor, which has agreed; anybody else has it alone.
    pub fn open(settings: &Settings, tally: Tally, is_successor: bool) -> Result<Self, LedgerError> {
        let file = settings.directory.join("ledger.jsonl");
        let guard = guard(&settings.directory, is_successor)?;
        let (queue, entries) = mpsc::channel(QUEUE);
        let counts = Arc::new(Mutex::new(Counts::default()));
        sink::start(&settings.directory, &file, entries, Arc::clone(&counts), tally.clone())?;
        Ok(Self { file, queue, counts, tally, guard })
    }

    /// Lets a successor write as well, or nobody any more.
    pub fn share(&self, shared: bool) {
        let outcome = if shared { self.guard.lock_shared() } else { self.guard.try_lock().map_err(io::Error::other) };
        if let Err(error) = outcome {
            tracing::warn!(%error, "the ledger's lock could not be changed");
        }
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
