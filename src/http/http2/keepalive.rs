//! Keep-alive pings that detect a dead connection.

use std::cell::Cell;
use std::future::{pending, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::Instant;

/// The last activity of the peer of a connection.
pub struct Activity {
    /// When bytes last arrived, or a blocked write last continued.
    last: Cell<Instant>,
    /// A write is blocked, so a ping has to wait behind it.
    is_blocked: Cell<bool>,
}

impl Activity {
    /// Starts with the present.
    pub fn now() -> Self {
        Self { last: Cell::new(Instant::now()), is_blocked: Cell::new(false) }
    }

    /// Records that bytes have arrived.
    pub fn note_read(&self) {
        self.last.set(Instant::now());
    }

    /// Records whether a write is blocked.
    pub fn note_write(&self, is_blocked: bool) {
        let was_blocked = self.is_blocked.replace(is_blocked);
        if was_blocked && !is_blocked {
            self.last.set(Instant::now());
        }
    }
}

/// Sends pings on a connection without activity.
pub struct Keepalive {
    pub activity: Rc<Activity>,
    /// The silence after which a ping is sent.
    pub every: Duration,
    /// How long a ping may stay unanswered.
    pub timeout: Duration,
}

impl Keepalive {
    /// Completes when the peer shows no activity for `timeout` after a ping. Does not complete while a write is blocked,
    /// because the ping waits behind it.
    pub async fn lost(self, mut pings: PingPong) {
        loop {
            let ping_at = self.activity.last.get() + self.every;
            if Instant::now() < ping_at {
                tokio::time::sleep_until(ping_at).await;
                continue;
            }
            if pings.send_ping(Ping::opaque()).is_err() {
                // The connection has ended, and its own task reports that.
                return pending().await;
            }
            let mut pong = pin!(poll_fn(|cx| pings.poll_pong(cx)));
            loop {
                let sent_at = Instant::now();
                match tokio::time::timeout(self.timeout, pong.as_mut()).await {
                    Ok(Ok(_)) => break,
                    Ok(Err(_)) => return pending().await,
                    Err(_) if self.activity.last.get() >= sent_at || self.activity.is_blocked.get() => {}
                    Err(_) => return,
                }
            }
        }
    }
}
