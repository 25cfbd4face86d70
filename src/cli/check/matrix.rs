//! `domicile check --matrix`: who may process and who may carry what, with the counter-examples of broken assertions.

use std::process::ExitCode;

use clap::ValueEnum;
use serde_json::json;

use crate::app;
use crate::config::{Asserted, Config};
use crate::model::day::Day;
use crate::model::region::Registry;
use crate::prove::Proven;
use crate::review::{Matrix, html};

use super::super::{Outcome, say};
use super::told;

#[derive(Clone, Copy, ValueEnum)]
pub enum Format {
    Text,
    Json,
    /// One page that needs nothing else.
    Html,
}

/// Prints the matrix of a configuration; fails if an assertion is broken.
pub fn run(mut config: Config, registry: &Registry, file: &str, format: Format, today: Day) -> Outcome {
    config.prove(today);
    let cases = app::check_cases(&config, registry).err().unwrap_or_default();
    let matrix = Matrix::of(&config.policy, config.settings.tokens.is_some(), today);
    let proven = config.proven.unwrap_or_default();
    let sentence = told(&proven, config.assertions.len());
    let mut broken = stories(&proven, &config.assertions);
    broken.extend(cases.iter().map(ToString::to_string));
    say(&match format {
        Format::Text => {
            let stories: String = broken.iter().map(|story| format!("\n{story}\n")).collect();
            format!("{}\n{sentence}{stories}", matrix.text())
        }
        Format::Json => {
            let mut page = serde_json::to_value(&matrix).map_err(|error| error.to_string())?;
            if let Some(fields) = page.as_object_mut() {
                fields.insert("file".into(), json!(file));
                fields.insert("situations".into(), json!(proven.situations));
                fields.insert("broken".into(), json!(broken));
            }
            format!("{page:#}\n")
        }
        Format::Html => html::render(&matrix, file, &sentence, &broken),
    })?;
    Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The counter-examples of the broken assertions.
fn stories(proven: &Proven, assertions: &[Asserted]) -> Vec<String> {
    let named = |(statement, story): &(Option<usize>, _)| match statement {
        Some(index) => format!("{} does not hold: {story}", assertions.get(*index).map_or("assert", |asserted| &asserted.path)),
        None => format!("a request leaves its clearance: {story}"),
    };
    proven.broken.iter().map(named).collect()
}
