//! Where a request's data may be processed, and through whom it may be carried.
//!
//! INVARIANT: a [`Clearance`] is made here and nowhere else, and there is no way to add a region to one.

use crate::model::day::Day;
use crate::model::jurisdiction::{Jurisdiction, JurisdictionSet};
use crate::model::outcome::Code;
use crate::model::region::{RegionId, RegionSet};
use crate::model::user::Evidence;

use super::policy::{ClassSet, Policy};
use super::verdict::Home;

/// The regions a request may be processed in: it can only shrink, and it is never empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clearance {
    regions: RegionSet,
}

impl Clearance {
    const fn of(regions: RegionSet) -> Option<Self> {
        if regions.is_empty() { None } else { Some(Self { regions }) }
    }

    /// What is left of it within `regions`; `None` if that is nothing.
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

/// Where a data class may be processed, and through whom it may be carried.
#[derive(Clone, PartialEq, Debug)]
pub struct ResidencyRule {
    pub stays: Stays,
    /// The least evidence of a home that unlocks the class.
    pub needs: Evidence,
    pub carried_by: Carriers,
    pub transfers: Vec<Transfer>,
    pub mode: Mode,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stays {
    /// In the user's jurisdiction.
    Home,
    In(JurisdictionSet),
    Anywhere,
}

/// Whose proxies may carry a class through regions where it may not be processed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Carriers {
    Anyone,
    Only(JurisdictionSet),
    Nobody,
}

/// An exception: data of users of one jurisdiction may be processed in another as well.
#[derive(Clone, PartialEq, Debug)]
pub struct Transfer {
    pub from: Jurisdiction,
    pub to: JurisdictionSet,
    /// The legal basis, in the operator's words.
    pub basis: Box<str>,
    /// The last day on which it holds, UTC.
    pub until: Day,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    Enforce,
    /// Clears every region; what would have been cleared is in the trail.
    Report,
}

impl ResidencyRule {
    /// The transfers that hold on `today` for a user of `from`.
    pub fn transfers_from(&self, from: Jurisdiction, today: Day) -> impl Iterator<Item = &Transfer> {
        self.transfers.iter().filter(move |transfer| transfer.from == from && today <= transfer.until)
    }

    /// Whether the class may be processed in `place` for a user of `user`.
    pub fn admits(&self, user: Jurisdiction, place: Jurisdiction, today: Day) -> bool {
        let stays = match self.stays {
            Stays::Anywhere => true,
            Stays::In(jurisdictions) => jurisdictions.contains(place),
            Stays::Home => user == place && matches!(place, Jurisdiction::Named(_)),
        };
        stays || self.transfers_from(user, today).any(|transfer| transfer.to.contains(place))
    }

    /// Whether a proxy in `place` may carry the class although it may not be processed there.
    pub fn carries(&self, place: Jurisdiction) -> bool {
        match self.carried_by {
            Carriers::Anyone => true,
            Carriers::Only(jurisdictions) => jurisdictions.contains(place),
            Carriers::Nobody => false,
        }
    }
}

/// What the rules say of a request's classes taken together.
pub struct Ruling {
    /// `None` if the classes clear no region.
    pub clearance: Option<Clearance>,
    /// Why there is none.
    pub cause: Code,
    /// What would be cleared if no class were in report-only mode.
    pub enforced: RegionSet,
    /// Where the classes may be carried besides.
    pub carriers: RegionSet,
    /// The same if no class were in report-only mode.
    pub enforced_carriers: RegionSet,
}

/// The regions that every one of `classes` clears: deny wins.
pub fn clear(policy: &Policy, classes: ClassSet, home: &Home, today: Day) -> Ruling {
    let (mut cleared, mut enforced) = (policy.regions, policy.regions);
    let (mut carriers, mut enforced_carriers) = (policy.regions, policy.regions);
    let mut cause = Code::NowhereCleared;
    for class in classes.iter() {
        let rule = &policy.class(class).rule;
        let is_known_well_enough = home.evidence().is_none_or(|evidence| evidence >= rule.needs);
        let admitted = if is_known_well_enough {
            policy.regions_where(|place| rule.admits(home.jurisdiction(), place, today))
        } else {
            RegionSet::EMPTY
        };
        let carrying = policy.regions_where(|place| rule.carries(place));
        enforced = enforced.intersection(admitted);
        enforced_carriers = enforced_carriers.intersection(carrying);
        if rule.mode == Mode::Report {
            continue;
        }
        if !is_known_well_enough {
            cause = Code::EvidenceTooWeak;
        }
        cleared = cleared.intersection(admitted);
        carriers = carriers.intersection(carrying);
    }
    Ruling { clearance: Clearance::of(cleared), cause, enforced, carriers, enforced_carriers }
}
