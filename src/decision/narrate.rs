//! Describes a decision in sentences: the finding of each step, the rules, the clearance, the itinerary, the verdict.

use crate::model::country::CountryCode;
use crate::model::jurisdiction::Jurisdiction;
use crate::model::outcome::{Code, Rule};
use crate::model::region::{RegionId, RegionSet};
use crate::model::service::ServiceId;
use crate::model::user::Evidence;
use crate::model::vitals::{Health, RegionVitals, Vitals};

use super::facts::Ingress;
use super::home::Home;
use super::policy::chain::Step;
use super::policy::rule::{Carriers, Mode, Stays};
use super::policy::{DataClass, Policy};
use super::route_of;
use super::verdict::{Decision, Finding, Trail, Verdict};

/// One line of a description.
pub struct Line {
    pub heading: &'static str,
    pub text: String,
}

/// Describes a decision.
pub fn narrate(decision: &Decision, policy: &Policy, vitals: &Vitals) -> Vec<Line> {
    let trail = &decision.trail;
    let mut lines = Vec::new();
    let mut add = |heading, text| lines.push(Line { heading, text });
    if let Ingress::Peer(peer) = trail.ingress {
        add("ingress", format!("forwarded by the proxy of {}", policy.region_name(peer)));
    }
    match route_of(trail, policy) {
        None => add("route", "no route matches".into()),
        Some(route) => {
            add("route", format!("`{}`, the first that matches; data class `{}`", route.name, policy.class(route.class).name))
        }
    }
    for (step, finding) in trail.steps() {
        add(name_of(step), describe(finding, trail, policy));
    }
    if let Some(home) = &trail.home {
        add("home", describe_home(home, policy));
        if let Some(other) = &trail.other_home {
            add("home", format!("{}, for the user in the path, who has no record", describe_home(other, policy)));
        }
        for class in trail.classes.iter() {
            add("rule", describe_rule(policy.class(class), home.jurisdiction(), trail, policy));
        }
        add("clearance", describe_clearance(trail, policy));
        let service = route_of(trail, policy).and_then(|route| route.service);
        if let Some(service) = service {
            add("service", describe_service(service, policy));
        }
        for region in trail.clearance.intersection(policy.regions_for(service)).iter() {
            if !vitals.region(region).health.takes_requests() {
                add("health", describe_health(region, vitals.region(region), policy));
            } else if let Some(service) = service.filter(|service| vitals.without(*service).contains(region)) {
                let (service, region) = (policy.service_name(service), policy.region_name(region));
                add("health", format!("`{service}` is down in {region}: none of its upstreams is up"));
            }
        }
    }
    if let Verdict::Proceed(itinerary) = &decision.verdict {
        let stops = itinerary.regions().map(|region| describe_stop(region, policy));
        add("itinerary", stops.collect::<Vec<_>>().join(", then "));
    }
    add("verdict", describe_verdict(decision, policy, vitals));
    lines
}

/// The name of a step in the configuration of a chain.
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
    let stale = if trail.place_is_stale { "; the database is older than `max_age`, so the country is not proven" } else { "" };
    let at = |country: Option<CountryCode>| match country {
        Some(code) => format!("the address is in {}", code.as_str()),
        None => "the country of the address is unknown".to_owned(),
    };
    match finding {
        Finding::NoKey => "the request names no user; the next step follows".into(),
        Finding::Absent => "the user is not in the directory; the next step follows".into(),
        Finding::Unavailable { goes_on: false } => {
            "the lookup failed or named a region that is not in this policy; no other step may replace it".into()
        }
        Finding::Unavailable { goes_on: true } => {
            "the lookup failed; the next step follows, because the request is a read of data that may be anywhere".into()
        }
        Finding::Recorded { home, evidence } => {
            let doubt = match evidence {
                Evidence::Recorded => "",
                Evidence::Asserted => "; a peer vouches for the user's key, so the evidence is only asserted",
                Evidence::Inferred => "; the user's key is not proven, so the evidence is only inferred",
            };
            format!("the user lives in {}{doubt}", name(home))
        }
        Finding::Hinted { home, is_asked: true } => format!("the lookup failed; the sealed cookie names {}", name(home)),
        Finding::Hinted { home, is_asked: false } => {
            format!("not asked, because the sealed cookie is from the current table; it names {}", name(home))
        }
        Finding::NoToken => "the request has no verified token of the user in question; the next step follows".into(),
        Finding::NoClaim => "the token does not have the claim; the next step follows".into(),
        Finding::UnknownRegion => "the token names a region that is not in this policy; no other step may replace it".into(),
        Finding::Asserted { home } => format!("a verified token names {}", name(home)),
        Finding::Given { home } => format!("the peer inferred {}", name(home)),
        Finding::Network { home } => format!("the address is in a network of {}", name(home)),
        Finding::Country { country, home } => {
            format!("the address is in {}, which belongs to {}{stale}", country.as_str(), name(home))
        }
        Finding::Continent { country, home } => format!("{}; its continent belongs to {}{stale}", at(country), name(home)),
        Finding::Nearest { country, home } => format!("{}; the nearest suitable region is {}{stale}", at(country), name(home)),
        Finding::Otherwise { country, home } => {
            format!("{}; not listed, so `otherwise` applies: {}{stale}", at(country), name(home))
        }
        Finding::UnknownPlace { home } => format!("the address has no known location, so `unknown` applies: {}", name(home)),
        Finding::Unplaced { country } => format!("{}; no region is set for it, so the next step follows", at(country)),
        Finding::Unowned => "no region owns the request; the nearest cleared region serves it".into(),
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
        Home::Unowned { .. } => format!("none (unowned); the client's jurisdiction is {jurisdiction}"),
    }
}

