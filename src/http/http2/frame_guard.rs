//! Frames over HTTP/2 that come in time and in moderation. Who drips a head holds a connection for as long as a head may take, as over
//! HTTP/1, and no longer; and who asks for signs of life without end, or changes its settings so, is at nothing else.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

/// A byte stream from a client, on which every head, and every frame that carries no body, is whole within `limit` of its first byte,
/// and which has no more than `most` control frames a second: what neither asks for something, nor carries it, nor makes room for it.
pub struct FrameGuard<S> {
    io: S,
    limit: Duration,
    most: u64,
    frames: Frames,
    /// The second in which control frames are counted.
    since: Instant,
    /// Runs while something is unfinished.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S> FrameGuard<S> {
    pub fn new(io: S, limit: Duration, most: u64) -> Self {
        Self { io, limit, most, frames: Frames::new(), since: Instant::now(), timer: None }
    }

    /// What the other end says of itself.
    pub fn told(&self) -> Rc<PeerSettings> {
        Rc::clone(&self.frames.told)
    }

    /// What is beneath it.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.io
    }

    /// Notes what has come; whether it was too much.
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

/// What the other end of a connection has said in its settings, and on ours.
pub struct PeerSettings {
    window: Cell<u32>,
    confirmed: Notify,
}

impl PeerSettings {
    /// What each stream may send it before it has been read (`SETTINGS_INITIAL_WINDOW_SIZE`), in bytes.
    pub fn window(&self) -> u32 {
        self.window.get()
    }

    /// Waits until it has confirmed settings of ours (RFC 9113 section 6.5.3).
    pub async fn confirmed(&self) {
        self.confirmed.notified().await;
    }
}

fn too_bad<T>(why: &'static str) -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)))
}

impl<S: AsyncRead + Unpin> AsyncRead for FrameGuard<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let timely = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut timely.io).poll_read(cx, buf);
        if read.is_ready() {
            return if timely.note(&buf.filled()[before..]) { too_bad("too many control frames") } else { read };
        }
        if timely.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready()) {
            return too_bad("a head did not come in time");
        }
        Poll::Pending
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FrameGuard<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

const PREFACE: usize = 24;
const FRAME_HEAD: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;

/// A setting is a name of two bytes and a value of four (RFC 9113 section 6.5.1).
const SETTING: usize = 6;
const INITIAL_WINDOW_SIZE: u8 = 4;

/// Where in the sequence of frames (RFC 9113 section 4.1) a connection is.
struct Frames {
    head: [u8; FRAME_HEAD],
    /// Bytes of the head that have come; none between two frames.
    come: usize,
    /// Bytes of the payload, or of the preface, that are to come.
    left: usize,
    is_data: bool,
    is_settings: bool,
    /// The setting that is coming, and how many of its bytes have.
    setting: ([u8; SETTING], usize),
    told: Rc<PeerSettings>,
    /// A head has begun whose last frame has not.
    is_block_open: bool,
    /// Frames that ask for nothing, carry nothing and make no room: SETTINGS, PING, PRIORITY, RST_STREAM, empty ones of a body that goes
    /// on, and what nobody knows.
    controls: u64,
}

impl Frames {
    fn new() -> Self {
        Self {
            head: [0; FRAME_HEAD],
            come: 0,
            left: PREFACE,
            is_data: false,
            is_settings: false,
            setting: ([0; SETTING], 0),
            // Until it says otherwise.
            told: Rc::new(PeerSettings { window: Cell::new(65_535), confirmed: Notify::new() }),
            is_block_open: false,
            controls: 0,
        }
    }

    /// Something has begun, other than a piece of a body, and is not whole.
    const fn is_midway(&self) -> bool {
        self.is_block_open || self.come > 0 || (self.left > 0 && !self.is_data)
    }

    /// Moves over bytes; whether something has become whole meanwhile.
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
                let step = (FRAME_HEAD - self.come).min(bytes.len());
                self.head[self.come..self.come + step].copy_from_slice(&bytes[..step]);
                (self.come, bytes) = (self.come + step, &bytes[step..]);
                if self.come == FRAME_HEAD {
                    self.begin();
                }
            }
            is_whole |= !self.is_midway();
        }
        is_whole
    }

    fn note_settings(&mut self, payload: &[u8]) {
        for byte in payload {
            let (setting, come) = &mut self.setting;
            setting[*come] = *byte;
            *come = (*come + 1) % SETTING;
            if let ([0, INITIAL_WINDOW_SIZE, value @ ..], 0) = (*setting, *come) {
                self.told.window.set(u32::from_be_bytes(value));
            }
        }
    }

    fn begin(&mut self) {
        let [a, b, c, kind, flags, ..] = self.head;
        (self.come, self.left) = (0, u32::from_be_bytes([0, a, b, c]) as usize);
        (self.is_data, self.is_settings, self.setting.1) = (kind == DATA, kind == SETTINGS, 0);
        match kind {
            HEADERS | CONTINUATION => self.is_block_open = flags & END_HEADERS == 0,
            WINDOW_UPDATE => {}
            SETTINGS if flags & ACK != 0 => {
                self.told.confirmed.notify_one();
                self.controls += 1;
            }
            DATA if self.left > 0 || flags & END_STREAM != 0 => {}
            _ => self.controls += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        frame.resize(FRAME_HEAD + usize::from(length), b'x');
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
    fn a_body_has_its_own_pace_and_other_frames_have_none() {
        let mut frames = begun();
        let data = frame(DATA, 0, 20);
        assert!(!frames.pass(&data[..5]) && frames.is_midway(), "the head of a frame of a body");
        assert!(frames.pass(&data[5..10]) && !frames.is_midway(), "the body itself");
        assert!(frames.pass(&data[10..]) && !frames.is_midway());
        for kind in [2, 3, 4, 6, 7, 8] {
            let frame = frame(kind, 0, 8);
            assert!(!frames.pass(&frame[..12]) && frames.is_midway());
            assert!(frames.pass(&frame[12..]) && !frames.is_midway(), "frame {kind}");
        }
        assert_eq!(frames.controls, 5, "PRIORITY, RST_STREAM, SETTINGS, PING and GOAWAY");
        frames.pass(&frame(DATA, END_STREAM, 0));
        assert_eq!(frames.controls, 5, "the end of a body is something");
        frames.pass(&frame(DATA, 0, 0));
        assert_eq!(frames.controls, 6, "a piece of nothing is nothing");
        assert_eq!(frames.told.window(), 65_535);
        let settings =
            [vec![0, 0, 18, SETTINGS, 0, 0, 0, 0, 0], vec![0, 3, 0, 0, 0, 4, 0, 4, 0, 16, 0, 0, 0, 6, 0, 4, 0, 4]].concat();
        for byte in settings {
            frames.pass(&[byte]);
        }
        assert_eq!(frames.told.window(), 1 << 20, "the second of three settings, byte by byte");
        // What has ended and what has begun in one piece.
        let two = [frame(4, 0, 6), frame(HEADERS, 0, 4)].concat();
        assert!(frames.pass(&two) && frames.is_midway());
    }
}
