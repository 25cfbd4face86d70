//! The control thread: serves the control plane, probes the regions, watches files, swaps snapshots.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use tokio::runtime::LocalRuntime;
use tokio::sync::{mpsc, oneshot, watch as channel};

use crate::acme;
use crate::admin::{self, Command};
use crate::decision::policy::Policy;
use crate::engine::explain;
use crate::metrics::Metrics;
use crate::model::day::Day;
use crate::model::region::Registry;
use crate::model::vitals::Vitals;
use crate::probes::{self, ProbeTarget, ProbeTargets};
use crate::proxy::admission::overload::Pressure;
use crate::proxy::request::region_report;
use crate::proxy::worker::Shared;
use crate::proxy::{Phase, Snapshot};
use crate::review::compare;
use crate::services;
use crate::transport::listener::unix::UnixAcceptor;
use crate::transport::listener::{self, Acceptor, BoundPort};

use super::build::{self, Built, ListenerConfigs, Sources};
use super::collector::{self, Batches};
use super::handover::SocketHandover;
use super::operate::{LogLevel, operate, record_reload};
use super::status::{self, Loaded, Policies};
use super::worker::{WorkerCommand, WorkerHandle};
use super::{FLUSH_TIMEOUT, StartError, files, resources, watch};

/// The state of the control thread.
pub struct Control {
    pub config: PathBuf,
    pub region: Option<String>,
    pub registry: Registry,
    pub built: Built,
    /// The settings at the start: some of them stay in effect until the process ends.
    pub at_start: crate::config::Settings,
    pub shared: Arc<Shared>,
    pub listener_configs: Arc<ArcSwap<ListenerConfigs>>,
    pub metrics: Arc<Metrics>,
    pub workers: Vec<WorkerHandle>,
    pub worker_count: usize,
    pub phase: channel::Receiver<Phase>,
    /// The replies to reloads that were requested during another reload.
    pub deferred: Vec<oneshot::Sender<Result<Vec<&'static str>, String>>>,
    /// Whether one of the deferred reloads confirms a loss of users beyond `max_loss`.
    pub deferred_accepts_loss: bool,
    pub handover: SocketHandover,
    pub policies: Policies,
    pub log: LogLevel,
    /// The batches of spans to send, until `run` takes them.
    pub batches: Option<Batches>,
    pub started: Instant,
    pub loaded: Loaded,
    /// When files that expire are reported next.
    pub next_report: tokio::time::Instant,
    /// The stamps of the files that the last reload read.
    pub read: Vec<files::Stamp>,
}

type Commands = (mpsc::Sender<Command>, mpsc::Receiver<Command>);

