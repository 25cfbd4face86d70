//! `domicile explain`: shows where a request would go, and why.

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;

use crate::app;
use crate::engine::explain::{Query, claim, header};
use crate::model::day::Day;
use crate::model::vitals::Vitals;

use super::{Outcome, Source, say};

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    source: Source,
    /// The client's address.
    #[arg(long, default_value = "0.0.0.0")]
    ip: IpAddr,
    /// The user's key, treated as proven, as in a header from a trusted hop.
    #[arg(long)]
    user: Option<String>,
    /// Treat the user's key as claimed but not proven, as in a plain cookie.
    #[arg(long)]
    claimed: bool,
    /// A claim of a verified token; may be given several times.
    #[arg(long = "claim", value_name = "NAME=VALUE", value_parser = claim)]
    claims: Vec<(String, String)>,
    /// A header field of the request, for routes that match on it; may be given several times.
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// Decide as of this day (YYYY-MM-DD) instead of today.
    #[arg(long)]
    day: Option<String>,
    /// Treat this region as down; may be given several times.
    #[arg(long, value_name = "REGION")]
    down: Vec<String>,
    /// Fail unless the request goes to this region, or is refused with this code; or the whole decision, such as `redirect eu-west`.
    #[arg(long, value_name = "REGION|CODE")]
    expect: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// The request's method.
    method: String,
    /// The request's URL.
    url: String,
}

pub(super) fn run(options: Options) -> Outcome {
    let Source { config, region } = &options.source;
    let (snapshot, actions) =
        app::offline(config, region.as_deref(), Day::of(SystemTime::now()), None).map_err(|error| error.to_string())?;
    let vitals = Vitals::unmeasured(snapshot.policy.nearest_first());
    let Options { ip, user, claimed, claims, headers, day, down, json, method, url, .. } = options;
    let query = Query { method, url, ip, user, claimed, claims, headers, day, down, json };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(|error| error.to_string())?;
    let explanation = runtime.block_on(app::explain(&snapshot, &actions, &vitals, &query))?;
    say(&if json { explanation.json() } else { explanation.text() })?;
    match options.expect.filter(|expected| !explanation.is_as_expected(expected)) {
        Some(expected) => Err(format!("expected `{expected}`, found `{}`", explanation.outcome)),
        None => Ok(ExitCode::SUCCESS),
    }
}
