//! Judges all open requests again when the policy, the user table, the day or the age of the GeoIP database has changed.
//!
//! A worker detects a reload at once, and a new day or an outdated database within a second. A request that is no longer
//! cleared then ends: its upload, the wait for its response, its download or its tunnel.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use slab::Slab;

use crate::decision::lines::lines_of;
use crate::decision::verdict::Trail;
use crate::model::region::RegionId;
use crate::model::vitals::Vitals;

use super::judge::{Judged, judge};
use super::question::Question;
use super::snapshot::Moment;

/// The right of one request to be open; it ends when the request is no longer cleared.
pub struct Lease {
    question: Rc<Question>,
    /// The region that processes the request; `None` before the first attempt.
    at: Cell<Option<RegionId>>,
    moment: RefCell<Moment>,
    trail: RefCell<Trail>,
    /// The data classes of the response, by name, because their numbers change with the policy.
    labels: RefCell<Vec<Box<str>>>,
    /// The regions whose ledger lines are written under the last judgement.
    recorded: RefCell<Vec<RegionId>>,
    has_ended: Cell<bool>,
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
    pub fn open(self: &Rc<Self>, question: &Rc<Question>, judged: &Judged) -> Rc<Lease> {
        let lease = Rc::new(Lease {
            question: Rc::clone(question),
            at: Cell::new(None),
            moment: RefCell::new(judged.moment.clone()),
            trail: RefCell::new(judged.decision.trail.clone()),
            labels: RefCell::default(),
            recorded: RefCell::default(),
            has_ended: Cell::new(false),
            wakers: RefCell::default(),
            aborts: RefCell::default(),
            leases: Rc::clone(self),
            slot: Cell::new(None),
        });
        lease.slot.set(Some(self.0.borrow_mut().insert(Rc::downgrade(&lease))));
        lease
    }

    /// Judges every open request again, and ends those that are no longer cleared.
    pub async fn renew_all(&self, moment: &Moment, vitals: &Vitals) {
        let open: Vec<_> = self.0.borrow().iter().filter_map(|(_, lease)| lease.upgrade()).collect();
        for lease in open {
            lease.renew(moment, vitals).await;
        }
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
        self.moment.borrow().is_same(moment)
    }

    pub fn has_ended(&self) -> bool {
        self.has_ended.get()
    }

    /// The trail of the last judgement, response labels included.
    pub fn trail(&self) -> Trail {
        self.trail.borrow().clone()
    }

    pub fn moment(&self) -> Moment {
        self.moment.borrow().clone()
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
    pub fn adopt(&self, judged: &Judged) {
        self.moment.replace(judged.moment.clone());
        self.trail.replace(judged.decision.trail.clone());
        self.recorded.borrow_mut().clear();
    }

    /// Judges the request again with the data classes of its response, which count in everything that depends on classes.
    /// Returns whether the response may leave. The lines that are written stay valid for the request's own classes.
    pub async fn add_labels(&self, labels: &[Box<str>], vitals: &Vitals) -> bool {
        self.labels.borrow_mut().extend(labels.iter().cloned());
        let labels = self.labels.borrow().clone();
        loop {
            let judged = judge(&self.question, &labels, self.moment(), vitals).await;
            // A renewal during the look-up has adopted a newer judgement, which an older one must not replace.
            if self.is_current(&judged.moment) {
                let is_cleared = self.at.get().is_some_and(|region| judged.decision.trail.is_cleared(region));
                self.trail.replace(judged.decision.trail);
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
        if self.has_ended.get() {
            return false;
        }
        if self.is_current(moment) {
            return true;
        }
        let labels = self.labels.borrow().clone();
        let judged = judge(&self.question, &labels, moment.clone(), vitals).await;
        let is_cleared = self.at.get().is_none_or(|region| {
            let (before, after) = (self.moment(), &judged.moment);
            // The ledger lines of an open exchange are written. The exchange ends if its new judgement needs a further line.
            let lines = lines_of(before.policy(), &self.trail.borrow(), region);
            judged.decision.trail.is_cleared(region) && lines.covers(&lines_of(after.policy(), &judged.decision.trail, region))
        });
        self.adopt(&judged);
        if !is_cleared {
            self.end();
        }
        is_cleared
    }

    fn end(&self) {
        self.has_ended.set(true);
        self.wakers.borrow_mut().drain(..).for_each(Waker::wake);
        self.aborts.borrow_mut().drain(..).for_each(|abort| abort());
    }

    /// Ready when the request may no longer stay open.
    pub fn poll_ended(&self, cx: &Context<'_>) -> Poll<()> {
        if self.has_ended.get() {
            return Poll::Ready(());
        }
        let mut wakers = self.wakers.borrow_mut();
        if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }
}
