//! Tells a decision as a person would: what each step found, the rule, the clearance, the itinerary, the verdict.

use crate::model::country::CountryCode;
use crate::model::jurisdiction::{Jurisdiction, JurisdictionSet};
use crate::model::outcome::Code;
use crate::model::region::{RegionId, RegionSet};
use crate::model::user::Evidence;
use crate::model::vitals::{Health, Vitals};

use super::facts::Ingress;
use super::home::Home;
use super::policy::chain::Step;
use super::policy::rule::{Carriers, Mode, Stays};
use super::policy::{DataClass, Policy};
use super::route_of;
use super::verdict::{Decision, Finding, Trail, Verdict};

/// One paragraph of the story.
pub struct Line {
    pub heading: &'static str,
    pub text: String,
}

/// The whole story of a decision.
pub fn narrate(decision: &Decision, policy: &Policy, vitals: &Vitals) -> Vec<Line> {
    let trail = &decision.trail;
    let mut lines = Vec::new();
    let mut say = |heading, text| lines.push(Line { heading, text });
    if let Ingress::Peer(peer) = trail.ingress {
        say("ingress", format!("handed over by the proxy of {}", policy.region_name(peer)));
    }
    match route_of(trail, policy) {
        None => say("route", "no route matches".into()),
        Some(route) => {
            say("route", format!("`{}`, the first that matches; its data is `{}`", route.name, policy.class(route.class).name))
        }
    }
    for (step, finding) in trail.steps() {
        say(name_of(step), describe(finding, trail, policy));
    }
    if let Some(home) = &trail.home {
        say("home", describe_home(home, policy));
        if let Some(other) = &trail.other_home {
            say(
                "home",
                format!("{} for the user whom the path names and the directory does not have", describe_home(other, policy)),
            );
        }
        for class in trail.classes.iter() {
            say("rule", describe_rule(policy.class(class), home.jurisdiction(), trail, policy));
        }
        say("clearance", describe_clearance(trail, policy));
        let refusing = trail.clearance.iter().filter(|region| !vitals.region(*region).health.takes_requests());
        for region in refusing {
            say("health", describe_health(region, vitals.region(region).health, policy));
        }
    }
    if let Verdict::Proceed(itinerary) = &decision.verdict {
        let stops = itinerary.regions().map(|region| describe_stop(region, policy));
        say("itinerary", stops.collect::<Vec<_>>().join(", then "));
    }
    say("verdict", describe_verdict(decision, policy));
    lines
}

/// The name of a step as it stands in a chain.
pub const fn name_of(step: Step) -> &'static str {
    match step {
        Step::Directory => "directory",
        Step::Token => "token",
        Step::GeoIp => "geoip",
        Step::Latency => "latency",
        Step::Region(_) => "region",
        Step::Refuse => "refuse",
    }
}

