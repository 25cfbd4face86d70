//! Wiring: builds the rooms, starts both planes, swaps snapshots, drains.
//!
//! Promises: what is running keeps running: a reload that fails anywhere changes nothing, and one that succeeds is seen
//! by the next request whole. Several apps may live in one process. Never: a decision, a global. Start reading at
//! [`App::start`].

mod build;
mod control;
mod descriptors;
mod files;
mod handover;
mod watch;
mod worker;

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch as channel};

use crate::acme::AcmeError;
use crate::admin;
use crate::audit::{KeyError, Ledger, LedgerError, Pseudonyms, Tally};
use crate::config::{self, Problem, Settings};
use crate::directory::DirectoryError;
use crate::geoip::GeoIpError;
use crate::metrics::Metrics;
use crate::model::day::Day;
use crate::model::region::Registry;
use crate::model::vitals::Vitals;
use crate::proxy::Phase;
use crate::proxy::admission::{Connections, Gauge};
use crate::proxy::worker::Shared;
use crate::session::SealError;
use crate::tokens::KeysError;
use crate::transport::listener::inherit;
use crate::transport::listener::{self, BindError, BoundPort};
use crate::transport::tls::TlsError;

use build::{Built, Sources};
use files::Unsettled;
use handover::SocketHandover;

pub use build::{check_files, offline};

/// The parameters of a start.
#[derive(Default)]
pub struct Launch {
    pub config: PathBuf,
    /// Replaces `region:` of the file.
    pub region: Option<String>,
    /// Ports that are open already; the others are bound at the start.
    pub inherited: Vec<BoundPort>,
    /// Replaces `workers:` of the file.
    pub workers: Option<usize>,
    /// Another process still runs that this one takes over from.
    pub is_successor: bool,
}

