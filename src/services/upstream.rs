//! One app server: how it is reached, and its state, which survives reloads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use aws_lc_rs::digest::{SHA256, digest};

use crate::transport::dial::{HttpVersion, Secured, Server};
use crate::transport::proxy_protocol;
use crate::transport::resolver::{self, Addresses, Endpoint, Query};
use crate::transport::tls::{TlsError, UpstreamFiles};

use super::outlier::FailureHistory;

/// The configuration of one app server, or of all app servers that a DNS name leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UpstreamSettings {
    /// `HOST:PORT`, or `unix:` and the path of a socket. Unused with a `query`.
    pub authority: String,
    /// Makes every address that it finds an upstream of its own.
    pub query: Option<Query>,
    pub http_version: HttpVersion,
    pub tls: Option<UpstreamFiles>,
    /// The share of the requests, compared with the weights of the other upstreams.
    pub weight: u32,
    /// The beginning of every path on the app server, such as `/app`; empty for none.
    pub base: Box<str>,
    /// Begins each connection with a PROXY protocol header that names the client's address.
    pub proxy_protocol: Option<proxy_protocol::Version>,
}

/// One app server.
pub struct Upstream {
    pub server: Server,
    /// The authority, or the DNS name of a discovered upstream, whose addresses come and go: for metrics.
    pub label: Box<str>,
    /// The value of `Host` in health checks.
    pub host: Box<str>,
    pub weight: u32,
    /// The beginning of every path on the app server.
    pub base: Box<str>,
    pub proxy_protocol: Option<proxy_protocol::Version>,
    /// A query has found its address.
    pub(super) is_discovered: bool,
    /// Identifies the app server in sealed cookies, in every process and version.
    pub fingerprint: u64,
    pub(super) state: Arc<State>,
}

/// The state of an app server, which survives reloads of the configuration.
pub(super) struct State {
    pub up: AtomicBool,
    /// An operator drains it: it gets only requests of sessions that stick to it.
    pub draining: AtomicBool,
    /// The weight that an operator has set; 0 for the configured one.
    pub weight: AtomicU32,
    /// Smoothed response time of the health checks in microseconds; 0 before the first.
    pub answer_micros: AtomicU64,
    /// Why the last health check failed, if it did.
    pub failure: ArcSwapOption<String>,
    pub history: FailureHistory,
    pub opened: Arc<AtomicU64>,
    pub addresses: Addresses,
}

impl Default for State {
    /// New upstreams count as up, so that a region that starts does not refuse every request until the first check.
    fn default() -> Self {
        Self {
            up: AtomicBool::new(true),
            draining: AtomicBool::new(false),
            weight: AtomicU32::new(0),
            answer_micros: AtomicU64::new(0),
            failure: ArcSwapOption::empty(),
            history: FailureHistory::default(),
            opened: Arc::default(),
            addresses: Addresses::default(),
        }
    }
}

impl Upstream {
    /// The app server of an entry without a query. `secured` is the TLS configuration of the entry.
    pub(super) fn fixed(settings: &UpstreamSettings, secured: Option<Secured>, state: Arc<State>) -> Self {
        let addresses = resolver::named(&settings.authority).map(|_| Arc::clone(&state.addresses));
        let authority = settings.authority.as_str();
        let server = Server {
            authority: authority.into(),
            tls: secured,
            http_version: settings.http_version,
            addresses,
            opened: Arc::clone(&state.opened),
        };
        Self { label: authority.into(), host: authority.into(), ..Self::of(settings, server, state, 1) }
    }

