//! `domicile audit report`.

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use crate::audit::reading::html;
use crate::audit::reading::query::Filter;
use crate::audit::reading::report::Report;

use super::period::Period;
use super::{Outcome, Place, Source, each_line, say, sentence};

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    period: Period,
    /// Tables for a terminal, CSV of the movements, or one HTML page with a chart.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Csv,
    Html,
}

pub(super) fn run(options: &Options, source: &Source) -> Outcome {
    let files = options.place.files(source)?;
    let (since, before) = options.period.bounds();
    let filter = Filter { since, before, ..Filter::default() };
    let mut report = Report::default();
    let verified = each_line(&files, |_, line| {
        // The settlement of a movement may be later than the period.
        if filter.admits(line) || line.is_settlement() {
            report.add(line);
        }
    })?;
    let (period, verified) = (options.period.described(), sentence(&verified, files.len()));
    say(&match options.format {
        Format::Text => format!("{}\n{verified}\n", report.text(&period)),
        Format::Csv => report.csv(),
        Format::Html => html::render(&report, &period, &verified),
    })?;
    Ok(ExitCode::SUCCESS)
}
