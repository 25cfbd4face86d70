//! Notices when a file has changed: at once where the kernel reports events in its folder, and within a second otherwise.
//!
//! Events alone are not enough: files behind links, folders that are replaced whole and folders that are made anew have no
//! events in the folder that is watched. So the stamps of all files are compared once a second as well.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use super::files::Stamp;

/// Editors write in several steps: events within this time are one change.
const SETTLE: Duration = Duration::from_millis(150);

/// How often the stamps are compared without an event.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Watches until it is dropped.
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
                () = tokio::time::sleep(LOOK_EVERY) => {}
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
        tracing::warn!(%error, "file events are not available; changes are noticed within a second");
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
    /// Watches another set of files. The stamps are those under which the files were read: a change since then is noticed,
    /// also one that happened while they were being read.
    #[must_use]
    pub fn retarget(mut self, stamps: Vec<Stamp>) -> Self {
        let folders: BTreeSet<PathBuf> = stamps.iter().map(|stamp| folder_of(&stamp.file)).collect();
        *self.stamps.lock().unwrap_or_else(PoisonError::into_inner) = stamps;
        if let Some(watcher) = &mut self.watcher {
            for gone in self.folders.difference(&folders) {
                let _ = watcher.unwatch(gone);
            }
            for new in folders.difference(&self.folders) {
                // Without events, changes are noticed within a second.
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
