//! The writer thread: all waiting lines go to disk with one write and one sync.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::model::day::Day;

use super::chain::{Chain, Hash, now, place_of};
use super::reading::verify;
use super::record::{self, Counts};
use super::signing::{self, PublicKey, Signer};
use super::{Entry, LedgerError, Order, Tally};

/// The maximum number of batches of lines in one sync.
const BATCH: usize = 512;

/// While several lines arrive for each sync, the next sync begins this long after the last one, so that it covers more lines and
/// each pays for a smaller share of it. A line that is alone is synced at once.
const COMMIT_DELAY: Duration = Duration::from_micros(500);

/// The interval between two lines of counts, and between two checkpoints.
const COUNTS_EVERY: Duration = Duration::from_secs(60);

/// A file that has reached this size is rotated.
const ROTATE_AT: u64 = 64 << 20;

pub(super) struct Sink {
    path: PathBuf,
    file: File,
    /// The length of the file up to which every line is complete.
    length: u64,
    /// Whether the file ends in a partial line that could not be removed. Nothing may be appended to it.
    has_partial_line: bool,
    chain: Chain,
    signer: Arc<Signer>,
    /// The hash that the last checkpoint of this process has signed, or the checkpoint's own.
    signed: Hash,
    /// The day on which the file was begun.
    day: Day,
}

pub(super) fn start(
    sink: Sink,
    (entries, waiting): (mpsc::Receiver<Entry>, Arc<AtomicUsize>),
    counts: Arc<Mutex<Counts>>,
    tally: Tally,
) -> Result<(), LedgerError> {
    let path = sink.path.clone();
    let failed = |error: io::Error| LedgerError { file: path.clone(), reason: error.to_string() };
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
    let (mut last_sync, mut is_busy, mut is_closed) = (Instant::now(), false, false);
    loop {
        let (is_due, ended) = tokio::select! {
            received = entries.recv_many(&mut batch, BATCH) => (false, received == 0),
            _ = next_counts.tick() => (true, false),
        };
        let rotating: Vec<_> = batch.extract_if(.., |entry| entry.order == Order::RotateKey).collect();
        let closing: Vec<_> = batch.extract_if(.., |entry| entry.order == Order::End).collect();
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
        rotating.into_iter().for_each(|entry| drop(entry.written.send(sink.rotate_key())));
        let closes = !is_closed && (ended || !closing.is_empty());
        if closes || is_due {
            sink.write_counts(counts, tally);
            sink.write_own(closes);
            is_closed |= closes;
        }
        closing.into_iter().for_each(|entry| drop(entry.written.send(Ok(()))));
        if ended {
            return;
        }
    }
}

impl Sink {
    /// Opens the ledger of a directory at its end. The current file must verify, unless a predecessor still writes it.
    pub fn open(
        directory: &Path,
        signer: impl FnOnce(bool, Option<PublicKey>) -> Result<Signer, LedgerError>,
        is_successor: bool,
    ) -> Result<Self, LedgerError> {
        let path = directory.join("ledger.jsonl");
        let failed = |error: io::Error| LedgerError { file: path.clone(), reason: error.to_string() };
        std::fs::create_dir_all(directory).map_err(failed)?;
        let (file, length, cut) = open_whole(&path).map_err(failed)?;
        if cut > 0 {
            tracing::warn!(file = %path.display(), "incomplete last ledger line; removing it, because its transfer did not happen");
        }
        let head = if length > 0 {
            tail(&file).map_err(failed)?
        } else {
            newest_rotated(directory).map_err(failed)?.map(|(head, _)| head)
        };
        let mut named = None;
        if length > 0 && !is_successor {
            let any = verify::Expected { after: None, key: None, noted: Vec::new() };
            let verified = verify::verify(std::slice::from_ref(&path), &any).map_err(|broken| LedgerError {
                file: path.clone(),
                reason: format!("{broken}; the file was changed: restore it, or move all files of the ledger away as evidence and begin a new one"),
            })?;
            named = verified.signer;
        }
        let signer = Arc::new(signer(head.is_none(), named)?);
        let day = file.metadata().and_then(|metadata| metadata.modified()).map_or_else(|_| today(), Day::of);
        let chain = Chain { epoch: now(), number: 0, head: head.unwrap_or(Hash::BEGINNING) };
        let signed = chain.head;
        let mut sink = Self { path, file, length, has_partial_line: false, chain, signer, signed, day };
        let detail = format!("Domicile {}, {cut} bytes of an incomplete line removed", env!("CARGO_PKG_VERSION"));
        // A full disk refuses transfers, not the start.
        if let Err(error) = sink.append(&record::process_line("start", &detail)) {
            tracing::error!(%error, "the start of this process is not in the ledger");
        }
        Ok(sink)
    }

