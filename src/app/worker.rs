//! One thread of the data plane: a runtime, its share of every listener, its connections.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::net::TcpStream;
use tokio::runtime::LocalRuntime;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::http::pool::SendOptions;
use crate::metrics::Metrics;
use crate::model::region::RegionId;
use crate::model::vitals::Health;
use crate::proxy::Phase;
use crate::proxy::connection::{self, Counted, ListenerConfig, Security};
use crate::proxy::worker::{Shared, Worker};
use crate::transport::dial::Server;
use crate::transport::listener::Acceptor;

use super::build::ListenerConfigs;

/// A command of the control plane to a worker.
pub enum WorkerCommand {
    /// Accept on this share of a listener, configured under this address.
    Listen(SocketAddr, std::net::TcpListener),
    /// Empty the accept queue of a listener and close it.
    Close(SocketAddr),
    /// The snapshot is another: what is under way is judged again.
    Changed,
    /// Add the counts up.
    Flush(oneshot::Sender<()>),
}

pub type WorkerHandle = mpsc::UnboundedSender<WorkerCommand>;

/// How often connections are looked over: idle ones to upstreams closed, missing ones to peers opened.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

pub fn spawn(
    index: usize,
    shared: Arc<Shared>,
    listener_configs: Arc<ArcSwap<ListenerConfigs>>,
    metrics: Arc<Metrics>,
) -> std::io::Result<(WorkerHandle, JoinHandle<()>)> {
    let (orders, received) = mpsc::unbounded_channel();
    let work = move || match LocalRuntime::new() {
        Ok(runtime) => runtime.block_on(run(shared, listener_configs, metrics, received)),
        Err(error) => tracing::error!(%error, "a worker cannot start"),
    };
    let handle = std::thread::Builder::new().name(format!("worker-{index}")).spawn(work)?;
    Ok((orders, handle))
}

/// Everything the tasks of one worker share.
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
    metrics: Arc<Metrics>,
    mut orders: mpsc::UnboundedReceiver<WorkerCommand>,
) {
    let worker = Rc::new(Worker::new(Arc::clone(&shared), metrics.worker()));
    let local = Rc::new(Local { worker, listener_configs, metrics, open: Cell::new(0), all_closed: Notify::new() });
    let mut phase = shared.phase.clone();
    let mut listeners: HashMap<SocketAddr, Vec<watch::Sender<bool>>> = HashMap::new();
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(WorkerCommand::Listen(address, socket)) => match Acceptor::adopt(socket) {
                    Ok(acceptor) => {
                        let (close, closed) = watch::channel(false);
                        listeners.entry(address).or_default().push(close);
                        tokio::task::spawn_local(accept(Rc::clone(&local), address, acceptor, closed));
                    }
                    Err(error) => tracing::error!(%error, %address, "a worker cannot listen"),
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
            _ = sweep.tick() => look_over_connections(&local.worker),
            _ = phase.wait_for(|phase| *phase != Phase::Serving) => break,
        }
    }
    for close in listeners.values().flatten() {
        close.send_replace(true);
    }
    drain(&local, &mut orders).await;
    local.worker.metrics.flush();
}

/// Judges everything that is open again.
fn recheck(worker: &Rc<Worker>) {
    worker.changed.notify_waiters();
    let worker = Rc::clone(worker);
    tokio::task::spawn_local(async move { worker.recheck().await });
}

/// Looks at the clock: a new day, or a GeoIP database that has become too old, changes what is cleared.
fn look_at_clock(worker: &Rc<Worker>) {
    if worker.note_clock(SystemTime::now()) {
        recheck(worker);
    }
    worker.deliveries.sweep();
}