fn describe_rule(class: &DataClass, user: Jurisdiction, trail: &Trail, policy: &Policy) -> String {
    let rule = &class.rule;
    let stays = match rule.stays {
        Stays::Home => "stays in the user's jurisdiction".into(),
        Stays::In(set) => format!("stays in {}", policy.jurisdiction_names(set)),
        Stays::Anywhere => "may be anywhere".into(),
    };
    let carried = match rule.carried_by {
        Carriers::Anyone => "any proxy may carry it".into(),
        Carriers::Only(set) => format!("proxies in {} may carry it", policy.jurisdiction_names(set)),
        Carriers::Nobody => "no other proxy may carry it".into(),
    };
    let mut text = format!("`{}` {stays}, needs a home that is {} or better, and {carried}", class.name, rule.needs.as_str());
    for transfer in rule.transfers_from(user, trail.today) {
        text += &format!(
            "; a transfer to {} holds until {} ({})",
            policy.jurisdiction_names(transfer.to),
            transfer.until,
            transfer.grounds()
        );
    }
    let expired = rule.transfers.iter().filter(|transfer| transfer.from == user && transfer.until < trail.today);
    for transfer in expired {
        text += &format!("; a transfer to {} expired after {}", policy.jurisdiction_names(transfer.to), transfer.until);
    }
    if rule.mode == Mode::Report {
        text += "; report only";
    }
    text
}

/// The verdict in one line: `proceed REGION…`, `redirect REGION` or `refuse CODE`.
pub fn outcome(decision: &Decision, policy: &Policy) -> String {
    match &decision.verdict {
        Verdict::Proceed(itinerary) => {
            itinerary.regions().fold("proceed".into(), |text, region| format!("{text} {}", policy.region_name(region)))
        }
        Verdict::Redirect(region) => format!("redirect {}", policy.region_name(*region)),
        Verdict::Refuse(code) => format!("refuse {}", code.as_str()),
    }
}

fn describe_clearance(trail: &Trail, policy: &Policy) -> String {
    if trail.clearance != trail.enforced {
        return format!("{} in report-only mode; {} if enforced", names(trail.clearance, policy), names(trail.enforced, policy));
    }
    names(trail.clearance, policy)
}

fn describe_service(service: ServiceId, policy: &Policy) -> String {
    let (name, regions) = (policy.service_name(service), policy.regions_with(service));
    if regions == policy.regions {
        return format!("`{name}`, which every region has");
    }
    format!("`{name}`, only in {}", names(regions, policy))
}

fn describe_stop(region: RegionId, policy: &Policy) -> String {
    if region == policy.local {
        format!("{} (here)", policy.region_name(region))
    } else {
        format!("{} (through its proxy)", policy.region_name(region))
    }
}

fn describe_health(region: RegionId, vitals: &RegionVitals, policy: &Policy) -> String {
    let name = policy.region_name(region);
    match vitals.health {
        Health::Down if region == policy.local || vitals.is_reachable => {
            format!("{name} is down: its proxy responds, and none of its upstreams is up")
        }
        Health::Down => format!("{name} is down: its proxy does not respond to probes"),
        Health::Draining => format!("{name} is draining and accepts no new requests"),
        Health::Recovering => format!("{name} was down until a short time ago, so it comes last"),
        Health::Unmeasured | Health::Up => format!("{name} is up"),
    }
}

