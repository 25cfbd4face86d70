//! Turns a clearance into an itinerary: orders the cleared regions that take requests.

use crate::model::outcome::Code;
use crate::model::region::{RegionId, RegionSet};

use super::facts::Facts;
use super::home::Home;
use super::policy::chain::{Reads, Writes};
use super::policy::route::Route;
use super::residency::Clearance;
use super::verdict::Itinerary;

/// Orders the cleared regions that have the service and take requests. An owned request goes to its home first, then to the regions that its
/// failover setting allows; an unowned request goes to the nearest region first. Regions that are recovering come last, so that a
/// region that goes down and up repeatedly does not move requests back and forth.
pub(super) fn plan(clearance: Clearance, home: &Home, facts: &Facts<'_>, route: &Route) -> Result<Itinerary, Code> {
    let vitals = facts.vitals;
    let alive = clearance.narrow(vitals.taking_requests(clearance.regions(), route.service));
    // A region that a reload has just added is not in the measured order yet, so it comes last.
    let nearest = || vitals.nearest_first().iter().copied().chain(clearance.regions().iter());
    let settled = |region: &RegionId| !vitals.recovering().contains(*region);
    let Home::Owned { region, .. } = *home else {
        let order = nearest().filter(settled).chain(nearest());
        return alive.and_then(|alive| Itinerary::through(alive, order)).ok_or(Code::AllDown);
    };
    let may_leave = match (facts.is_read, route.failover.reads, route.failover.writes) {
        (true, Reads::Nearest, _) => true,
        (true, Reads::Never, _) | (false, _, Writes::Never) => false,
    };
    if may_leave {
        let order = || std::iter::once(region).chain(nearest());
        let order = order().filter(settled).chain(order());
        return alive.and_then(|alive| Itinerary::through(alive, order)).ok_or(Code::AllDown);
    }
    if !clearance.contains(region) {
        return Err(Code::ServiceMissing);
    }
    alive
        .and_then(|alive| alive.narrow(RegionSet::only(region)))
        .and_then(|alive| Itinerary::through(alive, std::iter::once(region)))
        .ok_or(Code::HomeDown)
}
