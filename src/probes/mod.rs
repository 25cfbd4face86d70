//! Measures the regions and publishes their vitals.
//!
//! Promises: a probe is a complete HTTP request to a peer's gateway, on a separate connection and without user data; a single
//! writer publishes whole snapshots. Never: a decision, because `decision` alone interprets the vitals.

mod detector;
mod prober;

use std::time::Duration;

pub use detector::{Change, Changed, Detector, Observation, Thresholds};
pub use prober::{Counters, Hooks, ProbeTarget, ProbeTargets, run};

/// How often the regions are probed, and how many results change their state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The interval. A probe starts even if earlier ones have no response yet.
    pub every: Duration,
    pub timeout: Duration,
    /// Consecutive failures after which a region is down.
    pub fall: u32,
    /// Consecutive successes after which a region that was down takes requests again.
    pub rise: u32,
    /// Time after which such a region is up, so that requests that went elsewhere return to it.
    pub settle: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        let (every, timeout) = (Duration::from_millis(500), Duration::from_secs(1));
        Self { every, timeout, fall: 3, rise: 3, settle: Duration::from_secs(10) }
    }
}

impl Settings {
    fn thresholds(&self) -> Thresholds {
        let settle = self.settle.as_nanos().div_ceil(self.every.as_nanos().max(1));
        Thresholds { fall: self.fall, rise: self.rise, settle: u32::try_from(settle).unwrap_or(u32::MAX).max(1) }
    }

    /// The longest time from the failure of a region until it is down: its last success is followed by `fall` probes, the last
    /// of which times out.
    pub fn detection_time(&self) -> Duration {
        self.every.mul_f64(1.0 + JITTER) * self.fall + self.timeout
    }
}

/// Share by which an interval may differ, so that the proxies do not probe in step.
const JITTER: f64 = 0.1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_region_is_down_within_three_seconds_at_the_defaults() {
        assert!(Settings::default().detection_time() <= Duration::from_secs(3));
    }

    /// A region that responds for some seconds and is away for some, for a minute at the default interval.
    fn moves_in_a_minute(up_seconds: usize, away_seconds: usize) -> usize {
        use crate::model::vitals::Health;
        let settings = Settings::default();
        let region = crate::model::region::RegionId::new(0).unwrap();
        let mut detector = Detector::new(vec![region], settings.thresholds());
        let report = crate::peer::probe::Report::read(&{
            let mut headers = http::HeaderMap::new();
            headers.insert(crate::peer::fields::SERVING, http::HeaderValue::from_static("?1"));
            headers
        });
        let per_second = (1.0 / settings.every.as_secs_f64()) as usize;
        let (up, period) = (up_seconds * per_second, (up_seconds + away_seconds) * per_second);
        let mut seen = Vec::new();
        for probe in 0..60 * per_second {
            let observation = if probe % period < up {
                Observation::Answered { round_trip: Duration::ZERO, report: report.clone(), down: Vec::new() }
            } else {
                Observation::Failed
            };
            detector.observe(region, observation);
            // Whether reads that may go elsewhere go there.
            seen.push(detector.vitals(|_| false).region(region).health != Health::Up);
        }
        seen.windows(2).filter(|pair| pair[0] != pair[1]).count()
    }

    #[test]
    fn a_region_that_flaps_for_a_minute_moves_requests_once() {
        assert_eq!(moves_in_a_minute(60, 0), 0);
        for (up, away) in [(2, 2), (3, 3), (5, 2), (9, 5)] {
            assert_eq!(moves_in_a_minute(up, away), 1, "{up} s up, {away} s away");
        }
        assert_eq!(moves_in_a_minute(5, 1), 0, "two lost probes are no outage");
    }

    #[test]
    fn a_region_settles_for_the_configured_time() {
        let settings = Settings { every: Duration::from_millis(300), settle: Duration::from_secs(1), ..Settings::default() };
        assert_eq!(settings.thresholds().settle, 4);
        let at_once = Settings { settle: Duration::ZERO, ..settings };
        assert_eq!(at_once.thresholds().settle, 1);
    }
}
