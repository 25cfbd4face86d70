//! The state of the process, as `domicile status` shows it.

use std::borrow::Cow;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use crate::decision::policy::Policy;
use crate::model::region::RegionId;
use crate::model::vitals::Health;
use crate::proxy::worker::Shared;

use super::gauges::State;

/// The result of the last reload, or of the start.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub at: SystemTime,
    /// Whether the rest was applied, if there is a problem.
    pub is_partial: bool,
    /// `None` if everything was applied.
    pub problem: Option<String>,
}

/// The part of the report that is not in the state of the gauges.
pub struct Process<'a> {
    pub shared: &'a Shared,
    pub started: Instant,
    /// `Err` with the reason if the process is not ready.
    pub readiness: Result<(), String>,
    pub loaded: &'a Loaded,
}

/// The state of the process as JSON.
pub fn report(state: &State<'_>, process: &Process<'_>) -> String {
    let (snapshot, policy) = (state.snapshot, state.snapshot.policy());
    let now = SystemTime::now();
    let judging = &snapshot.judging;
    let regions: Vec<Value> = policy.regions.iter().map(|region| region_report(state, process.shared, region)).collect();
    let services: Vec<Value> = snapshot.services.all().map(|service| service_report(service)).collect();
    let files = state.expiring.iter().map(|expiring| {
        json!({
            "name": expiring.name,
            "kind": expiring.kind.to_string(),
            "valid_until": text(expiring.until),
            "days_left": expiring.until.duration_since(now).unwrap_or_default().as_secs() / 86_400,
            "note": expiring.note(now),
        })
    });
    let report = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "region": policy.region_name(policy.local),
        "policy": policy.hash.to_string(),
        "uptime_seconds": process.started.elapsed().as_secs(),
        "ready": process.readiness.is_ok(),
        "not_ready_because": process.readiness.as_ref().err(),
        "loaded": { "at": text(process.loaded.at), "problem": process.loaded.problem, "is_partial": process.loaded.is_partial && process.loaded.problem.is_some() },
        "connections": process.shared.connections.total(),
        "requests_in_flight": process.shared.requests.count(),
        "refuses": process.shared.overload.pressure().effect(),
        "regions": regions,
        "services": services,
        "directory": judging.directory.as_ref().map(|directory| json!({
            "users": directory.len(),
            "changed": state.directory_changed.map(text),
        })),
        "geoip": judging.geoip.as_ref().map(|geoip| json!({
            "built": text(geoip.built()),
            "age_days": geoip.age(now).as_secs() / 86_400,
        })),
        "files": files.collect::<Vec<_>>(),
    });
    format!("{report:#}\n")
}

fn region_report(state: &State<'_>, shared: &Shared, region: RegionId) -> Value {
    let policy: &Policy = state.snapshot.policy();
    let seen = state.vitals.region(region);
    let served = state.policies.of(region);
    let down: Vec<_> = policy
        .services()
        .filter(|(service, _)| policy.regions_with(*service).contains(region) && state.vitals.without(*service).contains(region))
        .map(|(_, name)| name)
        .collect();
    let is_local = region == policy.local;
    let reason: Option<Cow<'_, str>> = match seen.health {
        Health::Down if is_local && state.snapshot.services.any_draining() => {
            Some("none of its upstreams takes requests, and an operator drains some".into())
        }
        Health::Down if is_local || seen.is_reachable => Some("none of its upstreams is up".into()),
        Health::Down => Some(match state.policies.failure_of(region) {
            Some(failure) => format!("its gateway does not respond to probes: {failure}").into(),
            None => "its gateway does not respond to probes".into(),
        }),
        Health::Draining if shared.drained.contains(region) => Some("an operator drains it".into()),
        Health::Unmeasured if !is_local && !state.snapshot.gateways.contains_key(&region) => Some("it has no gateway".into()),
        Health::Unmeasured | Health::Up | Health::Recovering | Health::Draining => None,
    };
    json!({
        "name": policy.region_name(region),
        "is_local": is_local,
        "state": seen.health.as_str(),
        "reason": reason,
        "round_trip_ms": seen.round_trip.filter(|_| !is_local).map(millis),
        "services_down": down,
        "policy": served.map(|(policy, _)| policy.to_string()),
        "policy_since": served.map(|(_, since)| text(since)),
        "has_same_policy": served.map(|(served, _)| served == policy.hash),
    })
}

fn service_report(service: &crate::services::Service) -> Value {
    let now = Instant::now();
    let upstreams: Vec<_> = service
        .all()
        .iter()
        .map(|upstream| {
            let state = match (upstream.is_up(), upstream.is_ejected(now), upstream.is_draining()) {
                (false, _, _) => "down",
                (true, _, true) => "draining",
                (true, true, false) => "ejected",
                (true, false, false) => "up",
            };
            let reason = upstream.failure().filter(|_| state == "down");
            json!({ "upstream": upstream.authority(), "state": state, "weight": upstream.weight, "reason": reason.as_deref() })
        })
        .collect();
    json!({ "name": &*service.settings.name, "is_up": service.any_up(), "upstreams": upstreams })
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e4).round() / 10.0
}

/// A time, to the second (RFC 3339).
fn text(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let time = i64::try_from(seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    time.map(|time| time.to_string()).unwrap_or_default()
}