/// Why nothing was started, or a reload changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{}", list(.0))]
    Config(Vec<Problem>),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    GeoIp(#[from] GeoIpError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Tokens(#[from] KeysError),
    #[error(transparent)]
    Acme(#[from] AcmeError),
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
    #[error("`{}`: this certificate names {found}, and this process runs in `{region}`; it needs the URI `domicile://region/{region}`", file.display())]
    OwnRegion { file: PathBuf, found: String, region: String },
    #[error("`region` cannot change while the process runs: it was `{was}` and is `{is}` now; restart it")]
    RegionChanged { was: String, is: String },
    #[error("the system refused a thread or a timer: {0}")]
    System(#[from] std::io::Error),
}

fn list(problems: &[Problem]) -> String {
    let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// A running Domicile.
pub struct App {
    /// Configured addresses, and those the kernel gave.
    pub listeners: HashMap<SocketAddr, SocketAddr>,
    pub admin: SocketAddr,
    /// The region it runs in, and the hash of the policy it started with.
    pub region: String,
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
    /// Starts everything; returns when every port accepts.
    pub fn start(mut launch: Launch) -> Result<Self, StartError> {
        let mut registry = Registry::default();
        let file = files::settle_one(&launch.config)?;
        let today = Day::of(SystemTime::now());
        let loaded = config::load(&launch.config, launch.region.as_deref(), &mut registry, today).map_err(StartError::Config)?;
        let worker_count = launch.workers.or(loaded.settings.workers).unwrap_or_else(cores);
        let ports = ports(&mut launch, &loaded.settings, worker_count)?;
        let admin = take_port(&mut launch.inherited, loaded.settings.admin.address, 1)?;
        let metrics = Arc::new(Metrics::new());
        let sources = Sources { file, config: loaded, registry: &registry, before: None, accepts_loss: false };
        let built = build::build(sources)?;
        let (phase, phases) = channel::channel(Phase::Serving);
        let shared = shared(&built, &metrics, launch.is_successor, phases.clone())?;
        let listener_configs = Arc::new(ArcSwap::new(Arc::clone(&built.listener_configs)));
        let mut workers = Vec::new();
        let mut handles = Vec::new();
        for index in 0..worker_count {
            let configs = Arc::clone(&listener_configs);
            let (worker, handle) = worker::spawn(index, Arc::clone(&shared), configs, Arc::clone(&metrics))?;
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
            built,
            shared: Arc::clone(&shared),
            listener_configs,
            metrics,
            workers,
            worker_count,
            phase: phases,
            deferred: Vec::new(),
            deferred_accepts_loss: false,
            handover: SocketHandover::clone(&handover),
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

    /// Reads all files again; the error says what was refused and stays as it was.
    pub async fn reload(&self) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        let gone = || "the process is shutting down".to_owned();
        self.commands.send(admin::Command::Reload { accepts_loss: false, reply }).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Takes nothing new from now on: readiness goes red, listeners close, connections end with what they have.
    pub fn drain(&self) {
        self.leave(Phase::Draining);
    }

    /// The first reason to leave is the one that counts.
    fn leave(&self, phase: Phase) {
        // A listening socket that nobody serves must not take connections.
        self.handover.clear();
        self.phase.send_if_modified(|now| {
            let is_news = *now == Phase::Serving;
            if is_news {
                *now = phase;
            }
            is_news
        });
    }

    /// Leaves all ports, and a part in the ledger, to a process that is about to be started. The sockets have to live until
    /// it has been.
    pub fn share(&self, command: &mut Command) -> std::io::Result<Vec<TcpListener>> {
        let sockets = self.handover.copies()?;
        inherit::leave(command, &sockets)?;
        self.shared.ledger.iter().for_each(|ledger| ledger.share(true));
        Ok(sockets)
    }

    /// The process that was to take over did not.
    pub fn keep(&self) {
        self.shared.ledger.iter().for_each(|ledger| ledger.share(false));
    }

    /// Gives way to a successor, which serves: on the control plane at once, elsewhere with what is under way.
    pub async fn retire(&self) {
        let _ = self.commands.send(admin::Command::Retire).await;
        self.leave(Phase::Succeeded);
    }

    /// Drains and waits until the last request is over, or the drain's deadline.
    pub fn shut_down(mut self) {
        self.drain();
        for worker in self.workers.drain(..) {
            // A worker that panicked has said so already.
            let _ = worker.join();
        }
        self.stop_control.take();
        if let Some(control) = self.control.take() {
            let _ = control.join();
        }
    }
}

/// The ports of the configuration, those that a predecessor left included.
fn ports(launch: &mut Launch, settings: &Settings, workers: usize) -> Result<Vec<(SocketAddr, BoundPort)>, BindError> {
    let addresses = settings.listeners.iter().map(|listener| listener.address);
    addresses.map(|address| Ok((address, take_port(&mut launch.inherited, address, workers)?))).collect()
}

/// Builds the state that all workers share. The ledger is opened last, so that a failed start writes nothing.
fn shared(
    built: &Built,
    metrics: &Arc<Metrics>,
    is_successor: bool,
    phase: channel::Receiver<Phase>,
) -> Result<Arc<Shared>, StartError> {
    let audit = built.settings.audit.as_ref();
    let ledger = audit.map(|settings| Ledger::open(settings, tally(metrics), is_successor)).transpose()?;
    let pseudonyms = match audit {
        Some(settings) => Pseudonyms::open(&settings.directory.join("pseudonym.key"))?,
        None => Pseudonyms::ephemeral(),
    };
    let vitals = Vitals::unmeasured(built.snapshot.policy().nearest_first());
    Ok(Arc::new(Shared {
        snapshot: Arc::new(ArcSwap::new(Arc::clone(&built.snapshot))),
        vitals: Arc::new(ArcSwap::new(Arc::new(vitals))),
        ledger,
        pseudonyms,
        phase,
        connections: Connections::default(),
        requests: Arc::default(),
        handshakes: Gauge::default(),
        unproven: Connections::default(),
    }))
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

/// How long a scrape waits for a worker to add up its counts: a stuck worker must not make the others invisible.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(200);
