//! Probes all regions concurrently, in rounds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::Request;
use tokio::sync::watch;
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

use super::Settings;
use super::detector::{Detector, Observation};

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

/// Probes in rounds and publishes the vitals after each, until the sender of `targets` is dropped. `counters` are
/// those of global rate limits, which the probes carry in both directions.
pub async fn run(mut targets: watch::Receiver<ProbeTargets>, publish: Arc<ArcSwap<Vitals>>, counters: Counters) {
    let pool = PeerPool::default();
    let mut detector = Detector::new(targets.borrow().nearest_first.clone());
    loop {
        let current = targets.borrow_and_update().clone();
        detector.retarget(current.nearest_first.clone());
        let round = Instant::now();
        let mut probes = tokio::task::JoinSet::new();
        let counts: Arc<str> = rates::write(&(counters.report)()).into();
        for (region, target) in current.regions {
            let pool = pool.clone();
            let (limit, services) = (current.settings.timeout, Arc::clone(&current.services));
            let counts = Arc::clone(&counts);
            probes.spawn_local(async move {
                let answered = |(round_trip, report): (Duration, Report)| {
                    let down = report.down_services.iter().filter_map(|name| services.get(name).copied()).collect();
                    Observation::Answered { round_trip, report, down }
                };
                let result = probe(&pool, region, target, &counts, limit).await;
                (region, result.map(|answer| answer.map_or(Observation::Failed, answered)))
            });
        }
        while let Some(finished) = probes.join_next().await {
            if let Ok((region, Some(observation))) = finished {
                if let Observation::Answered { report, .. } = &observation {
                    (counters.learn)(&report.rates);
                }
                detector.observe(region, observation);
            }
        }
        publish.store(Arc::new(detector.vitals()));
        // Jitter, so that the proxies do not probe in step.
        let pause = current.settings.every.mul_f64(0.9 + fastrand::f64() * 0.2);
        tokio::select! {
            () = tokio::time::sleep_until(round + pause) => {}
            changed = targets.changed() => if changed.is_err() { return },
        }
    }
}

/// The round trip and the report of a region; `Some(None)` if the probe failed, and `None` if the region cannot be probed. The
/// local region needs no probe, because its round trip is zero.
async fn probe(
    pool: &PeerPool,
    region: RegionId,
    target: ProbeTarget,
    counts: &str,
    limit: Duration,
) -> Option<Option<(Duration, Report)>> {
    let gateway = match target {
        ProbeTarget::Local(report) => return Some(Some((Duration::ZERO, report()))),
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
            Some((started.elapsed(), Report::read(response.headers())))
        }
        Ok(Ok((response, _))) => {
            tracing::debug!(status = response.status().as_u16(), %authority, "unexpected response to a probe");
            None
        }
        Ok(Err(error)) => {
            tracing::debug!(cause = %error.cause, "probe failed");
            None
        }
        Err(_) => None,
    })
}
