//! The gate for answers of upstreams: one way to find each answer's end, nothing that was not asked for.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::READ_SIZE;
use super::chunked::{Chunked, Outcome};
use super::head::{self, Framing};
use super::stall::Stall;

/// What the head of an answer may be: twice what a client may send, for cookies and policies are long.
const MOST_HEAD: usize = 64 << 10;
const MOST_FIELDS: usize = 256;

/// Interim answers before an answer; more are a flood.
pub const MOST_INTERIM: usize = 16;

/// What an answer's framing depends on besides its own head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// The answer has a head alone.
    Head,
    /// 101 is an answer as well.
    Upgrade,
    /// A 2xx opens a tunnel.
    Connect,
    Other,
}

/// How much of a body is read at once. A byte less than a power of two: hyper reads into twice as much once it has filled one, and
/// every piece keeps the whole of what it was read into.
const MOST_OF_A_BODY: usize = (64 << 10) - 1;

/// What the pool and the gate of one connection tell each other.
#[derive(Default)]
pub struct Link {
    asked: Cell<Option<Asked>>,
    faulty: Cell<bool>,
}

impl Link {
    /// A request is about to be sent.
    pub fn ask(&self, asked: Asked) {
        self.asked.set(Some(asked));
    }

    /// Whether the other end has broken the rules: the connection must not be used again.
    pub fn is_faulty(&self) -> bool {
        self.faulty.get()
    }
}

enum State {
    /// Nothing was asked, so nothing may come.
    Quiet,
    /// `seen` bytes behind the judged ones hold no end of a head; `interim` answers have come before.
    Head {
        seen: usize,
        interim: usize,
    },
    Body {
        left: u64,
    },
    Chunked(Chunked),
    UntilClose,
    Tunnel,
    Broken,
}

/// A connection to an upstream whose answers are unambiguous.
///
/// Cloning gives another handle on the same connection: one for hyper, one for the pool, which looks whether it is still
/// quiet before using it again.
pub struct AnswerGate<S>(Rc<RefCell<Inner<S>>>);

impl<S> Clone for AnswerGate<S> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

struct Inner<S> {
    io: S,
    link: Rc<Link>,
    raw: BytesMut,
    /// How many bytes of `raw` are judged and may be read.
    passed: usize,
    state: State,
    stall: Stall,
}

impl<S> AnswerGate<S> {
    /// Puts the gate in front of a connection whose other end may take nothing of what is written for as long as `stall`.
    pub fn new(io: S, link: Rc<Link>, stall: Duration) -> Self {
        let stall = Stall::after(stall);
        Self(Rc::new(RefCell::new(Inner { io, link, raw: BytesMut::new(), passed: 0, state: State::Quiet, stall })))
    }
}

impl<S: AsyncRead + Unpin> AnswerGate<S> {
    /// Whether nothing has come, not even the end, since the last answer ended. What lies there unread would be taken for
    /// the answer to the next request.
    pub fn is_quiet(&self) -> bool {
        let mut inner = self.0.borrow_mut();
        let mut space = [0; 1];
        let mut space = ReadBuf::new(&mut space);
        let untouched = inner.raw.is_empty() && matches!(inner.state, State::Quiet);
        // The connection's own task asks again as soon as it writes the next request, and is woken from then on.
        untouched && Pin::new(&mut inner.io).poll_read(&mut Context::from_waker(Waker::noop()), &mut space).is_pending()
    }
}

impl<S> Inner<S> {
    /// Moves over the bytes that are read, as far as they are fine.
    fn judge(&mut self) {
        while self.passed < self.raw.len() {
            let fresh = &self.raw[self.passed..];
            match &mut self.state {
                State::Quiet => return self.fault(),
                State::Head { seen, interim } => match head::find_end(fresh, *seen) {
                    Ok(None) if fresh.len() <= MOST_HEAD => {
                        *seen = fresh.len();
                        return;
                    }
                    Ok(Some(end)) if end <= MOST_HEAD => {
                        let interim = *interim;
                        match self.after_head(end, interim) {
                            Some(state) => {
                                self.passed += end;
                                self.state = state;
                            }
                            None => return self.fault(),
                        }
                    }
                    Ok(_) | Err(_) => return self.fault(),
                },
                State::Body { left } => {
                    let step = (*left).min(fresh.len() as u64);
                    self.passed += step as usize;
                    *left -= step;
                    if *left == 0 {
                        self.state = State::Quiet;
                    }
                }
                State::Chunked(chunked) => {
                    let (step, outcome) = chunked.judge(fresh);
                    self.passed += step;
                    match outcome {
                        Outcome::Open => return,
                        Outcome::Ended => self.state = State::Quiet,
                        Outcome::Malformed => return self.fault(),
                    }
                }
                State::UntilClose | State::Tunnel => self.passed = self.raw.len(),
                State::Broken => return,
            }
        }
    }

