//! Request and response bodies in transit: counted, and aborted when a limit on size, idle time or rate is exceeded, or when
//! the request is no longer cleared.

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

use super::read_monitor::{Lag, MinRate, ReadMonitor};

/// The reason why a body or a tunnel ended early.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BodyFailure {
    #[error("the body is larger than the limit")]
    TooLarge,
    #[error("no data arrived within the idle timeout")]
    IdleTimeout,
    #[error("the body arrived more slowly than the minimum rate")]
    TooSlow,
    #[error("the sender aborted the body")]
    SenderFailed,
    #[error("the request is no longer cleared")]
    NoLongerCleared,
    #[error("the caller's deadline has passed")]
    DeadlineExceeded,
}

/// The progress of a body, shared with the code that waits for the body or logs it.
#[derive(Default)]
pub struct Progress {
    pub bytes: Cell<u64>,
    pub failure: Cell<Option<BodyFailure>>,
    ended: Cell<bool>,
    /// Whether the body was dropped before its end.
    is_cut: Cell<bool>,
    /// When the last frame was returned; `None` once the next frame is polled.
    sending_since: Cell<Option<Instant>>,
    changed: Notify,
}

impl Progress {
    /// Waits until the body has ended or was dropped.
    pub async fn ended(&self) {
        if !self.ended.get() {
            self.changed.notified().await;
        }
    }

    /// Whether the body has ended or was dropped.
    pub const fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Whether the body was dropped before its end, because its receiver went away.
    pub const fn is_cut(&self) -> bool {
        self.is_cut.get()
    }

    /// Waits until the receiver has not polled the body for `limit` after a frame.
    pub async fn send_stalled(&self, limit: Duration) {
        loop {
            let since = self.sending_since.get().unwrap_or_else(Instant::now);
            if since.elapsed() >= limit {
                return;
            }
            tokio::time::sleep_until(since + limit).await;
        }
    }

    fn end(&self) {
        self.ended.set(true);
        self.sending_since.set(None);
        self.changed.notify_waiters();
    }
}

/// The limits on a body.
#[derive(Clone, Copy)]
pub struct BodyLimits {
    pub max_bytes: u64,
    /// Maximum time between two frames.
    pub idle_timeout: Duration,
    /// Minimum rate; `None` for streams.
    pub min_rate: Option<MinRate>,
}

type Scrub = Box<dyn Fn(&mut HeaderMap)>;

/// A body that is counted and limited.
pub struct Metered {
    inner: Body,
    limits: BodyLimits,
    progress: Rc<Progress>,
    /// Runs while the next frame has not arrived. Most bodies arrive at once and need none.
    timer: Option<Pin<Box<Sleep>>>,
    /// Start of the current wait for a frame.
    waiting_since: Option<Instant>,
    /// How far the body is behind its minimum rate, the current wait aside.
    lag: Lag,
    /// Ends the body when the request is no longer cleared.
    lease: Option<Rc<Lease>>,
    /// Measures how fast the client reads a response.
    read_monitor: Option<Rc<ReadMonitor>>,
    /// Removes fields that must not appear in trailers.
    scrub: Option<Scrub>,
    /// Called once, when the body has ended or is dropped.
    done: Option<Box<dyn FnOnce()>>,
}

impl Metered {
    pub fn new(inner: Body, limits: BodyLimits, progress: Rc<Progress>) -> Self {
        Self {
            inner,
            limits,
            progress,
            timer: None,
            waiting_since: None,
            lag: Lag::default(),
            lease: None,
            read_monitor: None,
            scrub: None,
            done: None,
        }
    }

    /// Aborts the body when the lease ends, because the request is no longer cleared.
    #[must_use]
    pub fn with_lease(mut self, lease: Rc<Lease>) -> Self {
        self.lease = Some(lease);
        self
    }

    /// Reports each frame and each poll to `read_monitor`, which measures how fast the client reads.
    #[must_use]
    pub fn with_read_monitor(mut self, read_monitor: Rc<ReadMonitor>) -> Self {
        self.read_monitor = Some(read_monitor);
        self
    }

    /// Applies `scrub` to the trailers.
    #[must_use]
    pub fn scrubbed(mut self, scrub: impl Fn(&mut HeaderMap) + 'static) -> Self {
        self.scrub = Some(Box::new(scrub));
        self
    }

