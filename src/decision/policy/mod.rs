//! The operator's rules, validated and compiled: immutable, and the same for every request of a snapshot.

mod canonical;
pub mod chain;
pub mod class;
pub mod geography;
pub mod route;
pub mod rule;

use crate::model::coordinates::Coordinates;
use crate::model::country::CountryCode;
use crate::model::jurisdiction::{Jurisdiction, JurisdictionId, JurisdictionSet};
use crate::model::region::{MAX_REGIONS, RegionId, RegionSet};
use crate::model::service::ServiceId;
use crate::model::vitals::PolicyHash;

use class::{ClassId, ClassSet};
use geography::GeoRules;
use route::{Route, RouteTable};
use rule::{ResidencyRule, Stays};

/// A data class and its rule.
#[derive(Clone, PartialEq, Debug)]
pub struct DataClass {
    pub name: Box<str>,
    pub rule: ResidencyRule,
}

/// The properties of a region that judgement needs.
#[derive(Clone, PartialEq, Debug)]
pub struct Region {
    pub name: Box<str>,
    pub jurisdiction: JurisdictionId,
    pub at: Coordinates,
    /// Whether a client can be redirected to the region.
    pub has_url: bool,
    /// Whether the local proxy can reach the region's proxy.
    pub has_gateway: bool,
    /// The services that have app servers in the region.
    pub services: Vec<ServiceId>,
}

/// The rules by which one region judges. The policies of different regions differ only in `local`.
#[derive(Clone)]
pub struct Policy {
    /// The region this process runs in.
    pub local: RegionId,
    pub regions: RegionSet,
    region_slots: Box<[Option<Region>; MAX_REGIONS]>,
    jurisdictions: Vec<JurisdictionEntry>,
    /// By the numbers of the services.
    services: Vec<Option<ServiceEntry>>,
    country_jurisdictions: Box<[Option<JurisdictionId>; CountryCode::SLOTS]>,
    classes: Vec<DataClass>,
    pub routes: RouteTable,
    pub geo: GeoRules,
    /// Whether a request with a credential that this process cannot read is refused, unless its data may be anywhere.
    pub refuses_unread_credentials: bool,
    /// Settings of other modules that change what is judged, as canonical text. They are part of the hash.
    identification: Vec<Box<str>>,
    /// Equal hashes mean equal judgement.
    pub hash: PolicyHash,
}

/// A jurisdiction of the policy and the regions in it.
#[derive(Clone)]
struct JurisdictionEntry {
    id: JurisdictionId,
    name: Box<str>,
    regions: RegionSet,
}

/// A service of the policy and the regions that have it.
#[derive(Clone)]
struct ServiceEntry {
    name: Box<str>,
    regions: RegionSet,
}

/// The parts of a policy before it is compiled.
pub struct Draft {
    pub local: RegionId,
    pub regions: Vec<(RegionId, Region)>,
    pub jurisdictions: Vec<(JurisdictionId, Box<str>, Vec<CountryCode>)>,
    pub services: Vec<(ServiceId, Box<str>)>,
    pub classes: Vec<DataClass>,
    pub routes: Vec<Route>,
    pub geo: GeoRules,
    pub refuses_unread_credentials: bool,
    /// The settings that change how the path and the user of a request are read, one per line.
    pub identification: Vec<Box<str>>,
}

impl Policy {
    /// Compiles a draft; `digest` computes the hash of the policy's canonical text. The caller has checked that every region,
    /// class and jurisdiction that the draft refers to is defined in it.
    pub fn compile(draft: Draft, digest: impl FnOnce(&str) -> PolicyHash) -> Self {
        let mut country_jurisdictions = Box::new([None; CountryCode::SLOTS]);
        for (id, _, countries) in &draft.jurisdictions {
            for country in countries {
                *country_jurisdictions.get_mut(country.slot()).expect("every country has a slot") = Some(*id);
            }
        }
        let mut region_slots = Box::new([const { None }; MAX_REGIONS]);
        let regions = draft.regions.iter().map(|(id, _)| *id).collect();
        let services = service_entries(&draft);
        let inside =
            |wanted| draft.regions.iter().filter(|(_, region)| region.jurisdiction == wanted).map(|(id, _)| *id).collect();
        let jurisdictions =
            draft.jurisdictions.into_iter().map(|(id, name, _)| JurisdictionEntry { id, name, regions: inside(id) }).collect();
        for (id, region) in draft.regions {
            *region_slots.get_mut(id.index()).expect("every region number has a slot") = Some(region);
        }
        let mut policy = Self {
            local: draft.local,
            regions,
            region_slots,
            jurisdictions,
            services,
            country_jurisdictions,
            classes: draft.classes,
            routes: RouteTable::build(draft.routes),
            geo: draft.geo,
            refuses_unread_credentials: draft.refuses_unread_credentials,
            identification: draft.identification,
            hash: PolicyHash::default(),
        };
        policy.hash = digest(&policy.canonical_text());
        policy
    }

    /// A region of this policy.
    pub fn region(&self, id: RegionId) -> &Region {
        self.known_region(id).expect("a policy only names regions it has")
    }

    fn known_region(&self, id: RegionId) -> Option<&Region> {
        self.region_slots.get(id.index())?.as_ref()
    }

    /// The region's name, or `?` for a region that this policy no longer has.
    pub fn region_name(&self, id: RegionId) -> &str {
        self.known_region(id).map_or("?", |region| &region.name)
    }

    pub fn find_region(&self, name: &str) -> Option<RegionId> {
        self.regions.iter().find(|id| *self.region(*id).name == *name)
    }

    /// The service's name, or `?` for a service that this policy does not have.
    pub fn service_name(&self, id: ServiceId) -> &str {
        self.known_service(id).map_or("?", |service| &service.name)
    }

