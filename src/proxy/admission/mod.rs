//! Counters that limit requests, handshakes, and connections in total and per address.

pub mod overload;
pub mod rate_limit;
mod shared_counts;

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use dashmap::DashMap;

/// The number of requests, handshakes or peers' connections in the whole process.
#[derive(Default)]
pub struct Gauge(std::sync::atomic::AtomicUsize);

impl Gauge {
    /// Adds one until the result is dropped; `None` if there are `max` already.
    pub fn enter(&self, max: usize) -> Option<Entered<'_>> {
        use std::sync::atomic::Ordering::Relaxed;
        let entered = Entered(self);
        (self.0.fetch_add(1, Relaxed) < max).then_some(entered)
    }

    /// The current number.
    pub fn count(&self) -> usize {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn leave(&self) {
        self.0.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Counts as one in the gauge until it is dropped.
pub struct Entered<'a>(&'a Gauge);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// Counts a request until its response or tunnel has ended, or a peer's connection until it is closed.
pub struct Admitted(Arc<Gauge>);

impl Admitted {
    /// Adds one to the gauge; `None` if there are `max` already.
    pub fn enter(gauge: &Arc<Gauge>, max: usize) -> Option<Self> {
        let entered = gauge.enter(max)?;
        std::mem::forget(entered);
        Some(Self(Arc::clone(gauge)))
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// The number of open connections, per address and in total. IPv6 addresses are counted by /64, because one customer usually
/// has a whole /64.
#[derive(Default)]
pub struct Connections {
    by_address: DashMap<IpAddr, usize>,
    total: std::sync::atomic::AtomicUsize,
}

impl Connections {
    /// Counts a connection if the limits allow it. The error is the metric label of the limit.
    pub fn enter(&self, address: IpAddr, max: usize, max_per_address: usize) -> Result<(), &'static str> {
        use std::sync::atomic::Ordering::Relaxed;
        if self.total.fetch_add(1, Relaxed) >= max {
            self.total.fetch_sub(1, Relaxed);
            return Err("connections");
        }
        let mut count = self.by_address.entry(network_of(address)).or_default();
        if *count >= max_per_address {
            self.total.fetch_sub(1, Relaxed);
            return Err("connections_per_address");
        }
        *count += 1;
        Ok(())
    }

    pub fn leave(&self, address: IpAddr) {
        let address = network_of(address);
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

/// The address itself, or the /64 of an IPv6 address.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_ipv6_prefix_count_as_one() {
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
