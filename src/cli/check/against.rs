//! `domicile check --against OLD`: the differences between two configurations.

use std::path::Path;

use serde_json::{Value, json};

use crate::config;
use crate::decision::policy::Policy;
use crate::model::day::Day;
use crate::model::region::Registry;
use crate::review::compare::{self, Difference, Example};

/// The differences of a policy from that of an older file. `registry` is the one of the new file.
pub fn differences(
    old: &Path,
    region: &str,
    new: &Policy,
    registry: &mut Registry,
    today: Day,
) -> Result<Vec<Difference>, String> {
    // The older file may not know the region; judgements are compared for all regions anyway.
    let names = config::region_names(old).map_err(|problems| lines(&problems))?;
    let region = names.iter().find(|name| *name == region).or(names.first()).map(String::as_str);
    let older = config::load_unproven(old, region, registry, today).map_err(|problems| lines(&problems))?;
    Ok(compare::compare(&older.policy, new, today))
}

fn lines(problems: &[config::Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// The differences for people.
pub fn text(old: &Path, differences: &[Difference]) -> String {
    let count = match differences.len() {
        0 => "nothing differs: every request is judged alike".to_owned(),
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
