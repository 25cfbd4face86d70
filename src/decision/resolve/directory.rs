//! The `directory` step: the home that the user-to-region table records.

use crate::model::jurisdiction::Jurisdiction;
use crate::model::outcome::Code;
use crate::model::user::{Evidence, Proof, Record};

use super::super::facts::{Facts, Lookup};
use super::super::home::Home;
use super::super::policy::Policy;
use super::super::policy::class::ClassSet;
use super::super::verdict::Finding;
use super::StepResult;

pub(super) fn ask(facts: &Facts<'_>, policy: &Policy, classes: ClassSet) -> (Finding, StepResult) {
    match (facts.directory, facts.hint) {
        // The recorded home is not in this policy. A guess must not replace it.
        (Lookup::NotAsked, Some(record)) | (Lookup::Found(record), _) if !policy.regions.contains(record.home) => {
            (Finding::Unavailable { goes_on: false }, StepResult::End(Code::DirectoryUnavailable))
        }
        (Lookup::NotAsked | Lookup::Unavailable, Some(record)) if policy.regions.contains(record.home) => {
            let is_asked = facts.directory != Lookup::NotAsked;
            (Finding::Hinted { home: record.home, is_asked }, StepResult::Home(owned(record, Evidence::Asserted, policy)))
        }
        (Lookup::NotAsked | Lookup::NoKey | Lookup::Unverifiable, _) => (Finding::NoKey, StepResult::Next),
        (Lookup::Absent, _) => (Finding::Absent, StepResult::Next),
        (Lookup::Unavailable, _) if may_guess(facts, policy, classes) => {
            (Finding::Unavailable { goes_on: true }, StepResult::Next)
        }
        (Lookup::Unavailable, _) => (Finding::Unavailable { goes_on: false }, StepResult::End(Code::DirectoryUnavailable)),
        (Lookup::Found(record), _) => {
            let evidence = evidence_of(facts.proof);
            (Finding::Recorded { home: record.home, evidence }, StepResult::Home(owned(record, evidence, policy)))
        }
    }
}

/// The home of the caller, if the path names a user who is not in the directory. The request is judged for both users,
/// because a guess about the user in the path must not outrank the caller's record.
pub(super) fn home_of_caller(facts: &Facts<'_>, policy: &Policy, classes: ClassSet) -> Result<Option<Home>, Code> {
    match facts.caller {
        Lookup::NotAsked | Lookup::NoKey | Lookup::Absent | Lookup::Unverifiable => Ok(None),
        Lookup::Unavailable if may_guess(facts, policy, classes) => Ok(None),
        Lookup::Unavailable => Err(Code::DirectoryUnavailable),
        Lookup::Found(record) if !policy.regions.contains(record.home) => Err(Code::DirectoryUnavailable),
        Lookup::Found(record) => Ok(Some(owned(record, evidence_of(facts.caller_proof), policy))),
    }
}

/// A record is only as strong as the proof of its key.
const fn evidence_of(proof: Proof) -> Evidence {
    match proof {
        Proof::Proven => Evidence::Recorded,
        Proof::Vouched => Evidence::Asserted,
        Proof::Claimed => Evidence::Inferred,
    }
}

fn owned(record: Record, evidence: Evidence, policy: &Policy) -> Home {
    let jurisdiction = record.jurisdiction.map_or_else(|| policy.jurisdiction_of(record.home), Jurisdiction::Named);
    Home::Owned { region: record.home, evidence, jurisdiction }
}

/// Whether a guess may replace a failed directory lookup: only for reads of data that may be anywhere.
fn may_guess(facts: &Facts<'_>, policy: &Policy, classes: ClassSet) -> bool {
    facts.is_read && policy.may_be_anywhere(classes)
}
