//! Differences in regions, jurisdictions and the rules of data classes.

use std::collections::BTreeSet;

use crate::decision::policy::Policy;
use crate::decision::policy::class::ClassId;
use crate::model::country::CountryCode;
use crate::model::day::Day;
use crate::model::jurisdiction::{Jurisdiction, JurisdictionId};
use crate::model::region::{RegionId, RegionSet};

use super::super::matrix::rule_in_words;
use super::super::reach::{self, Reach};
use super::super::{listed, names};
use super::{About, Change, changed, moved};

/// Regions that come, go or move, and the countries of jurisdictions.
pub(super) fn regions(old: &Policy, new: &Policy) -> Vec<Change> {
    let mut changes = Vec::new();
    for region in old.regions.union(new.regions).iter() {
        let has = |policy: &Policy| policy.regions.contains(region).then(|| region_in_words(policy, region));
        let text = match (has(old), has(new)) {
            (None, Some(words)) => format!("new ({})", words.join(", ")),
            (Some(words), None) => format!("gone ({})", words.join(", ")),
            (Some(before), Some(after)) => changed(&before, &after).unwrap_or_default(),
            (None, None) => String::new(),
        };
        if !text.is_empty() {
            let name = if new.regions.contains(region) { new.region_name(region) } else { old.region_name(region) };
            let about = About { region: Some(region), ..About::default() };
            changes.push(Change { about, ..Change::new(format!("region {name}"), text) });
        }
    }
    changes.extend(jurisdictions(old, new));
    changes
}

fn region_in_words(policy: &Policy, id: RegionId) -> Vec<String> {
    let region = policy.region(id);
    let services: Vec<_> = region.services.iter().map(|service| policy.service_name(*service)).collect();
    vec![
        format!("in jurisdiction {}", policy.jurisdiction_name(policy.jurisdiction_of(id))),
        format!("at [{}, {}]", region.at.latitude, region.at.longitude),
        if services.is_empty() { "without services".into() } else { format!("with services {}", services.join(", ")) },
        if region.has_gateway { "with a gateway".into() } else { "without a gateway".into() },
        if region.has_url { "with a public URL".into() } else { "without a public URL".into() },
    ]
}

fn jurisdictions(old: &Policy, new: &Policy) -> Vec<Change> {
    let ids = |policy: &Policy| policy.jurisdictions().map(|(id, _)| id).collect::<Vec<_>>();
    let all: BTreeSet<JurisdictionId> = ids(old).into_iter().chain(ids(new)).collect();
    let countries = |policy: &Policy, id| {
        let own = |code: &CountryCode| policy.jurisdiction_of_country(Some(*code)) == Jurisdiction::Named(id);
        CountryCode::all().filter(own).map(|code| code.as_str().to_owned()).collect::<Vec<_>>()
    };
    let mut changes = Vec::new();
    for id in all {
        let (before, after) = (countries(old, id), countries(new, id));
        let (gone, came) = moved(&before, &after);
        let has = |policy: &Policy| policy.jurisdictions().any(|(known, _)| known == id);
        let state = match (has(old), has(new)) {
            (false, true) => Some("new".to_owned()),
            (true, false) => Some("gone".to_owned()),
            (true, true) | (false, false) => None,
        };
        let part = |label: &str, members: Vec<&String>| (!members.is_empty()).then(|| format!("{label} {}", few(&members)));
        let parts: Vec<_> = state.into_iter().chain(part("now also", came)).chain(part("no longer", gone)).collect();
        if !parts.is_empty() {
            let name = if has(new) { new } else { old }.jurisdiction_name(Jurisdiction::Named(id)).to_owned();
            let about = About { jurisdiction: Some(Jurisdiction::Named(id)), ..About::default() };
            changes.push(Change { about, ..Change::new(format!("jurisdiction {name}"), parts.join("; ")) });
        }
    }
    changes
}

/// The first members of a list, and the number of the others.
pub(super) fn few<T: AsRef<str>>(members: &[T]) -> String {
    const SHOWN: usize = 12;
    let shown: Vec<_> = members.iter().take(SHOWN).map(AsRef::as_ref).collect();
    match members.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} others", shown.join(", ")),
    }
}

/// Data classes that come or go, and for the others their rules and the regions that they clear.
pub(super) fn classes(old: &Policy, new: &Policy, today: Day) -> Vec<Change> {
    let class_names = |policy: &Policy| policy.class_ids().map(|class| policy.class(class).name.to_string()).collect::<Vec<_>>();
    let (before, after) = (class_names(old), class_names(new));
    let all: BTreeSet<&String> = before.iter().chain(&after).collect();
    let of_class = |name: &&String| match (old.find_class(name), new.find_class(name)) {
        (Some(was), Some(is)) => class(old, new, (was, is), today),
        (None, Some(is)) => vec![(format!("new: {}", rule_in_words(new, &new.class(is).rule).join("; ")), About::default())],
        (Some(_), None) => vec![("gone".to_owned(), About::default())],
        (None, None) => Vec::new(),
    };
    all.iter()
        .flat_map(|name| {
            let change = |(text, about)| Change {
                subject: format!("data class {name}"),
                text,
                about: About { class: Some((*name).clone()), ..about },
            };
            of_class(name).into_iter().map(change).collect::<Vec<_>>()
        })
        .collect()
}

