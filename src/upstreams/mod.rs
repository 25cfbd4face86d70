//! The app servers of the local region: which are up, and which takes the next request.
//!
//! Promises: an upstream that fails its checks gets nothing until it passes them again; of two healthy ones drawn by
//! chance the less busy is taken. Never: an upstream of another region. Those are reached through their own proxy.

mod balance;
mod budget;
mod health;
mod outlier;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::transport::dial::{HttpVersion, Server};
use crate::transport::proxy_protocol;
use crate::transport::resolver::{self, Places};
use crate::transport::tls::{TlsError, UpstreamFiles};

pub use balance::{Busy, Circuit, Load, Taken};
pub use health::watch;
pub use outlier::Ejection;

/// The upstreams of the local region, and how they are checked.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Settings {
    pub targets: Vec<Target>,
    /// `None` for no active checks: every upstream counts as up.
    pub check: Option<Check>,
    pub ejection: Ejection,
    pub circuit: Circuit,
    pub names: resolver::Settings,
}

/// An app server as it is configured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// `HOST:PORT`.
    pub authority: String,
    pub http_version: HttpVersion,
    pub tls: Option<UpstreamFiles>,
    /// Tells it whose request a connection is for.
    pub proxy_protocol: Option<proxy_protocol::Version>,
}

impl Target {
    fn server(&self, places: &Places) -> Result<Server, TlsError> {
        let tls = self.tls.as_ref().map(|files| files.load(self.http_version != HttpVersion::Http1)).transpose()?;
        let places = resolver::named(&self.authority).map(|_| Arc::clone(places));
        Ok(Server { authority: self.authority.as_str().into(), tls, http_version: self.http_version, places })
    }
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
    pub server: Server,
    pub proxy_protocol: Option<proxy_protocol::Version>,
    state: Arc<State>,
}

/// What is known of an app server, from one configuration to the next.
struct State {
    up: AtomicBool,
    /// Smoothed answer time of the checks in microseconds; 0 before the first.
    answer_micros: AtomicU64,
    record: outlier::Record,
    places: Places,
}

impl Upstream {
    pub fn is_up(&self) -> bool {
        self.state.up.load(Ordering::Relaxed)
    }

    pub fn authority(&self) -> &str {
        &self.server.authority
    }

    /// Whether it has failed too often and is left alone for a while.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.state.record.is_ejected(now)
    }

    fn share(&self, slow_start: Duration, now: Instant) -> f64 {
        self.state.record.share(slow_start, now)
    }

    fn set_up(&self, up: bool) {
        if !self.state.up.swap(up, Ordering::Relaxed) && up {
            self.state.record.note_return(Instant::now());
        }
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
    pub fn new(settings: Settings, before: Option<&Self>) -> Result<Self, TlsError> {
        let known = |target: &Target| {
            before?
                .list
                .iter()
                .find(|upstream| *upstream.authority() == *target.authority)
                .map(|upstream| Arc::clone(&upstream.state))
        };
        let fresh = || {
            let record = outlier::Record::default();
            Arc::new(State { up: AtomicBool::new(true), answer_micros: AtomicU64::new(0), record, places: Places::default() })
        };
        if settings.check.is_none() {
            // Nobody would ever bring them back.
            let known = before.into_iter().flat_map(|before| &before.list);
            known.for_each(|upstream| upstream.state.up.store(true, Ordering::Relaxed));
        }
        let upstream = |target: &Target| {
            let state = known(target).unwrap_or_else(fresh);
            let (server, proxy_protocol) = (target.server(&state.places)?, target.proxy_protocol);
            Ok(Arc::new(Upstream { server, proxy_protocol, state }))
        };
        let list = settings.targets.iter().map(upstream).collect::<Result<_, _>>()?;
        Ok(Self { settings, list })
    }

    /// For judging alone: nothing is sent.
    pub fn none() -> Self {
        Self { settings: Settings::default(), list: Vec::new() }
    }

    pub fn all(&self) -> &[Arc<Upstream>] {
        &self.list
    }

    /// Notes how a request ended: it was served, or the upstream failed it.
    pub fn note(&self, upstream: &Upstream, served: bool) {
        let (rules, now) = (&self.settings.ejection, Instant::now());
        if served {
            return upstream.state.record.note_success();
        }
        if !upstream.state.record.note_failure(rules, now) {
            return;
        }
        let ejected = self.list.iter().filter(|upstream| upstream.is_ejected(now)).count();
        if (ejected + 1) * 100 <= rules.most * self.list.len() {
            let period = upstream.state.record.eject(rules, now);
            tracing::warn!(
                upstream = upstream.authority(),
                seconds = period.as_secs(),
                "an upstream failed too often and is left alone"
            );
        }
    }

    pub fn any_up(&self) -> bool {
        self.list.iter().any(|upstream| upstream.is_up())
    }

    /// How long a healthy upstream takes to answer, the best of them; `None` before it is known.
    pub fn answer_time(&self) -> Option<Duration> {
        let micros = self
            .list
            .iter()
            .filter(|upstream| upstream.is_up())
            .map(|upstream| upstream.state.answer_micros.load(Ordering::Relaxed));
        micros.filter(|micros| *micros > 0).min().map(Duration::from_micros)
    }
}
