//! The data plane: from a connection to an answer.
//!
//! Promises: a request is judged on its head before its body is touched, served start to end on one thread, and leaves
//! this region only as its itinerary says. Never: a field that a stranger could have forged reaches an upstream.
//! Start reading at `request`.

pub mod body;
pub mod connection;
pub mod forward;
pub mod gather;
pub mod headers;
pub mod intake;
pub mod reply;
pub mod request;

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use dashmap::DashMap;
use tokio::sync::watch;

use crate::audit::{Ledger, Pseudonyms};
use crate::decision::policy::Policy;
use crate::directory::Directory;
use crate::geoip::GeoIp;
use crate::metrics::WorkerMetrics;
use crate::model::region::RegionId;
use crate::model::vitals::Vitals;
use crate::transport::framing::HeadLimits;
use crate::transport::pool::{Gateway, PeerPool, UpstreamPool};
use crate::upstreams::{Load, Upstreams};

/// What one request, one connection and one process may use.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Limits {
    /// Bytes of a request's head.
    pub header_bytes: usize,
    /// Fields of a request's head.
    pub headers: usize,
    pub target_bytes: usize,
    /// Bytes of a request's body.
    pub body: u64,
    /// Connections of clients in all, and from one address.
    pub connections: usize,
    pub connections_per_address: usize,
    /// From the first byte of a head to its last; the TLS handshake the same.
    pub header_timeout: Duration,
    /// Between an answer and the next request on the same connection.
    pub keep_alive: Duration,
    pub connect_timeout: Duration,
    /// From the end of a request to the head of its answer.
    pub response_timeout: Duration,
    /// Between two pieces of a body.
    pub idle_timeout: Duration,
    /// From a request's head to the end of its answer.
    pub request_timeout: Duration,
    /// How long requests in flight may take to finish at shutdown.
    pub drain: Duration,
    /// How often a request may be tried, the first included.
    pub attempts: usize,
    /// HTTP/2 connections to each peer, for each worker.
    pub peer_connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Where nginx (4 x 8 KiB), Envoy (60 KiB, 100 fields) and HAProxy (16 KiB, 101 fields) meet.
            header_bytes: 32 << 10,
            headers: 100,
            target_bytes: 8 << 10,
            body: 10 << 20,
            connections: 10_000,
            connections_per_address: 1_000,
            header_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(60),
            drain: Duration::from_secs(30),
            attempts: 2,
            peer_connections: 2,
        }
    }
}

impl Limits {
    pub const fn head(&self) -> HeadLimits {
        HeadLimits {
            bytes: self.header_bytes,
            fields: self.headers,
            target_bytes: self.target_bytes,
            timeout: self.header_timeout,
            keep_alive: self.keep_alive,
            write_stall: self.idle_timeout,
        }
    }
}

/// Everything a request is judged and served by; replaced whole, never changed.
pub struct Snapshot {
    pub policy: Policy,
    pub intake: intake::Settings,
    pub limits: Limits,
    pub geoip: Option<Arc<GeoIp>>,
    pub geoip_max_age: Option<Duration>,
    pub directory: Option<Arc<Directory>>,
    pub upstreams: Arc<Upstreams>,
    pub gateways: HashMap<RegionId, Gateway>,
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
        }
    }

    /// The snapshot of this moment; a request takes one at its start and keeps it.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(self.snapshot.borrow_mut().load())
    }

    pub fn vitals(&self) -> Arc<Vitals> {
        Arc::clone(self.vitals.borrow_mut().load())
    }

    pub fn is_draining(&self) -> bool {
        *self.shared.draining.borrow()
    }
}
