//! Flow-control windows of bodies, and the buffer budget of one client's connection.
//!
//! A sender may send a full window before it learns that the receiver has stopped reading, and the next process buffers those
//! bytes. A wide window keeps a body fast over a long distance. Every body may have at least a narrow window, however many
//! bodies there are.

use std::cell::Cell;
use std::rc::Rc;

/// The flow-control window of one body, in bytes (RFC 9113 section 5.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Window(u32);

/// The largest window: 16 MiB allow about 68 MB/s at a round-trip time of 164 ms. `h2` sends WINDOW_UPDATE for a third of a
/// window at a time, so that each round trip carries two thirds of the window (`benches/distance.rs` measures this).
const MAX_WINDOW: u32 = 16 << 20;

/// The flow-control window of a connection: the maximum (RFC 9113 section 6.9.1), so that a body whose reader has stopped does
/// not block the other streams.
pub const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

impl Window {
    /// The initial window of HTTP/2 plus one byte: 64 KiB allow about 260 kB/s at a round-trip time of 164 ms.
    pub const NARROW: Self = Self(64 << 10);

    /// Clamps `bytes` to at least [`Self::NARROW`] and at most 16 MiB.
    pub fn of(bytes: usize) -> Self {
        Self(u32::try_from(bytes).unwrap_or(MAX_WINDOW).clamp(Self::NARROW.0, MAX_WINDOW))
    }

    pub const fn bytes(self) -> u32 {
        self.0
    }

    pub const fn is_narrow(self) -> bool {
        self.0 == Self::NARROW.0
    }

    /// The number of bodies with this window that fit in a connection's window.
    pub const fn most_bodies(self) -> usize {
        (CONNECTION_WINDOW / self.0) as usize
    }
}

/// The number of wide windows that fit in the budget of one connection.
const WIDE_WINDOWS: usize = 4;

/// The buffer budget that the requests on one connection share for wide windows. Narrow windows are not counted.
#[derive(Debug)]
pub struct Buffers {
    available: Cell<usize>,
    wide: Cell<Window>,
}

impl Buffers {
    /// A budget of `bytes` for all requests together.
    pub fn of(bytes: usize) -> Rc<Self> {
        Rc::new(Self { available: Cell::new(bytes), wide: Cell::new(Self::wide(bytes)) })
    }

    /// The wide window on a connection with a budget of `bytes`.
    pub fn wide(bytes: usize) -> Window {
        Window::of(bytes / WIDE_WINDOWS)
    }

    /// For a peer's connection: no limit here, because the peer enforces its own budget. Windows are narrow until
    /// [`Self::widen`].
    pub fn of_peer() -> Rc<Self> {
        Rc::new(Self { available: Cell::new(usize::MAX), wide: Cell::new(Window::NARROW) })
    }

    /// Sets the window of every later request.
    pub fn widen(&self, window: Window) {
        self.wide.set(window);
    }

    /// A window for one request: wide while the budget allows it, else narrow.
    pub fn share(self: &Rc<Self>) -> Share {
        let (wide, available) = (self.wide.get(), self.available.get());
        let bytes = wide.bytes() as usize;
        if wide.is_narrow() || available < bytes {
            return Share { window: Window::NARROW, of: None };
        }
        self.available.set(available - bytes);
        Share { window: wide, of: Some(Rc::clone(self)) }
    }
}

/// One request's window; its part of the budget is returned on drop.
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
            buffers.available.set(buffers.available.get() + self.window.bytes() as usize);
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
        assert!(buffers.share().window().is_narrow(), "a narrow window is not counted against the budget");
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
        assert_eq!(Window::of(1 << 40).bytes(), MAX_WINDOW);
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