pub fn spawn(
    control: Control,
    ports: Vec<(SocketAddr, BoundPort)>,
    admin: BoundPort,
    commands: Commands,
    stopped: oneshot::Receiver<()>,
) -> Result<JoinHandle<()>, StartError> {
    for (address, port) in ports {
        control.listen(address, port);
    }
    let (started, start) = std::sync::mpsc::channel();
    let work = move || match LocalRuntime::new() {
        Ok(runtime) => runtime.block_on(async move {
            tokio::select! {
                () = control.run(admin, commands, started) => {}
                _ = stopped => {}
            }
        }),
        Err(error) => drop(started.send(Err(error))),
    };
    let handle = std::thread::Builder::new().name("control".into()).spawn(work)?;
    start.recv().map_err(|_| std::io::Error::other("the control thread ended early"))??;
    Ok(handle)
}
impl Control {
    async fn run(mut self, admin: BoundPort, commands: Commands, started: std::sync::mpsc::Sender<std::io::Result<()>>) {
        let (sender, mut received) = commands;
        self.handover.put(admin.address, &admin.sockets);
        let socket = admin.sockets.into_iter().next().expect("an open port has a socket");
        let acceptor = match Acceptor::adopt(socket) {
            Ok(acceptor) => acceptor,
            Err(error) => return drop(started.send(Err(error))),
        };
        let admin = self.built.settings.admin.clone();
        let admin_plane = tokio::task::spawn_local(admin::serve(acceptor, admin.accepts_commands, sender.clone()));
        let socket = match admin.socket.as_deref().map(UnixAcceptor::bind).transpose() {
            Ok(socket) => socket.map(|socket| tokio::task::spawn_local(admin::serve_socket(socket, sender.clone()))),
            Err(error) => {
                let path = admin.socket.unwrap_or_default();
                let reason =
                    format!("cannot open `admin.socket` `{}`: {error}; create its folder, or correct the path", path.display());
                return drop(started.send(Err(std::io::Error::other(reason))));
            }
        };
        let (targets, targeted) = channel::channel(targets(&self.built));
        let hooks = status::hooks(&self.shared, &self.metrics, &self.policies);
        tokio::task::spawn_local(probes::run(targeted, Arc::clone(&self.shared.vitals), hooks));
        tokio::task::spawn_local(resources::guard(Arc::clone(&self.shared), Arc::clone(&self.metrics)));
        if let Some(batches) = self.batches.take() {
            tokio::task::spawn_local(collector::serve(batches, self.built.snapshot.policy().local));
        }
        let mut health = tokio::task::spawn_local(watch_upstreams(&self.built));
        // Dropping the set ends its tasks.
        let mut _certificates = renew_certificates(&self.built);
        let (mut watcher, mut changed) = watch::start(self.built.files.all.clone());
        let _ = started.send(Ok(()));
        loop {
            let command = tokio::select! {
                command = received.recv() => command,
                () = tokio::time::sleep_until(self.next_report) => {
                    self.next_report = self.built.report_expiry();
                    continue;
                }
                Some(()) = changed.recv() => Some(Command::Reload { accepts_loss: false, reply: oneshot::channel().0 }),
            };
            match command {
                None => return,
                Some(Command::Retire) => {
                    admin_plane.abort();
                    socket.iter().for_each(tokio::task::JoinHandle::abort);
                }
                Some(Command::Reload { accepts_loss, reply }) => {
                    let services_before = Arc::clone(&self.built.snapshot.services);
                    let snapshot_before = Arc::clone(&self.built.snapshot);
                    let acme_before: Vec<_> = self.built.settings.acme().cloned().collect();
                    let outcome = self.reload(&mut received, accepts_loss).await;
                    if !Arc::ptr_eq(&snapshot_before, &self.built.snapshot) {
                        targets.send_replace(self::targets(&self.built));
                    }
                    watcher = watcher.retarget(std::mem::take(&mut self.read));
                    if acme_before != self.built.settings.acme().cloned().collect::<Vec<_>>() {
                        _certificates = renew_certificates(&self.built);
                    }
                    if !Arc::ptr_eq(&services_before, &self.built.snapshot.services) {
                        health.abort();
                        health = tokio::task::spawn_local(watch_upstreams(&self.built));
                    }
                    let _ = reply.send(outcome);
                    self.run_deferred(&sender);
                }
                Some(command) => self.answer(command).await,
            }
        }
    }

    /// Requests one more reload for all that were requested during the last one.
    fn run_deferred(&mut self, commands: &mpsc::Sender<Command>) {
        let deferred = std::mem::take(&mut self.deferred);
        let accepts_loss = std::mem::take(&mut self.deferred_accepts_loss);
        if deferred.is_empty() {
            return;
        }
        let commands = commands.clone();
        tokio::task::spawn_local(async move {
            let (reply, outcome) = oneshot::channel();
            if commands.send(Command::Reload { accepts_loss, reply }).await.is_ok()
                && let Ok(outcome) = outcome.await
            {
                deferred.into_iter().for_each(|reply| drop(reply.send(outcome.clone())));
            }
        });
    }

    /// Answers a command that changes nothing.
    async fn answer(&self, command: Command) {
        match command {
            Command::Metrics(reply) => drop(reply.send(self.scrape().await)),
            Command::Ready { service, reply } => drop(reply.send(self.readiness(service.as_deref()))),
            Command::Status(reply) => drop(reply.send(self.status())),
            Command::LedgerKey(reply) => {
                drop(reply.send(self.shared.ledger.as_ref().and_then(|ledger| ledger.public_key().ok())))
            }
            Command::Operate { operation, reply } => {
                let done = operate(&operation, &self.shared, &self.built.snapshot, &self.log).await;
                drop(reply.send(done));
            }
            Command::Explain { query, reply } => drop(reply.send(self.explain(&query).await)),
            Command::Reload { .. } | Command::Retire => unreachable!("`run` handles the commands that change the state"),
        }
    }

