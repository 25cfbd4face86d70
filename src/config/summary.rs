//! The summary that `check` prints: for each data class and jurisdiction of a user, the regions that may process the data, and
//! the regions whose proxies may carry it.

use std::fmt::Write;

use crate::decision::home::Home;
use crate::decision::policy::class::ClassSet;
use crate::decision::policy::rule::{Carriers, Mode, Stays};
use crate::decision::policy::{DataClass, Policy};
use crate::decision::residency;
use crate::model::day::Day;
use crate::model::jurisdiction::Jurisdiction;
use crate::model::region::{RegionId, RegionSet};

use super::lint::user_jurisdictions;

/// The summary, with one paragraph per data class. `verifies_tokens` is whether the configuration has `users.token`.
pub fn render(policy: &Policy, verifies_tokens: bool, today: Day) -> String {
    let mut out = String::new();
    let local = policy.region(policy.local);
    let jurisdiction = policy.jurisdiction_name(Jurisdiction::Named(local.jurisdiction));
    let _ = writeln!(
        out,
        "region {} (jurisdiction {jurisdiction}), {}, policy {}",
        local.name,
        match policy.routes.all().len() {
            1 => "1 route".to_owned(),
            count => format!("{count} routes"),
        },
        policy.hash
    );
    let unread = if !verifies_tokens {
        "credentials are forwarded unread, because no tokens are verified (`users.token`): the app servers may identify another user \
         than Domicile does"
    } else if policy.refuses_unread_credentials {
        "requests with other credentials than tokens (Basic, API keys) are refused, unless their data may be anywhere"
    } else {
        "requests with other credentials than tokens (Basic, API keys) are judged without them: the app servers may identify \
         another user than Domicile does (`users.token.others: ignore`)"
    };
    let _ = writeln!(out, "{unread}");
    for class in policy.class_ids() {
        let data = policy.class(class);
        let _ = writeln!(out, "\n{}: {}", data.name, describe(policy, data));
        let _ = writeln!(out, "  {:<14} {:<40} may be carried through", "user is in", "may be processed in");
        for user in user_jurisdictions(policy) {
            let (processed, carried) = reach(policy, ClassSet::only(class), data, user, today);
            let name = policy.jurisdiction_name(user);
            let _ = writeln!(out, "  {name:<14} {:<40} {}", names(policy, processed), names(policy, carried));
        }
        for transfer in &data.rule.transfers {
            let state = if today <= transfer.until { "holds until the end of" } else { "EXPIRED after" };
            let (from, to) = (policy.jurisdiction_name(transfer.from), policy.jurisdiction_names(transfer.to));
            let _ = writeln!(out, "  transfer from {from} to {to}: {}, {state} {}", transfer.grounds(), transfer.until);
        }
    }
    out
}

/// The regions that may process data of a user in `user` and the regions that may carry it, given sufficient evidence.
fn reach(policy: &Policy, classes: ClassSet, data: &DataClass, user: Jurisdiction, today: Day) -> (RegionSet, RegionSet) {
    let anywhere = RegionId::new(0).expect("0 is a region's number");
    let home = Home::Owned { region: anywhere, evidence: data.rule.needs, jurisdiction: user };
    let ruling = residency::clear(policy, classes, [&home], today, false);
    let processed = ruling.clearance.map_or(RegionSet::EMPTY, |clearance| clearance.regions());
    let carried = if processed.is_empty() { RegionSet::EMPTY } else { processed.union(ruling.carriers) };
    (processed, carried)
}

fn describe(policy: &Policy, data: &DataClass) -> String {
    let stays = match data.rule.stays {
        Stays::Home => "stays in the user's jurisdiction".into(),
        Stays::In(set) => format!("stays in {}", policy.jurisdiction_names(set)),
        Stays::Anywhere => "may be anywhere".into(),
    };
    let carried = match data.rule.carried_by {
        Carriers::Anyone => "may be carried through any region".into(),
        Carriers::Only(set) => format!("may be carried through {}", policy.jurisdiction_names(set)),
        Carriers::Nobody => "may not be carried through other regions".into(),
    };
    let mode = match data.rule.mode {
        Mode::Enforce => "",
        Mode::Report => "; REPORT ONLY: nothing is refused",
    };
    format!("{stays}; needs a home that is {} or better; {carried}{mode}", data.rule.needs.as_str())
}

fn names(policy: &Policy, regions: RegionSet) -> String {
    if regions.is_empty() {
        return "nowhere".into();
    }
    regions.iter().map(|region| policy.region_name(region)).collect::<Vec<_>>().join(", ")
}
