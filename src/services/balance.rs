//! Picks an upstream: the less busy of two random healthy ones (Mitzenmacher's power of two choices), drawn by their weights, or
//! the one that a key hashes to.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::budget::RetryBudget;
use super::{Service, StickySettings, Upstream};

/// The outstanding requests of one worker. Workers do not share counters, because a choice only has to be roughly right and
/// a shared counter would be the only contended cache line of the hot path.
#[derive(Default)]
pub struct Load {
    outstanding: RefCell<HashMap<Box<str>, Rc<Cell<usize>>>>,
    /// By the numbers of the services.
    queues: RefCell<Vec<Rc<Queue>>>,
    pub retries: RetryBudget,
}

/// The requests that wait for an upstream of one service.
#[derive(Default)]
struct Queue {
    waiting: Cell<usize>,
    freed: Notify,
}

/// One outstanding request at an upstream; dropping the value ends the count.
pub struct Outstanding(Rc<Cell<usize>>, Rc<Queue>);

impl Drop for Outstanding {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
        self.1.freed.notify_one();
    }
}

/// The outcome of [`Load::select`].
pub enum Selection {
    Upstream(Arc<Upstream>, Outstanding),
    /// Every candidate has reached its request limit.
    Full,
    /// No untried upstream is up.
    None,
}

/// Limits of each worker: requests in flight at one upstream, and requests that wait for an upstream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CircuitLimits {
    pub requests: usize,
    pub queue: usize,
    pub queue_timeout: Duration,
}

impl Default for CircuitLimits {
    fn default() -> Self {
        Self { requests: 1024, queue: 1024, queue_timeout: Duration::from_secs(1) }
    }
}

impl Load {
    /// Takes an upstream that is up and not in `tried`: the preferred one, or one by load. Takes an ejected upstream only if there
    /// is no other.
    #[inline(never)] // a stage of benches/stages
    pub fn select(&self, service: &Service, tried: &[Arc<Upstream>], preference: Preference) -> Selection {
        let now = Instant::now();
        let is_new = |upstream: &&Arc<Upstream>| !tried.iter().any(|other| Arc::ptr_eq(other, upstream));
        let is_usable = |upstream: &&Arc<Upstream>| upstream.takes_requests() && is_new(upstream);
        let is_preferred = |upstream: &&Arc<Upstream>| is_usable(upstream) && !upstream.is_ejected(now);
        match preference {
            Preference::None => {}
            Preference::Hash(key) => {
                return match self.hash(service, is_preferred, key) {
                    Selection::None => self.hash(service, is_usable, key),
                    selection => selection,
                };
            }
            Preference::Upstream(fingerprint) => {
                let all = service.all();
                let has_room = |upstream: &&Arc<Upstream>| self.cell(upstream).get() < service.settings.circuit.requests;
                // A session stays at an upstream that drains.
                let is_there = |upstream: &&Arc<Upstream>| upstream.is_up() && is_new(upstream) && !upstream.is_ejected(now);
                let found = all.iter().find(|upstream| upstream.fingerprint == fingerprint && is_there(upstream));
                // Waiting for one app server would hold up the queue of the service, in which others wait for any.
                if let Some(upstream) = found.filter(has_room) {
                    return self.take(service, upstream);
                }
            }
        }
        match self.draw(service, is_preferred, now) {
            Selection::None => self.draw(service, is_usable, now),
            selection => selection,
        }
    }

    /// The candidate with the highest weighted rendezvous hash of the key (Thaler and Ravishankar 1998) that has at most
    /// [`BOUND`] times its share of the outstanding requests (Mirrokni, Thorup and Zadimoghaddam 2016).
    fn hash(&self, service: &Service, is_candidate: impl Fn(&&Arc<Upstream>) -> bool, key: u64) -> Selection {
        let load = |upstream: &Upstream| self.cell(upstream).get();
        let (limit, all) = (service.settings.circuit.requests, service.all());
        // An upstream at its limit has no share, so that the others can take its keys.
        let candidates = || all.iter().filter(|upstream| is_candidate(upstream) && load(upstream) < limit);
        let (total, weights) =
            candidates().fold((1, 0), |(total, weights), upstream| (total + load(upstream), weights + upstream.weight));
        let has_room = |upstream: &&Arc<Upstream>| {
            let share = total as f64 * f64::from(upstream.weight) / f64::from(weights);
            (load(upstream) as f64) < (share * BOUND).ceil()
        };
        let by_score = |one: &&Arc<Upstream>, other: &&Arc<Upstream>| score(one, key).total_cmp(&score(other, key));
        match candidates().filter(has_room).max_by(by_score) {
            Some(upstream) => self.take(service, upstream),
            None if all.iter().any(|upstream| is_candidate(&upstream)) => Selection::Full,
            None => Selection::None,
        }
    }

