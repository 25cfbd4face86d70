//! `domicile test`: judges the requests of a file of test cases, and compares the decisions with the expected ones.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use clap::Args;

use crate::app;
use crate::config::expectations::cases::{self, Case, Cases};
use crate::engine::explain::Query;
use crate::model::day::Day;
use crate::model::vitals::Vitals;

use super::{Outcome, Source, say};

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    source: Source,
    /// The file of test cases.
    cases: PathBuf,
}

pub(super) fn run(options: &Options) -> Outcome {
    let cases = cases::read(&options.cases)?;
    let mut regions: BTreeMap<Option<&str>, app::Offline> = BTreeMap::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(|error| error.to_string())?;
    let mut wrong = 0;
    for case in &cases.cases {
        let at = case.at.as_deref().or(options.source.region.as_deref());
        let offline = match regions.entry(at) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(new) => {
                let name = options.cases.display();
                new.insert(load(options, &cases, at).map_err(|error| format!("{name}: {}:\n{error}", case.it))?)
            }
        };
        if let Some(difference) = runtime.block_on(check(case, offline))? {
            wrong += 1;
            say(&format!("{}: {}\n{difference}\n", options.cases.display(), case.it))?;
        }
    }
    let count = cases.cases.len();
    say(&format!("{count} cases, {wrong} wrong\n"))?;
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Loads the policy of a region, with the people of the cases.
fn load(options: &Options, cases: &Cases, at: Option<&str>) -> Result<app::Offline, String> {
    let today = Day::of(SystemTime::now());
    let people = cases.people.as_ref().map(|people| {
        people
            .iter()
            .map(|(user, person)| (user.as_str(), person.home.as_str(), person.jurisdiction.as_deref()))
            .collect::<Vec<_>>()
    });
    app::offline(&options.source.config, at, today, people.as_deref()).map_err(|error| error.to_string())
}

/// The difference between the decision and the expected one, if there is one.
async fn check(case: &Case, (snapshot, actions): &app::Offline) -> Result<Option<String>, String> {
    let wrong = |error: String| format!("{}: {error}", case.it);
    let (method, url) = case
        .ask
        .split_once(' ')
        .ok_or_else(|| wrong(format!("`{}` is not a request; write a method and a URL, such as `GET /account/1`", case.ask)))?;
    let query = Query {
        method: method.to_owned(),
        url: url.trim().to_owned(),
        ip: case.ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        user: case.user.clone(),
        claimed: case.claimed,
        claims: pairs(&case.claims),
        headers: pairs(&case.headers),
        day: case.day.clone(),
        down: case.down.clone(),
        json: false,
    };
    let vitals = Vitals::unmeasured(snapshot.policy.nearest_first());
    let explanation = app::explain(&Arc::clone(snapshot), actions, &vitals, &query).await.map_err(wrong)?;
    let text = explanation.text();
    let is_said = case.says.as_ref().is_none_or(|part| text.contains(part));
    if explanation.is_as_expected(&case.expect) && is_said {
        return Ok(None);
    }
    let missing = case.says.as_ref().filter(|_| !is_said).map_or(String::new(), |part| format!("  does not say: {part}\n"));
    Ok(Some(format!("  expected: {}\n  found:    {}\n{missing}\n{text}", case.expect, explanation.outcome)))
}

fn pairs(map: &BTreeMap<String, String>) -> Vec<(String, String)> {
    map.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
}
