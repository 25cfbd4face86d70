//! Reads the sections on which decisions depend: jurisdictions, regions, data classes and GeoIP rules.

use ipnet::IpNet;

use crate::decision::policy::class::MAX_CLASSES;
use crate::decision::policy::geography::{GeoRules, Network, Networks, Otherwise};
use crate::decision::policy::rule::{Carriers, Mode, ResidencyRule, Stays, Transfer};
use crate::decision::policy::{DataClass, Region};
use crate::model::coordinates::Coordinates;
use crate::model::country::{Continent, CountryCode};
use crate::model::day::Day;
use crate::model::jurisdiction::{Jurisdiction, JurisdictionId};
use crate::model::region::{Names, RegionId, Registry};
use crate::model::service::ServiceId;
use crate::model::user::Evidence;

use super::draft::{DEFAULT_SERVICE, PolicyDraft, RegionDraft, ServiceDraft};
use super::problem::suggestion;
use super::reader::{Field, Section};
use super::source::document::Value;

pub fn read<'n>(section: &Section<'n>, root: &Field<'n>, region: Option<&str>, registry: &mut Registry) -> PolicyDraft<'n> {
    let mut draft = PolicyDraft {
        local: None,
        regions: Vec::new(),
        jurisdictions: Vec::new(),
        services: Vec::new(),
        classes: Vec::new(),
        routes: Vec::new(),
        geo: None,
        has_directory: root.node.get("users").is_some_and(|users| users.get("directory").is_some()),
        has_tokens: root.node.get("users").is_some_and(|users| users.get("token").is_some()),
    };
    if let Some(field) = section.required("jurisdictions", "name at least one legal area, such as `eu: { countries: [EEA] }`") {
        draft.read_jurisdictions(&field, registry);
    }
    if let Some(field) = section.required("regions", "list the regions, each with its jurisdiction, coordinates and upstreams") {
        draft.read_regions(&field, registry);
    }
    draft.local = draft.read_local(section, region);
    if let Some(field) = section.required("data", "list the data classes and where each may be processed") {
        draft.read_classes(&field);
    }
    if let Some(field) = section.optional("geoip") {
        draft.geo = draft.read_geography(&field);
    }
    draft
}

const TOO_MANY_SERVICES: &str = "there are more than 4096 services; removed names count until the process restarts";

/// Whether a name is valid in certificates, metric labels and tokens.
fn is_plain_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    name.len() <= 63 && name.starts_with(|first: char| first.is_ascii_lowercase()) && name.bytes().all(plain)
}

impl<'n> PolicyDraft<'n> {
    fn read_local(&self, section: &Section<'n>, override_name: Option<&str>) -> Option<RegionId> {
        let field = section.optional("region");
        if let Some(name) = override_name {
            let found = self.regions.iter().find(|draft| draft.name == name).map(|draft| draft.id);
            let known = self.regions.iter().map(|draft| draft.name);
            return found.or_else(|| {
                section.report(format!(
                    "DOMICILE_REGION or --region names `{name}`, which is not a region in this file{}",
                    suggestion(name, known)
                ))
            });
        }
        let Some(field) = field else {
            return section.report("`region` is missing: name the region that this process runs in, or set DOMICILE_REGION");
        };
        self.region(&field)
    }

    fn read_jurisdictions(&mut self, field: &Field<'n>, registry: &mut Registry) {
        for (key, field) in field.entries() {
            if matches!(key.text.as_str(), "elsewhere" | "unknown" | "home" | "anywhere" | "anyone" | "nobody")
                || !is_plain_name(&key.text)
            {
                field.report::<()>(format!(
                    "`{}` is not a valid jurisdiction name; use at most 63 lower-case letters, digits and `-`, a letter first, \
                     and none of the words elsewhere, unknown, home, anywhere, anyone, nobody",
                    key.text
                ));
                continue;
            }
            let Some(id) = registry.jurisdictions.number(&key.text).and_then(JurisdictionId::new) else {
                field.report::<()>(
                    "this is the 65th jurisdiction; the limit is 64, and removed names count until the process restarts",
                );
                continue;
            };
            let countries = field.section().map_or(Vec::new(), |section| {
                let countries = section.required("countries", "list ISO 3166 codes, or the groups EU and EEA");
                section.finish();
                countries.map_or(Vec::new(), |field| self.read_countries(&field))
            });
            self.jurisdictions.push((id, key.text.as_str().into(), countries));
        }
    }

