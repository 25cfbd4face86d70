//! Rate limits of routes: one token bucket for each key, shared by all workers of the process. A global limit also counts what the
//! processes of all regions report that they have admitted.
//!
//! A bucket is one number, the time at which it will be full again (generic cell rate algorithm, ITU-T I.371). A full bucket is the
//! same as none, so full ones are removed.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use http::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};

use super::network_of;
use super::shared_counts::SharedCounts;
use crate::peer::rates::RateCount;

/// A rate limit of a route.
#[derive(Clone, PartialEq, Debug)]
pub struct RateLimit {
    pub by: RateKey,
    /// The number of requests in `period`.
    pub requests: u32,
    pub period: Duration,
    /// The requests that may come at once after a pause.
    pub burst: u32,
    pub scope: Scope,
}

/// The processes that count together.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Scope {
    /// Each process counts alone.
    #[default]
    Region,
    /// The processes of all regions. They exchange their counts in probes, so that before they know of each other, each admits a burst,
    /// and between two probes a burst and the rate.
    Global,
}

/// The property that assigns a request to a token bucket: requests with the same value share one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RateKey {
    /// The client's IPv4 address or IPv6 /64.
    Client,
    /// The caller, if its key is proven; otherwise the client.
    User,
    /// The value of a header field; the client where there is none.
    Header(HeaderName),
    /// All requests of the route.
    Route,
}

/// The key of one request.
#[derive(Hash)]
pub enum Key<'a> {
    Client(IpAddr),
    User(&'a str),
    Header(&'a [u8]),
    Route,
    /// All keys that have no bucket while there are too many.
    Overflow,
}

/// A request that exceeds a limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exceeded {
    burst: u32,
    /// The time in which an empty bucket becomes full.
    window: Duration,
    retry_after: Duration,
}

impl RateLimit {
    /// The time in which a bucket gets one token.
    fn interval(&self) -> Duration {
        self.period / self.requests
    }

    pub fn key<'a>(&self, client: IpAddr, user: Option<&'a str>, headers: &'a HeaderMap) -> Key<'a> {
        let found = match &self.by {
            RateKey::Client => None,
            RateKey::User => user.map(Key::User),
            RateKey::Header(name) => headers.get(name).map(|value| Key::Header(value.as_bytes())),
            RateKey::Route => Some(Key::Route),
        };
        found.unwrap_or_else(|| Key::Client(network_of(client)))
    }
}

/// The most buckets that are not full, about 40 MB. Further keys of a limit share one bucket.
const MAX_BUCKETS: usize = 1_000_000;

/// The time for which a global limit may refuse everything because the regions together have exceeded it, beyond the time in which an
/// empty bucket becomes full. It bounds the effect of a long separation of the regions.
const MAX_DEBT: Duration = Duration::from_secs(60);

/// How often full buckets are removed.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// The token buckets of the process.
pub struct RateLimits {
    /// When each bucket is full again, in nanoseconds since `started`.
    buckets: DashMap<u64, u64>,
    hasher: RandomState,
    /// The number of buckets, roughly.
    count: AtomicUsize,
    shared: SharedCounts,
    most: usize,
    started: Instant,
    swept_at: AtomicU64,
}

impl Default for RateLimits {
    fn default() -> Self {
        Self {
            buckets: DashMap::new(),
            hasher: RandomState::new(),
            count: AtomicUsize::new(0),
            shared: SharedCounts::default(),
            most: MAX_BUCKETS,
            started: Instant::now(),
            swept_at: AtomicU64::new(0),
        }
    }
}

