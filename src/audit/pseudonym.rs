//! Pseudonyms of users: only the holder of the key can link a pseudonym to its user.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;

/// Turns a user's key into its pseudonym: HMAC-SHA-256 (RFC 2104), cut to 128 bits.
pub struct Pseudonyms {
    key: hmac::Key,
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
        match std::fs::read_to_string(file) {
            Ok(text) => parse(text.trim()).map(Self::with_key).ok_or_else(|| failed("the pseudonym key is not valid".into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_new => {
                let key = random_key();
                write_secret(file, &format!("{}\n", hex::encode(key)))
                    .map_err(|error| failed(format!("cannot create the pseudonym key: {error}")))?;
                Ok(Self::with_key(key))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(failed(
                "the ledger is there, but its pseudonym key is not; restore it from a backup, or move the ledger away".into(),
            )),
            Err(error) => Err(failed(format!("cannot read the pseudonym key: {error}"))),
        }
    }

    /// Pseudonyms with a random key, which no other process can link to users.
    pub fn ephemeral() -> Self {
        Self::with_key(random_key())
    }

    fn with_key(key: [u8; 32]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, &key) }
    }

    pub fn of(&self, user: &str) -> String {
        let tag = hmac::sign(&self.key, user.as_bytes());
        hex::encode(tag.as_ref().first_chunk::<16>().expect("HMAC-SHA256 has 32 bytes"))
    }
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
