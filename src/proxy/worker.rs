//! One thread of the data plane, and the state that all threads share.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};

use crate::access_log::{self, AccessLog};
use crate::audit::{Ledger, Pseudonyms, WorkerLedger};
use crate::engine::recheck::Leases;
use crate::engine::snapshot::Moment;
use crate::http::io::Deadlines;
use crate::http::pool::{PeerPool, UpstreamPool};
use crate::http::window::{Buffers, WorkerBuffers};
use crate::metrics::WorkerMetrics;
use crate::model::region::RegionId;
use crate::model::vitals::Vitals;
use crate::passwords::Checks;
use crate::services::Load;
use crate::tokens;
use crate::traces::Traces;

use super::admission::overload::{Overload, Pressure};
use super::admission::rate_limit::RateLimits;
use super::admission::{Admitted, Connections, Gauge};
use super::read_monitor::ReadMonitors;
use super::warnings::Warnings;
use super::{Limits, Phase, Snapshot};

/// The state that all workers share: snapshots with one writer each, and counters.
pub struct Shared {
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub vitals: Arc<ArcSwap<Vitals>>,
    pub ledger: Option<Ledger>,
    pub pseudonyms: Pseudonyms,
    pub traces: Option<Traces>,
    pub worker_count: usize,
    pub phase: watch::Receiver<Phase>,
    /// The regions that an operator of this process drains.
    pub drained: DrainedRegions,
    pub connections: Connections,
    /// Requests whose response or tunnel has not ended.
    pub requests: Arc<Gauge>,
    /// Responses that are being compressed.
    pub compressions: Arc<Gauge>,
    /// Copies of requests for mirrors in flight.
    pub mirrors: Arc<Gauge>,
    pub rates: RateLimits,
    pub password_checks: Checks,
    pub overload: Overload,
    /// TLS handshakes in progress.
    pub handshakes: Gauge,
    /// Connections to listeners for peers.
    pub peer_connections: Arc<Gauge>,
    /// Connections to a listener for peers that have not proven a region yet.
    pub unproven: Connections,
}

/// A set of regions that one thread changes and all threads read.
#[derive(Default)]
pub struct DrainedRegions(AtomicU64);

impl DrainedRegions {
    pub fn set(&self, region: RegionId, drains: bool) {
        let bit = 1 << region.index();
        if drains {
            self.0.fetch_or(bit, Ordering::Relaxed)
        } else {
            self.0.fetch_and(!bit, Ordering::Relaxed)
        };
    }

    pub fn contains(&self, region: RegionId) -> bool {
        self.0.load(Ordering::Relaxed) & (1 << region.index()) != 0
    }
}

impl Shared {
    /// Admits a request; `None` if `max` are in flight already.
    pub fn enter_request(&self, max: usize) -> Option<Admitted> {
        Admitted::enter(&self.requests, max)
    }
}

/// One thread of the data plane, and the state that it does not share.
pub struct Worker {
    pub shared: Arc<Shared>,
    pub metrics: WorkerMetrics,
    pub upstream_pool: UpstreamPool,
    pub peer_pool: PeerPool,
    pub load: Load,
    pub tokens: RefCell<tokens::Cache>,
    pub read_monitors: ReadMonitors,
    access_log: RefCell<access_log::Lines>,
    pub deadlines: Deadlines,
    body_buffers: Rc<WorkerBuffers>,
    pub ledger: Option<WorkerLedger>,
    /// The open requests, which are judged again when the moment changes.
    pub leases: Rc<Leases>,
    /// The warnings that were logged lately, so that repeated ones do not flood the log.
    pub warnings: Warnings,
    /// Notified when the snapshot has changed.
    pub changed: Arc<Notify>,
    /// The pressure at the last [`Self::check_pressure`].
    pressure: Cell<Pressure>,
    saves: Cell<bool>,
    /// Notified when the pressure has changed.
    pub pressure_changed: Notify,
    moment: RefCell<Moment>,
    /// The moment under which the open requests were last judged again.
    rechecked: RefCell<Moment>,
    snapshot: RefCell<arc_swap::Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>>,
    vitals: RefCell<arc_swap::Cache<Arc<ArcSwap<Vitals>>, Arc<Vitals>>>,
}

impl Worker {
    pub fn new(shared: Arc<Shared>, metrics: WorkerMetrics, access_log: Option<AccessLog>) -> Self {
        let moment = Moment::live(Arc::clone(&shared.snapshot.load().judging), SystemTime::now());
        Self {
            snapshot: RefCell::new(arc_swap::Cache::new(Arc::clone(&shared.snapshot))),
            vitals: RefCell::new(arc_swap::Cache::new(Arc::clone(&shared.vitals))),
            upstream_pool: UpstreamPool::of(moment.policy().local),
            ledger: shared.ledger.clone().map(WorkerLedger::of),
            shared,
            metrics,
            peer_pool: PeerPool::default(),
            load: Load::default(),
            tokens: RefCell::default(),
            read_monitors: ReadMonitors::default(),
            access_log: RefCell::new(access_log::Lines::new(access_log)),
            deadlines: Deadlines::default(),
            body_buffers: Rc::default(),
            leases: Rc::default(),
            warnings: Warnings::default(),
            changed: Arc::default(),
            pressure: Cell::default(),
            saves: Cell::default(),
            pressure_changed: Notify::new(),
            rechecked: RefCell::new(moment.clone()),
            moment: RefCell::new(moment),
        }
    }

