//! Limits on the frames received on an HTTP/2 connection. Closes connections that send their headers too slowly, with the same
//! timeout as over HTTP/1, and connections that flood control frames such as PING or SETTINGS.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

/// Wraps an accepted connection. Every header block, and every frame except DATA, must be complete within `limit` of its first
/// byte. At most `most` control frames may arrive per second: frames other than headers, data and WINDOW_UPDATE.
///
/// `h2` resets a malformed stream without an event for its user, so the guard looks for RST_STREAM among the written frames.
pub struct FrameGuard<S> {
    io: S,
    limit: Duration,
    most: u64,
    frames: Frames,
    /// Start of the second for which control frames are counted.
    since: Instant,
    /// Runs while a frame or a header block is incomplete.
    timer: Option<Pin<Box<Sleep>>>,
    resets: SentResets,
    on_reset: Box<dyn Fn(Reset)>,
}

impl<S> FrameGuard<S> {
    /// `on_reset` is called for each stream that `h2` resets with PROTOCOL_ERROR.
    pub fn new(io: S, limit: Duration, most: u64, on_reset: impl Fn(Reset) + 'static) -> Self {
        let (frames, resets) = (Frames::new(), SentResets::default());
        Self { io, limit, most, frames, since: Instant::now(), timer: None, resets, on_reset: Box::new(on_reset) }
    }

    /// Returns the settings of the peer, updated whenever it sends new ones.
    pub fn peer_settings(&self) -> Rc<PeerSettings> {
        Rc::clone(&self.frames.peer_settings)
    }

    /// The underlying stream.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.io
    }

    /// Records received bytes; returns whether the limit of control frames is exceeded.
    fn note(&mut self, bytes: &[u8]) -> bool {
        if self.frames.pass(bytes) {
            self.timer = None;
        }
        if self.frames.is_midway() && self.timer.is_none() {
            self.timer = Some(Box::pin(tokio::time::sleep(self.limit)));
        }
        if self.frames.controls > 0 && self.since.elapsed() >= Duration::from_secs(1) {
            (self.since, self.frames.controls) = (Instant::now(), 0);
        }
        self.frames.controls > self.most
    }
}

/// The settings that the peer of a connection has sent, and its acknowledgement of our settings.
pub struct PeerSettings {
    window: Cell<u32>,
    confirmed: Notify,
}

impl PeerSettings {
    /// The peer's `SETTINGS_INITIAL_WINDOW_SIZE`: the initial flow-control window of each stream towards the peer, in bytes.
    pub fn window(&self) -> u32 {
        self.window.get()
    }

    /// Waits until the peer has acknowledged our settings (RFC 9113 section 6.5.3).
    pub async fn confirmed(&self) {
        self.confirmed.notified().await;
    }
}

fn fail<T>(why: &'static str) -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)))
}

