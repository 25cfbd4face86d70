//! Explains where a request would go, and why: with the same lookups and the same judgement as for live requests.

use std::borrow::Cow;
use std::cell::Cell;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use crate::decision::facts::{Credential, Ingress};
use crate::decision::narrate::{self, Line};
use crate::decision::policy::Policy;
use crate::decision::policy::route::{Fields, Head, KeptCharacters, Method, RouteId};
use crate::decision::policy::rule::Mode;
use crate::decision::route_of;
use crate::decision::verdict::{Decision, Verdict};
use crate::model::day::Day;
use crate::model::jurisdiction::Jurisdiction;
use crate::model::region::RegionSet;
use crate::model::user::Proof;
use crate::model::vitals::{Health, RegionVitals, Vitals};
use crate::tokens::Verified;

use super::judge::judge;
use super::path::{canonical_path_keeping, is_ambiguous, may_keep};
use super::question::{Identity, Question, read_fields};
use super::snapshot::{JudgingSnapshot, Moment};

/// A request to explain.
#[derive(Clone, Debug)]
pub struct Query {
    pub method: String,
    /// An absolute URL or a path.
    pub url: String,
    pub ip: IpAddr,
    pub user: Option<String>,
    /// The user's key is not proven, as in a plain cookie.
    pub claimed: bool,
    /// The claims of a verified token.
    pub claims: Vec<(String, String)>,
    /// Header fields of the request, for routes that match on them.
    pub headers: Vec<(String, String)>,
    /// The day to use instead of today.
    pub day: Option<String>,
    /// Regions to treat as down, and services of regions as `REGION/SERVICE`.
    pub down: Vec<String>,
    pub json: bool,
}

impl Query {
    /// Reads the query of `/explain`: `url`, and optionally `method ip user claimed claim day down format`.
    pub fn from_pairs(pairs: &[(String, String)]) -> Result<Self, String> {
        const KNOWN: [&str; 10] = ["url", "method", "ip", "user", "claimed", "claim", "header", "day", "down", "format"];
        if let Some((name, _)) = pairs.iter().find(|(name, _)| !KNOWN.contains(&name.as_str())) {
            return Err(format!("unknown parameter `{name}`; expected one of {}", KNOWN.join(", ")));
        }
        let get = |wanted: &str| pairs.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
        let ip = get("ip").unwrap_or_else(|| "0.0.0.0".into());
        Ok(Self {
            method: get("method").unwrap_or_else(|| "GET".into()),
            url: get("url").ok_or("the parameter `url` is missing; try `/explain?url=https://api.example.com/account/1`")?,
            ip: ip.parse().map_err(|_| format!("`{ip}` is not a valid IP address"))?,
            user: get("user"),
            claimed: get("claimed").is_some_and(|value| value != "false"),
            claims: pairs.iter().filter(|(name, _)| name == "claim").map(|(_, value)| claim(value)).collect::<Result<_, _>>()?,
            headers: pairs
                .iter()
                .filter(|(name, _)| name == "header")
                .map(|(_, value)| header(value))
                .collect::<Result<_, _>>()?,
            day: get("day"),
            down: pairs.iter().filter(|(name, _)| name == "down").map(|(_, value)| value.clone()).collect(),
            json: get("format").as_deref() == Some("json"),
        })
    }
}

/// Reads `NAME: VALUE`.
pub fn header(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once(':').ok_or_else(|| format!("`{text}` is not a valid header; write it as `NAME: VALUE`"))?;
    Ok((pair.0.trim().to_owned(), pair.1.trim().to_owned()))
}

