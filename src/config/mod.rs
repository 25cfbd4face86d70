//! YAML in, validated types out.
//!
//! Promises: every mistake in one report, each with its place and what would be right; what loads can be judged by
//! without another check. Two tiers: `document` is the file as written, `policy` and `settings` what it means. Never:
//! a guess for a value that residency depends on. Start reading at [`load`].

mod document;
mod lint;
mod policy;
mod problem;
mod reader;
mod routes;
mod settings;
pub mod summary;

use std::path::Path;

use crate::decision::policy::Policy;
use crate::model::day::Day;
use crate::model::region::Registry;

pub use lint::notes;
pub use problem::{Position, Problem};
pub use settings::{Log, Settings};

/// A configuration that may be put to work.
pub struct Config {
    pub policy: Policy,
    pub settings: Settings,
}

/// Reads a configuration file; `region` replaces the file's own `region:`, `today` says which transfers still hold.
///
/// New names get their numbers in `registry` only if the whole file is good.
pub fn load(path: &Path, region: Option<&str>, registry: &mut Registry, today: Day) -> Result<Config, Vec<Problem>> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text, path, region, registry, today),
        Err(error) => {
            let problems = problem::Problems::of(path);
            problems.report_file(format!("cannot read this file: {error}"));
            Err(problems.into_list())
        }
    }
}

/// The same for text that is already at hand; `path` is only named in messages.
pub fn parse(text: &str, path: &Path, region: Option<&str>, registry: &mut Registry, today: Day) -> Result<Config, Vec<Problem>> {
    // An empty variable is one that is not set.
    let region = region.filter(|name| !name.is_empty());
    let problems = problem::Problems::of(path);
    let mut numbers = registry.clone();
    let config = document::parse(text, &problems).and_then(|root| {
        let root = reader::Field::root(&root, &problems);
        let section = root.section()?;
        let draft = policy::read(&section, &root, region, &mut numbers);
        let settings = settings::read(&section, &draft);
        section.finish();
        lint::report_shadowed(&draft);
        let policy = draft.compile()?;
        lint::run(&policy, &draft, today);
        Some(Config { policy, settings: settings? })
    });
    match config {
        Some(config) if problems.is_empty() => {
            *registry = numbers;
            Ok(config)
        }
        _ => Err(problems.into_list()),
    }
}

#[cfg(test)]
mod tests;
