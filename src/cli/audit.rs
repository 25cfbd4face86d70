//! `domicile audit`: verifies the ledger, also on a machine that runs no Domicile.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::{Args, Subcommand};

use crate::app::StartError;
use crate::audit::verify::{self, Broken, Expected, Verified};
use crate::audit::{Hash, PublicKey};
use crate::config;
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
    Verify(VerifyOptions),
}

#[derive(Args)]
struct VerifyOptions {
    /// The files of the ledger in their order, or its directory; by default the configuration's `audit.directory`.
    files: Vec<PathBuf>,
    /// The region's public key in PEM, which must have signed every checkpoint.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// A hash that was noted earlier: some line must still have it. May be repeated.
    #[arg(long, value_name = "HASH", value_parser = hash)]
    noted: Vec<Hash>,
    /// The hash of the line before the first one, if older files are kept elsewhere.
    #[arg(long, value_name = "HASH", value_parser = hash)]
    after: Option<Hash>,
}

fn hash(text: &str) -> Result<Hash, String> {
    Hash::parse(text).ok_or_else(|| "write a SHA-256 hash of 64 lower-case hexadecimal digits".into())
}

pub(super) fn run(options: &Options) -> Outcome {
    let Verb::Verify(verb) = &options.verb;
    let files = match &verb.files[..] {
        [] => files_of(&configured(&options.source)?)?,
        [directory] if directory.is_dir() => files_of(directory)?,
        files => files.to_vec(),
    };
    let key = verb.key.as_ref().map(|file| {
        let pem = std::fs::read_to_string(file).map_err(|error| format!("cannot read `{}`: {error}", file.display()))?;
        let no_key = || format!("`{}` is not an Ed25519 public key in PEM (`openssl pkey -pubout`)", file.display());
        PublicKey::from_pem(&pem).ok_or_else(no_key)
    });
    let key = key.transpose()?;
    let after = Some(verb.after.unwrap_or(Hash::BEGINNING));
    let expected = Expected { after, key, noted: verb.noted.clone() };
    let verified = verify::verify(&files, &expected).map_err(|broken| match broken {
        Broken::Unreadable { .. } => broken.to_string(),
        Broken::Line { .. } | Broken::Absent(_) => format!("the ledger does not verify: {broken}"),
    })?;
    say(&report(&verified, files.len(), key.is_some()))?;
    Ok(ExitCode::SUCCESS)
}

/// The directory of the ledger of the configured region.
fn configured(source: &Source) -> Result<PathBuf, String> {
    let today = Day::of(SystemTime::now());
    let loaded = config::load(&source.config, source.region.as_deref(), &mut Registry::default(), today);
    let config = loaded.map_err(|problems| format!("{}\nor name the files of the ledger", StartError::Config(problems)))?;
    let no_ledger = "this configuration has no ledger; add `audit: { directory: ledger/ }`, or name the files of a ledger";
    Ok(config.settings.audit.ok_or(no_ledger)?.directory)
}

/// The files of the ledger in a directory, in their order.
fn files_of(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let files = verify::files_of(directory).map_err(|error| format!("cannot read `{}`: {error}", directory.display()))?;
    if files.is_empty() { Err(format!("`{}` has no `ledger.jsonl`", directory.display())) } else { Ok(files) }
}

fn report(verified: &Verified, files: usize, is_key_known: bool) -> String {
    let Verified { lines, checkpoints, unsigned, epochs, keys, head } = verified;
    let mut out = format!("{lines} lines in {files} files, written by {epochs} processes; the chain is whole\n");
    let keys: Vec<_> = keys.iter().map(ToString::to_string).collect();
    let trust = if is_key_known { "as expected" } else { "compare it with the region's own, or name that with `--key`" };
    out += &match keys.as_slice() {
        [] => "no checkpoint: no line is signed yet\n".to_owned(),
        keys => format!("{checkpoints} checkpoints, signed with the key {}: {trust}\n", keys.join(", ")),
    };
    if *unsigned > 0 && *checkpoints > 0 {
        out += &format!("the last {unsigned} lines have no checkpoint yet\n");
    }
    if let Some(head) = head {
        out += &format!("last line: {head}; if you note it elsewhere, `--noted` shows later that nothing up to it was changed\n");
    }
    out
}