impl<S: AsyncRead + Unpin> AsyncRead for FrameGuard<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let guard = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut guard.io).poll_read(cx, buf);
        if read.is_ready() {
            return if guard.note(&buf.filled()[before..]) { fail("control frame limit exceeded") } else { read };
        }
        if guard.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready()) {
            return fail("timed out waiting for the rest of a frame or header block");
        }
        Poll::Pending
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FrameGuard<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let guard = self.get_mut();
        let written = Pin::new(&mut guard.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(size)) = written {
            guard.resets.find(&buf[..size], &guard.on_reset);
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;

/// A setting is an identifier of two bytes and a value of four (RFC 9113 section 6.5.1).
const SETTING: usize = 6;
const INITIAL_WINDOW_SIZE: u8 = 4;

/// The position of a connection in its sequence of frames (RFC 9113 section 4.1).
struct Frames {
    head: [u8; FRAME_HEADER],
    /// Bytes of the frame header that have arrived; 0 between two frames.
    received: usize,
    /// Bytes of the payload, or of the preface, still to come.
    left: usize,
    is_data: bool,
    is_settings: bool,
    /// The setting being received, and how many of its bytes have arrived.
    setting: ([u8; SETTING], usize),
    peer_settings: Rc<PeerSettings>,
    /// A header block has begun, and its last frame has not.
    is_block_open: bool,
    /// Number of control frames: SETTINGS, PING, PRIORITY, RST_STREAM, GOAWAY, unknown frames, and empty DATA frames without
    /// END_STREAM.
    controls: u64,
}

impl Frames {
    fn new() -> Self {
        Self {
            head: [0; FRAME_HEADER],
            received: 0,
            left: PREFACE,
            is_data: false,
            is_settings: false,
            setting: ([0; SETTING], 0),
            // The default until the peer sends its settings.
            peer_settings: Rc::new(PeerSettings { window: Cell::new(65_535), confirmed: Notify::new() }),
            is_block_open: false,
            controls: 0,
        }
    }

    /// Whether a header block, the preface or a frame is incomplete; the payload of a DATA frame does not count.
    const fn is_midway(&self) -> bool {
        self.is_block_open || self.received > 0 || (self.left > 0 && !self.is_data)
    }

    /// Advances over `bytes`; returns whether there was a point at which nothing was incomplete.
    fn pass(&mut self, mut bytes: &[u8]) -> bool {
        let mut is_whole = false;
        while !bytes.is_empty() {
            if self.left > 0 {
                let step = self.left.min(bytes.len());
                if self.is_settings {
                    self.note_settings(&bytes[..step]);
                }
                (self.left, bytes) = (self.left - step, &bytes[step..]);
            } else {
                let step = (FRAME_HEADER - self.received).min(bytes.len());
                self.head[self.received..self.received + step].copy_from_slice(&bytes[..step]);
                (self.received, bytes) = (self.received + step, &bytes[step..]);
                if self.received == FRAME_HEADER {
                    self.begin();
                }
            }
            is_whole |= !self.is_midway();
        }
        is_whole
    }

    fn note_settings(&mut self, payload: &[u8]) {
        for byte in payload {
            let (setting, received) = &mut self.setting;
            setting[*received] = *byte;
            *received = (*received + 1) % SETTING;
            if let ([0, INITIAL_WINDOW_SIZE, value @ ..], 0) = (*setting, *received) {
                self.peer_settings.window.set(u32::from_be_bytes(value));
            }
        }
    }

    fn begin(&mut self) {
        let [a, b, c, kind, flags, ..] = self.head;
        (self.received, self.left) = (0, u32::from_be_bytes([0, a, b, c]) as usize);
        (self.is_data, self.is_settings, self.setting.1) = (kind == DATA, kind == SETTINGS, 0);
        match kind {
            HEADERS | CONTINUATION => self.is_block_open = flags & END_HEADERS == 0,
            WINDOW_UPDATE => {}
            SETTINGS if flags & ACK != 0 => {
                self.peer_settings.confirmed.notify_one();
                self.controls += 1;
            }
            DATA if self.left > 0 || flags & END_STREAM != 0 => {}
            _ => self.controls += 1,
        }
    }
}

const RST_STREAM: u8 = 3;
const PROTOCOL_ERROR: [u8; 4] = [0, 0, 0, 1];

/// A stream that was reset with PROTOCOL_ERROR. Only `h2` itself uses this code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reset {
    pub stream: u32,
    /// A whole response was written before: `h2` answers a head that is too large with 431 before it resets the stream.
    pub is_answered: bool,
}

/// Finds the resets with PROTOCOL_ERROR among the frames that are written.
#[derive(Default)]
struct SentResets {
    head: [u8; FRAME_HEADER],
    received: usize,
    /// Bytes of the payload still to come.
    left: usize,
    /// The last four bytes of the payload of RST_STREAM: its reason.
    reason: [u8; 4],
    /// The last stream whose response ended with its head.
    answered: u32,
}

impl SentResets {
    /// Advances over `bytes`, and reports the resets with PROTOCOL_ERROR that end in them.
    fn find(&mut self, mut bytes: &[u8], report: impl Fn(Reset)) {
        while !bytes.is_empty() {
            if self.left == 0 {
                let step = (FRAME_HEADER - self.received).min(bytes.len());
                self.head[self.received..self.received + step].copy_from_slice(&bytes[..step]);
                (self.received, bytes) = (self.received + step, &bytes[step..]);
                if self.received == FRAME_HEADER {
                    let [a, b, c, kind, flags, ..] = self.head;
                    (self.received, self.left) = (0, u32::from_be_bytes([0, a, b, c]) as usize);
                    if kind == HEADERS && flags & END_STREAM != 0 {
                        self.answered = self.stream();
                    }
                }
                continue;
            }
            let step = self.left.min(bytes.len());
            if self.head[3] == RST_STREAM {
                for byte in &bytes[..step] {
                    self.reason.rotate_left(1);
                    self.reason[3] = *byte;
                }
                if step == self.left && self.reason == PROTOCOL_ERROR {
                    report(Reset { stream: self.stream(), is_answered: self.answered == self.stream() });
                }
            }
            (self.left, bytes) = (self.left - step, &bytes[step..]);
        }
    }

