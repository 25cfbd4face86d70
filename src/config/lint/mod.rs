//! Checks of the policy as a whole, for example for routes that can never match.

mod services;

use std::net::{IpAddr, Ipv4Addr};

use crate::decision::policy::Policy;
use crate::decision::policy::chain::Step;
use crate::decision::policy::class::ClassId;
use crate::decision::policy::route::{Head, HostPattern, Method, MethodSet, NO_FIELDS, PathPattern, Pattern, Route, Segment};
use crate::decision::policy::rule::{Carriers, Mode, ResidencyRule, Stays};
use crate::model::day::Day;
use crate::model::jurisdiction::Jurisdiction;
use crate::model::region::RegionId;
use crate::model::user::Evidence;

use super::draft::{PolicyDraft, RegionDraft};

pub use services::unused as unused_services;

/// Reports routes that can never match. This check needs only the routes, so it runs even if other sections have mistakes.
pub fn report_shadowed(draft: &PolicyDraft<'_>) {
    let readable: Vec<_> = draft.routes.iter().filter_map(|draft| Some((draft.route.as_ref()?, &draft.field))).collect();
    let routes: Vec<Route> = readable.iter().map(|(route, _)| (*route).clone()).collect();
    for (index, (route, field)) in readable.iter().enumerate() {
        if let Some(earlier) = shadow(&routes, index) {
            field.report::<()>(format!(
                "route `{}` can never match: the routes above it, up to `{earlier}`, already match all of its requests",
                route.name
            ));
        }
    }
}

/// Reports mistakes that need the compiled policy to be detected.
pub fn run(policy: &Policy, draft: &PolicyDraft<'_>, today: Day) {
    for (index, route) in policy.routes.all().iter().enumerate() {
        let field = &draft.routes[index].field;
        if shadow(policy.routes.all(), index).is_some() {
            continue;
        }
        if let Some((method, wider)) = escape_by_method(policy, index, today) {
            field.report::<()>(format!(
                "a request can avoid this route by changing its method: `{method}` for the same host and path matches route \
                 `{}`, whose class `{}` has a wider clearance than `{}`; let a route of class `{2}` match the other methods",
                wider.name,
                class_name(policy, wider.class),
                class_name(policy, route.class)
            ));
        }
        if let Some((wider, narrower)) = escape_by_fields(policy, index, today) {
            field.report::<()>(format!(
                "clients decide by header fields or the query whether `{}` or `{}` matches, so both need the same clearance, but class \
                 `{}` has a wider one than `{}`; give them the same class, or tell them apart by `host`, `path` or `clients`",
                wider.name,
                narrower.name,
                class_name(policy, wider.class),
                class_name(policy, narrower.class)
            ));
        }
        if let Some((url, other)) = escape_by_redirect(policy, draft, index, today) {
            field.report::<()>(format!(
                "Domicile's own redirect changes the data class: at `{url}` the redirected request matches route `{}` of class \
                 `{}` instead of class `{}`; let a route of class `{2}` match that host",
                other.name,
                class_name(policy, other.class),
                class_name(policy, route.class)
            ));
        }
        if let Some(mistake) = services::never_served(policy, route, today) {
            field.report::<()>(mistake);
        }
        if let Some(region) = dead_end(policy, route, today) {
            field.report::<()>(format!(
                "the chain ends in `{}`, where `{}` may never be processed; end it with `refuse` or with a cleared region",
                policy.region_name(region),
                class_name(policy, route.class)
            ));
        }
    }
}

fn class_name(policy: &Policy, class: ClassId) -> &str {
    &policy.class(class).name
}

/// The earlier route that, together with the routes before it, matches every request that route `index` matches.
fn shadow(routes: &[Route], index: usize) -> Option<&str> {
    let pattern = &routes[index].pattern;
    let mut taken = MethodSet::NONE;
    for earlier in &routes[..index] {
        if earlier.pattern.covers_target_of(pattern) {
            taken = taken.union(earlier.pattern.methods);
            if pattern.methods.without(taken).is_empty() {
                return Some(&earlier.name);
            }
        }
    }
    None
}

