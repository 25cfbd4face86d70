//! Turns a clearance into an itinerary: orders the cleared regions that take requests.

use crate::model::outcome::Code;
use crate::model::region::RegionSet;

use super::facts::Facts;
use super::home::Home;
use super::policy::chain::{Reads, Writes};
use super::policy::route::Route;
use super::residency::Clearance;
use super::verdict::Itinerary;

/// Orders the cleared regions that have the service and take requests. An owned request goes to its home first, then to the regions that its
/// failover setting allows; an unowned request goes to the nearest region first.
pub(super) fn plan(clearance: Clearance, home: &Home, facts: &Facts<'_>, route: &Route) -> Result<Itinerary, Code> {
    let vitals = facts.vitals;
    let alive = clearance.narrow(vitals.taking_requests(clearance.regions(), route.service));
    // A region that a reload has just added is not in the measured order yet, so it comes last.
    let nearest = || vitals.nearest_first().iter().copied().chain(clearance.regions().iter());
    let Home::Owned { region, .. } = *home else {
        return alive.and_then(|alive| Itinerary::through(alive, nearest())).ok_or(Code::AllDown);
    };
    let may_leave = match (facts.is_read, route.failover.reads, route.failover.writes) {
        (true, Reads::Nearest, _) => true,
        (true, Reads::Never, _) | (false, _, Writes::Never) => false,
    };
    if may_leave {
        return alive.and_then(|alive| Itinerary::through(alive, std::iter::once(region).chain(nearest()))).ok_or(Code::AllDown);
    }
    if !clearance.contains(region) {
        return Err(Code::ServiceMissing);
    }
    alive
        .and_then(|alive| alive.narrow(RegionSet::only(region)))
        .and_then(|alive| Itinerary::through(alive, std::iter::once(region)))
        .ok_or(Code::HomeDown)
}
