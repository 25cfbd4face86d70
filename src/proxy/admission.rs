//! Counters that decide who is admitted: requests, handshakes, and connections by address.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use dashmap::DashMap;

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

    fn leave(&self) {
        self.0.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Counts out when it is dropped.
pub struct Entered<'a>(&'a Gauge);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// A request that is counted until its response or its tunnel has ended.
pub struct Admitted(Arc<Gauge>);

impl Admitted {
    /// Counts one more request in, unless there are `most` already.
    pub fn enter(gauge: &Arc<Gauge>, most: usize) -> Option<Self> {
        let entered = gauge.enter(most)?;
        std::mem::forget(entered);
        Some(Self(Arc::clone(gauge)))
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.leave();
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
