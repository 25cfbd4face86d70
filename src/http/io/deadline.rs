//! Deadlines that one periodic sweep of a worker checks, because a timer of its own for every wait of every request costs more
//! than the request's other bookkeeping.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;
use tokio::time::Instant;

/// How often a worker calls [`Deadlines::sweep`]. A deadline passes up to this much late.
pub const SWEEP_INTERVAL: Duration = Duration::from_millis(100);

/// The deadlines of one worker.
#[derive(Clone, Default)]
pub struct Deadlines(Rc<RefCell<Slab<Entry>>>);

/// One deadline, which can be set again and again.
pub struct Deadline {
    deadlines: Deadlines,
    key: usize,
}

#[derive(Default)]
struct Entry {
    at: Option<Instant>,
    /// The deadline is that of an idle connection.
    is_idle: bool,
    has_passed: bool,
    waker: Option<Waker>,
}

impl Deadlines {
    /// A deadline that is not set.
    pub fn deadline(&self) -> Deadline {
        let key = self.0.borrow_mut().insert(Entry::default());
        Deadline { deadlines: self.clone(), key }
    }

    /// Wakes the tasks that wait for deadlines that have passed.
    pub fn sweep(&self, now: Instant) {
        self.pass(|entry| entry.at.is_some_and(|at| at <= now));
    }

    /// Lets the deadlines of idle connections pass now.
    pub fn pass_idle(&self) {
        self.pass(|entry| entry.is_idle && entry.at.is_some());
    }

    fn pass(&self, has_passed: impl Fn(&Entry) -> bool) {
        let mut passed = Vec::new();
        for (_, entry) in self.0.borrow_mut().iter_mut() {
            if has_passed(entry) {
                (entry.at, entry.has_passed) = (None, true);
                passed.extend(entry.waker.take());
            }
        }
        passed.into_iter().for_each(Waker::wake);
    }
}

impl Deadline {
    fn with<T>(&self, work: impl FnOnce(&mut Entry) -> T) -> T {
        work(&mut self.deadlines.0.borrow_mut()[self.key])
    }

    pub fn set(&self, at: Instant) {
        self.with(|entry| (entry.at, entry.is_idle, entry.has_passed) = (Some(at), false, false));
    }

    /// Sets the deadline of an idle connection, which [`Deadlines::pass_idle`] lets pass early.
    pub fn set_idle(&self, at: Instant) {
        self.with(|entry| (entry.at, entry.is_idle, entry.has_passed) = (Some(at), true, false));
    }

    pub fn clear(&self) {
        self.with(|entry| (entry.at, entry.has_passed) = (None, false));
    }

    pub fn is_set(&self) -> bool {
        self.with(|entry| entry.at.is_some() || entry.has_passed)
    }

    /// Completes when the deadline has passed; never while it is not set.
    pub fn poll_passed(&self, cx: &Context<'_>) -> Poll<()> {
        self.with(|entry| {
            if entry.has_passed {
                return Poll::Ready(());
            }
            if !entry.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                entry.waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.deadlines.0.borrow_mut().remove(self.key);
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
        other.set_idle(now + Duration::from_secs(3));
        deadlines.pass_idle();
        assert!(one.poll_passed(&cx).is_pending() && other.poll_passed(&cx).is_ready(), "only the other is idle");
        drop((one, other));
        deadlines.sweep(now);
        assert!(deadlines.0.borrow().is_empty(), "a dropped deadline is forgotten");
    }
}