fn class(old: &Policy, new: &Policy, (was, is): (ClassId, ClassId), today: Day) -> Vec<(String, About)> {
    let (before, after) = (&old.class(was).rule, &new.class(is).rule);
    let mut changes: Vec<(String, About)> = Vec::new();
    // Where data may be processed and who may carry it is told for each jurisdiction below, with examples.
    let is_only_place = (before.needs, before.mode) == (after.needs, after.mode);
    let rule = changed(&rule_in_words(old, before), &rule_in_words(new, after));
    changes.extend(rule.map(|text| (text, About { is_detail: is_only_place, ..About::default() })));
    let transfers = |policy: &Policy, class| {
        let in_words = policy.class(class).rule.transfers.iter().map(|transfer| {
            let (from, to) = (policy.jurisdiction_name(transfer.from), policy.jurisdiction_names(transfer.to));
            format!("transfer from {from} to {to} until {}: {}", transfer.until, transfer.grounds())
        });
        in_words.collect::<Vec<_>>()
    };
    let (earlier, later) = (transfers(old, was), transfers(new, is));
    let (gone, came) = moved(&earlier, &later);
    let detail = || About { is_detail: true, ..About::default() };
    changes.extend(came.into_iter().map(|transfer| (format!("new {transfer}"), detail())));
    changes.extend(gone.into_iter().map(|transfer| (format!("gone {transfer}"), detail())));
    for user in old.user_jurisdictions().chain(new.user_jurisdictions()).fold(Vec::new(), |mut seen, user| {
        if !seen.contains(&user) {
            seen.push(user);
        }
        seen
    }) {
        changes.extend(reaches(old, new, (was, is), user, today));
    }
    changes
}

/// The regions that may process or carry the data of one jurisdiction's users under one policy only, from the days on which that
/// changes.
fn reaches(old: &Policy, new: &Policy, (was, is): (ClassId, ClassId), user: Jurisdiction, today: Day) -> Vec<(String, About)> {
    let transfers = old.class(was).rule.transfers.iter().chain(&new.class(is).rule.transfers);
    let mut days: Vec<_> = std::iter::once(today).chain(transfers.map(|transfer| transfer.until.next())).collect();
    days.retain(|day| *day >= today);
    days.sort_unstable();
    days.dedup();
    let user_name = if is_known(new, user) { new } else { old }.jurisdiction_name(user);
    let (mut told, mut changes) = (None, Vec::new());
    for day in days {
        // A jurisdiction that a policy does not have has no users in it.
        let of = |policy: &Policy, class| match is_known(policy, user) {
            true => reach::of(policy, class, user, day),
            false => Reach { processed: RegionSet::EMPTY, carried: RegionSet::EMPTY },
        };
        let (before, after) = (of(old, was), of(new, is));
        let gained = Reach { processed: less(after.processed, before.processed), carried: less(after.carried, before.carried) };
        let lost = Reach { processed: less(before.processed, after.processed), carried: less(before.carried, after.carried) };
        let difference = (gained, lost);
        if told.is_none_or(|told| told != difference) {
            told = Some(difference);
            let when = if day == today { String::new() } else { format!("from {day} on, ") };
            let parts = [
                part(new, "may also be processed in", gained.processed),
                part(new, "may also be carried through", less(gained.carried, gained.processed)),
                part(old, "may no longer be processed in", lost.processed),
                part(old, "may no longer be carried through", less(lost.carried, lost.processed)),
            ];
            let parts: Vec<_> = parts.into_iter().flatten().collect();
            let is_detail = parts.is_empty();
            let about = About { jurisdiction: Some(user), day: (day != today).then_some(day), is_detail, ..About::default() };
            if !is_detail {
                changes.push((format!("{when}data of users in {user_name} {}", parts.join("; ")), about));
            } else if day != today {
                changes.push((format!("{when}data of users in {user_name} may be in the same regions as before"), about));
            }
        }
    }
    changes
}

fn is_known(policy: &Policy, user: Jurisdiction) -> bool {
    policy.user_jurisdictions().any(|known| known == user)
}

fn part(policy: &Policy, label: &str, regions: RegionSet) -> Option<String> {
    (!regions.is_empty()).then(|| format!("{label} {}", listed(&names(policy, regions))))
}

fn less(set: RegionSet, other: RegionSet) -> RegionSet {
    set.iter().filter(|region| !other.contains(*region)).collect()
}

/// The settings that tell how users are identified, and how requests with unread credentials are treated.
pub(super) fn identification(old: &Policy, new: &Policy) -> Vec<Change> {
    let (gone, came) = moved(old.identification(), new.identification());
    let mut changes: Vec<_> = came
        .iter()
        .map(|line| Change::new("identification", format!("now {line}")))
        .chain(gone.iter().map(|line| Change::new("identification", format!("was {line}"))))
        .collect();
    if old.refuses_unread_credentials != new.refuses_unread_credentials {
        let text = if new.refuses_unread_credentials { "now refused" } else { "no longer refused" };
        changes.push(Change::new("credentials that are not read", text));
    }
    changes
}