    /// Reads all files again and puts the new state into use. A refused configuration or certificate changes nothing. A table
    /// that cannot be read keeps its previous contents, so that the rest of the reload can proceed.
    async fn reload(&mut self, commands: &mut mpsc::Receiver<Command>, accepts_loss: bool) -> Result<Vec<&'static str>, String> {
        let metrics = Arc::clone(&self.metrics);
        let count = |result| metrics.reloads.with_label_values(&[result]).inc();
        let before = self.built.snapshot.policy().hash;
        let outcome = self.try_reload(commands, accepts_loss).await;
        let problem = match &outcome {
            Ok(kept) => (!kept.is_empty()).then(|| kept.join("\n")),
            Err(error) => Some(error.to_string()),
        };
        self.loaded = Loaded { at: SystemTime::now(), is_partial: outcome.is_ok(), problem };
        if outcome.is_ok() {
            let changes = std::mem::take(&mut self.built.changes);
            record_reload(self.shared.ledger.clone(), (before, self.built.snapshot.policy().hash), changes);
        }
        match outcome {
            Ok(kept) if kept.is_empty() => {
                count("applied");
                note_loaded(&self.metrics);
                let users = self.built.snapshot.judging.directory.as_ref().map_or(0, |directory| directory.len());
                tracing::info!(policy = %self.built.snapshot.policy().hash, users, "reloaded");
                let unapplied = self.unapplied();
                unapplied.iter().for_each(|name| tracing::warn!("`{name}` changed; restart the process to apply it"));
                Ok(unapplied)
            }
            Ok(kept) => {
                count("partly");
                metrics.reload_ok.set(0);
                kept.iter().for_each(|problem| tracing::error!(problem, "reload applied in part"));
                Err(kept.join("\n"))
            }
            Err(error) => {
                count("refused");
                metrics.reload_ok.set(0);
                error.to_string().lines().for_each(|problem| tracing::error!(problem, "reload refused"));
                tracing::error!("keeping the previous configuration");
                Err(error.to_string())
            }
        }
    }

    async fn try_reload(
        &mut self,
        commands: &mut mpsc::Receiver<Command>,
        accepts_loss: bool,
    ) -> Result<Vec<String>, StartError> {
        let (built, registry) = self.rebuild(commands, accepts_loss).await?;
        let fresh = self.bind_new(&built)?;
        let gone: Vec<_> = self
            .listener_configs
            .load()
            .keys()
            .filter(|address| !built.listener_configs.contains_key(address))
            .copied()
            .collect();
        // Listener configurations first, because a connection must never find its listener without one.
        self.listener_configs.store(Arc::clone(&built.listener_configs));
        self.shared.snapshot.store(Arc::clone(&built.snapshot));
        self.workers.iter().for_each(|worker| drop(worker.send(WorkerCommand::Changed)));
        for (address, port) in fresh {
            self.listen(address, port);
        }
        for address in gone {
            self.handover.remove(address);
            self.workers.iter().for_each(|worker| drop(worker.send(WorkerCommand::Close(address))));
        }
        self.next_report = built.report_expiry();
        self.registry = registry;
        let settings_before = std::mem::replace(&mut self.built, built).settings;
        // These settings take effect only at a start, so the next reload must compare with the values in use.
        self.built.settings.admin = settings_before.admin;
        self.built.settings.audit = settings_before.audit;
        self.built.settings.workers = settings_before.workers;
        self.built.settings.log.json = settings_before.log.json;
        self.built.settings.access_log = settings_before.access_log;
        self.built.settings.traces = settings_before.traces;
        Ok(std::mem::take(&mut self.built.kept))
    }

    /// Reads everything again on another thread, so that the control plane responds while large tables are read.
    async fn rebuild(
        &mut self,
        commands: &mut mpsc::Receiver<Command>,
        accepts_loss: bool,
    ) -> Result<(Built, Registry), StartError> {
        let (file, region, mut registry) = (self.config.clone(), self.region.clone(), self.registry.clone());
        let before = self.built.share();
        let known: Vec<_> = before.files.all.iter().map(|stamp| stamp.file.clone()).collect();
        let mut building = tokio::task::spawn_blocking(move || {
            // Stamped before reading, so that after a failure only a further change of a file triggers a reload.
            let mut stamps = files::stamps(&known);
            let mut build = || {
                let loaded = build::load(&file, region.as_deref(), &mut registry);
                let (config, settled) = loaded.inspect_err(|error| stamps.extend(files::stamps(&error.files())))?;
                check_region(before.snapshot.policy(), &config.policy)?;
                // A file that only the new configuration names is watched as well, because its correction must start a reload.
                let named = files::of_settings(&config.settings).into_iter().chain(files::tables_of(&config.settings));
                let named = named.chain(config.files.iter().cloned()).chain(config.folders.iter().cloned());
                let new: Vec<_> = named.filter(|file| !known.contains(file)).collect();
                stamps.extend(files::stamps(&new));
                let sources = Sources { read: settled, config, registry: &registry, before: Some(&before), accepts_loss };
                let mut built = build::build(sources)?;
                let (old, new) = (before.snapshot.policy(), built.snapshot.policy());
                built.changes = compare::in_words(old, new, Day::of(SystemTime::now()));
                Ok(built)
            };
            let built = build();
            (stamps, built.map(|built| (built, registry)))
        });
        let finished = loop {
            tokio::select! {
                finished = &mut building => break finished,
                Some(command) = commands.recv() => match command {
                    // Deferred, because files may have changed after this reload read them.
                    Command::Reload { accepts_loss, reply } => {
                        self.deferred_accepts_loss |= accepts_loss;
                        self.deferred.push(reply);
                    }
                    Command::Retire => {}
                    command => self.answer(command).await,
                },
            }
        };
        // If the build panicked, the known files stay watched.
        self.read.clone_from(&self.built.files.all);
        let (stamps, built) = finished.map_err(|error| std::io::Error::other(error.to_string()))?;
        self.read = built.as_ref().map_or(stamps, |(built, _)| built.files.all.clone());
        built
    }

    fn bind_new(&self, built: &Built) -> Result<Vec<(SocketAddr, BoundPort)>, StartError> {
        let known = self.listener_configs.load();
        let new = built.listener_configs.keys().filter(|address| !known.contains_key(address));
        new.map(|address| Ok((*address, listener::bind(*address, self.worker_count)?))).collect()
    }

    fn listen(&self, address: SocketAddr, port: BoundPort) {
        self.handover.put(address, &port.sockets);
        // A predecessor may have had more or fewer workers. Every socket needs a worker, because it has its own accept
        // queue, and every worker needs a socket.
        let count = port.sockets.len().max(self.workers.len());
        let copies: Vec<_> = (0..count).filter_map(|index| port.sockets[index % port.sockets.len()].try_clone().ok()).collect();
        for (index, socket) in copies.into_iter().enumerate() {
            let _ = self.workers[index % self.workers.len()].send(WorkerCommand::Listen(address, socket));
        }
    }

    /// The settings that have changed since the start, and need a restart to take effect.
    fn unapplied(&self) -> Vec<&'static str> {
        let (old, new) = (&self.at_start, &self.built.settings);
        let all = [
            ("admin", old.admin != new.admin),
            ("audit", old.audit != new.audit),
            ("workers", old.workers != new.workers),
            ("log.format", old.log.json != new.log.json),
            ("access_log", old.access_log != new.access_log),
            ("traces", old.traces != new.traces),
        ];
        all.into_iter().filter(|(_, changed)| *changed).map(|(name, _)| name).collect()
    }

    /// Whether this process can serve something, or one service of the local region. Without an upstream, it still serves
    /// the requests of other regions, so that the process as a whole stays ready.
    fn readiness(&self, service: Option<&str>) -> Result<(), String> {
        if *self.phase.borrow() != Phase::Serving {
            return Err("draining".into());
        }
        if let Some(name) = service {
            let found = self.built.snapshot.services.all().find(|service| *service.settings.name == *name);
            let service = found.ok_or_else(|| format!("this region has no service `{name}`"))?;
            if !service.any_up() {
                return Err(format!("no upstream of the service `{name}` is up"));
            }
        }
        if self.shared.overload.pressure() == Pressure::Full {
            return Err("overloaded: all new requests are refused".into());
        }
        Ok(())
    }

    async fn explain(&self, query: &str) -> Result<String, String> {
        let pairs = explain::query_pairs(query).ok_or("the query is not valid percent-encoded UTF-8")?;
        let query = explain::Query::from_pairs(&pairs)?;
        let vitals = self.shared.vitals.load();
        let snapshot = &self.built.snapshot;
        let explanation = build::explain(&snapshot.judging, &snapshot.actions, &vitals, &query).await?;
        Ok(if query.json { explanation.json() } else { explanation.text() })
    }

    /// The state of the process as JSON.
    fn status(&self) -> String {
        let vitals = self.shared.vitals.load();
        let process = status::Process {
            shared: &self.shared,
            started: self.started,
            readiness: self.readiness(None),
            loaded: &self.loaded,
        };
        status::report(&self.state(&vitals), &process)
    }

    /// The state that the gauges and the status report show.
    fn state<'a>(&'a self, vitals: &'a Vitals) -> status::State<'a> {
        status::State {
            snapshot: &self.built.snapshot,
            vitals,
            directory_changed: self.built.files.directory.as_ref().and_then(|(stamp, _)| stamp.modified()),
            expiring: &self.built.expiring,
            policies: &self.policies,
        }
    }

    /// Flushes the workers' counts, sets the gauges, and encodes all metrics.
    async fn scrape(&self) -> String {
        for worker in &self.workers {
            let (done, flushed) = oneshot::channel();
            if worker.send(WorkerCommand::Flush(done)).is_ok() {
                let _ = tokio::time::timeout(FLUSH_TIMEOUT, flushed).await;
            }
        }
        self.metrics.ready.set(i64::from(self.readiness(None).is_ok()));
        status::set_gauges(&self.metrics, &self.state(&self.shared.vitals.load()));
        self.metrics.encode()
    }
}

