//! The default of each option, found by trial: if the removal of an option from the sample file changes nothing, the sample shows its
//! default; if it is a mistake, the option is required. Of an option with a fixed set of words, the default is the word that means
//! the same as its removal. So a default is declared once, where it is read.

use std::collections::BTreeMap;
use std::path::Path;

use crate::model::day::Day;
use crate::model::region::Registry;

use super::super::problem::Problems;
use super::super::source::document::{Node, Value};
use super::super::source::{self, Source};
use super::NAME;
use super::descriptions::NAMED;

/// The value of an option that is absent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Absent {
    /// As the sample writes it.
    Default(String),
    /// The option must be present.
    Mistake,
}

/// Every option whose absence has a fixed meaning. Paths are without the items of lists. `words` are the words that options take.
pub(super) fn of(sample: &str, words: &BTreeMap<String, Vec<String>>) -> BTreeMap<String, Absent> {
    let problems = Problems::of(Path::new("sample"));
    let Some(source) = source::read(sample, &problems, &|_| None) else { return BTreeMap::new() };
    let regions: Vec<&str> =
        source.root.get("regions").map_or(&[][..], Node::entries).iter().map(|(key, _)| &*key.text).collect();
    let whole = meaning(&source.root, &regions).ok();
    let mut found: BTreeMap<String, Vec<Option<Absent>>> = BTreeMap::new();
    let mut sections: BTreeMap<String, usize> = BTreeMap::new();
    walk(&source.root, "", &mut Vec::new(), &mut |entry| match entry {
        Entry::Section(path) => *sections.entry(path.to_owned()).or_default() += 1,
        Entry::Option(path, trail, value) => {
            let key = path.rsplit('.').next().unwrap_or(path);
            let means = |value| meaning(&with(&source.root, trail, value), &regions);
            // A key without a value is the same as none.
            let absent = match means(Value::Null) {
                Err(mistakes) if mistakes.iter().any(|message| message.contains(&format!("`{key}` is missing"))) => {
                    Some(Absent::Mistake)
                }
                Err(_) => None,
                Ok(same) if Some(&same) == whole.as_ref() => written(value).map(Absent::Default),
                Ok(absent) => {
                    let word = |word: &&String| means(Value::Text((*word).clone())).as_ref() == Ok(&absent);
                    words.get(path).into_iter().flatten().find(word).cloned().map(Absent::Default)
                }
            };
            found.entry(path.to_owned()).or_default().push(absent);
        }
    });
    let one = |path: &str, mut all: Vec<Option<Absent>>| {
        let parent = path.rsplit_once('.').map_or("", |(parent, _)| parent);
        // It is required if it may be absent from no section.
        if all.iter().all(|absent| *absent == Some(Absent::Mistake)) && sections.get(parent) == Some(&all.len()) {
            return Some(Absent::Mistake);
        }
        // It has a default if one value is the default wherever it occurs.
        all.retain(|absent| matches!(absent, Some(Absent::Default(_))));
        all.dedup();
        if let [only] = &mut all[..] { only.take() } else { None }
    };
    found.into_iter().filter_map(|(path, all)| Some((path.clone(), one(&path, all)?))).collect()
}

/// The meaning of a configuration to each region, as text, or its mistakes.
fn meaning(root: &Node, regions: &[&str]) -> Result<String, Vec<String>> {
    let today = Day::parse("2026-01-01").expect("a date");
    let of_region = |region: &&str| {
        let problems = Problems::of(Path::new("sample"));
        let source = Source { root: root.clone(), files: Vec::new(), folders: Vec::new() };
        // The sample names its own region.
        let region = Some(*region).filter(|region| regions.first() != Some(region));
        let config = super::super::read_tree(&source, region, &mut Registry::default(), today, &problems, false);
        let mistakes = problems.into_list();
        match config {
            Some(config) if mistakes.is_empty() => Ok(format!("{} {:?}", config.policy.hash, config.settings)),
            _ => Err(mistakes.into_iter().map(|problem| problem.message).collect()),
        }
    };
    regions.iter().map(of_region).collect()
}

/// A part of the sample.
enum Entry<'a> {
    /// The path of a section.
    Section(&'a str),
    /// The path of a key that is not a name of the operator's choice, the indexes that lead to it, and its value.
    Option(&'a str, &'a [usize], &'a Node),
}

fn walk(node: &Node, path: &str, trail: &mut Vec<usize>, visit: &mut impl FnMut(Entry<'_>)) {
    match &node.value {
        Value::List(items) => {
            for (index, item) in items.iter().enumerate() {
                trail.push(index);
                walk(item, path, trail, visit);
                trail.pop();
            }
        }
        Value::Map(entries) => {
            let is_named = NAMED.contains(&path);
            visit(Entry::Section(path));
            for (index, (key, value)) in entries.iter().enumerate() {
                let key = if is_named { NAME } else { &key.text };
                let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
                trail.push(index);
                if !is_named {
                    visit(Entry::Option(&path, trail, value));
                }
                walk(value, &path, trail, visit);
                trail.pop();
            }
        }
        Value::Null | Value::Text(_) => {}
    }
}

/// The tree with another value of the entry that the indexes lead to.
fn with(root: &Node, trail: &[usize], value: Value) -> Node {
    fn set(node: &mut Node, trail: &[usize], value: Value) {
        match (trail.split_first(), &mut node.value) {
            (None, _) => node.value = value,
            (Some((index, rest)), Value::List(items)) => set(&mut items[*index], rest, value),
            (Some((index, rest)), Value::Map(entries)) => set(&mut entries[*index].1, rest, value),
            (Some(_), Value::Null | Value::Text(_)) => {}
        }
    }
    let mut copy = root.clone();
    set(&mut copy, trail, value);
    copy
}

/// A value as YAML; `None` of a section.
fn written(node: &Node) -> Option<String> {
    match &node.value {
        Value::Null | Value::Map(_) => None,
        Value::Text(text) => Some(text.clone()),
        Value::List(items) => Some(format!("[{}]", items.iter().map(written).collect::<Option<Vec<_>>>()?.join(", "))),
    }
}
