//! The ledger as one worker uses it: the lines that are due at the same time go to the writer thread together.
//!
//! Each line would wake the writer thread, and the writer thread would wake the worker for each line. Both cost system calls; a
//! group costs them once.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;

use tokio::sync::Notify;

use super::{Count, Ledger, LedgerError, Movement};

/// The ledger of one worker.
#[derive(Clone)]
pub struct WorkerLedger {
    ledger: Ledger,
    waiting: Rc<Waiting>,
}

/// The lines that are not handed over yet.
#[derive(Default)]
struct Waiting {
    group: RefCell<Rc<Group>>,
    /// A task is about to hand the lines over.
    is_scheduled: Cell<bool>,
}

/// Lines that reach the disk together (group commit).
#[derive(Default)]
struct Group {
    text: RefCell<String>,
    lines: Cell<usize>,
    outcome: OnceCell<Result<(), LedgerError>>,
    done: Notify,
}

impl WorkerLedger {
    pub fn of(ledger: Ledger) -> Self {
        Self { ledger, waiting: Rc::default() }
    }

    /// Writes a movement and returns when its line is on disk. The data must not be sent before.
    ///
    /// # Panics
    /// Outside of a runtime that runs local tasks.
    pub async fn record(&self, movement: &Movement<'_>) -> Result<(), LedgerError> {
        let group = Rc::clone(&self.waiting.group.borrow());
        group.text.borrow_mut().push_str(&movement.line());
        group.lines.set(group.lines.get().saturating_add(1));
        if !self.waiting.is_scheduled.replace(true) {
            tokio::task::spawn_local(hand_over(self.ledger.clone(), Rc::clone(&self.waiting)));
        }
        loop {
            let done = group.done.notified();
            match group.outcome.get() {
                Some(outcome) => return outcome.clone(),
                None => done.await,
            }
        }
    }

    /// Counts an event that gets no line of its own.
    pub fn count(&self, event: Count) {
        self.ledger.count(event);
    }
}

/// Hands a group over to the writer thread. It runs after the tasks that are ready now, whose lines thus belong to the group.
async fn hand_over(ledger: Ledger, waiting: Rc<Waiting>) {
    let group = waiting.group.take();
    waiting.is_scheduled.set(false);
    let outcome = ledger.write(group.text.take(), group.lines.get()).await;
    let _ = group.outcome.set(outcome);
    group.done.notify_waiters();
}
