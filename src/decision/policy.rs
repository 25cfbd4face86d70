//! The operator's rules, validated and compiled: immutable, and the same for every request of a snapshot.

use crate::model::country::CountryCode;
use crate::model::jurisdiction::{Jurisdiction, JurisdictionId};
use crate::model::outcome::Code;
use crate::model::place::Coordinates;
use crate::model::region::{MAX_REGIONS, RegionId, RegionSet};
use crate::model::user::Evidence;
use crate::model::vitals::PolicyHash;

pub use super::failover::{Failover, Reads, Writes};
pub use super::resolve::geoip::{GeoRules, Network, Networks, Otherwise};

use super::facts::Claim;
use super::residency::{ResidencyRule, Stays};
use super::route::{Route, RouteTable};

/// The most steps a chain may have.
pub const MAX_CHAIN: usize = 8;

/// The most data classes a policy may have: a set of them is one `u64`.
pub const MAX_CLASSES: usize = 64;

/// A data class's number in one policy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClassId(u8);

impl ClassId {
    pub const fn new(index: usize) -> Option<Self> {
        if index < MAX_CLASSES { Some(Self(index as u8)) } else { None }
    }

    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The classes claimed for one message.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ClassSet(u64);

impl ClassSet {
    pub const EMPTY: Self = Self(0);

    pub const fn only(class: ClassId) -> Self {
        Self(1 << class.0)
    }

    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub const fn contains(self, class: ClassId) -> bool {
        self.0 & (1 << class.0) != 0
    }

    pub fn iter(self) -> impl Iterator<Item = ClassId> {
        (0..MAX_CLASSES as u8).map(ClassId).filter(move |class| self.contains(*class))
    }
}

/// A data class and its rule.
#[derive(Clone, PartialEq, Debug)]
pub struct DataClass {
    pub name: Box<str>,
    pub rule: ResidencyRule,
}

/// One way of finding a home.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    Directory,
    /// A claim of a verified token names the home.
    Token,
    GeoIp,
    Latency,
    Region(RegionId),
    /// The end of a chain that may find no home.
    Refuse,
}

/// What judgement needs to know of a region.
#[derive(Clone, PartialEq, Debug)]
pub struct Region {
    pub name: Box<str>,
    pub jurisdiction: JurisdictionId,
    pub at: Coordinates,
    /// Whether a client can be sent there.
    pub has_url: bool,
    /// Whether its proxy can be reached from here.
    pub has_gateway: bool,
}

/// The rules by which one region judges; they differ between regions only in `local`.
pub struct Policy {
    /// The region this process runs in.
    pub local: RegionId,
    pub regions: RegionSet,
    pub(super) region_slots: Box<[Option<Region>; MAX_REGIONS]>,
    pub(super) jurisdictions: Vec<JurisdictionEntry>,
    pub(super) country_jurisdictions: Box<[Option<JurisdictionId>; CountryCode::SLOTS]>,
    pub(super) classes: Vec<DataClass>,
    pub routes: RouteTable,
    pub geo: GeoRules,
    pub hash: PolicyHash,
}

/// A jurisdiction of the policy and the regions in it.
pub(super) struct JurisdictionEntry {
    id: JurisdictionId,
    name: Box<str>,
    regions: RegionSet,
}

/// The parts of a policy before it is compiled.
pub struct Draft {
    pub local: RegionId,
    pub regions: Vec<(RegionId, Region)>,
    pub jurisdictions: Vec<(JurisdictionId, Box<str>, Vec<CountryCode>)>,
    pub classes: Vec<DataClass>,
    pub routes: Vec<Route>,
    pub geo: GeoRules,
    pub hash: PolicyHash,
}

