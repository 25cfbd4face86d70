//! The services of the local region: which of their app servers are up, and which takes the next request.
//!
//! Promises: an upstream that fails its health checks gets no requests until it passes them again; the next request goes to
//! the less busy of two random healthy upstreams, or to the one that its key hashes to. Never: an upstream of another region, because that region's own proxy
//! reaches it.

mod balance;
mod budget;
mod health;
mod members;
mod outlier;
mod sticky;
mod upstream;
mod wheel;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arc_swap::Guard;
use tokio::task::JoinSet;

use crate::model::service::ServiceId;
use crate::session::SealError;
use crate::transport::resolver;
use crate::transport::tls::TlsError;

use members::Roster;
use upstream::TlsConfigs;

pub use balance::{Balance, CircuitLimits, HashKey, Load, Outstanding, Preference, Selection};
pub use health::watch;
pub use members::Members;
pub use outlier::Ejection;
pub use sticky::{Sticky, StickySettings};
pub use upstream::{Upstream, UpstreamSettings};

/// The settings of a service.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Settings {
    pub name: Box<str>,
    pub upstreams: Vec<UpstreamSettings>,
    /// `None` for no health checks: every upstream counts as up.
    pub check: Option<Check>,
    pub ejection: Ejection,
    pub circuit: CircuitLimits,
    pub balance: Balance,
    pub names: resolver::Settings,
}

impl Settings {
    /// The files of TLS and of sticky sessions.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let of_sessions = match &self.balance {
            Balance::Sticky(sticky) => Some(&sticky.keys),
            Balance::LeastBusy | Balance::Hash(_) => None,
        };
        self.upstreams.iter().filter_map(|upstream| upstream.tls.as_ref()).flat_map(|tls| tls.files()).chain(of_sessions)
    }
}

/// An active health check, which must succeed within the timeout.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Check {
    /// `GET` of this path must get a status from 200 to 399; `None`: the upstream must accept a connection, with TLS if it has it.
    pub path: Option<String>,
    pub every: Duration,
    pub timeout: Duration,
    /// Consecutive passes after which an upstream is up.
    pub rise: u32,
    /// Consecutive failures after which an upstream is down.
    pub fall: u32,
}

impl Default for Check {
    fn default() -> Self {
        Self { path: None, every: Duration::from_secs(2), timeout: Duration::from_secs(2), rise: 2, fall: 3 }
    }
}

/// Why a file that a service names cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Sticky(#[from] SealError),
    #[error(transparent)]
    Unresolved(#[from] UnresolvedName),
}

/// How long a start or a reload waits for the names of new app servers.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// A name under which no app server was found.
#[derive(Debug, thiserror::Error)]
#[error(
    "service `{service}`: no app server was found under `{name}`: {reason}; correct the name, or the name servers under `dns`"
)]
pub struct UnresolvedName {
    service: Box<str>,
    name: String,
    reason: String,
}

/// The services of the local region, by their numbers.
#[derive(Default)]
pub struct Services {
    slots: Vec<Option<Arc<Service>>>,
    sticky_cookies: Vec<Box<str>>,
}

impl Services {
    /// Services that `before` contains keep the state of their upstreams, and are the same if `is_same` says that nothing has
    /// changed.
    pub fn new(
        settings: &[(ServiceId, Settings)],
        before: Option<&Self>,
        is_same: impl Fn(&Service, &Settings) -> bool,
    ) -> Result<Self, ServiceError> {
        let slots = settings.iter().map(|(id, _)| id.index() + 1).max().unwrap_or_default();
        let mut tls = TlsConfigs::default();
        for (id, settings) in settings {
            let kept = before.and_then(|before| before.get(*id)).filter(|known| is_same(known, settings));
            kept.into_iter().for_each(|service| service.roster.share(&mut tls));
        }
        let mut services = Self { slots: (0..slots).map(|_| None).collect(), sticky_cookies: Vec::new() };
        for (id, settings) in settings {
            let known = before.and_then(|before| before.get(*id));
            let service = match known.filter(|known| is_same(known, settings)) {
                Some(same) => Arc::clone(same),
                None => Arc::new(Service::build(*id, settings.clone(), known.map(|known| &**known), &mut tls)?),
            };
            services.sticky_cookies.extend(service.sticky.as_ref().map(|sticky| sticky.settings.cookie.clone()));
            services.slots[id.index()] = Some(service);
        }
        Ok(services)
    }

