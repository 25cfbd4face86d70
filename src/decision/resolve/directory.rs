//! The user-to-region table's answer.

use crate::model::jurisdiction::Jurisdiction;
use crate::model::outcome::Code;
use crate::model::user::{Evidence, Proof};

use super::super::facts::{Facts, Lookup};
use super::super::policy::{ClassSet, Policy};
use super::super::residency::Stays;
use super::super::verdict::{Finding, Home};
use super::Answer;

pub(super) fn ask(facts: &Facts<'_>, policy: &Policy, classes: ClassSet) -> (Finding, Answer) {
    match facts.directory {
        Lookup::NotAsked | Lookup::NoKey => (Finding::NoKey, Answer::Next),
        Lookup::Absent => (Finding::Absent, Answer::Next),
        Lookup::Unavailable if facts.hint.is_some_and(|home| policy.regions.contains(home)) => {
            let region = facts.hint.expect("just seen");
            let home = Home::Owned { region, evidence: Evidence::Asserted, jurisdiction: policy.jurisdiction_of(region) };
            (Finding::Hinted { home: region }, Answer::Home(home))
        }
        Lookup::Unavailable if may_guess(facts, policy, classes) => (Finding::Unavailable { goes_on: true }, Answer::Next),
        Lookup::Unavailable => (Finding::Unavailable { goes_on: false }, Answer::End(Code::DirectoryUnavailable)),
        // The home is known, and a region that the policy has dropped: no reason to guess another.
        Lookup::Found(record) if !policy.regions.contains(record.home) => {
            (Finding::Unavailable { goes_on: false }, Answer::End(Code::DirectoryUnavailable))
        }
        Lookup::Found(record) => {
            let evidence = match facts.proof {
                Proof::Proven => Evidence::Recorded,
                Proof::Claimed => Evidence::Inferred,
            };
            let jurisdiction = record.jurisdiction.map_or_else(|| policy.jurisdiction_of(record.home), Jurisdiction::Named);
            let home = Home::Owned { region: record.home, evidence, jurisdiction };
            (Finding::Recorded { home: record.home, evidence }, Answer::Home(home))
        }
    }
}

/// Never from a dead directory to a guess, except for reads of data that may be anywhere.
fn may_guess(facts: &Facts<'_>, policy: &Policy, classes: ClassSet) -> bool {
    facts.is_read && classes.iter().all(|class| policy.class(class).rule.stays == Stays::Anywhere)
}
