//! Measures the regions and publishes their vitals.
//!
//! Promises: a probe is a complete HTTP request to a peer's gateway, on a separate connection and without user data; a single
//! writer publishes whole snapshots. Never: a decision, because `decision` alone interprets the vitals.

mod detector;
mod prober;

use std::time::Duration;

pub use detector::{Detector, Observation};
pub use prober::{Counters, ProbeTarget, ProbeTargets, run};

/// The interval and the timeout of probes.
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
