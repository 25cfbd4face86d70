//! Finds the home of a request: walks a route's chain until a step finds a home or ends the chain.

mod directory;
mod geoip;
mod token;

use crate::model::jurisdiction::Jurisdiction;
use crate::model::outcome::Code;
use crate::model::region::RegionId;
use crate::model::user::Evidence;

use super::facts::Facts;
use super::home::Home;
use super::policy::Policy;
use super::policy::chain::Step;
use super::policy::route::Route;
use super::verdict::{Finding, Trail};

/// The result of a step: a home, the next step, or a refusal that ends the chain.
enum StepResult {
    Home(Home),
    Next,
    End(Code),
}

/// Walks the route's chain and adds the finding of each step to the trail.
pub(super) fn home(facts: &Facts<'_>, policy: &Policy, route: &Route, trail: &mut Trail) -> Result<Home, Code> {
    for step in &route.chain {
        let (finding, answer) = match *step {
            Step::Directory => directory::ask(facts, policy, trail.classes),
            Step::Token => token::ask(facts, policy),
            Step::GeoIp => geoip::ask(facts, policy),
            Step::Latency => {
                (Finding::Unowned, StepResult::Home(Home::Unowned { jurisdiction: jurisdiction_by_country(facts, policy) }))
            }
            Step::Region(region) => (Finding::Fixed { home: region }, StepResult::Home(inferred(region, facts, policy))),
            Step::Refuse => (Finding::Refused, StepResult::End(Code::HomeUnresolved)),
        };
        trail.note(*step, finding);
        match answer {
            StepResult::Home(home) => return Ok(home),
            StepResult::Next => {}
            StepResult::End(code) => return Err(code),
        }
    }
    Err(Code::HomeUnresolved)
}

/// The home of the caller, if the request is judged for the caller as well as for the user that the path names.
pub(super) fn home_of_caller(facts: &Facts<'_>, policy: &Policy, trail: &Trail) -> Result<Option<Home>, Code> {
    match directory::home_of_caller(facts, policy, trail.classes)? {
        Some(home) => Ok(Some(home)),
        None => token::home_of_caller(facts, policy),
    }
}

/// An inferred home. The user's jurisdiction is the one that lists the country, never the region's.
fn inferred(region: RegionId, facts: &Facts<'_>, policy: &Policy) -> Home {
    Home::Owned { region, evidence: Evidence::Inferred, jurisdiction: jurisdiction_by_country(facts, policy) }
}

fn jurisdiction_by_country(facts: &Facts<'_>, policy: &Policy) -> Jurisdiction {
    if facts.place_is_stale {
        return Jurisdiction::Unknown;
    }
    policy.jurisdiction_of_country(facts.country())
}
