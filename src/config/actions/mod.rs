//! The actions of routes: what a route does for a request after judgement.

mod access;
mod answer;
mod cors;
mod message;
mod rate_limit;

use std::time::Duration;

use crate::decision::policy::route::Pattern;
use crate::model::service::ServiceId;
use crate::proxy::Limits;
use crate::proxy::actions::{Actions, Answer, Auth, ClientNetworks, Edits, Mirror, Rewrite, Split, Upgrades};
use crate::proxy::admission::overload::Priority;
use crate::proxy::admission::rate_limit::{RateKey, Scope};

use super::reader::{Field, Section};

use access::{read_auth, read_clients};
use answer::{read_redirect, read_respond};
use cors::read_cors;
use message::{read_codings, read_edits, read_rewrite, read_upgrades};
use rate_limit::read_rate_limits;

pub use access::read_networks;

/// The actions of a route, and its limits, which the common limits complete.
#[derive(Clone)]
pub struct ActionsDraft {
    actions: Actions,
    limits: LimitsDraft,
    first_of_split: Option<ServiceId>,
}

/// The limits that a route overrides.
#[derive(Clone, Copy, PartialEq, Default)]
struct LimitsDraft {
    body: Option<u64>,
    attempts: Option<usize>,
    request_timeout: Option<Duration>,
    response_timeout: Option<Duration>,
    idle_timeout: Option<Duration>,
    tunnel_idle: Option<Duration>,
}

impl ActionsDraft {
    /// The service that the route is judged by, if it has a split.
    pub const fn split_service(&self) -> Option<ServiceId> {
        self.first_of_split
    }

    /// Whether the route responds without an app server.
    pub const fn answers(&self) -> bool {
        self.actions.answer.is_some()
    }

    /// Whether regions tell each other how often clients or users have used the route.
    pub fn shares_keys(&self) -> bool {
        self.actions.rate_limits.iter().any(|limit| limit.scope == Scope::Global && limit.by != RateKey::Route)
    }

    /// Whether the route asks for a password.
    pub fn asks_for_password(&self) -> bool {
        matches!(self.actions.auth, Some(Auth::Basic(_)))
    }

    /// Whether the route has a rate limit that all regions share.
    pub fn shares_counts(&self) -> bool {
        self.actions.rate_limits.iter().any(|limit| limit.scope == Scope::Global)
    }

    /// The actions with all limits; `None` if the route has no actions.
    pub fn complete(&self, common: &Limits) -> Option<Actions> {
        let own = &self.limits;
        let limits = (*own != LimitsDraft::default()).then(|| Limits {
            body: own.body.unwrap_or(common.body),
            attempts: own.attempts.unwrap_or(common.attempts),
            request_timeout: own.request_timeout.unwrap_or(common.request_timeout),
            response_timeout: own.response_timeout.unwrap_or(common.response_timeout),
            idle_timeout: own.idle_timeout.unwrap_or(common.idle_timeout),
            tunnel_idle: own.tunnel_idle.unwrap_or(common.tunnel_idle),
            ..*common
        });
        let actions = Actions { limits, ..self.actions.clone() };
        (actions != Actions::default()).then_some(actions)
    }
}

/// Finds the service that a field names; every region must have it if the flag is set.
type FindService<'f, 'n> = &'f dyn Fn(&Field<'n>, bool) -> Option<ServiceId>;

