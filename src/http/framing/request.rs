//! The gate for requests: hyper reads only bytes that the gate has checked.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::model::outcome::Code;

use super::chunked::{Chunked, Outcome};
use super::connection_state::ConnectionState;
use super::head::{self, Framing};
use super::stall::Stall;
use super::{FAULT_HEADER, READ_SIZE, RequestGateLimits};

/// Wraps a client's connection and lets only unambiguous HTTP/1 requests through.
pub struct RequestGate<S> {
    io: S,
    limits: RequestGateLimits,
    connection_state: Rc<ConnectionState>,
    raw: BytesMut,
    /// How many bytes at the start of `raw` are checked and may be read.
    passed: usize,
    state: State,
    /// When the wait for the first head began.
    begun: Instant,
    /// Number of heads that have passed.
    heads: u64,
    waiting: Waiting,
    timer: Pin<Box<Sleep>>,
    stall: Stall,
}

enum State {
    /// A head is incomplete: the first `seen` bytes after the checked ones do not contain its end.
    Head {
        seen: usize,
    },
    Body {
        left: u64,
    },
    Chunked(Chunked),
    /// After a request that may open a tunnel: until its response, it is unknown whether the next bytes are HTTP.
    Held,
    /// A refused head has been replaced; nothing more is read.
    Closed,
    /// A body is malformed.
    Broken,
}

/// The wait that the timer limits.
#[derive(Clone, Copy, PartialEq)]
enum Waiting {
    Nothing,
    NextHead,
    RestOfHead,
}

impl<S> RequestGate<S> {
    /// Wraps a connection that started at `begun` and from which `first` has already been read.
    pub fn new(
        io: S,
        (begun, first): (Instant, BytesMut),
        limits: RequestGateLimits,
        connection_state: Rc<ConnectionState>,
    ) -> Self {
        let (timer, stall) = (Box::pin(tokio::time::sleep(limits.timeout)), Stall::after(limits.write_stall));
        let mut gate = Self {
            io,
            limits,
            connection_state,
            raw: first,
            passed: 0,
            state: State::Head { seen: 0 },
            begun,
            heads: 0,
            waiting: Waiting::Nothing,
            timer,
            stall,
        };
        gate.judge();
        gate
    }

    /// Checks the bytes that have been read, and advances `passed` over the valid ones.
    fn judge(&mut self) {
        while self.passed < self.raw.len() {
            if self.connection_state.is_tunnel() {
                self.passed = self.raw.len();
                return;
            }
            let fresh = &self.raw[self.passed..];
            match &mut self.state {
                State::Head { seen } => match head::find_end(fresh, *seen) {
                    Ok(None) if fresh.len() <= self.limits.bytes => {
                        *seen = fresh.len();
                        return;
                    }
                    Ok(None) => return self.refuse(Code::HeadTooLarge),
                    Ok(Some(end)) if end > self.limits.bytes => return self.refuse(Code::HeadTooLarge),
                    Ok(Some(end)) => match head::check(&fresh[..end], &self.limits) {
                        Ok(checked) => {
                            self.passed += end;
                            self.heads += 1;
                            // The head is complete, so the next wait starts a new timeout.
                            self.waiting = Waiting::Nothing;
                            self.state = match checked.framing {
                                Framing::Length(0) if checked.may_tunnel => State::Held,
                                Framing::Length(0) => State::Head { seen: 0 },
                                Framing::Length(left) => State::Body { left },
                                Framing::Chunked => State::Chunked(Chunked::default()),
                            };
                        }
                        Err(code) => return self.refuse(code),
                    },
                    Err(code) => return self.refuse(code),
                },
                State::Body { left } => {
                    let step = (*left).min(fresh.len() as u64);
                    self.passed += step as usize;
                    *left -= step;
                    if *left == 0 {
                        self.state = State::Head { seen: 0 };
                    }
                }
                State::Chunked(chunked) => {
                    let (step, outcome) = chunked.judge(fresh);
                    self.passed += step;
                    match outcome {
                        Outcome::Open => return,
                        Outcome::Ended => self.state = State::Head { seen: 0 },
                        Outcome::Malformed => {
                            self.raw.truncate(self.passed);
                            self.state = State::Broken;
                            return;
                        }
                    }
                }
                State::Held | State::Closed | State::Broken => return,
            }
        }
    }

    /// The underlying stream, without checks.
    pub fn stream(&mut self) -> &mut S {
        &mut self.io
    }

