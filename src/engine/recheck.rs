//! Judges all open requests again when the policy, the user table, the day or the age of the GeoIP database has changed.
//!
//! A worker notices a reload at once, and a new day or an outdated database within [`CLOCK_INTERVAL`]. Judging again takes at
//! most [`DIRECTORY_DEADLINE`](super::facts::DIRECTORY_DEADLINE) for each lookup. A request that is no longer cleared then
//! ends: its upload, the wait for its response, its download or its tunnel.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;

use crate::decision::lines::lines_of;
use crate::decision::permit::Validity;
use crate::model::region::RegionId;
use crate::model::vitals::Vitals;

use super::judge::{Judged, judge};
use super::question::Question;
use super::snapshot::Moment;

/// How often a worker compares the clock with the day of the last judgements, and with the age of the GeoIP database.
pub const CLOCK_INTERVAL: Duration = Duration::from_secs(1);

/// The right of one request to be open; it ends when the request is no longer cleared. The permits of the request end with it.
pub struct Lease {
    question: Rc<Question>,
    /// The region that processes the request; `None` before the first attempt.
    at: Cell<Option<RegionId>>,
    /// The last judgement, response labels included.
    judged: RefCell<Rc<Judged>>,
    /// The data classes of the response, by name, because their numbers change with the policy.
    labels: RefCell<Vec<Box<str>>>,
    /// The regions whose ledger lines are written under the last judgement.
    recorded: RefCell<Vec<RegionId>>,
    validity: Validity,
    /// The number of renewals begun. Only the result of the latest is adopted.
    renewals: Cell<u64>,
    wakers: RefCell<Vec<Waker>>,
    aborts: RefCell<Vec<Box<dyn Fn()>>>,
    leases: Rc<Leases>,
    slot: Cell<Option<usize>>,
}

/// The leases of one worker.
#[derive(Default)]
pub struct Leases(RefCell<Slab<Weak<Lease>>>);

impl Leases {
    /// Opens a lease for a request that has been judged.
    pub fn open(self: &Rc<Self>, question: &Rc<Question>, judged: Rc<Judged>) -> Rc<Lease> {
        let lease = Rc::new(Lease {
            question: Rc::clone(question),
            at: Cell::new(None),
            judged: RefCell::new(judged),
            labels: RefCell::default(),
            recorded: RefCell::default(),
            validity: Validity::default(),
            renewals: Cell::new(0),
            wakers: RefCell::default(),
            aborts: RefCell::default(),
            leases: Rc::clone(self),
            slot: Cell::new(None),
        });
        lease.slot.set(Some(self.0.borrow_mut().insert(Rc::downgrade(&lease))));
        lease
    }

    /// Judges every open request again, and ends those that are no longer cleared. The requests do not wait for each other,
    /// because a directory may respond slowly.
    ///
    /// # Panics
    /// Outside of a local runtime.
    pub async fn renew_all(&self, moment: &Moment, vitals: &Arc<Vitals>) {
        let open: Vec<_> = self.0.borrow().iter().filter_map(|(_, lease)| lease.upgrade()).collect();
        let mut renewals = tokio::task::JoinSet::new();
        for lease in open {
            let (moment, vitals) = (moment.clone(), Arc::clone(vitals));
            renewals.spawn_local(async move {
                let renewal = EndUnlessFinished(&lease);
                lease.renew(&moment, &vitals).await;
                std::mem::forget(renewal);
            });
        }
        while renewals.join_next().await.is_some() {}
    }
}

/// Ends a lease whose renewal panics.
struct EndUnlessFinished<'a>(&'a Lease);

impl Drop for EndUnlessFinished<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.leases.0.borrow_mut().remove(slot);
        }
    }
}

impl Lease {
    /// Whether the last judgement was made under this moment.
    pub fn is_current(&self, moment: &Moment) -> bool {
        self.judged.borrow().moment.is_same(moment)
    }

    pub fn has_ended(&self) -> bool {
        self.validity.has_ended()
    }

