//! `domicile check --against OLD`: the differences between two configurations.

use std::path::Path;

use serde_json::{Value, json};

use crate::config::{self, Config};
use crate::model::day::Day;
use crate::model::region::Registry;
use crate::review::compare::{self, Difference, Example};

/// The differences of a configuration from an older file. `registry` is the one of the new file.
pub fn differences(old: &Path, new: &Config, registry: &mut Registry, today: Day) -> Result<Vec<Difference>, String> {
    let region = new.policy.region_name(new.policy.local);
    // The older file may not know the region; judgements are compared for all regions anyway.
    let names = config::region_names(old).map_err(|problems| lines(&problems))?;
    let region = names.iter().find(|name| *name == region).or(names.first()).map(String::as_str);
    let older = config::load_unproven(old, region, registry, today).map_err(|problems| lines(&problems))?;
    let mut found = compare::compare(&older.policy, &new.policy, today);
    found.extend(beside_the_policy(&older, new));
    Ok(found)
}

/// Settings outside the policy that change which facts a request has, or where it is sent.
fn beside_the_policy(old: &Config, new: &Config) -> Vec<Difference> {
    let (before, after) = (&old.settings, &new.settings);
    let networks = |config: &Config| {
        let networks: Vec<_> = config.settings.intake.trust.iter().map(ToString::to_string).collect();
        if networks.is_empty() { "no network".to_owned() } else { networks.join(", ") }
    };
    let file = |file: Option<&std::path::PathBuf>| file.map_or_else(|| "none".to_owned(), |file| file.display().to_string());
    let assertions = |config: &Config| (config.assertions.len() + config.cases.len()).to_string();
    let rows = [
        ("client_address.trust", networks(old), networks(new)),
        ("client_address.from", before.intake.source.name(), after.intake.source.name()),
        (
            "users.directory.file",
            file(before.directory.as_ref().map(|directory| &directory.file)),
            file(after.directory.as_ref().map(|directory| &directory.file)),
        ),
        (
            "geoip.database",
            file(before.geoip.as_ref().map(|geoip| &geoip.database)),
            file(after.geoip.as_ref().map(|geoip| &geoip.database)),
        ),
        ("number of assertions", assertions(old), assertions(new)),
    ];
    let differs = rows.into_iter().filter(|(_, before, after)| before != after);
    let difference = |(subject, before, after): (&str, String, String)| Difference {
        subject: subject.to_owned(),
        change: format!("now {after}; was {before}"),
        example: None,
    };
    let mut found: Vec<_> = differs.map(difference).collect();
    let url =
        |config: &Config, region| config.settings.urls.iter().find(|(known, _)| *known == region).map(|(_, url)| url.to_string());
    for region in new.policy.regions.intersection(old.policy.regions).iter() {
        let (was, is) = (url(old, region), url(new, region));
        if let (Some(was), Some(is)) = (was, is)
            && was != is
        {
            let subject = format!("public URL of {}", new.policy.region_name(region));
            found.push(Difference { subject, change: format!("now {is}; was {was}"), example: None });
        }
    }
    found
}

fn lines(problems: &[config::Problem]) -> String {
    let lines: String = problems.iter().map(|problem| format!("\n{problem}")).collect();
    format!("the older file, with which this one is to be compared:{lines}")
}

/// The differences for people.
pub fn text(old: &Path, differences: &[Difference]) -> String {
    let count = match differences.len() {
        0 => "nothing differs: requests with the same facts are judged alike".to_owned(),
        1 => "1 difference".to_owned(),
        count => format!("{count} differences"),
    };
    let mut out = format!("compared with {}: {count}\n", old.display());
    for Difference { subject, change, example } in differences {
        out += &format!("\n{subject}: {change}\n");
        if let Some(Example { request, by, at, on, before, after }) = example {
            let on = on.map_or_else(String::new, |day| format!(" on {day}"));
            out += &format!("  for example {request} by {by}, arriving at {at}{on}: {after}; was {before}\n");
        }
    }
    out
}

pub fn json(differences: &[Difference]) -> Value {
    let example = |example: &Example| {
        let Example { request, by, at, on, before, after } = example;
        let on = on.map(|day| day.to_string());
        json!({ "request": request, "by": by, "at": at, "on": on, "before": before, "after": after })
    };
    let one = |difference: &Difference| {
        json!({
            "subject": difference.subject,
            "change": difference.change,
            "example": difference.example.as_ref().map(example),
        })
    };
    differences.iter().map(one).collect()
}