    fn stream(&self) -> u32 {
        let [.., a, b, c, d] = self.head;
        u32::from_be_bytes([a, b, c, d])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        frame.resize(FRAME_HEADER + usize::from(length), b'x');
        frame
    }

    fn begun() -> Frames {
        let mut frames = Frames::new();
        assert!(frames.is_midway() && !frames.pass(&[b'P'; PREFACE - 1]) && frames.is_midway());
        assert!(frames.pass(b"\n") && !frames.is_midway());
        frames
    }

    #[test]
    fn a_head_is_midway_until_its_last_frame_has_come() {
        let mut frames = begun();
        let block = [frame(HEADERS, 0, 20), frame(CONTINUATION, 0, 20), frame(CONTINUATION, END_HEADERS, 5)].concat();
        for (index, byte) in block.iter().enumerate() {
            let is_last = index + 1 == block.len();
            assert_eq!((frames.pass(&[*byte]), frames.is_midway()), (is_last, !is_last), "byte {index}");
        }
        assert!(frames.pass(&frame(HEADERS, END_HEADERS, 0)) && !frames.is_midway());
    }

    #[test]
    fn resets_of_malformed_streams_are_found_however_they_are_written() {
        let reset = |stream: u8, reason: u8| vec![0, 0, 4, RST_STREAM, 0, 0, 0, 0, stream, 0, 0, 0, reason];
        let refused = [frame(HEADERS, END_HEADERS | END_STREAM, 9), reset(1, 1)].concat();
        let frames = [frame(SETTINGS, 0, 0), frame(DATA, 0, 13), reset(3, 1), reset(5, 8), refused, reset(7, 1)].concat();
        for step in [1, 2, 3, 7, frames.len()] {
            let (mut resets, found) = (SentResets::default(), std::cell::RefCell::new(Vec::new()));
            frames.chunks(step).for_each(|part| resets.find(part, |reset| found.borrow_mut().push(reset)));
            let expected = [(3, false), (1, true), (7, false)].map(|(stream, is_answered)| Reset { stream, is_answered });
            assert_eq!(*found.borrow(), expected, "{step} bytes each");
        }
    }

    #[test]
    fn every_part_of_a_frame_is_timed_except_the_payload_of_data() {
        let mut frames = begun();
        let data = frame(DATA, 0, 20);
        assert!(!frames.pass(&data[..5]) && frames.is_midway(), "the header of a DATA frame is timed");
        assert!(frames.pass(&data[5..10]) && !frames.is_midway(), "the payload of a DATA frame is not timed");
        assert!(frames.pass(&data[10..]) && !frames.is_midway());
        for kind in [2, 3, 4, 6, 7, 8] {
            let frame = frame(kind, 0, 8);
            assert!(!frames.pass(&frame[..12]) && frames.is_midway());
            assert!(frames.pass(&frame[12..]) && !frames.is_midway(), "frame {kind}");
        }
        assert_eq!(frames.controls, 5, "PRIORITY, RST_STREAM, SETTINGS, PING and GOAWAY");
        frames.pass(&frame(DATA, END_STREAM, 0));
        assert_eq!(frames.controls, 5, "the end of a body is not a control frame");
        frames.pass(&frame(DATA, 0, 0));
        assert_eq!(frames.controls, 6, "an empty DATA frame counts as a control frame");
        assert_eq!(frames.peer_settings.window(), 65_535);
        let settings =
            [vec![0, 0, 18, SETTINGS, 0, 0, 0, 0, 0], vec![0, 3, 0, 0, 0, 4, 0, 4, 0, 16, 0, 0, 0, 6, 0, 4, 0, 4]].concat();
        for byte in settings {
            frames.pass(&[byte]);
        }
        assert_eq!(frames.peer_settings.window(), 1 << 20, "the second of three settings, byte by byte");
        // One read completes a frame and begins another.
        let two = [frame(4, 0, 6), frame(HEADERS, 0, 4)].concat();
        assert!(frames.pass(&two) && frames.is_midway());
    }
}
