//! The actions of routes: what a route does for a request after judgement.

use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::{StatusCode, Uri};
use ipnet::IpNet;

use crate::decision::policy::route::{PathPattern, Pattern, Segment};
use crate::http::compression::Coding;
use crate::model::service::ServiceId;
use crate::proxy::Limits;
use crate::proxy::actions::{
    Actions, Answer, ClientNetworks, Cors, Edits, FixedResponse, ForwardAuth, PathRewrite, Redirection, Rewrite, Split, Template,
    is_editable,
};
use crate::proxy::admission::overload::Priority;
use crate::proxy::admission::rate_limit::{RateKey, RateLimit};

use super::reader::{Field, Section};

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
    let cors = section.optional("cors").map_or(Some(None), |field| read_cors(&field).map(Some));
    let redirect = section.optional("redirect").map(|field| (read_redirect(&field).map(Answer::Redirect), field));
    let respond = section.optional("respond").map(|field| (read_respond(&field).map(Answer::Respond), field));
    let rewrite = section.optional("rewrite").map(|field| (read_rewrite(&field, pattern), field));
    let edits = |key| section.optional(key).map_or(Some(Edits::default()), |field| read_edits(&field));
    let (request_headers, response_headers) = (edits("request_headers"), edits("response_headers"));
    let compress = section.optional("compress").map_or(Some(Vec::new()), |field| read_codings(&field));
    let limits = read_limits(section);
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

/// Reads `{ rate: 100/s, burst: 200, by: client }`, or a list of such limits.
fn read_rate_limits(field: &Field<'_>) -> Option<Vec<RateLimit>> {
    let limits: Vec<_> = field.one_or_many().iter().map(read_rate_limit).collect();
    limits.into_iter().collect()
}

fn read_rate_limit(field: &Field<'_>) -> Option<RateLimit> {
    if !field.is_section() {
        let (requests, period) = read_rate(field)?;
        return Some(RateLimit { by: RateKey::Client, requests, period, burst: burst_of(requests, period) });
    }
    let section = field.section()?;
    let rate = section.required("rate", "write a number of requests and a unit, such as `100/s`, `600/m` or `5000/h`");
    let rate = rate.and_then(|field| read_rate(&field));
    let burst = section.optional("burst").map(|field| field.number(1, 1_000_000));
    let by = section.optional("by").map_or(Some(RateKey::Client), |field| read_rate_key(&field));
    section.finish();
    let (requests, period) = rate?;
    let burst = burst.map_or(Some(burst_of(requests, period)), |burst| burst.map(|burst| burst as u32))?;
    Some(RateLimit { by: by?, requests, period, burst })
}

/// The burst of a limit that names none: the requests of ten seconds.
fn burst_of(requests: u32, period: Duration) -> u32 {
    (f64::from(requests) * 10.0 / period.as_secs_f64()).ceil().max(1.0) as u32
}

fn read_rate(field: &Field<'_>) -> Option<(u32, Duration)> {
    let text = field.text()?;
    let parsed = text.split_once('/').and_then(|(requests, unit)| {
        let seconds = match unit.trim() {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return None,
        };
        let requests = requests.trim().parse().ok().filter(|requests| (1..=1_000_000).contains(requests))?;
        Some((requests, Duration::from_secs(seconds)))
    });
    let advice =
        format!("`{text}` is not a valid rate; write 1 to 1000000 requests and a unit, such as `100/s`, `600/m` or `5000/h`");
    parsed.or_else(|| field.report(advice))
}

fn read_rate_key(field: &Field<'_>) -> Option<RateKey> {
    if !field.is_section() {
        let text = field.text()?;
        return match text {
            "client" => Some(RateKey::Client),
            "user" => Some(RateKey::User),
            "route" => Some(RateKey::Route),
            _ => field.report(format!("`{text}` is not a valid key; write `client`, `user`, `route` or `{{ header: NAME }}`")),
        };
    }
    let section = field.section()?;
    let name = section.required("header", "name a header field, or write `client`, `user` or `route`");
    section.finish();
    let name = name?;
    let text = name.text()?;
    let parsed = HeaderName::from_bytes(text.as_bytes()).ok();
    parsed.map(RateKey::Header).or_else(|| name.report(format!("`{text}` is not a valid header name")))
}

const SPLIT_HELP: &str = "a split needs at least two services, and a weight above 0, such as `[{ service: app, weight: 95 }, \
                          { service: app-next, weight: 5 }]`";

