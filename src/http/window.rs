//! How much of a body may be on its way between two processes, and what of it one client's connection may use.
//!
//! What a process has sent before it hears that nobody reads lies in the memory of the next one. So every body has a window: what may
//! be under way of it. A wide one keeps a body moving over an ocean, a narrow one is what every body may have, however many there are.

use std::cell::Cell;
use std::rc::Rc;

/// Bytes of one body that may be under way (RFC 9113 section 5.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Window(u32);

/// The widest: 16 MiB keep some 68 MB/s moving over 164 ms. `h2` gives room back a third of a window at a time, so that two thirds of it
/// are sent in each round trip (`benches/distance.rs` measures it).
const WIDEST: u32 = 16 << 20;

/// As much as all bodies on one connection may have under way, the most that there is (RFC 9113 section 6.9.1): a body whose reader has
/// stopped holds up no other.
pub const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

impl Window {
    /// What HTTP/2 begins with, and one byte: 64 KiB keep some 260 kB/s moving over 164 ms.
    pub const NARROW: Self = Self(64 << 10);

    /// At least narrow, at most the widest.
    pub fn of(bytes: usize) -> Self {
        Self(u32::try_from(bytes).unwrap_or(WIDEST).clamp(Self::NARROW.0, WIDEST))
    }

    pub const fn bytes(self) -> u32 {
        self.0
    }

    pub const fn is_narrow(self) -> bool {
        self.0 == Self::NARROW.0
    }

    /// How many bodies may use it on one connection.
    pub const fn most_bodies(self) -> usize {
        (CONNECTION_WINDOW / self.0) as usize
    }
}

/// How many wide windows fit into what one connection may hold.
const WIDE_WINDOWS: usize = 4;

/// What the requests on one connection may have under way beyond the narrow window that each has.
#[derive(Debug)]
pub struct Buffers {
    left: Cell<usize>,
    wide: Cell<Window>,
}

impl Buffers {
    /// As many bytes for all requests together.
    pub fn of(bytes: usize) -> Rc<Self> {
        Rc::new(Self { left: Cell::new(bytes), wide: Cell::new(Self::wide(bytes)) })
    }

    /// What is a wide window where a connection may hold so much.
    pub fn wide(bytes: usize) -> Window {
        Window::of(bytes / WIDE_WINDOWS)
    }

    /// As much for every request as whoever asks has room for: it is another's to count. Narrow until that is known.
    pub fn of_peer() -> Rc<Self> {
        Rc::new(Self { left: Cell::new(usize::MAX), wide: Cell::new(Window::NARROW) })
    }

    /// Has every request use this window from now on.
    pub fn widen(&self, window: Window) {
        self.wide.set(window);
    }

    /// A window for one request: a wide one while there is room for it.
    pub fn share(self: &Rc<Self>) -> Share {
        let (wide, left) = (self.wide.get(), self.left.get());
        let bytes = wide.bytes() as usize;
        if wide.is_narrow() || left < bytes {
            return Share { window: Window::NARROW, of: None };
        }
        self.left.set(left - bytes);
        Share { window: wide, of: Some(Rc::clone(self)) }
    }
}

/// One request's part of its connection's buffers, until it is dropped.
pub struct Share {
    window: Window,
    of: Option<Rc<Buffers>>,
}

impl Share {
    pub const fn window(&self) -> Window {
        self.window
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some(buffers) = &self.of {
            buffers.left.set(buffers.left.get() + self.window.bytes() as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_windows_are_given_while_they_fit_and_come_back() {
        let buffers = Buffers::of(4 << 20);
        let mut shares: Vec<_> = (0..6).map(|_| buffers.share()).collect();
        let windows: Vec<_> = shares.iter().map(|share| share.window().bytes() >> 10).collect();
        assert_eq!(windows, [1024, 1024, 1024, 1024, 64, 64]);
        shares.pop();
        assert!(buffers.share().window().is_narrow(), "a narrow one takes nothing, and gives nothing back");
        shares.remove(0);
        let again = buffers.share();
        assert_eq!(again.window(), Window::of(1 << 20));
        assert!(buffers.share().window().is_narrow());
    }

    #[test]
    fn a_window_is_never_less_than_narrow() {
        let buffers = Buffers::of(64 << 10);
        let shares: Vec<_> = (0..10).map(|_| buffers.share()).collect();
        assert!(shares.iter().all(|share| share.window().is_narrow()));
        assert_eq!(Window::of(1 << 40).bytes(), WIDEST);
    }

    #[test]
    fn a_peers_requests_use_what_it_has_room_for() {
        let buffers = Buffers::of_peer();
        assert!(buffers.share().window().is_narrow());
        buffers.widen(Window::of(4 << 20));
        let shares: Vec<_> = (0..1000).map(|_| buffers.share()).collect();
        assert!(shares.iter().all(|share| share.window() == Window::of(4 << 20)));
    }
}