/// Records the time at which everything was loaded without an error.
pub fn note_loaded(metrics: &Metrics) {
    let none: [&str; 0] = [];
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    metrics.reloaded_at.with_label_values(&none).set(now.as_secs_f64());
    metrics.reload_ok.set(1);
    // A counter that appears with its first count looks as if nothing had happened.
    for result in ["applied", "partly", "refused"] {
        metrics.reloads.with_label_values(&[result]).inc_by(0);
    }
}

/// Refuses a change of the local region.
fn check_region(was: &Policy, is: &Policy) -> Result<(), StartError> {
    if was.local == is.local {
        return Ok(());
    }
    Err(StartError::RegionChanged { was: was.region_name(was.local).into(), is: is.region_name(is.local).into() })
}

/// Renews the certificates from ACME servers until the returned set is dropped.
fn renew_certificates(built: &Built) -> tokio::task::JoinSet<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for files in built.settings.acme() {
        tasks.spawn_local(acme::keep(files.clone(), Arc::clone(&built.challenges)));
    }
    tasks
}

/// The targets of the prober.
fn targets(built: &Built) -> ProbeTargets {
    let snapshot: &Snapshot = &built.snapshot;
    let target = |region| {
        if region == snapshot.policy().local {
            let snapshot = Arc::clone(&built.snapshot);
            return ProbeTarget::Local(Arc::new(move || region_report(&snapshot, false, Vec::new())));
        }
        snapshot.gateways.get(&region).map_or(ProbeTarget::Silent, |gateway| ProbeTarget::Peer(gateway.clone()))
    };
    ProbeTargets {
        settings: built.settings.probes,
        nearest_first: snapshot.policy().nearest_first(),
        regions: snapshot.policy().regions.iter().map(|region| (region, target(region))).collect(),
        services: Arc::new(snapshot.policy().services().map(|(id, name)| (name.into(), id)).collect()),
    }
}

/// Checks the health of the upstreams until the future is dropped.
async fn watch_upstreams_of(snapshot: Arc<Snapshot>) {
    services::watch(Arc::clone(&snapshot.services), snapshot.policy().local).await;
}

fn watch_upstreams(built: &Built) -> impl Future<Output = ()> + 'static {
    watch_upstreams_of(Arc::clone(&built.snapshot))
}
