//! Bodies on their way: counted, limited, and never waited for too long.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

use crate::engine::recheck::Lease;
use crate::http::body::{Body, BodyError};

use super::delivery::{Delivery, Pace};

/// Why we broke a body off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Broken {
    #[error("the body is larger than the limit")]
    TooLarge,
    #[error("the sender of the body fell silent")]
    Silent,
    #[error("the sender of the body was slower than the least rate")]
    TooSlow,
    #[error("the sender of the body broke it off")]
    BrokenOff,
    #[error("the rules changed and no longer clear it")]
    NoLongerCleared,
    #[error("the caller's deadline is over")]
    OutOfTime,
}

/// The progress of a body, visible to others while the body is open.
#[derive(Default)]
pub struct Progress {
    pub bytes: Cell<u64>,
    pub broken: Cell<Option<Broken>>,
    ended: Cell<bool>,
    /// When the last piece was handed over, while the next has not been asked for.
    handed: Cell<Option<Instant>>,
    changed: Notify,
}

impl Progress {
    /// Waits until the body has ended, or was given up.
    pub async fn ended(&self) {
        if !self.ended.get() {
            self.changed.notified().await;
        }
    }

    /// Whether the body has ended, or was given up.
    pub const fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Waits until a piece has been left lying for so long.
    pub async fn left_lying(&self, limit: Duration) {
        loop {
            let since = self.handed.get().unwrap_or_else(Instant::now);
            if since.elapsed() >= limit {
                return;
            }
            tokio::time::sleep_until(since + limit).await;
        }
    }

    fn end(&self) {
        self.ended.set(true);
        self.handed.set(None);
        self.changed.notify_waiters();
    }
}

/// The limits on a body.
#[derive(Clone, Copy)]
pub struct Allowance {
    pub most_bytes: u64,
    /// Between two frames.
    pub idle: Duration,
    /// The least rate, for what has a pace of its own there is none.
    pub pace: Option<Pace>,
}

/// How often a body that is waited for is looked at, once its grace is over.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

type Scrub = Box<dyn Fn(&mut HeaderMap)>;

/// A body that is counted and limited.
pub struct Metered {
    inner: Body,
    allowance: Allowance,
    progress: Rc<Progress>,
    /// Runs while a frame is waited for.
    timer: Pin<Box<Sleep>>,
    /// Since when a frame is waited for, and how long others were.
    waiting: Option<Instant>,
    waited: Duration,
    /// Whether it may still go on by the rules.
    lease: Option<Rc<Lease>>,
    /// Whether the taker keeps a pace.
    delivery: Option<Rc<Delivery>>,
    /// Takes out of trailers what no head may hold either.
    scrub: Option<Scrub>,
    /// Called when the body has ended, or was given up.
    done: Option<Box<dyn FnOnce()>>,
}

impl Metered {
    pub fn new(inner: Body, allowance: Allowance, progress: Rc<Progress>) -> Self {
        let timer = Box::pin(tokio::time::sleep(allowance.idle));
        Self {
            inner,
            allowance,
            progress,
            timer,
            waiting: None,
            waited: Duration::ZERO,
            lease: None,
            delivery: None,
            scrub: None,
            done: None,
        }
    }

    /// Breaks off when the rules no longer clear what is under way.
    #[must_use]
    pub fn under(mut self, lease: Rc<Lease>) -> Self {
        self.lease = Some(lease);
        self
    }

    /// Is watched over for who takes it.
    #[must_use]
    pub fn delivered(mut self, delivery: Rc<Delivery>) -> Self {
        self.delivery = Some(delivery);
        self
    }

    /// Lets trailers through only as `scrub` leaves them.
    #[must_use]
    pub fn scrubbed(mut self, scrub: impl Fn(&mut HeaderMap) + 'static) -> Self {
        self.scrub = Some(Box::new(scrub));
        self
    }

    /// Calls `done` once, when the body has ended or is dropped.
    #[must_use]
    pub fn then(mut self, done: impl FnOnce() + 'static) -> Self {
        self.done = Some(Box::new(done));
        self
    }

    /// When the wait has to be looked at again.
    fn next_look(&self, now: Instant) -> Instant {
        let silent = self.waiting.unwrap_or(now) + self.allowance.idle;
        // A drip keeps a body from being silent; how slow it is shows when the grace is over.
        let slow = self.allowance.pace.map_or(silent, |pace| now + pace.grace.saturating_sub(self.waited) + LOOK_AGAIN);
        silent.min(slow)
    }