/// The reason that the local proxy does not forward a request to `target`.
fn why_not_forwarded(trail: &Trail, target: RegionId, policy: &Policy) -> String {
    let local = policy.region_name(policy.local);
    if !trail.carriers.union(trail.clearance).contains(policy.local) {
        return format!("{local} may not carry this data");
    }
    format!("{} has no `gateway`, so {local} cannot reach its proxy", policy.region_name(target))
}

/// The region that the request would be forwarded to if it had a gateway: its home, or another cleared region that is up.
fn unreached(trail: &Trail, policy: &Policy, vitals: &Vitals) -> Option<RegionId> {
    let home = trail.home.and_then(|home| home.region());
    let service = route_of(trail, policy)?.service;
    let alive = vitals.taking_requests(trail.clearance.intersection(policy.regions_for(service)), service);
    let is_unreachable = |region: &RegionId| *region != policy.local && !policy.region(*region).has_gateway;
    home.into_iter().chain(vitals.nearest_first().iter().copied()).filter(|region| alive.contains(*region)).find(is_unreachable)
}

fn describe_verdict(decision: &Decision, policy: &Policy, vitals: &Vitals) -> String {
    let trail = &decision.trail;
    match &decision.verdict {
        Verdict::Proceed(itinerary) if itinerary.first() == policy.local => "proceed: served here".into(),
        Verdict::Proceed(itinerary) => format!("proceed: forwarded to {}", policy.region_name(itinerary.first())),
        Verdict::Redirect(region) => {
            let why = why_not_forwarded(trail, *region, policy);
            format!("redirect: {why}, so the client is redirected to {}", policy.region_name(*region))
        }
        Verdict::Refuse(Code::CarrierNotCleared) if trail.ingress == Ingress::Client => {
            let target = unreached(trail, policy, vitals).or_else(|| trail.clearance.iter().next());
            let why = target.map_or_else(String::new, |target| why_not_forwarded(trail, target, policy));
            let code = Code::CarrierNotCleared.as_str();
            format!("refuse: {why}, and no region to which the client may be redirected has a `url` ({code})")
        }
        Verdict::Refuse(code) => format!("refuse: {} ({})", reason(*code), code.as_str()),
    }
}

/// The reason for a refusal, for the operator.
fn reason(code: Code) -> &'static str {
    match code {
        Code::RouteNone => "no route matches",
        Code::HomeUnresolved => "the chain found no home",
        Code::DirectoryUnavailable => "the directory lookup failed or named a region that is not in this policy",
        Code::NowhereCleared => "no region may process this data for this user",
        Code::EvidenceTooWeak => "the evidence for the home is too weak for this data",
        Code::HomeNotCleared => "the home region may not process this data for this user",
        Code::CarrierNotCleared => "the peer that forwarded this request may not carry its data",
        Code::TokenUnverified => "the request has a token that does not verify",
        Code::CredentialUnread => "the request has a credential that the app may read and this proxy cannot",
        Code::Malformed(Rule::User) => "the user in the path cannot be decoded",
        Code::ClassUnknown => "a peer names a data class that this policy does not have",
        Code::HomeDown => "the home accepts no requests, and the failover setting allows no other region",
        Code::AllDown => "no cleared region accepts requests",
        Code::ServiceMissing => "no region that may serve this request has the service of its route",
        Code::Misdirected => "a peer sent a request that this region does not own or may not process",
        Code::HomeUnknown => "the token names a region that is not in this policy",
        Code::ResponseNotCleared
        | Code::ResponseWithheld
        | Code::NoLongerCleared
        | Code::ClientDenied
        | Code::PasswordRefused
        | Code::RateLimited
        | Code::PeersDisagree
        | Code::PeerMalformed
        | Code::Loop
        | Code::LedgerUnavailable
        | Code::UpstreamUnreachable
        | Code::UpstreamBad
        | Code::UpstreamTimeout
        | Code::Malformed(
            Rule::Line
            | Rule::Target
            | Rule::Header
            | Rule::Host
            | Rule::Length
            | Rule::Path
            | Rule::Upgrade
            | Rule::Hops
            | Rule::Body
            | Rule::Stream,
        )
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

fn names(regions: RegionSet, policy: &Policy) -> String {
    if regions.is_empty() {
        return "no region".into();
    }
    regions.iter().map(|region| policy.region_name(region)).collect::<Vec<_>>().join(", ")
}
