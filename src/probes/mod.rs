//! Measures the regions and publishes their vitals.
//!
//! Promises: probes are whole HTTP requests to the peers' gateways on connections of their own and carry no user's data;
//! one writer publishes whole snapshots. Never: a decision. What the vitals mean for a request is for `decision` to say.

mod detector;
mod prober;

use std::time::Duration;

pub use detector::{Detector, Observation};
pub use prober::{Target, Targets, run};

/// How often the other regions are asked, and how long they may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    pub every: Duration,
    pub timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { every: Duration::from_secs(5), timeout: Duration::from_secs(2) }
    }
}

/// The fields of a probe and its answer; read only between peers.
pub mod fields {
    /// Marks a request as a probe.
    pub const PROBE: &str = "domicile-probe";
    /// The hash of the policy the peer judges by.
    pub const POLICY: &str = "domicile-policy";
    /// Whether it takes nothing new.
    pub const DRAINING: &str = "domicile-draining";
    /// Whether any upstream of it is up.
    pub const SERVING: &str = "domicile-serving";
    /// Smoothed answer time of its upstreams in microseconds.
    pub const UPSTREAM_MICROS: &str = "domicile-upstream-micros";
}
