//! The files of a configuration: lists them, waits until they stop changing, and detects changes.
//!
//! A partly written file can be valid and have weaker rules. Therefore files are read only after they have stopped changing,
//! and their contents count only if the files are unchanged afterwards.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use crate::config::Settings;
use crate::transport::tls::CertificateFiles;

/// Time without a change before a file is read; longer than the pause between two writes of one program.
const QUIET: Duration = Duration::from_millis(250);

/// Maximum time to wait for a file that keeps changing.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The metadata that shows whether a file was replaced or changed. Symbolic links are followed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stamp {
    pub file: PathBuf,
    identity: Option<FileIdentity>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    is_regular: bool,
}

impl Stamp {
    pub fn of(file: &Path) -> Self {
        use std::os::unix::fs::MetadataExt;
        let identity = std::fs::metadata(file).ok().map(|meta| FileIdentity {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
            is_regular: meta.is_file(),
        });
        Self { file: file.into(), identity }
    }

    /// When the content was last changed; `None` for an absent file.
    pub fn modified(&self) -> Option<SystemTime> {
        let (seconds, nanos) = self.identity?.modified;
        Some(SystemTime::UNIX_EPOCH + Duration::new(seconds.try_into().ok()?, nanos.try_into().ok()?))
    }

    /// Whether the file has not changed for [`QUIET`]; an absent file is quiet.
    fn is_quiet(&self, now: SystemTime) -> bool {
        let Some(FileIdentity { changed: (seconds, nanos), .. }) = self.identity else { return true };
        let (Ok(seconds), Ok(nanos)) = (u64::try_from(seconds), u32::try_from(nanos)) else { return true };
        let changed = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
        now.duration_since(changed).is_ok_and(|age| age >= QUIET)
    }
}

/// Why a file was not read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unsettled {
    #[error("`{}`: this file keeps changing and was not read; write it elsewhere and rename it into place", .0.display())]
    Changing(PathBuf),
    /// Reading a pipe or a device may never end.
    #[error("`{}`: this is not a regular file; write its content to a file, because it is read again at every reload", .0.display())]
    Special(PathBuf),
}

/// Waits until no file changes any more; returns their stamps.
pub fn settle(files: &[PathBuf]) -> Result<Vec<Stamp>, Unsettled> {
    let started = Instant::now();
    let (mut before, mut since) = (stamps(files), Instant::now());
    loop {
        let now = SystemTime::now();
        // The clock of a file system may differ from ours, so a file that did not change during the wait is quiet as well.
        let noisy = before.iter().find(|stamp| !stamp.is_quiet(now));
        if let Some(special) = before.iter().find(|stamp| stamp.identity.is_some_and(|identity| !identity.is_regular)) {
            return Err(Unsettled::Special(special.file.clone()));
        }
        let Some(noisy) = noisy.filter(|_| since.elapsed() < QUIET) else { return Ok(before) };
        if started.elapsed() > SETTLE_TIMEOUT {
            return Err(Unsettled::Changing(noisy.file.clone()));
        }
        std::thread::sleep(QUIET / 5);
        let after = stamps(files);
        if after != before {
            (before, since) = (after, Instant::now());
        }
    }
}

/// Waits until one file stops changing; returns its stamp.
pub fn settle_one(file: &Path) -> Result<Stamp, Unsettled> {
    settle(&[file.to_owned()])?.pop().ok_or_else(|| Unsettled::Changing(file.to_owned()))
}

/// The current stamps of the files.
pub fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    files.iter().map(|file| Stamp::of(file)).collect()
}

/// Fails if a file has changed since it was stamped.
pub fn check_unchanged(stamps: &[Stamp]) -> Result<(), Unsettled> {
    match stamps.iter().find(|stamp| Stamp::of(&stamp.file) != **stamp) {
        Some(changed) => Err(Unsettled::Changing(changed.file.clone())),
        None => Ok(()),
    }
}

/// The tables. A reload proceeds without a table that keeps changing or that cannot be read.
pub fn tables_of(settings: &Settings) -> Vec<PathBuf> {
    let geoip = settings.geoip.as_ref().map(|settings| settings.database.clone());
    let tokens = settings.tokens.as_ref().map(|settings| settings.file().to_owned());
    let directory = settings.directory.as_ref().map(|settings| settings.file.clone());
    geoip.into_iter().chain(tokens).chain(directory).collect()
}

/// The files that a reload requires. If one of them is unusable, the reload changes nothing.
pub fn of_settings(settings: &Settings) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let pair = |pair: &CertificateFiles| [pair.certificate.clone(), pair.key.clone()];
    for tls in settings.listeners.iter().filter_map(|listener| listener.tls.as_ref()) {
        files.extend(tls.certificates.iter().flat_map(pair));
        files.extend(tls.clients.iter().map(|clients| clients.authority.clone()));
    }
    if let Some(peers) = &settings.peer_tls {
        files.extend(pair(&peers.own));
        files.push(peers.authority.clone());
        files.extend(peers.revoked.iter().cloned());
    }
    files.extend(settings.service_files().cloned());
    files.extend(settings.password_files().cloned());
    files.extend(settings.seal.as_ref().map(|settings| settings.file().to_owned()));
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_being_written_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("users.csv");
        std::fs::write(&file, "a").unwrap();
        let writer = {
            let file = file.clone();
            std::thread::spawn(move || {
                for rows in 1..=8 {
                    std::thread::sleep(Duration::from_millis(60));
                    std::fs::write(&file, "a".repeat(rows * 10)).unwrap();
                }
            })
        };
        let stamps = settle(&[file.clone(), folder.path().join("absent")]).unwrap();
        writer.join().unwrap();
        assert_eq!(stamps[0], Stamp::of(&file), "the last write was waited for");
        assert!(check_unchanged(&stamps).is_ok());
        std::fs::write(&file, "other").unwrap();
        assert!(check_unchanged(&stamps).unwrap_err().to_string().contains("users.csv"));
    }
}
