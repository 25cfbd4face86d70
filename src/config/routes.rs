//! The routes: which requests they match, the class of their data, and the chain that finds the home.

use crate::decision::policy::DataClass;
use crate::decision::policy::chain::{Failover, MAX_CHAIN, Reads, Step, Writes};
use crate::decision::policy::class::ClassId;
use crate::decision::policy::geography::Prefix;
use crate::decision::policy::route::{
    Conditions, FieldCondition, HostPattern, KeptCharacters, Method, MethodSet, PathPattern, Pattern, Route, Segment,
};
use crate::decision::policy::rule::Stays;
use crate::engine::path::{Slashes, canonical_path};
use crate::http::names::FORGEABLE;

use crate::model::user::Evidence;
use crate::proxy::actions::is_editable;
use crate::proxy::headers;
use http::HeaderName;
use http::header::COOKIE;

use super::actions::{self, ActionsDraft};
use super::draft::{PolicyDraft, RouteDraft};
use super::problem::suggestion;
use super::reader::{Field, Section};
use super::source::document::{Key, Value};

pub fn read<'n>(section: &Section<'n>, draft: &PolicyDraft<'n>) -> Vec<RouteDraft<'n>> {
    let default = section.optional("failover").map_or(Some(Failover::NEVER), |field| read_failover(&field));
    let Some(field) = section.required("routes", "list at least one; the first match decides") else { return Vec::new() };
    let mut names = std::collections::HashSet::new();
    let items = field.list();
    if items.is_empty() {
        field.report::<()>("no route is listed; without a route every request gets a 404 response");
    }
    items
        .into_iter()
        .map(|field| {
            let (route, actions) = default.and_then(|default| read_route(&field, draft, default)).unzip();
            if let Some(route) = &route
                && !names.insert(route.name.clone())
            {
                field.report::<()>(format!(
                    "another route above is named `{}`; route names must be unique, because metrics and logs use them",
                    route.name
                ));
            }
            RouteDraft { route, actions, field }
        })
        .collect()
}

fn read_route<'n>(field: &Field<'n>, draft: &PolicyDraft<'n>, default: Failover) -> Option<(Route, ActionsDraft)> {
    let section = field.section()?;
    let name = section.required("name", "it identifies the route in metrics, logs and explanations").and_then(|field| {
        let name = field.text()?;
        let fits = !name.is_empty() && name.len() <= 100 && !name.contains(|c: char| c.is_control() || c == '"' || c == '\\');
        if fits {
            Some(name)
        } else {
            field.report("a route name has 1 to 100 characters, without double quotes and backslashes")
        }
    });
    let pattern = section.required("match", "write `{}` to match every request").and_then(|field| read_pattern(&field));
    let class = section.required("data", "every route needs a data class").and_then(|field| draft.class(&field));
    let actions = actions::read(&section, pattern.as_ref(), &|field, is_everywhere| {
        if is_everywhere { draft.service_of_every_region(field) } else { draft.service(field) }
    });
    if let (Some(class), true) = (class, actions.as_ref().is_some_and(ActionsDraft::shares_keys)) {
        check_shared_keys(&section, &draft.classes[class.index()]);
    }
    let answers = actions.as_ref().is_some_and(ActionsDraft::answers);
    let service = match section.optional("service") {
        Some(field) if actions.as_ref().is_some_and(|actions| actions.split_service().is_some()) => {
            field.report("`split` names the services of this route; remove `service`")
        }
        None if actions.as_ref().is_some_and(|actions| actions.split_service().is_some()) => {
            actions.as_ref().map(ActionsDraft::split_service)
        }
        Some(field) if answers => field.report("a route that responds itself needs no service; remove `service`"),
        Some(field) => draft.service(&field).map(Some),
        None if answers => Some(None),
        None => draft.default_service().map(Some).or_else(|| {
            let names: Vec<_> = draft.services.iter().map(|(_, name)| format!("`{name}`")).collect();
            section.report(format!("`service` is missing: name the service of this route, one of {}", names.join(", ")))
        }),
    };
    let chain = section.required("home", "list the steps that find the home, such as `[directory, geoip, refuse]`");
    let chain = chain.and_then(|field| read_chain(&field, draft, class));
    let failover = section.optional("failover").map_or(Some(default), |field| read_failover(&field));
    let keeps = section.optional("paths").map_or(Some(KeptCharacters::NONE), |field| read_kept(&field));
    let aliases = section.optional("user").map_or(Some(Vec::new()), |field| read_aliases(&field, pattern.as_ref()));
    section.finish();
    let route = Route {
        name: name?.into(),
        pattern: pattern?,
        class: class?,
        service: service?,
        chain: chain.as_ref()?.0.clone(),
        aliases: aliases?,
        claim: chain?.1,
        failover: failover?,
        keeps: keeps?,
    };
    Some((route, actions?))
}