    /// Calls `done` once, when the body has ended or is dropped.
    #[must_use]
    pub fn on_end(mut self, done: impl FnOnce() + 'static) -> Self {
        self.done = Some(Box::new(done));
        self
    }

    /// When to check the idle timeout and the minimum rate again.
    fn next_check(&self, now: Instant) -> Instant {
        let since = self.waiting_since.unwrap_or(now);
        let idle = since + self.limits.idle_timeout;
        self.limits.min_rate.map_or(idle, |rate| idle.min(since + self.lag.left(rate)))
    }

    fn check_wait(&self, since: Instant, now: Instant) -> Option<BodyFailure> {
        let waited = now - since;
        if waited >= self.limits.idle_timeout {
            return Some(BodyFailure::IdleTimeout);
        }
        self.limits.min_rate.filter(|rate| waited >= self.lag.left(*rate)).map(|_| BodyFailure::TooSlow)
    }

    /// Waits for the next frame, within the idle timeout and the minimum rate.
    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let now = Instant::now();
        let is_new = self.waiting_since.is_none();
        let since = *self.waiting_since.get_or_insert(now);
        let next = self.next_check(now);
        let mut timer = self.timer.take().unwrap_or_else(|| Box::pin(tokio::time::sleep_until(next)));
        if is_new {
            timer.as_mut().reset(next);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if let Some(failure) = self.check_wait(since, now) {
                return self.fail(failure);
            }
            timer.as_mut().reset(self.next_check(now));
        }
        self.timer = Some(timer);
        Poll::Pending
    }

    fn fail(&self, failure: BodyFailure) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.progress.failure.set(Some(failure));
        Poll::Ready(Some(Err(failure.into())))
    }
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let body = self.get_mut();
        body.progress.sending_since.set(None);
        if let Some(read_monitor) = &body.read_monitor {
            read_monitor.polled();
        }
        match Pin::new(&mut body.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(mut frame))) => {
                if let Some(since) = body.waiting_since.take() {
                    body.lag.wait(since.elapsed());
                }
                if body.lease.as_ref().is_some_and(|lease| lease.has_ended()) {
                    return body.fail(BodyFailure::NoLongerCleared);
                }
                if let (Some(trailers), Some(scrub)) = (frame.trailers_mut(), &body.scrub) {
                    scrub(trailers);
                }
                let size = frame.data_ref().map_or(0, |data| data.len() as u64);
                if let Some(rate) = body.limits.min_rate {
                    if body.lag.is_too_long(rate) {
                        return body.fail(BodyFailure::TooSlow);
                    }
                    body.lag.make_up(rate, size);
                }
                let bytes = body.progress.bytes.get() + size;
                body.progress.bytes.set(bytes);
                body.progress.sending_since.set(Some(Instant::now()));
                if let (Some(read_monitor), Some(data)) = (&body.read_monitor, frame.data_ref()) {
                    read_monitor.frame_returned(data.len());
                }
                if bytes > body.limits.max_bytes { body.fail(BodyFailure::TooLarge) } else { Poll::Ready(Some(Ok(frame))) }
            }
            Poll::Ready(Some(Err(error))) => {
                body.progress.failure.set(Some(BodyFailure::SenderFailed));
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                body.progress.end();
                body.read_monitor.iter().for_each(|read_monitor| read_monitor.ended());
                body.done.take().into_iter().for_each(|done| done());
                Poll::Ready(None)
            }
            Poll::Pending => {
                if body.lease.as_ref().is_some_and(|lease| lease.poll_ended(cx).is_ready()) {
                    return body.fail(BodyFailure::NoLongerCleared);
                }
                body.poll_wait(cx)
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
        let is_cut = !self.progress.has_ended() && !self.inner.is_end_stream();
        self.progress.is_cut.set(self.progress.is_cut() || is_cut);
        self.progress.end();
        self.done.take().into_iter().for_each(|done| done());
    }
}

/// A body that ends with these trailers at a deadline, even if it is incomplete.
pub struct Until {
    body: Option<Body>,
    deadline: Pin<Box<Sleep>>,
    trailers: HeaderMap,
    progress: Rc<Progress>,
}

