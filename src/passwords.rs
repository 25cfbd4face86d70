//! Password files in the format of `htpasswd -B`: one `USER:HASH` per line, hashed by bcrypt.
//!
//! Promises: a password is checked away from the event loop, at most two at a time; one that was right is remembered only as a keyed
//! hash, until the file changes. Never: a password, or the name of a user, in an error or a log line.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::hmac;
use dashmap::DashSet;
use tokio::sync::Semaphore;

/// The highest cost: a check takes about a second. Each step doubles it.
const MAX_COST: u32 = 14;

/// A hash of no password, for users that do not exist, so that the time of an answer does not tell whether a user exists.
const NOBODY: &str = "$2y$10$abcdefghijklmnopqrstuuJ1aPpQ9VTiSMIoSHSS9UlKmFzHYPYaC";

/// The checks that run at the same time. Others wait, so that guessing passwords does not take all cores.
const CONCURRENT: usize = 2;

/// The most passwords that are remembered; then all are forgotten.
const MAX_REMEMBERED: usize = 10_000;

/// Why a password file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`{}`: {reason}; write lines such as `htpasswd -nB USER` prints", file.display())]
pub struct PasswordError {
    file: PathBuf,
    reason: String,
}

/// The users of a password file.
pub struct Passwords {
    hashes: HashMap<Box<str>, Box<str>>,
    key: hmac::Key,
    /// Keyed hashes of users and passwords that were right.
    remembered: DashSet<[u8; 32]>,
    checks: Semaphore,
}

impl Passwords {
    pub fn read(file: &Path) -> Result<Self, PasswordError> {
        let failed = |reason: String| PasswordError { file: file.into(), reason };
        let text = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
        let mut hashes = HashMap::new();
        let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
        for (number, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            let parsed = line.split_once(':').filter(|(user, hash)| !user.is_empty() && is_hash(hash));
            let Some((user, hash)) = parsed else {
                return Err(failed(format!("line {number} is not a user and a bcrypt hash of cost 4 to {MAX_COST}")));
            };
            if hashes.insert(user.into(), hash.into()).is_some() {
                return Err(failed(format!("line {number} names a user again")));
            }
        }
        if hashes.is_empty() {
            return Err(failed("contains no user".into()));
        }
        let mut key = [0; 32];
        aws_lc_rs::rand::fill(&mut key).map_err(|_| failed("the system gives no random numbers".into()))?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        Ok(Self { hashes, key, remembered: DashSet::new(), checks: Semaphore::new(CONCURRENT) })
    }

    /// Whether this is the password of the user.
    pub async fn admit(self: &Arc<Self>, user: &str, password: &[u8]) -> bool {
        let digest = self.digest(user, password);
        if self.remembered.contains(&digest) {
            return true;
        }
        let Ok(_check) = self.checks.acquire().await else { return false };
        let hash = self.hashes.get(user).map(|hash| hash.to_string());
        let (is_user, password) = (hash.is_some(), password.to_vec());
        let check = move || bcrypt::verify(password, hash.as_deref().unwrap_or(NOBODY)).unwrap_or(false);
        let is_right = tokio::task::spawn_blocking(check).await.unwrap_or(false) && is_user;
        if is_right {
            if self.remembered.len() >= MAX_REMEMBERED {
                self.remembered.clear();
            }
            self.remembered.insert(digest);
        }
        is_right
    }

    fn digest(&self, user: &str, password: &[u8]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&(user.len() as u64).to_be_bytes());
        context.update(user.as_bytes());
        context.update(password);
        context.sign().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }
}

fn is_hash(text: &str) -> bool {
    let is_known = ["$2a$", "$2b$", "$2y$"].iter().any(|version| text.starts_with(version));
    let cost = text.get(4..6).and_then(|cost| cost.parse::<u32>().ok());
    is_known
        && text.len() == 60
        && cost.is_some_and(|cost| (4..=MAX_COST).contains(&cost))
        && text.parse::<bcrypt::HashParts>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<Passwords, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Passwords::read(file.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn only_the_right_password_of_a_user_is_admitted() {
        let hash = bcrypt::hash_with_result("open sesame", 4).unwrap().format_for_version(bcrypt::Version::TwoY);
        let passwords = Arc::new(file(&format!("# staff\nalice:{hash}\n\n")).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            for _ in 0..2 {
                assert!(passwords.admit("alice", b"open sesame").await);
                for (user, password) in [("alice", "open"), ("alice", ""), ("bob", "open sesame"), ("", "open sesame")] {
                    assert!(!passwords.admit(user, password.as_bytes()).await, "{user}");
                }
            }
        });
        assert_eq!(passwords.remembered.len(), 1);
        assert!(is_hash(NOBODY), "the check of an unknown user takes as long");
    }

    #[test]
    fn a_file_with_another_line_is_refused() {
        let hash = bcrypt::hash("x", 4).unwrap();
        for (text, reason) in [
            (String::new(), "contains no user"),
            ("alice:$apr1$x$y".into(), "line 1 is not a user and a bcrypt hash"),
            (format!("a:{hash}\nalice:{}", hash.replace("$04$", "$20$")), "line 2 is not a user and a bcrypt hash"),
            (format!("a:{hash}\na:{hash}"), "line 2 names a user again"),
            (format!(":{hash}"), "line 1 is not"),
        ] {
            let error = file(&text).err().unwrap();
            assert!(error.contains(reason) && error.contains("htpasswd -nB") && !error.contains("$04$"), "{error}");
        }
    }
}
