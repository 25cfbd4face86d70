//! One thread of the data plane: a runtime, its sockets of every listener, its connections.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use prometheus::IntGauge;
use tokio::runtime::LocalRuntime;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::access_log::AccessLog;
use crate::engine::recheck::CLOCK_INTERVAL;
use crate::http::io::SWEEP_INTERVAL;
use crate::http::pool::SendOptions;
use crate::http::window::Window;
use crate::metrics::Metrics;
use crate::model::region::RegionId;
use crate::model::vitals::Health;
use crate::proxy::Phase;
use crate::proxy::admission::Admitted;
use crate::proxy::admission::overload::{Lag, Pressure};
use crate::proxy::connection::{self, Counted, ListenerConfig, Security};
use crate::proxy::worker::{Shared, Worker};
use crate::transport::dial::Server;
use crate::transport::listener::{Accepted, Acceptor};

use super::build::ListenerConfigs;

/// A command of the control thread to a worker.
pub enum WorkerCommand {
    /// Accept on this socket of the listener with this configured address.
    Listen(SocketAddr, std::net::TcpListener),
    /// Empty the accept queue of a listener and close it.
    Close(SocketAddr),
    /// The snapshot has changed: judge the open requests again.
    Changed,
    /// Add the worker's counts to the metrics.
    Flush(oneshot::Sender<()>),
}

pub type WorkerHandle = mpsc::UnboundedSender<WorkerCommand>;

pub fn spawn(
    index: usize,
    shared: Arc<Shared>,
    listener_configs: Arc<ArcSwap<ListenerConfigs>>,
    metrics: Arc<Metrics>,
    access_log: Option<AccessLog>,
) -> std::io::Result<(WorkerHandle, JoinHandle<()>)> {
    let (commands, received) = mpsc::unbounded_channel();
    let work = move || match LocalRuntime::new() {
        Ok(runtime) => runtime.block_on(run(shared, listener_configs, (index, metrics, access_log), received)),
        Err(error) => tracing::error!(%error, "worker cannot start"),
    };
    let handle = std::thread::Builder::new().name(format!("worker-{index}")).spawn(work)?;
    Ok((commands, handle))
}

/// The state that the tasks of one worker share.
struct Local {
    worker: Rc<Worker>,
    listener_configs: Arc<ArcSwap<ListenerConfigs>>,
    metrics: Arc<Metrics>,
    open: Cell<usize>,
    all_closed: Notify,
}

async fn run(
    shared: Arc<Shared>,
    listener_configs: Arc<ArcSwap<ListenerConfigs>>,
    (index, metrics, access_log): (usize, Arc<Metrics>, Option<AccessLog>),
    mut commands: mpsc::UnboundedReceiver<WorkerCommand>,
) {
    let worker = Rc::new(Worker::new(Arc::clone(&shared), metrics.worker(), access_log));
    let local = Rc::new(Local { worker, listener_configs, metrics, open: Cell::new(0), all_closed: Notify::new() });
    tokio::task::spawn_local(sweep_often(Rc::clone(&local.worker), index));
    let mut phase = shared.phase.clone();
    let mut listeners: HashMap<SocketAddr, Vec<watch::Sender<bool>>> = HashMap::new();
    let mut sweep = clock_ticks();
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(WorkerCommand::Listen(address, socket)) => match Acceptor::adopt(socket) {
                    Ok(acceptor) => {
                        let (close, closed) = watch::channel(false);
                        listeners.entry(address).or_default().push(close);
                        tokio::task::spawn_local(accept(Rc::clone(&local), address, acceptor, closed));
                    }
                    Err(error) => tracing::error!(%error, %address, "worker cannot listen"),
                },
                Some(WorkerCommand::Close(address)) => {
                    for close in listeners.remove(&address).into_iter().flatten() {
                        close.send_replace(true);
                    }
                }
                Some(WorkerCommand::Changed) => recheck(&local.worker),
                Some(WorkerCommand::Flush(done)) => {
                    local.worker.metrics.flush();
                    let _ = done.send(());
                }
                None => break,
            },
            _ = sweep.tick() => sweep_connections(&local.worker),
            _ = phase.wait_for(|phase| *phase != Phase::Serving) => break,
        }
    }
    for close in listeners.values().flatten() {
        close.send_replace(true);
    }
    drain(&local, &mut commands).await;
    local.worker.flush_access_log();
    local.worker.metrics.flush();
    if let Some(ledger) = &local.worker.ledger {
        ledger.flush().await;
    }
}

