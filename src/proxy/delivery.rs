//! Answers on their way out: a client that takes too little of one for too long is cut off, on any version of HTTP.
//!
//! hyper asks for the next piece of a body only when the last one is on its way, so how long it leaves a piece lying is how
//! slowly the client reads. Who stops reading altogether never asks again: that is found by looking now and then.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::time::Instant;

/// The least rate at which a body must come, once it has been waited for longer than the grace.
#[derive(Clone, Copy)]
pub struct Pace {
    pub bytes_per_second: u64,
    pub grace: Duration,
}

impl Pace {
    pub fn is_kept(self, bytes: u64, waited: Duration) -> bool {
        waited <= self.grace || bytes as f64 >= self.bytes_per_second as f64 * waited.as_secs_f64()
    }
}

/// One answer, seen from both sides.
pub struct Delivery {
    /// When the last piece was handed over, while the next has not been asked for.
    handed: Cell<Option<Instant>>,
    /// How long pieces have lain in all, and how much they were.
    lain: Cell<Duration>,
    bytes: Cell<u64>,
    idle: Duration,
    pace: Option<Pace>,
    cut: Box<dyn Fn()>,
}

impl Delivery {
    /// The next piece is asked for.
    pub fn asked(&self) {
        if let Some(handed) = self.handed.take() {
            self.lain.set(self.lain.get() + handed.elapsed());
        }
    }

    pub fn handed(&self, bytes: usize) {
        self.handed.set(Some(Instant::now()));
        self.bytes.set(self.bytes.get() + bytes as u64);
    }

    /// Nothing more is to be taken.
    pub fn ended(&self) {
        self.handed.set(None);
    }

    fn is_too_slow(&self, now: Instant) -> bool {
        let Some(handed) = self.handed.get() else { return false };
        let lies = now - handed;
        let pace = self.pace.is_some_and(|pace| !pace.is_kept(self.bytes.get(), self.lain.get() + lies));
        lies >= self.idle || pace
    }
}

/// One worker's answers under way.
#[derive(Default)]
pub struct Deliveries(RefCell<Vec<Weak<Delivery>>>);

impl Deliveries {
    /// Watches over an answer; `cut` ends it.
    pub fn watch(&self, idle: Duration, pace: Option<Pace>, cut: Box<dyn Fn()>) -> Rc<Delivery> {
        let (handed, lain, bytes) = (Cell::new(None), Cell::new(Duration::ZERO), Cell::new(0));
        let delivery = Rc::new(Delivery { handed, lain, bytes, idle, pace, cut });
        self.0.borrow_mut().push(Rc::downgrade(&delivery));
        delivery
    }

    /// Cuts off what is too slow, and forgets what has ended; called now and then by the worker.
    pub fn sweep(&self) {
        let now = Instant::now();
        let mut slow = Vec::new();
        self.0.borrow_mut().retain(|delivery| match delivery.upgrade() {
            Some(delivery) if delivery.is_too_slow(now) => {
                slow.push(delivery);
                false
            }
            other => other.is_some(),
        });
        for delivery in slow {
            tracing::debug!("a client took too little of an answer and is cut off");
            (delivery.cut)();
        }
    }
}
