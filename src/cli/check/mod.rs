//! `domicile check`: reports every mistake in a configuration, or prints what it allows.

mod against;
mod matrix;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use serde_json::{Value, json};

use crate::app::{self, StartError};
use crate::config::{self, Config, Problem};
use crate::model::day::Day;
use crate::model::region::Registry;
use crate::prove::Proven;
use crate::review::Matrix;

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
    /// Also print what differs from this older configuration, with example requests.
    #[arg(long, value_name = "OLD")]
    against: Option<PathBuf>,
    /// Print only who may process and who may carry what, with the counter-examples of broken assertions.
    #[arg(long, value_enum, value_name = "FORMAT", conflicts_with_all = ["files", "json", "against"])]
    matrix: Option<matrix::Format>,
}

pub(super) fn run(options: &Options) -> Outcome {
    let today = Day::of(SystemTime::now());
    let Source { config: file, region } = &options.source;
    let mut registry = Registry::default();
    let (mut found, mut wrong_files) = (Vec::new(), Vec::new());
    let name = shown(file);
    if let Some(format) = options.matrix {
        let config = config::load_unproven(file, region.as_deref(), &mut registry, today)
            .map_err(|problems| counted(&[StartError::Config(problems)]))?;
        return matrix::run(config, &registry, &name, format, today);
    }
    let checked = config::load(file, region.as_deref(), &mut registry, today)
        .map_err(|problems| vec![StartError::Config(problems)])
        .and_then(|mut config| {
            config.prove(today);
            app::check_cases(&config, &registry)?;
            found = notes(&config, today);
            let ending = if options.files {
                app::check_files(&config, &registry, &mut wrong_files)
            } else {
                app::ending_transfers(&config.policy)
            };
            found.splice(0..0, ending);
            if wrong_files.is_empty() { Ok(config) } else { Err(std::mem::take(&mut wrong_files)) }
        });
    let differences = match (&checked, &options.against) {
        (Ok(config), Some(old)) => Some((old, against::differences(old, config, &mut registry, today)?)),
        _ => None,
    };
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
            let mut report = json!({ "file": name, "valid": true, "mistakes": [], "notes": found, "policy": policy, "situations": situations });
            if let (Some((_, differences)), Some(fields)) = (&differences, report.as_object_mut()) {
                fields.insert("differences".into(), against::json(differences));
            }
            say(&format!("{report:#}\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        Ok(config) => {
            let notes: String = found.iter().map(|note| format!("\nnote: {note}\n")).collect();
            let summary = Matrix::of(&config.policy, config.settings.tokens.is_some(), today).text();
            let mut proven = config.proven.as_ref().map_or_else(String::new, |proven| told(proven, config.assertions.len()));
            proven += &match config.cases.len() {
                0 => String::new(),
                1 => "the case is judged as expected\n".to_owned(),
                count => format!("{count} cases are judged as expected\n"),
            };
            let differences = differences.map_or_else(String::new, |(old, found)| against::text(old, &found) + "\n");
            say(&format!("{summary}{notes}\n{differences}{proven}{name}: the configuration is valid\n"))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Notes about a valid configuration.
fn notes(config: &Config, today: Day) -> Vec<String> {
    let mut notes = config::notes(&config.policy, today);
    let idle = config.proven.iter().flat_map(|proven| &proven.idle);
    let path = |index: &usize| config.assertions.get(*index).map_or("assert", |asserted| &asserted.path);
    notes.extend(idle.map(|index| format!("{}: no request has these properties, so this holds in any case", path(index))));
    notes.extend(config::unused_services(&config.policy, &config.settings.actions));
    notes
}

/// The result of the proof, in a sentence.
fn told(proven: &Proven, assertions: usize) -> String {
    let holds = match assertions {
        _ if proven.broken.iter().any(|(statement, _)| statement.is_some()) => {
            let broken = proven.broken.iter().filter(|(statement, _)| statement.is_some()).count();
            format!(", but {broken} of {assertions} assertions {} not hold", if broken == 1 { "does" } else { "do" })
        }
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