    fn take(&self, service: &Service, upstream: &Arc<Upstream>) -> Selection {
        let cell = self.cell(upstream);
        cell.set(cell.get() + 1);
        Selection::Upstream(Arc::clone(upstream), Outstanding(cell, self.queue(service)))
    }

    fn draw(&self, service: &Service, is_candidate: impl Fn(&&Arc<Upstream>) -> bool, now: Instant) -> Selection {
        let (limit, all) = (service.settings.circuit.requests, service.all());
        let has_room = |upstream: &&Arc<Upstream>| is_candidate(upstream) && self.cell(upstream).get() < limit;
        let Some(first) = all.wheel.draw(&all, has_room) else {
            let has_candidate = all.iter().any(|upstream| is_candidate(&upstream));
            return if has_candidate { Selection::Full } else { Selection::None };
        };
        let second = all.wheel.draw(&all, has_room).unwrap_or(first);
        let slow_start = service.settings.ejection.slow_start;
        // Of two idle upstreams the first is taken, so that weights decide by the draw alone.
        let cost = |upstream: &Upstream| {
            let busy = (self.cell(upstream).get() + 1) as f64 / upstream.share(slow_start, now) - 1.0;
            busy / f64::from(upstream.weight)
        };
        let is_other = !Arc::ptr_eq(first, second);
        let upstream = if is_other && cost(second) < cost(first) { second } else { first };
        self.take(service, upstream)
    }

    /// Takes an upstream as [`Load::select`] does. If all are full, the request waits in a FIFO queue, at most for the queue
    /// timeout and not past `deadline`. A retry does not wait, because the requests in the queue have not been tried yet.
    pub async fn select_or_queue(
        &self,
        service: &Service,
        tried: &[Arc<Upstream>],
        preference: Preference,
        deadline: Option<Instant>,
    ) -> Selection {
        let (circuit, queue) = (&service.settings.circuit, self.queue(service));
        if queue.waiting.get() == 0 || !tried.is_empty() {
            match self.select(service, tried, preference) {
                Selection::Full if tried.is_empty() => {}
                selection => return selection,
            }
        }
        if queue.waiting.get() >= circuit.queue {
            return Selection::Full;
        }
        let _slot = QueueSlot::take(&queue.waiting);
        // Wake the longest waiter, because capacity can grow without the end of a request: an upstream comes back, or a reload
        // raises the limit.
        queue.freed.notify_one();
        let queue_end = Instant::now() + circuit.queue_timeout;
        let until = deadline.map_or(queue_end, |deadline| deadline.min(queue_end));
        loop {
            if tokio::time::timeout_at(until.into(), queue.freed.notified()).await.is_err() {
                return Selection::Full;
            }
            match self.select(service, tried, preference) {
                Selection::Full => {}
                selection => {
                    queue.freed.notify_one();
                    return selection;
                }
            }
        }
    }

    /// Forgets the counters that are not in use, because the addresses of upstreams come and go. The worker calls it periodically.
    pub fn forget_idle(&self) {
        self.outstanding.borrow_mut().retain(|_, cell| Rc::strong_count(cell) > 1);
    }

    fn queue(&self, service: &Service) -> Rc<Queue> {
        let (index, mut queues) = (service.id.index(), self.queues.borrow_mut());
        while queues.len() <= index {
            queues.push(Rc::default());
        }
        Rc::clone(&queues[index])
    }

    fn cell(&self, upstream: &Upstream) -> Rc<Cell<usize>> {
        let mut outstanding = self.outstanding.borrow_mut();
        if let Some(cell) = outstanding.get(upstream.authority()) {
            return Rc::clone(cell);
        }
        Rc::clone(outstanding.entry(upstream.authority().into()).or_default())
    }
}

