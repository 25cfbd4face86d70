//! Picks the less busy of two random healthy upstreams (Mitzenmacher's power of two choices).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::budget::RetryBudget;
use super::{Service, Upstream};

/// The outstanding requests of one worker. Workers do not share counters, because a choice only has to be roughly right and
/// a shared counter would be the only contended cache line of the hot path.
#[derive(Default)]
pub struct Load {
    outstanding: RefCell<HashMap<Box<str>, Rc<Cell<usize>>>>,
    waiting: Cell<usize>,
    freed: Rc<Notify>,
    pub retries: RetryBudget,
}

/// One outstanding request at an upstream; dropping the value ends the count.
pub struct Outstanding(Rc<Cell<usize>>, Rc<Notify>);

impl Drop for Outstanding {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
        self.1.notify_one();
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
    /// Takes an upstream that is up and not in `tried`. Takes an ejected upstream only if there is no other.
    #[inline(never)] // a stage of benches/stages
    pub fn select(&self, service: &Service, tried: &[Arc<Upstream>]) -> Selection {
        let now = Instant::now();
        let is_new = |upstream: &&Arc<Upstream>| !tried.iter().any(|other| Arc::ptr_eq(other, upstream));
        let is_usable = |upstream: &&Arc<Upstream>| upstream.is_up() && is_new(upstream);
        let is_preferred = |upstream: &&Arc<Upstream>| is_usable(upstream) && !upstream.is_ejected(now);
        match self.draw(service, is_preferred, now) {
            Selection::None => self.draw(service, is_usable, now),
            selection => selection,
        }
    }

    fn draw(&self, service: &Service, is_candidate: impl Fn(&&Arc<Upstream>) -> bool, now: Instant) -> Selection {
        let limit = service.settings.circuit.requests;
        let has_room = |upstream: &&Arc<Upstream>| is_candidate(upstream) && self.cell(upstream).get() < limit;
        let Some(first) = any(service.all(), has_room) else {
            let has_candidate = service.all().iter().any(|upstream| is_candidate(&upstream));
            return if has_candidate { Selection::Full } else { Selection::None };
        };
        let second = any(service.all(), has_room).unwrap_or(first);
        let slow_start = service.settings.ejection.slow_start;
        let cost = |upstream: &Upstream| (self.cell(upstream).get() + 1) as f64 / upstream.share(slow_start, now);
        let is_other = !Arc::ptr_eq(first, second);
        let upstream = if is_other && cost(second) < cost(first) { second } else { first };
        let cell = self.cell(upstream);
        cell.set(cell.get() + 1);
        Selection::Upstream(Arc::clone(upstream), Outstanding(cell, Rc::clone(&self.freed)))
    }

    /// Takes an upstream as [`Load::select`] does. If all are full, the request waits in a FIFO queue, at most for the queue
    /// timeout and not past `deadline`. A retry does not wait, because the requests in the queue have not been tried yet.
    pub async fn select_or_queue(&self, service: &Service, tried: &[Arc<Upstream>], deadline: Option<Instant>) -> Selection {
        let circuit = &service.settings.circuit;
        if self.waiting.get() == 0 || !tried.is_empty() {
            match self.select(service, tried) {
                Selection::Full if tried.is_empty() => {}
                selection => return selection,
            }
        }
        if self.waiting.get() >= circuit.queue {
            return Selection::Full;
        }
        let _slot = QueueSlot::take(&self.waiting);
        // Wake the longest waiter, because capacity can grow without the end of a request: an upstream comes back, or a reload
        // raises the limit.
        self.freed.notify_one();
        let queue_end = Instant::now() + circuit.queue_timeout;
        let until = deadline.map_or(queue_end, |deadline| deadline.min(queue_end));
        loop {
            if tokio::time::timeout_at(until.into(), self.freed.notified()).await.is_err() {
                return Selection::Full;
            }
            match self.select(service, tried) {
                Selection::Full => {}
                selection => {
                    self.freed.notify_one();
                    return selection;
                }
            }
        }
    }

    fn cell(&self, upstream: &Upstream) -> Rc<Cell<usize>> {
        let mut outstanding = self.outstanding.borrow_mut();
        if let Some(cell) = outstanding.get(upstream.authority()) {
            return Rc::clone(cell);
        }
        Rc::clone(outstanding.entry(upstream.authority().into()).or_default())
    }
}

/// How often [`any`] tries to hit a suitable upstream before it looks at all of them.
const RANDOM_TRIES: usize = 4;