/// A method that the route does not match, and the route with a wider clearance that matches a request with that method.
fn escape_by_method(policy: &Policy, index: usize, today: Day) -> Option<(&'static str, &Route)> {
    let routes = policy.routes.all();
    let route = &routes[index];
    for method in MethodSet::ALL.without(route.pattern.methods).iter() {
        // An earlier route for more hosts or paths is a catch-all, and is checked like a later route. An earlier route for the
        // same hosts and paths is intended.
        let catches = |other: &&Route| {
            other.pattern.methods.contains(method)
                && other.pattern.covers_target_of(&route.pattern)
                && !route.pattern.covers_target_of(&other.pattern)
        };
        if let Some(above) = routes[..index].iter().find(catches) {
            if is_wider(policy, above.class, route.class, today) {
                return Some((method.as_str(), above));
            }
            continue;
        }
        let takes = |other: &&Route| other.pattern.methods.contains(method) && other.pattern.overlaps_target_of(&route.pattern);
        for later in routes[index + 1..].iter().filter(takes) {
            if is_wider(policy, later.class, route.class, today) {
                return Some((method.as_str(), later));
            }
            if later.pattern.covers_target_of(&route.pattern) {
                break;
            }
        }
    }
    None
}

/// Two routes between which clients choose by header fields or the query, the first with a wider clearance than the second.
fn escape_by_fields(policy: &Policy, index: usize, today: Day) -> Option<(&Route, &Route)> {
    let routes = policy.routes.all();
    let route = &routes[index];
    if !route.pattern.conditions.depend_on_fields() {
        return None;
    }
    let mut left = route.pattern.methods;
    for later in &routes[index + 1..] {
        let is_other_place =
            left.intersection(later.pattern.methods).is_empty() || !later.pattern.overlaps_target_of(&route.pattern);
        if is_other_place {
            continue;
        }
        if is_wider(policy, later.class, route.class, today) {
            return Some((later, route));
        }
        if is_wider(policy, route.class, later.class, today) {
            return Some((route, later));
        }
        if later.pattern.conditions.is_empty() && later.pattern.covers_place_of(&route.pattern) {
            left = left.without(later.pattern.methods);
        }
    }
    None
}

/// Whether class `one` allows anything that class `other` forbids. A class in report-only mode forbids nothing.
fn is_wider(policy: &Policy, one: ClassId, other: ClassId, today: Day) -> bool {
    let (one, other) = (&policy.class(one).rule, &policy.class(other).rule);
    let needs = |rule: &ResidencyRule| if rule.mode == Mode::Report { Evidence::Inferred } else { rule.needs };
    if needs(one) < needs(other) {
        return true;
    }
    policy.user_jurisdictions().any(|user| {
        policy.jurisdictions().any(|(id, _)| {
            let place = Jurisdiction::Named(id);
            let admits = |rule: &ResidencyRule| rule.mode == Mode::Report || rule.admits(user, place, today);
            let handles = |rule: &ResidencyRule| admits(rule) || rule.carries(place);
            (admits(one) && !admits(other)) || (handles(one) && !handles(other))
        })
    })
}

/// The URL of a region at which a redirected request of this route would match a route of another class, and that route.
fn escape_by_redirect<'p>(policy: &'p Policy, draft: &PolicyDraft<'_>, index: usize, today: Day) -> Option<(String, &'p Route)> {
    let route = &policy.routes.all()[index];
    let rule = &policy.class(route.class).rule;
    if rule.carried_by == Carriers::Anyone || rule.mode == Mode::Report {
        return None;
    }
    // A client is redirected only to a region that may process its data, and only by a region that may not carry it.
    let admits = |user, region: &RegionDraft<'_>| {
        region.region.as_ref().is_some_and(|region| rule.admits(user, Jurisdiction::Named(region.jurisdiction), today))
    };
    let can_be_sent_to = |region: &&RegionDraft<'_>| policy.user_jurisdictions().any(|user| admits(user, region));
    let all_carry = policy.jurisdictions().all(|(id, _)| rule.carries(Jurisdiction::Named(id)));
    if all_carry && draft.regions.iter().all(|region| region.gateway.is_some()) {
        return None;
    }
    let urls = draft.regions.iter().filter(can_be_sent_to).filter_map(|region| region.url.as_ref());
    urls.filter_map(|url| Some((url.to_string(), other_class_at(policy, index, url)?))).next()
}

