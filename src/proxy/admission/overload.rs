//! The overload guard: as the process runs out of memory, file descriptors or time, it first refuses requests by the priority of
//! their routes, then everything new.
//!
//! Promises: the guard looks only at the process, so it recovers without a command once the usage falls; requests that were
//! admitted are served to their end. Never: a probe of a peer or the control plane is refused.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How important the requests of a route are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub enum Priority {
    Low,
    #[default]
    Normal,
    High,
}

/// How close the process is to the end of its resources.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub enum Pressure {
    #[default]
    None,
    /// Above the first threshold of a resource.
    Raised,
    /// Above the middle of the two thresholds.
    High,
    /// Above the second threshold.
    Full,
}

impl Pressure {
    const ALL: [Self; 4] = [Self::None, Self::Raised, Self::High, Self::Full];

    /// Whether requests of this priority are served.
    pub const fn admits(self, priority: Priority) -> bool {
        match self {
            Self::None => true,
            Self::Raised => !matches!(priority, Priority::Low),
            Self::High => matches!(priority, Priority::High),
            Self::Full => false,
        }
    }

    /// The effect, for logs.
    pub const fn effect(self) -> &'static str {
        match self {
            Self::None => "all requests are served",
            Self::Raised => "requests of low priority are refused",
            Self::High => "requests of low and normal priority are refused",
            Self::Full => "all new requests and connections are refused",
        }
    }
}

/// The two thresholds of a resource.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Thresholds {
    /// From here on, requests are refused by priority.
    pub shed: f64,
    /// From here on, nothing new is accepted.
    pub stop: f64,
}

impl Thresholds {
    fn pressure(self, used: f64) -> Pressure {
        if used >= self.stop {
            Pressure::Full
        } else if used >= f64::midpoint(self.shed, self.stop) {
            Pressure::High
        } else if used >= self.shed {
            Pressure::Raised
        } else {
            Pressure::None
        }
    }
}

/// The `overload` section.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Settings {
    /// Bytes of the heap; `None` for the memory of the machine. The limit of a cgroup applies besides.
    pub memory_limit: Option<u64>,
    /// Shares of the memory limit.
    pub memory: Thresholds,
    /// Shares of the limit on file descriptors.
    pub descriptors: Thresholds,
    /// Seconds by which the timers of a worker are late.
    pub lag: Thresholds,
}

impl Default for Settings {
    fn default() -> Self {
        // Requests that were admitted may still fill their buffers, for which a cgroup of 256 MiB must have room above `stop`
        // (`tests/clients/overload.py`).
        let shares = Thresholds { shed: 0.75, stop: 0.85 };
        Self { memory_limit: None, memory: shares, descriptors: shares, lag: Thresholds { shed: 0.25, stop: 2.0 } }
    }
}

/// The measured usage of each resource.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Usage {
    /// The share of the memory limit.
    pub memory: f64,
    /// The share of the limit on file descriptors.
    pub descriptors: f64,
    /// Seconds by which the timers of the slowest worker are late.
    pub lag: f64,
}

impl Usage {
    fn state(&self, settings: &Settings) -> State {
        let memory = settings.memory.pressure(self.memory);
        let descriptors = settings.descriptors.pressure(self.descriptors);
        let of = [("memory", memory), ("descriptors", descriptors), ("event_loop", settings.lag.pressure(self.lag))];
        let (resource, pressure) = of.into_iter().max_by_key(|(_, pressure)| *pressure).expect("there are three resources");
        // Clients that must connect again cost more time than those that stay.
        State { pressure, resource, saves: memory.max(descriptors) > Pressure::None }
    }
}

/// The time for which a lower usage must last before the pressure falls, so that it does not alternate at a threshold.
const HOLD: Duration = Duration::from_secs(1);

/// Turns measurements into a state, which rises at once and falls late.
#[derive(Default)]
pub struct Guard {
    state: State,
    /// When the usage last caused this state.
    seen_at: Option<Instant>,
}

/// The pressure on the process, and its cause.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct State {
    pub pressure: Pressure,
    /// Memory or descriptors are scarce: connections are closed after each response, and bodies get narrow windows.
    pub saves: bool,
    /// The resource with the greatest usage.
    pub resource: &'static str,
}

impl Guard {
    /// Takes a measurement at `now`; returns the state if it changes.
    pub fn observe(&mut self, usage: &Usage, settings: &Settings, now: Instant) -> Option<State> {
        let state = usage.state(settings);
        let is_held = self.seen_at.is_some_and(|seen| now.saturating_duration_since(seen) < HOLD);
        let is_lower = state.pressure < self.state.pressure || (self.state.saves && !state.saves);
        if is_lower && is_held {
            return None;
        }
        self.seen_at = Some(now);
        let before = std::mem::replace(&mut self.state, state);
        ((before.pressure, before.saves) != (state.pressure, state.saves)).then_some(state)
    }
}

