//! Wiring: builds the parts of the process, starts the data plane and the control plane, swaps snapshots, drains.
//!
//! Promises: a refused reload changes nothing, and an applied reload takes effect as a whole with the next request. Several
//! apps may run in one process. Never: a decision about a request, global state. Start reading at [`App::start`].

mod build;
mod collector;
mod control;
mod files;
mod handover;
mod operate;
mod resources;
mod status;
mod watch;
mod worker;

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch as channel};

use crate::access_log::AccessLog;
use crate::acme::AcmeError;
use crate::admin;
use crate::audit::reading::verify::files_of;
use crate::audit::{KeyError, Ledger, LedgerError, Pseudonyms, Tally};
use crate::config::{Problem, Settings};
use crate::directory::DirectoryError;
use crate::geoip::GeoIpError;
use crate::metrics::Metrics;
use crate::model::region::Registry;
use crate::model::vitals::Vitals;
use crate::passwords::{Checks, PasswordError};
use crate::proxy::Phase;
use crate::proxy::admission::overload::Overload;
use crate::proxy::admission::rate_limit::RateLimits;
use crate::proxy::admission::{Connections, Gauge};
use crate::proxy::worker::{DrainedRegions, Shared};
use crate::services::ServiceError;
use crate::session::SealError;
use crate::tokens::KeysError;
use crate::traces::Traces;
use crate::transport::listener::inherit;
use crate::transport::listener::{self, BindError, BoundPort};
use crate::transport::tls::TlsError;

use build::{Built, Sources};
use collector::Batches;
use files::Unsettled;
use handover::SocketHandover;
use operate::LogLevel;
use status::{Loaded, Policies};

pub use build::{Offline, check_cases, check_files, ending_transfers, explain, log_settings, offline};
pub use operate::{FilterChange, LogFilter};

/// The parameters of a start.
#[derive(Default)]
pub struct Launch {
    pub config: PathBuf,
    /// Overrides `region:` of the file.
    pub region: Option<String>,
    /// Ports that are already open. The other ports are bound at the start.
    pub inherited: Vec<BoundPort>,
    /// Overrides `workers:` of the file.
    pub workers: Option<usize>,
    /// The number of users in the table of the running process from which this process takes over; `None` without one.
    pub predecessor_user_count: Option<usize>,
    /// The output of the access log; `None` to write none.
    pub access_log: Option<AccessLog>,
    /// Changes the level of the log; `None` without a log.
    pub log_filter: Option<LogFilter>,
}

