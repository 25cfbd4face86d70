//! Probes all regions at a fixed interval.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::Request;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::decision::permit::Permitted;
use crate::http::body::Body;
use crate::http::pool::{Gateway, PeerPool, SendOptions};
use crate::model::region::RegionId;
use crate::model::service::ServiceId;
use crate::model::vitals::Vitals;
use crate::peer::fields;
use crate::peer::probe::Report;
use crate::peer::rates::{self, RateCount};

use super::detector::{Change, Detector, Observation};
use super::{JITTER, Settings};

/// How the vitals of a region are obtained.
#[derive(Clone)]
pub enum ProbeTarget {
    /// The local region: the closure reports its state.
    Local(Arc<dyn Fn() -> Report + Send + Sync>),
    Peer(Gateway),
    /// The region has no gateway, so it cannot be probed.
    Silent,
}

/// The regions to probe, and how.
#[derive(Clone)]
pub struct ProbeTargets {
    pub settings: Settings,
    pub nearest_first: Vec<RegionId>,
    pub regions: Vec<(RegionId, ProbeTarget)>,
    /// The services of the policy, by name.
    pub services: Arc<HashMap<Box<str>, ServiceId>>,
}

/// The counters of global rate limits: those to send, and the use of those that arrive.
pub struct Counters {
    pub report: Box<dyn Fn() -> Vec<RateCount>>,
    pub learn: Box<Learn>,
}

type Learn = dyn Fn(&[RateCount]);

type Note = dyn Fn(Change, Option<&str>);

/// The callbacks of the prober.
pub struct Hooks {
    /// The counters of global rate limits, which the probes carry in both directions.
    pub counters: Counters,
    /// Whether an operator drains a region.
    pub drains: Box<dyn Fn(RegionId) -> bool>,
    /// Called for each change, with the reason why the last probe of the region failed, if it did.
    pub note: Box<Note>,
}

/// Probes that may wait for a response of one region at the same time. At the defaults, a probe times out after two intervals.
const MAX_IN_FLIGHT: usize = 8;

/// Probes in rounds, and publishes the vitals after each round and each change, until the sender of `targets` is dropped. A region that does not
/// respond delays neither the next round nor its own next probe, so that its failure is noticed early.
pub async fn run(mut targets: watch::Receiver<ProbeTargets>, publish: Arc<ArcSwap<Vitals>>, hooks: Hooks) {
    let pool = PeerPool::default();
    let current = targets.borrow_and_update().clone();
    let mut detector = Detector::new(current.nearest_first.clone(), current.settings.thresholds());
    let mut probes = Probes { current, in_flight: HashMap::new(), round: 0, newest: HashMap::new(), running: JoinSet::new() };
    let mut failures: HashMap<RegionId, String> = HashMap::new();
    loop {
        probes.start_round(&pool, &rates::write(&(hooks.counters.report)()).into());
        let spread = probes.current.settings.every.mul_f64(1.0 - JITTER + fastrand::f64() * 2.0 * JITTER);
        let end = Instant::now() + spread;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(end) => break,
                changed = targets.changed() => match changed {
                    Ok(()) => {
                        probes.current = targets.borrow_and_update().clone();
                        detector.retarget(probes.current.nearest_first.clone(), probes.current.settings.thresholds());
                        break;
                    }
                    Err(_) => return,
                },
                Some(finished) = probes.running.join_next() => {
                    let Some((region, result)) = probes.take(finished) else { continue };
                    let observation = match result {
                        Ok(observation) => {
                            failures.remove(&region);
                            observation
                        }
                        Err(reason) => {
                            failures.insert(region, reason);
                            Observation::Failed
                        }
                    };
                    if let Observation::Answered { report, .. } = &observation {
                        (hooks.counters.learn)(&report.rates);
                    }
                    let changes = detector.observe(region, observation);
                    if !changes.is_empty() {
                        publish.store(Arc::new(detector.vitals(&hooks.drains)));
                    }
                    let reason = failures.get(&region).map(String::as_str);
                    changes.into_iter().for_each(|change| (hooks.note)(change, reason));
                }
            }
        }
        detector.end_round();
        publish.store(Arc::new(detector.vitals(&hooks.drains)));
    }
}

/// The probes that wait for their responses.
struct Probes {
    current: ProbeTargets,
    in_flight: HashMap<RegionId, usize>,
    /// The number of the current round, and of the newest probe of each region that has a result.
    round: u64,
    newest: HashMap<RegionId, u64>,
    running: JoinSet<Probed>,
}