/// Reads `NAME=VALUE`.
pub fn claim(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or_else(|| format!("`{text}` is not a valid claim; write it as `NAME=VALUE`"))?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

/// A decision with its description.
pub struct Explanation {
    title: String,
    client: String,
    lines: Vec<Line>,
    facts: Value,
    /// The route of the request, if one matches.
    pub route: Option<RouteId>,
    /// The actions of the route, in words; they run after the decision.
    pub actions: Vec<String>,
    /// Whether the request would be served.
    pub proceeds: bool,
    /// `proceed REGION…`, `redirect REGION` or `refuse CODE`.
    pub outcome: String,
}

/// Judges the request of a query as live traffic is judged.
pub async fn explain(snapshot: &Arc<JudgingSnapshot>, vitals: &Vitals, query: &Query) -> Result<Explanation, String> {
    let policy = &snapshot.policy;
    let question = question(snapshot, query)?;
    let vitals = with_down(vitals, policy, &query.down)?;
    let moment = match &query.day {
        None => Moment::live(Arc::clone(snapshot), SystemTime::now()),
        Some(day) => Moment::at(Arc::clone(snapshot), noon_of(day)?),
    };
    let decision = judge(&question, &[], moment, &vitals).await.decision;
    let country = decision.trail.country;
    let client = format!(
        "{} is in {} (jurisdiction {})",
        query.ip,
        country.map_or("no known country".to_owned(), |code| code.as_str().to_owned()),
        policy.jurisdiction_name(policy.jurisdiction_of_country(country))
    );
    Ok(Explanation {
        title: format!("{} {} arriving at {}", query.method, query.url, policy.region_name(policy.local)),
        client,
        lines: narrate::narrate(&decision, policy, &vitals),
        facts: facts(&decision, policy, query),
        route: decision.trail.route,
        actions: Vec::new(),
        proceeds: matches!(decision.verdict, Verdict::Proceed(_)),
        outcome: narrate::outcome(&decision, policy),
    })
}

/// The request that a query describes.
fn question(snapshot: &JudgingSnapshot, query: &Query) -> Result<Question, String> {
    let uri: http::Uri = query.url.parse().map_err(|_| format!("`{}` is not a valid URL or path", query.url))?;
    let host = uri.host().unwrap_or("localhost").trim_end_matches('.').to_ascii_lowercase();
    let method = Method::of(&query.method);
    // CONNECT has no path, so it is judged with the path `/`.
    let path = if method == Method::Connect { "/" } else { uri.path() };
    let fields = fields(snapshot, query, uri.query())?;
    let client = query.ip.to_canonical();
    let is_clear = |(path, kept): &(Cow<'_, str>, KeptCharacters)| {
        let head = Head { method, host: &host, path, client, fields: &fields };
        !is_ambiguous(&head, &snapshot.policy) && may_keep(&head, *kept, &snapshot.policy)
    };
    let (path, _) = canonical_path_keeping(path, snapshot.slashes, KeptCharacters::ALL)
        .filter(is_clear)
        .ok_or_else(|| format!("the path `{}` is ambiguous or malformed; such a request gets a 400 response", uri.path()))?;
    let caller = query.user.clone().map(|user| (user, if query.claimed { Proof::Claimed } else { Proof::Proven }));
    let token = (!query.claims.is_empty()).then(|| Arc::new(Verified::saying(&query.claims)));
    let credential = if token.is_some() { Credential::Verified } else { Credential::Absent };
    Ok(Question {
        ingress: Ingress::Client,
        method,
        host,
        path: path.into_owned(),
        is_preflight: false,
        is_read: matches!(method, Method::Get | Method::Head),
        client,
        fields,
        identity: Identity { caller, token, credential, ..Identity::default() },
        ignores_hint: Cell::new(false),
        envelope: None,
    })
}

/// The fields of the request that conditions of routes read.
fn fields(snapshot: &JudgingSnapshot, query: &Query, parameters: Option<&str>) -> Result<Fields, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in &query.headers {
        let name: HeaderName = name.parse().map_err(|_| format!("`{name}` is not a valid header name"))?;
        headers.append(name, HeaderValue::from_str(value).map_err(|_| format!("`{value}` is not a valid header value"))?);
    }
    Ok(read_fields(&snapshot.policy.routes.field_names, &headers, parameters))
}

/// The pairs of a URL query, decoded like a form; `None` if they are not UTF-8.
pub fn query_pairs(query: &str) -> Option<Vec<(String, String)>> {
    let decode = |text: &str| {
        let spaced = text.replace('+', " ");
        percent_decode_str(&spaced).decode_utf8().ok().map(std::borrow::Cow::into_owned)
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(name)?, decode(value)?))
        })
        .collect()
}

fn with_down(vitals: &Vitals, policy: &Policy, down: &[String]) -> Result<Vitals, String> {
    let mut vitals = vitals.clone();
    for name in down {
        let (name, service) = name.split_once('/').map_or((name.as_str(), None), |(region, service)| (region, Some(service)));
        let region = policy.find_region(name).ok_or_else(|| format!("unknown region `{name}`"))?;
        if let Some(service) = service {
            let service = policy.find_service(service).ok_or_else(|| format!("unknown service `{service}`"))?;
            vitals.set_down(service, region);
            continue;
        }
        vitals.set(region, RegionVitals { health: Health::Down, ..*vitals.region(region) });
    }
    Ok(vitals)
}

