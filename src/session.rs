//! Seals values that the client stores as cookies: the home hint, and the upstream of a session.
//!
//! Promises: a value that opens was sealed with one of the keys, is unmodified and has not expired (AES-256-GCM, RFC 5116). The
//! first key in the file seals and every key opens, so that keys can be rotated without signing users out. Never: a raw key
//! in an error or a log line.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine};

use crate::model::vitals::TableVersion;

/// The cookie of the home hint. The prefix `__Host-` requires TLS, this host only and `Path=/`.
pub const COOKIE: &str = "__Host-domicile-home";

/// Authenticated with every hint, so that no other kind of sealed value can pass for one.
const PURPOSE: &[u8] = b"domicile home hint 3";

const NONCE: usize = 12;

/// The key file, and how long a hint is valid.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    pub keys: PathBuf,
    pub lifetime: Duration,
}

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`{}`: {reason}; write one key per line, each 32 random bytes in base64, as `openssl rand -base64 32` prints", file.display())]
pub struct SealError {
    file: PathBuf,
    reason: String,
}

/// The directory's record of a user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hint {
    pub user: String,
    /// The region's name.
    pub home: String,
    /// The jurisdiction's name, if the record has one.
    pub jurisdiction: Option<String>,
    /// The version of the directory from which the hint was made. The hint is valid only while that version is in use.
    pub table: TableVersion,
    pub expires: SystemTime,
}

/// The keys of a key file.
pub struct Keys(Vec<RandomizedNonceKey>);

impl Keys {
    pub fn read(file: &Path) -> Result<Self, SealError> {
        let failed = |reason: String| SealError { file: file.into(), reason };
        let text = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let key = |line: &str| {
            let bytes = BASE64_STANDARD.decode(line).ok().filter(|bytes| bytes.len() == 32)?;
            RandomizedNonceKey::new(&AES_256_GCM, &bytes).ok()
        };
        let keys: Option<Vec<_>> = lines.map(key).collect();
        match keys {
            Some(keys) if !keys.is_empty() => Ok(Self(keys)),
            Some(_) => Err(failed("contains no key".into())),
            None => Err(failed("contains a line that is not a valid key".into())),
        }
    }

    /// Seals a value for a cookie; it opens only for the same purpose.
    pub fn seal(&self, purpose: &[u8], mut value: Vec<u8>) -> Option<String> {
        let nonce = self.0.first()?.seal_in_place_append_tag(Aad::from(purpose), &mut value).ok()?;
        let mut sealed = nonce.as_ref().to_vec();
        sealed.extend_from_slice(&value);
        Some(BASE64_URL_SAFE_NO_PAD.encode(sealed))
    }

    /// Opens a value; `None` if no key opens it.
    pub fn open(&self, purpose: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let sealed = BASE64_URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let (nonce, value) = sealed.split_at_checked(NONCE)?;
        self.0.iter().find_map(|key| {
            let mut value = value.to_vec();
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            Some(key.open_in_place(nonce, Aad::from(purpose), &mut value).ok()?.to_vec())
        })
    }
}

/// Seals and opens hints.
pub struct Seal {
    pub settings: Settings,
    keys: Keys,
}

impl Seal {
    pub fn open_keys(settings: &Settings) -> Result<Self, SealError> {
        Ok(Self { settings: settings.clone(), keys: Keys::read(&settings.keys)? })
    }

    /// Seals a hint into a cookie value.
    pub fn seal(&self, hint: &Hint) -> Option<String> {
        let expires = hint.expires.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
        let Hint { user, home, table, .. } = hint;
        let jurisdiction = hint.jurisdiction.as_deref().unwrap_or_default();
        // Names contain no line feeds. The user's key may contain them, so it comes last.
        let text = format!("{expires}\n{table}\n{home}\n{jurisdiction}\n{user}");
        self.keys.seal(PURPOSE, text.into_bytes())
    }

    /// Opens a cookie value; `None` if no key opens it or the hint has expired.
    pub fn open(&self, value: &str, now: SystemTime) -> Option<Hint> {
        let text = String::from_utf8(self.keys.open(PURPOSE, value.as_bytes())?).ok()?;
        let mut parts = text.splitn(5, '\n').map(str::to_owned);
        let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(parts.next()?.parse().ok()?);
        let (table, home) = (TableVersion::parse(&parts.next()?)?, parts.next()?);
        let jurisdiction = Some(parts.next()?).filter(|name| !name.is_empty());
        let hint = Hint { user: parts.next()?, home, jurisdiction, table, expires };
        (now < expires).then_some(hint)
    }
}

impl Settings {
    /// The key file, to be watched for changes.
    pub fn file(&self) -> &Path {
        &self.keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(keys: &[u8]) -> Seal {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines: Vec<_> = keys.iter().map(|byte| BASE64_STANDARD.encode([*byte; 32])).collect();
        std::fs::write(file.path(), lines.join("\n")).unwrap();
        Seal::open_keys(&Settings { keys: file.path().into(), lifetime: Duration::from_secs(300) }).unwrap()
    }

    #[test]
    fn a_hint_opens_whole_in_time_and_under_a_known_key() {
        let (seal, now) = (seal(&[1]), SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        let hint = |jurisdiction: Option<&str>| Hint {
            user: "alice\nof the north".into(),
            home: "eu-west".into(),
            jurisdiction: jurisdiction.map(str::to_owned),
            table: TableVersion([7; 16]),
            expires: now + Duration::from_secs(300),
        };
        for given in [hint(None), hint(Some("uk"))] {
            assert_eq!(seal.open(&seal.seal(&given).unwrap(), now), Some(given));
        }
        let given = hint(None);
        let sealed = seal.seal(&given).unwrap();
        assert_eq!(seal.open(&sealed, now + Duration::from_secs(300)), None, "the hint has expired");
        assert_ne!(sealed, seal.seal(&given).unwrap(), "every seal uses a new nonce");
        for at in 0..sealed.len() {
            let mut forged = sealed.clone().into_bytes();
            forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(seal.open(std::str::from_utf8(&forged).unwrap(), now), None, "byte {at}");
        }
        for bad in ["", "A", "!!!", &sealed[..20]] {
            assert_eq!(seal.open(bad, now), None);
        }
        assert_eq!(self::seal(&[2]).open(&sealed, now), None, "an unknown key");
        assert!(self::seal(&[2, 1]).open(&sealed, now).is_some(), "an older key still opens");
    }

    #[test]
    fn a_file_without_keys_is_refused() {
        for text in ["", "short", "AAAA\n"] {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            let error =
                Seal::open_keys(&Settings { keys: file.path().into(), lifetime: Duration::ZERO }).err().unwrap().to_string();
            assert!(error.contains("openssl rand"), "{error}");
        }
    }
}
