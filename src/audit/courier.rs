//! The ledger as one worker uses it: the lines that are due at the same time go to the writer thread together.
//!
//! Each line would wake the writer thread, and the writer thread would wake the worker for each line. Both cost system calls; a
//! batch costs them once.

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
    batch: RefCell<Rc<Batch>>,
    /// A task is about to hand the lines over.
    is_carried: Cell<bool>,
}

/// Lines that reach the disk together.
#[derive(Default)]
struct Batch {
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
        let batch = Rc::clone(&self.waiting.batch.borrow());
        batch.text.borrow_mut().push_str(&movement.line());
        batch.lines.set(batch.lines.get().saturating_add(1));
        if !self.waiting.is_carried.replace(true) {
            tokio::task::spawn_local(carry(self.ledger.clone(), Rc::clone(&self.waiting)));
        }
        loop {
            let done = batch.done.notified();
            match batch.outcome.get() {
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

/// Hands a batch over. It runs after the tasks that are ready now, whose lines thus belong to the batch.
async fn carry(ledger: Ledger, waiting: Rc<Waiting>) {
    let batch = waiting.batch.take();
    waiting.is_carried.set(false);
    let outcome = ledger.write(batch.text.take(), batch.lines.get()).await;
    let _ = batch.outcome.set(outcome);
    batch.done.notify_waiters();
}
