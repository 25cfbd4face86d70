//! Logs, counts and keeps the changes of regions that the prober reports.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::metrics::Metrics;
use crate::model::region::RegionId;
use crate::model::vitals::{Health, PolicyHash};
use crate::probes::{Change, Changed, Counters, Hooks};
use crate::proxy::Snapshot;
use crate::proxy::worker::Shared;

/// The policy that each region serves, and since when this process knows it.
#[derive(Clone, Default)]
pub struct Policies {
    known: Arc<Mutex<HashMap<RegionId, (PolicyHash, SystemTime)>>>,
    logged: Arc<Mutex<HashMap<RegionId, Instant>>>,
    /// Why the regions that do not respond to probes are down.
    failures: Arc<Mutex<HashMap<RegionId, String>>>,
}

/// The interval between two log lines about the policy of one region.
const POLICY_LOG_INTERVAL: Duration = Duration::from_secs(10);

impl Policies {
    pub fn all(&self) -> Vec<(RegionId, (PolicyHash, SystemTime))> {
        let mut all: Vec<_> = self.lock().iter().map(|(region, policy)| (*region, *policy)).collect();
        all.sort_by_key(|(region, _)| region.index());
        all
    }

    /// The policy of a region.
    pub fn of(&self, region: RegionId) -> Option<(PolicyHash, SystemTime)> {
        self.lock().get(&region).copied()
    }

    /// Why a region was found down, if it did not respond to probes.
    pub fn failure_of(&self, region: RegionId) -> Option<String> {
        self.failures().get(&region).cloned()
    }

    fn failures(&self) -> std::sync::MutexGuard<'_, HashMap<RegionId, String>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<RegionId, (PolicyHash, SystemTime)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn may_log(&self, region: RegionId, now: Instant) -> bool {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = logged.get(&region).is_none_or(|before| now - *before >= POLICY_LOG_INTERVAL);
        if is_due {
            logged.insert(region, now);
        }
        is_due
    }
}

/// The callbacks of the prober.
pub fn hooks(shared: &Arc<Shared>, metrics: &Arc<Metrics>, policies: &Policies) -> Hooks {
    let (counters, policies) = (counters(shared, metrics), policies.clone());
    let shared_of = shared;
    let (shared, metrics) = (Arc::clone(shared), Arc::clone(metrics));
    let note = move |Change { region, what }: Change, failure: Option<&str>| {
        let snapshot = shared.snapshot.load();
        match what {
            Changed::Health { to, is_reachable, .. } => {
                let failure = failure.filter(|_| to == Health::Down && !is_reachable).map(str::to_owned);
                note_health(&snapshot, &metrics, region, (to, is_reachable), failure.as_deref());
                match failure {
                    Some(failure) => policies.failures().insert(region, failure),
                    None => policies.failures().remove(&region),
                };
            }
            Changed::Policy(policy) => {
                policies.lock().insert(region, (policy, SystemTime::now()));
                // Several processes of a region may answer in turns while a policy is deployed.
                if policies.may_log(region, Instant::now()) {
                    note_policy(&snapshot, region, policy);
                }
            }
        }
    };
    let drained = Arc::clone(shared_of);
    Hooks { counters, drains: Box::new(move |region| drained.drained.contains(region)), note: Box::new(note) }
}

/// Logs and counts a change of a region's state.
fn note_health(
    snapshot: &Snapshot,
    metrics: &Metrics,
    region: RegionId,
    (to, is_reachable): (Health, bool),
    failure: Option<&str>,
) {
    let (is_local, region) = (region == snapshot.policy().local, snapshot.policy().region_name(region));
    metrics.region_changes.with_label_values(&[region, to.as_str()]).inc();
    match to {
        Health::Down if is_local && snapshot.services.any_draining() => {
            tracing::warn!(
                region,
                "region is down: none of its upstreams takes requests, and an operator drains some; see `domicile upstream undrain`"
            );
        }
        Health::Down if is_local => {
            tracing::warn!(region, "region is down: none of its upstreams is up; check the app servers of this region");
        }
        Health::Down if is_reachable => {
            tracing::warn!(region, "region is down: its proxy reports that none of its upstreams is up");
        }
        Health::Down => {
            let why = failure.unwrap_or("no response");
            tracing::warn!(
                region,
                why,
                "region is down: its gateway does not respond to probes; check its proxy and the network"
            );
        }
        Health::Draining => tracing::info!(region, "region is draining"),
        Health::Recovering => {
            tracing::info!(region, "region is recovering: it serves the requests that no other region may serve");
        }
        Health::Up | Health::Unmeasured => tracing::info!(region, "region is up"),
    }
}

/// Logs that a region serves another policy than before.
fn note_policy(snapshot: &Snapshot, region: RegionId, policy: PolicyHash) {
    let own = snapshot.policy();
    let name = own.region_name(region);
    if region != own.local && policy != own.hash {
        let (theirs, ours) = (policy.to_string(), own.hash.to_string());
        tracing::warn!(region = name, theirs, ours, "region serves another policy; deploy the same file in every region");
    } else {
        tracing::info!(region = name, policy = %policy, "region serves this policy");
    }
}

/// The counters of global rate limits.
fn counters(shared: &Arc<Shared>, metrics: &Arc<Metrics>) -> Counters {
    let (sender, receiver, metrics) = (Arc::clone(shared), Arc::clone(shared), Arc::clone(metrics));
    Counters {
        report: Box::new(move || sender.rates.report(Instant::now())),
        learn: Box::new(move |reported| metrics.rates_learned.inc_by(receiver.rates.learn(reported, Instant::now()))),
    }
}
