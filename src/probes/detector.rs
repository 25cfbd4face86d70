//! Turns observations into vitals: smoothing, thresholds, and an order of regions with hysteresis. Uses no socket and no clock.

use std::collections::HashMap;
use std::time::Duration;

use crate::model::region::RegionId;
use crate::model::service::ServiceId;
use crate::model::vitals::{Health, PolicyHash, RegionVitals, Vitals};
use crate::peer::probe::Report;

/// The result of one probe.
#[derive(Clone, PartialEq, Debug)]
pub enum Observation {
    /// `down` are the services of the report that the policy knows.
    Answered {
        round_trip: Duration,
        report: Report,
        down: Vec<ServiceId>,
    },
    Failed,
}

/// Weight of a new round trip in the moving average: about the last 20 count, which is ten seconds at the default interval.
const WEIGHT: f64 = 0.1;

/// Round trips after which a region counts as measured.
const MIN_SAMPLES: u32 = 3;

/// A region moves ahead of its neighbour only if it is cheaper by both margins for this many consecutive rounds.
const MARGIN: f64 = 0.15;
const MARGIN_TIME: Duration = Duration::from_millis(10);
const ROUNDS: u32 = 10;

/// The numbers of consecutive results that change the state of a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Thresholds {
    /// Failures after which a region is down.
    pub fall: u32,
    /// Successes after which a region that was down takes requests again.
    pub rise: u32,
    /// Further successes after which it is up. A failure before makes it down at once. Doubled for a region that falls again soon.
    pub settle: u32,
}

/// A region that was up for this many times `settle` falls as if for the first time.
const STEADY: u32 = 10;

/// The most that `settle` is multiplied with: from 10 s at the defaults to 5 minutes.
const MAX_PATIENCE: u32 = 32;

/// A change of what is known about a region, for the log and the metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    pub region: RegionId,
    pub what: Changed,
}

/// The kind of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Changed {
    Health {
        from: Health,
        to: Health,
        is_reachable: bool,
    },
    /// The region serves this policy now.
    Policy(PolicyHash),
}

/// The measurements of every region, and the order that follows from them.
pub struct Detector {
    thresholds: Thresholds,
    seen: HashMap<RegionId, Seen>,
    order: Vec<RegionId>,
    /// Consecutive rounds in which the second of two neighbours was cheaper by both margins.
    challenges: HashMap<(RegionId, RegionId), u32>,
}

#[derive(Default)]
struct Seen {
    smoothed: Option<Duration>,
    samples: u32,
    /// Consecutive results that contradict the current state.
    contradictions: u32,
    vitals: RegionVitals,
    /// The services that are down.
    down: Vec<ServiceId>,
    /// Those of them that the last reports do not contain any more, and the number of these reports.
    returning: Vec<(ServiceId, u32)>,
    /// The region was down, and is not up again yet.
    was_down: bool,
    /// The answers since it is up.
    steady: u32,
    /// How many times `settle` it must settle after it was down.
    patience: u32,
}

impl Detector {
    /// A detector that starts with the regions in the order of their distance.
    pub fn new(nearest_first: Vec<RegionId>, thresholds: Thresholds) -> Self {
        Self { thresholds, seen: HashMap::new(), order: nearest_first, challenges: HashMap::new() }
    }

    /// Replaces the list of regions and the thresholds; regions that remain keep their measurements.
    pub fn retarget(&mut self, nearest_first: Vec<RegionId>, thresholds: Thresholds) {
        self.thresholds = thresholds;
        self.seen.retain(|region, _| nearest_first.contains(region));
        let same = nearest_first.len() == self.order.len() && nearest_first.iter().all(|region| self.order.contains(region));
        if !same {
            self.order = nearest_first;
        }
    }

    /// Records a result. Returns what it changed.
    pub fn observe(&mut self, region: RegionId, observation: Observation) -> Vec<Change> {
        let seen = self.seen.entry(region).or_default();
        let before = seen.vitals;
        seen.observe(observation, self.thresholds);
        let RegionVitals { health: to, is_reachable, policy, .. } = seen.vitals;
        let health = (before.health != to).then_some(Changed::Health { from: before.health, to, is_reachable });
        let policy = policy.filter(|policy| before.policy != Some(*policy)).map(Changed::Policy);
        health.into_iter().chain(policy).map(|what| Change { region, what }).collect()
    }

