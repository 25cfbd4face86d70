//! Flow-control windows of bodies, and the buffer budget of one client's connection.
//!
//! A sender may send a full window before it learns that the receiver has stopped reading, and the next process buffers those
//! bytes. A wide window keeps a body fast over a long distance. Every body may have at least a narrow window, however many
//! bodies there are.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

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

/// The rate that one body should be able to reach over any distance: 1 Gbit/s.
const FAST: u64 = 125_000_000;

/// The buffer budget that the requests on one connection share for windows. Narrow windows are not counted.
#[derive(Debug)]
pub struct Buffers {
    available: Cell<usize>,
    windows: Cell<Windows>,
    /// The budget of the worker, and how much of it this connection's requests may help to use; `None` if they do not count.
    of_worker: Option<(Rc<WorkerBuffers>, Option<usize>)>,
}

/// The windows that the bodies on a connection can have, besides [`Window::NARROW`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Windows {
    /// For destinations at a distance at which a wide window would limit the rate to less than [`FAST`]; half of the budget.
    pub far: Window,
    /// A quarter of the budget.
    pub wide: Window,
}

impl Windows {
    /// The windows on a connection with a budget of `bytes`.
    pub fn of(bytes: usize) -> Self {
        Self { far: Window::of(bytes / 2), wide: Window::of(bytes / 4) }
    }

    /// The window of a body at this round-trip time, if the budget allows it.
    pub fn at(self, round_trip: Duration) -> Window {
        let per_round_trip = u64::from(self.wide.bytes()) * 2 / 3;
        let needed = u128::from(FAST) * round_trip.as_micros() / 1_000_000;
        if needed > per_round_trip.into() { self.far } else { self.wide }
    }

    pub fn contains(self, window: Window) -> bool {
        window.is_narrow() || window == self.far || window == self.wide
    }
}

/// The bytes of windows that the requests of one worker have together.
#[derive(Default, Debug)]
pub struct WorkerBuffers {
    used: Cell<usize>,
    is_narrow: Cell<bool>,
}

impl WorkerBuffers {
    /// Whether new bodies get narrow windows only, because memory is scarce.
    pub fn keep_narrow(&self, is_narrow: bool) {
        self.is_narrow.set(is_narrow);
    }
}

impl Buffers {
    /// A budget of `bytes` for all requests of a connection, while those of the worker have at most `most` bytes.
    pub fn of(bytes: usize, worker: &Rc<WorkerBuffers>, most: usize) -> Rc<Self> {
        let of_worker = Some((Rc::clone(worker), Some(most)));
        Rc::new(Self { available: Cell::new(bytes), windows: Cell::new(Windows::of(bytes)), of_worker })
    }

    /// All windows are narrow.
    pub fn none() -> Rc<Self> {
        Rc::new(Self { available: Cell::new(0), windows: Cell::new(Windows::of(0)), of_worker: None })
    }

    /// For a peer's connection: no limit here, because the peer enforces its own budget. Windows are narrow until
    /// [`Self::widen`], and while the memory of this process is scarce.
    pub fn of_peer(worker: &Rc<WorkerBuffers>) -> Rc<Self> {
        let of_worker = Some((Rc::clone(worker), None));
        Rc::new(Self { available: Cell::new(usize::MAX), windows: Cell::new(Windows::of(0)), of_worker })
    }

    /// Sets the window of every later request.
    pub fn widen(&self, window: Window) {
        self.windows.set(Windows { far: window, wide: window });
    }

    /// A window for one request to a destination at this round-trip time: the one that the distance needs, a smaller one if the
    /// budget does not allow it, and always at least a narrow one.
    pub fn share(self: &Rc<Self>, round_trip: Duration) -> Share {
        let windows = self.windows.get();
        let fitting =
            [windows.at(round_trip), windows.wide].into_iter().find(|window| !window.is_narrow() && self.allows(*window));
        let Some(window) = fitting else { return Share { window: Window::NARROW, of: None } };
        self.take(window.bytes() as usize);
        Share { window, of: Some(Rc::clone(self)) }
    }

    /// Windows for far destinations leave half of the worker's budget to others.
    fn allows(&self, window: Window) -> bool {
        let bytes = window.bytes() as usize;
        let is_far = window > self.windows.get().wide;
        bytes <= self.available.get()
            && self.of_worker.as_ref().is_none_or(|(worker, most)| {
                let fits = |most: usize| worker.used.get() + bytes <= if is_far { most / 2 } else { most };
                !worker.is_narrow.get() && most.is_none_or(fits)
            })
    }

