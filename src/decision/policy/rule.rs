//! Residency rules as the operator writes them: where a data class may be processed, and which proxies may carry it.

use crate::model::day::Day;
use crate::model::jurisdiction::{Jurisdiction, JurisdictionSet};
use crate::model::user::Evidence;

/// Where a data class may be processed, and which proxies may carry it.
#[derive(Clone, PartialEq, Debug)]
pub struct ResidencyRule {
    pub stays: Stays,
    /// The weakest evidence of a home that is enough for the class.
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

/// The proxies that may carry a class although their regions may not process it.
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
    /// Where the basis is documented, in the operator's words, such as the number of a contract.
    pub record: Option<Box<str>>,
    /// The last day on which the transfer is valid, UTC.
    pub until: Day,
}

impl Transfer {
    /// The legal basis, with its record if the policy names one.
    pub fn grounds(&self) -> String {
        match &self.record {
            Some(record) => format!("{}, {record}", self.basis),
            None => self.basis.to_string(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    Enforce,
    /// Clears every region. The trail has the regions that `Enforce` would clear.
    Report,
}

impl ResidencyRule {
    /// The transfers that are valid on `today` for a user from `from`.
    pub fn transfers_from(&self, from: Jurisdiction, today: Day) -> impl Iterator<Item = &Transfer> {
        self.transfers.iter().filter(move |transfer| transfer.from == from && today <= transfer.until)
    }

    /// Whether the class may be processed in `place` for a user from `user`.
    pub fn admits(&self, user: Jurisdiction, place: Jurisdiction, today: Day) -> bool {
        let stays = match self.stays {
            Stays::Anywhere => true,
            Stays::In(jurisdictions) => jurisdictions.contains(place),
            Stays::Home => user == place && matches!(place, Jurisdiction::Named(_)),
        };
        stays || self.transfers_from(user, today).any(|transfer| transfer.to.contains(place))
    }

    /// Whether a proxy in `place` may carry the class although `place` may not process it.
    pub fn carries(&self, place: Jurisdiction) -> bool {
        match self.carried_by {
            Carriers::Anyone => true,
            Carriers::Only(jurisdictions) => jurisdictions.contains(place),
            Carriers::Nobody => false,
        }
    }
}