/// Reports a global rate limit that would tell other regions about users whose data they may not have.
fn check_shared_keys(section: &Section<'_>, class: &DataClass) {
    if class.rule.stays != Stays::Anywhere {
        section.report::<()>(format!(
            "a global rate limit tells all regions how often each of its keys is used, but data of class `{}` may not be everywhere; \
             use `by: route`, or `scope: region`",
            class.name
        ));
    }
}

fn read_pattern(field: &Field<'_>) -> Option<Pattern> {
    let section = field.section()?;
    let hosts = section.optional("host").map_or(Some(vec![HostPattern::Any]), |field| {
        let read =
            |field: &Field<'_>| HostPattern::parse(field.text()?).map_or_else(|error| field.report(error.to_string()), Some);
        read_all(&field, "every host", read)
    });
    let everything = PathPattern { segments: Vec::new(), open_ended: true };
    let paths = section.optional("path").map_or(Some(vec![everything]), |field| {
        let paths = read_all(&field, "every path", read_path)?;
        let has_one_user = paths.iter().all(|path| path.user_segment() == paths[0].user_segment());
        let differs = "`{user}` must be the same segment in all paths of a route; write a route for each of the others";
        if has_one_user { Some(paths) } else { field.report(differs) }
    });
    let methods = section.optional("methods").map_or(Some(MethodSet::ALL), |field| read_methods(&field));
    let conditions = read_conditions(&section);
    section.finish();
    Some(Pattern { hosts: hosts?, paths: paths?, methods: methods?, conditions: conditions? })
}

/// Reads the conditions of a route: `clients`, `headers` and `query`.
fn read_conditions(section: &Section<'_>) -> Option<Conditions> {
    let clients = section.optional("clients").map_or(Some(Vec::new()), |field| {
        let networks = actions::read_networks(&field)?;
        Some(networks.into_iter().map(|network| Prefix::new(network.addr(), network.prefix_len())).collect())
    });
    let headers = section.optional("headers").map_or(Some(Vec::new()), |field| read_field_conditions(&field, header_name));
    let any_name = |name: &str, _: &Field<'_>| Some(name.to_owned());
    let query = section.optional("query").map_or(Some(Vec::new()), |field| read_field_conditions(&field, any_name));
    Some(Conditions { clients: clients?, headers: headers?, query: query? })
}

