//! The counts that global rate limits share: a grow-only counter for each process and key (a G-Counter, Shapiro et al. 2011). A
//! process reports its own counters and those that it has heard of, so that processes of one region learn of each other.

use dashmap::DashMap;
use dashmap::mapref::entry::Entry as Slot;

use crate::peer::rates::{MAX_COUNTS, RateCount};

/// How long a counter that does not change is reported, and how long it is remembered afterwards. It must be remembered for longer
/// than any process reports it, or it would be counted again. Several probes fit into the first time.
const REPORTED: u64 = 60_000_000_000;
const REMEMBERED: u64 = 3 * REPORTED;

/// The most counters of this process, and of the others together, about 6 MB each. Further keys are counted by each process alone.
const MAX_COUNTERS: usize = 65_536;

/// The longest idle time that is kept: several intervals of probes.
const MAX_IDLE: u64 = REPORTED;

/// The counters that this process knows. Times are in nanoseconds since a common start.
#[derive(Default)]
pub(super) struct SharedCounts {
    /// Our own counters, by key.
    own: DashMap<u64, Own>,
    /// Those of other processes, by counter.
    heard: DashMap<u64, Entry>,
}

struct Entry {
    count: RateCount,
    changed_at: u64,
}

/// The counter of one key in this process.
struct Own {
    counter: Entry,
    /// The time for which the bucket was full since the last report of another process. The others may have used this time, so
    /// their requests in it cost no token of later times.
    idle: u64,
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
    /// Nothing is known of the counter's past.
    pub is_new: bool,
}

impl SharedCounts {
    /// Counts a request that this process has admitted, after its bucket was full for `idle`.
    pub fn add(&self, key: u64, (interval, burst): (u64, u32), idle: u64, now: u64) {
        if self.own.len() >= MAX_COUNTERS && !self.own.contains_key(&key) {
            return;
        }
        let mut own = self.own.entry(key).or_insert_with(|| {
            let count = RateCount { counter: fastrand::u64(..), key, requests: 0, interval, burst };
            Own { counter: Entry { count, changed_at: now }, idle: 0 }
        });
        own.counter.count.requests += 1;
        own.counter.changed_at = now;
        own.idle = own.idle.saturating_add(idle).min(MAX_IDLE);
    }

    /// Takes up to `most` of the time for which the bucket of a key was full.
    pub fn take_idle(&self, key: u64, most: u64) -> u64 {
        let Some(mut own) = self.own.get_mut(&key) else { return 0 };
        let taken = own.idle.min(most);
        own.idle -= taken;
        taken
    }

    /// The counters to report: first our own, then those of others, of each those that changed last.
    pub fn report(&self, now: u64) -> Vec<RateCount> {
        let is_recent = |entry: &Entry| entry.changed_at.saturating_add(REPORTED) > now;
        let own =
            self.own.iter().filter(|own| is_recent(&own.counter)).map(|own| (0_u8, own.counter.changed_at, own.counter.count));
        let heard = self.heard.iter().filter(|entry| is_recent(entry)).map(|entry| (1_u8, entry.changed_at, entry.count));
        let mut recent: Vec<_> = own.chain(heard).collect();
        let order = |(rank, changed_at, count): &(u8, u64, RateCount)| (*rank, u64::MAX - changed_at, count.counter);
        if recent.len() > MAX_COUNTS {
            recent.select_nth_unstable_by_key(MAX_COUNTS, order);
            recent.truncate(MAX_COUNTS);
        }
        recent.sort_unstable_by_key(order);
        recent.into_iter().map(|(_, _, count)| count).collect()
    }

    /// Merges the report of another process by maximum; returns what is new. Of a counter that was not known, at most a burst is
    /// new, because it is not known when its requests were admitted.
    pub fn merge(&self, reported: &[RateCount], now: u64) -> Vec<Growth> {
        let mut growths = Vec::new();
        // `DashMap::len` must not be called while an entry is locked.
        let mut free = MAX_COUNTERS.saturating_sub(self.heard.len());
        for count in reported {
            if self.own.get(&count.key).is_some_and(|own| own.counter.count.counter == count.counter) {
                continue;
            }
            let of = |requests, since| Growth {
                key: count.key,
                requests,
                interval: count.interval,
                burst: count.burst,
                since,
                is_new: false,
            };
            let entry = Entry { count: *count, changed_at: now };
            // The same report may arrive twice at once, so a counter stays locked from the look to the change.
            match self.heard.entry(count.counter) {
                Slot::Occupied(mut known) => {
                    let before = known.get();
                    if count.requests > before.count.requests {
                        growths.push(of(count.requests - before.count.requests, before.changed_at));
                        known.insert(entry);
                    }
                }
                Slot::Vacant(slot) if free > 0 => {
                    free -= 1;
                    growths.push(Growth { is_new: true, ..of(count.requests.min(count.burst.into()), now) });
                    slot.insert(entry);
                }
                Slot::Vacant(_) => {}
            }
        }
        growths
    }

