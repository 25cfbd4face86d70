//! The ledger as one worker uses it: the lines that are due at the same time go to the writer thread together.
//!
//! Each line would wake the writer thread, and the writer thread would wake the worker for each line. Both cost system calls; a
//! group costs them once.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::{Count, Ledger, LedgerError, Movement, Settlement};

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
    /// Settlements, for which nothing waits: they go with the next group, or with [`WorkerLedger::hand_over`].
    settlements: RefCell<String>,
    settled: Cell<usize>,
    /// When settlements that could not be written are tried again without a movement.
    retry_at: Cell<Option<Instant>>,
}

/// The most settlements that wait for a disk that is full or dead. Those of later requests are lost.
const MAX_SETTLEMENTS: usize = 10_000;

/// Each attempt at a full disk is a line in the log.
const RETRY_DELAY: Duration = Duration::from_secs(60);

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

    /// Adds the settlement of a request. It is on disk after the next movement, or the next [`Self::hand_over`].
    pub fn settle(&self, settlement: &Settlement<'_>) {
        self.waiting.settlements.borrow_mut().push_str(&settlement.line());
        self.waiting.settled.set(self.waiting.settled.get().saturating_add(1));
    }

    /// Hands over the settlements that no movement has taken along, without waiting.
    ///
    /// # Panics
    /// Outside of a runtime that runs local tasks.
    pub fn hand_over(&self) {
        let may_try = self.waiting.retry_at.get().is_none_or(|retry_at| Instant::now() >= retry_at);
        if self.waiting.settled.get() > 0 && may_try && !self.waiting.is_scheduled.replace(true) {
            tokio::task::spawn_local(hand_over(self.ledger.clone(), Rc::clone(&self.waiting)));
        }
    }

    /// Writes all lines that wait, and returns when they are on disk.
    pub async fn flush(&self) {
        if self.waiting.settled.get() > 0 {
            hand_over(self.ledger.clone(), Rc::clone(&self.waiting)).await;
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
    let (settlements, settled) = (waiting.settlements.take(), waiting.settled.take());
    let (text, lines) = (settlements.clone() + &group.text.take(), settled.saturating_add(group.lines.get()));
    let outcome = ledger.write(text, lines).await;
    if outcome.is_err() && settled <= MAX_SETTLEMENTS {
        // They are true whenever they are written.
        waiting.settlements.borrow_mut().insert_str(0, &settlements);
        waiting.settled.set(waiting.settled.get().saturating_add(settled));
        waiting.retry_at.set(Some(Instant::now().checked_add(RETRY_DELAY).unwrap_or_else(Instant::now)));
    }
    let _ = group.outcome.set(outcome);
    group.done.notify_waiters();
}
