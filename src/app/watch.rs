//! Tells when a file has changed: by watching its folder, because files are replaced more often than written, and by a
//! stamp, because most events in a folder are about something else.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use super::build::Stamp;

/// An editor writes in several steps: the last of them counts.
const SETTLE: Duration = Duration::from_millis(150);

/// Watches until it is dropped.
pub struct Watcher {
    watcher: Option<RecommendedWatcher>,
    folders: BTreeSet<PathBuf>,
    stamps: Arc<Mutex<Vec<(PathBuf, Stamp)>>>,
}

/// Watches `files`; the receiver gets a word for every change that has settled.
pub fn start(files: &[PathBuf]) -> (Watcher, mpsc::Receiver<()>) {
    let (events, mut seen) = mpsc::unbounded_channel();
    let (changes, changed) = mpsc::channel(1);
    let stamps: Arc<Mutex<Vec<(PathBuf, Stamp)>>> = Arc::default();
    let known = Arc::clone(&stamps);
    tokio::task::spawn_local(async move {
        while seen.recv().await.is_some() {
            tokio::time::sleep(SETTLE).await;
            while seen.try_recv().is_ok() {}
            if restamp(&known) && changes.send(()).await.is_err() {
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
        tracing::warn!(%error, "files are not watched; reload with SIGHUP");
    }
    let watcher = Watcher { watcher: watcher.ok(), folders: BTreeSet::new(), stamps };
    (watcher.retarget(files), changed)
}

/// Stamps the files anew; whether any is another than before.
fn restamp(stamps: &Mutex<Vec<(PathBuf, Stamp)>>) -> bool {
    let mut stamps = stamps.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut is_changed = false;
    for (file, stamp) in stamps.iter_mut() {
        let now = Stamp::of(file);
        is_changed |= now != *stamp;
        *stamp = now;
    }
    is_changed
}

impl Watcher {
    /// Watches another set of files.
    #[must_use]
    pub fn retarget(mut self, files: &[PathBuf]) -> Self {
        let stamped = files.iter().map(|file| (file.clone(), Stamp::of(file))).collect();
        *self.stamps.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = stamped;
        let folders: BTreeSet<PathBuf> = files.iter().map(|file| folder_of(file)).collect();
        if let Some(watcher) = &mut self.watcher {
            for gone in self.folders.difference(&folders) {
                let _ = watcher.unwatch(gone);
            }
            for new in folders.difference(&self.folders) {
                if let Err(error) = watcher.watch(new, RecursiveMode::NonRecursive) {
                    tracing::warn!(%error, folder = %new.display(), "this folder is not watched; reload with SIGHUP");
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
