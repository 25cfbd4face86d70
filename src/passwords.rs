//! Password files in the format of `htpasswd -B`: one `USER:HASH` per line, hashed by bcrypt.
//!
//! Promises: a password is checked away from the event loop, a few at a time in the whole process; one that was right is remembered only as a keyed
//! hash, until the file changes. Never: a password, or the name of a user, in an error or a log line.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use dashmap::DashSet;
use tokio::sync::Semaphore;

/// The highest cost: a check takes about a second. Each step doubles it.
const MAX_COST: u32 = 14;

/// The salt and the hash of no password. A user that does not exist is checked against them, with the highest cost in the file, so
/// that the time of an answer does not tell whether a user exists.
const NOBODY: &str = "abcdefghijklmnopqrstuuJ1aPpQ9VTiSMIoSHSS9UlKmFzHYPYaC";

/// The checks that run at the same time, and those that wait, so that guessing passwords does not take all cores.
const RUNNING: usize = 2;
const WAITING: usize = 100;

/// How long a check waits for others.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// The most passwords that are remembered; then all are forgotten.
const MAX_REMEMBERED: usize = 10_000;

/// Why a password file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`{}`: {reason}; write lines such as `htpasswd -nB USER` prints", file.display())]
pub struct PasswordError {
    file: PathBuf,
    reason: String,
}

/// The checks of all password files of the process.
pub struct Checks {
    running: Arc<Semaphore>,
    /// Those that run or wait.
    admitted: Arc<Semaphore>,
}

impl Default for Checks {
    fn default() -> Self {
        Self { running: Arc::new(Semaphore::new(RUNNING)), admitted: Arc::new(Semaphore::new(RUNNING + WAITING)) }
    }
}

/// Too many passwords are being checked.
#[derive(Debug, PartialEq, Eq)]
pub struct Busy;

/// The users of a password file.
pub struct Passwords {
    hashes: HashMap<Box<str>, Box<str>>,
    /// The hash that no password has.
    nobody: Box<str>,
    key: hmac::Key,
    /// Keyed hashes of users and passwords that were right.
    remembered: DashSet<[u8; 32]>,
}

impl Passwords {
    /// Reads a file. The passwords that `before` remembers stay remembered if the file has not changed.
    pub fn read(file: &Path, before: Option<&Arc<Self>>) -> Result<Arc<Self>, PasswordError> {
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
        if let Some(before) = before.filter(|before| before.hashes == hashes) {
            return Ok(Arc::clone(before));
        }
        let most = hashes.values().filter_map(|hash| cost_of(hash)).max().unwrap_or(MAX_COST);
        let nobody = format!("$2y${most:02}${NOBODY}").into();
        let mut key = [0; 32];
        aws_lc_rs::rand::fill(&mut key).map_err(|_| failed("the system gives no random numbers".into()))?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        Ok(Arc::new(Self { hashes, nobody, key, remembered: DashSet::new() }))
    }

    /// Whether this is the password of the user.
    ///
    /// # Errors
    /// [`Busy`] if too many checks wait, or this one has waited for too long.
    pub async fn admit(&self, checks: &Checks, user: &str, password: &[u8]) -> Result<bool, Busy> {
        let digest = self.digest(user, password);
        if self.remembered.contains(&digest) {
            return Ok(true);
        }
        let admitted = Arc::clone(&checks.admitted).try_acquire_owned().map_err(|_| Busy)?;
        let running = tokio::time::timeout(MAX_WAIT, Arc::clone(&checks.running).acquire_owned()).await;
        let Ok(Ok(running)) = running else { return Err(Busy) };
        let (hash, is_user) = match self.hashes.get(user) {
            Some(hash) => (hash.clone(), true),
            None => (self.nobody.clone(), false),
        };
        let password = password.to_vec();
        let check = move || {
            // A check cannot be cancelled, so it counts until its end, whether or not its client waits for it.
            let _counted = (running, admitted);
            bcrypt::verify(password, &hash).unwrap_or(false)
        };
        let is_right = tokio::task::spawn_blocking(check).await.unwrap_or(false) && is_user;
        if is_right {
            if self.remembered.len() >= MAX_REMEMBERED {
                self.remembered.clear();
            }
            self.remembered.insert(digest);
        }
        Ok(is_right)
    }

    fn digest(&self, user: &str, password: &[u8]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&(user.len() as u64).to_be_bytes());
        context.update(user.as_bytes());
        context.update(password);
        context.sign().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }
}

fn cost_of(hash: &str) -> Option<u32> {
    hash.get(4..6)?.parse().ok()
}

fn is_hash(text: &str) -> bool {
    let is_known = ["$2a$", "$2b$", "$2y$"].iter().any(|version| text.starts_with(version));
    let cost = cost_of(text);
    is_known
        && text.len() == 60
        && cost.is_some_and(|cost| (4..=MAX_COST).contains(&cost))
        && text.parse::<bcrypt::HashParts>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<Arc<Passwords>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Passwords::read(file.path(), None).map_err(|error| error.to_string())
    }

    #[test]
    fn only_the_right_password_of_a_user_is_admitted() {
        let hash = bcrypt::hash_with_result("open sesame", 4).unwrap().format_for_version(bcrypt::Version::TwoY);
        let passwords = file(&format!("# staff\nalice:{hash}\n\n")).unwrap();
        let checks = Checks::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            for _ in 0..2 {
                assert_eq!(passwords.admit(&checks, "alice", b"open sesame").await, Ok(true));
                for (user, password) in [("alice", "open"), ("alice", ""), ("bob", "open sesame"), ("", "open sesame")] {
                    assert_eq!(passwords.admit(&checks, user, password.as_bytes()).await, Ok(false), "{user}");
                }
            }
        });
        assert_eq!(passwords.remembered.len(), 1);
        assert!(is_hash(&passwords.nobody));
        assert_eq!(cost_of(&passwords.nobody), Some(4), "the check of an unknown user takes as long");
    }

    #[test]
    fn a_check_counts_until_its_end_although_its_client_has_gone() {
        let hash = bcrypt::hash("x", 10).unwrap();
        let (passwords, checks) = (file(&format!("alice:{hash}")).unwrap(), Checks::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            for _ in 0..RUNNING {
                let mut check = Box::pin(passwords.admit(&checks, "alice", b"y"));
                assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(check.as_mut().poll(cx).is_pending())).await);
            }
            assert_eq!(checks.running.available_permits(), 0);
            // As many wait as may, and one more is refused at once.
            let mut waiting: Vec<_> = (0..WAITING).map(|_| Box::pin(passwords.admit(&checks, "alice", b"y"))).collect();
            for check in &mut waiting {
                std::future::poll_fn(|cx| std::task::Poll::Ready(check.as_mut().poll(cx).is_pending())).await;
            }
            assert_eq!(passwords.admit(&checks, "alice", b"y").await, Err(Busy));
        });
    }

    #[test]
    fn a_file_that_has_not_changed_keeps_what_is_remembered() {
        let (hash, folder) = (bcrypt::hash("x", 4).unwrap(), tempfile::tempdir().unwrap());
        let file = folder.path().join("staff");
        std::fs::write(&file, format!("alice:{hash}\n")).unwrap();
        let first = Passwords::read(&file, None).unwrap();
        assert!(Arc::ptr_eq(&first, &Passwords::read(&file, Some(&first)).unwrap()));
        std::fs::write(&file, format!("bob:{hash}\n")).unwrap();
        assert!(!Arc::ptr_eq(&first, &Passwords::read(&file, Some(&first)).unwrap()));
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
