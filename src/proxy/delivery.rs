//! Slow clients: aborts a response whose client reads below the minimum rate or stops reading, on any version of HTTP.
//!
//! hyper polls for the next frame of a body only after it has sent the last one, so the time between a frame and the next poll
//! is the time that the client takes to read. A client that stops reading causes no further poll, so a periodic sweep detects
//! it.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::time::Instant;

/// The minimum rate of a body. It applies once the total waiting time exceeds the grace period.
#[derive(Clone, Copy)]
pub struct MinRate {
    pub bytes_per_second: u64,
    pub grace: Duration,
}

impl MinRate {
    pub fn is_met(self, bytes: u64, waited: Duration) -> bool {
        waited <= self.grace || bytes as f64 >= self.bytes_per_second as f64 * waited.as_secs_f64()
    }
}

/// The delivery of one response to its client.
pub struct Delivery {
    /// When the last frame was returned; `None` once the next frame is polled.
    sending_since: Cell<Option<Instant>>,
    /// Total time that earlier frames took to send.
    send_time: Cell<Duration>,
    bytes: Cell<u64>,
    idle_timeout: Duration,
    min_rate: Option<MinRate>,
    abort: Box<dyn Fn()>,
}

impl Delivery {
    /// Records a poll for the next frame: the last one has been sent.
    pub fn polled(&self) {
        if let Some(since) = self.sending_since.take() {
            self.send_time.set(self.send_time.get() + since.elapsed());
        }
    }

    /// Records a frame that is returned to be sent.
    pub fn frame_returned(&self, bytes: usize) {
        self.sending_since.set(Some(Instant::now()));
        self.bytes.set(self.bytes.get() + bytes as u64);
    }

    /// Records the end of the body.
    pub fn ended(&self) {
        self.sending_since.set(None);
    }

    fn is_too_slow(&self, now: Instant) -> bool {
        let Some(since) = self.sending_since.get() else { return false };
        let sending = now - since;
        let is_below_rate = self.min_rate.is_some_and(|rate| !rate.is_met(self.bytes.get(), self.send_time.get() + sending));
        sending >= self.idle_timeout || is_below_rate
    }
}

/// The open responses of one worker.
#[derive(Default)]
pub struct Deliveries(RefCell<Vec<Weak<Delivery>>>);

impl Deliveries {
    /// Adds a response, which `abort` ends.
    pub fn watch(&self, idle_timeout: Duration, min_rate: Option<MinRate>, abort: Box<dyn Fn()>) -> Rc<Delivery> {
        let (sending_since, send_time, bytes) = (Cell::new(None), Cell::new(Duration::ZERO), Cell::new(0));
        let delivery = Rc::new(Delivery { sending_since, send_time, bytes, idle_timeout, min_rate, abort });
        self.0.borrow_mut().push(Rc::downgrade(&delivery));
        delivery
    }

    /// Aborts the responses of slow clients and removes ended responses. The worker calls it periodically.
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
            tracing::debug!("client reads too slowly; aborting the response");
            (delivery.abort)();
        }
    }
}