impl Policy {
    /// Compiles a draft. The caller has checked that whatever it names is in it.
    pub fn compile(draft: Draft) -> Self {
        let mut country_jurisdictions = Box::new([None; CountryCode::SLOTS]);
        for (id, _, countries) in &draft.jurisdictions {
            for country in countries {
                country_jurisdictions[country.slot()] = Some(*id);
            }
        }
        let mut region_slots = Box::new([const { None }; MAX_REGIONS]);
        let regions = draft.regions.iter().map(|(id, _)| *id).collect();
        let inside =
            |wanted| draft.regions.iter().filter(|(_, region)| region.jurisdiction == wanted).map(|(id, _)| *id).collect();
        let jurisdictions =
            draft.jurisdictions.into_iter().map(|(id, name, _)| JurisdictionEntry { id, name, regions: inside(id) }).collect();
        for (id, region) in draft.regions {
            region_slots[id.index()] = Some(region);
        }
        Self {
            local: draft.local,
            regions,
            region_slots,
            jurisdictions,
            country_jurisdictions,
            classes: draft.classes,
            routes: RouteTable::build(draft.routes),
            geo: draft.geo,
            hash: draft.hash,
        }
    }

    /// A region of this policy.
    pub fn region(&self, id: RegionId) -> &Region {
        self.region_slots[id.index()].as_ref().expect("a policy only names regions it has")
    }

    /// The region's name, or `?` for a region that this policy no longer has.
    pub fn region_name(&self, id: RegionId) -> &str {
        self.region_slots[id.index()].as_ref().map_or("?", |region| &region.name)
    }

    pub fn find_region(&self, name: &str) -> Option<RegionId> {
        self.regions.iter().find(|id| *self.region(*id).name == *name)
    }

    pub fn class(&self, id: ClassId) -> &DataClass {
        &self.classes[id.index()]
    }

    pub fn class_ids(&self) -> impl Iterator<Item = ClassId> {
        (0..self.classes.len()).filter_map(ClassId::new)
    }

    /// The class called `public`, if it may be anywhere, as its name says.
    pub fn public_class(&self) -> Option<ClassId> {
        self.find_class("public").filter(|class| self.class(*class).rule.stays == Stays::Anywhere)
    }

    pub fn find_class(&self, name: &str) -> Option<ClassId> {
        self.classes.iter().position(|class| *class.name == *name).and_then(ClassId::new)
    }

    pub fn jurisdictions(&self) -> impl Iterator<Item = (JurisdictionId, &str)> {
        self.jurisdictions.iter().map(|entry| (entry.id, &*entry.name))
    }

    /// How an operator calls the jurisdiction.
    pub fn jurisdiction_name(&self, jurisdiction: Jurisdiction) -> &str {
        match jurisdiction {
            Jurisdiction::Named(id) => self.jurisdictions().find(|(known, _)| *known == id).map_or("?", |(_, name)| name),
            Jurisdiction::Elsewhere => "elsewhere",
            Jurisdiction::Unknown => "unknown",
        }
    }

    /// Reads what [`Policy::jurisdiction_name`] writes.
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
            Some(code) => self.country_jurisdictions[code.slot()].map_or(Jurisdiction::Elsewhere, Jurisdiction::Named),
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

    /// The regions by distance from the local one, itself first.
    pub fn nearest_first(&self) -> Vec<RegionId> {
        let here = self.region(self.local).at;
        let mut regions: Vec<_> = self.regions.iter().collect();
        regions.sort_by(|a, b| here.distance_km(self.region(*a).at).total_cmp(&here.distance_km(self.region(*b).at)));
        regions.retain(|region| *region != self.local);
        regions.insert(0, self.local);
        regions
    }

    /// Every class claimed for a request: the route's, and those of the peer that sent it.
    pub(super) fn classes_of(&self, route: &Route, claim: Option<&Claim>) -> Result<ClassSet, Code> {
        let own = ClassSet::only(route.class);
        match claim {
            None => Ok(own),
            Some(claim) => claim.classes.map(|classes| classes.union(own)).ok_or(Code::ClassUnknown),
        }
    }

    /// Whether a home that is this well known unlocks the route's own class.
    pub fn is_unlocked(&self, route: &Route, evidence: Evidence) -> bool {
        evidence >= self.class(route.class).rule.needs
    }
}
