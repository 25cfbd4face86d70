//! Minimum rates, and slow clients: aborts a response whose client reads below the minimum rate or stops reading, on any
//! version of HTTP.
//!
//! The next frame of a body is polled only after the last one has been written, so a response waits for its client between
//! a frame and the next poll. How much the client takes meanwhile is what its TCP acknowledges: the kernel accepts megabytes at
//! once, which a client may then read for hours. A client that stops reading causes no further poll, so a periodic sweep
//! detects it.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::time::Instant;

/// The minimum rate of a body.
#[derive(Clone, Copy)]
pub struct MinRate {
    pub bytes_per_second: u64,
    /// How far a body may be behind.
    pub grace: Duration,
}

/// How far a body is behind its minimum rate: the time that it was waited for, less the time that its bytes are worth.
///
/// INVARIANT: never below zero, so that bytes make up for waits before them and earn no credit. In every interval, the body has
/// at least as many bytes as the rate demands for the time that it was waited for, less the grace period.
#[derive(Clone, Copy, Default, Debug)]
pub struct Lag(Duration);

impl Lag {
    pub fn wait(&mut self, time: Duration) {
        self.0 = self.0.saturating_add(time);
    }

    pub fn make_up(&mut self, rate: MinRate, bytes: u64) {
        // Bytes whose worth exceeds a `Duration` make up for any lag.
        let worth = Duration::try_from_secs_f64(bytes as f64 / rate.bytes_per_second as f64).unwrap_or(Duration::MAX);
        self.0 = self.0.saturating_sub(worth);
    }

    pub fn is_too_long(self, rate: MinRate) -> bool {
        self.0 > rate.grace
    }

    /// How long the body may still be waited for.
    pub fn left(self, rate: MinRate) -> Duration {
        rate.grace.saturating_sub(self.0) + Duration::from_millis(1)
    }
}

/// Bytes that the client's TCP has acknowledged on the connection; `None` where the system does not say.
pub type Acknowledged = Box<dyn Fn() -> Option<u64>>;

/// Monitors how fast the client reads one response.
pub struct ReadMonitor {
    /// When the last frame was returned; `None` once the next frame is polled.
    sending_since: Cell<Option<Instant>>,
    /// Up to when the current wait is in `lag`.
    counted_until: Cell<Instant>,
    /// When the client last took anything.
    last_progress: Cell<Instant>,
    lag: Cell<Lag>,
    /// Bytes of the frame that is being sent.
    frame: Cell<u64>,
    acknowledged: Acknowledged,
    /// The result of `acknowledged` at the last sweep. Most responses end before the first, and cost no call.
    seen: Cell<Option<u64>>,
    limits: ReadLimits,
    abort: Box<dyn Fn()>,
}

/// The limits on how slowly a client may read.
pub struct ReadLimits {
    pub idle_timeout: Duration,
    pub min_rate: Option<MinRate>,
    /// The response has the connection for itself, so that every acknowledgement is progress of this response. Over HTTP/2, one
    /// stream may stall while others on its connection do not.
    pub owns_connection: bool,
}

impl ReadMonitor {
    fn new(limits: ReadLimits, acknowledged: Acknowledged, abort: Box<dyn Fn()>) -> Self {
        let now = Instant::now();
        Self {
            sending_since: Cell::new(None),
            counted_until: Cell::new(now),
            last_progress: Cell::new(now),
            lag: Cell::default(),
            frame: Cell::new(0),
            seen: Cell::new(None),
            acknowledged,
            limits,
            abort,
        }
    }

    /// Records a poll for the next frame: the last one has been written.
    pub fn polled(&self) {
        if self.sending_since.take().is_some() {
            let now = Instant::now();
            self.count_wait(now);
            self.last_progress.set(now);
            if self.seen.get().is_none() {
                self.make_up(self.frame.get());
            }
        }
    }

    /// Records a frame that is returned to be sent.
    pub fn frame_returned(&self, bytes: usize) {
        let now = Instant::now();
        self.sending_since.set(Some(now));
        self.counted_until.set(now);
        self.frame.set(bytes as u64);
    }

    /// Records the end of the body.
    pub fn ended(&self) {
        self.sending_since.set(None);
    }

    fn count_wait(&self, now: Instant) {
        let mut lag = self.lag.get();
        lag.wait(now - self.counted_until.replace(now));
        self.lag.set(lag);
    }