    /// The app server at an endpoint that the query of an entry has found. Its certificate must be valid for the name that leads to
    /// it, unless the configuration sets another.
    pub(super) fn discovered(
        settings: &UpstreamSettings,
        secured: Option<Secured>,
        endpoint: &Endpoint,
        state: Arc<State>,
    ) -> Self {
        let tls = secured.map(|secured| Secured { name: secured.name.or_else(|| Some((*endpoint.host).into())), ..secured });
        let authority = Self::authority_of(endpoint, tls.as_ref()).into();
        let addresses = Some(Arc::new(ArcSwap::from_pointee(vec![endpoint.address])));
        let server = Server { authority, tls, http_version: settings.http_version, addresses, opened: Arc::clone(&state.opened) };
        let label = settings.query.as_ref().map(Query::label).unwrap_or_default().into();
        let host = format!("{}:{}", endpoint.host, endpoint.address.port()).into();
        Self { label, host, is_discovered: true, ..Self::of(settings, server, state, endpoint.weight.into()) }
    }

    /// The authority of a discovered app server. Behind one address may be several names, whose connections are not exchanged.
    pub(super) fn authority_of(endpoint: &Endpoint, secured: Option<&Secured>) -> String {
        if secured.is_some() { format!("{}@{}", endpoint.host, endpoint.address) } else { endpoint.address.to_string() }
    }

    fn of(settings: &UpstreamSettings, server: Server, state: Arc<State>, weight: u32) -> Self {
        let (base, proxy_protocol) = (settings.base.clone(), settings.proxy_protocol);
        let weight = match state.weight.load(Ordering::Relaxed) {
            0 => settings.weight * weight,
            set => set,
        };
        let fingerprint = fingerprint(&server.authority, &base);
        Self { server, label: "".into(), host: "".into(), weight, base, proxy_protocol, fingerprint, is_discovered: false, state }
    }

    pub fn is_up(&self) -> bool {
        self.state.up.load(Ordering::Relaxed)
    }

    /// Why the last health check failed, if it did.
    pub fn failure(&self) -> Option<Arc<String>> {
        self.state.failure.load_full()
    }

    pub fn is_draining(&self) -> bool {
        self.state.draining.load(Ordering::Relaxed)
    }

    /// Whether the upstream takes requests of new sessions.
    pub fn takes_requests(&self) -> bool {
        self.is_up() && !self.is_draining()
    }

    pub fn authority(&self) -> &str {
        &self.server.authority
    }

    /// Whether the upstream is ejected after consecutive failures.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.state.history.is_ejected(now)
    }

    pub(super) fn share(&self, slow_start: Duration, now: Instant) -> f64 {
        self.state.history.share(slow_start, now)
    }

    pub(super) fn set_up(&self, up: bool) {
        if !self.state.up.swap(up, Ordering::Relaxed) && up {
            self.state.history.note_return(Instant::now());
        }
    }
}

/// The first bytes of a hash that stays the same.
fn fingerprint(authority: &str, base: &str) -> u64 {
    let digest = digest(&SHA256, format!("{authority} {base}").as_bytes());
    digest.as_ref().first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

/// The TLS configurations of upstreams by their files. Upstreams with the same files share one, because connections to a server belong to
/// its configuration, and several services may be on one server.
#[derive(Default)]
pub(super) struct TlsConfigs(Vec<(UpstreamFiles, HttpVersion, Secured)>);

impl TlsConfigs {
    pub fn load(&mut self, settings: &UpstreamSettings) -> Result<Option<Secured>, TlsError> {
        let Some(files) = &settings.tls else { return Ok(None) };
        let version = settings.http_version;
        let is_same = |(known, of, _): &&(UpstreamFiles, HttpVersion, Secured)| known == files && *of == version;
        if let Some((_, _, secured)) = self.0.iter().find(is_same) {
            return Ok(Some(secured.clone()));
        }
        let secured = files.load(version != HttpVersion::Http1)?;
        self.0.push((files.clone(), version, secured.clone()));
        Ok(Some(secured))
    }

    /// Adds the configuration of an entry of a service that is kept.
    pub fn share(&mut self, settings: &UpstreamSettings, secured: Option<&Secured>) {
        if let (Some(files), Some(secured)) = (&settings.tls, secured) {
            self.0.push((files.clone(), settings.http_version, secured.clone()));
        }
    }
}
