//! `domicile audit subject`.

use std::process::ExitCode;

use clap::Args;

use crate::audit::reading::query::Filter;
use crate::audit::reading::report::Report;
use crate::directory::{Answer, Directory};

use super::{Outcome, Place, PseudonymKey, Source, configuration, each_line, say};

#[derive(Args)]
pub(super) struct Options {
    /// The user, named by the key in the requests or in the user table.
    user: String,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    key: PseudonymKey,
}

pub(super) fn run(options: &Options, source: &Source) -> Outcome {
    let (user, files) = (&options.user, options.place.files(source)?);
    let users = options.key.pseudonyms(user, &files)?;
    let pseudonyms = users.join("`, `");
    let filter = Filter { users, ..Filter::default() };
    let mut report = Report::default();
    each_line(&files, |_, line| {
        if filter.admits(line) || line.is_settlement() {
            report.add(line);
        }
    })?;
    // Files that are named may belong to a region whose configuration is not here.
    let table = if options.place.files.is_empty() { home_of(user, source)? } else { String::new() };
    let movements = report.movements_text();
    say(&format!(
        "{user}\n\n{table}Movements in the ledger, where the user is `{pseudonyms}`:\n\n{movements}\n\
         The access log has the same pseudonyms in the field `user`. `domicile audit query --user {user}` prints the lines.\n"
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// A paragraph with the row of the user table.
fn home_of(user: &str, source: &Source) -> Result<String, String> {
    let (config, registry) = configuration(source)?;
    let Some(settings) = &config.settings.directory else { return Ok(String::new()) };
    let file = settings.file.display();
    let directory = Directory::open(settings, &registry).map_err(|error| error.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|error| error.to_string())?;
    Ok(match runtime.block_on(directory.find(user)) {
        Answer::Found(record) => format!("User table `{file}`: home {}\n\n", config.policy.region_name(record.home)),
        Answer::Absent => format!("User table `{file}`: no row\n\n"),
        Answer::Unavailable => return Err(format!("the user table `{file}` does not answer; try again")),
    })
}
