//! Asks every region in turn, round after round.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderMap, Request};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::http::body::Body;
use crate::http::pool::{PeerPool, SendOptions};
use crate::model::region::RegionId;
use crate::model::vitals::{PolicyHash, Vitals};
use crate::transport::dial::Server;

use super::detector::{Detector, Observation};
use super::{Settings, fields};

/// A region, and how its vitals are learned.
#[derive(Clone)]
pub enum Target {
    /// The local one, at distance zero: whoever holds its upstreams tells.
    Local(Arc<dyn Fn() -> Observation + Send + Sync>),
    Peer(Server),
    /// It has no gateway: nothing can be asked.
    Silent,
}

/// Whom to ask.
#[derive(Clone)]
pub struct Targets {
    pub settings: Settings,
    pub nearest_first: Vec<RegionId>,
    pub regions: Vec<(RegionId, Target)>,
}

/// Probes until the sender of targets is gone, publishing the vitals after every round.
pub async fn run(mut targets: watch::Receiver<Targets>, publish: Arc<ArcSwap<Vitals>>) {
    let pool = PeerPool::default();
    let mut detector = Detector::new(targets.borrow().nearest_first.clone());
    loop {
        let current = targets.borrow_and_update().clone();
        detector.retarget(current.nearest_first.clone());
        let round = Instant::now();
        let mut probes = tokio::task::JoinSet::new();
        for (region, target) in current.regions {
            let pool = pool.clone();
            let limit = current.settings.timeout;
            probes.spawn_local(async move { (region, probe(&pool, region, target, limit).await) });
        }
        while let Some(finished) = probes.join_next().await {
            if let Ok((region, Some(observation))) = finished {
                detector.observe(region, observation);
            }
        }
        publish.store(Arc::new(detector.vitals()));
        // A fleet must not probe in step.
        let pause = current.settings.every.mul_f64(0.9 + fastrand::f64() * 0.2);
        tokio::select! {
            () = tokio::time::sleep_until(round + pause) => {}
            changed = targets.changed() => if changed.is_err() { return },
        }
    }
}

async fn probe(pool: &PeerPool, region: RegionId, target: Target, limit: Duration) -> Option<Observation> {
    let gateway = match target {
        Target::Local(tell) => return Some(tell()),
        Target::Silent => return None,
        Target::Peer(gateway) => gateway,
    };
    let authority = gateway.authority.to_string();
    let request = Request::get(format!("https://{authority}/")).header(fields::PROBE, "?1").body(Body::empty()).ok()?;
    let asked = Instant::now();
    let answer = tokio::time::timeout(limit, pool.send(region, &gateway, 1, request, &SendOptions::within(limit))).await;
    match answer {
        Ok(Ok((answer, _))) if answer.status() == http::StatusCode::NO_CONTENT => {
            Some(observe(answer.headers(), asked.elapsed()))
        }
        Ok(Ok((answer, _))) => {
            tracing::debug!(status = answer.status().as_u16(), %authority, "a probe was answered oddly");
            Some(Observation::Failed)
        }
        Ok(Err(error)) => {
            tracing::debug!(cause = %error.cause, "a probe failed");
            Some(Observation::Failed)
        }
        Err(_) => Some(Observation::Failed),
    }
}

fn observe(headers: &HeaderMap, round_trip: Duration) -> Observation {
    let text = |name| headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    Observation::Answered {
        round_trip,
        draining: text(fields::DRAINING) == Some("?1"),
        serving: text(fields::SERVING) == Some("?1"),
        upstream_time: text(fields::UPSTREAM_MICROS).and_then(|micros| micros.parse().ok()).map(Duration::from_micros),
        policy: text(fields::POLICY).and_then(PolicyHash::parse),
    }
}
