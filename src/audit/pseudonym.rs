//! Pseudonyms of users: only the holder of the key can link a pseudonym to its user.
//!
//! A key serves for a period. When it is replaced, its file is kept under the time of its end, so that the lines of the period can
//! still be found by user; when that file is destroyed, they cannot.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::hmac;

use super::chain::now;

/// The beginning of the name of a key that was replaced; its end and `.key` follow.
const RETIRED: &str = "pseudonym-until-";

/// Turns a user's key into its pseudonym: HMAC-SHA-256 (RFC 2104), cut to 128 bits.
pub struct Pseudonyms {
    /// `None` for a key that only this process has.
    file: Option<PathBuf>,
    key: ArcSwap<hmac::Key>,
}

/// The key file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`{}`: {reason}; the file must contain 64 hexadecimal digits; without the original key, users in older ledger lines cannot be found", file.display())]
pub struct KeyError {
    file: PathBuf,
    reason: String,
}

impl Pseudonyms {
    /// Reads the key from a file. For a ledger that is new, it creates the file with a random key if it does not exist; the key of
    /// other ledgers must be there, because a new one would make the users in their lines other people.
    pub fn open(file: &Path, is_new: bool) -> Result<Self, KeyError> {
        let failed = |reason: String| KeyError { file: file.into(), reason };
        finish_rotation(file).map_err(|error| failed(format!("cannot finish the replacement of the pseudonym key: {error}")))?;
        match std::fs::read_to_string(file) {
            Ok(text) => {
                let key = parse(text.trim()).ok_or_else(|| failed("the pseudonym key is not valid".into()))?;
                Ok(Self::with_key(key, Some(file)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_new => {
                let key = random_key();
                write_secret(file, &format!("{}\n", hex::encode(key)))
                    .map_err(|error| failed(format!("cannot create the pseudonym key: {error}")))?;
                Ok(Self::with_key(key, Some(file)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(failed(
                "the ledger is there, but its pseudonym key is not; restore it from a backup, or move the ledger away".into(),
            )),
            Err(error) => Err(failed(format!("cannot read the pseudonym key: {error}"))),
        }
    }

    /// The keys of a ledger in this directory: those that were replaced, the oldest first, and the one in use.
    pub fn open_all(directory: &Path) -> Result<Vec<Self>, KeyError> {
        let failed =
            |error: io::Error| KeyError { file: directory.into(), reason: format!("cannot list this directory: {error}") };
        let mut keys = Vec::new();
        for (_, file) in retired(directory).map_err(failed)? {
            keys.push(Self::open(&file, false)?);
        }
        keys.push(Self::open(&directory.join("pseudonym.key"), false)?);
        Ok(keys)
    }

    /// Pseudonyms with a random key, which no other process can link to users.
    pub fn ephemeral() -> Self {
        Self::with_key(random_key(), None)
    }

    fn with_key(key: [u8; 32], file: Option<&Path>) -> Self {
        let key = ArcSwap::from_pointee(hmac::Key::new(hmac::HMAC_SHA256, &key));
        Self { file: file.map(Path::to_owned), key }
    }

    pub fn of(&self, user: &str) -> String {
        let tag = hmac::sign(&self.key.load(), user.as_bytes());
        hex::encode(tag.as_ref().first_chunk::<16>().expect("HMAC-SHA256 has 32 bytes"))
    }

    /// Replaces the key. Users have other pseudonyms from now on. Returns the file of the old key.
    pub fn rotate(&self) -> Result<PathBuf, KeyError> {
        let Some(file) = &self.file else {
            let reason = "this key is in memory only; add `audit` to the configuration, so that it is in a file".into();
            return Err(KeyError { file: "pseudonym.key".into(), reason });
        };
        let failed =
            |error: io::Error| KeyError { file: file.clone(), reason: format!("cannot replace the pseudonym key: {error}") };
        let key = random_key();
        let old = file.with_file_name(format!("{RETIRED}{}.key", now().replace(':', "-")));
        // A crash leaves the next key, with which the next start goes on.
        let _ = std::fs::remove_file(next(file));
        write_secret(&next(file), &format!("{}\n", hex::encode(key))).map_err(failed)?;
        std::fs::rename(file, &old).map_err(failed)?;
        std::fs::rename(next(file), file).and_then(|()| sync_folder(file)).map_err(failed)?;
        self.key.store(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &key)));
        Ok(old)
    }
}

fn next(file: &Path) -> PathBuf {
    file.with_extension("key.next")
}

/// Puts the next key into place if the process ended while it replaced the key.
fn finish_rotation(file: &Path) -> io::Result<()> {
    if !file.exists() && next(file).exists() {
        std::fs::rename(next(file), file)?;
        sync_folder(file)?;
    }
    Ok(())
}

fn sync_folder(file: &Path) -> io::Result<()> {
    File::open(file.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// The keys that were replaced, with their ends, the oldest first.
fn retired(directory: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().into_string().unwrap_or_default();
        if let Some(end) = name.strip_prefix(RETIRED).and_then(|rest| rest.strip_suffix(".key")) {
            found.push((end.to_owned(), entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// The keys that were replaced before a moment, such as `2026-12-01T00:00:00.000000Z`.
pub fn retired_before(directory: &Path, before: &str) -> io::Result<Vec<PathBuf>> {
    let before = before.replace(':', "-");
    Ok(retired(directory)?.into_iter().filter(|(end, _)| *end < before).map(|(_, file)| file).collect())
}

/// Destroys keys, so that nobody can link the pseudonyms of their periods to users. Backups are not reached.
pub fn destroy(files: &[PathBuf]) -> io::Result<()> {
    for file in files {
        let length = std::fs::metadata(file)?.len();
        let mut out = OpenOptions::new().write(true).open(file)?;
        out.write_all(&vec![0; usize::try_from(length).unwrap_or_default()])?;
        out.sync_all()?;
        std::fs::remove_file(file)?;
        sync_folder(file)?;
    }
    Ok(())
}

fn random_key() -> [u8; 32] {
    let mut key = [0; 32];
    aws_lc_rs::rand::fill(&mut key).expect("the system provides random bytes");
    key
}

/// Creates a file that only its owner can read, and its folder. Fails if the file exists.
pub(super) fn write_secret(file: &Path, text: &str) -> io::Result<()> {
    if let Some(directory) = file.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    out.write_all(text.as_bytes())?;
    out.sync_all()
}

fn parse(text: &str) -> Option<[u8; 32]> {
    let mut key = [0; 32];
    hex::decode_to_slice(text, &mut key).ok().map(|()| key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_key_still_finds_the_lines_of_its_period_until_it_is_destroyed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pseudonym.key");
        let pseudonyms = Pseudonyms::open(&file, true).unwrap();
        let first = pseudonyms.of("alice");
        let old = pseudonyms.rotate().unwrap();
        let second = pseudonyms.of("alice");
        assert_ne!(first, second);
        let all =
            |folder: &Path| -> Vec<String> { Pseudonyms::open_all(folder).unwrap().iter().map(|key| key.of("alice")).collect() };
        assert_eq!(all(folder.path()), [first, second.clone()]);
        assert_eq!(Pseudonyms::open(&file, false).unwrap().of("alice"), second, "another process has the new key");
        assert!(retired_before(folder.path(), "2026-01-01T00:00:00.000000Z").unwrap().is_empty());
        let ended = retired_before(folder.path(), "9999-01-01T00:00:00.000000Z").unwrap();
        assert_eq!(ended, std::slice::from_ref(&old));
        destroy(&ended).unwrap();
        assert_eq!(all(folder.path()), [second]);
        assert!(!old.exists());
    }

    #[test]
    fn a_crash_while_a_key_is_replaced_loses_no_key() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pseudonym.key");
        let pseudonyms = Pseudonyms::open(&file, true).unwrap();
        let old = pseudonyms.rotate().unwrap();
        let second = pseudonyms.of("alice");
        // Between the two renames, there is no file with the key's name.
        std::fs::rename(&file, next(&file)).unwrap();
        assert_eq!(Pseudonyms::open(&file, false).unwrap().of("alice"), second);
        // Before the first rename, the old key is still in use.
        std::fs::rename(&old, &file).unwrap();
        write_secret(&next(&file), &"0".repeat(64)).unwrap();
        let first = Pseudonyms::open(&file, false).unwrap();
        assert_ne!(first.of("alice"), second);
        first.rotate().expect("a leftover file does not stop a replacement");
    }
}
