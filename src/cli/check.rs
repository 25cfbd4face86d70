//! `domicile check`: reports every mistake in a configuration, or prints what it allows.

use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;

use crate::app;
use crate::config::{self, summary};
use crate::model::day::Day;
use crate::model::region::Registry;

use super::{Outcome, Source, say};

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    source: Source,
    /// Also open the certificates, the GeoIP database and the user table.
    #[arg(long)]
    files: bool,
}

pub(super) fn run(options: &Options) -> Outcome {
    let today = Day::of(SystemTime::now());
    let Source { config: file, region } = &options.source;
    match config::load(file, region.as_deref(), &mut Registry::default(), today) {
        Err(problems) => Err(counted(&problems)),
        Ok(config) => {
            let mut notes = config::notes(&config.policy, today);
            if options.files {
                notes.extend(app::check_files(file, region.as_deref(), today).map_err(|wrong| counted(&wrong))?);
            }
            notes.extend(config::unused_services(&config.policy, &config.settings.actions));
            let notes: String = notes.iter().map(|note| format!("\nnote: {note}\n")).collect();
            say(&format!(
                "{}{notes}\n{}: the configuration is valid\n",
                summary::render(&config.policy, config.settings.tokens.is_some(), today),
                file.display()
            ))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// All mistakes, one per line, then their number.
fn counted<T: ToString>(wrong: &[T]) -> String {
    let lines: Vec<_> = wrong.iter().map(ToString::to_string).collect();
    let count = if wrong.len() == 1 { "1 mistake".into() } else { format!("{} mistakes", wrong.len()) };
    format!("{}\n{count}", lines.join("\n"))
}
