//! The ledger: an append-only record of the data that crosses a border, written before the data crosses.
//!
//! Promises: [`Ledger::record`] returns only when the line is on disk; a failed write leaves no partial line and returns an
//! error, so that no transfer goes unrecorded; users appear as keyed pseudonyms. Never: a raw user key, or the path or address of a
//! request.
//! Refusals and movements of unrestricted data are counted in one line a minute, so that a flood of them cannot fill the disk.
//! Each line contains the hash of the one before it, and a signed checkpoint covers them every minute, so that nobody can change
//! the past without the signing key, or unnoticed by those who noted a checkpoint.

#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::wildcard_enum_match_arm
    )
)]

mod chain;
mod pseudonym;
pub mod reading;
mod record;
mod signing;
mod sink;
mod worker_ledger;

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

pub use chain::Hash;
pub use pseudonym::{KeyError, Pseudonyms, destroy, retired_before};
pub use record::{Count, Direction, Grounds, Movement, Outcome, Settlement};
pub use signing::{PublicKey, SigningError};
pub use worker_ledger::WorkerLedger;

use record::Counts;
use signing::Signer;
use sink::Sink;

/// The settings of the ledger.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    pub directory: PathBuf,
    /// The local region, which checkpoints name.
    pub region: String,
}

/// The ledger cannot be written, so that no operation that needs a line may proceed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot write the ledger `{}`: {reason}; free space or repair the directory; transfers that need a ledger line are refused until then", file.display())]
pub struct LedgerError {
    file: PathBuf,
    reason: String,
}

/// The maximum number of lines that wait. One sync takes about a millisecond and covers many lines, so a full queue means that
/// the disk does not respond.
const QUEUE: usize = 8192;

/// How long a request waits for its line. A healthy disk needs milliseconds; a client waits about this long for a page.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

const WRITER_ENDED: &str = "the writer thread has ended; restart the process";

/// Lines that one worker hands over together.
struct Entry {
    text: String,
    lines: usize,
    order: Order,
    written: oneshot::Sender<Result<(), LedgerError>>,
}

/// The task of the writer thread for an entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Write,
    /// The process ends: counts, the end and a checkpoint follow.
    End,
    /// The signing key is replaced.
    RotateKey,
}

/// A handle to the ledger. The writer thread ends when the last handle is dropped.
#[derive(Clone)]
pub struct Ledger {
    file: PathBuf,
    queue: mpsc::Sender<Entry>,
    /// The number of lines that wait.
    waiting: Arc<AtomicUsize>,
    counts: Arc<Mutex<Counts>>,
    tally: Tally,
    /// The lock file, locked while this process writes.
    guard: Arc<File>,
    /// The file of the key that signs the checkpoints.
    signing_key: PathBuf,
}

/// Callbacks that count the written lines and the failures, for the metrics.
#[derive(Clone)]
pub struct Tally {
    pub lines: Arc<dyn Fn(u64) + Send + Sync>,
    pub failures: Arc<dyn Fn() + Send + Sync>,
}

/// Locks the ledger, so that two processes do not both write it; only a successor shares the lock with its predecessor.
fn guard(directory: &Path, is_successor: bool) -> Result<Arc<File>, LedgerError> {
    let path = directory.join("ledger.lock");
    let failed = |reason: String| LedgerError { file: path.clone(), reason };
    std::fs::create_dir_all(directory).map_err(|error| failed(error.to_string()))?;
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(|error| failed(error.to_string()))?;
    let locked = if is_successor { file.try_lock_shared() } else { file.try_lock() };
    match locked {
        Ok(()) => Ok(Arc::new(file)),
        Err(TryLockError::WouldBlock) => {
            Err(failed("another process writes this ledger; give each region a directory of its own".into()))
        }
        Err(TryLockError::Error(error)) => Err(failed(format!("cannot be locked: {error}"))),
    }
}

