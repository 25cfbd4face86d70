//! `domicile schema`: prints the JSON schema of the configuration, for editors.

use std::process::ExitCode;

use clap::Args;

use crate::config::schema;

use super::{Outcome, say};

#[derive(Args)]
pub(super) struct Options {
    /// Print the reference page instead, in Markdown.
    #[arg(long)]
    reference: bool,
}

pub(super) fn run(options: &Options) -> Outcome {
    say(&if options.reference { schema::reference() } else { schema::schema() })?;
    Ok(ExitCode::SUCCESS)
}
