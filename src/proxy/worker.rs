//! One thread of the data plane, and what all of them share.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};

use crate::audit::{Ledger, Pseudonyms};
use crate::engine::recheck::Leases;
use crate::engine::snapshot::Moment;
use crate::http::pool::{PeerPool, UpstreamPool};
use crate::metrics::WorkerMetrics;
use crate::model::vitals::Vitals;
use crate::tokens;
use crate::upstreams::Load;

use super::admission::{Admitted, Connections, Gauge};
use super::delivery::Deliveries;
use super::{Phase, Snapshot};

/// The state that all workers share: snapshots with one writer each, and counters off the request path.
pub struct Shared {
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub vitals: Arc<ArcSwap<Vitals>>,
    pub ledger: Option<Ledger>,
    pub pseudonyms: Pseudonyms,
    pub phase: watch::Receiver<Phase>,
    pub connections: Connections,
    /// Requests whose response or tunnel has not ended.
    pub requests: Arc<Gauge>,
    /// TLS handshakes in progress.
    pub handshakes: Gauge,
    /// Connections to the port for peers that have not proven a region yet.
    pub unproven: Connections,
}

impl Shared {
    /// Admits a request, unless `most` are open already.
    pub fn enter_request(&self, most: usize) -> Option<Admitted> {
        Admitted::enter(&self.requests, most)
    }
}

/// One thread of the data plane, with everything that it alone uses.
pub struct Worker {
    pub shared: Arc<Shared>,
    pub metrics: WorkerMetrics,
    pub upstream_pool: UpstreamPool,
    pub peer_pool: PeerPool,
    pub load: Load,
    pub tokens: RefCell<tokens::Cache>,
    pub deliveries: Deliveries,
    /// Every request that is open: judged again when the moment changes.
    pub leases: Rc<Leases>,
    /// When a failed handshake of a peer was last logged: repeated failures must not flood the log.
    pub warned: Cell<Option<Instant>>,
    /// Notified when the snapshot has changed.
    pub changed: Arc<Notify>,
    moment: RefCell<Moment>,
    snapshot: RefCell<arc_swap::Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>>,
    vitals: RefCell<arc_swap::Cache<Arc<ArcSwap<Vitals>>, Arc<Vitals>>>,
}

impl Worker {
    pub fn new(shared: Arc<Shared>, metrics: WorkerMetrics) -> Self {
        let moment = Moment::live(Arc::clone(&shared.snapshot.load().judging), SystemTime::now());
        Self {
            snapshot: RefCell::new(arc_swap::Cache::new(Arc::clone(&shared.snapshot))),
            vitals: RefCell::new(arc_swap::Cache::new(Arc::clone(&shared.vitals))),
            shared,
            metrics,
            upstream_pool: UpstreamPool::default(),
            peer_pool: PeerPool::default(),
            load: Load::default(),
            tokens: RefCell::default(),
            deliveries: Deliveries::default(),
            leases: Rc::default(),
            warned: Cell::default(),
            changed: Arc::default(),
            moment: RefCell::new(moment),
        }
    }

    /// The snapshot of this moment; a request takes one at its start and keeps it.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(self.snapshot.borrow_mut().load())
    }

    pub fn vitals(&self) -> Arc<Vitals> {
        Arc::clone(self.vitals.borrow_mut().load())
    }

    /// The moment to judge by: the newest policy and tables, and the day as of the last look at the clock.
    pub fn moment(&self) -> Moment {
        let judging = Arc::clone(&self.snapshot().judging);
        let mut moment = self.moment.borrow_mut();
        if !Arc::ptr_eq(&moment.snapshot, &judging) {
            *moment = Moment::live(judging, SystemTime::now());
        }
        moment.clone()
    }

    /// Looks at the clock: transfers expire at midnight, and a GeoIP database becomes too old. Returns whether the moment
    /// is another, so that everything open has to be judged again.
    pub fn note_clock(&self, now: SystemTime) -> bool {
        let fresh = Moment::live(Arc::clone(&self.snapshot().judging), now);
        let is_news = !self.moment.borrow().is_same(&fresh);
        self.moment.replace(fresh);
        is_news
    }

    /// Judges everything that is open once more, and closes the connections of peers that are no longer trusted.
    pub async fn recheck(&self) {
        let snapshot = self.snapshot();
        self.peer_pool.close_untrusted(|chain| snapshot.peers.as_ref().is_some_and(|peers| peers.still_proves(chain)));
        self.leases.renew_all(&self.moment(), &self.vitals()).await;
    }

    /// Whether the region takes no new requests: probes report it, so that peers go elsewhere.
    pub fn is_draining(&self) -> bool {
        *self.shared.phase.borrow() == Phase::Draining
    }

    /// How long the port for peers stays open at the drain. A region with a successor does not drain.
    pub fn drain_notice(&self) -> Duration {
        if self.is_draining() { self.snapshot().drain_notice } else { Duration::ZERO }
    }
}
