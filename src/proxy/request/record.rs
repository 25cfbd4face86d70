//! What must be written before data crosses a border.

use crate::audit::{Count, Direction, Movement};
use crate::decision::residency::Stays;
use crate::decision::route_of;
use crate::decision::verdict::Trail;
use crate::model::jurisdiction::Jurisdiction;
use crate::model::outcome::Code;
use crate::model::region::RegionId;

use super::Judged;
use super::account::Account;

/// A line for what crosses a border with data that may not be anywhere; a count for what may.
pub(super) async fn record_movement(
    account: &Account,
    judged: &Judged,
    direction: Direction,
    from: RegionId,
    to: RegionId,
) -> Result<(), Code> {
    let policy = &account.snapshot.policy;
    if policy.jurisdiction_of(from) == policy.jurisdiction_of(to) {
        return Ok(());
    }
    let ledger = match &account.worker.shared.ledger {
        Some(ledger) => ledger,
        None if account.may_be_anywhere() => return Ok(()),
        // A reload may have brought borders to a process that was started without a ledger.
        None => return Err(Code::LedgerUnavailable),
    };
    let (from_name, to_name) = (policy.region_name(from), policy.region_name(to));
    if account.may_be_anywhere() {
        ledger.count(Count {
            what: "movement",
            code: "",
            class: account.class().into(),
            from: from_name.into(),
            to: to_name.into(),
        });
        return Ok(());
    }
    let trail = &judged.decision.trail;
    let user = trail.home.map_or(Jurisdiction::Unknown, |home| home.jurisdiction());
    let movement = Movement {
        request: account.id(),
        direction,
        from: from_name,
        to: to_name,
        route: route_of(trail, policy).map_or("none", |route| &route.name),
        classes: trail.classes.iter().map(|class| &*policy.class(class).name).collect(),
        user: account.user(),
        jurisdiction: policy.jurisdiction_name(user),
        evidence: trail.home.and_then(|home| home.evidence()).map(|evidence| evidence.as_str()),
        bases: bases(account, trail, user, to),
        reported: trail.reported,
        policy: policy.hash,
    };
    ledger.record(&movement).await.map_err(|_| Code::LedgerUnavailable)
}

/// The legal bases without which the data could not be processed in `to`.
fn bases<'a>(account: &'a Account, trail: &Trail, user: Jurisdiction, to: RegionId) -> Vec<&'a str> {
    let policy = &account.snapshot.policy;
    let place = policy.jurisdiction_of(to);
    let of_class = |class| {
        let rule = &policy.class(class).rule;
        let at_home = rule.stays == Stays::Home && user == place;
        let transfers = rule.transfers_from(user, trail.today).filter(move |transfer| !at_home && transfer.to.contains(place));
        transfers.map(|transfer| &*transfer.basis)
    };
    trail.classes.iter().flat_map(of_class).collect()
}
