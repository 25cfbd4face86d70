//! Turns observations into vitals: smoothing, thresholds, and an order of regions with hysteresis. Uses no socket and no clock.

use std::collections::HashMap;
use std::time::Duration;

use crate::model::region::RegionId;
use crate::model::service::ServiceId;
use crate::model::vitals::{Health, RegionVitals, Vitals};
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

/// Consecutive failures after which a region is down, and consecutive successes after which it is up again.
const FALL: u32 = 3;
const RISE: u32 = 3;

/// Weight of a new round trip in the moving average: about the last six count.
const WEIGHT: f64 = 0.3;

/// Round trips after which a region counts as measured.
const MIN_SAMPLES: u32 = 3;

/// A region moves ahead of its neighbour only if it is cheaper by both margins for this many consecutive rounds.
const MARGIN: f64 = 0.15;
const MARGIN_TIME: Duration = Duration::from_millis(10);
const ROUNDS: u32 = 3;

/// The measurements of every region, and the order that follows from them.
pub struct Detector {
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
    /// The services that the region last reported as down.
    down: Vec<ServiceId>,
}

impl Detector {
    /// A detector that starts with the regions in the order of their distance.
    pub fn new(nearest_first: Vec<RegionId>) -> Self {
        Self { seen: HashMap::new(), order: nearest_first, challenges: HashMap::new() }
    }

    /// Replaces the list of regions; regions that remain keep their measurements.
    pub fn retarget(&mut self, nearest_first: Vec<RegionId>) {
        self.seen.retain(|region, _| nearest_first.contains(region));
        let same = nearest_first.len() == self.order.len() && nearest_first.iter().all(|region| self.order.contains(region));
        if !same {
            self.order = nearest_first;
        }
    }

    pub fn observe(&mut self, region: RegionId, observation: Observation) {
        self.seen.entry(region).or_default().observe(observation);
    }

    /// Ends a round: updates the order and returns the snapshot to publish.
    pub fn vitals(&mut self) -> Vitals {
        self.reorder();
        let mut vitals = Vitals::unmeasured(self.order.clone());
        for (region, seen) in &self.seen {
            vitals.set(*region, seen.vitals);
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
    fn observe(&mut self, observation: Observation) {
        let (reached, serving, draining) = match observation {
            Observation::Failed => (false, false, false),
            Observation::Answered { round_trip, report, down } => {
                self.measure(round_trip);
                self.down = down;
                self.vitals.upstream_time = report.upstream_time;
                self.vitals.policy = report.policy;
                self.vitals.directory = report.directory;
                (true, report.is_serving, report.is_draining)
            }
        };
        self.vitals.is_reachable = reached;
        // The region itself reports that it drains or serves nothing, so one result is enough.
        if draining {
            self.contradictions = 0;
            self.vitals.health = Health::Draining;
            return;
        }
        if reached && !serving {
            self.contradictions = 0;
            self.vitals.health = Health::Down;
            return;
        }
        let (target, needed) = match (self.vitals.health, reached) {
            (Health::Unmeasured, true) => (Health::Up, 1),
            (Health::Up | Health::Draining | Health::Unmeasured, false) => (Health::Down, FALL),
            (Health::Down, true) => (Health::Up, RISE),
            (Health::Draining, true) => (Health::Up, 1),
            (Health::Up, true) | (Health::Down, false) => {
                self.contradictions = 0;
                return;
            }
        };
        self.contradictions += 1;
        if self.contradictions >= needed {
            self.contradictions = 0;
            self.vitals.health = target;
        }
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
        let mut detector = Detector::new(vec![region(0), region(1)]);
        detector.observe(region(0), without(&[api]));
        detector.observe(region(1), without(&[]));
        let both = [region(0), region(1)].into_iter().collect();
        let taking = |detector: &mut Detector, service| {
            let vitals = detector.vitals();
            vitals.taking_requests(both, Some(service)).iter().map(|region| region.index()).collect::<Vec<_>>()
        };
        assert_eq!((taking(&mut detector, api), taking(&mut detector, app)), (vec![1], vec![0, 1]));
        detector.observe(region(0), Observation::Failed);
        assert_eq!(taking(&mut detector, api), [1], "after a lost probe, the last known state of the service stays");
        detector.observe(region(0), without(&[]));
        assert_eq!(taking(&mut detector, api), [0, 1]);
    }

    fn health_after(observations: &[Observation]) -> Health {
        let mut detector = Detector::new(vec![region(0)]);
        observations.iter().for_each(|observation| detector.observe(region(0), observation.clone()));
        detector.vitals().region(region(0)).health
    }

    #[test]
    fn one_lost_probe_is_no_outage_and_one_success_no_recovery() {
        use Observation::Failed;
        assert_eq!(health_after(&[]), Health::Unmeasured);
        assert_eq!(health_after(&[answered(1)]), Health::Up);
        assert_eq!(health_after(&[answered(1), Failed, Failed, answered(1), Failed, Failed]), Health::Up);
        assert_eq!(health_after(&[answered(1), Failed, Failed, Failed]), Health::Down);
        assert_eq!(health_after(&[Failed, Failed, Failed, answered(1), answered(1)]), Health::Down);
        assert_eq!(health_after(&[Failed, Failed, Failed, answered(1), answered(1), answered(1)]), Health::Up);
    }

    #[test]
    fn a_regions_report_about_itself_counts_at_once() {
        let reported = |report| Observation::Answered { round_trip: Duration::ZERO, report, down: Vec::new() };
        let draining = reported(Report { is_draining: true, ..HEALTHY });
        let not_serving = reported(Report { is_serving: false, ..HEALTHY });
        assert_eq!(health_after(&[answered(1), draining.clone()]), Health::Draining);
        assert_eq!(health_after(&[answered(1), draining, answered(1)]), Health::Up);
        assert_eq!(health_after(&[answered(1), not_serving]), Health::Down);
    }

    fn order_after(rounds: &[(u64, u64)]) -> Vec<usize> {
        let mut detector = Detector::new(vec![region(0), region(1)]);
        let mut order = Vec::new();
        for (first, second) in rounds {
            detector.observe(region(0), answered(*first));
            detector.observe(region(1), answered(*second));
            order = detector.vitals().nearest_first().iter().map(|region| region.index()).collect();
        }
        order
    }

    #[test]
    fn distance_orders_until_measurement_clearly_says_otherwise() {
        assert_eq!(order_after(&[(200, 20); 4]), [0, 1], "three samples, then three rounds");
        assert_eq!(order_after(&[(200, 20); 5]), [1, 0]);
        assert_eq!(order_after(&[(100, 95); 50]), [0, 1], "a few milliseconds are no reason to move");
        assert_eq!(order_after(&[(12, 4); 50]), [0, 1], "nor is a large share of a short time");
        let flutter: Vec<_> = (0..60).map(|round| if round % 2 == 0 { (100, 92) } else { (92, 100) }).collect();
        assert_eq!(order_after(&flutter), [0, 1]);
    }
}
