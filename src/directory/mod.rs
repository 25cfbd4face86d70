//! The user-to-region table, independent of its storage.
//!
//! Promises: a table is whole or refused, so no user moves because of a typing mistake; a lookup says whether a user is
//! absent or could not be looked up, and never confuses the two. Never: a raw key in an error or a log line.

mod file;

#[cfg(test)]
mod contract;

use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use crate::model::region::Registry;
use crate::model::user::Record;
use crate::model::vitals::TableVersion;

pub use file::{FileTable, RowError};

/// Where the table is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    pub file: PathBuf,
    /// The most percent of its users that a table may lose at a reload without an operator's confirmation.
    pub max_loss: u8,
    /// A file that has not changed for longer is reported.
    pub stale_after: Option<Duration>,
}

/// Users come and go, but a tenth of them at once is rather a file that was cut off.
pub const DEFAULT_MAX_LOSS: u8 = 10;

impl Settings {
    /// Fails if a table has lost more users than it may without an operator's confirmation. A user who was replaced by another
    /// is lost as well.
    pub fn check_loss(&self, before: &Directory, after: &Directory) -> Result<(), DirectoryError> {
        self.check_lost(before.len(), before.count_missing_in(after), after)
    }

    /// Fails if `lost` users of `had` are more than a table may lose.
    pub fn check_lost(&self, had: usize, lost: usize, after: &Directory) -> Result<(), DirectoryError> {
        let most = had.saturating_mul(usize::from(self.max_loss.min(100))) / 100;
        if lost <= most && (lost < had || had == 0) {
            return Ok(());
        }
        Err(DirectoryError::Loss { file: self.file.clone(), before: had, after: after.len(), lost, most: self.max_loss })
    }
}

/// Why a table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    #[error("`{}`: {}", file.display(), list(reasons))]
    Rows { file: PathBuf, reasons: Vec<RowError> },
    #[error(
        "`{}`: the user table has {after} users and had {before}, of whom {lost} are missing; it may lose {most} % at once: restore \
         the file, or confirm with `domicile reload --accept-loss`",
        file.display()
    )]
    Loss { file: PathBuf, before: usize, after: usize, lost: usize, most: u8 },
}

/// All mistakes of a table, as far as they are worth listing.
fn list(reasons: &[RowError]) -> String {
    const LISTED: usize = 20;
    let mut text = reasons.iter().take(LISTED).map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if reasons.len() > LISTED {
        text += &format!("; and {} more", reasons.len() - LISTED);
    }
    text
}

/// The answer to a look-up: a user who is absent is never confused with one who could not be looked up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    Found(Record),
    Absent,
    Unavailable,
}

/// The future of a look-up in a [`RemoteTable`].
pub type LookupFuture<'a> = Pin<Box<dyn Future<Output = Answer> + Send + 'a>>;

/// A user table outside this process. It may fail, and it may take its time: the caller sets a deadline.
pub trait RemoteTable: Send + Sync {
    fn find<'a>(&'a self, key: &'a str) -> LookupFuture<'a>;

    /// Equal versions mean equal records.
    fn version(&self) -> TableVersion;

    /// How many users it knows.
    fn user_count(&self) -> usize;
}

/// The table, by backend.
pub enum Directory {
    File(FileTable),
    Remote(Box<dyn RemoteTable>),
}

/// A user, the home and the jurisdiction.
pub type Person<'a> = (&'a str, &'a str, Option<&'a str>);

impl Directory {
    /// A table of these people, for test cases.
    pub fn of(people: &[Person<'_>], registry: &Registry) -> Result<Self, DirectoryError> {
        let wrap = |reasons| DirectoryError::Rows { file: "people".into(), reasons };
        FileTable::of(people, registry).map(Self::File).map_err(wrap)
    }

    pub fn open(settings: &Settings, registry: &Registry) -> Result<Self, DirectoryError> {
        let wrap = |reasons| DirectoryError::Rows { file: settings.file.clone(), reasons };
        FileTable::open(&settings.file, registry).map(Self::File).map_err(wrap)
    }

    /// Looks a user up. It may take as long as the backend takes: the caller sets a deadline.
    pub async fn find(&self, key: &str) -> Answer {
        match self {
            Self::File(table) => table.find(key).map_or(Answer::Absent, Answer::Found),
            Self::Remote(table) => table.find(key).await,
        }
    }

    /// The version of the table: equal versions mean equal records, in every region that has the same file.
    pub fn version(&self) -> TableVersion {
        match self {
            Self::File(table) => table.version(),
            Self::Remote(table) => table.version(),
        }
    }

    /// How many users it knows.
    pub fn len(&self) -> usize {
        match self {
            Self::File(table) => table.len(),
            Self::Remote(table) => table.user_count(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many of its users `other` does not have. A remote table checks its own changes.
    fn count_missing_in(&self, other: &Self) -> usize {
        match (self, other) {
            (Self::File(table), Self::File(other)) => table.count_missing_in(other),
            (Self::File(_) | Self::Remote(_), Self::Remote(_)) | (Self::Remote(_), Self::File(_)) => 0,
        }
    }
}