    pub fn find_service(&self, name: &str) -> Option<ServiceId> {
        let position = self.services.iter().position(|entry| entry.as_ref().is_some_and(|service| *service.name == *name));
        position.and_then(ServiceId::new)
    }

    /// The services, and their names in the configuration.
    pub fn services(&self) -> impl Iterator<Item = (ServiceId, &str)> {
        let numbered = self.services.iter().enumerate();
        numbered.filter_map(|(index, entry)| ServiceId::new(index).zip(entry.as_ref().map(|entry| &*entry.name)))
    }

    /// The regions that have a service.
    pub fn regions_with(&self, service: ServiceId) -> RegionSet {
        self.known_service(service).map_or(RegionSet::EMPTY, |service| service.regions)
    }

    /// The regions that can serve a route with this service: all of them if the route needs none.
    pub fn regions_for(&self, service: Option<ServiceId>) -> RegionSet {
        service.map_or(self.regions, |service| self.regions_with(service))
    }

    fn known_service(&self, id: ServiceId) -> Option<&ServiceEntry> {
        self.services.get(id.index())?.as_ref()
    }

    pub fn class(&self, id: ClassId) -> &DataClass {
        self.classes.get(id.index()).expect("a class number comes from this policy")
    }

    pub fn class_ids(&self) -> impl Iterator<Item = ClassId> {
        (0..self.classes.len()).filter_map(ClassId::new)
    }

    /// Whether every one of these classes may be processed anywhere.
    pub fn may_be_anywhere(&self, classes: ClassSet) -> bool {
        classes.iter().all(|class| self.class(class).rule.stays == Stays::Anywhere)
    }

    /// Settings of other modules that change what is judged, one a line.
    pub fn identification(&self) -> &[Box<str>] {
        &self.identification
    }

    pub fn find_class(&self, name: &str) -> Option<ClassId> {
        self.classes.iter().position(|class| *class.name == *name).and_then(ClassId::new)
    }

    pub fn jurisdictions(&self) -> impl Iterator<Item = (JurisdictionId, &str)> {
        self.jurisdictions.iter().map(|entry| (entry.id, &*entry.name))
    }

    /// All jurisdictions that a user can have, including `Elsewhere` and `Unknown`.
    pub fn user_jurisdictions(&self) -> impl Iterator<Item = Jurisdiction> {
        self.jurisdictions().map(|(id, _)| Jurisdiction::Named(id)).chain([Jurisdiction::Elsewhere, Jurisdiction::Unknown])
    }

    /// The jurisdiction's name in the configuration.
    pub fn jurisdiction_name(&self, jurisdiction: Jurisdiction) -> &str {
        match jurisdiction {
            Jurisdiction::Named(id) => self.jurisdictions().find(|(known, _)| *known == id).map_or("?", |(_, name)| name),
            Jurisdiction::Elsewhere => "elsewhere",
            Jurisdiction::Unknown => "unknown",
        }
    }

    /// The names of jurisdictions, for people.
    pub fn jurisdiction_names(&self, set: JurisdictionSet) -> String {
        set.ids().map(|id| self.jurisdiction_name(Jurisdiction::Named(id))).collect::<Vec<_>>().join(", ")
    }

    /// The jurisdiction with a name that [`Policy::jurisdiction_name`] returns.
    pub fn find_jurisdiction(&self, name: &str) -> Option<Jurisdiction> {
        match name {
            "elsewhere" => Some(Jurisdiction::Elsewhere),
            "unknown" => Some(Jurisdiction::Unknown),
            name => self.jurisdictions().find(|(_, known)| *known == name).map(|(id, _)| Jurisdiction::Named(id)),
        }
    }

    /// The jurisdiction that lists a country.
    pub fn jurisdiction_of_country(&self, country: Option<CountryCode>) -> Jurisdiction {
        match country {
            None => Jurisdiction::Unknown,
            Some(code) => {
                let listed = self.country_jurisdictions.get(code.slot()).copied().flatten();
                listed.map_or(Jurisdiction::Elsewhere, Jurisdiction::Named)
            }
        }
    }

    pub fn jurisdiction_of(&self, region: RegionId) -> Jurisdiction {
        Jurisdiction::Named(self.region(region).jurisdiction)
    }

    /// The regions whose jurisdiction passes `test`.
    pub fn regions_where(&self, test: impl Fn(Jurisdiction) -> bool) -> RegionSet {
        let passing = self.jurisdictions.iter().filter(|entry| test(Jurisdiction::Named(entry.id)));
        passing.fold(RegionSet::EMPTY, |regions, entry| regions.union(entry.regions))
    }

    /// All regions by distance from the local region, which is the first.
    pub fn nearest_first(&self) -> Vec<RegionId> {
        let here = self.region(self.local).at;
        let mut regions: Vec<_> = self.regions.iter().collect();
        regions.sort_by(|a, b| here.distance_km(self.region(*a).at).total_cmp(&here.distance_km(self.region(*b).at)));
        regions.retain(|region| *region != self.local);
        regions.insert(0, self.local);
        regions
    }
}

/// The services by their numbers, each with the regions that have it.
fn service_entries(draft: &Draft) -> Vec<Option<ServiceEntry>> {
    let slots = draft.services.iter().map(|(id, _)| id.index().saturating_add(1)).max().unwrap_or_default();
    let mut entries: Vec<_> = std::iter::repeat_with(|| None).take(slots).collect();
    for (id, name) in &draft.services {
        let has_it = |(region, data): &(RegionId, Region)| data.services.contains(id).then_some(*region);
        let regions = draft.regions.iter().filter_map(has_it).collect();
        *entries.get_mut(id.index()).expect("every service number has a slot") =
            Some(ServiceEntry { name: name.clone(), regions });
    }
    entries
}
