//! Where a request's data may be processed, and which proxies may carry it.
//!
//! INVARIANT: a [`Clearance`] is made here and nowhere else, and there is no way to add a region to one.

use crate::model::day::Day;
use crate::model::outcome::Code;
use crate::model::region::{RegionId, RegionSet};
use crate::model::user::Evidence;

use super::home::Home;
use super::policy::Policy;
use super::policy::class::ClassSet;
use super::policy::rule::{Mode, ResidencyRule, Stays};

/// The regions that may process a request. A clearance can only shrink, and it is never empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clearance {
    regions: RegionSet,
}

impl Clearance {
    const fn of(regions: RegionSet) -> Option<Self> {
        if regions.is_empty() { None } else { Some(Self { regions }) }
    }

    /// The part of this clearance within `regions`; `None` if it is empty.
    pub const fn narrow(self, regions: RegionSet) -> Option<Self> {
        Self::of(self.regions.intersection(regions))
    }

    pub const fn contains(self, region: RegionId) -> bool {
        self.regions.contains(region)
    }

    pub const fn regions(self) -> RegionSet {
        self.regions
    }
}

/// The combined result of the rules of a request's classes.
pub struct Ruling {
    /// `None` if the classes clear no region.
    pub clearance: Option<Clearance>,
    /// The reason if there is no clearance.
    pub cause: Code,
    /// The regions that would be cleared if no class were in report-only mode.
    pub enforced: RegionSet,
    /// The regions whose proxies may carry the classes, in addition to the cleared regions.
    pub carriers: RegionSet,
    /// The regions that would be carriers if no class were in report-only mode.
    pub enforced_carriers: RegionSet,
}

impl Ruling {
    const fn everywhere(policy: &Policy) -> Self {
        Self {
            clearance: Clearance::of(policy.regions),
            cause: Code::NowhereCleared,
            enforced: policy.regions,
            carriers: policy.regions,
            enforced_carriers: policy.regions,
        }
    }

    /// Combines two rulings: a region must be allowed by both.
    fn intersect(self, other: Self) -> Self {
        let both = |one: Clearance| other.clearance.and_then(|other| one.narrow(other.regions));
        Self {
            clearance: self.clearance.and_then(both),
            cause: if other.cause == Code::NowhereCleared { self.cause } else { other.cause },
            enforced: self.enforced.intersection(other.enforced),
            carriers: self.carriers.intersection(other.carriers),
            enforced_carriers: self.enforced_carriers.intersection(other.enforced_carriers),
        }
    }
}

/// The regions that every one of `classes` clears for every one of `homes`.
pub fn clear<'h>(
    policy: &Policy,
    classes: ClassSet,
    homes: impl IntoIterator<Item = &'h Home>,
    today: Day,
    is_preflight: bool,
) -> Ruling {
    let for_home = |home| clear_for_home(policy, classes, home, today, is_preflight);
    homes.into_iter().map(for_home).fold(Ruling::everywhere(policy), Ruling::intersect)
}

/// The evidence that data under this rule needs. A preflight names no user, so the request that it asks about may belong elsewhere
/// than a guess says, and its path and query would then be in the wrong region's app server and log. It needs a record, unless
/// the data may be anywhere.
fn needed(rule: &ResidencyRule, is_preflight: bool) -> Evidence {
    match rule.stays {
        Stays::Home | Stays::In(_) if is_preflight => Evidence::Recorded,
        Stays::Home | Stays::In(_) | Stays::Anywhere => rule.needs,
    }
}

fn clear_for_home(policy: &Policy, classes: ClassSet, home: &Home, today: Day, is_preflight: bool) -> Ruling {
    // An unowned request counts as inferred.
    let evidence = home.evidence().unwrap_or(Evidence::Inferred);
    let of_class = |class| {
        let rule = &policy.class(class).rule;
        let is_known_well_enough = evidence >= needed(rule, is_preflight);
        let admitted = if is_known_well_enough {
            policy.regions_where(|place| rule.admits(home.jurisdiction(), place, today))
        } else {
            RegionSet::EMPTY
        };
        let carrying = policy.regions_where(|place| rule.carries(place));
        let (cleared, carriers) = match rule.mode {
            Mode::Enforce => (admitted, carrying),
            Mode::Report => (policy.regions, policy.regions),
        };
        let is_too_weak = !is_known_well_enough && rule.mode == Mode::Enforce;
        Ruling {
            clearance: Clearance::of(cleared),
            cause: if is_too_weak { Code::EvidenceTooWeak } else { Code::NowhereCleared },
            enforced: admitted,
            carriers,
            enforced_carriers: carrying,
        }
    };
    classes.iter().map(of_class).fold(Ruling::everywhere(policy), Ruling::intersect)
}