    /// Ends a round: updates the order of the regions.
    pub fn end_round(&mut self) {
        self.reorder();
    }

    /// The snapshot to publish. `drains` says whether an operator drains a region, which then takes no new requests.
    pub fn vitals(&self, drains: impl Fn(RegionId) -> bool) -> Vitals {
        let mut vitals = Vitals::unmeasured(self.order.clone());
        // A region that cannot be probed may be drained as well.
        for region in self.order.iter().filter(|region| !self.seen.contains_key(region) && drains(**region)) {
            vitals.set(*region, RegionVitals { health: Health::Draining, ..RegionVitals::default() });
        }
        for (region, seen) in &self.seen {
            let is_drained = seen.vitals.health.takes_requests() && drains(*region);
            let health = if is_drained { Health::Draining } else { seen.vitals.health };
            vitals.set(*region, RegionVitals { health, ..seen.vitals });
            seen.down.iter().for_each(|service| vitals.set_down(*service, *region));
        }
        vitals
    }

    /// The expected time of a request to the region: round trip plus upstream time; `None` until the round trip is measured.
    fn cost(&self, region: RegionId) -> Option<Duration> {
        let vitals = self.seen.get(&region)?.vitals;
        Some(vitals.round_trip? + vitals.upstream_time.unwrap_or_default())
    }

    fn reorder(&mut self) {
        for index in 1..self.order.len() {
            let pair = (self.order[index - 1], self.order[index]);
            let (Some(incumbent), Some(challenger)) = (self.cost(pair.0), self.cost(pair.1)) else {
                self.challenges.remove(&pair);
                continue;
            };
            if incumbent < challenger + MARGIN_TIME || incumbent.mul_f64(1.0 - MARGIN) < challenger {
                self.challenges.remove(&pair);
                continue;
            }
            let rounds = self.challenges.entry(pair).or_default();
            *rounds += 1;
            if *rounds >= ROUNDS {
                self.challenges.remove(&pair);
                self.order.swap(index - 1, index);
            }
        }
    }
}

impl Seen {
    fn observe(&mut self, observation: Observation, thresholds: Thresholds) {
        let report = match observation {
            Observation::Failed => None,
            Observation::Answered { round_trip, report, down } => {
                self.measure(round_trip);
                self.note_services(down, thresholds.rise);
                self.vitals.upstream_time = report.upstream_time;
                self.vitals.policy = report.policy;
                self.vitals.directory = report.directory;
                Some((report.is_serving, report.is_draining))
            }
        };
        self.vitals.is_reachable = report.is_some();
        let health = self.vitals.health;
        let (target, needed) = match (health, report) {
            // The region itself reports that it drains or serves nothing, so one result is enough.
            (_, Some((_, true))) => (Health::Draining, 1),
            (_, Some((false, false))) => (Health::Down, 1),
            (Health::Unmeasured | Health::Up, Some(_)) => (Health::Up, 1),
            // Several processes may answer the probes, of which one drains.
            (Health::Draining, Some(_)) => (if self.was_down { Health::Recovering } else { Health::Up }, thresholds.rise),
            (Health::Down, Some(_)) => (Health::Recovering, thresholds.rise),
            (Health::Recovering, Some(_)) => (Health::Up, thresholds.settle.saturating_mul(self.patience.max(1))),
            (Health::Unmeasured | Health::Draining | Health::Up, None) => (Health::Down, thresholds.fall),
            (Health::Down | Health::Recovering, None) => (Health::Down, 1),
        };
        if health == Health::Up && target == Health::Up {
            self.steady = self.steady.saturating_add(1);
        }
        self.contradictions += 1;
        if target == health {
            self.contradictions = 0;
        } else if self.contradictions >= needed {
            self.contradictions = 0;
            self.vitals.health = target;
            if health == Health::Up && target == Health::Down {
                let is_steady = self.steady >= thresholds.settle.saturating_mul(STEADY);
                self.patience = if is_steady { 1 } else { (self.patience * 2).clamp(1, MAX_PATIENCE) };
                self.steady = 0;
            }
            self.was_down = match target {
                Health::Down | Health::Recovering => true,
                Health::Up | Health::Unmeasured => false,
                Health::Draining => self.was_down,
            };
        }
    }

