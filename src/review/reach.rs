//! The regions that may process and carry a class of data.

use crate::decision::home::Home;
use crate::decision::policy::Policy;
use crate::decision::policy::class::{ClassId, ClassSet};
use crate::decision::residency;
use crate::model::day::Day;
use crate::model::jurisdiction::Jurisdiction;
use crate::model::region::{RegionId, RegionSet};

/// Where data of one class and one jurisdiction may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Reach {
    pub processed: RegionSet,
    /// The regions whose proxies may carry it, with those that may process it.
    pub carried: RegionSet,
}

/// The reach of data of a user in `user`, given sufficient evidence.
pub(super) fn of(policy: &Policy, class: ClassId, user: Jurisdiction, today: Day) -> Reach {
    let anywhere = RegionId::new(0).expect("0 is a region's number");
    let home = Home::Owned { region: anywhere, evidence: policy.class(class).rule.needs, jurisdiction: user };
    let ruling = residency::clear(policy, ClassSet::only(class), [&home], today, false);
    let processed = ruling.clearance.map_or(RegionSet::EMPTY, |clearance| clearance.regions());
    let carried = if processed.is_empty() { RegionSet::EMPTY } else { processed.union(ruling.carriers) };
    Reach { processed, carried }
}