    /// What follows a head of `end` bytes (RFC 9112 section 6.3); `None` if that cannot be said for certain.
    fn after_head(&self, end: usize, interim: usize) -> Option<State> {
        let (status, framing) = head::check_answer(&self.raw[self.passed..self.passed + end], MOST_FIELDS).ok()?;
        let asked = self.link.asked.get()?;
        let is_bare = framing.is_none();
        let is_empty = matches!(framing, None | Some(Framing::Length(0)));
        match status {
            101 if asked == Asked::Upgrade && is_bare => return Some(State::Tunnel),
            100 | 102..=199 if is_bare && interim < MOST_INTERIM => {
                return Some(State::Head { seen: 0, interim: interim + 1 });
            }
            100..=199 => return None,
            200..=299 if asked == Asked::Connect => return is_bare.then_some(State::Tunnel),
            204 if !is_empty => return None,
            _ => {}
        }
        let has_no_body = asked == Asked::Head || matches!(status, 204 | 304);
        let state = match framing {
            _ if has_no_body => State::Quiet,
            Some(Framing::Length(0)) => State::Quiet,
            Some(Framing::Length(left)) => State::Body { left },
            Some(Framing::Chunked) => State::Chunked(Chunked::default()),
            None => State::UntilClose,
        };
        self.link.asked.set(None);
        Some(state)
    }

    /// What was fine is still read; then the connection ends in an error.
    fn fault(&mut self) {
        self.raw.truncate(self.passed);
        self.state = State::Broken;
        self.link.faulty.set(true);
    }

    fn begin_if_asked(&mut self) {
        if matches!(self.state, State::Quiet) && self.link.asked.get().is_some() {
            self.state = State::Head { seen: 0, interim: 0 };
        }
    }
}

impl<S: AsyncRead + Unpin> Inner<S> {
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut space = [0; READ_SIZE];
        let mut space = ReadBuf::new(&mut space);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut space))?;
        self.raw.extend_from_slice(space.filled());
        Poll::Ready(Ok(!space.filled().is_empty()))
    }

    /// Reads a body straight into the reader's buffer, `left` bytes at most.
    fn poll_body(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>, left: u64) -> Poll<io::Result<usize>> {
        let most = buf.remaining().min(MOST_OF_A_BODY).min(usize::try_from(left).unwrap_or(usize::MAX));
        let mut limited = ReadBuf::new(buf.initialize_unfilled_to(most));
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut limited))?;
        let step = limited.filled().len();
        buf.advance(step);
        Poll::Ready(Ok(step))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.passed > 0 {
                let step = self.passed.min(buf.remaining());
                buf.put_slice(&self.raw[..step]);
                self.raw.advance(step);
                self.passed -= step;
                return Poll::Ready(Ok(()));
            }
            self.begin_if_asked();
            match self.state {
                State::Broken => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "the upstream's framing is malformed")));
                }
                State::UntilClose | State::Tunnel if self.raw.is_empty() => {
                    ready!(self.poll_body(cx, buf, u64::MAX))?;
                    return Poll::Ready(Ok(()));
                }
                State::Body { left } if self.raw.is_empty() => {
                    let step = ready!(self.poll_body(cx, buf, left))? as u64;
                    self.state = if step == left { State::Quiet } else { State::Body { left: left - step } };
                    return Poll::Ready(Ok(()));
                }
                _ => {}
            }
            match ready!(self.poll_more(cx))? {
                true => {
                    self.begin_if_asked();
                    self.judge();
                }
                false => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AnswerGate<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AnswerGate<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let inner = &mut *self.0.borrow_mut();
        let written = Pin::new(&mut inner.io).poll_write(cx, buf);
        inner.stall.unless(cx, written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.borrow_mut();
        let flushed = Pin::new(&mut inner.io).poll_flush(cx);
        inner.stall.unless(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().io).poll_shutdown(cx)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let inner = &mut *self.0.borrow_mut();
        let written = Pin::new(&mut inner.io).poll_write_vectored(cx, bufs);
        inner.stall.unless(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.borrow().io.is_write_vectored()
    }
}
