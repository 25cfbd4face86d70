//! `domicile audit verify`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::audit::reading::verify::{Expected, Verified, verify};
use crate::audit::{Hash, PublicKey};

use super::{Outcome, Place, Source, say, told};

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    place: Place,
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

pub(super) fn run(options: &Options, source: &Source) -> Outcome {
    let files = options.place.files(source)?;
    let key = options.key.as_ref().map(|file| {
        let pem = std::fs::read_to_string(file).map_err(|error| format!("cannot read `{}`: {error}", file.display()))?;
        let no_key = || format!("`{}` is not an Ed25519 public key in PEM (`openssl pkey -pubout`)", file.display());
        PublicKey::from_pem(&pem).ok_or_else(no_key)
    });
    let key = key.transpose()?;
    let after = Some(options.after.unwrap_or(Hash::BEGINNING));
    let expected = Expected { after, key, noted: options.noted.clone() };
    let verified = verify(&files, &expected).map_err(|broken| told(&broken))?;
    say(&report(&verified, files.len(), key.is_some()))?;
    Ok(ExitCode::SUCCESS)
}

fn report(verified: &Verified, files: usize, is_key_known: bool) -> String {
    let Verified { lines, checkpoints, unsigned, epochs, keys, head, signer: _ } = verified;
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
