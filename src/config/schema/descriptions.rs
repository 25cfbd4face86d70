//! The descriptions of options: the comments of the sample file.

use std::collections::BTreeMap;
use std::path::Path;

use super::super::problem::Problems;
use super::super::source::document::{self, Node, Value};
use super::super::source::hide;
use super::NAME;

/// The sections of the sample whose keys are names of the operator's choice.
pub(super) const NAMED: &[&str] =
    &["jurisdictions", "regions", "data", "geoip.networks", "geoip.countries", "geoip.continents", "regions.NAME.services"];

/// The description of each option that has a comment, by its path without the items of lists. A comment after a line with several options describes the first.
pub(super) fn of(sample: &str) -> BTreeMap<String, String> {
    let lines: Vec<&str> = sample.lines().collect();
    let mut described = BTreeMap::new();
    visit(sample, |path, line| {
        if let Some(text) = comment(&lines, line) {
            // An option that occurs several times is described where it first has a comment.
            described.entry(path).or_insert(text);
        }
    });
    described
}

/// The paths of all options in the sample.
#[cfg(test)]
pub(super) fn keys(sample: &str) -> std::collections::BTreeSet<String> {
    let mut keys = std::collections::BTreeSet::new();
    visit(sample, |path, _| {
        keys.insert(path);
    });
    keys
}

/// Calls `take` with the path and the line of each key, counted from 1; the line is 0 for further keys of a line.
fn visit(sample: &str, mut take: impl FnMut(String, usize)) {
    let problems = Problems::of(Path::new("sample"));
    let mut last = 0;
    if let Some(root) = document::parse(&hide(sample), 0, &problems) {
        walk(&root, "", &mut |path, line| {
            take(path, if line == last { 0 } else { line });
            last = line;
        });
    }
}

fn walk(node: &Node, path: &str, take: &mut impl FnMut(String, usize)) {
    let below = |part: &str| if path.is_empty() { part.to_owned() } else { format!("{path}.{part}") };
    match &node.value {
        Value::List(items) => items.iter().for_each(|item| walk(item, path, take)),
        Value::Map(entries) => {
            for (key, value) in entries {
                let is_named = NAMED.contains(&path);
                let path = below(if is_named { NAME } else { &key.text });
                if !is_named {
                    take(path.clone(), key.at.line);
                }
                walk(value, &path, take);
            }
        }
        Value::Null | Value::Text(_) => {}
    }
}

/// The comment of a line, with the comment lines that continue it.
fn comment(lines: &[&str], line: usize) -> Option<String> {
    let (_, first) = lines.get(line.checked_sub(1)?)?.split_once(" # ")?;
    let mut text = first.trim().to_owned();
    for next in &lines[line..] {
        let trimmed = next.trim_start();
        // Far to the right: it continues the comment. Others are options that are commented out.
        match trimmed.strip_prefix("# ") {
            Some(more) if next.len() - trimmed.len() > 20 => text = format!("{text} {}", more.trim()),
            _ => break,
        }
    }
    Some(text)
}
