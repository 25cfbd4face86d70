//! The counts that global rate limits share: a grow-only counter for each process and key (a G-Counter, Shapiro et al. 2011). A
//! process reports its own counters and those that it has heard of, so that processes of one region learn of each other.

use dashmap::DashMap;

use crate::peer::rates::{MAX_COUNTS, RateCount};

/// How long a counter that does not change is reported, and how long it is remembered afterwards. It must be remembered for longer
/// than any process reports it, or it would be counted again. Several probes fit into the first time.
const REPORTED: u64 = 60_000_000_000;
const REMEMBERED: u64 = 3 * REPORTED;

/// The most counters of other processes that are remembered, about 6 MB.
const MAX_HEARD: usize = 65_536;

/// The counters that this process knows. Times are in nanoseconds since a common start.
#[derive(Default)]
pub(super) struct SharedCounts {
    /// Our own counters, by key.
    own: DashMap<u64, Entry>,
    /// Those of other processes, by counter.
    heard: DashMap<u64, Entry>,
}

struct Entry {
    count: RateCount,
    changed_at: u64,
}

/// Requests that another process has admitted, and that were not known yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Growth {
    pub key: u64,
    pub requests: u64,
    pub interval: u64,
    pub burst: u32,
    /// The earliest time at which they may have been admitted.
    pub since: u64,
}

impl SharedCounts {
    /// Counts a request that this process has admitted.
    pub fn add(&self, key: u64, interval: u64, burst: u32, now: u64) {
        let mut entry = self.own.entry(key).or_insert_with(|| {
            let count = RateCount { counter: fastrand::u64(..), key, requests: 0, interval, burst };
            Entry { count, changed_at: now }
        });
        entry.count.requests += 1;
        entry.changed_at = now;
    }

    /// The counters to report: those that changed last.
    pub fn report(&self, now: u64) -> Vec<RateCount> {
        let all = self.own.iter().map(|entry| (entry.changed_at, entry.count));
        let all = all.chain(self.heard.iter().map(|entry| (entry.changed_at, entry.count)));
        let mut recent: Vec<_> = all.filter(|(changed_at, _)| changed_at.saturating_add(REPORTED) > now).collect();
        recent.sort_unstable_by_key(|(changed_at, count)| (u64::MAX - changed_at, count.counter));
        recent.into_iter().take(MAX_COUNTS).map(|(_, count)| count).collect()
    }

    /// Merges the report of another process by maximum; returns what is new. Of a counter that was not known, at most a burst is
    /// new, because it is not known when its requests were admitted.
    pub fn merge(&self, reported: &[RateCount], now: u64) -> Vec<Growth> {
        let mut growths = Vec::new();
        for count in reported {
            if self.own.get(&count.key).is_some_and(|own| own.count.counter == count.counter) {
                continue;
            }
            let of = |requests, since| Growth { key: count.key, requests, interval: count.interval, burst: count.burst, since };
            if let Some(mut known) = self.heard.get_mut(&count.counter) {
                if count.requests > known.count.requests {
                    growths.push(of(count.requests - known.count.requests, known.changed_at));
                    *known = Entry { count: *count, changed_at: now };
                }
            } else if self.heard.len() < MAX_HEARD {
                growths.push(of(count.requests.min(count.burst.into()), now));
                self.heard.insert(count.counter, Entry { count: *count, changed_at: now });
            }
        }
        growths
    }

    /// Forgets counters that have not changed for a while. A key that comes back gets a new counter.
    pub fn sweep(&self, now: u64) {
        self.own.retain(|_, entry| entry.changed_at.saturating_add(REPORTED) > now);
        self.heard.retain(|_, entry| entry.changed_at.saturating_add(REMEMBERED) > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn reports_count_once_however_often_they_arrive() {
        let (one, two, three) = (SharedCounts::default(), SharedCounts::default(), SharedCounts::default());
        (0..5).for_each(|_| one.add(7, SECOND, 20, 1));
        let first = one.report(2);
        (0..3).for_each(|_| one.add(7, SECOND, 20, 3 * SECOND));
        let second = one.report(4 * SECOND);
        let of = |requests, since| vec![Growth { key: 7, requests, interval: SECOND, burst: 20, since }];
        assert_eq!(two.merge(&second, 5 * SECOND), of(8, 5 * SECOND), "the later report arrives first");
        assert_eq!([two.merge(&first, 6 * SECOND), two.merge(&second, 6 * SECOND)], [vec![], vec![]]);
        assert_eq!(
            three.merge(&two.report(6 * SECOND), 7 * SECOND),
            of(8, 7 * SECOND),
            "a third process hears of it by the second"
        );
        assert_eq!(three.merge(&second, 8 * SECOND), [], "and not again by the first");
        assert_eq!(one.merge(&three.report(8 * SECOND), 9 * SECOND), [], "its own counter is nothing new");
        one.add(7, SECOND, 20, 9 * SECOND);
        assert_eq!(two.merge(&one.report(9 * SECOND), 10 * SECOND), of(1, 5 * SECOND), "admitted since the last report");
    }

    #[test]
    fn a_counter_with_a_long_past_is_a_burst_when_it_is_new() {
        let (one, two) = (SharedCounts::default(), SharedCounts::default());
        (0..500).for_each(|_| one.add(7, SECOND, 20, 1));
        assert_eq!(two.merge(&one.report(2), 3)[0].requests, 20);
    }

    #[test]
    fn counters_that_rest_are_forgotten_after_they_are_no_longer_reported() {
        let (one, two) = (SharedCounts::default(), SharedCounts::default());
        one.add(7, SECOND, 20, 0);
        two.merge(&one.report(0), 0);
        one.sweep(REPORTED + 1);
        two.sweep(REPORTED + 1);
        assert_eq!((one.own.len(), two.heard.len()), (0, 1));
        assert!(two.report(REPORTED + 1).is_empty(), "it is remembered, and not reported");
        one.add(7, SECOND, 20, REPORTED + 2);
        assert_eq!(two.merge(&one.report(REPORTED + 2), REPORTED + 2)[0].requests, 1, "a new counter of the same key");
        two.sweep(REPORTED + REMEMBERED + 3);
        assert!(two.heard.is_empty());
    }
}