/// Reads `[{ service: app, weight: 95 }, { service: app-next, weight: 5 }]`; returns also the first service with a weight
/// above 0, by which the route is judged.
fn read_split<'n>(field: &Field<'n>, find_service: FindService<'_, 'n>) -> Option<(ServiceId, Split)> {
    let read = |item: &Field<'n>| {
        let section = item.section()?;
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

/// Reads `{ service: auth, path: /verify, copy: [x-auth-user] }`.
fn read_auth<'n>(field: &Field<'n>, find_service: FindService<'_, 'n>) -> Option<ForwardAuth> {
    let section = field.section()?;
    let service = section.required("service", "name the service that decides, such as `auth`");
    let service = service.and_then(|field| find_service(&field, true));
    let path = section.required("path", "name the path to request, such as `/verify`").and_then(|field| read_base(&field));
    let copy = section.optional("copy").map_or(Some(Vec::new()), |field| {
        let names: Vec<_> = field.one_or_many().iter().map(|item| read_name(item, item.text()?)).collect();
        names.into_iter().collect()
    });
    section.finish();
    Some(ForwardAuth { service: service?, path: slash_if_empty(path?), copy: copy? })
}

/// Reads `{ origins: [https://app.example.com], credentials: true }`; `origins: "*"` is every origin.
fn read_cors(field: &Field<'_>) -> Option<Cors> {
    let section = field.section()?;
    let origins = section.required("origins", "list the origins, such as `[https://app.example.com]`, or write `\"*\"`");
    let origins = origins.and_then(|field| read_origins(&field));
    let names = |key| section.optional(key).map_or(Some(None), |field| read_names(&field).map(Some));
    let (methods, headers, expose) = (names("methods"), names("headers"), names("expose"));
    let credentials = section.optional("credentials").map(|field| (field.flag(), field));
    let max_age = section.optional("max_age").map_or(Some(Duration::from_secs(600)), |field| field.duration());
    section.finish();
    let origins = origins?;
    if let (None, Some((Some(true), field))) = (&origins, &credentials) {
        return field.report("browsers refuse credentials where every origin is allowed; list the origins");
    }
    let (methods, headers, expose) = (methods?, headers?, expose?);
    if let (true, Some((Some(true), field))) = ([&methods, &headers, &expose].iter().any(|names| is_wild(names)), &credentials) {
        return field.report("with credentials, browsers take `*` for a name; list the names, or leave the key out to allow all");
    }
    let credentials = credentials.map_or(Some(false), |(flag, _)| flag);
    Some(Cors { origins, methods, headers, expose, credentials: credentials?, max_age: max_age? })
}

fn is_wild(names: &Option<HeaderValue>) -> bool {
    names.as_ref().is_some_and(|names| names.as_bytes().contains(&b'*'))
}

/// The origins; the inner `None` is every origin.
fn read_origins(field: &Field<'_>) -> Option<Option<Vec<HeaderValue>>> {
    let (items, mut origins) = (field.one_or_many(), Vec::new());
    for item in &items {
        let text = item.text()?;
        if text == "*" && items.len() > 1 {
            return item.report("`*` is every origin; remove it, or the others");
        }
        if text == "*" {
            return Some(None);
        }
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let is_origin = host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', '*', '@']));
        let Some(origin) = HeaderValue::from_str(text).ok().filter(|_| is_origin) else {
            return item.report(format!(
                "`{text}` is not a valid origin; write scheme and host without a path, such as `https://app.example.com`"
            ));
        };
        origins.push(origin);
    }
    if origins.is_empty() { field.report("this list is empty; name at least one origin") } else { Some(Some(origins)) }
}

/// A list of methods or header names, as one field value.
fn read_names(field: &Field<'_>) -> Option<HeaderValue> {
    let name = |item: &Field<'_>| {
        let text = item.text()?;
        let is_token = HeaderName::from_bytes(text.as_bytes()).is_ok();
        if is_token { Some(text.to_owned()) } else { item.report(format!("`{text}` is not a valid name")) }
    };
    let names: Option<Vec<_>> = field.one_or_many().iter().map(name).collect();
    HeaderValue::try_from(names?.join(", ")).ok()
}