/// A loaded upstream gets a quarter more than its share before the next requests for its keys go elsewhere.
const BOUND: f64 = 1.25;

/// The weighted rendezvous score of an upstream for a key.
fn score(upstream: &Upstream, key: u64) -> f64 {
    let mut hasher = std::hash::DefaultHasher::new();
    (upstream.authority(), key).hash(&mut hasher);
    // A number between 0 and 1, both excluded.
    let uniform = (((hasher.finish() >> 12) as f64) + 0.5) / (1_u64 << 52) as f64;
    -f64::from(upstream.weight) / uniform.ln()
}

/// The upstream that a request should get, if it has room.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Preference {
    #[default]
    None,
    /// The one that this hash of a key leads to. Equal keys get the same upstream while the upstreams stay the same.
    Hash(u64),
    /// The one with this fingerprint, to which the session sticks.
    Upstream(u64),
}

/// How a service chooses among its upstreams.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum Balance {
    /// The less busy of two, drawn by weight.
    #[default]
    LeastBusy,
    /// By a key of the request; requests without the key are balanced as with `LeastBusy`.
    Hash(HashKey),
    /// The upstream that served the session before, by a sealed cookie; new sessions are balanced as with `LeastBusy`.
    Sticky(StickySettings),
}

/// The key of a request that chooses its upstream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HashKey {
    User,
    Header(http::HeaderName),
    Cookie(Box<str>),
}

/// A slot in the queue, freed on drop.
struct QueueSlot<'a>(&'a Cell<usize>);

impl<'a> QueueSlot<'a> {
    fn take(waiting: &'a Cell<usize>) -> Self {
        waiting.set(waiting.get() + 1);
        Self(waiting)
    }
}

