//! The app servers of the local region: which are up, and which takes the next request.
//!
//! Promises: an upstream that fails its checks gets nothing until it passes them again; of two healthy ones drawn by
//! chance the less busy is taken. Never: an upstream of another region. Those are reached through their own proxy.

mod balance;
mod health;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

pub use balance::{Busy, Load};
pub use health::watch;

/// The upstreams of the local region, and how they are checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// `HOST:PORT` each.
    pub authorities: Vec<String>,
    /// `None` for no active checks: every upstream counts as up.
    pub check: Option<Check>,
}

/// An active health check: `GET path`, answered with a status from 200 to 399 in time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Check {
    pub path: String,
    pub every: Duration,
    pub timeout: Duration,
    /// Passes in a row that bring an upstream back.
    pub rise: u32,
    /// Failures in a row that take it out.
    pub fall: u32,
}

impl Check {
    pub fn at(path: &str) -> Self {
        Self { path: path.into(), every: Duration::from_secs(5), timeout: Duration::from_secs(2), rise: 2, fall: 3 }
    }
}

/// One app server.
pub struct Upstream {
    pub authority: Box<str>,
    up: AtomicBool,
    /// Smoothed answer time of the checks in microseconds; 0 before the first.
    answer_micros: AtomicU64,
}

impl Upstream {
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }
}

/// All app servers of the region.
pub struct Upstreams {
    pub settings: Settings,
    list: Vec<Arc<Upstream>>,
}

impl Upstreams {
    /// Upstreams that were there before keep their health. New ones count as up: a region that starts must not refuse
    /// everything until the first check.
    pub fn new(settings: Settings, before: Option<&Self>) -> Self {
        let known = |authority: &str| before?.list.iter().find(|upstream| *upstream.authority == *authority).cloned();
        let fresh = |authority: &str| {
            Arc::new(Upstream { authority: authority.into(), up: AtomicBool::new(true), answer_micros: AtomicU64::new(0) })
        };
        if settings.check.is_none() {
            // Nobody would ever bring them back.
            before.into_iter().flat_map(|before| &before.list).for_each(|upstream| upstream.up.store(true, Ordering::Relaxed));
        }
        let list = settings.authorities.iter().map(|authority| known(authority).unwrap_or_else(|| fresh(authority))).collect();
        Self { settings, list }
    }

    pub fn all(&self) -> &[Arc<Upstream>] {
        &self.list
    }

    pub fn any_up(&self) -> bool {
        self.list.iter().any(|upstream| upstream.is_up())
    }

    /// How long a healthy upstream takes to answer, the best of them; `None` before it is known.
    pub fn answer_time(&self) -> Option<Duration> {
        let micros =
            self.list.iter().filter(|upstream| upstream.is_up()).map(|upstream| upstream.answer_micros.load(Ordering::Relaxed));
        micros.filter(|micros| *micros > 0).min().map(Duration::from_micros)
    }
}
