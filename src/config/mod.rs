//! Reads the YAML configuration into validated types.
//!
//! Promises: all mistakes are reported at once, each with its position and a correction; a loaded configuration needs no further
//! checks. There are two stages: `source` represents the files as written, `policy` and `settings` convert it to types. Never: a
//! default for a value that residency depends on. Start reading at [`load`].

mod actions;
mod draft;
pub mod expectations;
mod lint;
mod options;
mod policy;
mod problem;
mod reader;
mod routes;
pub mod schema;
mod settings;
mod source;

use std::path::{Path, PathBuf};

use crate::admin;
use crate::decision::policy::Policy;
use crate::model::day::Day;
use crate::model::region::Registry;
use crate::prove::{self, Assertion, Proven};

pub use expectations::assertions::AssertedCase;
pub use lint::{notes, unused_services};
pub use problem::{Position, Problem};
pub use settings::{Log, Settings};

/// A validated configuration.
pub struct Config {
    pub policy: Policy,
    pub settings: Settings,
    /// The files that it was read from: itself, the files that it includes, and those of `${file:…}`.
    pub files: Vec<PathBuf>,
    /// The folders in which new files would be included.
    pub folders: Vec<PathBuf>,
    /// The proof of the file's assertions, if it has any.
    pub proven: Option<Proven>,
    pub assertions: Vec<Asserted>,
    /// The assertions about single requests, which need the user table and the GeoIP database.
    pub cases: Vec<AssertedCase>,
}

/// An assertion, with its path in the file.
#[derive(Clone)]
pub struct Asserted {
    pub path: String,
    pub assertion: Assertion,
}

impl Config {
    /// Proves what every policy promises, and the assertions of the file, which may be broken after [`load_unproven`].
    pub fn prove(&mut self, today: Day) -> &Proven {
        let sources = expectations::assertions::sources(&self.settings);
        let assertions = || self.assertions.iter().map(|asserted| asserted.assertion.clone()).collect::<Vec<_>>();
        self.proven.get_or_insert_with(|| prove::prove(&self.policy, &assertions(), sources, today))
    }
}

/// The path that stands for standard input.
pub const STDIN: &str = "-";

/// Reads a configuration file, or standard input for [`STDIN`]. `region` overrides the file's `region:`; `today` determines which
/// transfers are still valid.
///
/// `registry` assigns numbers to new names only if the whole file is valid.
pub fn load(path: &Path, region: Option<&str>, registry: &mut Registry, today: Day) -> Result<Config, Vec<Problem>> {
    load_with(path, region, registry, today, true)
}

/// Like [`load`], but does not prove the assertions.
pub fn load_unproven(path: &Path, region: Option<&str>, registry: &mut Registry, today: Day) -> Result<Config, Vec<Problem>> {
    load_with(path, region, registry, today, false)
}

fn load_with(
    path: &Path,
    region: Option<&str>,
    registry: &mut Registry,
    today: Day,
    proves: bool,
) -> Result<Config, Vec<Problem>> {
    let text = if path == Path::new(STDIN) { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(path) };
    match text {
        Ok(text) => parse_with(&text, path, region, registry, today, proves),
        Err(error) => {
            let problems = problem::Problems::of(path);
            problems.report_file(0, format!("cannot read this file: {error}"));
            Err(problems.into_list())
        }
    }
}

/// Where the control plane of a configuration listens, also if the rest of the file has mistakes, and whether a region is named.
pub fn admin_of(path: &Path, region: Option<&str>) -> Result<(admin::Settings, bool), Vec<Problem>> {
    let problems = problem::Problems::of(path);
    let Some(root) = read_source(path, &problems) else { return Err(problems.into_list()) };
    // Mistakes outside `admin` do not count.
    let scratch = problem::Problems::of(path);
    let own = root.get("region").and_then(source::document::Node::as_text);
    let region = region.filter(|name| !name.is_empty()).or(own).unwrap_or_default();
    let of_region = root.get("regions").and_then(|regions| regions.get(region)).and_then(|region| region.get("admin"));
    let names_region = !region.is_empty();
    let Some(admin) = of_region.or_else(|| root.get("admin")) else { return Ok((admin::Settings::default(), names_region)) };
    let settings = settings::read_admin(&reader::Field::root(admin, &scratch), &[], region);
    settings.map(|settings| (settings, names_region)).ok_or_else(|| scratch.into_list())
}

