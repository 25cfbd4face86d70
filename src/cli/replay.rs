//! `domicile replay`: judges the requests of an access log under a configuration.

use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use serde_json::{Value, json};

use crate::access_log::reading;
use crate::app;
use crate::config;
use crate::model::day::Day;
use crate::model::user::Evidence;
use crate::review::replay::{Change, Changed, Logged, Replay};

use super::{Outcome, Source, say};

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    source: Source,
    /// The access log of the local region, in the format `text` or `json`; `-` reads standard input.
    #[arg(long, value_name = "FILE")]
    log: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options) -> Outcome {
    let today = Day::of(SystemTime::now());
    let Source { config: file, region } = &options.source;
    // The log has homes instead of keys, so the user table is not needed.
    let (snapshot, _) = app::offline(file, region.as_deref(), today, Some(&[])).map_err(|error| error.to_string())?;
    let mut replay = Replay::default();
    let mut others = 0_u64;
    let log = &options.log;
    let failed = |error: std::io::Error| format!("{}: cannot read this file: {error}", log.display());
    let mut lines = open(log).map_err(failed)?;
    let mut line = Vec::new();
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line).map_err(failed)? == 0 {
            break;
        }
        match reading::fields(String::from_utf8_lossy(&line).trim_end()) {
            // The region that a peer's client connected to has the request in its own log.
            Some(fields) if fields.contains_key("peer") => replay.skipped += 1,
            Some(mut fields) => {
                let logged = logged(&mut fields);
                replay.add(&logged, &snapshot.policy, today, |address| snapshot.geoip.as_ref()?.place(address));
            }
            None => others += 1,
        }
    }
    if replay.judged == 0 && replay.skipped == 0 && replay.unreadable == 0 {
        return Err(format!("{}: no line is about a request; the formats `text` and `json` can be replayed", log.display()));
    }
    let name = snapshot.policy.region_name(snapshot.policy.local);
    say(&if options.json { as_json(&replay, others) } else { text(&replay, name, file, others) })?;
    Ok(ExitCode::SUCCESS)
}

fn open(log: &Path) -> std::io::Result<Box<dyn BufRead>> {
    if log == Path::new(config::STDIN) {
        return Ok(Box::new(BufReader::new(std::io::stdin())));
    }
    Ok(Box::new(BufReader::with_capacity(1 << 18, std::fs::File::open(log)?)))
}

fn logged(fields: &mut std::collections::BTreeMap<String, String>) -> Logged {
    let mut take = |name: &str| fields.remove(name).unwrap_or_default();
    let client = take("client");
    let address = client.split('/').next().unwrap_or_default();
    Logged {
        id: take("id"),
        method: take("method"),
        host: take("host"),
        path: take("path"),
        route: take("route"),
        client: address.parse::<IpAddr>().ok(),
        home: take("home"),
        evidence: Evidence::parse(&take("evidence")),
        served_by: take("served_by"),
        verdict: take("verdict"),
        code: take("code"),
    }
}

fn text(replay: &Replay, region: &str, file: &Path, others: u64) -> String {
    let Replay { judged, skipped, unreadable, changes } = replay;
    let mut out = format!("{judged} requests of {region} judged under {}", file.display());
    if *skipped > 0 {
        out += &format!(
            "; {skipped} left out: sent by a peer, refused for a reason other than the policy, or without path and known route"
        );
    }
    if *unreadable > 0 {
        out += &format!("; {unreadable} lines are incomplete");
    }
    if others > 0 {
        out += &format!("; {others} lines are about something else");
    }
    out += if changes.is_empty() { "\nnothing changes\n" } else { "\n" };
    for ((route, change), Changed { count, examples }) in changes {
        out += &format!("\nroute {route}: {}: {count}\n", change.as_str());
        out += &examples.iter().map(|example| format!("  {example}\n")).collect::<String>();
    }
    out
}

fn as_json(replay: &Replay, others: u64) -> String {
    let one = |((route, change), changed): (&(String, Change), &Changed)| json!({ "route": route, "change": change.as_str(), "count": changed.count, "examples": changed.examples });
    let changes: Vec<Value> = replay.changes.iter().map(one).collect();
    let Replay { judged, skipped, unreadable, .. } = replay;
    let report = json!({
        "judged": judged, "left_out": skipped, "incomplete": unreadable, "other_lines": others, "changes": changes,
    });
    format!("{report:#}\n")
}