    /// The current snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(self.snapshot.borrow_mut().load())
    }

    pub fn vitals(&self) -> Arc<Vitals> {
        Arc::clone(self.vitals.borrow_mut().load())
    }

    /// The moment to judge by: the newest policy and tables, and the day of the last [`Self::check_clock`].
    pub fn moment(&self) -> Moment {
        let judging = Arc::clone(&self.snapshot().judging);
        let mut moment = self.moment.borrow_mut();
        if !Arc::ptr_eq(&moment.snapshot, &judging) {
            *moment = Moment::live(judging, SystemTime::now());
        }
        moment.clone()
    }

    /// Takes the current time into the moment, because transfers expire at midnight and a GeoIP database can become too old. Returns
    /// whether open requests must be judged again, because the moment is not the one of the last [`Self::recheck`].
    pub fn check_clock(&self, now: SystemTime) -> bool {
        let fresh = Moment::live(Arc::clone(&self.snapshot().judging), now);
        let is_same = self.rechecked.borrow().is_same(&fresh);
        self.moment.replace(fresh);
        !is_same
    }

    /// Judges all open requests again, and closes the connections to peers that are no longer trusted.
    pub async fn recheck(&self) {
        let snapshot = self.snapshot();
        self.peer_pool.close_untrusted(|chain| snapshot.peers.as_ref().is_some_and(|peers| peers.still_proves(chain)));
        let moment = self.moment();
        self.rechecked.replace(moment.clone());
        self.leases.renew_all(&moment, &self.vitals()).await;
    }

    /// The pressure on the process.
    pub fn pressure(&self) -> Pressure {
        self.pressure.get()
    }

    /// Whether memory or descriptors are scarce.
    pub fn saves(&self) -> bool {
        self.saves.get()
    }

    /// Takes the pressure on the process over: connections close and windows are narrow while resources are scarce.
    pub fn check_pressure(&self) {
        let (pressure, saves) = (self.shared.overload.pressure(), self.shared.overload.saves());
        let before = (self.pressure.replace(pressure), self.saves.replace(saves));
        if before != (pressure, saves) {
            self.body_buffers.keep_narrow(saves);
            if saves {
                self.deadlines.pass_idle();
            }
            self.pressure_changed.notify_waiters();
        }
    }

    /// Whether the access log gets a line for a request.
    pub fn logs_request(&self, has_failed: bool) -> bool {
        self.access_log.borrow().wants(has_failed)
    }

    /// Adds a line to the access log.
    pub fn log_request(&self, entry: &access_log::Entry<'_>) {
        let dropped = self.access_log.borrow_mut().add(entry);
        self.metrics.log_lines_dropped(dropped);
    }

    /// Hands the collected lines of the access log over to its output.
    pub fn flush_access_log(&self) {
        let dropped = self.access_log.borrow_mut().hand_over();
        self.metrics.log_lines_dropped(dropped);
    }

    /// Hands over the settlements of the ledger that wait.
    pub fn settle_ledger(&self) {
        self.ledger.iter().for_each(WorkerLedger::hand_over);
    }

    /// Whether the region drains. Probes report it, so that peers send their requests to other regions.
    pub fn is_draining(&self) -> bool {
        *self.shared.phase.borrow() == Phase::Draining
    }

    /// Whether probes report that the region drains: it stops, or an operator drains it.
    pub fn reports_drain(&self) -> bool {
        self.is_draining() || self.shared.drained.contains(self.moment.borrow().policy().local)
    }

    /// The buffer budget of a new connection of a client.
    pub fn buffers(&self, limits: &Limits) -> Rc<Buffers> {
        Buffers::of(limits.connection_buffer, &self.body_buffers, limits.body_buffers / self.shared.worker_count)
    }

    /// The buffer budget of a new connection of a peer.
    pub fn buffers_of_peer(&self) -> Rc<Buffers> {
        Buffers::of_peer(&self.body_buffers)
    }

    /// How long the listener for peers stays open: zero unless the region drains. With a successor, the region does not drain.
    /// Also zero if no peer is connected, because each peer that probes this region keeps a connection open.
    pub fn drain_notice(&self) -> Duration {
        let has_peers = self.shared.peer_connections.count() > 0;
        if self.is_draining() && has_peers { self.snapshot().drain_notice } else { Duration::ZERO }
    }
}