/// The reason that a start or a reload failed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{}", list(.0))]
    Config(Vec<Problem>),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Services(#[from] ServiceError),
    #[error(transparent)]
    GeoIp(#[from] GeoIpError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Tokens(#[from] KeysError),
    #[error(transparent)]
    Acme(#[from] AcmeError),
    #[error(transparent)]
    Passwords(#[from] PasswordError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Pseudonyms(#[from] KeyError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Unsettled(#[from] Unsettled),
    #[error("`{}`: this certificate names {found}, but this process runs in `{region}`; use a certificate with the URI `domicile://region/{region}`", file.display())]
    OwnRegion { file: PathBuf, found: String, region: String },
    #[error("`region` cannot change while the process runs: it was `{was}` and is `{is}` now; restart the process")]
    RegionChanged { was: String, is: String },
    #[error("system error: {0}")]
    System(#[from] std::io::Error),
}

impl StartError {
    /// The files of the configuration that contain a mistake.
    fn files(&self) -> Vec<PathBuf> {
        let Self::Config(problems) = self else { return Vec::new() };
        problems.iter().map(|problem| problem.file.clone()).collect()
    }
}

fn list(problems: &[Problem]) -> String {
    let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// A running Domicile.
pub struct App {
    /// The bound address of each configured address; they differ where the configured port is 0.
    pub listeners: HashMap<SocketAddr, SocketAddr>,
    pub admin: SocketAddr,
    /// The local region.
    pub region: String,
    /// The hash of the policy at the start.
    pub policy: String,
    commands: mpsc::Sender<admin::Command>,
    phase: channel::Sender<Phase>,
    workers: Vec<JoinHandle<()>>,
    handover: SocketHandover,
    shared: Arc<Shared>,
    control: Option<JoinHandle<()>>,
    stop_control: Option<oneshot::Sender<()>>,
}

impl App {
    /// Starts everything; returns when every port accepts connections.
    pub fn start(mut launch: Launch) -> Result<Self, StartError> {
        let mut registry = Registry::default();
        let (loaded, read) = build::load(&launch.config, launch.region.as_deref(), &mut registry)?;
        let worker_count = launch.workers.or(loaded.settings.workers).unwrap_or_else(cores);
        let ports = ports(&mut launch, &loaded.settings, worker_count)?;
        let admin = take_port(&mut launch.inherited, loaded.settings.admin.address, 1)?;
        let metrics = Arc::new(Metrics::new());
        let sources = Sources { read, config: loaded, registry: &registry, before: None, accepts_loss: false };
        let built = build::build(sources)?;
        check_loss(&built, launch.predecessor_user_count)?;
        control::note_loaded(&metrics);
        let (phase, phases) = channel::channel(Phase::Serving);
        let shared = shared(&built, &metrics, launch.predecessor_user_count.is_some(), (worker_count, phases.clone()))?;
        let (shared, batches) = shared;
        let listener_configs = Arc::new(ArcSwap::new(Arc::clone(&built.listener_configs)));
        let mut workers = Vec::new();
        let mut handles = Vec::new();
        for index in 0..worker_count {
            let configs = Arc::clone(&listener_configs);
            let (worker, handle) =
                worker::spawn(index, Arc::clone(&shared), configs, Arc::clone(&metrics), launch.access_log.clone())?;
            workers.push(worker);
            handles.push(handle);
        }
        let listeners = ports.iter().map(|(configured, port)| (*configured, port.address)).collect();
        let admin_address = admin.address;
        let policy = built.snapshot.policy();
        let (region, policy) = (policy.region_name(policy.local).to_owned(), policy.hash.to_string());
        let (commands, received) = mpsc::channel(64);
        let (stop_control, stopped) = oneshot::channel();
        let handover = SocketHandover::default();
        let control = control::Control {
            config: launch.config,
            region: launch.region,
            registry,
            at_start: built.settings.clone(),
            built,
            shared: Arc::clone(&shared),
            listener_configs,
            metrics: Arc::clone(&metrics),
            workers,
            worker_count,
            phase: phases,
            deferred: Vec::new(),
            deferred_accepts_loss: false,
            handover: SocketHandover::clone(&handover),
            policies: Policies::default(),
            log: LogLevel::of(launch.log_filter),
            batches,
            started: Instant::now(),
            next_report: tokio::time::Instant::now(),
            loaded: Loaded { at: SystemTime::now(), is_partial: false, problem: None },
            read: Vec::new(),
        };
        let control = control::spawn(control, ports, admin, (commands.clone(), received), stopped)?;
        Ok(Self {
            listeners,
            admin: admin_address,
            region,
            policy,
            commands,
            phase,
            workers: handles,
            handover,
            shared,
            control: Some(control),
            stop_control: Some(stop_control),
        })
    }

    /// Reads all files again. The error lists the parts that were refused and keep their previous state.
    pub async fn reload(&self) -> Result<(), String> {
        let (reply, outcome) = oneshot::channel();
        let stopped = || "the process is shutting down".to_owned();
        self.commands.send(admin::Command::Reload { accepts_loss: false, reply }).await.map_err(|_| stopped())?;
        outcome.await.unwrap_or_else(|_| Err(stopped())).map(|_| ())
    }

    /// The number of users in the table.
    pub fn user_count(&self) -> usize {
        self.shared.snapshot.load().judging.directory.as_ref().map_or(0, |directory| directory.len())
    }

    /// Starts the drain: readiness fails, listeners close, and connections close after their requests in flight.
    pub fn drain(&self) {
        self.stop_serving(Phase::Draining);
    }

    /// Ends the serving phase; later calls have no effect.
    fn stop_serving(&self, phase: Phase) {
        // A copy would keep a listening socket open on which no worker accepts connections.
        self.handover.clear();
        self.phase.send_if_modified(|now| {
            let was_serving = *now == Phase::Serving;
            if was_serving {
                *now = phase;
            }
            was_serving
        });
    }

    /// Prepares a command to start a successor that takes over all ports and shares the ledger. The returned sockets must
    /// stay open until the successor has started.
    pub fn share(&self, command: &mut Command) -> std::io::Result<Vec<TcpListener>> {
        let sockets = self.handover.copies()?;
        inherit::leave(command, &sockets)?;
        self.shared.ledger.iter().for_each(|ledger| ledger.share(true));
        Ok(sockets)
    }

    /// Ends the sharing of the ledger, after a successor failed to take over.
    pub fn keep(&self) {
        self.shared.ledger.iter().for_each(|ledger| ledger.share(false));
    }

    /// Makes way for a successor that serves: ends the control plane at once, and drains the data plane.
    pub async fn retire(&self) {
        let _ = self.commands.send(admin::Command::Retire).await;
        self.stop_serving(Phase::Succeeded);
    }

    /// Drains, and waits until the last request has ended or the drain timeout has passed.
    pub fn shut_down(mut self) {
        self.drain();
        for worker in self.workers.drain(..) {
            // If the worker panicked, its message has already been printed.
            let _ = worker.join();
        }
        // The control thread sends the last spans.
        self.shared.traces.iter().for_each(Traces::shut_down);
        self.stop_control.take();
        if let Some(control) = self.control.take() {
            let _ = control.join();
        }
        self.shared.ledger.iter().for_each(Ledger::close);
    }
}

/// A successor does not take a table that has lost more users than the running process would accept.
fn check_loss(built: &Built, users_before: Option<usize>) -> Result<(), DirectoryError> {
    match (&built.settings.directory, &built.snapshot.judging.directory, users_before) {
        (Some(settings), Some(directory), Some(before)) => {
            settings.check_lost(before, before.saturating_sub(directory.len()), directory)
        }
        _ => Ok(()),
    }
}

/// Takes over or binds the ports of the configuration.
fn ports(launch: &mut Launch, settings: &Settings, workers: usize) -> Result<Vec<(SocketAddr, BoundPort)>, BindError> {
    let addresses = settings.listeners.iter().map(|listener| listener.address);
    addresses.map(|address| Ok((address, take_port(&mut launch.inherited, address, workers)?))).collect()
}

/// Builds the state that all workers share. The ledger is opened last, so that a failed start writes no line.
fn shared(
    built: &Built,
    metrics: &Arc<Metrics>,
    is_successor: bool,
    (worker_count, phase): (usize, channel::Receiver<Phase>),
) -> Result<(Arc<Shared>, Option<Batches>), StartError> {
    let audit = built.settings.audit.as_ref();
    // Before the ledger, so that a ledger always has its key.
    let pseudonyms = match audit {
        Some(settings) => {
            let is_new = files_of(&settings.directory).unwrap_or_default().is_empty();
            Pseudonyms::open(&settings.directory.join("pseudonym.key"), is_new)?
        }
        None => Pseudonyms::ephemeral(),
    };
    let ledger = audit.map(|settings| Ledger::open(settings, tally(metrics), is_successor)).transpose()?;
    let policy = built.snapshot.policy();
    let vitals = Vitals::unmeasured(policy.nearest_first());
    let traces = built.settings.traces.as_ref().map(|settings| {
        let (client, batches) = collector::channel();
        let traces = Traces::start(settings, policy.region_name(policy.local), client).map_err(std::io::Error::other)?;
        Ok::<_, std::io::Error>((traces, batches))
    });
    let (traces, batches) = traces.transpose()?.unzip();
    let shared = Shared {
        snapshot: Arc::new(ArcSwap::new(Arc::clone(&built.snapshot))),
        vitals: Arc::new(ArcSwap::new(Arc::new(vitals))),
        ledger,
        pseudonyms,
        traces,
        worker_count,
        phase,
        drained: DrainedRegions::default(),
        connections: Connections::default(),
        requests: Arc::default(),
        compressions: Arc::default(),
        mirrors: Arc::default(),
        rates: RateLimits::default(),
        password_checks: Checks::default(),
        overload: Overload::of(worker_count),
        handshakes: Gauge::default(),
        peer_connections: Arc::default(),
        unproven: Connections::default(),
    };
    Ok((Arc::new(shared), batches))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn take_port(inherited: &mut Vec<BoundPort>, address: SocketAddr, workers: usize) -> Result<BoundPort, BindError> {
    match inherited.iter().position(|port| port.address == address) {
        Some(index) => Ok(inherited.swap_remove(index)),
        None => listener::bind(address, workers),
    }
}

fn tally(metrics: &Arc<Metrics>) -> Tally {
    let (lines, failures) = (Arc::clone(metrics), Arc::clone(metrics));
    Tally {
        lines: Arc::new(move |count| lines.ledger_lines.inc_by(count)),
        failures: Arc::new(move || failures.ledger_failures.inc()),
    }
}

/// Maximum time that a scrape waits for a worker to flush its counts, so that a stuck worker does not hide the others.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(200);
