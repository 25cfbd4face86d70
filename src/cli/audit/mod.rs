//! `domicile audit`: reads the ledger, also on a machine that runs no Domicile.

mod keys;
mod period;
mod query;
mod report;
mod subject;
mod verify;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::{Args, Subcommand};

use crate::app::StartError;
use crate::audit::reading::Line;
use crate::audit::reading::verify::{Broken, Expected, Verified, files_of, read};
use crate::audit::{Hash, Pseudonyms};
use crate::config::{self, Config};
use crate::model::day::Day;
use crate::model::region::Registry;

use super::{Outcome, Source, say};

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    source: Source,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Verify the hash chain of a ledger and the signatures of its checkpoints.
    Verify(verify::Options),
    /// Print the lines that have all of some properties, as they stand; without properties, every line.
    Query(Box<query::Options>),
    /// Sum up who moved which data where in a period, under which transfers: for the record of processing (GDPR Article 30).
    Report(report::Options),
    /// Show what is held about one user (GDPR Article 15).
    Subject(subject::Options),
    /// Replace a key in the running process.
    Rotate(keys::RotateOptions),
    /// Destroy keys of pseudonyms that were replaced: the lines of their time stay verifiable, and nobody can link them to users.
    Forget(keys::ForgetOptions),
}

/// The ledger that is read.
#[derive(Args)]
struct Place {
    /// The files of the ledger in their order, or its directory; by default the configuration's `audit.directory`.
    files: Vec<PathBuf>,
}

/// How users are found.
#[derive(Args)]
struct PseudonymKey {
    /// The key that turns a user's key into the pseudonym in the lines [default: the keys beside the ledger].
    #[arg(long, value_name = "FILE")]
    pseudonym_key: Option<PathBuf>,
}

pub(super) fn run(options: &Options) -> Outcome {
    match &options.verb {
        Verb::Verify(verb) => verify::run(verb, &options.source),
        Verb::Query(verb) => query::run(verb, &options.source),
        Verb::Report(verb) => report::run(verb, &options.source),
        Verb::Subject(verb) => subject::run(verb, &options.source),
        Verb::Rotate(verb) => keys::rotate(verb, &options.source),
        Verb::Forget(verb) => keys::forget(verb, &options.source),
    }
}

impl Place {
    fn files(&self, source: &Source) -> Result<Vec<PathBuf>, String> {
        match &self.files[..] {
            [] => {
                let (config, _) = configuration(source).map_err(|error| format!("{error}\nor name the files of the ledger"))?;
                let no_ledger =
                    "this configuration has no ledger; add `audit: { directory: ledger/ }`, or name the files of a ledger";
                in_directory(&config.settings.audit.ok_or(no_ledger)?.directory)
            }
            [directory] if directory.is_dir() => in_directory(directory),
            files => Ok(files.to_vec()),
        }
    }
}

fn configuration(source: &Source) -> Result<(Config, Registry), String> {
    let (today, mut registry) = (Day::of(SystemTime::now()), Registry::default());
    let loaded = config::load(&source.config, source.region.as_deref(), &mut registry, today);
    loaded.map(|config| (config, registry)).map_err(|problems| StartError::Config(problems).to_string())
}

/// The files of the ledger in a directory, in their order.
fn in_directory(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let files = files_of(directory).map_err(|error| format!("cannot read `{}`: {error}", directory.display()))?;
    if files.is_empty() { Err(format!("`{}` has no `ledger.jsonl`", directory.display())) } else { Ok(files) }
}

impl PseudonymKey {
    /// The pseudonyms of a user in a ledger with these files, one for each key.
    fn pseudonyms(&self, user: &str, files: &[PathBuf]) -> Result<Vec<String>, String> {
        let folder = files.first().and_then(|file| file.parent()).filter(|folder| !folder.as_os_str().is_empty());
        let keys = match &self.pseudonym_key {
            Some(key) => Pseudonyms::open(key, false).map(|key| vec![key]),
            None => Pseudonyms::open_all(folder.unwrap_or(Path::new("."))),
        };
        let keys = keys.map_err(|error| format!("{error}\nname the key of a copied ledger with `--pseudonym-key`"))?;
        Ok(keys.iter().map(|key| key.of(user)).collect())
    }
}

/// Verifies a ledger, whose older files may be elsewhere, and calls `each` with its lines.
fn each_line(files: &[PathBuf], mut each: impl FnMut(&str, &Line<'_>)) -> Result<Verified, String> {
    let expected = Expected { after: None, key: None, noted: Vec::new() };
    let mut unknown = 0_u64;
    let read = read(files, &expected, |text| match Line::parse(text) {
        Some(line) => each(text, &line),
        None => unknown += 1,
    });
    let verified = read.map_err(|broken| told(&broken))?;
    if unknown > 0 {
        eprintln!("{unknown} lines are of another version of Domicile; they verify, but are left out");
    }
    Ok(verified)
}

fn told(broken: &Broken) -> String {
    match broken {
        Broken::Unreadable { .. } => broken.to_string(),
        Broken::Line { .. } | Broken::Absent(_) => format!("the ledger does not verify: {broken}"),
    }
}

/// A sentence about a ledger that verifies.
fn sentence(verified: &Verified, files: usize) -> String {
    let signed = if verified.checkpoints == 0 { "no line is signed yet" } else { "its checkpoints are signed" };
    let head = verified.head.as_ref().map_or_else(String::new, |head: &Hash| format!(", and it ends with {head}"));
    let files = if files == 1 { "1 file".to_owned() } else { format!("{files} files") };
    format!("{} lines in {files}: the chain is whole, {signed}{head}.", verified.lines)
}