    /// Forgets counters that have not changed for a while. A key that comes back gets a new counter.
    pub fn sweep(&self, now: u64) {
        // Others report a counter for longer than this process, which must still know it as its own.
        self.own.retain(|_, own| own.counter.changed_at.saturating_add(REMEMBERED) > now);
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
        (0..5).for_each(|_| one.add(7, (SECOND, 20), 0, 1));
        let first = one.report(2);
        (0..3).for_each(|_| one.add(7, (SECOND, 20), 0, 3 * SECOND));
        let second = one.report(4 * SECOND);
        let of = |requests, since| {
            vec![Growth { key: 7, requests, interval: SECOND, burst: 20, since, is_new: since != SECOND * 5 || requests == 8 }]
        };
        assert_eq!(two.merge(&second, 5 * SECOND), of(8, 5 * SECOND), "the later report arrives first");
        assert_eq!([two.merge(&first, 6 * SECOND), two.merge(&second, 6 * SECOND)], [vec![], vec![]]);
        assert_eq!(
            three.merge(&two.report(6 * SECOND), 7 * SECOND),
            of(8, 7 * SECOND),
            "a third process hears of it by the second"
        );
        assert_eq!(three.merge(&second, 8 * SECOND), [], "and not again by the first");
        assert_eq!(one.merge(&three.report(8 * SECOND), 9 * SECOND), [], "its own counter is nothing new");
        one.add(7, (SECOND, 20), 0, 9 * SECOND);
        assert_eq!(two.merge(&one.report(9 * SECOND), 10 * SECOND), of(1, 5 * SECOND), "admitted since the last report");
    }

    #[test]
    fn a_report_that_arrives_twice_at_once_counts_once() {
        let one = SharedCounts::default();
        (0..MAX_COUNTS as u64).for_each(|key| one.add(key, (SECOND, 20), 0, 1));
        let report = one.report(2);
        for _ in 0..20 {
            let (two, start) = (SharedCounts::default(), std::sync::Barrier::new(2));
            // The workers that serve probes and the prober learn at the same time.
            let merge = || {
                start.wait();
                two.merge(&report, 3).iter().map(|growth| growth.requests).sum::<u64>()
            };
            let learned: u64 =
                std::thread::scope(|scope| [scope.spawn(merge), scope.spawn(merge)].map(|one| one.join().unwrap())).iter().sum();
            assert_eq!(learned, MAX_COUNTS as u64);
        }
    }

    #[test]
    fn a_counter_with_a_long_past_is_a_burst_when_it_is_new() {
        let (one, two) = (SharedCounts::default(), SharedCounts::default());
        (0..500).for_each(|_| one.add(7, (SECOND, 20), 0, 1));
        assert_eq!(two.merge(&one.report(2), 3)[0].requests, 20);
    }

    #[test]
    fn a_key_that_pauses_is_not_counted_again() {
        let (one, two) = (SharedCounts::default(), SharedCounts::default());
        one.add(7, (SECOND, 20), 0, 0);
        two.merge(&one.report(0), 15 * SECOND);
        let later = REPORTED + SECOND;
        one.sweep(later);
        two.sweep(later);
        let report = two.report(later);
        assert_eq!(report.len(), 1, "the other process has learned of it later, and still reports it");
        assert_eq!(one.merge(&report, later), []);
        assert!(one.report(later).is_empty() && two.report(REPORTED + 16 * SECOND).is_empty());
    }

    #[test]
    fn counters_that_rest_are_forgotten_after_they_are_no_longer_reported() {
        let (one, two) = (SharedCounts::default(), SharedCounts::default());
        one.add(7, (SECOND, 20), 0, 0);
        two.merge(&one.report(0), 0);
        for shared in [&one, &two] {
            shared.sweep(REMEMBERED - 1);
            assert_eq!(shared.own.len() + shared.heard.len(), 1);
            shared.sweep(REMEMBERED + 1);
            assert_eq!(shared.own.len() + shared.heard.len(), 0);
        }
        one.add(7, (SECOND, 20), 0, REMEMBERED + 2);
        assert_eq!(two.merge(&one.report(REMEMBERED + 2), REMEMBERED + 2)[0].requests, 1, "a new counter of the same key");
    }

    #[test]
    fn a_report_has_our_own_counters_first_and_then_the_newest_of_others() {
        let (one, two) = (SharedCounts::default(), SharedCounts::default());
        (0..2 * MAX_COUNTS as u64).for_each(|key| one.add(key, (SECOND, 20), 0, 10 + key));
        assert!(one.report(5_000).iter().all(|count| count.key >= MAX_COUNTS as u64), "those that changed last");
        (0..3).for_each(|key| two.add(key, (SECOND, 20), 0, 1));
        two.merge(&one.report(5_000), 6_000);
        let report = two.report(7_000);
        assert_eq!((report.len(), report[..3].iter().all(|count| count.key < 3)), (MAX_COUNTS, true));
    }
}
