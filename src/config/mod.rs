//! Reads the YAML configuration into validated types.
//!
//! Promises: all mistakes are reported at once, each with its position and a correction; a loaded configuration needs no further
//! checks. There are two stages: `document` represents the file as written, `policy` and `settings` convert it to types. Never: a
//! default for a value that residency depends on. Start reading at [`load`].

mod actions;
mod document;
mod draft;
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

pub use lint::{notes, unused_services};
pub use problem::{Position, Problem};
pub use settings::{Log, Settings};

/// A validated configuration.
pub struct Config {
    pub policy: Policy,
    pub settings: Settings,
}

/// Reads a configuration file. `region` overrides the file's `region:`; `today` determines which transfers are still valid.
///
/// `registry` assigns numbers to new names only if the whole file is valid.
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

/// Like [`load`], for text that is already in memory; `path` appears only in messages.
pub fn parse(text: &str, path: &Path, region: Option<&str>, registry: &mut Registry, today: Day) -> Result<Config, Vec<Problem>> {
    // An empty environment variable counts as unset.
    let region = region.filter(|name| !name.is_empty());
    let problems = problem::Problems::of(path);
    let mut numbers = registry.clone();
    let config = document::parse(text, &problems).and_then(|root| {
        let root = reader::Field::root(&root, &problems);
        let section = root.section()?;
        let mut draft = policy::read(&section, &root, region, &mut numbers);
        draft.routes = routes::read(&section, &draft);
        let settings = settings::read(&section, &draft);
        section.finish();
        lint::report_shadowed(&draft);
        let identification = settings.as_ref().map_or(Vec::new(), Settings::identification);
        let refuses_unread = settings.as_ref().is_none_or(Settings::refuses_unread_credentials);
        let policy = draft.compile(identification, refuses_unread)?;
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
