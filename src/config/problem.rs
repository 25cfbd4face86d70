//! Mistakes in a configuration: the position, the cause and the correction.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use super::options::{Kind, Options};

/// A position in a file; lines and columns count from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Position {
    /// The number of the file: 0 for the main file, more for those that it includes.
    pub file: usize,
    pub line: usize,
    pub column: usize,
}

/// One mistake.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    pub file: PathBuf,
    /// `None` if the file could not be read at all.
    pub at: Option<Position>,
    /// The path of the value, such as `routes[2].data`; empty for the root.
    pub path: String,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:", self.file.display())?;
        if let Some(at) = self.at {
            write!(out, "{}:{}:", at.line, at.column)?;
        }
        if !self.path.is_empty() {
            write!(out, " {}:", self.path)?;
        }
        write!(out, " {}", self.message)
    }
}

/// Collects mistakes, so that all are reported at once.
pub struct Problems {
    main: PathBuf,
    included: RefCell<Vec<PathBuf>>,
    /// Texts that no message may contain, and what is shown instead.
    secrets: RefCell<Vec<(String, String)>>,
    found: RefCell<Vec<(Position, Problem)>>,
    /// The options that the reader asks for, if they are recorded.
    options: Option<Options>,
}

impl Problems {
    pub fn of(file: &Path) -> Self {
        Self {
            main: file.into(),
            included: RefCell::default(),
            secrets: RefCell::default(),
            found: RefCell::default(),
            options: None,
        }
    }

    /// Also records the options that the reader asks for.
    pub fn recording(file: &Path) -> Self {
        Self { options: Some(Options::default()), ..Self::of(file) }
    }

    pub fn options(&self) -> Option<&Options> {
        self.options.as_ref()
    }

    /// The file that includes the others.
    pub fn main(&self) -> &Path {
        &self.main
    }

    /// Adds an included file; returns its number.
    pub fn add_file(&self, file: &Path) -> usize {
        let mut included = self.included.borrow_mut();
        included.push(file.into());
        included.len()
    }

    fn file(&self, number: usize) -> PathBuf {
        number.checked_sub(1).and_then(|index| self.included.borrow().get(index).cloned()).unwrap_or_else(|| self.main.clone())
    }

    /// A position with its file, for messages.
    pub fn place(&self, at: Position) -> String {
        format!("{}:{}:{}", self.file(at.file).display(), at.line, at.column)
    }

    /// Shows `instead` in all messages that would contain the secret.
    pub fn hide(&self, secret: String, instead: String) {
        if !secret.is_empty() {
            self.secrets.borrow_mut().push((secret, instead));
        }
    }

    pub fn report(&self, at: Position, path: &str, message: impl Into<String>) {
        self.push(at, Some(at), path, message.into());
    }

    /// The mistake that [`Self::report`] would report; its message follows later.
    pub fn problem(&self, at: Position, path: &str) -> Problem {
        Problem { file: self.file(at.file), at: Some(at), path: path.to_owned(), message: String::new() }
    }

    /// Reports a mistake of a whole file, by its number.
    pub fn report_file(&self, file: usize, message: impl Into<String>) {
        self.push(Position { file, ..Position::default() }, None, "", message.into());
    }

    fn push(&self, order: Position, at: Option<Position>, path: &str, mut message: String) {
        let mut path = path.to_owned();
        for (secret, instead) in &*self.secrets.borrow() {
            message = message.replace(secret, instead);
            path = path.replace(secret, instead);
        }
        let problem = Problem { file: self.file(order.file), at, path, message };
        let mut found = self.found.borrow_mut();
        if !found.iter().any(|(_, known)| *known == problem) {
            found.push((order, problem));
        }
    }

    /// The options that were recorded, by their paths.
    pub fn into_options(self) -> BTreeMap<String, BTreeSet<Kind>> {
        self.options.map_or_else(BTreeMap::new, Options::into_map)
    }

    pub fn is_empty(&self) -> bool {
        self.found.borrow().is_empty()
    }

    /// All mistakes, in the order of the files.
    pub fn into_list(self) -> Vec<Problem> {
        let mut list = self.found.into_inner();
        list.sort_by_key(|(order, _)| *order);
        list.into_iter().map(|(_, problem)| problem).collect()
    }
}

/// Returns `; did you mean X?` if `given` looks like a misspelling of a known word, else the list of at most 12 known words.
pub fn suggestion<'k>(given: &str, known: impl IntoIterator<Item = &'k str>) -> String {
    let mut known: Vec<&str> = known.into_iter().collect();
    // A key that is read in two places is known twice.
    let mut listed = HashSet::new();
    known.retain(|name| listed.insert(*name));
    let closest = known.iter().map(|name| (edits(given, name), *name)).min();
    match closest {
        Some((edits, name)) if edits <= 1 + given.len().max(name.len()) / 4 => format!("; did you mean `{name}`?"),
        _ if known.is_empty() => String::new(),
        _ if known.len() <= 12 => {
            format!("; expected one of {}", known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "))
        }
        _ => String::new(),
    }
}

/// The number of edits that turn one word into another; a transposition of adjacent characters counts as one edit.
fn edits(from: &str, to: &str) -> usize {
    strsim::damerau_levenshtein(&from.to_lowercase(), &to.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelled_name_gets_a_suggestion() {
        assert_eq!(suggestion("resticted", ["public", "restricted"]), "; did you mean `restricted`?");
        assert_eq!(suggestion("adress", ["address", "tls"]), "; did you mean `address`?");
        assert_eq!(suggestion("zebra", ["public", "restricted"]), "; expected one of `public`, `restricted`");
        assert_eq!(suggestion("zebra", ["key", "token", "token"]), "; expected one of `key`, `token`");
        assert_eq!(suggestion("x", []), "");
    }
}
