//! `domicile audit query`.

use std::process::ExitCode;

use clap::Args;

use crate::audit::reading::query::Filter;

use super::period::Period;
use super::{Outcome, Place, PseudonymKey, Source, each_line, say};

/// Bytes of lines that are printed together.
const CHUNK: usize = 1 << 16;

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    period: Period,
    #[command(flatten)]
    key: PseudonymKey,
    /// Lines about this user, named by the key in the requests or in the user table.
    #[arg(long)]
    user: Option<String>,
    /// The kind of line: movement, settlement, counts, action, process or checkpoint.
    #[arg(long, value_parser = ["movement", "settlement", "counts", "action", "process", "checkpoint"])]
    kind: Option<String>,
    /// The region that the data came from; of data that is processed under a transfer, the jurisdiction.
    #[arg(long)]
    from: Option<String>,
    /// The region that the data went to.
    #[arg(long)]
    to: Option<String>,
    /// A data class.
    #[arg(long)]
    data: Option<String>,
    /// A route of the policy.
    #[arg(long)]
    route: Option<String>,
    /// The id of a request, as responses and logs show it.
    #[arg(long)]
    request: Option<String>,
    /// The legal basis of a transfer, or its record.
    #[arg(long)]
    basis: Option<String>,
    /// The part of a class's rule that allowed a movement: stays, transfers, carried_by, or mode for report-only.
    #[arg(long, value_name = "CLASS.PART")]
    rule: Option<String>,
}

pub(super) fn run(options: &Options, source: &Source) -> Outcome {
    let files = options.place.files(source)?;
    let (since, before) = options.period.bounds();
    let users = options.user.as_ref().map(|user| options.key.pseudonyms(user, &files)).transpose()?.unwrap_or_default();
    let filter = Filter {
        users,
        since,
        before,
        kind: options.kind.clone(),
        from: options.from.clone(),
        to: options.to.clone(),
        class: options.data.clone(),
        route: options.route.clone(),
        request: options.request.clone(),
        basis: options.basis.clone(),
        rule: options.rule.clone(),
    };
    let (mut found, mut waiting, mut said) = (0_u64, String::new(), Ok(()));
    let verified = each_line(&files, |text, line| {
        if filter.admits(line) {
            found += 1;
            waiting += text;
            waiting.push('\n');
        }
        if waiting.len() >= CHUNK && said.is_ok() {
            said = say(&std::mem::take(&mut waiting));
        }
    });
    said?;
    say(&waiting)?;
    eprintln!("{found} of {} lines", verified?.lines);
    Ok(ExitCode::SUCCESS)
}