/// One of the suitable upstreams, each with the same probability. Usually all are suitable, so that the first one drawn is.
fn any(all: &[Arc<Upstream>], is_suitable: impl Fn(&&Arc<Upstream>) -> bool) -> Option<&Arc<Upstream>> {
    let drawn = (0..RANDOM_TRIES.min(all.len())).map(|_| &all[fastrand::usize(..all.len())]);
    drawn.into_iter().find(&is_suitable).or_else(|| {
        let count = all.iter().filter(&is_suitable).count();
        all.iter().filter(&is_suitable).nth(fastrand::usize(..count.max(1)))
    })
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
    use super::super::{HttpVersion, Service, Settings, UpstreamSettings};
    use super::*;
    use std::sync::atomic::Ordering;

    fn service(requests: usize) -> Service {
        let target = |name: &str| UpstreamSettings {
            authority: name.into(),
            http_version: HttpVersion::Http1,
            tls: None,
            proxy_protocol: None,
        };
        let circuit = CircuitLimits { requests, queue: 1, queue_timeout: Duration::from_millis(20) };
        let upstreams = vec![target("a:1"), target("b:1"), target("c:1")];
        Service::new(Settings { upstreams, check: None, circuit, ..Settings::default() }, None).unwrap()
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
        let held: Vec<_> = (0..300).map(|_| one(load.select(&service, &[]))).collect();
        for upstream in service.all() {
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
        let held: Vec<_> = (0..300).map(|_| one(load.select(&service, &[]))).collect();
        let share = held.iter().filter(|(selection, _)| Arc::ptr_eq(selection, &service.all()[0])).count();
        assert!(share < 60, "the upstream has just returned: {share} of 300");
    }

    #[test]
    fn an_upstream_that_is_down_or_tried_is_not_taken() {
        let (service, load) = (service(1000), Load::default());
        service.all()[0].state.up.store(false, Ordering::Relaxed);
        let tried = [Arc::clone(&service.all()[1])];
        for _ in 0..50 {
            assert_eq!(one(load.select(&service, &tried)).0.authority(), "c:1");
        }
        service.all()[2].state.up.store(false, Ordering::Relaxed);
        assert!(matches!(load.select(&service, &tried), Selection::None));
    }

    #[test]
    fn a_failing_upstream_is_ejected_but_never_more_than_half_of_them() {
        let (service, load) = (service(1000), Load::default());
        let fail = |index: usize| (0..5).for_each(|_| service.note(&service.all()[index], false));
        fail(0);
        assert!(service.all()[0].is_ejected(Instant::now()));
        assert!((0..50).all(|_| one(load.select(&service, &[])).0.authority() != "a:1"));
        fail(1);
        assert!(!service.all()[1].is_ejected(Instant::now()), "two of three are more than half");
        // An ejected upstream is used when no other is left.
        service.all()[1].state.up.store(false, Ordering::Relaxed);
        service.all()[2].state.up.store(false, Ordering::Relaxed);
        assert_eq!(one(load.select(&service, &[])).0.authority(), "a:1");
    }

    #[test]
    fn requests_wait_for_a_full_upstream_and_the_queue_is_bounded() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (service, load) = (service(2), Load::default());
            let mut held: Vec<_> = (0..6).map(|_| one(load.select(&service, &[]))).collect();
            assert!(matches!(load.select(&service, &[]), Selection::Full));
            let wait = || load.select_or_queue(&service, &[], None);
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
                matches!(load.select_or_queue(&service, &[], soon).await, Selection::Full),
                "nothing waits past its deadline"
            );
            drop((held, waited));
            // Capacity grows although no request ends: an upstream that was down comes back while a request waits.
            service.all()[0].state.up.store(false, Ordering::Relaxed);
            let held: Vec<_> = (0..4).map(|_| one(load.select(&service, &[]))).collect();
            let wide = CircuitLimits { queue: 5, queue_timeout: Duration::from_secs(60), ..service.settings.circuit };
            let service = Service { settings: Settings { circuit: wide, ..service.settings.clone() }, list: service.list };
            let (first, second) = tokio::join!(load.select_or_queue(&service, &[], None), async {
                service.list[0].state.up.store(true, Ordering::Relaxed);
                load.select_or_queue(&service, &[], None).await
            });
            assert_eq!([one(first).0.authority(), one(second).0.authority()], ["a:1", "a:1"]);
            drop(held);
            assert!(matches!(load.select(&service, &[]), Selection::Upstream(..)));
        });
    }
}