impl Until {
    /// `progress` records [`BodyFailure::DeadlineExceeded`] if the deadline passes before the body ends.
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
        // Drop the body at once, so that its stream or connection is closed.
        until.body = None;
        until.progress.failure.set(Some(BodyFailure::DeadlineExceeded));
        Poll::Ready(Some(Ok(Frame::trailers(std::mem::take(&mut until.trailers)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    /// Unknown, because the deadline may end the body early.
    fn size_hint(&self) -> SizeHint {
        if self.is_end_stream() { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames and the pauses before them.
    struct Sender {
        frames: Vec<(Duration, usize)>,
        pause: Pin<Box<Sleep>>,
    }

    impl Sender {
        fn of(frames: Vec<(Duration, usize)>) -> Body {
            let pause = Box::pin(tokio::time::sleep(frames[0].0));
            Body::streamed(Self { frames, pause })
        }
    }

    impl HttpBody for Sender {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            let sender = self.get_mut();
            if sender.frames.is_empty() {
                return Poll::Ready(None);
            }
            ready!(sender.pause.as_mut().poll(cx));
            let (_, size) = sender.frames.remove(0);
            if let Some((pause, _)) = sender.frames.first() {
                sender.pause.as_mut().reset(Instant::now() + *pause);
            }
            Poll::Ready(Some(Ok(Frame::data(vec![0; size].into()))))
        }
    }

    const GRACE: Duration = Duration::from_secs(10);

    /// Receives the frames under a minimum rate of 256 bytes per second. Returns the failure and the time until the end.
    fn receive(frames: Vec<(Duration, usize)>) -> (Option<BodyFailure>, Duration) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let min_rate = Some(MinRate { bytes_per_second: 256, grace: GRACE });
            let limits = BodyLimits { max_bytes: u64::MAX, idle_timeout: Duration::from_secs(60), min_rate };
            let progress = Rc::new(Progress::default());
            let mut body = Metered::new(Sender::of(frames), limits, Rc::clone(&progress));
            let started = Instant::now();
            while let Some(Ok(_)) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {}
            (progress.failure.get(), started.elapsed())
        })
    }

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_large_first_frame_earns_no_credit() {
        let mut frames = vec![(Duration::ZERO, 4 << 20)];
        frames.extend((0..100).map(|_| (seconds(9), 1)));
        let (failure, after) = receive(frames);
        assert_eq!(failure, Some(BodyFailure::TooSlow));
        assert!((GRACE..GRACE + seconds(2)).contains(&after), "{after:?}");
    }

    #[test]
    fn bursts_at_the_minimum_rate_pass_for_any_length_of_time() {
        let frames = (0..1000).map(|_| (seconds(9), 9 * 256)).collect();
        assert_eq!(receive(frames), (None, seconds(9000)));
    }

    #[test]
    fn a_steady_sender_below_the_minimum_rate_is_cut_once_its_lag_exceeds_the_grace_period() {
        let frames = (0..1000).map(|_| (seconds(1), 128)).collect();
        let (failure, after) = receive(frames);
        assert_eq!(failure, Some(BodyFailure::TooSlow));
        assert!(
            (seconds(18)..seconds(23)).contains(&after),
            "half the rate uses up the grace period in twice its time: {after:?}"
        );
    }

    #[test]
    fn a_frame_that_arrives_too_late_is_not_passed_on_although_nothing_polled_in_between() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let min_rate = Some(MinRate { bytes_per_second: 256, grace: GRACE });
            let limits = BodyLimits { max_bytes: u64::MAX, idle_timeout: Duration::from_secs(60), min_rate };
            let progress = Rc::new(Progress::default());
            let mut body = Metered::new(Sender::of(vec![(seconds(1), 1), (seconds(20), 1)]), limits, Rc::clone(&progress));
            assert!(matches!(std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await, Some(Ok(_))));
            let mut unpolled = Context::from_waker(std::task::Waker::noop());
            assert!(Pin::new(&mut body).poll_frame(&mut unpolled).is_pending());
            tokio::time::advance(seconds(30)).await;
            assert!(matches!(Pin::new(&mut body).poll_frame(&mut unpolled), Poll::Ready(Some(Err(_)))));
            assert_eq!(progress.failure.get(), Some(BodyFailure::TooSlow));
        });
    }

    #[test]
    fn one_long_pause_is_cut_at_the_end_of_the_grace_period() {
        let (failure, after) = receive(vec![(Duration::ZERO, 1), (seconds(50), 1 << 20)]);
        assert_eq!(failure, Some(BodyFailure::TooSlow));
        assert!((GRACE..GRACE + seconds(2)).contains(&after), "{after:?}");
    }
}