    /// Records the services that are down. One that was down is up again after `rise` reports without it.
    fn note_services(&mut self, down: Vec<ServiceId>, rise: u32) {
        for service in &down {
            self.returning.retain(|(returning, _)| returning != service);
        }
        for service in self.down.iter().filter(|service| !down.contains(service)) {
            if !self.returning.iter().any(|(returning, _)| returning == service) {
                self.returning.push((*service, 0));
            }
        }
        self.returning.iter_mut().for_each(|(_, reports)| *reports += 1);
        self.returning.retain(|(_, reports)| *reports < rise);
        self.down = down;
        self.down.extend(self.returning.iter().map(|(service, _)| *service));
    }

    fn measure(&mut self, round_trip: Duration) {
        self.samples = self.samples.saturating_add(1);
        let smoothed = match self.smoothed {
            None => round_trip,
            Some(before) => before.mul_f64(1.0 - WEIGHT) + round_trip.mul_f64(WEIGHT),
        };
        self.smoothed = Some(smoothed);
        if self.samples >= MIN_SAMPLES {
            self.vitals.round_trip = Some(smoothed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(index: usize) -> RegionId {
        RegionId::new(index).unwrap()
    }

    const THRESHOLDS: Thresholds = Thresholds { fall: 3, rise: 3, settle: 5 };

    const HEALTHY: Report = Report {
        is_draining: false,
        is_serving: true,
        down_services: Vec::new(),
        upstream_time: None,
        policy: None,
        directory: None,
        rates: Vec::new(),
    };

    fn answered(millis: u64) -> Observation {
        Observation::Answered { round_trip: Duration::from_millis(millis), report: HEALTHY, down: Vec::new() }
    }

    #[test]
    fn a_service_is_down_while_its_region_reports_it() {
        let (api, app) = (ServiceId::new(0).unwrap(), ServiceId::new(1).unwrap());
        let without =
            |down: &[ServiceId]| Observation::Answered { round_trip: Duration::ZERO, report: HEALTHY, down: down.into() };
        let mut detector = Detector::new(vec![region(0), region(1)], THRESHOLDS);
        detector.observe(region(0), without(&[api]));
        detector.observe(region(1), without(&[]));
        let both = [region(0), region(1)].into_iter().collect();
        let taking = |detector: &Detector, service| {
            let vitals = detector.vitals(|_| false);
            vitals.taking_requests(both, Some(service)).iter().map(|region| region.index()).collect::<Vec<_>>()
        };
        assert_eq!((taking(&detector, api), taking(&detector, app)), (vec![1], vec![0, 1]));
        detector.observe(region(0), Observation::Failed);
        assert_eq!(taking(&detector, api), [1], "after a lost probe, the last known state of the service stays");
        detector.observe(region(0), without(&[]));
        detector.observe(region(0), without(&[]));
        assert_eq!(taking(&detector, api), [1], "a service that flaps moves nothing");
        detector.observe(region(0), without(&[]));
        assert_eq!(taking(&detector, api), [0, 1]);
    }

    fn health_after(observations: &[Observation]) -> Health {
        let mut detector = Detector::new(vec![region(0)], THRESHOLDS);
        for observation in observations {
            detector.observe(region(0), observation.clone());
        }
        detector.vitals(|_| false).region(region(0)).health
    }

    #[test]
    fn one_lost_probe_is_no_outage_and_one_success_no_recovery() {
        use Observation::Failed;
        assert_eq!(health_after(&[]), Health::Unmeasured);
        assert_eq!(health_after(&[answered(1)]), Health::Up);
        assert_eq!(health_after(&[answered(1), Failed, Failed, answered(1), Failed, Failed]), Health::Up);
        assert_eq!(health_after(&[answered(1), Failed, Failed, Failed]), Health::Down);
        assert_eq!(health_after(&[Failed, Failed, Failed, answered(1), answered(1)]), Health::Down);
        assert_eq!(health_after(&[Failed, Failed, Failed, answered(1), answered(1), answered(1)]), Health::Recovering);
    }

    #[test]
    fn a_region_that_was_down_is_up_only_after_it_has_settled() {
        let down = [Observation::Failed, Observation::Failed, Observation::Failed];
        let recovering = [&down[..], &[answered(1), answered(1), answered(1)]].concat();
        let settled = [&recovering[..], &vec![answered(1); 5]].concat();
        assert_eq!(health_after(&settled[..settled.len() - 1]), Health::Recovering);
        assert_eq!(health_after(&settled), Health::Up);
        assert_eq!(health_after(&[&recovering[..], &[Observation::Failed]].concat()), Health::Down, "one failure is enough");
        let again = [&recovering[..], &vec![answered(1); 4], &[Observation::Failed], &vec![answered(1); 3 + 4]].concat();
        assert_eq!(health_after(&again), Health::Recovering, "the count starts again");
    }

    #[test]
    fn a_region_that_falls_again_soon_settles_for_twice_as_long() {
        let fall = vec![Observation::Failed; 3];
        let answers = |count| vec![answered(1); count];
        let (once, mut story) = ([answers(1), fall.clone()].concat(), Vec::new());
        let mut ends_with = |more: Vec<Observation>| {
            story.extend(more);
            health_after(&story)
        };
        assert_eq!(ends_with([once, answers(3 + 5)].concat()), Health::Up, "the first time");
        assert_eq!(ends_with([fall.clone(), answers(3 + 9)].concat()), Health::Recovering, "the second time needs ten answers");
        assert_eq!(ends_with(answers(1)), Health::Up);
        assert_eq!(ends_with([fall.clone(), answers(3 + 19)].concat()), Health::Recovering, "the third time twenty");
        assert_eq!(ends_with(answers(1 + 50)), Health::Up);
        assert_eq!(ends_with([fall, answers(3 + 5)].concat()), Health::Up, "after it was up for long, it is as the first time");
    }

    #[test]
    fn every_change_is_returned_once() {
        let mut detector = Detector::new(vec![region(0)], THRESHOLDS);
        let mut changes = |observation| {
            let changes = detector.observe(region(0), observation);
            changes.into_iter().map(|change| change.what).collect::<Vec<_>>()
        };
        let health = |from, to, is_reachable| vec![Changed::Health { from, to, is_reachable }];
        assert_eq!(changes(answered(1)), health(Health::Unmeasured, Health::Up, true));
        assert_eq!(changes(answered(1)), []);
        assert_eq!([changes(Observation::Failed), changes(Observation::Failed)], [[], []]);
        assert_eq!(changes(Observation::Failed), health(Health::Up, Health::Down, false));
        assert_eq!(changes(Observation::Failed), []);
        let with = |policy| {
            let report = Report { policy: Some(PolicyHash([policy; 16])), ..HEALTHY };
            Observation::Answered { round_trip: Duration::ZERO, report, down: Vec::new() }
        };
        assert_eq!(changes(with(1)), [Changed::Policy(PolicyHash([1; 16]))]);
        assert_eq!(changes(with(1)), []);
    }

    fn order_after(rounds: &[(u64, u64)]) -> Vec<usize> {
        let mut detector = Detector::new(vec![region(0), region(1)], THRESHOLDS);
        let mut order = Vec::new();
        for (first, second) in rounds {
            detector.observe(region(0), answered(*first));
            detector.observe(region(1), answered(*second));
            detector.end_round();
            order = detector.vitals(|_| false).nearest_first().iter().map(|region| region.index()).collect();
        }
        order
    }

    #[test]
    fn distance_orders_until_measurement_clearly_says_otherwise() {
        assert_eq!(order_after(&[(200, 20); 11]), [0, 1], "three samples, then ten rounds");
        assert_eq!(order_after(&[(200, 20); 12]), [1, 0]);
        assert_eq!(order_after(&[(100, 95); 50]), [0, 1], "a few milliseconds are no reason to move");
        assert_eq!(order_after(&[(12, 4); 50]), [0, 1], "nor is a large share of a short time");
        let flutter: Vec<_> = (0..60).map(|round| if round % 2 == 0 { (100, 92) } else { (92, 100) }).collect();
        assert_eq!(order_after(&flutter), [0, 1]);
    }
}