impl Ledger {
    /// Opens the ledger, creating its directory, and removes an incomplete last line that a crash left.
    /// A successor shares the ledger with its predecessor, which has called [`Ledger::share`]; any other process needs the
    /// exclusive lock.
    pub fn open(settings: &Settings, tally: Tally, is_successor: bool) -> Result<Self, LedgerError> {
        let file = settings.directory.join("ledger.jsonl");
        let guard = guard(&settings.directory, is_successor)?;
        let (queue, entries) = mpsc::channel(QUEUE);
        let counts = Arc::new(Mutex::new(Counts::default()));
        let waiting = Arc::new(AtomicUsize::new(0));
        let signing_key = settings.directory.join("signing.key");
        let signer = |is_new, named: Option<PublicKey>| {
            let opened = signing::finish_replacement(&signing_key, named)
                .and_then(|()| Signer::open(&signing_key, &settings.region, is_new));
            let signer = opened.map_err(|error| LedgerError { file: file.clone(), reason: error.to_string() })?;
            match named.filter(|named| *named != signer.public_key()) {
                Some(named) => Err(LedgerError {
                    file: signing_key.clone(),
                    reason: format!("this is another key than {named}, which signs this ledger; restore that key"),
                }),
                None => Ok(signer),
            }
        };
        let sink = Sink::open(&settings.directory, signer, is_successor)?;
        sink::start(sink, (entries, Arc::clone(&waiting)), Arc::clone(&counts), tally.clone())?;
        Ok(Self { file, queue, waiting, counts, tally, guard, signing_key })
    }

    pub fn directory(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new("."))
    }

    /// The key that verifies the next checkpoints, in PEM.
    pub fn public_key(&self) -> Result<String, SigningError> {
        Signer::open(&self.signing_key, "", false).map(|signer| signer.public_key().pem())
    }

    /// Replaces the signing key, and returns when the ledger names the new one. Fails while another process shares the ledger.
    pub async fn rotate_signing_key(&self) -> Result<(), LedgerError> {
        self.guard.try_lock().map_err(|_| LedgerError {
            file: self.file.clone(),
            reason: "another process shares this ledger during its handover; try again when it has ended".into(),
        })?;
        let (written, outcome) = oneshot::channel();
        let entry = Entry { text: String::new(), lines: 0, order: Order::RotateKey, written };
        self.queue.try_send(entry).map_err(|_| self.failed(1, WRITER_ENDED))?;
        outcome.await.map_err(|_| self.failed(1, WRITER_ENDED))?
    }

    /// Shares the lock with a successor, or makes it exclusive again.
    pub fn share(&self, shared: bool) {
        let outcome = if shared { self.guard.lock_shared() } else { self.guard.try_lock().map_err(io::Error::other) };
        if let Err(error) = outcome {
            tracing::warn!(%error, "cannot change the ledger lock");
        }
    }

    /// Writes a movement and returns when its line is on disk. The data must not be sent before.
    pub async fn record(&self, movement: &Movement<'_>) -> Result<(), LedgerError> {
        self.write(movement.line(), 1).await
    }

    /// Writes a command of an operator, and what it changes in the policy, and returns when its line is on disk.
    pub async fn record_action(&self, what: &str, detail: &str, changes: &[String]) -> Result<(), LedgerError> {
        self.write(record::action_line(what, detail, changes), 1).await
    }

    /// Writes whole lines and returns when they are on disk.
    async fn write(&self, text: String, lines: usize) -> Result<(), LedgerError> {
        let (written, outcome) = oneshot::channel();
        let entry = Entry { text, lines, order: Order::Write, written };
        // Fail instead of waiting, because a full queue means that the disk does not respond.
        let is_full = self.waiting.fetch_add(lines, Ordering::Relaxed).saturating_add(lines) > QUEUE;
        let queued = if is_full { Err(TrySendError::Full(entry)) } else { self.queue.try_send(entry) };
        queued.map_err(|error| {
            self.waiting.fetch_sub(lines, Ordering::Relaxed);
            match error {
                TrySendError::Full(_) => self.failed(lines, "the queue is full because the disk does not respond"),
                TrySendError::Closed(_) => self.failed(lines, WRITER_ENDED),
            }
        })?;
        match tokio::time::timeout(WRITE_TIMEOUT, outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(self.failed(lines, WRITER_ENDED)),
            // The line may still be written; it then records a transfer that did not happen.
            Err(_) => Err(self.failed(lines, "the disk does not respond")),
        }
    }

    /// Writes the counts, the end of this process and a checkpoint, and returns when they are on disk. Blocks the thread.
    pub fn close(&self) {
        let (written, outcome) = oneshot::channel();
        if self.queue.try_send(Entry { text: String::new(), lines: 0, order: Order::End, written }).is_ok() {
            let _ = outcome.blocking_recv();
        }
    }

    /// Counts an event that gets no line of its own.
    pub fn count(&self, event: Count) {
        let mut counts = self.counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        counts.add(event);
    }

    /// Counts lines that the writer has not counted.
    fn failed(&self, lines: usize, reason: &str) -> LedgerError {
        (0..lines).for_each(|_| (self.tally.failures)());
        LedgerError { file: self.file.clone(), reason: reason.into() }
    }
}

#[cfg(test)]
mod tests;