/// The pressure on the process, and what its workers measure of it.
pub struct Overload {
    pressure: AtomicU8,
    saves: AtomicBool,
    /// Microseconds by which the timers of each worker are late.
    lags: Box<[AtomicU64]>,
}

impl Overload {
    pub fn of(worker_count: usize) -> Self {
        Self {
            pressure: AtomicU8::new(0),
            saves: AtomicBool::new(false),
            lags: (0..worker_count).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    pub fn pressure(&self) -> Pressure {
        Pressure::ALL[usize::from(self.pressure.load(Ordering::Relaxed))]
    }

    /// Whether memory or descriptors are scarce.
    pub fn saves(&self) -> bool {
        self.saves.load(Ordering::Relaxed)
    }

    pub fn set(&self, state: &State) {
        self.pressure.store(state.pressure as u8, Ordering::Relaxed);
        self.saves.store(state.saves, Ordering::Relaxed);
    }

    /// The greatest lag of a worker, in seconds.
    pub fn lag(&self) -> f64 {
        let most = self.lags.iter().map(|lag| lag.load(Ordering::Relaxed)).max();
        most.map_or(0.0, |micros| Duration::from_micros(micros).as_secs_f64())
    }

    /// Publishes the lag of a worker.
    pub fn set_lag(&self, worker: usize, lag: Duration) {
        self.lags[worker].store(u64::try_from(lag.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// The lag of one worker: the least of its last measurements, because one pause is no overload.
#[derive(Default)]
pub struct Lag {
    recent: [Duration; 4],
    next: usize,
}

impl Lag {
    /// Adds how late a timer was; returns the lag.
    pub fn add(&mut self, late: Duration) -> Duration {
        self.recent[self.next] = late;
        self.next = (self.next + 1) % self.recent.len();
        self.recent.into_iter().min().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(used: f64) -> Usage {
        Usage { memory: used, ..Usage::default() }
    }

    #[test]
    fn each_pressure_refuses_one_more_priority() {
        let settings = Settings::default();
        let admitted = |used| {
            let pressure = memory(used).state(&settings).pressure;
            [Priority::Low, Priority::Normal, Priority::High].map(|priority| pressure.admits(priority))
        };
        assert_eq!(admitted(0.74), [true, true, true]);
        assert_eq!(admitted(0.75), [false, true, true]);
        assert_eq!(admitted(0.81), [false, false, true]);
        assert_eq!(admitted(0.85), [false, false, false]);
    }

    #[test]
    fn the_scarcest_resource_decides() {
        let settings = Settings::default();
        let state = |memory, descriptors, lag| Usage { memory, descriptors, lag }.state(&settings);
        let of = |resource, pressure, saves| State { pressure, saves, resource };
        assert_eq!(state(0.5, 0.76, 0.1), of("descriptors", Pressure::Raised, true));
        assert_eq!(state(0.96, 0.76, 0.1), of("memory", Pressure::Full, true));
        assert_eq!(state(0.1, 0.1, 1.5), of("event_loop", Pressure::High, false));
    }

    #[test]
    fn the_pressure_rises_at_once_and_falls_after_a_second() {
        let (mut guard, settings, start) = (Guard::default(), Settings::default(), Instant::now());
        let mut observe = |millis, used| {
            guard.observe(&memory(used), &settings, start + Duration::from_millis(millis)).map(|state| state.pressure)
        };
        assert_eq!(observe(0, 0.1), None);
        assert_eq!(observe(50, 0.99), Some(Pressure::Full));
        assert_eq!([observe(100, 0.1), observe(900, 0.96), observe(1_800, 0.1)], [None; 3], "a new peak begins a new second");
        assert_eq!(observe(1_900, 0.76), Some(Pressure::Raised));
        assert_eq!([observe(2_000, 0.1), observe(2_900, 0.1)], [None, Some(Pressure::None)]);
    }

    #[test]
    fn one_late_timer_is_no_lag() {
        let mut lag = Lag::default();
        let late = Duration::from_secs(3);
        assert_eq!([late, Duration::ZERO, late, late, late].map(|late| lag.add(late)), [Duration::ZERO; 5]);
        assert_eq!(lag.add(late), late);
    }

    #[test]
    fn the_slowest_worker_is_the_lag_of_the_process() {
        let overload = Overload::of(3);
        overload.set_lag(1, Duration::from_millis(40));
        overload.set_lag(2, Duration::from_millis(500));
        assert!((overload.lag() - 0.5).abs() < 1e-9);
        overload.set(&State { pressure: Pressure::High, saves: true, resource: "memory" });
        assert_eq!((overload.pressure(), overload.saves()), (Pressure::High, true));
    }
}