fn describe(finding: Finding, trail: &Trail, policy: &Policy) -> String {
    let name = |region| policy.region_name(region).to_owned();
    let stale = if trail.place_is_stale { "; the database is older than `max_age`, so the country proves nothing" } else { "" };
    let at = |country: Option<CountryCode>| match country {
        Some(code) => format!("the address is in {}", code.as_str()),
        None => "the address is in no known country".to_owned(),
    };
    match finding {
        Finding::NoKey => "the request names no user: on to the next step".into(),
        Finding::Absent => "the user is not in the directory: on to the next step".into(),
        Finding::Unavailable { goes_on: false } => "it cannot be asked, and a guess may not take its place".into(),
        Finding::Unavailable { goes_on: true } => {
            "it cannot be asked; this data may be anywhere, so a read goes on to the next step".into()
        }
        Finding::Recorded { home, evidence } => {
            let doubt = match evidence {
                Evidence::Recorded => "",
                Evidence::Asserted => "; a peer vouches for the key, so the record counts as asserted",
                Evidence::Inferred => "; the key is only claimed, so the record counts as a guess",
            };
            format!("the user lives in {}{doubt}", name(home))
        }
        Finding::Hinted { home, is_asked: true } => format!("it cannot be asked; our sealed cookie remembers {}", name(home)),
        Finding::Hinted { home, is_asked: false } => {
            format!("our sealed cookie remembers {} from this very table, so it is not asked", name(home))
        }
        Finding::NoToken => "the request has no token that can be verified: on to the next step".into(),
        Finding::NoClaim => "the token does not have the claim: on to the next step".into(),
        Finding::UnknownRegion => "the token names no region of this policy, and a guess may not take its place".into(),
        Finding::Asserted { home } => format!("a verified token names {}", name(home)),
        Finding::Given { home } => format!("the peer inferred {}", name(home)),
        Finding::Network { home } => format!("the address is in a network of {}", name(home)),
        Finding::Country { country, home } => {
            format!("the address is in {}, which belongs to {}{stale}", country.as_str(), name(home))
        }
        Finding::Continent { country, home } => format!("{}, on a continent that belongs to {}{stale}", at(country), name(home)),
        Finding::Nearest { country, home } => format!("{}; the nearest region that fits is {}{stale}", at(country), name(home)),
        Finding::Otherwise { country, home } => format!("{}; what no table names belongs to {}{stale}", at(country), name(home)),
        Finding::UnknownPlace { home } => format!("the address cannot be placed; such belong to {}", name(home)),
        Finding::Unplaced { country } => format!("{}: on to the next step", at(country)),
        Finding::Unowned => "nobody owns the request: the nearest cleared region serves it".into(),
        Finding::Fixed { home } => format!("the chain names {}", name(home)),
        Finding::Refused => "no step found a home".into(),
    }
}

fn describe_home(home: &Home, policy: &Policy) -> String {
    let jurisdiction = policy.jurisdiction_name(home.jurisdiction());
    match home {
        Home::Owned { region, evidence, .. } => {
            format!("{} ({}); the user's jurisdiction is {jurisdiction}", policy.region_name(*region), evidence.as_str())
        }
        Home::Unowned { .. } => format!("nobody's; the client's jurisdiction is {jurisdiction}"),
    }
}

fn describe_rule(class: &DataClass, user: Jurisdiction, trail: &Trail, policy: &Policy) -> String {
    let rule = &class.rule;
    let stays = match rule.stays {
        Stays::Home => "stays in the user's jurisdiction".into(),
        Stays::In(set) => format!("stays in {}", jurisdictions(set, policy)),
        Stays::Anywhere => "may be anywhere".into(),
    };
    let carried = match rule.carried_by {
        Carriers::Anyone => "anyone may carry it".into(),
        Carriers::Only(set) => format!("proxies in {} may carry it", jurisdictions(set, policy)),
        Carriers::Nobody => "nobody else may carry it".into(),
    };
    let mut text = format!("`{}` {stays}, needs a home that is {} or better, and {carried}", class.name, rule.needs.as_str());
    for transfer in rule.transfers_from(user, trail.today) {
        text += &format!(
            "; a transfer to {} holds until {} ({})",
            jurisdictions(transfer.to, policy),
            transfer.until,
            transfer.basis
        );
    }
    let expired = rule.transfers.iter().filter(|transfer| transfer.from == user && transfer.until < trail.today);
    for transfer in expired {
        text += &format!("; a transfer to {} expired after {}", jurisdictions(transfer.to, policy), transfer.until);
    }
    if rule.mode == Mode::Report {
        text += "; report only";
    }
    text
}

fn describe_clearance(trail: &Trail, policy: &Policy) -> String {
    if trail.clearance != trail.enforced {
        return format!(
            "{}, because of report-only mode; enforced it would be {}",
            names(trail.clearance, policy),
            names(trail.enforced, policy)
        );
    }
    names(trail.clearance, policy)
}

fn describe_stop(region: RegionId, policy: &Policy) -> String {
    if region == policy.local {
        format!("{} (here)", policy.region_name(region))
    } else {
        format!("{} (through its proxy)", policy.region_name(region))
    }
}