    /// Writes the end of the process, and a checkpoint if there are new lines.
    fn write_own(&mut self, is_end: bool) {
        let outcome = if is_end { self.append(&record::process_line("end", "")) } else { Ok(()) };
        let outcome = outcome.and_then(|()| if self.chain.head == self.signed { Ok(()) } else { self.checkpoint() });
        if let Err(error) = outcome {
            tracing::error!(%error, "the checkpoint of the ledger is not written; trying again in a minute");
        }
    }

    fn checkpoint(&mut self) -> Result<(), LedgerError> {
        self.locked(Self::checkpoint_locked)
    }

    fn checkpoint_locked(&mut self) -> Result<(), LedgerError> {
        let line = record::checkpoint_line(&self.signer, self.chain.head, None);
        self.append_locked(&line)?;
        self.signed = self.chain.head;
        Ok(())
    }

    /// Replaces the signing key: the old one signs a checkpoint that names the new one, and is destroyed.
    fn rotate_key(&mut self) -> Result<(), LedgerError> {
        let file = self.path.with_file_name("signing.key");
        let failed = |reason: String| LedgerError { file: file.clone(), reason };
        let next = self.signer.successor(&file).map_err(|error| failed(error.to_string()))?;
        let key = next.public_key();
        self.locked(|sink| {
            let line = record::checkpoint_line(&sink.signer, sink.chain.head, Some(key));
            sink.append_locked(&line)
        })?;
        self.signer = Arc::new(next);
        // After a crash here, the next start finds the name of the new key in the ledger.
        signing::replace(&file).map_err(|error| failed(format!("cannot replace the signing key: {error}")))?;
        // A name proves nothing: only what the new key has signed does.
        self.checkpoint()
    }

    fn write_batch(&mut self, batch: &mut Vec<Entry>, lines: usize, tally: &Tally) {
        let text: String = batch.iter().map(|entry| entry.text.as_str()).collect();
        let outcome = self.append(&text);
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
        match self.append(&line) {
            Ok(()) => (tally.lines)(1),
            Err(error) => {
                lock().restore(taken);
                (tally.failures)();
                tracing::error!(%error, "ledger write failed; keeping the counts for the next attempt");
            }
        }
    }

    /// Appends whole lines or nothing.
    fn append(&mut self, text: &str) -> Result<(), LedgerError> {
        self.locked(|sink| {
            if sink.length >= ROTATE_AT || (sink.length > 0 && sink.day != today()) {
                sink.rotate()?;
            }
            sink.append_locked(text)
        })
    }

    /// Does `work` while this process alone may write. The lock separates the writes of a process and its successor during a handover.
    fn locked(&mut self, work: impl FnOnce(&mut Self) -> Result<(), LedgerError>) -> Result<(), LedgerError> {
        self.lock().map_err(|error| self.failed(&error))?;
        let outcome = work(self);
        // An error does not matter, because closing the file unlocks it as well.
        let _ = self.file.unlock();
        outcome
    }

    fn failed(&self, error: &io::Error) -> LedgerError {
        LedgerError { file: self.path.clone(), reason: error.to_string() }
    }

    /// Locks the file that has the ledger's path, and learns the end of the chain if another process has written.
    fn lock(&mut self) -> io::Result<()> {
        loop {
            self.repair()?;
            self.file.lock()?;
            if self.is_current()? {
                break;
            }
            self.file.unlock()?;
        }
        if self.file.metadata()?.len() != self.length {
            // Another process has written. If it was killed while it did, its last line is incomplete.
            (self.length, _) = cut_torn_line(&mut self.file)?;
            if let Some(head) = tail(&self.file)? {
                self.chain.head = head;
            }
        }
        Ok(())
    }

    fn append_locked(&mut self, text: &str) -> Result<(), LedgerError> {
        let (text, next) = self.chain.extend(text);
        let outcome = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        match outcome {
            Ok(()) => {
                self.length = self.length.saturating_add(text.len() as u64);
                self.chain = next;
                Ok(())
            }
            Err(error) => {
                // INVARIANT: a line that was not acknowledged is not in the file. If the truncation fails, nothing is written
                // until a later one succeeds.
                self.has_partial_line = self.file.set_len(self.length).is_err();
                Err(self.failed(&error))
            }
        }
    }

    /// Ends the file with a checkpoint and begins a new one. The chain goes on in it.
    fn rotate(&mut self) -> Result<(), LedgerError> {
        self.checkpoint_locked()?;
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let rotated = rotated_name(folder, &now()).map_err(|error| self.failed(&error))?;
        // Another process may write into the new file first, so its end is learnt under its lock.
        let renewed = std::fs::rename(&self.path, &rotated).and_then(|()| self.reopen()).and_then(|()| self.lock());
        renewed.map_err(|error| self.failed(&error))?;
        tracing::info!(file = %rotated.display(), "ledger file rotated");
        Ok(())
    }
}