/// Checks the deadlines of all connections, hands over the lines of the access log, and takes the pressure on the process over,
/// until the worker ends.
async fn sweep_often(worker: Rc<Worker>, index: usize) {
    let mut lag = Lag::default();
    let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let due = ticks.tick().await;
        worker.shared.overload.set_lag(index, lag.add(due.elapsed()));
        worker.check_pressure();
        worker.deadlines.sweep(due);
        worker.flush_access_log();
        worker.settle_ledger();
    }
}

/// The times at which a worker checks the clock. After a delay, it checks once and not once for each missed tick.
fn clock_ticks() -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(CLOCK_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}

/// Judges all open requests again.
fn recheck(worker: &Rc<Worker>) {
    worker.changed.notify_waiters();
    let worker = Rc::clone(worker);
    tokio::task::spawn_local(async move { worker.recheck().await });
}

/// Judges all open requests again on a new day, or once the GeoIP database is too old.
fn check_clock(worker: &Rc<Worker>) {
    if worker.check_clock(SystemTime::now()) {
        recheck(worker);
    }
    worker.read_monitors.sweep();
}

/// Checks the clock, closes idle connections to upstreams, and opens missing connections to peers.
fn sweep_connections(worker: &Rc<Worker>) {
    check_clock(worker);
    let (snapshot, vitals) = (worker.snapshot(), worker.vitals());
    let limits = snapshot.limits;
    let windows = limits.windows();
    let upstreams: Vec<_> = snapshot.services.upstreams().collect();
    worker.upstream_pool.sweep(upstreams.iter().map(|upstream| &upstream.server), windows);
    worker.load.forget_idle();
    let is_current =
        |region: &RegionId, server: &Server| snapshot.gateways.get(region).is_some_and(|gateway| gateway.server.is_same(server));
    worker.peer_pool.retain(windows, is_current);
    for gateway in snapshot.gateways.values() {
        let region = vitals.region(gateway.region);
        if region.health == Health::Up {
            let round_trip = snapshot.round_trip_to(gateway.region, &vitals);
            let (worker, gateway) = (Rc::clone(worker), gateway.clone());
            tokio::task::spawn_local(async move {
                let options = SendOptions::within(limits.connect_timeout);
                // Few bodies have a narrow window, so that one connection is enough at first.
                worker.peer_pool.warm(&gateway, limits.peer_connections, windows.at(round_trip), &options).await;
                worker.peer_pool.warm(&gateway, 1, Window::NARROW, &options).await;
            });
        }
    }
}

/// Waits until all connections have closed or the drain timeout has passed.
async fn drain(local: &Rc<Local>, commands: &mut mpsc::UnboundedReceiver<WorkerCommand>) {
    let limit = local.worker.snapshot().limits.drain;
    let deadline = tokio::time::sleep(limit);
    tokio::pin!(deadline);
    let mut sweep = clock_ticks();
    // Let the accept loops take the queued connections before the open connections are counted.
    tokio::task::yield_now().await;
    while local.open.get() > 0 {
        tokio::select! {
            () = local.all_closed.notified() => {}
            _ = sweep.tick() => check_clock(&local.worker),
            () = &mut deadline => {
                tracing::warn!(connections = local.open.get(), "drain timeout exceeded; closing the remaining connections");
                return;
            }
            Some(command) = commands.recv() => match command {
                WorkerCommand::Flush(done) => {
                    local.worker.metrics.flush();
                    let _ = done.send(());
                }
                WorkerCommand::Changed => recheck(&local.worker),
                WorkerCommand::Listen(..) | WorkerCommand::Close(_) => {}
            },
        }
    }
}

