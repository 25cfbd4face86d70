//! Deadlines that one periodic sweep of a worker checks, because a timer of its own for every wait of every request costs more
//! than the request's other bookkeeping.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

/// How often a worker calls [`Deadlines::sweep`]. A deadline passes up to this much late.
pub const SWEEP_INTERVAL: Duration = Duration::from_millis(100);

/// The deadlines of one worker.
#[derive(Default)]
pub struct Deadlines(RefCell<Vec<Weak<Entry>>>);

/// One deadline, which can be set again and again.
pub struct Deadline(Rc<Entry>);

#[derive(Default)]
struct Entry {
    at: Cell<Option<Instant>>,
    has_passed: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Deadlines {
    /// A deadline that is not set.
    pub fn deadline(&self) -> Deadline {
        let entry: Rc<Entry> = Rc::default();
        self.0.borrow_mut().push(Rc::downgrade(&entry));
        Deadline(entry)
    }

    /// Wakes the tasks that wait for deadlines that have passed.
    pub fn sweep(&self, now: Instant) {
        let mut passed = Vec::new();
        self.0.borrow_mut().retain(|entry| {
            let Some(entry) = entry.upgrade() else { return false };
            if entry.at.get().is_some_and(|at| at <= now) {
                entry.at.set(None);
                entry.has_passed.set(true);
                passed.extend(entry.waker.take());
            }
            true
        });
        passed.into_iter().for_each(Waker::wake);
    }
}

impl Deadline {
    pub fn set(&self, at: Instant) {
        self.0.at.set(Some(at));
        self.0.has_passed.set(false);
    }

    pub fn clear(&self) {
        self.0.at.set(None);
        self.0.has_passed.set(false);
    }

    pub fn is_set(&self) -> bool {
        self.0.at.get().is_some() || self.0.has_passed.get()
    }

    /// Completes when the deadline has passed; never while it is not set.
    pub fn poll_passed(&self, cx: &Context<'_>) -> Poll<()> {
        if self.0.has_passed.get() {
            return Poll::Ready(());
        }
        let mut waker = self.0.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_passes_at_the_first_sweep_after_it() {
        let (deadlines, now) = (Deadlines::default(), Instant::now());
        let (one, other) = (deadlines.deadline(), deadlines.deadline());
        let cx = Context::from_waker(Waker::noop());
        one.set(now + Duration::from_secs(1));
        deadlines.sweep(now);
        assert!(one.poll_passed(&cx).is_pending());
        deadlines.sweep(now + Duration::from_secs(1));
        assert!(one.poll_passed(&cx).is_ready());
        assert!(other.poll_passed(&cx).is_pending(), "it is not set");
        one.set(now + Duration::from_secs(3));
        assert!(one.poll_passed(&cx).is_pending(), "it is set again");
        drop((one, other));
        deadlines.sweep(now);
        assert!(deadlines.0.borrow().is_empty(), "a dropped deadline is forgotten");
    }
}
