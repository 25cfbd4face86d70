//! The services of the local region: which of their app servers are up, and which takes the next request.
//!
//! Promises: an upstream that fails its health checks gets no requests until it passes them again; the next request goes to
//! the less busy of two random healthy upstreams, or to the one that its key hashes to. Never: an upstream of another region, because that region's own proxy
//! reaches it.

mod balance;
mod budget;
mod health;
mod outlier;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::model::service::ServiceId;
use crate::transport::dial::{HttpVersion, Secured, Server};
use crate::transport::proxy_protocol;
use crate::transport::resolver::{self, Addresses};
use crate::transport::tls::{TlsError, UpstreamFiles};

use balance::Wheel;

pub use balance::{Balance, CircuitLimits, HashKey, Load, Outstanding, Selection};
pub use health::watch;
pub use outlier::Ejection;

/// The settings of a service.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Settings {
    pub name: Box<str>,
    pub upstreams: Vec<UpstreamSettings>,
    /// `None` for no active health checks: every upstream counts as up.
    pub check: Option<Check>,
    pub ejection: Ejection,
    pub circuit: CircuitLimits,
    pub balance: Balance,
    pub names: resolver::Settings,
}

/// The configuration of one app server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UpstreamSettings {
    /// `HOST:PORT`, or `unix:` and the path of a socket.
    pub authority: String,
    pub http_version: HttpVersion,
    pub tls: Option<UpstreamFiles>,
    /// The share of the requests, compared with the weights of the other upstreams.
    pub weight: u32,
    /// The beginning of every path on the app server, such as `/app`; empty for none.
    pub base: Box<str>,
    /// Begins each connection with a PROXY protocol header that names the client's address.
    pub proxy_protocol: Option<proxy_protocol::Version>,
}

impl UpstreamSettings {
    fn server(&self, addresses: &Addresses, tls: &mut TlsConfigs) -> Result<Server, TlsError> {
        let tls = self.tls.as_ref().map(|files| tls.load(files, self.http_version)).transpose()?;
        let addresses = resolver::named(&self.authority).map(|_| Arc::clone(addresses));
        Ok(Server { authority: self.authority.as_str().into(), tls, http_version: self.http_version, addresses })
    }
}

/// An active health check: `GET path` must get a status from 200 to 399 within the timeout.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Check {
    pub path: String,
    pub every: Duration,
    pub timeout: Duration,
    /// Consecutive passes after which an upstream is up.
    pub rise: u32,
    /// Consecutive failures after which an upstream is down.
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
    pub weight: u32,
    /// The beginning of every path on the app server.
    pub base: Box<str>,
    pub proxy_protocol: Option<proxy_protocol::Version>,
    state: Arc<State>,
}

/// The state of an app server, which survives reloads of the configuration.
struct State {
    up: AtomicBool,
    /// Smoothed response time of the health checks in microseconds; 0 before the first.
    answer_micros: AtomicU64,
    history: outlier::FailureHistory,
    addresses: Addresses,
}

impl Upstream {
    pub fn is_up(&self) -> bool {
        self.state.up.load(Ordering::Relaxed)
    }

    pub fn authority(&self) -> &str {
        &self.server.authority
    }

    /// Whether the upstream is ejected after consecutive failures.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.state.history.is_ejected(now)
    }

    fn share(&self, slow_start: Duration, now: Instant) -> f64 {
        self.state.history.share(slow_start, now)
    }

    fn set_up(&self, up: bool) {
        if !self.state.up.swap(up, Ordering::Relaxed) && up {
            self.state.history.note_return(Instant::now());
        }
    }
}

/// The services of the local region, by their numbers.
#[derive(Default)]
pub struct Services(Vec<Option<Arc<Service>>>);

impl Services {
    /// Services that `before` contains keep the state of their upstreams, and are the same if `is_same` says that nothing has
    /// changed.
    pub fn new(
        settings: &[(ServiceId, Settings)],
        before: Option<&Self>,
        is_same: impl Fn(&Service, &Settings) -> bool,
    ) -> Result<Self, TlsError> {
        let slots = settings.iter().map(|(id, _)| id.index() + 1).max().unwrap_or_default();
        let mut tls = TlsConfigs::default();
        for (id, settings) in settings {
            let kept = before.and_then(|before| before.get(*id)).filter(|known| is_same(known, settings));
            kept.into_iter().for_each(|service| tls.share(service));
        }
        let mut services = Self((0..slots).map(|_| None).collect());
        for (id, settings) in settings {
            let known = before.and_then(|before| before.get(*id));
            let service = match known.filter(|known| is_same(known, settings)) {
                Some(same) => Arc::clone(same),
                None => Arc::new(Service::build(*id, settings.clone(), known.map(|known| &**known), &mut tls)?),
            };
            services.0[id.index()] = Some(service);
        }
        Ok(services)
    }

