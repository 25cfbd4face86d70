//! `domicile check`: reports every mistake in a configuration, or prints what it allows.

use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use serde_json::{Value, json};

use crate::app::{self, StartError};
use crate::config::{self, Config, Problem, summary};
use crate::model::day::Day;
use crate::model::region::Registry;
use crate::prove::Proven;

use super::{Outcome, Source, say};

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    source: Source,
    /// Also open the certificates, the GeoIP database and the user table.
    #[arg(long)]
    files: bool,
    /// Print JSON: whether the configuration is valid, its mistakes with their positions, and notes.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options) -> Outcome {
    let today = Day::of(SystemTime::now());
    let Source { config: file, region } = &options.source;
    let mut registry = Registry::default();
    let (mut found, mut wrong_files) = (Vec::new(), Vec::new());
    let checked = config::load(file, region.as_deref(), &mut registry, today)
        .map_err(|problems| vec![StartError::Config(problems)])
        .and_then(|mut config| {
            config.prove(today);
            found = notes(&config, today);
            let ending = if options.files {
                app::check_files(&config, &registry, &mut wrong_files)
            } else {
                app::ending_transfers(&config.policy)
            };
            found.splice(0..0, ending);
            if wrong_files.is_empty() { Ok(config) } else { Err(std::mem::take(&mut wrong_files)) }
        });
    let name = shown(file);
    match checked {
        Err(wrong) if options.json => {
            let mistakes: Vec<Value> = wrong.iter().flat_map(mistakes).collect();
            say(&format!("{:#}\n", json!({ "file": name, "valid": false, "mistakes": mistakes, "notes": found })))?;
            Ok(ExitCode::FAILURE)
        }
        Err(wrong) => Err(found.iter().map(|note| format!("note: {note}\n")).collect::<String>() + &counted(&wrong)),
        Ok(config) if options.json => {
            let policy = config.policy.hash.to_string();
            let situations = config.proven.map(|proven| proven.situations);
            let report = json!({ "file": name, "valid": true, "mistakes": [], "notes": found, "policy": policy, "situations": situations });
            say(&format!("{report:#}\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        Ok(config) => {
            let notes: String = found.iter().map(|note| format!("\nnote: {note}\n")).collect();
            let summary = summary::render(&config.policy, config.settings.tokens.is_some(), today);
            let proven = config.proven.as_ref().map_or_else(String::new, |proven| told(proven, config.assertions));
            say(&format!("{summary}{notes}\n{proven}{name}: the configuration is valid\n"))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Notes about a valid configuration.
fn notes(config: &Config, today: Day) -> Vec<String> {
    let mut notes = config::notes(&config.policy, today);
    let idle = config.proven.iter().flat_map(|proven| &proven.idle);
    notes.extend(idle.map(|index| format!("assert[{index}]: no request has these properties, so this holds in any case")));
    notes.extend(config::unused_services(&config.policy, &config.settings.actions));
    notes
}

/// The result of the proof, in a sentence.
fn told(proven: &Proven, assertions: usize) -> String {
    let holds = match assertions {
        0 => String::new(),
        1 => ", and the assertion holds".to_owned(),
        count => format!(", and the {count} assertions hold"),
    };
    let count = grouped(proven.situations);
    match proven.broken.iter().find(|(statement, _)| statement.is_none()) {
        None => format!("{count} situations judged: no request leaves its clearance{holds}\n"),
        Some((_, story)) => format!("a request leaves its clearance; please report this with the file: {story}\n"),
    }
}

/// A number with commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let parts: Vec<_> = digits.as_bytes().rchunks(3).rev().map(|part| String::from_utf8_lossy(part).into_owned()).collect();
    parts.join(",")
}

fn shown(file: &Path) -> String {
    if file == Path::new(config::STDIN) { "standard input".into() } else { file.display().to_string() }
}

/// The mistakes of an error, for programs.
fn mistakes(error: &StartError) -> Vec<Value> {
    let of_problem = |problem: &Problem| {
        json!({
            "file": problem.file,
            "line": problem.at.map(|at| at.line),
            "column": problem.at.map(|at| at.column),
            "path": problem.path,
            "message": problem.message,
        })
    };
    match error {
        StartError::Config(problems) => problems.iter().map(of_problem).collect(),
        error => vec![json!({ "message": error.to_string() })],
    }
}

/// All mistakes, then their number.
fn counted(wrong: &[StartError]) -> String {
    let lines: Vec<_> = wrong.iter().map(ToString::to_string).collect();
    let text = lines.join("\n");
    let of = |error: &StartError| if let StartError::Config(problems) = error { problems.len() } else { 1 };
    let count = match wrong.iter().map(of).sum() {
        1 => "1 mistake".to_owned(),
        count => format!("{count} mistakes"),
    };
    format!("{text}\n{count}")
}