/// Reads the actions of a route. Every mistake is reported.
pub fn read<'n>(section: &Section<'n>, pattern: Option<&Pattern>, find_service: FindService<'_, 'n>) -> Option<ActionsDraft> {
    let auth = section.optional("auth").map_or(Some(None), |field| read_auth(&field, find_service).map(Some));
    let priorities = [("low", Priority::Low), ("normal", Priority::Normal), ("high", Priority::High)];
    let priority = section.optional("priority").map_or(Some(Priority::Normal), |field| field.word(&priorities));
    let clients = section.optional("clients").map_or(Some(ClientNetworks::default()), |field| read_clients(&field));
    let rate_limits = section.optional("rate_limit").map_or(Some(Vec::new()), |field| read_rate_limits(&field));
    let split = section.optional("split").map_or(Some(None), |field| read_split(&field, find_service).map(Some));
    let mirror = section.optional("mirror").map(|field| (read_mirror(&field, find_service), field));
    let upgrades = section.optional("upgrades").map_or(Some(Upgrades::default()), |field| read_upgrades(&field));
    let cors = section.optional("cors").map_or(Some(None), |field| read_cors(&field).map(Some));
    let redirect = section.optional("redirect").map(|field| (read_redirect(&field).map(Answer::Redirect), field));
    let respond = section.optional("respond").map(|field| (read_respond(&field).map(Answer::Respond), field));
    let rewrite = section.optional("rewrite").map(|field| (read_rewrite(&field, pattern), field));
    let edits = |key| section.optional(key).map_or(Some(Edits::default()), |field| read_edits(&field));
    let (request_headers, response_headers) = (edits("request_headers"), edits("response_headers"));
    let compress = section.optional("compress").map_or(Some(Vec::new()), |field| read_codings(&field));
    let limits = read_limits(section);
    if let (Some((_, field)), true) = (&mirror, redirect.is_some() || respond.is_some()) {
        field.report::<()>("a route that responds itself sends no request, so there is nothing to mirror; remove `mirror`");
    }
    if let (Some((_, field)), true) = (&rewrite, redirect.is_some() || respond.is_some()) {
        field.report::<()>("a route that responds itself sends no request, so there is nothing to rewrite; remove `rewrite`");
    }
    if let (Some(_), Some((_, field))) = (&redirect, &respond) {
        return field.report("a route has either `redirect` or `respond`; remove one of them");
    }
    let answer = redirect.or(respond).map_or(Some(None), |(answer, _)| answer.map(Some));
    let rewrite = rewrite.map_or(Some(Rewrite::default()), |(rewrite, _)| rewrite);
    let (first_of_split, split) = split?.unzip();
    let actions = Actions {
        priority: priority?,
        split,
        clients: clients?,
        rate_limits: rate_limits?,
        mirror: mirror.map_or(Some(None), |(mirror, _)| mirror.map(Some))?,
        upgrades: upgrades?,
        auth: auth?,
        cors: cors?,
        answer: answer?,
        rewrite: rewrite?,
        request_headers: request_headers?,
        response_headers: response_headers?,
        compress: compress?,
        limits: None,
    };
    Some(ActionsDraft { actions, limits: limits?, first_of_split })
}

/// Reads `{ service: app-next, share: 10% }`.
fn read_mirror<'n>(field: &Field<'n>, find_service: FindService<'_, 'n>) -> Option<Mirror> {
    let section = field.section()?;
    let service = section.required("service", "name the service that gets copies of reads");
    let service = service.and_then(|field| find_service(&field, false));
    let share = section.required("share", "write the share of the reads, such as `10%`").and_then(|field| field.percent());
    section.finish();
    Some(Mirror { service: service?, percent: share? })
}

const SPLIT_HELP: &str = "a split needs at least two services, and a weight above 0, such as `[{ service: app, weight: 95 }, \
                          { service: app-next, weight: 5 }]`";

/// Reads `[{ service: app, weight: 95 }, { service: app-next, weight: 5 }]`; returns also the first service with a weight
/// above 0, by which the route is judged.
fn read_split<'n>(field: &Field<'n>, find_service: FindService<'_, 'n>) -> Option<(ServiceId, Split)> {
    let read = |item: &Field<'n>| {
        let section = item.section()?;
        if let Some(header) = section.misplaced("header").or_else(|| section.misplaced("headers")) {
            return header.report(
                "a split is by weight; to choose a service by a header field, write a route before this one that matches the field \
                 (`match: { headers: … }`) and names the service",
            );
        }
        let service =
            section.required("service", "name a service").and_then(|field| Some((find_service(&field, false)?, field.text()?)));
        let weight = section.required("weight", "write the share of the requests, compared with the other weights");
        let weight = weight.and_then(|field| field.number(0, 10_000));
        section.finish();
        let (id, name) = service?;
        Some((id, Box::<str>::from(name), weight? as u32))
    };
    if field.is_section() {
        return field.report(SPLIT_HELP);
    }
    let shares: Vec<_> = field.list().iter().map(read).collect();
    let shares = shares.into_iter().collect::<Option<Vec<_>>>()?;
    let first = shares.iter().find(|(_, _, weight)| *weight > 0).filter(|_| shares.len() >= 2);
    let Some((first, _, _)) = first else { return field.report(SPLIT_HELP) };
    Some((*first, Split::new(shares)))
}

fn read_limits(section: &Section<'_>) -> Option<LimitsDraft> {
    let body = section.optional("body").map_or(Some(None), |field| field.size_limit().map(Some));
    let attempts = section.optional("attempts").map_or(Some(None), |field| field.number(1, 10).map(|most| Some(most as usize)));
    let Some(field) = section.optional("timeouts") else {
        return Some(LimitsDraft { body: body?, attempts: attempts?, ..LimitsDraft::default() });
    };
    let section = field.section()?;
    let time = |key| section.optional(key).map_or(Some(None), |field| field.positive_duration().map(Some));
    let (request, response, idle, tunnel) = (time("request"), time("response"), time("idle"), time("tunnel_idle"));
    section.finish();
    Some(LimitsDraft {
        body: body?,
        attempts: attempts?,
        request_timeout: request?,
        response_timeout: response?,
        idle_timeout: idle?,
        tunnel_idle: tunnel?,
    })
}
