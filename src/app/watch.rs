//! Detects file changes: at once if the kernel reports events in the file's folder, otherwise within a second.
//!
//! Events are not enough: a change behind a symbolic link, or of a folder that was replaced or created again, causes no event
//! in the watched folder. Therefore the stamps of all files are compared every second as well.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use super::files::Stamp;

/// Events within this time count as one change, because editors write in several steps.
const SETTLE: Duration = Duration::from_millis(150);

/// Interval at which the stamps are compared without an event.
const COMPARE_EVERY: Duration = Duration::from_secs(1);

/// Watches files until it is dropped.
pub struct Watcher {
    watcher: Option<RecommendedWatcher>,
    folders: BTreeSet<PathBuf>,
    stamps: Arc<Mutex<Vec<Stamp>>>,
}

/// Watches the files of `stamps`; the receiver gets a message for every change since they were stamped.
pub fn start(stamps: Vec<Stamp>) -> (Watcher, mpsc::Receiver<()>) {
    let (events, mut seen) = mpsc::unbounded_channel();
    let (changes, changed) = mpsc::channel(1);
    let known: Arc<Mutex<Vec<Stamp>>> = Arc::default();
    let compared = Arc::clone(&known);
    tokio::task::spawn_local(async move {
        loop {
            tokio::select! {
                event = seen.recv() => if event.is_none() { return },
                () = tokio::time::sleep(COMPARE_EVERY) => {}
                () = changes.closed() => return,
            }
            if !has_changed(&compared) {
                continue;
            }
            tokio::time::sleep(SETTLE).await;
            while seen.try_recv().is_ok() {}
            restamp(&compared);
            if changes.send(()).await.is_err() {
                return;
            }
        }
    });
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = events.send(());
        }
    });
    if let Err(error) = &watcher {
        tracing::warn!(%error, "file events are not available; checking the files every second");
    }
    let watcher = Watcher { watcher: watcher.ok(), folders: BTreeSet::new(), stamps: known };
    (watcher.retarget(stamps), changed)
}

fn has_changed(stamps: &Mutex<Vec<Stamp>>) -> bool {
    let stamps = stamps.lock().unwrap_or_else(PoisonError::into_inner);
    stamps.iter().any(|stamp| Stamp::of(&stamp.file) != *stamp)
}

fn restamp(stamps: &Mutex<Vec<Stamp>>) {
    let mut stamps = stamps.lock().unwrap_or_else(PoisonError::into_inner);
    stamps.iter_mut().for_each(|stamp| *stamp = Stamp::of(&stamp.file));
}

impl Watcher {
    /// Watches another set of files. The stamps must be older than the read of the files, so that a change during the read
    /// is detected.
    #[must_use]
    pub fn retarget(mut self, stamps: Vec<Stamp>) -> Self {
        let folders: BTreeSet<PathBuf> = stamps.iter().map(|stamp| folder_of(&stamp.file)).collect();
        *self.stamps.lock().unwrap_or_else(PoisonError::into_inner) = stamps;
        if let Some(watcher) = &mut self.watcher {
            for gone in self.folders.difference(&folders) {
                let _ = watcher.unwatch(gone);
            }
            for new in folders.difference(&self.folders) {
                // Without events, the comparison of stamps detects changes.
                if let Err(error) = watcher.watch(new, RecursiveMode::NonRecursive) {
                    tracing::debug!(%error, folder = %new.display(), "no file events for this folder");
                }
            }
        }
        self.folders = folders;
        self
    }
}

fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => ".".into(),
    }
}
