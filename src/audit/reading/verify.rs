//! Verifies the hash chain of a ledger and the signatures of its checkpoints.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::super::chain::{Hash, place_of};
use super::super::signing::{Checkpoint, PublicKey};

/// A ledger that verifies.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    pub lines: u64,
    pub checkpoints: u64,
    /// The lines after the last checkpoint, which no signature covers yet.
    pub unsigned: u64,
    /// The number of processes that wrote it.
    pub epochs: usize,
    /// The keys that signed checkpoints, in the order of their first.
    pub keys: Vec<PublicKey>,
    /// The key that signs the next checkpoint; `None` before the first.
    pub signer: Option<PublicKey>,
    /// The hash of the last line.
    pub head: Option<Hash>,
}

/// The first line that does not verify.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error("`{}`, line {line}: {reason}", file.display())]
    Line { file: PathBuf, line: u64, reason: String },
    #[error("cannot read `{}`: {error}; run this as the user of the process, or name the files of the ledger", file.display())]
    Unreadable { file: PathBuf, error: io::Error },
    #[error("no line has the hash {0}: the ledger was cut off or rewritten after that hash was noted, or it is another ledger")]
    Absent(Hash),
}

/// The requirements on a ledger.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The hash before the first line; `None` if it is not known.
    pub after: Option<Hash>,
    /// A key that must have signed. Keys before and after it are linked to it by checkpoints. `None` for any.
    pub key: Option<PublicKey>,
    /// Hashes that were noted earlier; each must be that of a line.
    pub noted: Vec<Hash>,
}

/// The files of a ledger in their order: those that were rotated, then the current one.
pub fn files_of(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files: Vec<_> = std::fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    files.retain(|file| {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("ledger-") && name.ends_with(".jsonl")
    });
    files.sort();
    let current = directory.join("ledger.jsonl");
    files.extend(current.exists().then_some(current));
    Ok(files)
}

/// Verifies files that follow each other.
pub fn verify(files: &[PathBuf], expected: &Expected) -> Result<Verified, Broken> {
    read(files, expected, |_| {})
}

/// Verifies files that follow each other, and calls `each` with every line that verifies, without its line feed.
pub fn read(files: &[PathBuf], expected: &Expected, mut each: impl FnMut(&str)) -> Result<Verified, Broken> {
    let mut verifier = Verifier::new(expected.clone());
    let mut first_signed = None;
    for file in files {
        let unreadable = |error| Broken::Unreadable { file: file.clone(), error };
        let mut reader = BufReader::with_capacity(1 << 18, File::open(file).map_err(unreadable)?);
        let (mut text, mut number) = (Vec::new(), 0_u64);
        loop {
            text.clear();
            if reader.read_until(b'\n', &mut text).map_err(unreadable)? == 0 {
                break;
            }
            number = number.saturating_add(1);
            let line = verifier.take(&text).map_err(|(back, reason)| Broken::Line {
                file: file.clone(),
                line: number.saturating_sub(back).max(1),
                reason,
            })?;
            each(line);
            if verifier.seen.checkpoints == 1 && first_signed.is_none() {
                first_signed = Some((file.clone(), number));
            }
        }
    }
    let unknown = verifier.unknown_key();
    match (unknown, first_signed) {
        (Some(reason), Some((file, line))) => Err(Broken::Line { file, line, reason }),
        _ => verifier.finish(),
    }
}

/// The fields of a checkpoint.
#[derive(Deserialize)]
struct CheckpointLine<'a> {
    key: &'a str,
    #[serde(default)]
    next: Option<&'a str>,
    region: &'a str,
    signature: &'a str,
    time: &'a str,
}

struct Verifier {
    expected: Expected,
    seen: Verified,
    /// The number of the last line of each process.
    numbers: HashMap<String, u64>,
    /// The process that wrote the last line.
    last: Option<String>,
}

/// How many lines before the current one the fault is, and its description.
type Fault = (u64, String);

impl Verifier {
    fn new(expected: Expected) -> Self {
        Self { seen: Verified { head: expected.after, ..Verified::default() }, expected, numbers: HashMap::new(), last: None }
    }

