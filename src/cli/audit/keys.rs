//! `domicile audit rotate` and `domicile audit forget`: the keys of the pseudonyms.

use clap::Args;

use super::period::before;
use super::{Outcome, Source};
use crate::cli::control;

#[derive(Args)]
pub(super) struct ForgetOptions {
    /// The last day (UTC) whose lines nobody may link to users. Keys that were in use later are kept.
    #[arg(long, value_name = "DAY", value_parser = before)]
    until: String,
}

pub(super) fn rotate(source: &Source) -> Outcome {
    control::command(source, "/audit/rotate")
}

pub(super) fn forget(options: &ForgetOptions, source: &Source) -> Outcome {
    control::command(source, &format!("/audit/forget?before={}", control::encoded(&options.until)))
}
