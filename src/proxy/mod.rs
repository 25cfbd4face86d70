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
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use dashmap::DashMap;
use tokio::sync::{Notify, watch};

use crate::audit::{Ledger, Pseudonyms};
use crate::decision::policy::Policy;
use crate::directory::Directory;
use crate::geoip::GeoIp;
use crate::http::pool::{PeerPool, UpstreamPool};
use crate::metrics::WorkerMetrics;
use crate::model::day::Day;
use crate::model::region::RegionId;
use crate::model::vitals::Vitals;
use crate::session::Seal;
use crate::tokens::{self, Tokens};
use crate::transport::dial::Server;
use crate::transport::tls::{ClientTls, PeerTls};
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
    /// The certificates of every listener for clients.
    pub sites: Vec<Arc<ClientTls>>,
    /// By what peers prove themselves.
    pub peers: Option<Arc<PeerTls>>,
    pub urls: HashMap<RegionId, http::Uri>,
    pub log_requests: bool,
    /// How long peers are still heard at the drain, so that they learn of it.
    pub drain_notice: Duration,
}

/// What a process is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Serving,
    /// It takes nothing new, and nobody serves the region after it.
    Draining,
    /// It takes nothing new, since a successor does.
    Succeeded,
}

/// What all workers share: snapshots with one writer each, and counters off the request path.
pub struct Shared {
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub vitals: Arc<ArcSwap<Vitals>>,
    pub ledger: Option<Ledger>,
    pub pseudonyms: Pseudonyms,
    pub phase: watch::Receiver<Phase>,
    pub connections: Connections,
    /// Requests under way, and TLS handshakes.
    pub requests: Gauge,
    pub handshakes: Gauge,
    /// Connections to the port of peers that have not proven a region yet.
    pub unproven: Connections,
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

/// Open connections, by address and in all. An address of IPv6 stands for its /64, which is what one customer has.
#[derive(Default)]
pub struct Connections {
    by_address: DashMap<IpAddr, usize>,
    total: std::sync::atomic::AtomicUsize,
}

impl Connections {
    /// Counts a connection in, unless a limit says no; the reason is a metric label.
    pub fn enter(&self, address: IpAddr, most: usize, most_per_address: usize) -> Result<(), &'static str> {
        use std::sync::atomic::Ordering::Relaxed;
        if self.total.fetch_add(1, Relaxed) >= most {
            self.total.fetch_sub(1, Relaxed);
            return Err("connections");
        }
        let mut count = self.by_address.entry(customer(address)).or_default();
        if *count >= most_per_address {
            self.total.fetch_sub(1, Relaxed);
            return Err("connections_per_address");
        }
        *count += 1;
        Ok(())
    }

    pub fn leave(&self, address: IpAddr) {
        let address = customer(address);
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

fn customer(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
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
    /// When a peer's handshake was last warned of: whoever knocks in vain must not flood the log.
    pub warned: Cell<Option<Instant>>,
    /// PeerSettings when the snapshot or the day has changed.
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
            warned: Cell::default(),
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

    /// Whether the region takes nothing new: peers hear of it, and go elsewhere.
    pub fn is_draining(&self) -> bool {
        *self.shared.phase.borrow() == Phase::Draining
    }

    /// How long peers are still heard at the drain, so that they learn of it. A successor's region does not drain.
    pub fn drain_notice(&self) -> Duration {
        if self.is_draining() { self.snapshot().drain_notice } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_customers_addresses_count_as_one() {
        let connections = Connections::default();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(connections.enter(address("2001:db8::1"), 10, 2), Ok(()));
        assert_eq!(connections.enter(address("2001:db8::ffff:2"), 10, 2), Ok(()));
        assert_eq!(connections.enter(address("2001:db8::3"), 10, 2), Err("connections_per_address"));
        assert_eq!(connections.enter(address("2001:db8:0:1::3"), 10, 2), Ok(()));
        assert_eq!(connections.enter(address("192.0.2.1"), 4, 1), Ok(()));
        assert_eq!(connections.enter(address("192.0.2.2"), 4, 1), Err("connections"));
        connections.leave(address("2001:db8::4"));
        assert_eq!(connections.enter(address("2001:db8::5"), 10, 2), Ok(()));
        assert_eq!(connections.total(), 4);
    }
}
