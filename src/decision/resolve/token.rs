//! The `token` step: the home that a claim of a verified token names.

use crate::model::outcome::Code;
use crate::model::region::RegionId;
use crate::model::user::Evidence;

use super::super::facts::{Facts, Lookup};
use super::super::home::Home;
use super::super::policy::Policy;
use super::super::verdict::Finding;
use super::StepResult;

pub(super) fn ask(facts: &Facts<'_>, policy: &Policy) -> (Finding, StepResult) {
    match facts.token {
        Lookup::NotAsked | Lookup::NoKey | Lookup::Unverifiable => (Finding::NoToken, StepResult::Next),
        Lookup::Absent => (Finding::NoClaim, StepResult::Next),
        // The claim names a region that is not in this policy. A guess must not replace it.
        Lookup::Unavailable => (Finding::UnknownRegion, StepResult::End(Code::HomeUnknown)),
        Lookup::Found(home) if !policy.regions.contains(home) => (Finding::UnknownRegion, StepResult::End(Code::HomeUnknown)),
        Lookup::Found(region) => (Finding::Asserted { home: region }, StepResult::Home(asserted(region, policy))),
    }
}

/// The home that the token of the caller names, if the path names another user who has no record. A guess about that user
/// must not outrank the caller's claim.
pub(super) fn home_of_caller(facts: &Facts<'_>, policy: &Policy) -> Result<Option<Home>, Code> {
    match facts.caller_token {
        Lookup::NotAsked | Lookup::NoKey | Lookup::Unverifiable | Lookup::Absent => Ok(None),
        Lookup::Unavailable => Err(Code::HomeUnknown),
        Lookup::Found(region) if !policy.regions.contains(region) => Err(Code::HomeUnknown),
        Lookup::Found(region) => Ok(Some(asserted(region, policy))),
    }
}

fn asserted(region: RegionId, policy: &Policy) -> Home {
    Home::Owned { region, evidence: Evidence::Asserted, jurisdiction: policy.jurisdiction_of(region) }
}
