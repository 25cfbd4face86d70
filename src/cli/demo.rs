//! `domicile demo`: runs three regions in one process.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;

use crate::access_log::{AccessLog, Format};
use crate::config;
use crate::demo::{self, World};
use crate::model::day::Day;
use crate::model::region::Registry;

use super::log::start_log;
use super::{Outcome, say};

#[derive(Args)]
pub(super) struct Options {
    /// Send sample requests, print the result of each, and exit; the exit code is 1 if a result is wrong.
    #[arg(long)]
    tour: bool,
    /// Only start sample app servers: one at each upstream of this configuration.
    #[arg(long, value_name = "CONFIG", conflicts_with = "tour")]
    apps: Option<PathBuf>,
    /// Print a line for each request.
    #[arg(long)]
    log: bool,
    /// The GeoIP database.
    #[arg(long, default_value = "geoip/country.mmdb")]
    geoip: PathBuf,
}

pub(super) fn run(options: &Options) -> Outcome {
    if let Some(config) = &options.apps {
        return serve_apps(config);
    }
    let (_log, _) = start_log(false, if options.log { "warn" } else { "off" });
    let (access_log, _lines) = AccessLog::start(std::io::stderr(), Format::Text).map_err(|error| error.to_string())?;
    let world = World::start(&options.geoip, "", Some(access_log).filter(|_| options.log), !options.tour)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let outcome = if options.tour {
        runtime.block_on(demo::tour(&world))
    } else {
        print(&world);
        runtime.block_on(until_stopped()).map(|()| true)
    };
    world.stop();
    Ok(if outcome? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Waits for Ctrl-C or SIGTERM.
async fn until_stopped() -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot listen for signals: {error}");
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map_err(failed)?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(failed),
        _ = terminate.recv() => Ok(()),
    }
}

/// Serves a sample app server at each upstream of every region, until Ctrl-C.
fn serve_apps(config: &Path) -> Outcome {
    let today = Day::of(SystemTime::now());
    let all = |problems: Vec<config::Problem>| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let names = config::region_names(config).map_err(all)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    for name in &names {
        // The settings of a region have its own upstreams only.
        let own = config::load(config, Some(name), &mut Registry::default(), today).map_err(all)?;
        for (_, service) in own.settings.services {
            for upstream in &service.upstreams {
                let Ok(address) = upstream.authority.parse() else {
                    return Err(format!(
                        "`{}` is not an address on this machine; the sample apps need upstreams such as `http://127.0.0.1:3001`",
                        upstream.authority
                    ));
                };
                runtime
                    .block_on(demo::sample_app::start(name, format!("{name}-{}", service.name), address))
                    .map_err(|error| format!("cannot listen at `{address}`: {error}"))?;
                say(&format!("{name}: service {} at http://{address}\n", service.name))?;
            }
        }
    }
    runtime.block_on(async { tokio::signal::ctrl_c().await }).map_err(|error| error.to_string())?;
    Ok(ExitCode::SUCCESS)
}

fn print(world: &World) {
    println!(
        "Three regions are running, with simulated network delays between them. See where requests go: http://{}\n",
        world.page
    );
    for region in &world.regions {
        let apps: Vec<_> = region.apps.iter().map(ToString::to_string).collect();
        println!(
            "  {:<13} http://{}  https://{}  admin http://{}  app {}  search {}",
            region.name,
            region.http,
            region.https,
            region.admin,
            apps.join(" "),
            region.search
        );
    }
    if world.has_other_ports() {
        println!(
            "\n  Other processes use some of the usual ports, 8100 to 8139, so that these differ from those in the documentation."
        );
    }
    print_commands(world);
}

/// Prints commands to try.
fn print_commands(world: &World) {
    let (eu, us, jp) = (world.region("eu-west"), world.region("us-east"), world.region("ap-northeast"));
    let ca = world.folder.join("ca.pem");
    println!("\nPaste these into another terminal:\n");
    let show = |what: &str, command: String| println!("  # {what}\n  {command}\n");
    show("a user at home", format!("curl -s http://{}/users/alice/orders/1", eu.http));
    show(
        "the same user abroad: us-east forwards the request to eu-west",
        format!("curl -s http://{}/users/alice/orders/1", us.http),
    );
    show("over TLS and HTTP/2", format!("curl -s --http2 --cacert {} https://{}/users/alice/orders/1", ca.display(), us.https));
    show(
        "an unknown user, placed by country (Germany)",
        format!("curl -s -H 'X-Forwarded-For: 91.64.0.1' http://{}/profile/me", us.http),
    );
    show(
        "a refusal: no region here may process personal data of users in Brazil",
        format!("curl -si -H 'X-Forwarded-For: 177.1.1.1' http://{}/profile/me", us.http),
    );
    show(
        "a redirect: no other region may carry restricted data, so the client must connect to eu-west itself",
        format!("curl -si -H 'X-User-Id: alice' http://{}/account/1", us.http),
    );
    show("public data: the nearest region serves the request", format!("curl -s http://{}/feed/1", jp.http));
    show(
        "another service: search stops in us-east, and its requests go to eu-west; then it starts again",
        format!(
            "curl -s http://{1}/demo/down; sleep 2; curl -s http://{0}/search/boots; curl -s http://{1}/demo/up",
            us.http, us.search
        ),
    );
    let down: Vec<_> = us.apps.iter().map(|app| format!("curl -s http://{app}/demo/down")).collect();
    let up: Vec<_> = us.apps.iter().map(|app| format!("curl -s http://{app}/demo/up")).collect();
    show(
        "a failover: stop us-east's app servers; reads of bob's orders go to eu-west, because a transfer allows it",
        down.join("; "),
    );
    show(
        "a read and a write of bob: the write is never served elsewhere",
        format!("sleep 2; curl -s http://{0}/users/bob/orders/1; curl -s -X POST http://{0}/users/bob/orders/1", us.http),
    );
    show("start the app servers again", up.join("; "));
    show(
        "why did the request go there?",
        format!("curl -s 'http://{}/explain?url=http://{}/users/alice/orders/1&ip=91.64.0.1'", us.admin, us.http),
    );
    show(
        "the ledger lines recorded before requests crossed a border",
        format!("cat {}", world.folder.join("ledger/us-east/ledger.jsonl").display()),
    );
    show("the metrics for Prometheus", format!("curl -s http://{}/metrics", us.admin));
    println!("Press Ctrl-C to stop.");
}