/// The tree of a file, without the files that it includes if they have mistakes.
fn read_source(path: &Path, problems: &problem::Problems) -> Option<source::document::Node> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            problems.report_file(0, format!("cannot read this file: {error}"));
            return None;
        }
    };
    let scratch = problem::Problems::of(path);
    // Variables that are set for the process may be absent here.
    let variable = |name: &str| Some(std::env::var(name).unwrap_or_default());
    let whole = source::read(&text, &scratch, &variable).map(|source| source.root);
    whole.or_else(|| source::document::parse(&text, 0, problems))
}

/// The names of a file's regions, in their order.
pub fn region_names(path: &Path) -> Result<Vec<String>, Vec<Problem>> {
    let problems = problem::Problems::of(path);
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| {
        problems.report_file(0, format!("cannot read this file: {error}"));
        String::new()
    });
    let source = problems.is_empty().then(|| source::read(&text, &problems, &|name| std::env::var(name).ok())).flatten();
    match source.as_ref().and_then(|source| source.root.get("regions")) {
        Some(regions) if problems.is_empty() => Ok(regions.entries().iter().map(|(key, _)| key.text.clone()).collect()),
        _ => {
            if problems.is_empty() {
                problems.report_file(0, "`regions` is missing");
            }
            Err(problems.into_list())
        }
    }
}

/// Like [`load`], for text that is already in memory; `path` appears only in messages.
pub fn parse(text: &str, path: &Path, region: Option<&str>, registry: &mut Registry, today: Day) -> Result<Config, Vec<Problem>> {
    parse_with(text, path, region, registry, today, true)
}

fn parse_with(
    text: &str,
    path: &Path,
    region: Option<&str>,
    registry: &mut Registry,
    today: Day,
    proves: bool,
) -> Result<Config, Vec<Problem>> {
    // An empty environment variable counts as unset.
    let region = region.filter(|name| !name.is_empty());
    let problems = problem::Problems::of(path);
    let mut numbers = registry.clone();
    let config = read(text, region, &mut numbers, today, &problems, proves);
    match config {
        Some(config) if problems.is_empty() => {
            *registry = numbers;
            Ok(config)
        }
        _ => Err(problems.into_list()),
    }
}

/// Reads a configuration, and reports its mistakes.
fn read(
    text: &str,
    region: Option<&str>,
    numbers: &mut Registry,
    today: Day,
    problems: &problem::Problems,
    proves: bool,
) -> Option<Config> {
    let variable = |name: &str| std::env::var(name).ok();
    let source = source::read(text, problems, &variable)?;
    read_tree(&source, region, numbers, today, problems, proves)
}

/// Reads a configuration from its tree, and reports its mistakes, with `proves` also the assertions that do not hold.
fn read_tree(
    source: &source::Source,
    region: Option<&str>,
    numbers: &mut Registry,
    today: Day,
    problems: &problem::Problems,
    proves: bool,
) -> Option<Config> {
    let root = reader::Field::root(&source.root, problems);
    let section = root.section()?;
    let mut draft = policy::read(&section, &root, region, numbers);
    draft.routes = routes::read(&section, &draft);
    let settings = settings::read(&section, &draft);
    let assertions = expectations::assertions::read(&section, &draft);
    section.finish();
    lint::report_shadowed(&draft);
    let identification = settings.as_ref().map_or(Vec::new(), Settings::identification);
    let refuses_unread = settings.as_ref().is_none_or(Settings::refuses_unread_credentials);
    let policy = draft.compile(identification, refuses_unread)?;
    lint::run(&policy, &draft, today);
    let (settings, assertions) = (settings?, assertions?);
    // A proof takes longer than everything else, so it is for files without other mistakes.
    let is_sound = problems.is_empty();
    let proven = if is_sound && proves {
        expectations::assertions::prove(&assertions.statements, &policy, &settings, today)
    } else {
        None
    };
    Some(Config {
        policy,
        settings,
        files: source.files.clone(),
        folders: source.folders.clone(),
        proven,
        assertions: assertions
            .statements
            .into_iter()
            .map(|(assertion, field)| Asserted { path: field.path, assertion })
            .collect(),
        cases: assertions.cases,
    })
}

#[cfg(test)]
mod tests;
