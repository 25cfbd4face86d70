//! Rate limits of routes: one token bucket for each key, shared by all workers of the process.
//!
//! A bucket is one number, the time at which it will be full again (generic cell rate algorithm, ITU-T I.371). A full bucket is the
//! same as none, so full ones are removed.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use http::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};

use super::network_of;

/// A rate limit of a route.
#[derive(Clone, PartialEq, Debug)]
pub struct RateLimit {
    pub by: RateKey,
    /// The number of requests in `period`.
    pub requests: u32,
    pub period: Duration,
    /// The requests that may come at once after a pause.
    pub burst: u32,
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

/// How often full buckets are removed.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// The token buckets of the process.
pub struct RateLimits {
    /// When each bucket is full again, in nanoseconds since `started`.
    buckets: DashMap<u64, u64>,
    hasher: RandomState,
    /// The number of buckets, roughly.
    count: AtomicUsize,
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
        let bucket_of = |key: &Key<'_>| self.hasher.hash_one((route, index, interval, burst, key));
        let mut number = bucket_of(key);
        if self.count.load(Ordering::Relaxed) >= self.most && !self.buckets.contains_key(&number) {
            number = bucket_of(&Key::Overflow);
        }
        match self.buckets.entry(number) {
            Entry::Vacant(free) => {
                self.count.fetch_add(1, Ordering::Relaxed);
                free.insert(now.saturating_add(interval));
                Ok(())
            }
            Entry::Occupied(mut bucket) => {
                let ahead = bucket.get().saturating_sub(now);
                if ahead > most {
                    let window = Duration::from_nanos(interval.saturating_mul(burst));
                    return Err(Exceeded { burst: limit.burst, window, retry_after: Duration::from_nanos(ahead - most) });
                }
                *bucket.get_mut() = now.saturating_add(ahead).saturating_add(interval);
                Ok(())
            }
        }
    }

    fn sweep(&self, now: u64) {
        let last = self.swept_at.load(Ordering::Relaxed);
        let is_due = now.saturating_sub(last) >= nanos(SWEEP_EVERY);
        if is_due && self.swept_at.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
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
        RateLimit { by: RateKey::Client, requests, period: Duration::from_secs(period), burst }
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
    fn absent_keys_fall_back_to_the_client() {
        let (headers, address) = (HeaderMap::new(), "2001:db8:1:2:3::4".parse().unwrap());
        for by in [RateKey::User, RateKey::Header("x-key".parse().unwrap()), RateKey::Client] {
            let limit = RateLimit { by, ..limit(1, 1, 1) };
            let Key::Client(network) = limit.key(address, None, &headers) else { panic!("the client") };
            assert_eq!(network, "2001:db8:1:2::".parse::<IpAddr>().unwrap());
        }
    }
}