/// A region, the number of the probe, and its observation or why it failed, unless the region cannot be probed.
type Probed = (RegionId, u64, Option<Result<Observation, String>>);

impl Probes {
    /// Starts a probe of each region.
    fn start_round(&mut self, pool: &PeerPool, counts: &Arc<str>) {
        self.round += 1;
        let round = self.round;
        for (region, target) in self.current.regions.clone() {
            let in_flight = self.in_flight.entry(region).or_default();
            if *in_flight >= MAX_IN_FLIGHT {
                continue;
            }
            *in_flight += 1;
            let (limit, services) = (self.current.settings.timeout, Arc::clone(&self.current.services));
            let (pool, counts) = (pool.clone(), Arc::clone(counts));
            self.running.spawn_local(async move {
                let answered = |(round_trip, report): (Duration, Report)| {
                    let down = report.down_services.iter().filter_map(|name| services.get(name).copied()).collect();
                    Observation::Answered { round_trip, report, down }
                };
                let result = probe(&pool, region, target, &counts, limit).await;
                (region, round, result.map(|answer| answer.map(answered)))
            });
        }
    }

    /// The result of a probe. A region that a reload has removed has none.
    fn take(&mut self, finished: Result<Probed, tokio::task::JoinError>) -> Option<(RegionId, Result<Observation, String>)> {
        let (region, round, observation) = finished.ok()?;
        let in_flight = self.in_flight.entry(region).or_default();
        *in_flight = in_flight.saturating_sub(1);
        // A probe that times out is older than those that were answered meanwhile.
        let newest = self.newest.entry(region).or_default();
        if round < *newest {
            return None;
        }
        *newest = round;
        let is_target = self.current.regions.iter().any(|(target, _)| *target == region);
        Some((region, observation.filter(|_| is_target)?))
    }
}

/// The round trip and the report of a region, or why the probe failed; `None` if the region cannot be probed. The local region needs no probe, because its round trip is zero.
async fn probe(
    pool: &PeerPool,
    region: RegionId,
    target: ProbeTarget,
    counts: &str,
    limit: Duration,
) -> Option<Result<(Duration, Report), String>> {
    let gateway = match target {
        ProbeTarget::Local(report) => return Some(Ok((Duration::ZERO, report()))),
        ProbeTarget::Silent => return None,
        ProbeTarget::Peer(gateway) => gateway,
    };
    let authority = gateway.server.authority.to_string();
    let request = Request::get(format!("https://{authority}/")).header(fields::PROBE, "?1");
    let request = if counts.is_empty() { request } else { request.header(fields::RATES, counts) };
    let request = request.body(Body::empty()).ok()?;
    let started = Instant::now();
    let permitted = Permitted::without_user_data(region, Box::new(request));
    let outcome = tokio::time::timeout(limit, pool.send(&gateway, 1, permitted, &SendOptions::within(limit))).await;
    Some(match outcome {
        Ok(Ok((response, _))) if response.status() == http::StatusCode::NO_CONTENT => {
            Ok((started.elapsed(), Report::read(response.headers())))
        }
        Ok(Ok((response, _))) => {
            let status = response.status().as_u16();
            Err(format!(
                "{authority} responded with status {status}; `gateway` must be the address of a listener with `peers: true`"
            ))
        }
        Ok(Err(error)) => Err(error.cause.to_string()),
        Err(_) => Err(format!("no response within {}", humantime::format_duration(limit))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_ignored_if_a_newer_probe_has_one() {
        let region = RegionId::new(0).unwrap();
        let current = ProbeTargets {
            settings: Settings::default(),
            nearest_first: vec![region],
            regions: vec![(region, ProbeTarget::Silent)],
            services: Arc::default(),
        };
        let mut probes = Probes { current, in_flight: HashMap::new(), round: 0, newest: HashMap::new(), running: JoinSet::new() };
        let answered = || {
            let report = Report::read(&http::HeaderMap::new());
            Some(Ok(Observation::Answered { round_trip: Duration::ZERO, report, down: Vec::new() }))
        };
        assert!(probes.take(Ok((region, 2, answered()))).is_some());
        assert!(probes.take(Ok((region, 1, Some(Err(String::new()))))).is_none(), "it timed out after the next one was answered");
        assert!(probes.take(Ok((region, 3, Some(Err(String::new()))))).is_some());
    }
}