/// Accepts connections until the listener closes, then serves the connections that are already queued.
async fn accept(local: Rc<Local>, address: SocketAddr, acceptor: Acceptor, mut closed: watch::Receiver<bool>) {
    let _open = Open::count(&local);
    let gauge = local.metrics.connections.with_label_values(&[&address.to_string()]);
    let config_now = || local.listener_configs.load().get(&address).cloned();
    let mut listener_config = config_now();
    loop {
        // Connections of peers carry the probes, and are few.
        let is_for_peers = listener_config.as_ref().is_some_and(|config| matches!(config.security, Security::Peers(_)));
        let may_accept = is_for_peers || local.worker.pressure() < Pressure::Full;
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => break,
            () = local.worker.pressure_changed.notified() => {}
            // Otherwise, connections wait in the queue of the kernel.
            accepted = acceptor.accept(), if may_accept => {
                listener_config = config_now().or(listener_config);
                if let Some(listener_config) = listener_config.clone() {
                    serve(&local, &gauge, accepted, listener_config);
                }
            }
        }
    }
    // Peers send requests until a probe reports the drain.
    if listener_config.as_ref().is_some_and(|listener_config| matches!(listener_config.security, Security::Peers(_)))
        && local.worker.is_draining()
    {
        let drain_notice = tokio::time::sleep(local.worker.drain_notice());
        tokio::pin!(drain_notice);
        loop {
            tokio::select! {
                () = &mut drain_notice => break,
                accepted = acceptor.accept() => {
                    if let Some(listener_config) = listener_config.clone() {
                        serve(&local, &gauge, accepted, listener_config);
                    }
                }
            }
        }
    }
    for accepted in acceptor.close() {
        if let Some(listener_config) = listener_config.clone() {
            serve(&local, &gauge, accepted, listener_config);
        }
    }
}

fn serve(local: &Rc<Local>, gauge: &IntGauge, accepted: Accepted, listener_config: ListenerConfig) {
    // Peers are few and authenticated, and limits on clients must not disconnect a region.
    let counted = match listener_config.security {
        Security::Peers(_) => None,
        // The client's address is not known before the PROXY protocol header has been read.
        Security::Cleartext | Security::Clients(_) if listener_config.options.proxy_protocol.is_some() => None,
        Security::Cleartext | Security::Clients(_) => match Counted::enter(&local.worker, accepted.remote.ip().to_canonical()) {
            Ok(counted) => Some(counted),
            Err(reason) => {
                local.metrics.connections_refused.with_label_values(&[reason]).inc();
                return;
            }
        },
    };
    let is_peer = matches!(listener_config.security, Security::Peers(_));
    let of_peer = is_peer.then(|| Admitted::enter(&local.worker.shared.peer_connections, usize::MAX));
    let open = Open::count(local);
    let gauge = gauge.clone();
    gauge.inc();
    let worker = Rc::clone(&local.worker);
    tokio::task::spawn_local(async move {
        connection::serve(worker, accepted, listener_config).await;
        gauge.dec();
        drop((counted, of_peer, open));
    });
}

/// Counts a task as open until this value is dropped.
struct Open(Rc<Local>);

impl Open {
    fn count(local: &Rc<Local>) -> Self {
        local.open.set(local.open.get() + 1);
        Self(Rc::clone(local))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        if self.0.open.get() == 0 {
            self.0.all_closed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_checked_as_often_as_documented() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let elapsed = runtime.block_on(async {
            let mut ticks = clock_ticks();
            ticks.tick().await;
            let started = tokio::time::Instant::now();
            ticks.tick().await;
            started.elapsed()
        });
        assert_eq!(elapsed, CLOCK_INTERVAL);
    }
}
