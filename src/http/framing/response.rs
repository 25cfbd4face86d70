//! The gate for upstream responses: a response passes only if it was requested and its end is unambiguous.

use std::cell::{Cell, RefCell};
use std::io;
use std::mem::MaybeUninit;
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

/// Bytes of a response head: twice the default limit for requests, because cookies and security policies are long.
const MAX_HEAD: usize = 64 << 10;
const MAX_FIELDS: usize = 256;

/// Maximum number of informational responses before the final response.
pub const MAX_INFORMATIONAL: usize = 16;

/// The kind of request, on which the framing of its response depends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequestKind {
    /// A HEAD request: the response has no body.
    Head,
    /// An upgrade: 101 is a valid final response.
    Upgrade,
    /// CONNECT: a 2xx response opens a tunnel.
    Connect,
    Other,
}

/// Maximum bytes of a body per read. One less than a power of two, because hyper doubles its read buffer once a read fills
/// it, and each frame of the body keeps its whole read buffer alive.
const MAX_BODY_READ: usize = (64 << 10) - 1;

/// State that the pool and the gate of one connection share.
#[derive(Default)]
pub struct ExchangeState {
    asked: Cell<Option<RequestKind>>,
    faulty: Cell<bool>,
}

impl ExchangeState {
    /// Records that a request is about to be sent.
    pub fn ask(&self, asked: RequestKind) {
        self.asked.set(Some(asked));
    }

    /// Whether the upstream has sent a malformed or unexpected response. The connection must then not be used again.
    pub fn is_faulty(&self) -> bool {
        self.faulty.get()
    }
}

enum State {
    /// No response is expected, so any byte is a fault.
    Idle,
    /// A head is incomplete: the first `seen` bytes after the checked ones do not contain its end. `interim` informational
    /// responses have come before.
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

/// Wraps a connection to an upstream and lets only unambiguous responses through.
///
/// A clone is another handle to the same connection: hyper holds one, and the pool holds one, to check before reuse that the
/// connection is idle.
pub struct ResponseGate<S>(Rc<RefCell<Inner<S>>>);

impl<S> Clone for ResponseGate<S> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

struct Inner<S> {
    io: S,
    link: Rc<ExchangeState>,
    raw: BytesMut,
    /// How many bytes at the start of `raw` are checked and may be read.
    passed: usize,
    state: State,
    stall: Stall,
}

impl<S> ResponseGate<S> {
    /// Wraps a connection. A write fails when the upstream does not read for `stall`.
    pub fn new(io: S, link: Rc<ExchangeState>, stall: Duration) -> Self {
        let stall = Stall::after(stall);
        Self(Rc::new(RefCell::new(Inner { io, link, raw: BytesMut::new(), passed: 0, state: State::Idle, stall })))
    }
}

impl<S: AsyncRead + Unpin> ResponseGate<S> {
    /// Whether the connection is open and has received nothing since the last response ended. Unread bytes would be taken
    /// for the response to the next request.
    pub fn is_quiet(&self) -> bool {
        let mut inner = self.0.borrow_mut();
        let mut space = [0; 1];
        let mut space = ReadBuf::new(&mut space);
        let is_idle = inner.raw.is_empty() && matches!(inner.state, State::Idle);
        // This poll replaces the waker of the connection's own task. That task polls again when it writes the next request,
        // and so registers its waker again.
        is_idle && Pin::new(&mut inner.io).poll_read(&mut Context::from_waker(Waker::noop()), &mut space).is_pending()
    }
}

impl<S> Inner<S> {
    /// Checks the bytes that have been read, and advances `passed` over the valid ones.
    fn judge(&mut self) {
        while self.passed < self.raw.len() {
            let fresh = &self.raw[self.passed..];
            match &mut self.state {
                State::Idle => return self.fault(),
                State::Head { seen, interim } => match head::find_end(fresh, *seen) {
                    Ok(None) if fresh.len() <= MAX_HEAD => {
                        *seen = fresh.len();
                        return;
                    }
                    Ok(Some(end)) if end <= MAX_HEAD => {
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
                        self.state = State::Idle;
                    }
                }
                State::Chunked(chunked) => {
                    let (step, outcome) = chunked.judge(fresh);
                    self.passed += step;
                    match outcome {
                        Outcome::Open => return,
                        Outcome::Ended => self.state = State::Idle,
                        Outcome::Malformed => return self.fault(),
                    }
                }
                State::UntilClose | State::Tunnel => self.passed = self.raw.len(),
                State::Broken => return,
            }
        }
    }

    /// Returns the state after a head of `end` bytes (RFC 9112 section 6.3); `None` if the head is invalid or ambiguous.
    fn after_head(&self, end: usize, interim: usize) -> Option<State> {
        let (status, framing) = head::check_answer(&self.raw[self.passed..self.passed + end], MAX_FIELDS).ok()?;
        let asked = self.link.asked.get()?;
        let is_unframed = framing.is_none();
        let is_empty = matches!(framing, None | Some(Framing::Length(0)));
        match status {
            101 if asked == RequestKind::Upgrade && is_unframed => return Some(State::Tunnel),
            100 | 102..=199 if is_unframed && interim < MAX_INFORMATIONAL => {
                return Some(State::Head { seen: 0, interim: interim + 1 });
            }
            100..=199 => return None,
            200..=299 if asked == RequestKind::Connect => return is_unframed.then_some(State::Tunnel),
            204 if !is_empty => return None,
            _ => {}
        }
        let has_no_body = asked == RequestKind::Head || matches!(status, 204 | 304);
        let state = match framing {
            _ if has_no_body => State::Idle,
            Some(Framing::Length(0)) => State::Idle,
            Some(Framing::Length(left)) => State::Body { left },
            Some(Framing::Chunked) => State::Chunked(Chunked::default()),
            None => State::UntilClose,
        };
        self.link.asked.set(None);
        Some(state)
    }

    /// Drops the unchecked bytes. Reads return the checked bytes first, and then an error.
    fn fault(&mut self) {
        self.raw.truncate(self.passed);
        self.state = State::Broken;
        self.link.faulty.set(true);
    }

    fn begin_if_asked(&mut self) {
        if matches!(self.state, State::Idle) && self.link.asked.get().is_some() {
            self.state = State::Head { seen: 0, interim: 0 };
        }
    }
}

impl<S: AsyncRead + Unpin> Inner<S> {
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        // Not initialized, because zeroing the buffer costs more than most reads.
        let mut space = [const { MaybeUninit::uninit() }; READ_SIZE];
        let mut space = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut space))?;
        self.raw.extend_from_slice(space.filled());
        Poll::Ready(Ok(!space.filled().is_empty()))
    }

    /// Reads at most `left` bytes of a body straight into the reader's buffer.
    fn poll_body(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>, left: u64) -> Poll<io::Result<usize>> {
        let most = buf.remaining().min(MAX_BODY_READ).min(usize::try_from(left).unwrap_or(usize::MAX));
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
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "malformed or unexpected response")));
                }
                State::UntilClose | State::Tunnel if self.raw.is_empty() => {
                    ready!(self.poll_body(cx, buf, u64::MAX))?;
                    return Poll::Ready(Ok(()));
                }
                State::Body { left } if self.raw.is_empty() => {
                    let step = ready!(self.poll_body(cx, buf, left))? as u64;
                    self.state = if step == left { State::Idle } else { State::Body { left: left - step } };
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

impl<S: AsyncRead + Unpin> AsyncRead for ResponseGate<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ResponseGate<S> {
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