    fn fault_of_waiting(&self, since: Instant, now: Instant) -> Option<Broken> {
        let waited = self.waited + (now - since);
        if now - since >= self.allowance.idle {
            return Some(Broken::Silent);
        }
        let pace = self.allowance.pace?;
        (!pace.is_kept(self.progress.bytes.get(), waited)).then_some(Broken::TooSlow)
    }

    fn broken(&self, how: Broken) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.progress.broken.set(Some(how));
        Poll::Ready(Some(Err(how.into())))
    }
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let body = self.get_mut();
        body.progress.handed.set(None);
        if let Some(delivery) = &body.delivery {
            delivery.asked();
        }
        match Pin::new(&mut body.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(mut frame))) => {
                if let Some(since) = body.waiting.take() {
                    body.waited += since.elapsed();
                }
                if body.lease.as_ref().is_some_and(|lease| lease.has_ended()) {
                    return body.broken(Broken::NoLongerCleared);
                }
                if let (Some(trailers), Some(scrub)) = (frame.trailers_mut(), &body.scrub) {
                    scrub(trailers);
                }
                if body.allowance.pace.is_some_and(|pace| !pace.is_kept(body.progress.bytes.get(), body.waited)) {
                    return body.broken(Broken::TooSlow);
                }
                let bytes = body.progress.bytes.get() + frame.data_ref().map_or(0, |data| data.len() as u64);
                body.progress.bytes.set(bytes);
                body.progress.handed.set(Some(Instant::now()));
                if let (Some(delivery), Some(data)) = (&body.delivery, frame.data_ref()) {
                    delivery.handed(data.len());
                }
                if bytes > body.allowance.most_bytes { body.broken(Broken::TooLarge) } else { Poll::Ready(Some(Ok(frame))) }
            }
            Poll::Ready(Some(Err(error))) => {
                body.progress.broken.set(Some(Broken::BrokenOff));
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                body.progress.end();
                body.delivery.iter().for_each(|delivery| delivery.ended());
                body.done.take().into_iter().for_each(|done| done());
                Poll::Ready(None)
            }
            Poll::Pending => {
                if body.lease.as_ref().is_some_and(|lease| lease.poll_ended(cx).is_ready()) {
                    return body.broken(Broken::NoLongerCleared);
                }
                let now = Instant::now();
                let since = match body.waiting {
                    Some(since) => since,
                    None => {
                        body.waiting = Some(now);
                        let next = body.next_look(now);
                        body.timer.as_mut().reset(next);
                        now
                    }
                };
                while body.timer.as_mut().poll(cx).is_ready() {
                    if let Some(broken) = body.fault_of_waiting(since, now) {
                        return body.broken(broken);
                    }
                    let next = body.next_look(now);
                    body.timer.as_mut().reset(next);
                }
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        self.progress.end();
        self.done.take().into_iter().for_each(|done| done());
    }
}

/// A body that ends at a deadline with these trailers, whether or not it is whole.
pub struct Until {
    body: Option<Body>,
    deadline: Pin<Box<Sleep>>,
    trailers: HeaderMap,
    progress: Rc<Progress>,
}

impl Until {
    /// `progress` is changed when the deadline was first.
    pub fn new(body: Body, deadline: Instant, trailers: HeaderMap, progress: Rc<Progress>) -> Self {
        Self { body: Some(body), deadline: Box::pin(tokio::time::sleep_until(deadline)), trailers, progress }
    }
}

impl HttpBody for Until {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let until = self.get_mut();
        let Some(body) = &mut until.body else { return Poll::Ready(None) };
        if let Poll::Ready(polled) = Pin::new(body).poll_frame(cx) {
            return Poll::Ready(polled);
        }
        ready!(until.deadline.as_mut().poll(cx));
        // Dropping the body tells its sender that nobody waits.
        until.body = None;
        until.progress.broken.set(Some(Broken::OutOfTime));
        Poll::Ready(Some(Ok(Frame::trailers(std::mem::take(&mut until.trailers)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    /// Nobody knows: it may end before its time.
    fn size_hint(&self) -> SizeHint {
        if self.is_end_stream() { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}
