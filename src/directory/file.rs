//! A table from a file: CSV with the columns `user,home[,jurisdiction]`, or YAML with a user a key.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use aws_lc_rs::digest;
use serde::Deserialize;

use crate::model::jurisdiction::JurisdictionId;
use crate::model::region::{RegionId, Registry};
use crate::model::user::Record;
use crate::model::vitals::TableVersion;

use super::Person;

/// The longest key a user may have, in bytes.
const MAX_KEY: usize = 256;

/// The mistakes in a file, by line. It contains no user keys, because keys must not reach the log.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    #[error("cannot read the user table: {0}")]
    Unreadable(#[from] io::Error),
    #[error("is not valid CSV: {0}")]
    Csv(#[from] csv::Error),
    #[error("line {line}: this row is not valid UTF-8")]
    Encoding { line: u64 },
    #[error("is not a valid YAML table of users: {0}")]
    Yaml(String),
    #[error("line {line}: write `USER: REGION` or `USER: {{ home: REGION, jurisdiction: NAME }}`")]
    Row { line: u64 },
    #[error("the first line names the columns: write `user,home` or `user,home,jurisdiction`")]
    Columns,
    #[error(
        "the last line does not end in a line feed, so the file may have been cut off; write it whole, with a line feed at its end"
    )]
    CutOff,
    #[error("the table has no users; if that is intended, remove `users.directory` from the configuration")]
    Empty,
    #[error("line {line}: this row has {found} columns instead of {expected}")]
    Width { line: u64, found: usize, expected: usize },
    #[error("line {line}: the user is empty or longer than {MAX_KEY} bytes")]
    Key { line: u64 },
    #[error("line {line}: unknown region `{name}`; add it under `regions`, or correct the row")]
    Region { line: u64, name: String },
    #[error("line {line}: unknown jurisdiction `{name}`; add it under `jurisdictions`, or correct the row")]
    Jurisdiction { line: u64, name: String },
    #[error("line {line}: this user is already in the table, with another home")]
    Twice { line: u64 },
}

/// A table that is held in memory.
pub struct FileTable {
    users: HashMap<Box<str>, Record>,
    version: TableVersion,
}

impl FileTable {
    /// Reads a file, by its ending: `.yaml` and `.yml` as YAML, anything else as CSV. All mistakes are reported at once.
    pub fn open(file: &Path, registry: &Registry) -> Result<Self, Vec<RowError>> {
        let bytes = std::fs::read(file).map_err(|error| vec![error.into()])?;
        // A row that was cut off can still parse, with another home or without its jurisdiction.
        if bytes.last().is_some_and(|last| *last != b'\n') {
            return Err(vec![RowError::CutOff]);
        }
        let is_yaml = file.extension().is_some_and(|ending| ending == "yaml" || ending == "yml");
        let table = if is_yaml { Self::from_yaml(&bytes, registry) } else { Self::from_csv(&bytes, registry) }?;
        if table.is_empty() {
            return Err(vec![RowError::Empty]);
        }
        Ok(Self { version: version_of(&bytes), ..table })
    }

    /// A table of these people, for test cases.
    pub fn of(people: &[Person<'_>], registry: &Registry) -> Result<Self, Vec<RowError>> {
        let mut table = Self::with_capacity(people.len());
        let insert = |(index, (user, home, jurisdiction)): (usize, &Person<'_>)| {
            let row = csv::StringRecord::from(vec![*user, home, jurisdiction.unwrap_or_default()]);
            table.insert_row(&row, row.len(), index as u64 + 1, registry).err()
        };
        let wrong: Vec<_> = people.iter().enumerate().filter_map(insert).collect();
        if wrong.is_empty() { Ok(table) } else { Err(wrong) }
    }

    fn with_capacity(users: usize) -> Self {
        Self { users: HashMap::with_capacity(users), version: TableVersion::default() }
    }

    fn from_csv(bytes: &[u8], registry: &Registry) -> Result<Self, Vec<RowError>> {
        let mut reader = csv::ReaderBuilder::new().flexible(true).trim(csv::Trim::All).has_headers(false).from_reader(bytes);
        // A row is about 20 bytes: reserving once saves half of the loading time.
        let mut table = Self::with_capacity(bytes.len() / 24);
        let (mut row, mut width, mut wrong) = (csv::StringRecord::new(), None, Vec::new());
        loop {
            match reader.read_record(&mut row) {
                Ok(true) if is_remark(&row) => continue,
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => match error.kind() {
                    csv::ErrorKind::Utf8 { pos, .. } => {
                        wrong.push(RowError::Encoding { line: pos.as_ref().map_or(0, csv::Position::line) });
                        continue;
                    }
                    _ => {
                        wrong.push(error.into());
                        break;
                    }
                },
            }
            let Some(width) = width else {
                let Some(columns) = width_of(&row) else {
                    wrong.push(RowError::Columns);
                    return Err(wrong);
                };
                width = Some(columns);
                continue;
            };
            let line = row.position().map_or(0, csv::Position::line);
            wrong.extend(table.insert_row(&row, width, line, registry).err());
        }
        if width.is_none() && wrong.is_empty() {
            wrong.push(RowError::Columns);
        }
        table.users.shrink_to_fit();
        if wrong.is_empty() { Ok(table) } else { Err(wrong) }
    }

    fn insert_row(&mut self, row: &csv::StringRecord, width: usize, line: u64, registry: &Registry) -> Result<(), RowError> {
        let (Some(user), Some(home), true) = (row.get(0), row.get(1), row.len() == width) else {
            return Err(RowError::Width { line, found: row.len(), expected: width });
        };
        let jurisdiction = row.get(2).filter(|name| !name.is_empty());
        let record = resolve(home, jurisdiction, registry, line)?;
        self.insert(user, record, line)
    }

    fn from_yaml(bytes: &[u8], registry: &Registry) -> Result<Self, Vec<RowError>> {
        // A user who is listed twice must not hide other mistakes, so every row is read.
        let options = serde_yaml::options! { duplicate_keys: serde_yaml::options::DuplicateKeyPolicy::PassThrough };
        let YamlRows(rows) = serde_yaml::from_slice_with_options(bytes, options).map_err(|error| {
            let place = error.location().map_or(String::new(), |at| format!("line {}: ", at.line()));
            vec![RowError::Yaml(format!("{place}write `USER: REGION` or `USER: {{ home: REGION, jurisdiction: NAME }}`"))]
        })?;
        let mut table = Self::with_capacity(rows.len());
        let mut wrong = Vec::new();
        for (user, row) in rows {
            let line = row.referenced.line();
            let record = match &row.value {
                YamlRow::Home(home) => resolve(home, None, registry, line),
                YamlRow::Full { home, jurisdiction } => resolve(home, jurisdiction.as_deref(), registry, line),
                YamlRow::Other(_) => Err(RowError::Row { line }),
            };
            wrong.extend(record.and_then(|record| table.insert(&user, record, line)).err());
        }
        wrong.sort_by_key(RowError::line);
        if wrong.is_empty() { Ok(table) } else { Err(wrong) }
    }

    fn insert(&mut self, key: &str, record: Record, line: u64) -> Result<(), RowError> {
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(RowError::Key { line });
        }
        match self.users.insert(key.into(), record) {
            Some(before) if before != record => Err(RowError::Twice { line }),
            _ => Ok(()),
        }
    }