    fn take(&self, bytes: usize) {
        self.available.set(self.available.get() - bytes);
        self.count(|used| used + bytes);
    }

    fn give_back(&self, bytes: usize) {
        self.available.set(self.available.get() + bytes);
        self.count(|used| used - bytes);
    }

    /// Changes the bytes that the worker's requests have together.
    fn count(&self, change: impl Fn(usize) -> usize) {
        if let Some((worker, Some(_))) = &self.of_worker {
            worker.used.set(change(worker.used.get()));
        }
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
            buffers.give_back(self.window.bytes() as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEAR: Duration = Duration::from_millis(1);
    const FAR: Duration = Duration::from_millis(164);
    const MIB: usize = 1 << 20;

    fn budget(bytes: usize) -> Rc<Buffers> {
        Buffers::of(bytes, &Rc::default(), usize::MAX)
    }

    fn kib(shares: &[Share]) -> Vec<u32> {
        shares.iter().map(|share| share.window().bytes() >> 10).collect()
    }

    #[test]
    fn wide_windows_are_given_while_they_fit_and_come_back() {
        let buffers = budget(4 * MIB);
        let mut shares: Vec<_> = (0..6).map(|_| buffers.share(NEAR)).collect();
        assert_eq!(kib(&shares), [1024, 1024, 1024, 1024, 64, 64]);
        shares.pop();
        assert!(buffers.share(NEAR).window().is_narrow(), "a narrow window is not counted against the budget");
        shares.remove(0);
        let again = buffers.share(NEAR);
        assert_eq!(again.window(), Window::of(MIB));
        assert!(buffers.share(NEAR).window().is_narrow());
    }

    #[test]
    fn a_far_body_gets_half_of_the_budget_and_leaves_wide_windows_for_the_next() {
        let buffers = budget(16 * MIB);
        let shares: Vec<_> = (0..5).map(|_| buffers.share(FAR)).collect();
        assert_eq!(kib(&shares), [8192, 8192, 64, 64, 64]);
        let buffers = budget(16 * MIB);
        let _near = buffers.share(NEAR);
        let shares: Vec<_> = (0..3).map(|_| buffers.share(FAR)).collect();
        assert_eq!(kib(&shares), [8192, 4096, 64]);
    }

    #[test]
    fn the_distance_decides_which_window_is_needed() {
        let windows = Windows::of(16 * MIB);
        let reach = |millis| windows.at(Duration::from_millis(millis));
        assert_eq!([reach(0), reach(22), reach(23), reach(164)], [windows.wide, windows.wide, windows.far, windows.far]);
    }

    #[test]
    fn the_windows_of_all_connections_together_stay_within_the_budget_of_the_worker() {
        let worker = Rc::<WorkerBuffers>::default();
        let connections: Vec<_> = (0..4).map(|_| Buffers::of(16 * MIB, &worker, 32 * MIB)).collect();
        let mut shares: Vec<_> = connections.iter().map(|buffers| buffers.share(FAR)).collect();
        assert_eq!(kib(&shares), [8192, 8192, 4096, 4096], "far windows leave half of the budget");
        shares.extend(connections.iter().map(|buffers| buffers.share(NEAR)));
        assert_eq!(kib(&shares)[4..], [4096, 4096, 64, 64]);
        drop(shares);
        assert_eq!(worker.used.get(), 0);
    }

    #[test]
    fn a_window_is_never_less_than_narrow() {
        let buffers = budget(64 << 10);
        let shares: Vec<_> = (0..10).map(|_| buffers.share(FAR)).collect();
        assert!(shares.iter().all(|share| share.window().is_narrow()));
        assert_eq!(Window::of(1 << 40).bytes(), MAX_WINDOW);
    }

    #[test]
    fn a_peers_requests_use_what_it_has_room_for() {
        let worker = Rc::<WorkerBuffers>::default();
        let buffers = Buffers::of_peer(&worker);
        assert!(buffers.share(FAR).window().is_narrow());
        buffers.widen(Window::of(4 * MIB));
        let shares: Vec<_> = (0..1000).map(|_| buffers.share(NEAR)).collect();
        assert!(shares.iter().all(|share| share.window() == Window::of(4 * MIB)));
        assert_eq!(worker.used.get(), 0, "the peer enforces its own budget");
        worker.keep_narrow(true);
        assert!(buffers.share(NEAR).window().is_narrow(), "the memory of this process is scarce");
        drop(shares);
        worker.keep_narrow(false);
        assert!(!buffers.share(NEAR).window().is_narrow());
    }
}
