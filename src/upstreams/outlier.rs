//! Passive ejection: an upstream that fails several requests in a row is left alone for a while, and comes back slowly.
//!
//! At most a part of them is ejected at once, and when nothing else is left the ejected are used all the same: the region
//! serves as well as it can, and no request leaves it for that.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// When failing ends in ejection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ejection {
    /// Failures in a row; 0 for never.
    pub after: u32,
    /// The first time; twice as long each time soon after that, up to [`LONGEST`].
    pub period: Duration,
    /// The most that may be ejected at once, in percent.
    pub most: usize,
    /// How long an upstream that comes back takes to get its whole share.
    pub slow_start: Duration,
}

const LONGEST: Duration = Duration::from_secs(300);

/// The least share of an upstream that has just come back.
const LEAST_SHARE: f64 = 0.1;

impl Default for Ejection {
    fn default() -> Self {
        Self { after: 5, period: Duration::from_secs(10), most: 50, slow_start: Duration::from_secs(10) }
    }
}

/// What requests have shown of one upstream.
pub(super) struct Record {
    born: Instant,
    failures: AtomicU32,
    ejections: AtomicU32,
    /// Milliseconds since birth.
    until: AtomicU64,
    back_since: AtomicU64,
}

impl Default for Record {
    fn default() -> Self {
        let zero = AtomicU64::default;
        Self {
            born: Instant::now(),
            failures: AtomicU32::new(0),
            ejections: AtomicU32::new(0),
            until: zero(),
            back_since: zero(),
        }
    }
}

impl Record {
    fn age(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.born).as_millis() as u64
    }

    pub(super) fn is_ejected(&self, now: Instant) -> bool {
        self.age(now) < self.until.load(Ordering::Relaxed)
    }

    pub(super) fn note_success(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    /// Counts a failure; whether it is one too many.
    pub(super) fn note_failure(&self, rules: &Ejection, now: Instant) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        rules.after > 0 && failures >= rules.after && !self.is_ejected(now)
    }

    pub(super) fn eject(&self, rules: &Ejection, now: Instant) -> Duration {
        self.failures.store(0, Ordering::Relaxed);
        // Each period that it served well takes one doubling back.
        let served = self.age(now).saturating_sub(self.back_since.load(Ordering::Relaxed));
        let forgotten = u32::try_from(served / (rules.period.as_millis() as u64).max(1)).unwrap_or(u32::MAX);
        let ejections = self.ejections.load(Ordering::Relaxed).saturating_sub(forgotten);
        self.ejections.store(ejections.saturating_add(1), Ordering::Relaxed);
        let doublings = ejections.min(10);
        let period = rules.period.saturating_mul(1 << doublings).min(LONGEST.max(rules.period));
        let until = self.age(now) + period.as_millis() as u64;
        self.until.store(until, Ordering::Relaxed);
        self.back_since.store(until, Ordering::Relaxed);
        period
    }

    /// It has come back by its health checks.
    pub(super) fn note_return(&self, now: Instant) {
        // Nothing stands for one that was never away.
        self.back_since.store(self.age(now).max(1), Ordering::Relaxed);
        self.until.store(0, Ordering::Relaxed);
        self.failures.store(0, Ordering::Relaxed);
    }

    /// Its share of what comes, from a tenth just after it came back to the whole.
    pub(super) fn share(&self, slow_start: Duration, now: Instant) -> f64 {
        let since = self.back_since.load(Ordering::Relaxed);
        if since == 0 || slow_start.is_zero() {
            return 1.0;
        }
        let back = self.age(now).saturating_sub(since) as f64 / slow_start.as_millis() as f64;
        back.clamp(LEAST_SHARE, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_failures_ejects_and_each_time_for_longer() {
        let (record, rules) = (Record::default(), Ejection { after: 3, ..Ejection::default() });
        let at = |seconds: u64| record.born + Duration::from_secs(seconds);
        assert!(!record.note_failure(&rules, at(1)) && !record.note_failure(&rules, at(1)));
        record.note_success();
        assert!(!record.note_failure(&rules, at(1)) && !record.note_failure(&rules, at(1)) && record.note_failure(&rules, at(1)));
        assert_eq!(record.eject(&rules, at(1)), Duration::from_secs(10));
        assert!(record.is_ejected(at(10)) && !record.is_ejected(at(11)));
        assert_eq!(record.eject(&rules, at(20)), Duration::from_secs(20));
        (0..20).for_each(|_| assert!(record.eject(&rules, at(20)) > Duration::ZERO));
        assert_eq!(record.eject(&rules, at(20)), LONGEST);
        assert_eq!(record.eject(&rules, at(20_000)), Duration::from_secs(10), "it has served well since");
        let never = Ejection { after: 0, ..rules };
        assert!((0..100).all(|_| !Record::default().note_failure(&never, Instant::now())));
    }

    #[test]
    fn who_comes_back_gets_a_tenth_at_first() {
        let (record, slow_start) = (Record::default(), Duration::from_secs(10));
        let at = |seconds: u64| record.born + Duration::from_secs(seconds);
        assert_eq!(record.share(slow_start, at(0)), 1.0, "who was never away has the whole");
        record.note_return(at(100));
        let shares: Vec<_> = [100, 105, 110, 200].map(|second| record.share(slow_start, at(second))).into();
        assert_eq!(shares, [0.1, 0.5, 1.0, 1.0]);
        assert_eq!(record.share(Duration::ZERO, at(100)), 1.0);
    }
}