    /// The last judgement, response labels included.
    pub fn judged(&self) -> Rc<Judged> {
        Rc::clone(&self.judged.borrow())
    }

    /// The validity of the permits of this request.
    pub(super) fn validity(&self) -> Validity {
        self.validity.clone()
    }

    /// The region that processes the request; `None` before the first attempt.
    pub fn region(&self) -> Option<RegionId> {
        self.at.get()
    }

    /// Notes the region that processes the request from now on.
    pub(super) fn move_to(&self, region: RegionId) {
        self.at.set(Some(region));
    }

    /// Notes that the attempt at a region has ended. Until the next attempt, no region processes the request.
    pub fn leave(&self) {
        self.at.set(None);
    }

    /// Whether the ledger line for an attempt at this region has been written under the last judgement.
    pub(super) fn is_recorded(&self, region: RegionId) -> bool {
        self.recorded.borrow().contains(&region)
    }

    pub(super) fn note_recorded(&self, region: RegionId) {
        self.recorded.borrow_mut().push(region);
    }

    /// Replaces the judgement, after the request was judged again as a whole.
    pub fn adopt(&self, judged: Rc<Judged>) {
        self.judged.replace(judged);
        self.recorded.borrow_mut().clear();
    }

    /// Judges the request again with the data classes of its response, which count in everything that depends on classes.
    /// Returns whether the response may leave. The lines that are written stay valid for the request's own classes.
    pub async fn add_labels(&self, labels: &[Box<str>], vitals: &Vitals) -> bool {
        self.labels.borrow_mut().extend(labels.iter().cloned());
        let labels = self.labels.borrow().clone();
        loop {
            let judged = judge(&self.question, &labels, self.judged().moment.clone(), vitals).await;
            // A renewal during the look-up has adopted a newer judgement, which an older one must not replace.
            if self.is_current(&judged.moment) {
                let is_cleared = self.at.get().is_some_and(|region| judged.decision.trail.is_cleared(region));
                self.judged.replace(Rc::new(judged));
                return is_cleared && !self.has_ended();
            }
        }
    }

    /// Calls `abort` when the lease ends, for an exchange that may not be polled while its client reads nothing.
    pub fn on_end(&self, abort: impl Fn() + 'static) {
        if self.has_ended() {
            return abort();
        }
        self.aborts.borrow_mut().push(Box::new(abort));
    }

    /// Judges the request again if the moment has changed. Returns whether it may stay open; the health of regions is ignored.
    pub async fn renew(&self, moment: &Moment, vitals: &Vitals) -> bool {
        if self.has_ended() {
            return false;
        }
        if self.is_current(moment) {
            return true;
        }
        let labels = self.labels.borrow().clone();
        let renewal = self.renewals.get().wrapping_add(1);
        self.renewals.set(renewal);
        let judged = judge(&self.question, &labels, moment.clone(), vitals).await;
        let is_cleared = self.at.get().is_none_or(|region| {
            let (before, trail) = (self.judged(), &judged.decision.trail);
            // The ledger lines of an open exchange are written. The exchange ends if its new judgement needs a further line.
            let lines = lines_of(before.moment.policy(), &before.decision.trail, region);
            trail.is_cleared(region) && lines.covers(&lines_of(judged.moment.policy(), trail, region))
        });
        // A renewal that began later, for a newer moment, must not be replaced by this one.
        if renewal == self.renewals.get() {
            self.adopt(Rc::new(judged));
        }
        if !is_cleared {
            self.end();
        }
        !self.has_ended()
    }

    fn end(&self) {
        self.validity.end();
        self.wakers.borrow_mut().drain(..).for_each(Waker::wake);
        self.aborts.borrow_mut().drain(..).for_each(|abort| abort());
    }

    /// Ready when the request may no longer stay open.
    pub fn poll_ended(&self, cx: &Context<'_>) -> Poll<()> {
        if self.has_ended() {
            return Poll::Ready(());
        }
        let mut wakers = self.wakers.borrow_mut();
        if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }
}