fn other_class_at<'p>(policy: &'p Policy, index: usize, url: &http::Uri) -> Option<&'p Route> {
    let routes = policy.routes.all();
    let route = &routes[index];
    let host = HostPattern::Exact(url.host()?.to_ascii_lowercase().into());
    let paths = route.pattern.paths.iter().map(|path| path.below(url.path())).collect();
    let (methods, conditions) = (route.pattern.methods, route.pattern.conditions.clone());
    let moved = Pattern { hosts: vec![host], paths, methods, conditions };
    let mut left = moved.methods;
    for (position, other) in routes.iter().enumerate() {
        if left.intersection(other.pattern.methods).is_empty() || !other.pattern.overlaps_target_of(&moved) {
            continue;
        }
        // If the path stays the same, an earlier route for the same hosts already matched the request before the redirect.
        let matched_before = position < index && other.pattern.covers_hosts(&route.pattern.hosts) && url.path() == "/";
        if other.class != route.class && !matched_before {
            return Some(other);
        }
        if other.pattern.covers_target_of(&moved) {
            left = left.without(other.pattern.methods);
        }
    }
    None
}

/// The fixed region at the end of a chain, if data of the route's class may not be processed there for any user.
fn dead_end(policy: &Policy, route: &Route, today: Day) -> Option<RegionId> {
    let rule = &policy.class(route.class).rule;
    let Some(Step::Region(region)) = route.chain.last() else { return None };
    let place = policy.jurisdiction_of(*region);
    let cleared = rule.mode == Mode::Report
        || (rule.needs == Evidence::Inferred && policy.user_jurisdictions().any(|user| rule.admits(user, place, today)));
    (!cleared).then_some(*region)
}

/// Warnings about valid settings that may not be intended: unexpected refusals, expired transfers, and paths with similar
/// spellings.
pub fn notes(policy: &Policy, today: Day) -> Vec<String> {
    let mut notes = Vec::new();
    for (country, region) in &policy.geo.countries {
        let user = policy.jurisdiction_of_country(Some(*country));
        let place = policy.jurisdiction_of(*region);
        let refuses = |route: &&Route| {
            let rule = &policy.class(route.class).rule;
            let somewhere = policy.jurisdictions().any(|(id, _)| rule.admits(user, Jurisdiction::Named(id), today));
            route.chain.contains(&Step::GeoIp) && rule.mode == Mode::Enforce && somewhere && !rule.admits(user, place, today)
        };
        let routes: Vec<_> = policy.routes.all().iter().filter(refuses).map(|route| format!("`{}`", route.name)).collect();
        if !routes.is_empty() {
            notes.push(format!(
                "geoip.countries maps {0} to {1}, but {1} may not process data of users in {0} (routes: {2}), so their requests \
                 are refused; name a region in their jurisdiction",
                country.as_str(),
                policy.region_name(*region),
                routes.join(", ")
            ));
        }
    }
    for class in policy.class_ids() {
        let data = policy.class(class);
        for transfer in data.rule.transfers.iter().filter(|transfer| transfer.until < today) {
            notes.push(format!(
                "the transfer of `{}` from {} expired after {} and no longer applies; renew or remove it",
                data.name,
                policy.jurisdiction_name(transfer.from),
                transfer.until
            ));
        }
    }
    notes.extend(services::notes(policy, today));
    notes.extend(policy.routes.all().iter().filter_map(|route| spelling_note(policy, route, today)));
    notes
}

/// The maximum number of hosts and spellings that a note tries and lists, so that `check` stays fast with 10,000 routes.
const MAX_HOSTS: usize = 8;
const MAX_SPELLINGS: usize = 4;