    fn make_up(&self, bytes: u64) {
        if let Some(rate) = self.limits.min_rate {
            let mut lag = self.lag.get();
            lag.make_up(rate, bytes);
            self.lag.set(lag);
        }
    }

    fn is_too_slow(&self, now: Instant) -> bool {
        let Some(since) = self.sending_since.get() else { return false };
        self.count_wait(now);
        if let Some(acknowledged) = (self.acknowledged)()
            && let Some(seen) = self.seen.replace(Some(acknowledged))
        {
            self.make_up(acknowledged.saturating_sub(seen));
            if acknowledged > seen && self.limits.owns_connection {
                self.last_progress.set(now);
            }
        }
        let is_idle = now - since.max(self.last_progress.get()) >= self.limits.idle_timeout;
        is_idle || self.limits.min_rate.is_some_and(|rate| self.lag.get().is_too_long(rate))
    }
}

/// The open responses of one worker.
#[derive(Default)]
pub struct ReadMonitors(RefCell<Vec<Weak<ReadMonitor>>>);

impl ReadMonitors {
    /// Adds a response, which `abort` ends.
    pub fn watch(&self, limits: ReadLimits, acknowledged: Acknowledged, abort: Box<dyn Fn()>) -> Rc<ReadMonitor> {
        let monitor = Rc::new(ReadMonitor::new(limits, acknowledged, abort));
        self.0.borrow_mut().push(Rc::downgrade(&monitor));
        monitor
    }

    /// Aborts the responses of slow clients and removes ended responses. The worker calls it periodically.
    pub fn sweep(&self) {
        let now = Instant::now();
        let mut slow = Vec::new();
        self.0.borrow_mut().retain(|monitor| match monitor.upgrade() {
            Some(monitor) if monitor.is_too_slow(now) => {
                slow.push(monitor);
                false
            }
            other => other.is_some(),
        });
        for monitor in slow {
            tracing::debug!("client reads too slowly; aborting the response");
            (monitor.abort)();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: MinRate = MinRate { bytes_per_second: 256, grace: Duration::from_secs(10) };

    /// Sends one frame of 4 MiB that is written in full only after `written`, to a client that acknowledges
    /// `bytes_per_second` of it. Returns after how many seconds the response is aborted, within an hour.
    fn deliver(written: Option<u64>, bytes_per_second: Option<u64>, owns_connection: bool) -> Option<u64> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (read_monitors, aborted) = (ReadMonitors::default(), Rc::new(Cell::new(false)));
            let (started, abort) = (Instant::now(), Rc::clone(&aborted));
            let acknowledged = move || bytes_per_second.map(|rate| rate * started.elapsed().as_secs());
            let limits = ReadLimits { idle_timeout: Duration::from_secs(60), min_rate: Some(RATE), owns_connection };
            let monitor = read_monitors.watch(limits, Box::new(acknowledged), Box::new(move || abort.set(true)));
            monitor.frame_returned(4 << 20);
            for second in 1..=3600 {
                tokio::time::advance(Duration::from_secs(1)).await;
                if written == Some(second) {
                    monitor.polled();
                    monitor.frame_returned(4 << 20);
                }
                read_monitors.sweep();
                if aborted.get() {
                    return Some(second);
                }
            }
            None
        })
    }

    #[test]
    fn what_the_kernel_holds_earns_a_client_no_credit() {
        // The first 4 MiB are in the kernel after a second, and the client reads next to nothing of them.
        assert_eq!(deliver(Some(1), Some(1), true), Some(12));
        assert_eq!(deliver(Some(1), Some(0), true), Some(12));
    }

    #[test]
    fn a_client_at_the_minimum_rate_is_served_although_its_next_frame_is_hours_away() {
        assert_eq!(deliver(None, Some(256), true), None);
        assert_eq!(deliver(None, Some(200), true), Some(43), "a fifth too slow uses up the grace period in five times its time");
    }

    #[test]
    fn without_acknowledgements_only_written_frames_count() {
        assert_eq!(deliver(Some(1), None, true), Some(12));
        assert_eq!(deliver(None, None, true), Some(11));
    }

    #[test]
    fn a_stalled_stream_ends_although_its_connection_moves() {
        assert_eq!(deliver(None, Some(1 << 20), false), Some(60));
        assert_eq!(deliver(Some(30), Some(1 << 20), false), Some(90));
    }
}