    fn read_countries(&self, field: &Field<'n>) -> Vec<CountryCode> {
        let mut countries = Vec::new();
        for item in field.list() {
            let Some(text) = item.text() else { continue };
            let group: Vec<CountryCode> = match text {
                "EU" => CountryCode::all().filter(|code| code.country().in_eu).collect(),
                "EEA" => CountryCode::all().filter(|code| code.country().in_eea).collect(),
                code => country(&item, code).into_iter().collect(),
            };
            for code in group {
                let owner = self.jurisdictions.iter().find(|(_, _, listed)| listed.contains(&code));
                if let Some((_, name, _)) = owner {
                    item.report::<()>(format!(
                        "`{}` is already in jurisdiction `{name}`; list each country in one jurisdiction",
                        code.as_str()
                    ));
                } else if !countries.contains(&code) {
                    countries.push(code);
                }
            }
        }
        countries
    }

    fn read_regions(&mut self, field: &Field<'n>, registry: &mut Registry) {
        for (key, field) in field.entries() {
            let name = key.text.as_str();
            if !is_plain_name(name) {
                field.report::<()>(format!(
                    "`{name}` is not a valid region name; use at most 63 lower-case letters, digits and `-`, a letter first"
                ));
                continue;
            }
            let Some(id) = registry.regions.number(name).and_then(RegionId::new) else {
                field
                    .report::<()>("this is the 65th region; the limit is 64, and removed names count until the process restarts");
                continue;
            };
            let draft = self.read_region(id, name, field, &mut registry.services);
            self.regions.push(draft);
        }
        if self.regions.is_empty() {
            field.report::<()>("no region is listed; list at least one");
        }
    }