fn look_over_connections(worker: &Rc<Worker>) {
    look_at_clock(worker);
    let (snapshot, vitals) = (worker.snapshot(), worker.vitals());
    let limits = snapshot.limits;
    let windows = limits.windows();
    worker.upstream_pool.sweep(snapshot.upstreams.all().iter().map(|upstream| &upstream.server), &windows);
    let is_current =
        |region: &RegionId, server: &Server| snapshot.gateways.get(region).is_some_and(|gateway| gateway.is_same(server));
    worker.peer_pool.retain(&windows, is_current);
    for (region, gateway) in &snapshot.gateways {
        if vitals.region(*region).health == Health::Up {
            let (worker, region, gateway) = (Rc::clone(worker), *region, gateway.clone());
            tokio::task::spawn_local(async move {
                let options = SendOptions::within(limits.connect_timeout);
                for window in windows {
                    worker.peer_pool.warm(region, &gateway, limits.peer_connections, window, &options).await;
                }
            });
        }
    }
}

/// Waits for the connections to end by themselves, or for the deadline.
async fn drain(local: &Rc<Local>, orders: &mut mpsc::UnboundedReceiver<WorkerCommand>) {
    let limit = local.worker.snapshot().limits.drain;
    let deadline = tokio::time::sleep(limit);
    tokio::pin!(deadline);
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    // The accept loops still owe an answer to what is queued: let them run before counting.
    tokio::task::yield_now().await;
    while local.open.get() > 0 {
        tokio::select! {
            () = local.all_closed.notified() => {}
            _ = sweep.tick() => look_at_clock(&local.worker),
            () = &mut deadline => {
                tracing::warn!(connections = local.open.get(), "connections were cut at the end of the drain");
                return;
            }
            Some(order) = orders.recv() => match order {
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

/// Accepts until told to stop, then what is queued already.
async fn accept(local: Rc<Local>, address: SocketAddr, acceptor: Acceptor, mut closed: watch::Receiver<bool>) {
    let _open = Open::count(&local);
    let config_now = || local.listener_configs.load().get(&address).cloned();
    let mut listener_config = config_now();
    loop {
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => break,
            (stream, remote) = acceptor.accept() => {
                listener_config = config_now().or(listener_config);
                if let Some(listener_config) = listener_config.clone() {
                    serve(&local, address, stream, remote, listener_config);
                }
            }
        }
    }
    // Peers ask until they have heard that this region drains.
    if listener_config.as_ref().is_some_and(|listener_config| matches!(listener_config.security, Security::Peers(_)))
        && local.worker.is_draining()
    {
        let drain_notice = tokio::time::sleep(local.worker.drain_notice());
        tokio::pin!(drain_notice);
        loop {
            tokio::select! {
                () = &mut drain_notice => break,
                (stream, remote) = acceptor.accept() => {
                    if let Some(listener_config) = listener_config.clone() {
                        serve(&local, address, stream, remote, listener_config);
                    }
                }
            }
        }
    }
    for (stream, remote) in acceptor.close() {
        if let Some(listener_config) = listener_config.clone() {
            serve(&local, address, stream, remote, listener_config);
        }
    }
}

fn serve(local: &Rc<Local>, address: SocketAddr, stream: TcpStream, remote: SocketAddr, listener_config: ListenerConfig) {
    // Peers are few and proven; limits on clients must not cut a region off.
    let counted = match listener_config.security {
        Security::Peers(_) => None,
        // The region or client behind the connection is not known yet.
        Security::Cleartext | Security::Clients(_) if listener_config.options.proxy_protocol.is_some() => None,
        Security::Cleartext | Security::Clients(_) => match Counted::enter(&local.worker, remote.ip().to_canonical()) {
            Ok(counted) => Some(counted),
            Err(reason) => {
                local.metrics.connections_refused.with_label_values(&[reason]).inc();
                return;
            }
        },
    };
    let open = Open::count(local);
    let gauge = local.metrics.connections.with_label_values(&[&address.to_string()]);
    gauge.inc();
    let worker = Rc::clone(&local.worker);
    tokio::task::spawn_local(async move {
        connection::serve(worker, stream, remote, listener_config).await;
        gauge.dec();
        drop(counted);
        drop(open);
    });
}

/// Counts a task as open until it is dropped.
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