/// A note about other spellings of the route's path (letter case, file extension) that match a route with a wider clearance.
fn spelling_note(policy: &Policy, route: &Route, today: Day) -> Option<String> {
    if policy.class(route.class).rule.stays == Stays::Anywhere {
        return None;
    }
    let heads = heads_of(policy, route);
    let wider_at = |path: &str| {
        let at = |(host, method): &(String, Method)| {
            let other = policy.routes.find(&head(*method, host, path)).id.map(|id| policy.routes.route(id))?;
            is_wider(policy, other.class, route.class, today).then_some(other)
        };
        heads.iter().find_map(at)
    };
    let spellings = route.pattern.paths.iter().flat_map(|path| other_cases(path).into_iter().chain(with_extension(path)));
    let found: Vec<(String, &Route)> =
        spellings.filter_map(|path| wider_at(&path).map(|wider| (path, wider))).take(MAX_SPELLINGS).collect();
    let (_, wider) = found.first()?;
    let paths: Vec<_> = found.iter().map(|(path, _)| format!("`{path}`")).collect();
    Some(format!(
        "route `{}` does not match {}, which route `{}` of class `{}` matches with a wider clearance than `{}`; if the upstreams \
         ignore case or file extensions, add routes of class `{4}` for these paths",
        route.name,
        paths.join(" and "),
        wider.name,
        class_name(policy, wider.class),
        class_name(policy, route.class)
    ))
}

/// A request without header fields and query parameters, from no network of the operator.
fn head<'a>(method: Method, host: &'a str, path: &'a str) -> Head<'a> {
    Head { method, host, path, client: IpAddr::V4(Ipv4Addr::UNSPECIFIED), fields: &NO_FIELDS }
}

/// The hosts and methods with which requests match `route`: every method, and the hosts that the routes distinguish.
fn heads_of(policy: &Policy, route: &Route) -> Vec<(String, Method)> {
    let example = |host: &HostPattern| match host {
        HostPattern::Any => "localhost".to_owned(),
        HostPattern::Exact(host) => host.to_string(),
        HostPattern::Below(domain) => format!("www.{domain}"),
    };
    let mut hosts: Vec<_> = route.pattern.hosts.iter().map(example).take(MAX_HOSTS).collect();
    for host in policy.routes.all().iter().flat_map(|other| &other.pattern.hosts).map(example) {
        let is_matched = route.pattern.covers_hosts(&[HostPattern::Exact(host.as_str().into())]);
        if is_matched && !hosts.contains(&host) && hosts.len() < MAX_HOSTS {
            hosts.push(host);
        }
    }
    let methods = || route.pattern.methods.iter();
    hosts.iter().flat_map(|host| methods().map(|method| (host.clone(), method))).collect()
}

/// Paths that match the pattern except for the case of one letter: the first letter of each literal segment.
fn other_cases(pattern: &PathPattern) -> Vec<String> {
    let segments = examples(pattern);
    let end = if pattern.open_ended { "/1" } else { "" };
    let other = |index: usize| {
        let Some(Segment::Literal(_)) = pattern.segments.get(index) else { return None };
        let mut segments = segments.clone();
        let segment = segments.get_mut(index)?;
        let at = segment.find(|c: char| c.is_ascii_alphabetic())?;
        let letter = segment.get(at..=at)?.to_owned();
        let other = if letter == letter.to_ascii_uppercase() { letter.to_ascii_lowercase() } else { letter.to_ascii_uppercase() };
        segment.replace_range(at..=at, &other);
        Some(format!("/{}{end}", segments.join("/")))
    };
    (0..segments.len()).filter_map(other).collect()
}

/// The path of the pattern with a file extension, if its last segment is literal.
fn with_extension(pattern: &PathPattern) -> Option<String> {
    let Some(Segment::Literal(_)) = pattern.segments.last() else { return None };
    Some(format!("/{}.json", examples(pattern).join("/")))
}

/// The segments of a path that matches the pattern.
fn examples(pattern: &PathPattern) -> Vec<String> {
    let example = |segment: &Segment| match segment {
        Segment::Literal(text) => text.to_string(),
        Segment::Any | Segment::User => "1".to_owned(),
    };
    pattern.segments.iter().map(example).collect()
}