fn today() -> Day {
    Day::of(SystemTime::now())
}

impl Sink {
    /// Ensures that the next line is appended after whole lines, and to the file that has the ledger's path.
    fn repair(&mut self) -> io::Result<()> {
        if self.has_partial_line {
            self.file.set_len(self.length)?;
            self.has_partial_line = false;
        }
        if self.is_current()? {
            return Ok(());
        }
        // Another process has rotated it, or an operator has moved it.
        tracing::warn!(file = %self.path.display(), "ledger file moved or removed; going on in a new one");
        self.reopen()
    }

    /// Opens the file that has the ledger's path now. The chain goes on after the last line.
    fn reopen(&mut self) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        let held = identity(&self.file.metadata()?);
        let newest = newest_rotated(folder)?.filter(|(_, identities)| identities.contains(&held));
        if let Some(head) = newest.map(|(head, _)| head).or(tail(&self.file)?) {
            self.chain.head = head;
        }
        (self.file, self.length, _) = open_whole(&self.path)?;
        // The name of the new file is on disk before its lines count as written.
        File::open(folder)?.sync_all()?;
        self.day = today();
        if let Some(head) = tail(&self.file)? {
            self.chain.head = head;
        }
        Ok(())
    }

    /// Whether the open file is the one that has the ledger's path.
    fn is_current(&self) -> io::Result<bool> {
        let named = std::fs::metadata(&self.path).ok();
        let held = self.file.metadata()?;
        Ok(named.is_some_and(|named| identity(&named) == identity(&held)))
    }
}

/// Device and inode.
type Identity = (u64, u64);

fn identity(metadata: &Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

/// Opens a file for appending after its last whole line. Returns its length, and how many bytes of an incomplete line were removed.
fn open_whole(path: &Path) -> io::Result<(File, u64, u64)> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    file.lock()?;
    let (length, cut) = cut_torn_line(&mut file)?;
    file.unlock()?;
    Ok((file, length, cut))
}

/// Removes an incomplete last line. Returns the length of the file, and how many bytes were removed.
fn cut_torn_line(file: &mut File) -> io::Result<(u64, u64)> {
    let length = whole_lines(file)?;
    let cut = file.metadata()?.len().saturating_sub(length);
    if cut > 0 && file.metadata()?.is_file() {
        file.set_len(length)?;
    }
    Ok((length, cut))
}

/// The name of the next rotated file. The names sort in the order of the chain, also after the clock has gone back.
fn rotated_name(folder: &Path, now: &str) -> io::Result<PathBuf> {
    let name = folder.join(format!("ledger-{}.jsonl", now.replace(':', "-")));
    let rotated = verify::files_of(folder)?.into_iter().rfind(|file| !file.ends_with("ledger.jsonl"));
    let Some(newest) = rotated.filter(|newest| *newest >= name) else { return Ok(name) };
    let newest = newest.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let (time, number) = newest.split_once('_').unwrap_or((newest, "0"));
    let number = number.parse::<u32>().unwrap_or_default().saturating_add(1);
    Ok(folder.join(format!("{time}_{number:06}.jsonl")))
}

/// The hash of the last line of a rotated file, and the identities of all of them; `None` without such a file.
fn newest_rotated(directory: &Path) -> io::Result<Option<(Hash, Vec<Identity>)>> {
    let mut files = verify::files_of(directory)?;
    files.retain(|file| !file.ends_with("ledger.jsonl"));
    let Some(newest) = files.last() else { return Ok(None) };
    let head = tail(&File::open(newest)?)?;
    let identities =
        files.iter().map(|file| std::fs::metadata(file).map(|metadata| identity(&metadata))).collect::<io::Result<_>>()?;
    Ok(head.map(|head| (head, identities)))
}

/// The hash of the last line of a file; `None` if it has no line. Fails if the last line is not one of a ledger.
fn tail(mut file: &File) -> io::Result<Option<Hash>> {
    let length = file.metadata()?.len();
    let mut size = 4096_u64;
    loop {
        let start = length.saturating_sub(size);
        file.seek(SeekFrom::Start(start))?;
        let mut part = Vec::new();
        Read::by_ref(&mut file).take(length.saturating_sub(start)).read_to_end(&mut part)?;
        let Some(text) = part.strip_suffix(b"\n") else { return Ok(None) };
        let begin = text.iter().rposition(|byte| *byte == b'\n');
        if begin.is_none() && start > 0 {
            size = size.saturating_mul(4);
            continue;
        }
        let line = text.get(begin.map_or(0, |at| at.saturating_add(1))..).unwrap_or_default();
        if std::str::from_utf8(line).ok().and_then(place_of).is_none() {
            return Err(io::Error::other(
                "the last line does not begin with its place in the chain; restore the file, or move it away",
            ));
        }
        return Ok(Some(Hash::of(line)));
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