fn read_codings(field: &Field<'_>) -> Option<Vec<Coding>> {
    let words = Coding::ALL.map(|coding| (coding.as_str(), coding));
    let mut codings = Vec::new();
    for item in field.one_or_many() {
        let coding = item.word(&words)?;
        if codings.contains(&coding) {
            return item.report("this coding is already in the list");
        }
        codings.push(coding);
    }
    Some(codings)
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

fn read_clients(field: &Field<'_>) -> Option<ClientNetworks> {
    let section = field.section()?;
    let networks = |key| {
        section.optional(key).map_or(Some(Vec::new()), |field| match read_networks(&field)? {
            networks if networks.is_empty() => field.report("this list is empty; name at least one network, or remove it"),
            networks => Some(networks),
        })
    };
    let (allow, deny) = (networks("allow"), networks("deny"));
    section.finish();
    Some(ClientNetworks { allow: allow?, deny: deny? })
}

/// Reads networks; an address alone is the network of this address.
pub fn read_networks(field: &Field<'_>) -> Option<Vec<IpNet>> {
    let read = |item: &Field<'_>| {
        let text = item.text()?;
        let network = text.parse().ok().or_else(|| text.parse().ok().map(|address: std::net::IpAddr| IpNet::from(address)));
        let Some(network) = network else {
            return item.report(format!("`{text}` is not a valid network; write `10.1.0.0/16` or a single address"));
        };
        if network.trunc() != network {
            return item.report(format!("`{text}` has address bits after its prefix; did you mean `{}`?", network.trunc()));
        }
        Some(network)
    };
    let networks: Vec<_> = field.one_or_many().iter().map(read).collect();
    networks.into_iter().collect()
}

fn read_template(field: &Field<'_>) -> Option<Template> {
    Template::parse(field.text()?).map_or_else(|error| field.report(error.to_string()), Some)
}

/// Reads `redirect: URL`, or `redirect: { to: URL, status: 301 }`.
fn read_redirect(field: &Field<'_>) -> Option<Redirection> {
    if !field.is_section() {
        return Some(Redirection { status: StatusCode::FOUND, to: read_target(field)? });
    }
    let section = field.section()?;
    let to = section.required("to", "write the target, such as `https://www.example.com{uri}`");
    let to = to.and_then(|field| read_target(&field));
    let statuses = [301, 302, 303, 307, 308].map(|code| (code, StatusCode::from_u16(code).expect("a status of redirects")));
    let status = section.optional("status").map_or(Some(StatusCode::FOUND), |field| {
        let text = field.text()?;
        let found = statuses.iter().find(|(code, _)| code.to_string() == text).map(|(_, status)| *status);
        found.or_else(|| field.report(format!("`{text}` is not a status of redirects; write 301, 302, 303, 307 or 308")))
    });
    section.finish();
    Some(Redirection { status: status?, to: to? })
}

fn read_target(field: &Field<'_>) -> Option<Template> {
    let text = field.text()?;
    let is_path = text.starts_with('/') || (text.starts_with("{path}") && text != "{path}");
    let is_url = ["http://", "https://", "{scheme}://"].iter().any(|beginning| text.starts_with(beginning));
    if !is_path && !is_url {
        return field.report(format!("`{text}` is not a valid target; begin it with `/`, `http://` or `https://`"));
    }
    read_template(field)
}

/// Reads `respond: 204`, or `respond: { status: 200, body: "…", type: text/html }`.
fn read_respond(field: &Field<'_>) -> Option<FixedResponse> {
    const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
    if !field.is_section() {
        let text = field.text()?;
        if text.parse::<u32>().is_err() {
            return field.report(format!("`{text}` is not a status; write one such as `404`, or `{{ body: \"…\" }}` for a text"));
        }
        return Some(FixedResponse { status: read_status(field)?, body: None, content_type: PLAIN });
    }
    let section = field.section()?;
    let status = section.optional("status").map_or(Some(StatusCode::OK), |field| read_status(&field));
    let body = section.optional("body").map(|field| (read_template(&field), field));
    let content_type = section.optional("type").map_or(Some(PLAIN), |field| {
        let text = field.text()?;
        let value = HeaderValue::from_str(text).ok().filter(|_| text.contains('/'));
        value.or_else(|| field.report(format!("`{text}` is not a media type; write one such as `text/html; charset=utf-8`")))
    });
    section.finish();
    let (status, body) = (status?, body.map_or(Some(None), |(body, field)| body.map(|body| Some((body, field)))));
    let body = body?;
    let takes_no_body = [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::NOT_MODIFIED].contains(&status);
    if let (Some((_, field)), true) = (&body, takes_no_body) {
        return field.report(format!("a response with status {} has no body; remove it", status.as_u16()));
    }
    Some(FixedResponse { status, body: body.map(|(body, _)| body), content_type: content_type? })
}

fn read_status(field: &Field<'_>) -> Option<StatusCode> {
    field.number(200, 599).and_then(|code| StatusCode::from_u16(code as u16).ok())
}

