//! Residency rules as the operator writes them: where a data class may be processed, and through whom it may be carried.

use crate::model::day::Day;
use crate::model::jurisdiction::{Jurisdiction, JurisdictionSet};
use crate::model::user::Evidence;

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
