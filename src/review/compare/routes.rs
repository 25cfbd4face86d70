//! Differences between routes: those that come or go, and their properties.

use std::collections::HashMap;

use crate::decision::policy::Policy;
use crate::decision::policy::chain::Reads;
use crate::decision::policy::route::Route;

use super::super::step_name;
use super::examples::sample_of;
use super::{About, Change, changed};

pub(super) fn changes(old: &Policy, new: &Policy) -> Vec<Change> {
    let by_name = |policy: &Policy| -> HashMap<Box<str>, usize> {
        policy.routes.all().iter().enumerate().map(|(index, route)| (route.name.clone(), index)).collect()
    };
    let (earlier, later) = (by_name(old), by_name(new));
    let mut changes = Vec::new();
    let mut add = |name: &str, text: String| {
        let about = About { route: Some(name.to_owned()), ..About::default() };
        changes.push(Change { about, ..Change::new(format!("route {name}"), text) });
    };
    for (index, route) in new.routes.all().iter().enumerate() {
        let Some(was) = earlier.get(&route.name).copied() else {
            add(&route.name, format!("new ({})", in_words(new, route).join("; ")));
            continue;
        };
        let before = old.routes.all().get(was).expect("a position in this list");
        let (words_before, words_after) = (in_words(old, before), in_words(new, route));
        let mut parts: Vec<_> = changed(&words_before, &words_after).into_iter().collect();
        if before.pattern != route.pattern || before.keeps != route.keeps {
            parts.push("it matches other requests".to_owned());
        } else if let (Some(earlier), Some(later)) = (sample_of(old, was), sample_of(new, index)) {
            // The pattern is the same, so a different route for its requests is due to the order.
            let (earlier, later) = (earlier.route_in(new), later.route_in(old));
            let other = earlier.filter(|name| **name != *route.name).or_else(|| later.filter(|name| **name != *route.name));
            parts.extend(other.map(|other| format!("route {other} takes some of its requests under one of the two policies")));
        }
        if !parts.is_empty() {
            add(&route.name, parts.join("; "));
        }
    }
    for route in old.routes.all() {
        if !later.contains_key(&route.name) {
            add(&route.name, format!("gone ({})", in_words(old, route).join("; ")));
        }
    }
    changes
}

/// The properties of a route that decide about its requests.
fn in_words(policy: &Policy, route: &Route) -> Vec<String> {
    let chain: Vec<_> = route.chain.iter().map(|step| step_name(policy, *step)).collect();
    let mut words = vec![
        format!("data {}", policy.class(route.class).name),
        format!("home by {}", chain.join(", ")),
        match route.service {
            Some(service) => format!("service {}", policy.service_name(service)),
            None => "no service".to_owned(),
        },
        match route.failover.reads {
            Reads::Never => "reads stay at home".to_owned(),
            Reads::Nearest => "reads fail over to the nearest region".to_owned(),
        },
    ];
    words.extend(route.claim.iter().map(|claim| format!("claim {claim}")));
    if !route.aliases.is_empty() {
        words.push(format!("aliases {}", route.aliases.join(", ")));
    }
    words
}