    /// The service with this number, if the local region has it.
    pub fn get(&self, id: ServiceId) -> Option<&Arc<Service>> {
        self.0.get(id.index())?.as_ref()
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Service>> + Clone {
        self.0.iter().flatten()
    }

    pub fn upstreams(&self) -> impl Iterator<Item = &Arc<Upstream>> + Clone {
        self.all().flat_map(|service| service.all())
    }

    pub fn any_up(&self) -> bool {
        self.all().any(|service| service.any_up())
    }

    /// The shortest smoothed response time among the healthy upstreams; `None` before the first check.
    pub fn answer_time(&self) -> Option<Duration> {
        let up = self.upstreams().filter(|upstream| upstream.is_up());
        let micros = up.map(|upstream| upstream.state.answer_micros.load(Ordering::Relaxed));
        micros.filter(|micros| *micros > 0).min().map(Duration::from_micros)
    }
}

/// The TLS configurations of upstreams by their files. Upstreams with the same files share one, because connections to a server belong to
/// its configuration, and several services may be on one server.
#[derive(Default)]
struct TlsConfigs(Vec<(UpstreamFiles, HttpVersion, Secured)>);

impl TlsConfigs {
    fn load(&mut self, files: &UpstreamFiles, version: HttpVersion) -> Result<Secured, TlsError> {
        let is_same = |(known, of, _): &&(UpstreamFiles, HttpVersion, Secured)| known == files && *of == version;
        if let Some((_, _, secured)) = self.0.iter().find(is_same) {
            return Ok(secured.clone());
        }
        let secured = files.load(version != HttpVersion::Http1)?;
        self.0.push((files.clone(), version, secured.clone()));
        Ok(secured)
    }

    /// Adds the configurations of a service that is kept.
    fn share(&mut self, service: &Service) {
        for (settings, upstream) in service.settings.upstreams.iter().zip(&service.list) {
            if let (Some(files), Some(secured)) = (&settings.tls, &upstream.server.tls) {
                self.0.push((files.clone(), settings.http_version, secured.clone()));
            }
        }
    }
}

/// A set of app servers that are interchangeable.
pub struct Service {
    pub id: ServiceId,
    pub settings: Settings,
    list: Vec<Arc<Upstream>>,
    wheel: Wheel,
}

impl Service {
    /// Service that `before` contains keep their state. New ones count as up, so that a region that starts does not refuse
    /// every request until the first check.
    pub fn new(id: ServiceId, settings: Settings, before: Option<&Self>) -> Result<Self, TlsError> {
        Self::build(id, settings, before, &mut TlsConfigs::default())
    }

    fn build(id: ServiceId, settings: Settings, before: Option<&Self>, tls: &mut TlsConfigs) -> Result<Self, TlsError> {
        let known = |target: &UpstreamSettings| {
            before?
                .list
                .iter()
                .find(|upstream| *upstream.authority() == *target.authority && upstream.base == target.base)
                .map(|upstream| Arc::clone(&upstream.state))
        };
        let fresh = || {
            let history = outlier::FailureHistory::default();
            Arc::new(State {
                up: AtomicBool::new(true),
                answer_micros: AtomicU64::new(0),
                history,
                addresses: Addresses::default(),
            })
        };
        if settings.check.is_none() {
            // Without checks, an upstream that is down would stay down.
            let known = before.into_iter().flat_map(|before| &before.list);
            known.for_each(|upstream| upstream.state.up.store(true, Ordering::Relaxed));
        }
        let mut upstream = |target: &UpstreamSettings| {
            let state = known(target).unwrap_or_else(fresh);
            let (server, proxy_protocol) = (target.server(&state.addresses, tls)?, target.proxy_protocol);
            let (weight, base) = (target.weight, target.base.clone());
            Ok(Arc::new(Upstream { server, weight, base, proxy_protocol, state }))
        };
        let list: Vec<_> = settings.upstreams.iter().map(&mut upstream).collect::<Result<_, _>>()?;
        let wheel = Wheel::of(&list);
        Ok(Self { id, settings, list, wheel })
    }

    pub fn all(&self) -> &[Arc<Upstream>] {
        &self.list
    }

    /// Records whether the upstream served a request, and ejects the upstream after too many failures.
    pub fn note(&self, upstream: &Upstream, served: bool) {
        let (rules, now) = (&self.settings.ejection, Instant::now());
        if served {
            return upstream.state.history.note_success();
        }
        if !upstream.state.history.note_failure(rules, now) {
            return;
        }
        let ejected = self.list.iter().filter(|upstream| upstream.is_ejected(now)).count();
        if (ejected + 1) * 100 <= rules.most * self.list.len() {
            let period = upstream.state.history.eject(rules, now);
            tracing::warn!(
                upstream = upstream.authority(),
                seconds = period.as_secs(),
                "upstream ejected after consecutive failures"
            );
        }
    }

    pub fn any_up(&self) -> bool {
        self.list.iter().any(|upstream| upstream.is_up())
    }
}
