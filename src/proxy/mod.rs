//! The data plane: from a connection to an answer.
//!
//! Promises: a request is judged on its head before its body is touched, served start to end on one thread, and leaves
//! this region only as its itinerary says. Never: a field that a stranger could have forged reaches an upstream.
//! Start reading at `request`.

pub mod body;
pub mod connection;
pub mod delivery;
pub mod forward;
pub mod gather;
pub mod headers;
pub mod ingress;
pub mod intake;
mod limits;
pub mod reply;
pub mod request;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use dashmap::DashMap;
use tokio::sync::{Notify, watch};

use crate::audit::{Ledger, Pseudonyms};
use crate::decision::policy::Policy;
use crate::directory::Directory;
use crate::geoip::GeoIp;
use crate::metrics::WorkerMetrics;
use crate::model::day::Day;
use crate::model::region::RegionId;
use crate::model::vitals::Vitals;
use crate::session::Seal;
use crate::tokens::{self, Tokens};
use crate::transport::dial::Server;
use crate::transport::pool::{PeerPool, UpstreamPool};
use crate::upstreams::{Load, Upstreams};

use delivery::Deliveries;

pub use limits::Limits;

/// Everything a request is judged and served by; replaced whole, never changed.
pub struct Snapshot {
    pub policy: Policy,
    pub intake: intake::Settings,
    pub limits: Limits,
    pub geoip: Option<Arc<GeoIp>>,
    pub geoip_max_age: Option<Duration>,
    pub directory: Option<Arc<Directory>>,
    pub tokens: Option<Arc<Tokens>>,
    pub seal: Option<Arc<Seal>>,
    pub upstreams: Arc<Upstreams>,
    pub gateways: HashMap<RegionId, Server>,
    pub urls: HashMap<RegionId, http::Uri>,
    pub log_requests: bool,
    /// How long peers are still heard at the drain, so that they learn of it.
    pub farewell: Duration,
}

/// What all workers share: snapshots with one writer each, and counters off the request path.
pub struct Shared {
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub vitals: Arc<ArcSwap<Vitals>>,
    pub ledger: Option<Ledger>,
    pub pseudonyms: Pseudonyms,
    pub draining: watch::Receiver<bool>,
    pub connections: Connections,
    /// Requests under way, and TLS handshakes.
    pub requests: Gauge,
    pub handshakes: Gauge,
}

/// How many of something are under way in the whole process.
#[derive(Default)]
pub struct Gauge(std::sync::atomic::AtomicUsize);

impl Gauge {
    /// Counts one more in, unless there are `most` already.
    pub fn enter(&self, most: usize) -> Option<Entered<'_>> {
        use std::sync::atomic::Ordering::Relaxed;
        let entered = Entered(self);
        (self.0.fetch_add(1, Relaxed) < most).then_some(entered)
    }
}

/// Counts out when it is dropped.
pub struct Entered<'a>(&'a Gauge);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Open connections of clients, by address and in all.
#[derive(Default)]
pub struct Connections {
    by_address: DashMap<IpAddr, usize>,
    total: std::sync::atomic::AtomicUsize,
}

impl Connections {
    /// Counts a connection in, unless a limit says no; the reason is a metric label.
    pub fn enter(&self, address: IpAddr, limits: &Limits) -> Result<(), &'static str> {
        use std::sync::atomic::Ordering::Relaxed;
        if self.total.fetch_add(1, Relaxed) >= limits.connections {
            self.total.fetch_sub(1, Relaxed);
            return Err("connections");
        }
        let mut count = self.by_address.entry(address).or_default();
        if *count >= limits.connections_per_address {
            self.total.fetch_sub(1, Relaxed);
            return Err("connections_per_address");
        }
        *count += 1;
        Ok(())
    }

    pub fn leave(&self, address: IpAddr) {
        self.total.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        if let Some(mut count) = self.by_address.get_mut(&address) {
            *count -= 1;
        }
        self.by_address.remove_if(&address, |_, count| *count == 0);
    }

    pub fn total(&self) -> usize {
        self.total.load(std::sync::atomic::Ordering::Relaxed)
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
    /// Told when the snapshot or the day has changed.
    pub changed: Arc<Notify>,
    today: Cell<Day>,
    snapshot: RefCell<arc_swap::Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>>,
    vitals: RefCell<arc_swap::Cache<Arc<ArcSwap<Vitals>>, Arc<Vitals>>>,
}

impl Worker {
    pub fn new(shared: Arc<Shared>, metrics: WorkerMetrics) -> Self {
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
            changed: Arc::default(),
            today: Cell::new(Day::of(SystemTime::now())),
        }
    }

    /// The snapshot of this moment; a request takes one at its start and keeps it.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(self.snapshot.borrow_mut().load())
    }

    /// The day in UTC, as of the last look at the clock.
    pub fn today(&self) -> Day {
        self.today.get()
    }

    /// Looks at the clock now and then: transfers expire at midnight, and whoever relies on one must hear of it.
    pub fn note_day(&self) {
        let today = Day::of(SystemTime::now());
        if self.today.replace(today) != today {
            self.changed.notify_waiters();
        }
    }

    pub fn vitals(&self) -> Arc<Vitals> {
        Arc::clone(self.vitals.borrow_mut().load())
    }

    pub fn is_draining(&self) -> bool {
        *self.shared.draining.borrow()
    }
}
