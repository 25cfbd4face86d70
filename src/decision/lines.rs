//! The ledger lines that a request needs under one decision.

use crate::model::jurisdiction::Jurisdiction;
use crate::model::region::RegionId;

use super::facts::Ingress;
use super::policy::Policy;
use super::policy::class::ClassId;
use super::policy::rule::{Stays, Transfer};
use super::verdict::Trail;

/// The ledger lines that a request needs: whether it crosses a border, and the transfers under which it is processed.
pub struct Lines {
    crosses: bool,
    /// The legal basis of each transfer, with its record.
    grounds: Vec<String>,
}

impl Lines {
    /// Whether these lines record everything that `other` would.
    pub fn covers(&self, other: &Self) -> bool {
        (self.crosses || !other.crosses) && other.grounds.iter().all(|grounds| self.grounds.contains(grounds))
    }
}

/// The lines of a request that `region` processes.
pub fn lines_of(policy: &Policy, trail: &Trail, region: RegionId) -> Lines {
    if policy.may_be_anywhere(trail.classes) {
        return Lines { crosses: false, grounds: Vec::new() };
    }
    let other = match trail.ingress {
        Ingress::Client => region,
        Ingress::Peer(peer) => peer,
    };
    let crosses = policy.jurisdiction_of(other) != policy.jurisdiction_of(policy.local);
    // Within one jurisdiction, the region that processes the request writes the line.
    let is_recorded_here = crosses || region == policy.local;
    let transfers = if is_recorded_here { transfers(policy, trail, region) } else { Vec::new() };
    Lines { crosses, grounds: transfers.into_iter().map(Transfer::grounds).collect() }
}

/// The transfers without which the data could not be processed in `region`, one for each legal basis and record.
pub fn transfers<'p>(policy: &'p Policy, trail: &Trail, region: RegionId) -> Vec<&'p Transfer> {
    let (place, today) = (policy.jurisdiction_of(region), trail.today);
    let of_class = |(class, user)| {
        let rule = &policy.class(class).rule;
        let stays_allow = match rule.stays {
            Stays::Home => user == place,
            Stays::In(set) => set.contains(place),
            Stays::Anywhere => true,
        };
        rule.transfers_from(user, today).filter(move |transfer| !stays_allow && transfer.to.contains(place))
    };
    let judged = trail.classes.iter().flat_map(|class| users_of(trail).map(move |user| (class, user)));
    let mut found: Vec<&Transfer> = Vec::new();
    for transfer in judged.flat_map(of_class) {
        if !found.iter().any(|known| known.grounds() == transfer.grounds()) {
            found.push(transfer);
        }
    }
    found
}

/// The part of a data class's rule that lets data be in a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Applied {
    pub class: ClassId,
    pub clause: Clause,
}

/// A part of a rule, named as in the configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Clause {
    Stays,
    Transfers,
    CarriedBy,
    /// Report-only mode: the rule forbids it.
    Mode,
}

impl Clause {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stays => "stays",
            Self::Transfers => "transfers",
            Self::CarriedBy => "carried_by",
            Self::Mode => "mode",
        }
    }
}

/// For each class, the part of its rule that lets `region` process the data or, with `is_carried`, at least carry it.
pub fn rules(policy: &Policy, trail: &Trail, region: RegionId, is_carried: bool) -> Vec<Applied> {
    let place = policy.jurisdiction_of(region);
    let applied = |class| {
        let rule = &policy.class(class).rule;
        let stays = |user| match rule.stays {
            Stays::Home => user == place,
            Stays::In(set) => set.contains(place),
            Stays::Anywhere => true,
        };
        let clause = if users_of(trail).all(stays) {
            Clause::Stays
        } else if is_carried && rule.carries(place) {
            Clause::CarriedBy
        } else if users_of(trail).all(|user| rule.admits(user, place, trail.today)) {
            Clause::Transfers
        } else {
            Clause::Mode
        };
        Applied { class, clause }
    };
    trail.classes.iter().map(applied).collect()
}

/// The jurisdictions of the users that the request was judged for: one, or two.
pub fn users_of(trail: &Trail) -> impl Iterator<Item = Jurisdiction> {
    let first = trail.homes().next().is_none().then_some(Jurisdiction::Unknown);
    first.into_iter().chain(trail.homes().map(|home| home.jurisdiction()))
}