impl Drop for QueueSlot<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Service, Settings, UpstreamSettings};
    use super::*;
    use crate::model::service::ServiceId;
    use crate::transport::dial::HttpVersion;
    use std::sync::atomic::Ordering;

    fn service(requests: usize) -> Service {
        let target = |name: &str| UpstreamSettings {
            authority: name.into(),
            query: None,
            http_version: HttpVersion::Http1,
            tls: None,
            weight: 1,
            base: "".into(),
            proxy_protocol: None,
        };
        let circuit = CircuitLimits { requests, queue: 1, queue_timeout: Duration::from_millis(20) };
        let upstreams = vec![target("a:1"), target("b:1"), target("c:1")];
        Service::new(ServiceId::new(0).unwrap(), Settings { upstreams, check: None, circuit, ..Settings::default() }, None)
            .unwrap()
    }

    fn one(selection: Selection) -> (Arc<Upstream>, Outstanding) {
        match selection {
            Selection::Upstream(upstream, busy) => (upstream, busy),
            Selection::Full => panic!("every upstream is full"),
            Selection::None => panic!("no upstream is available"),
        }
    }

    #[test]
    fn a_busy_upstream_gets_less_and_an_idle_one_more() {
        let (service, load) = (service(1000), Load::default());
        let held: Vec<_> = (0..300).map(|_| one(load.select(&service, &[], Preference::None))).collect();
        for upstream in service.all().iter() {
            let share = held.iter().filter(|(selection, _)| Arc::ptr_eq(selection, upstream)).count();
            assert!((95..=105).contains(&share), "two choices keep the load even: {share}");
        }
        drop(held);
        assert_eq!(load.cell(&service.all()[0]).get(), 0);
    }

    #[test]
    fn a_returning_upstream_gets_its_share_gradually() {
        let (service, load) = (service(1000), Load::default());
        service.all()[0].set_up(false);
        service.all()[0].set_up(true);
        let held: Vec<_> = (0..300).map(|_| one(load.select(&service, &[], Preference::None))).collect();
        let share = held.iter().filter(|(selection, _)| Arc::ptr_eq(selection, &service.all()[0])).count();
        assert!(share < 60, "the upstream has just returned: {share} of 300");
    }

    #[test]
    fn an_upstream_that_is_down_or_tried_is_not_taken() {
        let (service, load) = (service(1000), Load::default());
        service.all()[0].state.up.store(false, Ordering::Relaxed);
        let tried = [Arc::clone(&service.all()[1])];
        for _ in 0..50 {
            assert_eq!(one(load.select(&service, &tried, Preference::None)).0.authority(), "c:1");
        }
        service.all()[2].state.up.store(false, Ordering::Relaxed);
        assert!(matches!(load.select(&service, &tried, Preference::None), Selection::None));
    }

    #[test]
    fn a_failing_upstream_is_ejected_but_never_more_than_half_of_them() {
        let (service, load) = (service(1000), Load::default());
        let fail = |index: usize| (0..5).for_each(|_| service.note(&service.all()[index], false));
        fail(0);
        assert!(service.all()[0].is_ejected(Instant::now()));
        assert!((0..50).all(|_| one(load.select(&service, &[], Preference::None)).0.authority() != "a:1"));
        fail(1);
        assert!(!service.all()[1].is_ejected(Instant::now()), "two of three are more than half");
        // An ejected upstream is used when no other is left.
        service.all()[1].state.up.store(false, Ordering::Relaxed);
        service.all()[2].state.up.store(false, Ordering::Relaxed);
        assert_eq!(one(load.select(&service, &[], Preference::None)).0.authority(), "a:1");
    }

    #[test]
    fn requests_wait_for_a_full_upstream_and_the_queue_is_bounded() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (service, load) = (service(2), Load::default());
            let mut held: Vec<_> = (0..6).map(|_| one(load.select(&service, &[], Preference::None))).collect();
            assert!(matches!(load.select(&service, &[], Preference::None), Selection::Full));
            let wait = || load.select_or_queue(&service, &[], Preference::None, None);
            assert!(matches!(wait().await, Selection::Full), "no upstream becomes free before the queue timeout");
            let (waited, refused) = tokio::join!(wait(), async {
                let refused = wait().await;
                held.pop();
                refused
            });
            assert!(matches!(waited, Selection::Upstream(..)), "the first request gets the upstream that becomes free");
            assert!(matches!(refused, Selection::Full), "the queue is full for the second request");
            let soon = Some(Instant::now());
            assert!(
                matches!(load.select_or_queue(&service, &[], Preference::None, soon).await, Selection::Full),
                "nothing waits past its deadline"
            );
            drop((held, waited));
            // Capacity grows although no request ends: an upstream that was down comes back while a request waits.
            service.all()[0].state.up.store(false, Ordering::Relaxed);
            let held: Vec<_> = (0..4).map(|_| one(load.select(&service, &[], Preference::None))).collect();
            let wide = CircuitLimits { queue: 5, queue_timeout: Duration::from_secs(60), ..service.settings.circuit };
            let service = Service { settings: Settings { circuit: wide, ..service.settings.clone() }, ..service };
            let (first, second) = tokio::join!(load.select_or_queue(&service, &[], Preference::None, None), async {
                service.all()[0].state.up.store(true, Ordering::Relaxed);
                load.select_or_queue(&service, &[], Preference::None, None).await
            });
            assert_eq!([one(first).0.authority(), one(second).0.authority()], ["a:1", "a:1"]);
            drop(held);
            assert!(matches!(load.select(&service, &[], Preference::None), Selection::Upstream(..)));
        });
    }

    /// A service with these weights of its upstreams `a:1`, `b:1`, …
    fn weighted(weights: &[u32]) -> Service {
        let upstream = |(index, weight): (usize, &u32)| UpstreamSettings {
            authority: format!("{}:1", char::from(b'a' + index as u8)),
            query: None,
            http_version: HttpVersion::Http1,
            tls: None,
            weight: *weight,
            base: "".into(),
            proxy_protocol: None,
        };
        let upstreams = weights.iter().enumerate().map(upstream).collect();
        Service::new(ServiceId::new(0).unwrap(), Settings { upstreams, ..Settings::default() }, None).unwrap()
    }

    fn shares(service: &Service, taken: &[Arc<Upstream>]) -> Vec<usize> {
        let count = |upstream: &Arc<Upstream>| taken.iter().filter(|taken| Arc::ptr_eq(taken, upstream)).count();
        service.all().iter().map(count).collect()
    }

    #[test]
    fn upstreams_get_their_weights_both_idle_and_busy() {
        let (service, load) = (weighted(&[1, 3, 0x10]), Load::default());
        let idle: Vec<_> = (0..20_000).map(|_| one(load.select(&service, &[], Preference::None)).0).collect();
        let held: Vec<_> = (0..1_000).map(|_| one(load.select(&service, &[], Preference::None))).collect();
        let busy: Vec<_> = held.iter().map(|(upstream, _)| Arc::clone(upstream)).collect();
        for (shares, total) in [(shares(&service, &idle), 20_000), (shares(&service, &busy), 1_000)] {
            for (share, weight) in shares.iter().zip([1, 3, 16]) {
                let expected = total * weight / 20;
                assert!(share.abs_diff(expected) <= expected / 5, "{shares:?}");
            }
        }
        service.all()[2].set_up(false);
        let rest: Vec<_> = (0..400).map(|_| one(load.select(&service, &[], Preference::None)).0).collect();
        assert_eq!(shares(&service, &rest)[2], 0);
    }

    #[test]
    fn equal_keys_get_the_same_upstream_and_few_move_when_one_is_lost() {
        let (service, load) = (weighted(&[1; 10]), Load::default());
        let of = |key| one(load.select(&service, &[], Preference::Hash(key))).0;
        let before: Vec<_> = (0..1_000).map(of).collect();
        assert!((0..1_000).all(|key| Arc::ptr_eq(&of(key), &before[key as usize])));
        let counts: Vec<_> =
            service.all().iter().map(|one| before.iter().filter(|taken| Arc::ptr_eq(taken, one)).count()).collect();
        assert!(counts.iter().all(|count| (60..=140).contains(count)), "{counts:?}");
        service.all()[3].set_up(false);
        let moved = (0..1_000).filter(|key| !Arc::ptr_eq(&of(*key), &before[*key as usize])).count();
        assert_eq!(moved, counts[3], "only the keys of the lost upstream move");
    }

    #[test]
    fn a_popular_key_does_not_overload_its_upstream() {
        let (service, load) = (weighted(&[1; 4]), Load::default());
        let held: Vec<_> = (0..400).map(|_| one(load.select(&service, &[], Preference::Hash(7)))).collect();
        let taken: Vec<_> = held.iter().map(|(upstream, _)| Arc::clone(upstream)).collect();
        let most = shares(&service, &taken).into_iter().max();
        assert!(most.is_some_and(|most| (100..=126).contains(&most)), "{most:?}");
    }

    #[test]
    fn weights_count_for_hashed_keys_too() {
        let (service, load) = (weighted(&[1, 4]), Load::default());
        let heavy =
            (0..1_000).filter(|key| one(load.select(&service, &[], Preference::Hash(*key))).0.authority() == "b:1").count();
        assert!((740..=860).contains(&heavy), "{heavy}");
    }

    #[test]
    fn a_session_whose_upstream_is_full_goes_to_another_and_returns() {
        let (service, load) = (service(1), Load::default());
        let own = service.all()[1].fingerprint;
        let (first, busy) = one(load.select(&service, &[], Preference::Upstream(own)));
        assert_eq!(first.fingerprint, own);
        let (other, _other) = one(load.select(&service, &[], Preference::Upstream(own)));
        assert_ne!(other.fingerprint, own, "nobody waits for one upstream");
        assert!(service.can_serve(own), "the session stays there");
        drop(busy);
        assert_eq!(one(load.select(&service, &[], Preference::Upstream(own))).0.fingerprint, own);
        service.all()[1].set_up(false);
        assert!(!service.can_serve(own) && one(load.select(&service, &[], Preference::Upstream(own))).0.fingerprint != own);
    }

    #[tokio::test]
    async fn a_full_service_does_not_hold_up_another() {
        let load = Load::default();
        let named = |id, authority: &str| {
            let mut settings = weighted(&[1]).settings;
            settings.upstreams[0].authority = authority.into();
            settings.circuit = CircuitLimits { requests: 1, queue: 10, queue_timeout: Duration::from_secs(3) };
            Service::new(ServiceId::new(id).unwrap(), settings, None).unwrap()
        };
        let (full, idle) = (named(0, "full:1"), named(1, "idle:1"));
        let _held = one(load.select(&full, &[], Preference::None));
        let waits = load.select_or_queue(&full, &[], Preference::None, None);
        let mut waits = std::pin::pin!(waits);
        assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(waits.as_mut().poll(cx).is_pending())).await);
        assert_eq!(one(load.select_or_queue(&idle, &[], Preference::None, None).await).0.authority(), "idle:1");
    }
}