/// Reads `{ NAME: VALUE }`, with one value, several, or `*` for any.
fn read_field_conditions(
    field: &Field<'_>,
    read_name: impl Fn(&str, &Field<'_>) -> Option<String>,
) -> Option<Vec<FieldCondition>> {
    let read = |(key, field): (&Key, Field<'_>)| {
        let name = read_name(&key.text, &field);
        let values: Option<Vec<Box<str>>> = field.one_or_many().iter().map(|item| item.text().map(Into::into)).collect();
        let (name, mut values) = (name?.into(), values?);
        if values.iter().any(|value| &**value == "*") {
            values.clear();
        }
        Some(FieldCondition { name, values })
    };
    let conditions: Vec<_> = field.entries().into_iter().map(read).collect();
    conditions.into_iter().collect()
}

/// The name of a header field that routes may match on: it must reach the owner as the client sent it.
fn header_name(name: &str, field: &Field<'_>) -> Option<String> {
    let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
        return field.report(format!("`{name}` is not a valid header name"));
    };
    let is_changed = !is_editable(&name) || FORGEABLE.contains_any_spelling(name.as_str()) || headers::is_tracing(name.as_str());
    if is_changed || name == COOKIE {
        return field.report(format!(
            "routes cannot match on `{name}`, because Domicile removes or changes it on the way, so that regions would disagree"
        ));
    }
    Some(name.as_str().to_owned())
}

/// Reads one pattern or a list of them; every mistake is reported.
fn read_all<T>(field: &Field<'_>, all: &str, read: impl Fn(&Field<'_>) -> Option<T>) -> Option<Vec<T>> {
    let items = field.one_or_many();
    if items.is_empty() {
        return field.report(format!("this list is empty; remove the key to match {all}"));
    }
    let patterns: Vec<_> = items.iter().map(read).collect();
    patterns.into_iter().collect()
}

fn read_path(field: &Field<'_>) -> Option<PathPattern> {
    let text = field.text()?;
    let pattern = PathPattern::parse(text).map_or_else(|error| field.report(error.to_string()), Some)?;
    let literal = |segment: &Segment| match segment {
        Segment::Literal(text) => format!("/{text}"),
        Segment::Any | Segment::User => String::new(),
    };
    let literals = pattern.segments.iter().map(literal).collect::<String>();
    match canonical_path(if literals.is_empty() { "/" } else { &literals }, Slashes::Merge) {
        Some(canonical) if literals.is_empty() || canonical == literals => Some(pattern),
        Some(canonical) => field.report(format!(
            "`{text}` can never match: paths are matched in canonical form, and that of its literal segments is `{canonical}`"
        )),
        None => field.report(format!("`{text}` can never match: requests with this path are ambiguous and get a 400 response")),
    }
}

/// Reads `{ me: [me, self] }`: the path segments that mean the caller in place of `{user}`.
fn read_aliases(field: &Field<'_>, pattern: Option<&Pattern>) -> Option<Vec<Box<str>>> {
    let section = field.section()?;
    let me = section.required("me", "list the path segments that stand for the caller, such as `[me, self]`")?;
    section.finish();
    if pattern.is_some_and(|pattern| pattern.user_segment().is_none()) {
        return field.report("the path of this route does not contain `{user}`, so no segment can stand for the caller");
    }
    let mut aliases = Vec::new();
    for item in me.one_or_many() {
        let text = item.text()?;
        if text.is_empty() || text.contains('/') {
            return item.report(format!("`{text}` is not a path segment; write one word, such as `me`"));
        }
        aliases.push(text.into());
    }
    Some(aliases)
}

fn read_methods(field: &Field<'_>) -> Option<MethodSet> {
    let items = field.one_or_many();
    if items.is_empty() {
        return field.report("this list is empty; remove `methods` to match every method");
    }
    let mut methods = MethodSet::NONE;
    for item in items {
        let name = item.text()?;
        let known = Method::ALL.into_iter().filter(|method| *method != Method::Other);
        let Some(method) = known.clone().find(|method| method.as_str() == name) else {
            return item.report(format!("unknown method `{name}`{}", suggestion(name, known.map(Method::as_str))));
        };
        methods = methods.with(method);
    }
    Some(methods)
}

/// Reads `{ encoded_slash: keep, encoded_percent: keep, semicolon: keep }`.
fn read_kept(field: &Field<'_>) -> Option<KeptCharacters> {
    let section = field.section()?;
    let read = |key| section.optional(key).map_or(Some(false), |field| field.word(&[("refuse", false), ("keep", true)]));
    let (slash, percent, semicolon) = (read("encoded_slash"), read("encoded_percent"), read("semicolon"));
    section.finish();
    Some(KeptCharacters { encoded_slash: slash?, encoded_percent: percent?, semicolon: semicolon? })
}

