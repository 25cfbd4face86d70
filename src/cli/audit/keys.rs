//! `domicile audit rotate` and `domicile audit forget`: the keys of the pseudonyms.

use clap::{Args, ValueEnum};

use super::period::before;
use super::{Outcome, Source};
use crate::cli::control;

#[derive(Args)]
pub(super) struct ForgetOptions {
    /// The last day (UTC) whose lines nobody may link to users. Keys that were in use later are kept.
    #[arg(long, value_name = "DAY", value_parser = before)]
    until: String,
}

#[derive(Args)]
pub(super) struct RotateOptions {
    /// `pseudonyms`: users have other pseudonyms from then on. `signing-key`: a checkpoint that the old key signs names the new one.
    #[arg(value_enum)]
    key: Key,
}

#[derive(Clone, Copy, ValueEnum)]
enum Key {
    Pseudonyms,
    SigningKey,
}

pub(super) fn rotate(options: &RotateOptions, source: &Source) -> Outcome {
    control::command(
        source,
        match options.key {
            Key::Pseudonyms => "/audit/rotate/pseudonyms",
            Key::SigningKey => "/audit/rotate/signing-key",
        },
    )
}

pub(super) fn forget(options: &ForgetOptions, source: &Source) -> Outcome {
    control::command(source, &format!("/audit/forget?before={}", control::encoded(&options.until)))
}
