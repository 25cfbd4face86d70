//! The subcommands that control the running process: `status`, `reload`, `upstream`, `region` and `log`.

mod client;
mod status;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{Outcome, Source, say};
use client::Client;

pub(super) use status::{StatusOptions, run as status};

#[derive(Args)]
pub(super) struct ReloadOptions {
    #[command(flatten)]
    source: Source,
    /// Accept a user table that has lost more users than `users.directory.max_loss` allows.
    #[arg(long)]
    accept_loss: bool,
}

pub(super) fn reload(options: &ReloadOptions) -> Outcome {
    let target = if options.accept_loss { "/reload?accept_loss=true" } else { "/reload" };
    finish(&Client::of(&options.source)?.send(Method::POST, target)?)
}

#[derive(Args)]
pub(super) struct UpstreamOptions {
    #[command(flatten)]
    source: Source,
    #[command(subcommand)]
    command: UpstreamCommand,
}

#[derive(Subcommand)]
enum UpstreamCommand {
    /// Send no new requests to an upstream, except those of sessions that stick to it.
    Drain {
        /// SERVICE/UPSTREAM, as `domicile status` lists them.
        upstream: UpstreamName,
    },
    /// End the drain of an upstream.
    Undrain {
        /// SERVICE/UPSTREAM, as `domicile status` lists them.
        upstream: UpstreamName,
    },
    /// Change the weight of an upstream until the process ends.
    Weight {
        /// SERVICE/UPSTREAM, as `domicile status` lists them.
        upstream: UpstreamName,
        /// 1 to 1000, or `configured`.
        weight: String,
    },
}

/// An upstream as `SERVICE/UPSTREAM`, for example `app/10.0.0.1:3000`.
#[derive(Clone)]
struct UpstreamName {
    service: String,
    upstream: String,
}

impl std::str::FromStr for UpstreamName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || {
            format!(
                "`{text}` is not an upstream; write SERVICE/UPSTREAM, such as `app/10.0.0.1:3000` (`domicile status` lists them)"
            )
        };
        let (service, upstream) = text.split_once('/').ok_or_else(wrong)?;
        Ok(Self { service: service.into(), upstream: upstream.into() })
    }
}

pub(super) fn upstream(options: &UpstreamOptions) -> Outcome {
    let target = match &options.command {
        UpstreamCommand::Drain { upstream } => of_upstream("drain", upstream),
        UpstreamCommand::Undrain { upstream } => of_upstream("undrain", upstream),
        UpstreamCommand::Weight { upstream, weight } => {
            format!("{}&weight={}", of_upstream("weight", upstream), encoded(weight))
        }
    };
    finish(&Client::with_commands(&options.source)?.send(Method::POST, &target)?)
}

fn of_upstream(action: &str, UpstreamName { service, upstream }: &UpstreamName) -> String {
    format!("/upstreams/{action}?service={}&upstream={}", encoded(service), encoded(upstream))
}

#[derive(Args)]
pub(super) struct RegionOptions {
    #[command(flatten)]
    source: Source,
    #[command(subcommand)]
    command: RegionCommand,
}

#[derive(Subcommand)]
enum RegionCommand {
    /// Send no new requests to a region. For the local region, the other regions learn it from their probes.
    Drain { name: String },
    /// End the drain of a region.
    Undrain { name: String },
}

pub(super) fn region(options: &RegionOptions) -> Outcome {
    let target = match &options.command {
        RegionCommand::Drain { name } => format!("/regions/drain?region={}", encoded(name)),
        RegionCommand::Undrain { name } => format!("/regions/undrain?region={}", encoded(name)),
    };
    finish(&Client::with_commands(&options.source)?.send(Method::POST, &target)?)
}

#[derive(Args)]
pub(super) struct LogOptions {
    #[command(flatten)]
    source: Source,
    #[command(subcommand)]
    command: LogCommand,
}

#[derive(Subcommand)]
enum LogCommand {
    /// Set the level or the filter (the syntax of `DOMICILE_LOG`) for a time.
    Level {
        filter: String,
        /// How long, for example `10m`; at most a day.
        #[arg(long = "for", value_name = "DURATION", default_value = "10m")]
        period: String,
    },
}

pub(super) fn log(options: &LogOptions) -> Outcome {
    let LogCommand::Level { filter, period } = &options.command;
    let target = format!("/log?level={}&for={}", encoded(filter), encoded(period));
    finish(&Client::with_commands(&options.source)?.send(Method::POST, &target)?)
}

/// Sends a command to the running process, and prints its answer.
pub(super) fn command(source: &Source, target: &str) -> Outcome {
    finish(&Client::with_commands(source)?.send(Method::POST, target)?)
}

pub(super) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn finish(answer: &str) -> Outcome {
    say(answer)?;
    Ok(ExitCode::SUCCESS)
}
