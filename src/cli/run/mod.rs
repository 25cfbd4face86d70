//! `domicile run`: serves requests until a signal stops it.

mod succession;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::access_log::{self, AccessLog};
use crate::app::{self, App, Launch, StartError};
use crate::config;
use crate::transport::listener::inherit;

use super::log::start_log;
use super::{Outcome, Source};

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    source: Source,
}

pub(super) fn run(options: Options) -> Outcome {
    let Source { config, region } = options.source;
    if config == std::path::Path::new(config::STDIN) {
        return Err("`run` reads its configuration again at every reload; name a file instead of `-`".into());
    }
    let (log, access_log) = logs(&config, region.as_deref());
    let (_log, log_filter) = start_log(log.json, "info");
    let opened = access_log.map(|settings| open_access_log(&settings)).transpose()?;
    let (access_log, _lines) = opened.unzip();
    let file = config.display().to_string();
    let inherited = inherit::inherited().map_err(|error| format!("an inherited socket cannot be used: {error}"))?;
    let predecessor_user_count = succession::predecessor_user_count();
    let no_signals = |error: std::io::Error| format!("cannot listen for signals: {error}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    // Install these handlers before the process reports that it is ready, because without a handler SIGHUP, SIGUSR1 and SIGUSR2 end it.
    let mut controls = runtime.block_on(async { ControlSignals::listen() }).map_err(no_signals)?;
    let launch = Launch {
        config,
        region,
        inherited,
        predecessor_user_count,
        access_log: access_log.clone(),
        log_filter: Some(log_filter),
        ..Launch::default()
    };
    let app = App::start(launch).map_err(|error| with_folder(&error))?;
    // Install these handlers only after the start, so that SIGTERM and SIGINT end the start at once, even while a large user
    // table loads.
    let mut stops = runtime.block_on(async { StopSignals::listen() }).map_err(no_signals)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), region = app.region, policy = app.policy, config = file, "started");
    for (configured, address) in &app.listeners {
        tracing::info!(%configured, %address, "listening");
    }
    tracing::info!(address = %app.admin, "control plane listening");
    notify(&[NotifyState::Ready, NotifyState::MainPid(std::process::id())]);
    if predecessor_user_count.is_some() {
        succession::report();
    }
    runtime.block_on(run_until_stopped(&app, access_log.as_ref(), &mut controls, &mut stops));
    tracing::info!("draining");
    let began = Instant::now();
    let (done, drained) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        app.shut_down();
        let _ = done.send(());
    });
    // A second stop signal ends the process without waiting for requests in flight.
    let was_drained = runtime.block_on(async {
        let mut drained = drained;
        loop {
            tokio::select! {
                _ = &mut drained => break true,
                // A supervisor may send one signal both to the process and to its group.
                () = stops.next() => if began.elapsed() > SAME_SIGNAL { break false },
                _ = controls.reopen.recv() => access_log.iter().for_each(AccessLog::reopen),
            }
        }
    });
    if !was_drained {
        tracing::warn!("second stop signal; stopping with requests in flight");
        return Ok(ExitCode::FAILURE);
    }
    tracing::info!("drained");
    Ok(ExitCode::SUCCESS)
}

/// Stop signals that arrive within this time are one.
const SAME_SIGNAL: Duration = Duration::from_millis(100);

/// Notifies systemd, if it started this process.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot notify systemd");
    }
}

/// Handles signals until this process must drain: on a stop signal, or when a successor serves.
async fn run_until_stopped(app: &App, access_log: Option<&AccessLog>, controls: &mut ControlSignals, stops: &mut StopSignals) {
    loop {
        tokio::select! {
            () = stops.next() => break,
            _ = controls.reload.recv() => {
                if let Ok(now) = NotifyState::monotonic_usec_now() {
                    notify(&[NotifyState::Reloading, now]);
                }
                // `reload` logs its errors. A stop signal does not wait for a large user table to load.
                tokio::select! {
                    _ = app.reload() => notify(&[NotifyState::Ready]),
                    () = stops.next() => break,
                }
            }
            _ = controls.reopen.recv() => access_log.into_iter().for_each(AccessLog::reopen),
            _ = controls.succeed.recv() => tokio::select! {
                succeeded = succession::start(app) => match succeeded {
                    Ok(pid) => {
                        tracing::info!(pid, "handover complete; a successor serves");
                        app.retire().await;
                        return;
                    }
                    Err(error) => tracing::error!(error, "handover failed; this process continues to serve"),
                },
                () = stops.next() => break,
            },
        }
    }
    notify(&[NotifyState::Stopping]);
}

/// SIGHUP starts a reload, SIGUSR1 opens the access log again, SIGUSR2 starts a handover to a successor.
struct ControlSignals {
    reload: Signal,
    reopen: Signal,
    succeed: Signal,
}

impl ControlSignals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            reload: signal(SignalKind::hangup())?,
            reopen: signal(SignalKind::user_defined1())?,
            succeed: signal(SignalKind::user_defined2())?,
        })
    }
}

/// SIGTERM and SIGINT. A signal that arrives during a reload or a handover is not lost.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
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

/// Adds the working directory to an error about a missing file, because relative paths depend on it.
fn with_folder(error: &StartError) -> String {
    let text = error.to_string();
    match std::env::current_dir() {
        Ok(folder) if text.contains("No such file") => {
            format!("{text}\nrelative paths refer to the working directory, `{}`", folder.display())
        }
        _ => text,
    }
}

/// The settings of both logs. Reads the configuration, because the logs start before `App::start` loads it. Mistakes are ignored
/// here, because `App::start` reports them.
fn logs(file: &std::path::Path, region: Option<&str>) -> (config::Log, Option<access_log::Settings>) {
    app::log_settings(file, region).unwrap_or_default()
}

fn open_access_log(settings: &access_log::Settings) -> Result<(AccessLog, access_log::Guard), String> {
    AccessLog::open(settings).map_err(|error| {
        format!(
            "cannot open the access log `{}`: {error}; correct `access_log.output`, or write `access_log: off`",
            settings.output
        )
    })
}
