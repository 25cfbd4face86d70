//! The canonical text of a policy: equal in all processes that judge alike, regardless of the order in the file.
//!
//! The text contains names instead of numbers, because numbers differ between processes. It omits `local`, which differs
//! between the regions of one fleet.

use std::fmt::Write;

use crate::model::country::CountryCode;
use crate::model::jurisdiction::{Jurisdiction, JurisdictionSet};

use super::Policy;
use super::chain::Step;
use super::geography::Otherwise;
use super::route::{FieldCondition, HostPattern, PathPattern, Route, Segment};
use super::rule::{Carriers, Mode, ResidencyRule, Stays};

/// The version of the judgement code. It increases with every change of `decision` that can change a judgement, so that two
/// releases that judge differently never have the same hash.
const RULES_VERSION: u32 = 4;

impl Policy {
    /// Everything that can change a judgement, one item per line.
    pub(super) fn canonical_text(&self) -> String {
        let mut lines: Vec<String> = Vec::new();
        for (id, name) in self.jurisdictions() {
            let own = |code: &CountryCode| self.jurisdiction_of_country(Some(*code)) == Jurisdiction::Named(id);
            let countries: Vec<_> = CountryCode::all().filter(own).map(|code| code.as_str().to_owned()).collect();
            lines.push(format!("jurisdiction {name:?} {}", sorted(countries)));
        }
        for region in self.regions.iter().map(|id| self.region(id)) {
            let place = (region.at.latitude.to_bits(), region.at.longitude.to_bits());
            let jurisdiction = self.jurisdiction_name(Jurisdiction::Named(region.jurisdiction));
            let (url, gateway) = (region.has_url, region.has_gateway);
            let services = sorted(region.services.iter().map(|id| format!("{:?}", self.service_name(*id))).collect());
            lines.push(format!("region {:?} {jurisdiction:?} {place:?} {url} {gateway} {services}", region.name));
        }
        for class in self.class_ids().map(|id| self.class(id)) {
            lines.push(format!("class {:?} {}", class.name, self.rule_text(&class.rule)));
        }
        lines.extend(self.identification.iter().map(|line| format!("identification {line:?}")));
        lines.push(format!("unread credentials {}", self.refuses_unread_credentials));
        // The order of the lines so far has no effect, so they are sorted. The order of the routes has an effect.
        lines.sort();
        lines.extend(self.routes.all().iter().map(|route| self.route_text(route)));
        lines.extend(self.geography_lines());
        lines.push(format!("rules {RULES_VERSION}"));
        lines.join("\n")
    }

    fn rule_text(&self, rule: &ResidencyRule) -> String {
        let stays = match rule.stays {
            Stays::Home => "home".to_owned(),
            Stays::In(set) => format!("in {}", self.set_text(set)),
            Stays::Anywhere => "anywhere".to_owned(),
        };
        let carried = match rule.carried_by {
            Carriers::Anyone => "anyone".to_owned(),
            Carriers::Only(set) => format!("only {}", self.set_text(set)),
            Carriers::Nobody => "nobody".to_owned(),
        };
        let mode = match rule.mode {
            Mode::Enforce => "enforce",
            Mode::Report => "report",
        };
        let transfers = rule.transfers.iter().map(|transfer| {
            let (from, to) = (self.jurisdiction_name(transfer.from), self.set_text(transfer.to));
            format!("{from:?} {to} {:?} {:?} {}", transfer.basis, transfer.record, transfer.until)
        });
        format!("{stays}; {}; {carried}; {mode}; {}", rule.needs.as_str(), sorted(transfers.collect()))
    }

    fn set_text(&self, set: JurisdictionSet) -> String {
        let beside = [Jurisdiction::Elsewhere, Jurisdiction::Unknown].into_iter().filter(|other| set.contains(*other));
        let members = set.ids().map(Jurisdiction::Named).chain(beside);
        sorted(members.map(|member| format!("{:?}", self.jurisdiction_name(member))).collect())
    }

    fn route_text(&self, route: &Route) -> String {
        let host = |host: &HostPattern| match host {
            HostPattern::Any => "any".to_owned(),
            HostPattern::Exact(host) => format!("exact {host:?}"),
            HostPattern::Below(domain) => format!("below {domain:?}"),
        };
        let hosts = sorted(route.pattern.hosts.iter().map(host).collect());
        let paths = sorted(route.pattern.paths.iter().map(path_text).collect());
        let methods: Vec<_> = route.pattern.methods.iter().map(|method| method.as_str().to_owned()).collect();
        let chain: Vec<_> = route.chain.iter().map(|step| self.step_text(*step)).collect();
        let mut text = format!("route {:?} {hosts} {paths} {} {}", route.name, sorted(methods), conditions_text(route));
        let class = &self.class(route.class).name;
        let aliases = sorted(route.aliases.iter().map(|alias| format!("{alias:?}")).collect());
        let service = route.service.map(|service| self.service_name(service));
        let _ =
            write!(text, " {class:?} {service:?} {chain:?} {:?} {:?} {aliases} {:?}", route.claim, route.failover, route.keeps);
        text
    }

    fn step_text(&self, step: Step) -> String {
        match step {
            Step::Directory => "directory".to_owned(),
            Step::Token => "token".to_owned(),
            Step::GeoIp => "geoip".to_owned(),
            Step::Latency => "latency".to_owned(),
            Step::Region(region) => format!("region {:?}", self.region_name(region)),
            Step::Refuse => "refuse".to_owned(),
        }
    }

    fn geography_lines(&self) -> Vec<String> {
        let name = |region| format!("{:?}", self.region_name(region));
        let mut lines = Vec::new();
        for (prefix, network) in self.geo.networks.all() {
            lines.push(format!("network {prefix:?} {} {:?}", name(network.home), network.country));
        }
        lines.extend(self.geo.countries.iter().map(|(code, region)| format!("country {} {}", code.as_str(), name(*region))));
        lines.extend(self.geo.continents.iter().map(|(continent, region)| format!("continent {continent:?} {}", name(*region))));
        lines.sort();
        lines.push(match self.geo.otherwise {
            Otherwise::Nearest => "otherwise nearest".to_owned(),
            Otherwise::Region(region) => format!("otherwise {}", name(region)),
            Otherwise::Next => "otherwise next".to_owned(),
        });
        lines.push(format!("unknown {:?}", self.geo.unknown.map(name)));
        lines
    }
}

fn conditions_text(route: &Route) -> String {
    let conditions = &route.pattern.conditions;
    let field = |kind: &str, field: &FieldCondition| {
        format!("{kind} {:?} {}", field.name, sorted(field.values.iter().map(|value| format!("{value:?}")).collect()))
    };
    let mut texts: Vec<_> = conditions.headers.iter().map(|header| field("header", header)).collect();
    texts.extend(conditions.query.iter().map(|query| field("query", query)));
    texts.push(format!("clients {}", sorted(conditions.clients.iter().map(|network| format!("{network:?}")).collect())));
    sorted(texts)
}

fn path_text(path: &PathPattern) -> String {
    let segment = |segment: &Segment| match segment {
        Segment::Literal(text) => format!("/{text:?}"),
        Segment::Any => "/*".to_owned(),
        Segment::User => "/user".to_owned(),
    };
    let segments: String = path.segments.iter().map(segment).collect();
    segments + if path.open_ended { "/**" } else { "" }
}

/// The members of a set, sorted.
fn sorted(mut members: Vec<String>) -> String {
    members.sort();
    members.dedup();
    format!("[{}]", members.join(" "))
}