fn noon_of(text: &str) -> Result<SystemTime, String> {
    let wrong = || format!("`{text}` is not a valid date; write it as `2027-12-31`");
    Day::parse(text).ok_or_else(wrong)?;
    let date: jiff::civil::Date = text.parse().map_err(|_| wrong())?;
    let noon = date.at(12, 0, 0, 0).to_zoned(jiff::tz::TimeZone::UTC).map_err(|_| wrong())?;
    let seconds = u64::try_from(noon.timestamp().as_second()).map_err(|_| wrong())?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).ok_or_else(wrong)
}

fn facts(decision: &Decision, policy: &Policy, query: &Query) -> Value {
    let trail = &decision.trail;
    let names = |regions: RegionSet| regions.iter().map(|region| policy.region_name(region)).collect::<Vec<_>>();
    let home = trail.home.map(|home| {
        json!({
            "region": home.region().map(|region| policy.region_name(region)),
            "evidence": home.evidence().map(|evidence| evidence.as_str()),
            "jurisdiction": policy.jurisdiction_name(home.jurisdiction()),
        })
    });
    let (itinerary, redirect) = match &decision.verdict {
        Verdict::Proceed(itinerary) => (itinerary.regions().map(|region| policy.region_name(region)).collect(), None),
        Verdict::Redirect(region) => (vec![], Some(policy.region_name(*region))),
        Verdict::Refuse(_) => (vec![], None),
    };
    json!({
        "method": query.method,
        "url": query.url,
        "ip": query.ip.to_string(),
        "at": policy.region_name(policy.local),
        "country": trail.country.map(|code| code.as_str().to_owned()),
        "country_jurisdiction": policy.jurisdiction_name(trail.country.map_or(Jurisdiction::Unknown, |code| policy.jurisdiction_of_country(Some(code)))),
        "route": route_of(trail, policy).map(|route| &*route.name),
        "service": route_of(trail, policy).and_then(|route| route.service).map(|service| policy.service_name(service)),
        "classes": trail.classes.iter().map(|class| &*policy.class(class).name).collect::<Vec<_>>(),
        "report_only": trail.classes.iter().any(|class| policy.class(class).rule.mode == Mode::Report),
        "steps": trail.steps().map(|(step, _)| narrate::name_of(step)).collect::<Vec<_>>(),
        "home": home,
        "clearance": names(trail.clearance),
        "enforced": names(trail.enforced),
        "itinerary": itinerary,
        "redirect": redirect,
        "verdict": decision.verdict.as_str(),
        "code": decision.refusal().map(|code| code.as_str()),
        "policy": policy.hash.to_string(),
    })
}

impl Explanation {
    /// Whether the outcome is the expected one. The first region alone, or the code alone, is short for it.
    pub fn is_as_expected(&self, expected: &str) -> bool {
        let expected = expected.trim();
        let proceeds_to = |region: &str| {
            let regions = self.outcome.strip_prefix("proceed ").unwrap_or_default();
            regions.split(' ').next() == Some(region)
        };
        self.outcome == expected || proceeds_to(expected) || self.outcome == format!("refuse {expected}")
    }

    /// The explanation as text.
    pub fn text(&self) -> String {
        let mut out = format!("{}\n\n  {:<10} {}\n", self.title, "client", self.client);
        for line in &self.lines {
            out += &format!("  {:<10} {}\n", line.heading, line.text);
        }
        for (index, action) in self.actions.iter().enumerate() {
            let heading = if index == 0 { "actions" } else { "" };
            out += &format!("  {heading:<10} {action}\n");
        }
        out
    }

    /// The explanation as JSON.
    pub fn json(&self) -> String {
        let mut facts = self.facts.clone();
        if let Value::Object(fields) = &mut facts {
            let story = self.lines.iter().map(|line| json!({ "heading": line.heading, "text": line.text })).collect();
            fields.insert("story".into(), story);
            fields.insert("actions".into(), json!(self.actions));
        }
        format!("{facts:#}\n")
    }
}
