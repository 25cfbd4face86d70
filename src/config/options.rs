//! Records the options that the reader asks for, by their paths, and the kinds of values that they take.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// A kind of value.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    Section,
    /// A section whose keys are names chosen by the operator.
    Names,
    List,
    /// A value, or a list of such values.
    OneOrMany,
    /// A section, or a short form of it.
    Either,
    Text,
    Words(Vec<String>),
    /// From the first to the second, both included.
    Number(u64, u64),
    Percent,
    Duration,
    Size,
    Address,
    Url,
}

/// The options, by paths such as `routes.[].match.path`, in which `NAME` is a name chosen by the operator.
#[derive(Default)]
pub struct Options(RefCell<BTreeMap<String, BTreeSet<Kind>>>);

impl Options {
    /// Adds an option, whether or not it is present.
    pub fn add(&self, path: &str) {
        self.0.borrow_mut().entry(path.to_owned()).or_default();
    }

    /// Adds a kind of value to an option.
    pub fn note(&self, path: &str, kind: Kind) {
        self.0.borrow_mut().entry(path.to_owned()).or_default().insert(kind);
    }

    pub fn into_map(self) -> BTreeMap<String, BTreeSet<Kind>> {
        self.0.into_inner()
    }
}
