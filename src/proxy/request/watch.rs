//! Judges what is still under way again when the rules, the tables or the day have changed.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::futures::OwnedNotified;

use crate::decision::facts::Ingress;
use crate::model::day::Day;
use crate::model::region::RegionId;

use super::super::body::Recheck;
use super::super::intake::Intake;
use super::super::{Snapshot, Worker};
use super::judge;

/// A stream's right to go on.
pub(super) struct Watch {
    worker: Rc<Worker>,
    intake: Rc<Intake>,
    ingress: Ingress,
    /// Where the request is processed.
    at: RegionId,
    judged_by: RefCell<(Arc<Snapshot>, Day)>,
    /// Armed by the first wait: most answers need none.
    told: RefCell<Option<Pin<Box<OwnedNotified>>>>,
}

impl Watch {
    pub(super) fn new(
        worker: &Rc<Worker>,
        snapshot: &Arc<Snapshot>,
        intake: &Rc<Intake>,
        ingress: Ingress,
        at: RegionId,
    ) -> Self {
        Self {
            worker: Rc::clone(worker),
            intake: Rc::clone(intake),
            ingress,
            at,
            judged_by: RefCell::new((Arc::clone(snapshot), worker.today())),
            told: RefCell::default(),
        }
    }

    /// For a body on its way.
    pub(super) fn recheck(self) -> Recheck {
        Box::new(move |cx| match cx {
            Some(cx) => self.poll_uncleared(cx).is_ready(),
            None => !self.is_cleared(),
        })
    }

    /// Whether the stream may go on by the rules of this moment. Health moves nothing that is under way.
    pub fn is_cleared(&self) -> bool {
        let mut judged_by = self.judged_by.borrow_mut();
        let snapshot = self.worker.snapshot();
        // The day is looked at where a change of it is told of: a clock a piece would be dear.
        if Arc::ptr_eq(&snapshot, &judged_by.0) && judged_by.1 == self.worker.today() {
            return true;
        }
        let trail = judge(&self.worker, &snapshot, &self.intake, self.ingress, self.intake.identity.hint.as_ref()).decision.trail;
        let carrier = match self.ingress {
            Ingress::Client => snapshot.policy.local,
            Ingress::Peer(peer) => peer,
        };
        let cleared = trail.clearance.contains(self.at) && trail.carriers.union(trail.clearance).contains(carrier);
        *judged_by = (snapshot, self.worker.today());
        cleared
    }

    /// Ready when the stream may not go on.
    pub fn poll_uncleared(&self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let mut told = self.told.borrow_mut();
            // First listen, then look: a change in between must not be missed.
            let notified = told.get_or_insert_with(|| Box::pin(Arc::clone(&self.worker.changed).notified_owned()));
            let is_told = notified.as_mut().poll(cx).is_ready();
            if is_told {
                *told = None;
            }
            drop(told);
            if !self.is_cleared() {
                return Poll::Ready(());
            }
            if !is_told {
                return Poll::Pending;
            }
        }
    }
}