impl RateLimits {
    /// Takes a token for a request of the route; `index` is the position of the limit among those of the route.
    pub fn take(&self, limit: &RateLimit, (route, index): (&str, usize), key: &Key<'_>, now: Instant) -> Result<(), Exceeded> {
        let now = nanos(now.saturating_duration_since(self.started));
        self.sweep(now);
        let (interval, burst) = (nanos(limit.interval()).max(1), u64::from(limit.burst));
        let most = interval.saturating_mul(burst.saturating_sub(1));
        // Another rate or burst begins with full buckets.
        let bucket_of = |key: &Key<'_>| match limit.scope {
            Scope::Region => self.hasher.hash_one((route, index, interval, burst, key)),
            // The same in all processes.
            Scope::Global => BuildHasherDefault::<DefaultHasher>::default().hash_one((route, index, interval, burst, key)),
        };
        let mut number = bucket_of(key);
        if self.count.load(Ordering::Relaxed) >= self.most && !self.buckets.contains_key(&number) {
            number = bucket_of(&Key::Overflow);
        }
        let idle = match self.buckets.entry(number) {
            Entry::Vacant(free) => {
                self.count.fetch_add(1, Ordering::Relaxed);
                free.insert(now.saturating_add(interval));
                0
            }
            Entry::Occupied(mut bucket) => {
                let ahead = bucket.get().saturating_sub(now);
                if ahead > most {
                    let window = Duration::from_nanos(interval.saturating_mul(burst));
                    return Err(Exceeded { burst: limit.burst, window, retry_after: Duration::from_nanos(ahead - most) });
                }
                let idle = now.saturating_sub(*bucket.get());
                *bucket.get_mut() = now.saturating_add(ahead).saturating_add(interval);
                idle
            }
        };
        if limit.scope == Scope::Global {
            self.shared.add(number, (interval, limit.burst), idle, now);
        }
        Ok(())
    }

    /// The counters of global limits, for the probes of other regions.
    pub fn report(&self, now: Instant) -> Vec<RateCount> {
        self.shared.report(nanos(now.saturating_duration_since(self.started)))
    }

    /// Takes the tokens of the requests that other processes have admitted, and returns their number. They may have been admitted at
    /// any time since the last report, so the tokens that this process has not used since then are taken first.
    pub fn learn(&self, reported: &[RateCount], now: Instant) -> u64 {
        let now = nanos(now.saturating_duration_since(self.started));
        self.sweep(now);
        let mut learned = 0;
        for growth in self.shared.merge(reported, now) {
            learned += growth.requests;
            if self.count.load(Ordering::Relaxed) >= self.most && !self.buckets.contains_key(&growth.key) {
                continue;
            }
            let mut bucket = self.buckets.entry(growth.key).or_insert_with(|| {
                self.count.fetch_add(1, Ordering::Relaxed);
                0
            });
            let cost = growth.requests.saturating_mul(growth.interval);
            let from = (*bucket).max(growth.since);
            let later = cost.saturating_sub(now.saturating_sub(from));
            let idle = self.shared.take_idle(growth.key, later.min(now.saturating_sub(growth.since)));
            let full_at = from.saturating_add(cost).saturating_sub(idle);
            // Of a new counter, only the burst is known, which cannot be owed several times.
            let debt = if growth.is_new { 0 } else { nanos(MAX_DEBT) };
            let window = growth.interval.saturating_mul(growth.burst.into());
            *bucket = full_at.min(now.saturating_add(window).saturating_add(debt)).max(*bucket);
        }
        learned
    }

    fn sweep(&self, now: u64) {
        let last = self.swept_at.load(Ordering::Relaxed);
        let is_due = now.saturating_sub(last) >= nanos(SWEEP_EVERY);
        if is_due && self.swept_at.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.shared.sweep(now);
            self.buckets.retain(|_, full_at| *full_at > now);
            self.count.store(self.buckets.len(), Ordering::Relaxed);
            if self.buckets.len() >= self.most {
                tracing::warn!(keys = self.most, "too many clients of rate limits; further ones share a bucket");
            }
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LEFT: HeaderName = HeaderName::from_static("ratelimit");

/// Copies the fields of [`Exceeded::write`] from the owner's refusal to ours, if it has them.
pub fn copy_fields(from: &HeaderMap, to: &mut HeaderMap) {
    if from.contains_key(LEFT) {
        for name in [RETRY_AFTER, POLICY, LEFT] {
            from.get(&name).into_iter().for_each(|value| drop(to.insert(name.clone(), value.clone())));
        }
    }
}

impl Exceeded {
    /// Adds `Retry-After` and the fields of draft-ietf-httpapi-ratelimit-headers-10: the policy, and what is left of it.
    pub fn write(&self, headers: &mut HeaderMap) {
        let seconds = |duration: Duration| duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
        let retry_after = seconds(self.retry_after);
        headers.insert(RETRY_AFTER, HeaderValue::from(retry_after));
        let policy = format!("\"route\";q={};w={}", self.burst, seconds(self.window));
        for (name, text) in [(POLICY, policy), (LEFT, format!("\"route\";r=0;t={retry_after}"))] {
            headers.insert(name, HeaderValue::try_from(text).expect("digits are a valid field value"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(requests: u32, period: u64, burst: u32) -> RateLimit {
        RateLimit { by: RateKey::Client, requests, period: Duration::from_secs(period), burst, scope: Scope::Region }
    }

    fn client(last: u8) -> Key<'static> {
        Key::Client([192, 0, 2, last].into())
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let (limits, limit) = (RateLimits::default(), limit(2, 1, 5));
        let at = |millis| limits.started + Duration::from_millis(millis);
        let take = |millis| limits.take(&limit, ("a", 0), &client(1), at(millis)).is_ok();
        assert_eq!((0..8).filter(|_| take(0)).count(), 5);
        assert_eq!([take(499), take(500), take(500)], [false, true, false]);
        assert_eq!((0..8).filter(|_| take(10_000)).count(), 5, "an idle bucket holds no more than the burst");
        // Twenty seconds of constant pressure.
        let passed = (0..20_000_u64).step_by(10).filter(|millis| take(20_000 + millis)).count();
        assert!((40..=46).contains(&passed), "{passed}");
    }

    #[test]
    fn keys_routes_and_limits_have_their_own_buckets() {
        let (limits, limit) = (RateLimits::default(), limit(1, 60, 1));
        let now = limits.started;
        let take = |route, index, key: Key<'_>| limits.take(&limit, (route, index), &key, now).is_ok();
        assert!(take("a", 0, client(1)) && !take("a", 0, client(1)));
        assert!(take("a", 0, client(2)) && take("a", 1, client(1)) && take("b", 0, client(1)));
        assert!(take("a", 0, Key::User("1")) && take("a", 0, Key::Header(b"1")) && take("a", 0, Key::Route));
    }

    #[test]
    fn the_refusal_says_when_to_come_back() {
        let (limits, limit) = (RateLimits::default(), limit(30, 60, 3));
        let now = limits.started + Duration::from_millis(1);
        let exceeded = (0..4).find_map(|_| limits.take(&limit, ("a", 0), &client(1), now).err()).unwrap();
        let mut headers = HeaderMap::new();
        exceeded.write(&mut headers);
        let fields = ["retry-after", "ratelimit-policy", "ratelimit"].map(|name| headers[name].to_str().unwrap().to_owned());
        assert_eq!(fields, ["2", "\"route\";q=3;w=6", "\"route\";r=0;t=2"]);
    }

    #[test]
    fn too_many_keys_share_a_bucket() {
        let limits = RateLimits { most: 3, ..RateLimits::default() };
        let limit = limit(1, 60, 2);
        let take = |last| limits.take(&limit, ("a", 0), &client(last), limits.started).is_ok();
        assert_eq!((1..=3).map(take).collect::<Vec<_>>(), [true; 3]);
        assert_eq!(
            (4..=8).map(take).collect::<Vec<_>>(),
            [true, true, false, false, false],
            "a burst of two for all further keys"
        );
        assert!(take(1), "a known key keeps its own bucket");
    }

    #[test]
    fn a_new_rate_begins_with_full_buckets() {
        let limits = RateLimits::default();
        let take = |limit: &RateLimit| limits.take(limit, ("a", 0), &client(1), limits.started).is_ok();
        assert!(take(&limit(1, 3600, 1)) && !take(&limit(1, 3600, 1)) && take(&limit(2, 3600, 1)) && take(&limit(1, 3600, 2)));
    }

    #[test]
    fn full_buckets_are_removed() {
        let (limits, limit) = (RateLimits::default(), limit(1, 1, 1));
        let at = |seconds| limits.started + Duration::from_secs(seconds);
        assert!((0..200).all(|last| limits.take(&limit, ("a", 0), &client(last), at(1)).is_ok()));
        assert_eq!(limits.buckets.len(), 200);
        assert!(limits.take(&limit, ("a", 0), &client(1), at(11)).is_ok());
        assert_eq!(limits.buckets.len(), 1);
    }

    #[test]
    fn three_processes_admit_one_burst_together_once_they_know() {
        let limit = RateLimit { scope: Scope::Global, ..limit(10, 1, 20) };
        let processes = [(); 3].map(|()| RateLimits::default());
        // All processes have the same clock here.
        let at = |process: &RateLimits, millis| process.started + Duration::from_millis(millis);
        let take = |process: &RateLimits, millis| process.take(&limit, ("a", 0), &Key::Route, at(process, millis)).is_ok();
        let exchange = |millis| {
            let reports = processes.each_ref().map(|process| process.report(at(process, millis)));
            for process in &processes {
                for report in &reports {
                    process.learn(report, at(process, millis));
                }
            }
        };
        let mut admitted = Vec::new();
        // Twenty seconds of constant pressure on all three, with an exchange each second.
        for millis in (0..20_000).step_by(10) {
            admitted.push(processes.iter().filter(|process| take(process, millis)).count());
            if millis % 1000 == 990 {
                exchange(millis);
            }
        }
        let total: usize = admitted.iter().sum();
        let (alone, others) = (20 + 10 * 20, 2 * (2 * 20 + 10));
        assert!(
            (alone..=alone + others).contains(&total),
            "{total}: a burst and the rate, and for each other process two bursts and the rate of a second"
        );
        let later: usize = admitted[1000..].iter().sum();
        assert!(later <= 10 * 10 + others, "{later} in the last ten seconds");
    }

    #[test]
    fn processes_below_the_limit_together_are_not_refused() {
        // A small burst, and a long time between two reports.
        let limit = RateLimit { scope: Scope::Global, ..limit(100, 1, 20) };
        let processes = [(); 3].map(|()| RateLimits::default());
        let at = |process: &RateLimits, millis| process.started + Duration::from_millis(millis);
        let mut refused = 0;
        for millis in 0..60_000_u64 {
            for (index, process) in processes.iter().enumerate() {
                // Thirty requests a second at each of the three, not at the same time.
                if millis % 33 == index as u64 * 11 && process.take(&limit, ("a", 0), &Key::Route, at(process, millis)).is_err() {
                    refused += 1;
                }
            }
            if millis % 5_000 == 4_999 {
                let reports = processes.each_ref().map(|process| process.report(at(process, millis)));
                for process in &processes {
                    for report in &reports {
                        process.learn(report, at(process, millis));
                    }
                }
            }
        }
        assert!(refused < 60, "{refused} of 5,400 were refused");
    }

    #[test]
    fn a_process_that_starts_owes_a_burst_at_most() {
        let limit = RateLimit { scope: Scope::Global, ..limit(10, 1, 20) };
        let old = [(); 5].map(|()| RateLimits::default());
        let minute = Duration::from_secs(60);
        let take = |process: &RateLimits, time| process.take(&limit, ("a", 0), &Key::Route, process.started + time).is_ok();
        old.iter().for_each(|process| (0..20).for_each(|_| drop(vec![take(process, minute)])));
        let new = RateLimits::default();
        for process in &old {
            new.learn(&process.report(process.started + minute), new.started + minute);
        }
        assert!(!take(&new, minute) && take(&new, minute + Duration::from_millis(200)), "it begins with an empty bucket");
    }

    #[test]
    fn regions_that_meet_again_owe_a_minute_at_most() {
        let limit = RateLimit { scope: Scope::Global, ..limit(10, 1, 20) };
        let (one, two) = (RateLimits::default(), RateLimits::default());
        let take = |process: &RateLimits, millis| {
            process.take(&limit, ("a", 0), &Key::Route, process.started + Duration::from_millis(millis)).is_ok()
        };
        assert!(take(&one, 0) && take(&two, 0));
        two.learn(&one.report(one.started), two.started);
        let served = (0..120_000).step_by(50).filter(|millis| take(&one, *millis) && take(&two, *millis)).count();
        assert!((1_200..1_230).contains(&served), "{served}: both at the full rate while they are separate");
        let later = 120_000;
        let learned =
            two.learn(&one.report(one.started + Duration::from_millis(later)), two.started + Duration::from_millis(later));
        assert!(learned > 1_200, "{learned}");
        let wait = (later..).step_by(100).find(|millis| take(&two, *millis)).unwrap() - later;
        assert!((55_000..=62_000).contains(&wait), "{wait} ms");
    }

    #[test]
    fn absent_keys_fall_back_to_the_client() {
        let (headers, address) = (HeaderMap::new(), "2001:db8:1:2:3::4".parse().unwrap());
        for by in [RateKey::User, RateKey::Header("x-key".parse().unwrap()), RateKey::Client] {
            let limit = RateLimit { by, ..limit(1, 1, 1) };
            let Key::Client(network) = limit.key(address, None, &headers) else { panic!("the client") };
            assert_eq!(network, "2001:db8:1:2::".parse::<IpAddr>().unwrap());
        }
    }
}