fn read_failover(field: &Field<'_>) -> Option<Failover> {
    let section = field.section()?;
    let reads = section
        .optional("reads")
        .map_or(Some(Reads::Never), |field| field.word(&[("never", Reads::Never), ("nearest", Reads::Nearest)]));
    let writes = section.optional("writes").map_or(Some(Writes::Never), |field| field.word(&[("never", Writes::Never)]));
    section.finish();
    Some(Failover { reads: reads?, writes: writes? })
}

/// The steps of a chain, and the claim that its `token` step reads.
fn read_chain<'n>(field: &Field<'n>, draft: &PolicyDraft<'n>, class: Option<ClassId>) -> Option<(Vec<Step>, Option<Box<str>>)> {
    let items = field.list();
    if items.len() > MAX_CHAIN {
        return field.report(format!("a chain has at most {MAX_CHAIN} steps"));
    }
    let (mut chain, mut claim) = (Vec::new(), None);
    for item in &items {
        let step = read_step(item, draft, &mut claim)?;
        if chain.contains(&step) {
            return item.report("this step is already in the chain");
        }
        if chain.last().is_some_and(|last| is_final(*last)) {
            return item.report("this step is never reached: the step before it always ends the chain");
        }
        check_step(step, item, draft, class)?;
        chain.push(step);
    }
    if !chain.last().is_some_and(|last| is_final(*last)) {
        return field.report("the chain has no final step; end it with `refuse`, `region: NAME` or `latency`");
    }
    Some((chain, claim))
}

const fn is_final(step: Step) -> bool {
    matches!(step, Step::Refuse | Step::Region(_) | Step::Latency)
}

fn read_step<'n>(field: &Field<'n>, draft: &PolicyDraft<'n>, claim: &mut Option<Box<str>>) -> Option<Step> {
    if let Value::Map(_) = field.node.value {
        let section = field.section()?;
        if let Some(field) = section.optional("token") {
            section.finish();
            *claim = Some(field.text()?.into());
            return Some(Step::Token);
        }
        let what = "a step with a value is `region: NAME` or `token: CLAIM`";
        let region = section.required("region", what).and_then(|field| draft.region(&field));
        section.finish();
        return region.map(Step::Region);
    }
    let words = [("directory", Step::Directory), ("geoip", Step::GeoIp), ("latency", Step::Latency), ("refuse", Step::Refuse)];
    field.word(&words)
}

/// Reports a step that cannot work with the other sections of this file or with the data class of its route.
fn check_step(step: Step, field: &Field<'_>, draft: &PolicyDraft<'_>, class: Option<ClassId>) -> Option<()> {
    match step {
        Step::Directory if !draft.has_directory => {
            field.report("this step needs a directory; add one under `users`, such as `directory: { file: users.csv }`")
        }
        Step::Token if !draft.has_tokens => {
            field.report("this step needs verified tokens; configure them under `users`, such as `token: { keys: jwks.json, … }`")
        }
        Step::GeoIp if draft.geo.is_none() => field.report("this step needs a `geoip` section; add one that names a database"),
        Step::Latency => match class.map(|class| &draft.classes[class.index()]) {
            Some(class) if class.rule.stays == Stays::Home => field.report(format!(
                "`latency` finds no home, but data of class `{}` stays in its user's jurisdiction; use `directory` or `geoip`",
                class.name
            )),
            Some(class) if class.rule.needs > Evidence::Inferred => field.report(format!(
                "`latency` does not identify the user, but data of class `{}` needs a home that is {}; use `directory`",
                class.name,
                class.rule.needs.as_str()
            )),
            _ => Some(()),
        },
        Step::Directory | Step::Token | Step::GeoIp | Step::Region(_) | Step::Refuse => Some(()),
    }
}
