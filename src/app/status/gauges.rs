//! The gauges, which are set at each scrape.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use crate::decision::policy::Policy;
use crate::metrics::Metrics;
use crate::model::vitals::{Health, Vitals};
use crate::proxy::Snapshot;
use crate::services::Services;

use super::expiry::{Expiring, Kind};
use super::reports::Policies;

const NO_LABELS: [&str; 0] = [];

/// The state that the gauges show.
pub struct State<'a> {
    pub snapshot: &'a Snapshot,
    pub vitals: &'a Vitals,
    /// When the file of the user table was last changed.
    pub directory_changed: Option<SystemTime>,
    pub expiring: &'a [Expiring],
    pub policies: &'a Policies,
}

/// Sets the gauges of everything that a configuration describes.
pub fn set(metrics: &Metrics, state: &State<'_>) {
    let State { snapshot, vitals, policies, .. } = *state;
    set_files(metrics, state);
    set_upstreams(metrics, &snapshot.services);
    set_regions(metrics, snapshot.policy(), vitals);
    metrics.policy.reset();
    metrics.policy_since.reset();
    let all = policies.all();
    for (region, (policy, since)) in all.into_iter().filter(|(region, _)| snapshot.policy().regions.contains(*region)) {
        let region = snapshot.policy().region_name(region);
        metrics.policy.with_label_values(&[region, &policy.to_string()]).set(1);
        metrics.policy_since.with_label_values(&[region]).set(seconds(since));
    }
}

/// Seconds since the epoch.
fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn set_files(metrics: &Metrics, state: &State<'_>) {
    let judging = &state.snapshot.judging;
    metrics.directory_users.set(judging.directory.as_ref().map_or(0, |directory| directory.len() as i64));
    if let Some(changed) = state.directory_changed {
        metrics.directory_changed.with_label_values(&NO_LABELS).set(seconds(changed));
    }
    if let Some(geoip) = &judging.geoip {
        metrics.geoip_age.with_label_values(&NO_LABELS).set(geoip.age(SystemTime::now()).as_secs_f64());
    }
    metrics.certificate_expires.reset();
    metrics.geoip_expires.reset();
    metrics.transfer_expires.reset();
    metrics.directory_stale.reset();
    for expiring in state.expiring {
        let until = seconds(expiring.until);
        match expiring.kind {
            Kind::GeoIp => metrics.geoip_expires.with_label_values(&NO_LABELS).set(until),
            Kind::UserTable => metrics.directory_stale.with_label_values(&NO_LABELS).set(until),
            Kind::Certificate | Kind::AcmeCertificate => {
                metrics.certificate_expires.with_label_values(&[&expiring.name]).set(until);
            }
            Kind::Transfer => metrics.transfer_expires.with_label_values(&[&expiring.name]).set(until),
        }
    }
}

fn set_upstreams(metrics: &Metrics, services: &Arc<Services>) {
    metrics.upstream_up.reset();
    metrics.upstream_ejected.reset();
    metrics.upstream_draining.reset();
    metrics.upstream_connections_opened.reset();
    let now = std::time::Instant::now();
    for service in services.all() {
        for upstream in service.all().iter() {
            let labels = [&*service.settings.name, upstream.authority()];
            metrics.upstream_up.with_label_values(&labels).set(i64::from(upstream.is_up()));
            metrics.upstream_draining.with_label_values(&labels).set(i64::from(upstream.is_draining()));
            metrics.upstream_ejected.with_label_values(&labels).set(i64::from(upstream.is_ejected(now)));
            let opened = upstream.server.opened.load(Ordering::Relaxed);
            metrics.upstream_connections_opened.with_label_values(&[labels[0], &upstream.label]).inc_by(opened);
        }
    }
}

fn set_regions(metrics: &Metrics, policy: &Policy, vitals: &Vitals) {
    metrics.region_health.reset();
    metrics.region_round_trip.reset();
    for region in policy.regions.iter() {
        let (name, seen) = (policy.region_name(region), vitals.region(region));
        for state in Health::ALL {
            metrics.region_health.with_label_values(&[name, state.as_str()]).set(i64::from(seen.health == state));
        }
        if let Some(round_trip) = seen.round_trip {
            metrics.region_round_trip.with_label_values(&[name]).set(round_trip.as_secs_f64());
        }
    }
    metrics.service_up.reset();
    for (service, name) in policy.services() {
        for region in policy.regions_with(service).iter() {
            let is_down = vitals.without(service).contains(region) || vitals.region(region).health == Health::Down;
            let (is_up, region) = (!is_down, policy.region_name(region));
            metrics.service_up.with_label_values(&[region, name]).set(i64::from(is_up));
        }
    }
}
