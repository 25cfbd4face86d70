//! `domicile status`: shows the state of the running process on one screen.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http::Method;
use serde_json::Value;

use super::super::{Outcome, Source, say};
use super::client::Client;

#[derive(Args)]
pub(in crate::cli) struct StatusOptions {
    #[command(flatten)]
    source: Source,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Fail if the process is not ready, for health checks.
    #[arg(long)]
    ready: bool,
}

pub(in crate::cli) fn run(options: &StatusOptions) -> Outcome {
    let answer = Client::of(&options.source)?.send(Method::GET, "/status")?;
    let report: Value = serde_json::from_str(&answer).map_err(|error| format!("the process sent an invalid report: {error}"))?;
    say(&if options.json { answer } else { screen(&report) })?;
    match report["not_ready_because"].as_str().filter(|_| options.ready) {
        Some(reason) => Err(format!("the process is not ready: {reason}")),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// The report as text.
fn screen(report: &Value) -> String {
    let mut out = String::new();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut line = |heading: &str, rest: String| {
        let _ = writeln!(out, "{heading:<10} {rest}");
    };
    let up = humantime::format_duration(Duration::from_secs(report["uptime_seconds"].as_u64().unwrap_or_default()));
    line("region", format!("{}, Domicile {}, up {up}", text(&report["region"]), text(&report["version"])));
    let loaded = &report["loaded"];
    let outcome = if loaded["is_partial"] == true { "APPLIED IN PART" } else { "REFUSED" };
    let problem = loaded["problem"].as_str().map_or_else(String::new, |problem| format!("; {outcome}: {problem}"));
    line("policy", format!("{}, last load {}{problem}", text(&report["policy"]), text(&loaded["at"])));
    let ready = report["not_ready_because"].as_str().map_or_else(|| "ready".to_owned(), |reason| format!("NOT READY: {reason}"));
    let (connections, requests) = (&report["connections"], &report["requests_in_flight"]);
    line("process", format!("{ready}; {connections} connections, {requests} requests in flight; {}", text(&report["refuses"])));
    for region in list(&report["regions"]) {
        line("region", region_line(region));
    }
    for service in list(&report["services"]) {
        for upstream in list(&service["upstreams"]) {
            let (name, state) = (text(&upstream["upstream"]), text(&upstream["state"]));
            let reason = upstream["reason"].as_str().map_or_else(String::new, |reason| format!(" ({reason})"));
            let name = format!("{}/{name}", text(&service["name"]));
            line("upstream", format!("{name:<36} {state:<10} weight {}{reason}", upstream["weight"]));
        }
    }
    if let Some(users) = report["directory"]["users"].as_u64() {
        line("directory", format!("{users} users, file changed {}", text(&report["directory"]["changed"])));
    }
    if let Some(days) = report["geoip"]["age_days"].as_u64() {
        line("geoip", format!("database of {}, {days} days old", text(&report["geoip"]["built"])));
    }
    for file in list(&report["files"]) {
        let (name, until) = (text(&file["name"]), text(&file["valid_until"]));
        let usual = || format!("{name}: {} valid until {until}, {} days", text(&file["kind"]), file["days_left"]);
        line("file", file["note"].as_str().map_or_else(usual, |note| format!("ATTENTION: {note}")));
    }
    out
}

fn region_line(region: &Value) -> String {
    let text = |name: &str| region[name].as_str().unwrap_or_default().to_owned();
    let mut line = format!("{:<16} {:<11}", text("name"), text("state"));
    if region["is_local"] == true {
        line += " here";
    }
    if let Some(millis) = region["round_trip_ms"].as_f64() {
        line += &format!(" {millis} ms");
    }
    if !text("reason").is_empty() {
        line += &format!(" ({})", text("reason"));
    }
    let down: Vec<_> = list(&region["services_down"]).iter().filter_map(Value::as_str).collect();
    if !down.is_empty() {
        line += &format!(", services down: {}", down.join(", "));
    }
    if region["has_same_policy"] == false {
        line += &format!(", OTHER POLICY {} since {}", text("policy"), text("policy_since"));
    }
    line
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
