//! A table from a file: CSV with the columns `user,home[,jurisdiction]`, or YAML with a user a key.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use aws_lc_rs::digest;
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use serde::Deserialize;

use crate::model::jurisdiction::JurisdictionId;
use crate::model::region::{RegionId, Registry};
use crate::model::user::Record;

/// The longest key a user may have, in bytes.
const MAX_KEY: usize = 256;

/// What is wrong with a file, by line where it has lines. Keys stay out of it: logs are no place for them.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    #[error("cannot read the user table: {0}")]
    Unreadable(#[from] io::Error),
    #[error("is no CSV: {0}")]
    Csv(#[from] csv::Error),
    #[error("is no YAML of users: {0}")]
    Yaml(String),
    #[error("the first line names the columns: write `user,home` or `user,home,jurisdiction`")]
    Columns,
    #[error("{at}: the user is empty or longer than {MAX_KEY} bytes")]
    Key { at: String },
    #[error("{at}: unknown region `{name}`; add it under `regions`, or correct the row")]
    Region { at: String, name: String },
    #[error("{at}: unknown jurisdiction `{name}`; add it under `jurisdictions`, or correct the row")]
    Jurisdiction { at: String, name: String },
    #[error("{at}: this user stands in the table already, with another home")]
    Twice { at: String },
}

/// A table that is held in memory.
pub struct FileTable {
    users: HashMap<Box<str>, Record>,
    version: String,
}

impl FileTable {
    /// Reads a file, by its ending: `.yaml` and `.yml` as YAML, anything else as CSV.
    pub fn open(file: &Path, registry: &Registry) -> Result<Self, RowError> {
        let bytes = std::fs::read(file)?;
        let is_yaml = file.extension().is_some_and(|ending| ending == "yaml" || ending == "yml");
        let table = if is_yaml { Self::from_yaml(&bytes, registry) } else { Self::from_csv(&bytes, registry) }?;
        let digest = digest::digest(&digest::SHA256, &bytes);
        Ok(Self { version: BASE64_URL_SAFE_NO_PAD.encode(digest), ..table })
    }

    fn with_capacity(users: usize) -> Self {
        Self { users: HashMap::with_capacity(users), version: String::new() }
    }

    fn from_csv(bytes: &[u8], registry: &Registry) -> Result<Self, RowError> {
        let mut reader = csv::ReaderBuilder::new().comment(Some(b'#')).trim(csv::Trim::All).from_reader(bytes);
        let columns = reader.headers()?;
        let has_jurisdiction = match columns.iter().collect::<Vec<_>>().as_slice() {
            ["user", "home"] => false,
            ["user", "home", "jurisdiction"] => true,
            _ => return Err(RowError::Columns),
        };
        // A row is about 20 bytes: reserving once saves half of the loading time.
        let mut table = Self::with_capacity(bytes.len() / 24);
        let mut row = csv::StringRecord::new();
        while reader.read_record(&mut row)? {
            let at = || format!("line {}", row.position().map_or(0, csv::Position::line));
            let jurisdiction = row.get(2).filter(|name| has_jurisdiction && !name.is_empty());
            let record = resolve(&row[1], jurisdiction, registry, &at)?;
            table.insert(&row[0], record, &at)?;
        }
        table.users.shrink_to_fit();
        Ok(table)
    }

    fn from_yaml(bytes: &[u8], registry: &Registry) -> Result<Self, RowError> {
        let rows: HashMap<String, YamlRow> = serde_yaml::from_slice(bytes).map_err(|error| {
            let place = error.location().map_or(String::new(), |at| format!("line {}: ", at.line()));
            RowError::Yaml(format!(
                "{place}write `USER: REGION` or `USER: {{ home: REGION, jurisdiction: NAME }}`, each user once"
            ))
        })?;
        let mut table = Self::with_capacity(rows.len());
        for (user, row) in rows {
            let at = || "a row".to_owned();
            let (home, jurisdiction) = match &row {
                YamlRow::Home(home) => (home, None),
                YamlRow::Full { home, jurisdiction } => (home, jurisdiction.as_deref()),
            };
            let record = resolve(home, jurisdiction, registry, &at)?;
            table.insert(&user, record, &at)?;
        }
        Ok(table)
    }

    fn insert(&mut self, key: &str, record: Record, at: &dyn Fn() -> String) -> Result<(), RowError> {
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(RowError::Key { at: at() });
        }
        match self.users.insert(key.into(), record) {
            Some(before) if before != record => Err(RowError::Twice { at: at() }),
            _ => Ok(()),
        }
    }

    pub fn find(&self, key: &str) -> Option<Record> {
        self.users.get(key).copied()
    }

    /// The hash of the file (SHA-256).
    pub fn version(&self) -> &str {
        &self.version
    }

    pub fn len(&self) -> usize {
        self.users.len()
    }

    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum YamlRow {
    Home(String),
    Full { home: String, jurisdiction: Option<String> },
}

fn resolve(home: &str, jurisdiction: Option<&str>, registry: &Registry, at: &dyn Fn() -> String) -> Result<Record, RowError> {
    let region = registry.regions.find(home).and_then(RegionId::new);
    let region = region.ok_or_else(|| RowError::Region { at: at(), name: shown(home) })?;
    let jurisdiction = match jurisdiction {
        None => None,
        Some(name) => {
            let found = registry.jurisdictions.find(name).and_then(JurisdictionId::new);
            Some(found.ok_or_else(|| RowError::Jurisdiction { at: at(), name: shown(name) })?)
        }
    };
    Ok(Record { home: region, jurisdiction })
}

/// A name as a message may show it: a column that slipped could hold a user's key.
fn shown(name: &str) -> String {
    let plain = name.len() <= 63 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if plain { name.into() } else { "(not a name)".into() }
}
