//! Passive ejection: an upstream that fails several consecutive requests gets none for a while, and then gets its share back
//! gradually.
//!
//! Only a part of the upstreams is ejected at once. Ejected upstreams are used when no other is left, so that an ejection
//! never moves a request to another region.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// When an upstream is ejected, and for how long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ejection {
    /// Consecutive failures; 0 for never.
    pub after: u32,
    /// The first ejection. Each further one lasts twice as long, up to [`MAX_PERIOD`]; each period between ejections takes back
    /// one doubling.
    pub period: Duration,
    /// The maximum share of the upstreams that may be ejected at once, in percent.
    pub most: usize,
    /// How long a returning upstream takes to get its full share.
    pub slow_start: Duration,
}

const MAX_PERIOD: Duration = Duration::from_secs(300);

/// The share of an upstream that has just returned.
const MIN_SHARE: f64 = 0.1;

impl Default for Ejection {
    fn default() -> Self {
        Self { after: 5, period: Duration::from_secs(10), most: 50, slow_start: Duration::from_secs(10) }
    }
}

/// The request results of one upstream.
pub(super) struct FailureHistory {
    created: Instant,
    failures: AtomicU32,
    ejections: AtomicU32,
    /// The end of the last ejection, in milliseconds since `created`.
    until: AtomicU64,
    /// The last return to service, in milliseconds since `created`; 0 if the upstream was never down or ejected.
    returned_at: AtomicU64,
}

impl Default for FailureHistory {
    fn default() -> Self {
        let zero = AtomicU64::default;
        Self {
            created: Instant::now(),
            failures: AtomicU32::new(0),
            ejections: AtomicU32::new(0),
            until: zero(),
            returned_at: zero(),
        }
    }
}

impl FailureHistory {
    fn age(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.created).as_millis() as u64
    }

    pub(super) fn is_ejected(&self, now: Instant) -> bool {
        self.age(now) < self.until.load(Ordering::Relaxed)
    }

    pub(super) fn note_success(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    /// Counts a failure; returns whether the upstream should be ejected.
    pub(super) fn note_failure(&self, rules: &Ejection, now: Instant) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        rules.after > 0 && failures >= rules.after && !self.is_ejected(now)
    }

    pub(super) fn eject(&self, rules: &Ejection, now: Instant) -> Duration {
        self.failures.store(0, Ordering::Relaxed);
        // Each period since the last return takes back one doubling.
        let served = self.age(now).saturating_sub(self.returned_at.load(Ordering::Relaxed));
        let forgotten = u32::try_from(served / (rules.period.as_millis() as u64).max(1)).unwrap_or(u32::MAX);
        let ejections = self.ejections.load(Ordering::Relaxed).saturating_sub(forgotten);
        self.ejections.store(ejections.saturating_add(1), Ordering::Relaxed);
        let doublings = ejections.min(10);
        let period = rules.period.saturating_mul(1 << doublings).min(MAX_PERIOD.max(rules.period));
        let until = self.age(now) + period.as_millis() as u64;
        self.until.store(until, Ordering::Relaxed);
        self.returned_at.store(until, Ordering::Relaxed);
        period
    }

    /// Records that the health checks mark the upstream as up again.
    pub(super) fn note_return(&self, now: Instant) {
        // 0 means that the upstream was never away.
        self.returned_at.store(self.age(now).max(1), Ordering::Relaxed);
        self.until.store(0, Ordering::Relaxed);
        self.failures.store(0, Ordering::Relaxed);
    }

    /// The upstream's share of new requests: from a tenth just after its return up to 1.
    pub(super) fn share(&self, slow_start: Duration, now: Instant) -> f64 {
        let since = self.returned_at.load(Ordering::Relaxed);
        if since == 0 || slow_start.is_zero() {
            return 1.0;
        }
        let progress = self.age(now).saturating_sub(since) as f64 / slow_start.as_millis() as f64;
        progress.clamp(MIN_SHARE, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consecutive_failures_eject_and_each_time_for_longer() {
        let (history, rules) = (FailureHistory::default(), Ejection { after: 3, ..Ejection::default() });
        let at = |seconds: u64| history.created + Duration::from_secs(seconds);
        assert!(!history.note_failure(&rules, at(1)) && !history.note_failure(&rules, at(1)));
        history.note_success();
        assert!(
            !history.note_failure(&rules, at(1)) && !history.note_failure(&rules, at(1)) && history.note_failure(&rules, at(1))
        );
        assert_eq!(history.eject(&rules, at(1)), Duration::from_secs(10));
        assert!(history.is_ejected(at(10)) && !history.is_ejected(at(11)));
        assert_eq!(history.eject(&rules, at(20)), Duration::from_secs(20));
        (0..20).for_each(|_| assert!(history.eject(&rules, at(20)) > Duration::ZERO));
        assert_eq!(history.eject(&rules, at(20)), MAX_PERIOD);
        assert_eq!(
            history.eject(&rules, at(20_000)),
            Duration::from_secs(10),
            "many periods have passed since the last ejection"
        );
        let never = Ejection { after: 0, ..rules };
        assert!((0..100).all(|_| !FailureHistory::default().note_failure(&never, Instant::now())));
    }

    #[test]
    fn a_returning_upstream_gets_a_tenth_at_first() {
        let (history, slow_start) = (FailureHistory::default(), Duration::from_secs(10));
        let at = |seconds: u64| history.created + Duration::from_secs(seconds);
        assert_eq!(history.share(slow_start, at(0)), 1.0, "an upstream that was never away has its full share");
        history.note_return(at(100));
        let shares: Vec<_> = [100, 105, 110, 200].map(|second| history.share(slow_start, at(second))).into();
        assert_eq!(shares, [0.1, 0.5, 1.0, 1.0]);
        assert_eq!(history.share(Duration::ZERO, at(100)), 1.0);
    }
}
