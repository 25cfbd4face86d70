//! `domicile run`: serve until told to stop.

use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::app::{App, Launch, StartError};
use crate::config;
use crate::model::day::Day;
use crate::model::region::Registry;
use crate::transport::listener::inherit;

use super::{Outcome, Source, succession};

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    source: Source,
}

pub(super) fn run(options: Options) -> Outcome {
    let Source { config, region } = options.source;
    let _logs = start_log(is_json(&config, region.as_deref()), "info");
    let file = config.display().to_string();
    let claimed =
        inherit::inherited().map_err(|error| format!("a socket that was left to this process cannot be used: {error}"))?;
    let is_successor = succession::is_successor();
    let deaf = |error: std::io::Error| format!("cannot wait for connection_state: {error}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    // Before anyone can see that we serve: unheard, both of these connection_state end the process.
    let mut calls = runtime.block_on(async { Calls::listen() }).map_err(deaf)?;
    let launch = Launch { config, region, claimed, is_successor, ..Launch::default() };
    let app = App::start(launch).map_err(|error| with_folder(&error))?;
    // Until here, whoever stops us need not wait for a large table.
    let mut stops = runtime.block_on(async { Stops::listen() }).map_err(deaf)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), region = app.region, policy = app.policy, config = file, "started");
    for (configured, address) in &app.listeners {
        tracing::info!(%configured, %address, "listening");
    }
    tracing::info!(address = %app.admin, "the control plane is listening");
    notify(&[NotifyState::Ready, NotifyState::MainPid(std::process::id())]);
    if is_successor {
        succession::report();
    }
    runtime.block_on(until_told_to_stop(&app, &mut calls, &mut stops));
    tracing::info!("draining");
    let (done, drained) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        app.shut_down();
        let _ = done.send(());
    });
    // A second signal ends the waiting, and with it whatever is still in flight.
    let was_drained = runtime.block_on(async {
        tokio::select! {
            _ = drained => true,
            () = stops.next() => false,
        }
    });
    if !was_drained {
        tracing::warn!("stopped while requests were in flight");
        return Ok(ExitCode::FAILURE);
    }
    tracing::info!("drained");
    Ok(ExitCode::SUCCESS)
}

/// Tells systemd, if it started this process.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd could not be told");
    }
}

async fn until_told_to_stop(app: &App, calls: &mut Calls, stops: &mut Stops) {
    loop {
        tokio::select! {
            () = stops.next() => break,
            _ = calls.reload.recv() => {
                if let Ok(now) = NotifyState::monotonic_usec_now() {
                    notify(&[NotifyState::Reloading, now]);
                }
                // What was wrong is in the log already; and whoever stops us need not wait for a large table.
                tokio::select! {
                    _ = app.reload() => notify(&[NotifyState::Ready]),
                    () = stops.next() => break,
                }
            }
            _ = calls.succeed.recv() => tokio::select! {
                succeeded = succession::start(app) => match succeeded {
                    Ok(pid) => {
                        tracing::info!(pid, "a successor serves");
                        app.retire().await;
                        return;
                    }
                    Err(error) => tracing::error!(error, "the successor did not come to serve; this process goes on"),
                },
                () = stops.next() => break,
            },
        }
    }
    notify(&[NotifyState::Stopping]);
}

/// ConnectionState that ask for something.
struct Calls {
    reload: Signal,
    succeed: Signal,
}

impl Calls {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { reload: signal(SignalKind::hangup())?, succeed: signal(SignalKind::user_defined2())? })
    }
}

/// ConnectionState to stop; none that comes while another is looked after is lost.
struct Stops {
    terminate: Signal,
    interrupt: Signal,
}

impl Stops {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// A file that was not found may have been looked for in the wrong place.
fn with_folder(error: &StartError) -> String {
    let text = error.to_string();
    match std::env::current_dir() {
        Ok(folder) if text.contains("No such file") => {
            format!("{text}\nrelative paths begin in the working directory, `{}`", folder.display())
        }
        _ => text,
    }
}

/// The log's form is needed before the configuration is really read; mistakes are reported then.
fn is_json(file: &std::path::Path, region: Option<&str>) -> bool {
    let config = config::load(file, region, &mut Registry::default(), Day::of(SystemTime::now()));
    config.is_ok_and(|config| config.settings.log.json)
}

/// Lines go to standard error from a thread of their own: a slow terminal must not slow requests. Lines that find the
/// queue full are dropped, and that is counted by nobody but the reader.
pub(super) fn start_log(json: bool, standard: &str) -> tracing_appender::non_blocking::WorkerGuard {
    let (writer, guard) = tracing_appender::non_blocking(std::io::stderr());
    let filter = EnvFilter::try_from_env("DOMICILE_LOG").unwrap_or_else(|_| EnvFilter::new(standard));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(BoxMakeWriter::new(writer)).with_target(true);
    if json {
        subscriber.json().flatten_event(true).init();
    } else {
        subscriber.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init();
    }
    guard
}