    /// The service with this number, if the local region has it.
    pub fn get(&self, id: ServiceId) -> Option<&Arc<Service>> {
        self.slots.get(id.index())?.as_ref()
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Service>> + Clone {
        self.slots.iter().flatten()
    }

    pub fn upstreams(&self) -> impl Iterator<Item = Arc<Upstream>> {
        self.all().flat_map(|service| service.all().to_vec())
    }

    pub fn any_up(&self) -> bool {
        self.all().any(|service| service.any_up())
    }

    /// Whether an operator drains an upstream.
    pub fn any_draining(&self) -> bool {
        self.upstreams().any(|upstream| upstream.is_draining())
    }

    /// The cookies of sticky sessions, which no app server gets.
    pub fn sticky_cookies(&self) -> &[Box<str>] {
        &self.sticky_cookies
    }

    /// Looks up all names of which no address is known yet. The errors are the names that have none.
    pub async fn look_up_new(&self) -> Vec<UnresolvedName> {
        let mut lookups = JoinSet::new();
        for service in self.all() {
            for (entry, query) in service.roster.unresolved() {
                let service = Arc::clone(service);
                lookups.spawn(async move {
                    let found = resolver::look_up_once(&service.settings.names, &query, LOOKUP_TIMEOUT).await;
                    match found {
                        Ok(found) => {
                            service.roster.set_found(entry, found);
                            None
                        }
                        Err(reason) => {
                            Some(UnresolvedName { service: service.settings.name.clone(), name: query.label(), reason })
                        }
                    }
                });
            }
        }
        let mut failed = Vec::new();
        while let Some(unresolved) = lookups.join_next().await {
            failed.extend(unresolved.ok().flatten());
        }
        failed
    }

    /// The shortest smoothed response time among the healthy upstreams; `None` before the first check.
    pub fn answer_time(&self) -> Option<Duration> {
        let up = self.upstreams().filter(|upstream| upstream.is_up());
        let micros = up.map(|upstream| upstream.state.answer_micros.load(Ordering::Relaxed));
        micros.filter(|micros| *micros > 0).min().map(Duration::from_micros)
    }
}

/// A change of an upstream by an operator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UpstreamChange {
    /// Starts or ends a drain.
    Drain(bool),
    /// Sets the weight; 0 for the configured one.
    Weight(u32),
}

/// A set of app servers that are interchangeable.
pub struct Service {
    pub id: ServiceId,
    pub settings: Settings,
    /// The cookies of sticky sessions, if the service has them.
    pub sticky: Option<Sticky>,
    roster: Roster,
}

impl Service {
    /// App servers that `before` contains keep their state.
    pub fn new(id: ServiceId, settings: Settings, before: Option<&Self>) -> Result<Self, ServiceError> {
        Self::build(id, settings, before, &mut TlsConfigs::default())
    }

    fn build(id: ServiceId, settings: Settings, before: Option<&Self>, tls: &mut TlsConfigs) -> Result<Self, ServiceError> {
        if settings.check.is_none() {
            // Without checks, an upstream that is down would stay down.
            let known = before.map(|before| before.all());
            known.iter().flat_map(|known| known.iter()).for_each(|upstream| upstream.state.up.store(true, Ordering::Relaxed));
        }
        let roster = Roster::new(settings.upstreams.clone(), before.map(|before| &before.roster), tls)?;
        let sticky = match &settings.balance {
            Balance::Sticky(settings) => Some(Sticky::of(settings)?),
            Balance::LeastBusy | Balance::Hash(_) => None,
        };
        Ok(Self { id, settings, sticky, roster })
    }

    /// The upstream with this authority. The error says which upstreams there are.
    pub fn find(&self, authority: &str) -> Result<Arc<Upstream>, String> {
        let all = self.all();
        all.iter().find(|upstream| upstream.authority() == authority).cloned().ok_or_else(|| {
            let known: Vec<_> = all.iter().map(|upstream| upstream.authority()).collect();
            format!("the service `{}` has no upstream `{authority}`; it has {}", self.settings.name, known.join(", "))
        })
    }

    /// Changes an upstream at an operator's command, until the next command or the end of the process. The error says which upstreams there are.
    pub fn operate(&self, authority: &str, change: UpstreamChange) -> Result<(), String> {
        let upstream = self.find(authority)?;
        match change {
            UpstreamChange::Drain(drains) => upstream.state.draining.store(drains, Ordering::Relaxed),
            UpstreamChange::Weight(weight) => {
                upstream.state.weight.store(weight, Ordering::Relaxed);
                self.roster.reweigh();
            }
        }
        Ok(())
    }

    /// The app servers of the service at this moment.
    pub fn all(&self) -> Guard<Arc<Members>> {
        self.roster.members()
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
        let all = self.all();
        let ejected = all.iter().filter(|upstream| upstream.is_ejected(now)).count();
        if (ejected + 1) * 100 <= rules.most * all.len() {
            let period = upstream.state.history.eject(rules, now);
            tracing::warn!(
                service = &*self.settings.name,
                upstream = upstream.authority(),
                seconds = period.as_secs(),
                "upstream ejected after consecutive failures: it gets no requests for a while; check it"
            );
        }
    }

    pub fn any_up(&self) -> bool {
        self.all().iter().any(|upstream| upstream.takes_requests())
    }

    /// Whether the upstream with this fingerprint is up and not ejected.
    pub fn can_serve(&self, fingerprint: u64) -> bool {
        let (all, now) = (self.all(), Instant::now());
        all.iter().any(|upstream| upstream.fingerprint == fingerprint && upstream.is_up() && !upstream.is_ejected(now))
    }
}
