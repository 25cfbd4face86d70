//! The differences between two policies that change where requests go or where data may be, in words and with example requests.
//!
//! Both policies must take the numbers of regions, jurisdictions and services from one registry.

mod clients;
mod examples;
mod routes;
mod rules;

use std::net::IpAddr;

use crate::decision::policy::Policy;
use crate::model::country::CountryCode;
use crate::model::day::Day;
use crate::model::jurisdiction::Jurisdiction;
use crate::model::region::RegionId;

use examples::Samples;

/// A difference between two policies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// The part of the policy, such as `region us-east` or `route account`.
    pub subject: String,
    /// The change, in words.
    pub change: String,
    /// A request that the policies judge differently because of it, if one of the requests tried is.
    pub example: Option<Example>,
}

/// A request that two policies judge differently when all regions are up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Example {
    /// Method and URL.
    pub request: String,
    /// The user or the client.
    pub by: String,
    /// The region where it arrives.
    pub at: String,
    /// The day, if it is not today.
    pub on: Option<Day>,
    /// The outcome under the old policy: `proceed REGION…`, `redirect REGION` or `refuse CODE`.
    pub before: String,
    pub after: String,
}

/// A difference without its example.
struct Change {
    subject: String,
    text: String,
    about: About,
}

/// The requests among which an example is looked for.
#[derive(Default)]
struct About {
    /// A data class of the route.
    class: Option<String>,
    /// The name of the route in either policy.
    route: Option<String>,
    jurisdiction: Option<Jurisdiction>,
    country: Option<CountryCode>,
    /// An address of the client.
    client: Option<IpAddr>,
    /// The client is at an unknown place.
    is_unplaced: bool,
    /// The home of the user before or after.
    region: Option<RegionId>,
    /// The day on which the change takes effect, if it is not today.
    day: Option<Day>,
    /// The change is one of a list, whose other members have the examples.
    is_detail: bool,
}

/// All differences, for judgements on `today`; a change that a transfer makes later names its day.
pub fn compare(old: &Policy, new: &Policy, today: Day) -> Vec<Difference> {
    let samples = Samples::of(old, new, today);
    let difference =
        |change: Change| Difference { example: samples.example(&change.about), subject: change.subject, change: change.text };
    changes(old, new, today).into_iter().map(difference).collect()
}

/// The first differences in words, without examples, and the number of the others.
pub fn in_words(old: &Policy, new: &Policy, today: Day) -> Vec<String> {
    let all = changes(old, new, today);
    let mut words: Vec<_> = all.iter().take(MAX_WORDS).map(|change| format!("{}: {}", change.subject, change.text)).collect();
    let more = all.len().saturating_sub(MAX_WORDS);
    if more > 0 {
        words.push(format!("{more} more differences; `domicile check --against` shows them"));
    }
    words
}

/// The most differences of one line of the ledger.
const MAX_WORDS: usize = 20;

fn changes(old: &Policy, new: &Policy, today: Day) -> Vec<Change> {
    if old.hash == new.hash {
        return Vec::new();
    }
    let mut changes = rules::regions(old, new);
    changes.extend(rules::classes(old, new, today));
    changes.extend(routes::changes(old, new));
    changes.extend(clients::changes(old, new, today));
    changes.extend(rules::identification(old, new));
    if changes.is_empty() {
        let text = "only in what changes no judgement, such as the order of routes that share no requests".to_owned();
        changes.push(Change::new("the policies differ", text));
    }
    changes
}

impl Change {
    fn new(subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self { subject: subject.into(), text: text.into(), about: About::default() }
    }
}

/// The parts of two descriptions that differ, in words; `None` if none does.
fn changed<T: PartialEq + std::fmt::Display>(before: &[T], after: &[T]) -> Option<String> {
    let (gone, came) = moved(before, after);
    let words: Vec<_> =
        came.iter().map(|word| format!("now {word}")).chain(gone.iter().map(|word| format!("was {word}"))).collect();
    (!words.is_empty()).then(|| words.join("; "))
}

/// Members of a list that only one of two lists has: those that are gone, and those that are new.
fn moved<'l, T: PartialEq>(before: &'l [T], after: &'l [T]) -> (Vec<&'l T>, Vec<&'l T>) {
    let gone = before.iter().filter(|member| !after.contains(member)).collect();
    (gone, after.iter().filter(|member| !before.contains(member)).collect())
}
