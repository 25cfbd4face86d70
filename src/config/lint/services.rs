//! Checks of routes against the services of the regions.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::decision::policy::Policy;
use crate::decision::policy::chain::{Reads, Step};
use crate::decision::policy::route::Route;
use crate::decision::policy::rule::Mode;
use crate::model::day::Day;
use crate::model::jurisdiction::Jurisdiction;
use crate::model::region::RegionId;
use crate::proxy::actions::Actions;

use super::class_name;

/// The mistake that no request of the route can be served, because no region that may serve it has the service.
pub(super) fn never_served(policy: &Policy, route: &Route, today: Day) -> Option<String> {
    let id = route.service?;
    let (service, equipped) = (policy.service_name(id), policy.regions_with(id));
    let is_cleared = |region| policy.user_jurisdictions().any(|user| may_serve(policy, route, user, region, today));
    if !equipped.iter().any(is_cleared) {
        let regions: Vec<_> = equipped.iter().map(|region| policy.region_name(region)).collect();
        return Some(format!(
            "no request of this route can be served: the service `{service}` is only in {}, where `{}` may never be processed; add the \
             service to a region that may process it",
            regions.join(", "),
            class_name(policy, route.class)
        ));
    }
    let is_fixed = |region: &RegionId| route.chain[..] == [Step::Region(*region)] && !equipped.contains(*region);
    let home = policy.regions.iter().find(is_fixed).filter(|_| route.failover.reads == Reads::Never)?;
    Some(format!(
        "no request of this route can be served: its home is always `{}`, which does not have the service `{service}`; add the \
         service to the region, or name another one",
        policy.region_name(home)
    ))
}

fn may_serve(policy: &Policy, route: &Route, user: Jurisdiction, region: RegionId, today: Day) -> bool {
    let rule = &policy.class(route.class).rule;
    rule.mode == Mode::Report || rule.admits(user, policy.jurisdiction_of(region), today)
}

/// The maximum number of routes that a note lists.
const MAX_ROUTES: usize = 4;

/// Notes about users who get no service, because their home region does not have it and no other region may serve them.
pub(super) fn notes(policy: &Policy, today: Day) -> Vec<String> {
    let mut refused = BTreeMap::<_, Vec<&Route>>::new();
    let owned = policy.routes.all().iter().filter(|route| has_owner(route));
    for (route, service) in owned.filter_map(|route| Some((route, route.service?))) {
        for home in policy.regions.iter().filter(|home| !serves_users_of(policy, route, *home, today)) {
            refused.entry((service, home)).or_default().push(route);
        }
    }
    let note = |((service, home), routes): ((_, RegionId), Vec<&Route>)| {
        let mut names: Vec<_> = routes.iter().take(MAX_ROUTES).map(|route| format!("`{}`", route.name)).collect();
        if routes.len() > MAX_ROUTES {
            names.push(format!("{} more", routes.len() - MAX_ROUTES));
        }
        format!(
            "{0} does not have the service `{1}`, and no other region may serve its users, so their requests are refused \
             (routes: {2}); add the service to {0}",
            policy.region_name(home),
            policy.service_name(service),
            names.join(", ")
        )
    };
    refused.into_iter().map(note).collect()
}

/// Notes about services that no route uses, itself or by its actions.
pub fn unused(policy: &Policy, actions: &[Option<Arc<Actions>>]) -> Vec<String> {
    let mut used: Vec<_> = policy.routes.all().iter().filter_map(|route| route.service).collect();
    used.extend(actions.iter().flatten().flat_map(|actions| actions.services()));
    let unused = policy.services().filter(|(id, _)| !used.contains(id));
    unused.map(|(_, name)| format!("no route uses the service `{name}`; name it in a route, or remove it")).collect()
}

/// Whether the chain of the route can find any region as the home.
fn has_owner(route: &Route) -> bool {
    route.chain.iter().any(|step| matches!(step, Step::Directory | Step::Token | Step::GeoIp))
}

/// Whether any request of a user whose home is `home` can be served.
fn serves_users_of(policy: &Policy, route: &Route, home: RegionId, today: Day) -> bool {
    let user = policy.jurisdiction_of(home);
    // The home itself may not process the data, which another check reports.
    if !may_serve(policy, route, user, home, today) {
        return true;
    }
    let equipped = policy.regions_for(route.service);
    let may_leave = route.failover.reads == Reads::Nearest;
    equipped.contains(home) || may_leave && equipped.iter().any(|region| may_serve(policy, route, user, region, today))
}