fn read_rewrite(field: &Field<'_>, pattern: Option<&Pattern>) -> Option<Rewrite> {
    let section = field.section()?;
    let strip = section.optional("strip_prefix").map(|field| read_prefix(&field, pattern));
    let prefix = section.optional("prefix").map(|field| read_prefix(&field, pattern));
    let with = section.optional("with").map(|field| read_base(&field));
    let whole = section.optional("path").map(|field| read_base(&field).map(|path| PathRewrite::Whole(slash_if_empty(path))));
    let host = section.optional("host").map_or(Some(None), |field| read_host(&field).map(Some));
    section.finish();
    let path = match (strip, prefix, with, whole) {
        (Some(from), None, None, None) => from.map(|from| Some(PathRewrite::Prefix { from, to: "".into() })),
        (None, Some(from), Some(to), None) => from.zip(to).map(|(from, to)| Some(PathRewrite::Prefix { from, to })),
        (None, None, None, Some(whole)) => whole.map(Some),
        (None, None, None, None) => Some(None),
        _ => field.report("write one of `strip_prefix: /api`, `prefix: /old` together with `with: /new`, and `path: /whole`"),
    };
    Some(Rewrite { path: path?, host: host? })
}

fn slash_if_empty(path: Box<str>) -> Box<str> {
    if path.is_empty() { "/".into() } else { path }
}

/// A path in canonical form, without a slash at its end; `/` is the empty text.
fn read_base(field: &Field<'_>) -> Option<Box<str>> {
    use crate::engine::path::{Slashes, canonical_path};
    let text = field.text()?;
    let canonical = canonical_path(text, Slashes::Refuse).filter(|canonical| canonical == text);
    if canonical.is_none() || text.parse::<http::uri::PathAndQuery>().is_err() || text.contains('?') {
        return field
            .report(format!("`{text}` is not a valid path; write one such as `/v2`, without a query and in canonical form"));
    }
    Some(text.trim_end_matches('/').into())
}

/// The beginning of a path, which every path of the route must have.
fn read_prefix(field: &Field<'_>, pattern: Option<&Pattern>) -> Option<Box<str>> {
    let prefix = read_base(field)?;
    let segments: Vec<_> = prefix.split('/').skip(1).collect();
    let is_literal = |(segment, expected): (&Segment, &&str)| matches!(segment, Segment::Literal(text) if &**text == *expected);
    let begins =
        |path: &PathPattern| path.segments.len() >= segments.len() && path.segments.iter().zip(&segments).all(is_literal);
    if pattern.is_some_and(|pattern| !pattern.paths.iter().all(begins)) {
        return field.report(format!("not every path of this route begins with `{prefix}`, so it would not always be replaced"));
    }
    Some(prefix)
}

fn read_host(field: &Field<'_>) -> Option<HeaderValue> {
    let text = field.text()?;
    let is_host =
        text.parse::<Uri>().is_ok_and(|uri| uri.authority().is_some_and(|own| own.as_str() == text && !text.contains('@')));
    let value = HeaderValue::from_str(text).ok().filter(|_| is_host);
    value.or_else(|| {
        field.report(format!("`{text}` is not a valid host; write one such as `app.internal` or `app.internal:8080`"))
    })
}

/// Reads `{ remove: [NAME], set: { NAME: VALUE }, add: { NAME: VALUE } }`.
fn read_edits(field: &Field<'_>) -> Option<Edits> {
    let section = field.section()?;
    let remove = section.optional("remove").map_or(Some(Vec::new()), |field| {
        let names: Vec<_> = field.one_or_many().iter().map(|item| read_name(item, item.text()?)).collect();
        names.into_iter().collect()
    });
    let fields = |key| section.optional(key).map_or(Some(Vec::new()), |field| read_fields(&field));
    let (set, add) = (fields("set"), fields("add"));
    section.finish();
    Some(Edits { remove: remove?, set: set?, add: add? })
}

/// The header fields of a section; a field may have several values.
fn read_fields(field: &Field<'_>) -> Option<Vec<(HeaderName, Template)>> {
    let read = |(key, field): (&super::document::Key, Field<'_>)| {
        let name = read_name(&field, &key.text);
        let values: Vec<_> = field.one_or_many().iter().map(read_template).collect();
        let name = name?;
        values.into_iter().map(|value| Some((name.clone(), value?))).collect::<Option<Vec<_>>>()
    };
    let fields: Vec<_> = field.entries().into_iter().map(read).collect();
    fields.into_iter().collect::<Option<Vec<_>>>().map(|fields| fields.concat())
}

fn read_name(field: &Field<'_>, text: &str) -> Option<HeaderName> {
    let Ok(name) = HeaderName::from_bytes(text.as_bytes()) else {
        return field.report(format!("`{text}` is not a valid header name"));
    };
    if !is_editable(&name) {
        return field.report(format!(
            "`{text}` cannot be changed by a route, because Domicile sets it itself; `rewrite.host` changes the host"
        ));
    }
    Some(name)
}