fn describe_health(region: RegionId, health: Health, policy: &Policy) -> String {
    let name = policy.region_name(region);
    match health {
        Health::Down if region == policy.local => format!("{name} is down: none of its upstreams is up"),
        Health::Down => format!("{name} is down: its gateway does not answer, or none of its upstreams is up"),
        Health::Draining => format!("{name} drains and takes no new requests"),
        Health::Unmeasured | Health::Up => format!("{name} is up"),
    }
}

/// Why the local proxy does not hand a request over itself.
fn why_not_handed_over(trail: &Trail, target: RegionId, policy: &Policy) -> String {
    let local = policy.region_name(policy.local);
    if !trail.carriers.union(trail.clearance).contains(policy.local) {
        return format!("{local} may not carry this data");
    }
    format!("{} has no `gateway`, so {local} cannot reach its proxy", policy.region_name(target))
}

fn describe_verdict(decision: &Decision, policy: &Policy) -> String {
    let trail = &decision.trail;
    match &decision.verdict {
        Verdict::Proceed(itinerary) if itinerary.first() == policy.local => "proceed: served here".into(),
        Verdict::Proceed(itinerary) => format!("proceed: handed to {}", policy.region_name(itinerary.first())),
        Verdict::Redirect(region) => {
            let why = why_not_handed_over(trail, *region, policy);
            format!("redirect: {why}, so the client is sent to {}", policy.region_name(*region))
        }
        Verdict::Refuse(Code::CarrierNotCleared) if trail.ingress == Ingress::Client => {
            let target = trail.home.and_then(|home| home.region()).or_else(|| trail.clearance.iter().next());
            let why = target.map_or_else(String::new, |target| why_not_handed_over(trail, target, policy));
            let code = Code::CarrierNotCleared.as_str();
            format!("refuse: {why}, and no cleared region has a `url` to send the client to ({code})")
        }
        Verdict::Refuse(code) => format!("refuse: {} ({})", reason(*code), code.as_str()),
    }
}

/// Why, in the operator's words.
fn reason(code: Code) -> &'static str {
    match code {
        Code::RouteNone => "no route matches",
        Code::HomeUnresolved => "the chain found no home",
        Code::DirectoryUnavailable => "the directory cannot be asked",
        Code::NowhereCleared => "no region may process this data for this user",
        Code::EvidenceTooWeak => "the home is not known well enough for this data",
        Code::HomeNotCleared => "the home itself may not process this data for this user",
        Code::CarrierNotCleared => "the proxy that sends this request may not carry its data",
        Code::TokenUnverified => "the request presents a token that does not verify",
        Code::CredentialUnread => "the request presents a credential that the app may read and this proxy cannot",
        Code::RequestMalformed => "the path names a user in a form that cannot be decoded",
        Code::ClassUnknown => "a peer names a data class that this policy does not have",
        Code::HomeDown => "the home takes no requests, and failover keeps this request there",
        Code::AllDown => "no cleared region takes requests",
        Code::Misdirected => "this region does not own what a peer asks for",
        Code::HomeUnknown => "the token names a region that is not in this policy",
        Code::AnswerNotCleared
        | Code::AnswerWithheld
        | Code::NoLongerCleared
        | Code::PeersDisagree
        | Code::PeerMalformed
        | Code::Loop
        | Code::LedgerUnavailable
        | Code::UpstreamUnreachable
        | Code::UpstreamBad
        | Code::UpstreamTimeout
        | Code::BodyTooLarge
        | Code::HeadTooLarge
        | Code::TargetTooLong
        | Code::RequestTimeout
        | Code::MethodNotAllowed
        | Code::WrongSite
        | Code::UpgradeRefused
        | Code::WebSocketVersion
        | Code::Overloaded
        | Code::DeadlineExceeded => code.as_str(),
    }
}

fn jurisdictions(set: JurisdictionSet, policy: &Policy) -> String {
    set.ids().map(|id| policy.jurisdiction_name(Jurisdiction::Named(id))).collect::<Vec<_>>().join(", ")
}

fn names(regions: RegionSet, policy: &Policy) -> String {
    if regions.is_empty() {
        return "no region".into();
    }
    regions.iter().map(|region| policy.region_name(region)).collect::<Vec<_>>().join(", ")
}
