//! Bodies on their way: counted, limited, and never waited for too long.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

use crate::transport::body::BodyError;

/// Why we broke a body off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Broken {
    #[error("the body is larger than the limit")]
    TooLarge,
    #[error("the sender of the body fell silent")]
    Silent,
    #[error("the whole request took too long")]
    DeadlineExceeded,
}

/// What has become of a body, seen from outside while it is under way.
#[derive(Default)]
pub struct Progress {
    pub bytes: Cell<u64>,
    pub broken: Cell<Option<Broken>>,
    ended: Cell<bool>,
    told: Notify,
}

impl Progress {
    /// Waits until the body has ended, or was given up.
    pub async fn ended(&self) {
        if !self.ended.get() {
            self.told.notified().await;
        }
    }

    fn end(&self) {
        self.ended.set(true);
        self.told.notify_waiters();
    }
}

/// What a body may cost.
#[derive(Clone, Copy)]
pub struct Allowance {
    pub most_bytes: u64,
    /// Between two frames.
    pub idle: Duration,
    pub deadline: Instant,
}

type Scrub = Box<dyn Fn(&mut HeaderMap)>;

/// A body that is counted and limited.
pub struct Metered {
    inner: Incoming,
    allowance: Allowance,
    progress: Rc<Progress>,
    /// Runs while a frame is waited for.
    timer: Pin<Box<Sleep>>,
    waiting: bool,
    /// Takes out of trailers what no head may hold either.
    scrub: Option<Scrub>,
    /// Called when the body has ended, or was given up.
    done: Option<Box<dyn FnOnce()>>,
}

impl Metered {
    pub fn new(inner: Incoming, allowance: Allowance, progress: Rc<Progress>) -> Self {
        let timer = Box::pin(tokio::time::sleep_until(allowance.deadline));
        Self { inner, allowance, progress, timer, waiting: false, scrub: None, done: None }
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
        match Pin::new(&mut body.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(mut frame))) => {
                body.waiting = false;
                if let (Some(trailers), Some(scrub)) = (frame.trailers_mut(), &body.scrub) {
                    scrub(trailers);
                }
                let bytes = body.progress.bytes.get() + frame.data_ref().map_or(0, |data| data.len() as u64);
                body.progress.bytes.set(bytes);
                if bytes > body.allowance.most_bytes { body.broken(Broken::TooLarge) } else { Poll::Ready(Some(Ok(frame))) }
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => {
                body.progress.end();
                body.done.take().into_iter().for_each(|done| done());
                Poll::Ready(None)
            }
            Poll::Pending => {
                if !body.waiting {
                    body.waiting = true;
                    body.timer.as_mut().reset(body.allowance.deadline.min(Instant::now() + body.allowance.idle));
                }
                if body.timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                let is_late = Instant::now() >= body.allowance.deadline;
                body.broken(if is_late { Broken::DeadlineExceeded } else { Broken::Silent })
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
