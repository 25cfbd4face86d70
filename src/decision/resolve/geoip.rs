//! The `geoip` step: the region for a client's address, by the operator's networks, countries and continents, in this
//! order, or else the nearest region.

use std::net::IpAddr;

use crate::model::place::Place;
use crate::model::region::{RegionId, RegionSet};
use crate::model::user::Evidence;

use super::super::facts::{Facts, Lookup};
use super::super::policy::Policy;
use super::super::policy::geography::Otherwise;
use super::super::verdict::Finding;
use super::{StepResult, inferred};

pub(super) fn ask(facts: &Facts<'_>, policy: &Policy) -> (Finding, StepResult) {
    let inferred_there = facts.peer.filter(|statement| statement.evidence == Some(Evidence::Inferred));
    let given = inferred_there.and_then(|statement| statement.home);
    if let Some(home) = given.filter(|home| policy.regions.contains(*home)) {
        return (Finding::Given { home }, StepResult::Home(inferred(home, facts, policy)));
    }
    let place = match facts.place {
        Lookup::Found(place) => place,
        Lookup::NotAsked | Lookup::NoKey | Lookup::Absent | Lookup::Unavailable | Lookup::Unverifiable => Place::default(),
    };
    let finding = locate(facts.client, &place, policy);
    match home_of(finding) {
        Some(home) => (finding, StepResult::Home(inferred(home, facts, policy))),
        None => (finding, StepResult::Next),
    }
}

fn locate(client: IpAddr, place: &Place, policy: &Policy) -> Finding {
    let rules = &policy.geo;
    let country = place.country;
    if let Some(network) = rules.networks.find(client) {
        return Finding::Network { home: network.home };
    }
    let by_country = country.and_then(|code| rules.countries.iter().find(|(listed, _)| *listed == code));
    if let Some((country, home)) = by_country {
        return Finding::Country { country: *country, home: *home };
    }
    let continent = place.continent.or_else(|| country.map(|code| code.country().continent));
    let by_continent = continent.and_then(|wanted| rules.continents.iter().find(|(listed, _)| *listed == wanted));
    if let Some((_, home)) = by_continent {
        return Finding::Continent { country, home: *home };
    }
    if country.is_none() {
        return rules.unknown.map_or(Finding::Unplaced { country }, |home| Finding::UnknownPlace { home });
    }
    match rules.otherwise {
        Otherwise::Region(home) => Finding::Otherwise { country, home },
        Otherwise::Next => Finding::Unplaced { country },
        Otherwise::Nearest => {
            nearest(place, policy).map_or(Finding::Unplaced { country }, |home| Finding::Nearest { country, home })
        }
    }
}

/// The nearest region. If the place's own jurisdiction has regions, only these are considered, because a nearer region
/// elsewhere could not serve data that stays in the user's jurisdiction.
fn nearest(place: &Place, policy: &Policy) -> Option<RegionId> {
    let point = place.point()?;
    let own = policy.jurisdiction_of_country(place.country);
    let domestic = policy.regions_where(|jurisdiction| jurisdiction == own);
    let candidates: RegionSet = if domestic.is_empty() { policy.regions } else { domestic };
    let distance = |region: &RegionId| point.distance_km(policy.region(*region).at);
    candidates.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)))
}

fn home_of(finding: Finding) -> Option<RegionId> {
    match finding {
        Finding::Network { home }
        | Finding::Country { home, .. }
        | Finding::Continent { home, .. }
        | Finding::Nearest { home, .. }
        | Finding::Otherwise { home, .. }
        | Finding::UnknownPlace { home } => Some(home),
        Finding::NoKey
        | Finding::Absent
        | Finding::Unavailable { .. }
        | Finding::Recorded { .. }
        | Finding::Hinted { .. }
        | Finding::NoToken
        | Finding::NoClaim
        | Finding::UnknownRegion
        | Finding::Asserted { .. }
        | Finding::Given { .. }
        | Finding::Unplaced { .. }
        | Finding::Unowned
        | Finding::Fixed { .. }
        | Finding::Refused => None,
    }
}