    fn read_region(&mut self, id: RegionId, name: &'n str, field: Field<'n>, numbers: &mut Names) -> RegionDraft<'n> {
        let mut draft = RegionDraft {
            id,
            name,
            region: None,
            field: field.clone(),
            url: None,
            gateway: None,
            services: Vec::new(),
            listen: None,
            admin: None,
        };
        let Some(section) = field.section() else { return draft };
        let jurisdiction = section.required("jurisdiction", "name the jurisdiction that the region is in");
        let jurisdiction = jurisdiction.and_then(|field| self.jurisdiction(&field));
        let at = section.required("at", "write `[latitude, longitude]` in degrees").and_then(|field| coordinates(&field));
        draft.services = self.read_services(&section, numbers);
        draft.listen = section.optional("listen");
        draft.admin = section.optional("admin");
        draft.gateway = section.optional("gateway").and_then(|field| field.base_url(&["https"]));
        draft.url = section.optional("url").and_then(|field| field.base_url(&["https", "http"]));
        section.finish();
        draft.region = jurisdiction.zip(at).map(|(jurisdiction, at)| Region {
            name: name.into(),
            jurisdiction,
            at,
            has_url: draft.url.is_some(),
            has_gateway: draft.gateway.is_some(),
            services: draft.services.iter().map(|service| service.id).collect(),
        });
        draft
    }

    /// Reads the services of a region, or the short form for a single one: `upstreams` and `health`.
    fn read_services(&mut self, section: &Section<'n>, numbers: &mut Names) -> Vec<ServiceDraft<'n>> {
        let (upstreams, health, balance) =
            (section.optional("upstreams"), section.optional("health"), section.optional("balance"));
        let Some(services) = section.optional("services") else {
            let missing = "`upstreams` is missing: list the app servers of the region, such as `[http://10.1.0.10:3000]`, or name \
                           several `services`";
            let upstreams = upstreams.or_else(|| section.report(missing));
            let id = self.number_service(DEFAULT_SERVICE, numbers).or_else(|| section.report(TOO_MANY_SERVICES));
            return id
                .map(|id| ServiceDraft { id, name: DEFAULT_SERVICE, upstreams, health, balance, section: None })
                .into_iter()
                .collect();
        };
        if let Some(extra) = upstreams.or(health).or(balance) {
            extra.report::<()>("this belongs to a service; move it into one of the `services`");
        }
        let entries = services.entries();
        if entries.is_empty() {
            services
                .report::<()>("no service is listed; list at least one, such as `app: { upstreams: [http://10.1.0.10:3000] }`");
        }
        entries.into_iter().filter_map(|(key, field)| self.read_service(&key.text, &field, numbers)).collect()
    }

    fn read_service(&mut self, name: &'n str, field: &Field<'n>, numbers: &mut Names) -> Option<ServiceDraft<'n>> {
        if !is_plain_name(name) {
            return field.report(format!(
                "`{name}` is not a valid service name; use at most 63 lower-case letters, digits and `-`, a letter first"
            ));
        }
        let id = self.number_service(name, numbers).or_else(|| field.report(TOO_MANY_SERVICES))?;
        if !field.is_section() {
            return Some(ServiceDraft { id, name, upstreams: Some(field.clone()), health: None, balance: None, section: None });
        }
        let section = field.section()?;
        let upstreams = section.required("upstreams", "list the app servers of the service, such as `[http://10.1.0.10:3000]`");
        let (health, balance) = (section.optional("health"), section.optional("balance"));
        Some(ServiceDraft { id, name, upstreams, health, balance, section: Some(section) })
    }

    fn number_service(&mut self, name: &str, numbers: &mut Names) -> Option<ServiceId> {
        let id = numbers.number(name).and_then(ServiceId::new)?;
        if !self.services.iter().any(|(known, _)| *known == id) {
            self.services.push((id, name.into()));
        }
        Some(id)
    }

    fn read_classes(&mut self, field: &Field<'n>) {
        for (key, field) in field.entries() {
            if !is_plain_name(&key.text) {
                field.report::<()>(format!(
                    "`{}` is not a valid data class name; use at most 63 lower-case letters, digits and `-`, a letter first",
                    key.text
                ));
                continue;
            }
            if self.classes.len() == MAX_CLASSES {
                field.report::<()>("the limit is 64 data classes; remove some");
                return;
            }
            // Keep the name of a class with mistakes, so that routes that use it are not reported too.
            let rule = self.read_rule(&field).unwrap_or(ResidencyRule {
                stays: Stays::Home,
                needs: Evidence::Recorded,
                carried_by: Carriers::Nobody,
                transfers: Vec::new(),
                mode: Mode::Enforce,
            });
            self.classes.push(DataClass { name: key.text.as_str().into(), rule });
        }
    }

    fn read_rule(&self, field: &Field<'n>) -> Option<ResidencyRule> {
        let section = field.section()?;
        let stays =
            section.required("stays", "write `home`, `anywhere` or a list of jurisdictions").and_then(|field| {
                match field.node.value {
                    Value::Text(ref text) if text == "home" => Some(Stays::Home),
                    Value::Text(ref text) if text == "anywhere" => Some(Stays::Anywhere),
                    _ => self.jurisdiction_set(&field, &["home", "anywhere"]).map(Stays::In),
                }
            });
        let evidence = Evidence::ALL.map(|evidence| (evidence.as_str(), evidence));
        let needs = section.optional("needs").map(|field| field.word(&evidence));
        let carried_by = section.optional("carried_by").map(|field| match field.node.value {
            Value::Text(ref text) if text == "anyone" => Some(Carriers::Anyone),
            Value::Text(ref text) if text == "nobody" => Some(Carriers::Nobody),
            _ => self.jurisdiction_set(&field, &["anyone", "nobody"]).map(Carriers::Only),
        });
        let transfers = section.optional("transfers").map_or(Vec::new(), |field| field.list());
        let transfers = transfers.iter().filter_map(|field| self.read_transfer(field)).collect();
        let mode = section.optional("mode").map(|field| field.word(&[("enforce", Mode::Enforce), ("report", Mode::Report)]));
        section.finish();
        let stays = stays?;
        Some(ResidencyRule {
            stays,
            needs: needs.unwrap_or(Some(if stays == Stays::Home { Evidence::Recorded } else { Evidence::Inferred }))?,
            carried_by: carried_by.unwrap_or(Some(if stays == Stays::Anywhere { Carriers::Anyone } else { Carriers::Nobody }))?,
            transfers,
            mode: mode.unwrap_or(Some(Mode::Enforce))?,
        })
    }

    fn read_transfer(&self, field: &Field<'n>) -> Option<Transfer> {
        let section = field.section()?;
        let from = section.required("from", "name the users' jurisdiction").and_then(|field| match field.text()? {
            "elsewhere" => Some(Jurisdiction::Elsewhere),
            "unknown" => Some(Jurisdiction::Unknown),
            _ => self.jurisdiction(&field).map(Jurisdiction::Named),
        });
        let to = section.required("to", "name the jurisdictions where the data may also be processed");
        let to = to.and_then(|field| self.jurisdiction_set(&field, &[]));
        let basis = section.required("basis", "name the legal basis, such as `contract`").and_then(|field| field.text());
        let until =
            section.required("until", "write the last day on which it is valid, such as `2027-12-31`").and_then(|field| {
                let text = field.text()?;
                Day::parse(text).or_else(|| field.report(format!("`{text}` is not a valid date; write it as `2027-12-31`")))
            });
        let record = section.optional("record").map(|field| field.text());
        section.finish();
        let record = record.map_or(Some(None), |text| text.map(|text| Some(text.into())));
        Some(Transfer { from: from?, to: to?, basis: basis?.into(), record: record?, until: until? })
    }

    fn read_geography(&self, field: &Field<'n>) -> Option<GeoRules> {
        let section = field.section()?;
        // `settings` reads these two keys; mark them as known.
        section.optional("database");
        section.optional("max_age");
        let networks = section.optional("networks").map_or(Vec::new(), |field| field.entries());
        let networks = networks.iter().filter_map(|(key, field)| self.read_network(&key.text, field)).collect::<Vec<_>>();
        let countries = section.optional("countries").map_or(Vec::new(), |field| field.entries());
        let countries =
            countries.iter().filter_map(|(key, field)| Some((country(field, &key.text)?, self.region(field)?))).collect();
        let continents = section.optional("continents").map_or(Vec::new(), |field| field.entries());
        let continents =
            continents.iter().filter_map(|(key, field)| Some((continent(field, &key.text)?, self.region(field)?))).collect();
        let otherwise = section.optional("otherwise").map_or(Some(Otherwise::Nearest), |field| match field.text()? {
            "nearest" => Some(Otherwise::Nearest),
            "next" => Some(Otherwise::Next),
            _ => self.region(&field).map(Otherwise::Region),
        });
        let unknown = section.optional("unknown").map_or(Some(None), |field| match field.text()? {
            "next" => Some(None),
            _ => self.region(&field).map(Some),
        });
        section.finish();
        Some(GeoRules { networks: Networks::build(networks), countries, continents, otherwise: otherwise?, unknown: unknown? })
    }

    fn read_network(&self, text: &str, field: &Field<'n>) -> Option<(std::net::IpAddr, u8, Network)> {
        let Ok(network) = text.parse::<IpNet>() else {
            return field
                .report(format!("`{text}` is not a valid network; write an address and a prefix length, such as `10.1.0.0/16`"));
        };
        if network.trunc() != network {
            return field.report(format!("`{text}` has address bits after its prefix; did you mean `{}`?", network.trunc()));
        }
        let network_is = |home, country| (network.addr(), network.prefix_len(), Network { home, country });
        if !field.is_section() {
            return self.region(field).map(|home| network_is(home, None));
        }
        let section = field.section()?;
        let home = section.required("region", "name the region that owns the network").and_then(|field| self.region(&field));
        let country = section.optional("country").map(|field| country(&field, field.text()?));
        section.finish();
        Some(network_is(home?, country.unwrap_or(None)))
    }
}