    pub fn find(&self, key: &str) -> Option<Record> {
        self.users.get(key).copied()
    }

    /// How many of its users `other` does not have.
    pub fn count_missing_in(&self, other: &Self) -> usize {
        self.users.keys().filter(|user| !other.users.contains_key(*user)).count()
    }

    pub const fn version(&self) -> TableVersion {
        self.version
    }

    pub fn len(&self) -> usize {
        self.users.len()
    }

    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }
}

/// The first half of the file's SHA-256.
fn version_of(bytes: &[u8]) -> TableVersion {
    let mut version = [0; 16];
    let digest = digest::digest(&digest::SHA256, bytes);
    version.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
    TableVersion(version)
}

/// The rows of a YAML table, in their order.
struct YamlRows(Vec<(String, serde_yaml::Spanned<YamlRow>)>);

impl<'de> Deserialize<'de> for YamlRows {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Rows;

        impl<'de> serde::de::Visitor<'de> for Rows {
            type Value = YamlRows;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a mapping of users")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<YamlRows, A::Error> {
                let mut rows = Vec::new();
                while let Some(row) = map.next_entry()? {
                    rows.push(row);
                }
                Ok(YamlRows(rows))
            }
        }

        deserializer.deserialize_map(Rows)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum YamlRow {
    Home(String),
    Full {
        home: String,
        jurisdiction: Option<String>,
    },
    /// A row of another form, kept so that it does not hide mistakes in other rows.
    Other(serde::de::IgnoredAny),
}

/// A remark is a line that begins with `#` and a blank, or is `#` alone: a user's key may begin with `#`.
fn is_remark(row: &csv::StringRecord) -> bool {
    row.get(0).is_some_and(|first| first == "#" || first.starts_with("# "))
}

/// How many columns the rows have, by the line that names the columns.
fn width_of(columns: &csv::StringRecord) -> Option<usize> {
    match columns.iter().collect::<Vec<_>>().as_slice() {
        ["user", "home"] => Some(2),
        ["user", "home", "jurisdiction"] => Some(3),
        _ => None,
    }
}

impl RowError {
    /// The line of the mistake; 0 for a mistake of the whole file.
    const fn line(&self) -> u64 {
        match self {
            Self::Unreadable(_) | Self::Csv(_) | Self::Yaml(_) | Self::Columns | Self::Empty | Self::CutOff => 0,
            Self::Width { line, .. }
            | Self::Encoding { line }
            | Self::Row { line }
            | Self::Key { line }
            | Self::Region { line, .. }
            | Self::Jurisdiction { line, .. }
            | Self::Twice { line } => *line,
        }
    }
}

fn resolve(home: &str, jurisdiction: Option<&str>, registry: &Registry, line: u64) -> Result<Record, RowError> {
    let region = registry.regions.find(home).and_then(RegionId::new);
    let region = region.ok_or_else(|| RowError::Region { line, name: shown(home) })?;
    let jurisdiction = match jurisdiction {
        None => None,
        Some(name) => {
            let found = registry.jurisdictions.find(name).and_then(JurisdictionId::new);
            Some(found.ok_or_else(|| RowError::Jurisdiction { line, name: shown(name) })?)
        }
    };
    Ok(Record { home: region, jurisdiction })
}

/// A name as a message may show it: a column that slipped could hold a user's key.
fn shown(name: &str) -> String {
    let plain = name.len() <= 63 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if plain { name.into() } else { "(not a name)".into() }
}