    /// Verifies the next line, and returns it without its line feed.
    fn take<'t>(&mut self, text: &'t [u8]) -> Result<&'t str, Fault> {
        let line = text.strip_suffix(b"\n").ok_or((0, "this line is torn: it has no line feed".to_owned()))?;
        let line = std::str::from_utf8(line).map_err(|_| (0, "this line is not UTF-8".to_owned()))?;
        let place = place_of(line).ok_or((0, "this line does not begin with its place in the chain".to_owned()))?;
        let number = self.numbers.get(place.epoch).copied();
        if let Some(head) = self.seen.head
            && head != place.previous
        {
            return Err(self.break_at(place.number, number, place.epoch, head, place.previous));
        }
        if let Some(number) = number
            && number.checked_add(1) != Some(place.number)
        {
            return Err((0, format!("this line has the number {} after {number}: the process lost lines", place.number)));
        }
        if number.is_none() && place.number != 1 && self.expected.after == Some(Hash::BEGINNING) {
            return Err((0, format!("this is the first line of its process and has the number {}", place.number)));
        }
        self.numbers.insert(place.epoch.to_owned(), place.number);
        self.last = Some(place.epoch.to_owned());
        self.seen.unsigned = self.seen.unsigned.saturating_add(1);
        if line.contains("\"kind\":\"checkpoint\"") {
            self.check_signature(line, place.previous)?;
        }
        let hash = Hash::of(line.as_bytes());
        self.expected.noted.retain(|noted| *noted != hash);
        self.seen.head = Some(hash);
        self.seen.lines = self.seen.lines.saturating_add(1);
        Ok(line)
    }

    /// Describes a line that does not follow the one before it.
    fn break_at(&self, number: u64, before: Option<u64>, epoch: &str, head: Hash, previous: Hash) -> Fault {
        if self.seen.lines == 0 {
            let begins = if head == Hash::BEGINNING {
                "the beginning of the ledger is missing"
            } else {
                "another line is missing before it"
            };
            return (
                0,
                format!(
                    "{begins}: this line follows a line with the hash {previous}; name the older files too, or pass `--after` that hash"
                ),
            );
        }
        let follows = before.is_none_or(|before| before.checked_add(1) == Some(number))
            && (before.is_some() || self.last.as_deref() != Some(epoch));
        if follows {
            let reason =
                format!("this line was changed: its hash is {head}, and the next line follows one with the hash {previous}");
            return (1, reason);
        }
        let what = if before.is_some_and(|before| number > before) {
            "lines are missing before this one"
        } else {
            "this line was inserted or moved"
        };
        (0, format!("{what}: it follows a line with the hash {previous}, and the one before it has {head}"))
    }

    fn check_signature(&mut self, line: &str, previous: Hash) -> Result<(), Fault> {
        let fault = |reason: String| (0, reason);
        let fields: CheckpointLine<'_> =
            serde_json::from_str(line).map_err(|error| fault(format!("this checkpoint is not valid: {error}")))?;
        let key = PublicKey::parse(fields.key).ok_or_else(|| fault("the key of this checkpoint is not valid".into()))?;
        if let Some(expected) = self.seen.signer.filter(|expected| *expected != key) {
            return Err(fault(format!("this checkpoint is signed with the key {key} instead of {expected}")));
        }
        let checkpoint = Checkpoint { region: fields.region, previous, time: fields.time, next: fields.next };
        if !key.has_signed(&checkpoint, fields.signature) {
            return Err(fault("the signature of this checkpoint is wrong".into()));
        }
        let parse = |next| PublicKey::parse(next).ok_or_else(|| fault("the next key of this checkpoint is not valid".into()));
        self.seen.signer = Some(fields.next.map(parse).transpose()?.unwrap_or(key));
        if !self.seen.keys.contains(&key) {
            self.seen.keys.push(key);
        }
        self.seen.checkpoints = self.seen.checkpoints.saturating_add(1);
        self.seen.unsigned = 0;
        Ok(())
    }

    /// Whether the expected key has signed nothing, in words.
    fn unknown_key(&self) -> Option<String> {
        let (expected, first) = self.expected.key.zip(self.seen.keys.first())?;
        let is_unknown = !self.seen.keys.contains(&expected);
        is_unknown.then(|| format!("this checkpoint is signed with the key {first}, and {expected} has signed no checkpoint"))
    }

    fn finish(mut self) -> Result<Verified, Broken> {
        if let Some(noted) = self.expected.noted.first() {
            return Err(Broken::Absent(*noted));
        }
        self.seen.epochs = self.numbers.len();
        Ok(self.seen)
    }
}
