//! Who lives where: the user-to-region table, whatever stores it.
//!
//! Promises: a table is whole or refused, so no user moves because of a typing mistake; a lookup says whether a user is
//! absent or could not be looked up, and never confuses the two. Never: a raw key in an error or a log line.

mod file;

#[cfg(test)]
mod contract;

use std::path::PathBuf;

use crate::model::region::Registry;
use crate::model::user::Record;

pub use file::{FileTable, RowError};

/// Where the table is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    pub file: PathBuf,
}

/// Why a table cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`{}`: {reason}", file.display())]
pub struct DirectoryError {
    file: PathBuf,
    reason: RowError,
}

/// The table, by backend.
pub enum Directory {
    File(FileTable),
}

impl Directory {
    pub fn open(settings: &Settings, registry: &Registry) -> Result<Self, DirectoryError> {
        let wrap = |reason| DirectoryError { file: settings.file.clone(), reason };
        FileTable::open(&settings.file, registry).map(Self::File).map_err(wrap)
    }

    /// The record of a user; `None` if there is none.
    pub fn find(&self, key: &str) -> Option<Record> {
        match self {
            Self::File(table) => table.find(key),
        }
    }

    /// A fingerprint of what the table says: where it is the same, every record is. The same in every region that has the same file.
    pub fn version(&self) -> &str {
        match self {
            Self::File(table) => table.version(),
        }
    }

    /// How many users it knows.
    pub fn len(&self) -> usize {
        match self {
            Self::File(table) => table.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