fn country(field: &Field<'_>, code: &str) -> Option<CountryCode> {
    let upper = code.bytes().all(|byte| byte.is_ascii_uppercase());
    CountryCode::parse(code).filter(|_| upper).or_else(|| {
        let hint = match code {
            "UK" => "; the code of the United Kingdom is `GB`",
            "EL" => "; the code of Greece is `GR`",
            "EU" | "EEA" => "; the groups EU and EEA belong under `jurisdictions`",
            _ => "; write an ISO 3166 code of two capital letters, such as `DE`, or in `jurisdictions` one of the groups EU and EEA",
        };
        field.report(format!("unknown country code `{code}`{hint}"))
    })
}

fn continent(field: &Field<'_>, code: &str) -> Option<Continent> {
    let known = Continent::ALL.map(Continent::code);
    let found = Continent::ALL.into_iter().find(|continent| continent.code() == code);
    found.or_else(|| field.report(format!("unknown continent `{code}`{}", suggestion(code, known))))
}

fn coordinates(field: &Field<'_>) -> Option<Coordinates> {
    let pair = field.one_or_many();
    let [latitude, longitude] = pair.as_slice() else {
        return field.report("write `[latitude, longitude]` in degrees");
    };
    Some(Coordinates { latitude: latitude.decimal(-90.0, 90.0)?, longitude: longitude.decimal(-180.0, 180.0)? })
}
