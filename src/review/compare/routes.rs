//! Differences between routes: those that come or go, and their properties.

use std::collections::HashMap;

use crate::decision::policy::Policy;
use crate::decision::policy::chain::Reads;
use crate::decision::policy::route::{FieldCondition, HostPattern, Method, MethodSet, PathPattern, Pattern, Route, Segment};

use super::super::step_name;
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
    for route in new.routes.all() {
        let Some(was) = earlier.get(&route.name).copied() else {
            add(&route.name, format!("new ({})", in_words(new, route).join("; ")));
            continue;
        };
        let before = old.routes.all().get(was).expect("a position in this list");
        let (words_before, words_after) = (in_words(old, before), in_words(new, route));
        let mut parts: Vec<_> = changed(&words_before, &words_after).into_iter().collect();
        let texts = (pattern_in_words(before), pattern_in_words(route));
        if texts.0 != texts.1 {
            parts.push(format!("now matches {}; matched {}", texts.1, texts.0));
        }
        if !parts.is_empty() {
            add(&route.name, parts.join("; "));
        }
    }
    for (first, second) in swapped(old, new) {
        let text = format!("now before route {}, which matches some of the same requests; was after it", second.name);
        add(&first.name, text);
    }
    for route in old.routes.all() {
        if !later.contains_key(&route.name) {
            add(&route.name, format!("gone ({})", in_words(old, route).join("; ")));
        }
    }
    changes
}

/// The most routes of which every pair is compared.
const MAX_SWAPPED: usize = 2_000;

/// Routes that share requests and have changed places: each with the one that is now after it.
pub(super) fn swapped<'n>(old: &Policy, new: &'n Policy) -> Vec<(&'n Route, &'n Route)> {
    let places: HashMap<&str, usize> = old.routes.all().iter().enumerate().map(|(index, route)| (&*route.name, index)).collect();
    let common: Vec<_> = new.routes.all().iter().filter_map(|route| Some((route, *places.get(&*route.name)?))).collect();
    if common.is_sorted_by_key(|(_, place)| *place) {
        return Vec::new();
    }
    let common = common.get(..MAX_SWAPPED).unwrap_or(&common);
    let mut pairs = Vec::new();
    for (index, (first, place)) in common.iter().enumerate() {
        let after = common.get(index.saturating_add(1)..).unwrap_or_default();
        let shares = |second: &Route| {
            !first.pattern.methods.intersection(second.pattern.methods).is_empty()
                && first.pattern.overlaps_target_of(&second.pattern)
        };
        let moved = after.iter().filter(|(second, before)| before < place && shares(second));
        pairs.extend(moved.map(|(second, _)| (*first, *second)));
    }
    pairs
}

/// The requests that a route matches, as the configuration writes them.
fn pattern_in_words(route: &Route) -> String {
    let Pattern { hosts, paths, methods, conditions } = &route.pattern;
    let host = |host: &HostPattern| match host {
        HostPattern::Any => "any host".to_owned(),
        HostPattern::Exact(host) => host.to_string(),
        HostPattern::Below(domain) => format!("*.{domain}"),
    };
    let segment = |segment: &Segment| match segment {
        Segment::Literal(text) => format!("/{text}"),
        Segment::Any => "/{any}".to_owned(),
        Segment::User => "/{user}".to_owned(),
    };
    let path = |path: &PathPattern| {
        let segments: String = path.segments.iter().map(segment).collect();
        match (segments.is_empty(), path.open_ended) {
            (true, false) => "/".to_owned(),
            (_, true) => segments + "/**",
            (false, false) => segments,
        }
    };
    let methods = match methods {
        all if *all == MethodSet::ALL => "any method".to_owned(),
        some => some.iter().map(Method::as_str).collect::<Vec<_>>().join(", "),
    };
    let list = |texts: Vec<String>| texts.join(" or ");
    let mut words = vec![methods, list(hosts.iter().map(host).collect()), list(paths.iter().map(path).collect())];
    let field = |kind: &str, field: &FieldCondition| match field.values.len() {
        0 => format!("{kind} {}", field.name),
        _ => format!("{kind} {}={}", field.name, field.values.join("|")),
    };
    words.extend(conditions.headers.iter().map(|condition| field("header", condition)));
    words.extend(conditions.query.iter().map(|condition| field("query", condition)));
    words.extend(conditions.clients.iter().map(|network| format!("clients in {network}")));
    let keeps = [(route.keeps.encoded_slash, "%2F"), (route.keeps.encoded_percent, "%25"), (route.keeps.semicolon, ";")];
    let kept: Vec<_> = keeps.iter().filter(|(keeps, _)| *keeps).map(|(_, text)| *text).collect();
    words.extend((!kept.is_empty()).then(|| format!("paths with {}", kept.join(" "))));
    words.join(", ")
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