    fn refuse(&mut self, code: Code) {
        self.raw.truncate(self.passed);
        let head = format!("GET / HTTP/1.1\r\nhost: fault\r\n{FAULT_HEADER}: {}\r\nconnection: close\r\n\r\n", code.as_str());
        self.raw.extend_from_slice(head.as_bytes());
        self.passed = self.raw.len();
        self.state = State::Closed;
    }

    /// Returns the wait that has timed out, if any. Resets the timer when the kind of wait changes.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Option<Waiting> {
        let waiting = match self.state {
            State::Head { .. } if self.connection_state.is_tunnel() => Waiting::Nothing,
            State::Head { .. } if !self.raw.is_empty() => Waiting::RestOfHead,
            State::Head { .. } if self.connection_state.in_flight() == 0 => Waiting::NextHead,
            State::Head { .. } | State::Body { .. } | State::Chunked(_) | State::Held | State::Closed | State::Broken => {
                Waiting::Nothing
            }
        };
        if waiting != self.waiting {
            self.waiting = waiting;
            let until = match waiting {
                _ if !self.connection_state.has_request() => self.begun + self.limits.timeout,
                Waiting::NextHead => Instant::now() + self.limits.keep_alive,
                Waiting::RestOfHead | Waiting::Nothing => Instant::now() + self.limits.timeout,
            };
            self.timer.as_mut().reset(until);
        }
        let expired = waiting != Waiting::Nothing && self.timer.as_mut().poll(cx).is_ready();
        expired.then_some(waiting)
    }
}

impl<S: AsyncRead + Unpin> RequestGate<S> {
    /// Reads a body of known length straight into the reader's buffer.
    fn poll_body(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>, left: u64) -> Poll<io::Result<()>> {
        let most = buf.remaining().min(READ_SIZE * 4).min(usize::try_from(left).unwrap_or(usize::MAX));
        let mut limited = ReadBuf::new(buf.initialize_unfilled_to(most));
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut limited))?;
        let step = limited.filled().len();
        buf.advance(step);
        self.state = if step as u64 == left { State::Head { seen: 0 } } else { State::Body { left: left - step as u64 } };
        Poll::Ready(Ok(()))
    }

    /// Reads more bytes to check; `false` at the end of the connection.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        // Not initialized, because zeroing the buffer costs more than most reads.
        let mut space = [const { MaybeUninit::uninit() }; READ_SIZE];
        let mut space = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut space))?;
        self.raw.extend_from_slice(space.filled());
        Poll::Ready(Ok(!space.filled().is_empty()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for RequestGate<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        loop {
            if gate.passed > 0 {
                let step = gate.passed.min(buf.remaining());
                buf.put_slice(&gate.raw[..step]);
                gate.raw.advance(step);
                gate.passed -= step;
                return Poll::Ready(Ok(()));
            }
            if gate.connection_state.is_tunnel() {
                gate.judge();
                if gate.passed > 0 {
                    continue;
                }
                return Pin::new(&mut gate.io).poll_read(cx, buf);
            }
            match gate.state {
                State::Held => {
                    ready!(gate.connection_state.poll_finished(cx, gate.heads));
                    // The response opened no tunnel, so the next bytes are an HTTP request.
                    gate.state = State::Head { seen: 0 };
                    gate.judge();
                    continue;
                }
                State::Closed => return Poll::Ready(Ok(())),
                State::Broken => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "the body's framing is malformed")));
                }
                State::Body { left } if gate.raw.is_empty() => return gate.poll_body(cx, buf, left),
                State::Head { .. } | State::Body { .. } | State::Chunked(_) => {}
            }
            match gate.poll_more(cx) {
                Poll::Ready(Ok(true)) => gate.judge(),
                Poll::Ready(Ok(false)) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => match gate.poll_deadline(cx) {
                    None => return Poll::Pending,
                    Some(Waiting::RestOfHead) => gate.refuse(Code::RequestTimeout),
                    // No request has begun, so the connection closes without a response.
                    Some(Waiting::NextHead | Waiting::Nothing) => return Poll::Ready(Ok(())),
                },
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for RequestGate<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let gate = self.get_mut();
        let written = Pin::new(&mut gate.io).poll_write(cx, buf);
        gate.stall.unless(cx, written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        // hyper flushes only when all its data is written: between two messages, or between a request and its response. An
        // informational response written here therefore does not split another message.
        let flushed = match gate.connection_state.poll_inform(cx, Pin::new(&mut gate.io)) {
            Poll::Ready(Ok(())) => Pin::new(&mut gate.io).poll_flush(cx),
            other => other,
        };
        gate.stall.unless(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let gate = self.get_mut();
        let written = Pin::new(&mut gate.io).poll_write_vectored(cx, bufs);
        gate.stall.unless(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
