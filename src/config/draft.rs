//! The policy while it is read: between the file and its compiled form.

use aws_lc_rs::digest;

use crate::decision::policy::class::ClassId;
use crate::decision::policy::geography::GeoRules;
use crate::decision::policy::route::Route;
use crate::decision::policy::{DataClass, Draft, Policy, Region};
use crate::model::country::CountryCode;
use crate::model::jurisdiction::{Jurisdiction, JurisdictionId, JurisdictionSet};
use crate::model::region::RegionId;
use crate::model::service::ServiceId;
use crate::model::vitals::PolicyHash;

use super::actions::ActionsDraft;
use super::problem::suggestion;
use super::reader::{Field, Section};
use super::source::document::Value;

/// The name of the service of a region that lists `upstreams` without naming services.
pub const DEFAULT_SERVICE: &str = "app";

/// The policy as far as it could be read, with the fields that contain its parts, so that later checks can report positions.
pub struct PolicyDraft<'n> {
    pub local: Option<RegionId>,
    pub regions: Vec<RegionDraft<'n>>,
    pub jurisdictions: Vec<(JurisdictionId, Box<str>, Vec<CountryCode>)>,
    /// The services of all regions.
    pub services: Vec<(ServiceId, Box<str>)>,
    pub classes: Vec<DataClass>,
    pub routes: Vec<RouteDraft<'n>>,
    pub geo: Option<GeoRules>,
    pub has_directory: bool,
    pub has_tokens: bool,
}

/// A region, as far as it could be read, with the fields that `settings` reads.
pub struct RegionDraft<'n> {
    pub id: RegionId,
    pub name: &'n str,
    pub region: Option<Region>,
    pub field: Field<'n>,
    pub url: Option<http::Uri>,
    pub gateway: Option<http::Uri>,
    pub services: Vec<ServiceDraft<'n>>,
    /// The region's own listeners, if it overrides the common `listen`.
    pub listen: Option<Field<'n>>,
    pub admin: Option<Field<'n>>,
}

/// A service of a region, with the fields that `settings` reads.
pub struct ServiceDraft<'n> {
    pub id: ServiceId,
    pub name: &'n str,
    pub upstreams: Option<Field<'n>>,
    pub health: Option<Field<'n>>,
    pub balance: Option<Field<'n>>,
    /// Its section under `services`, with the options that override the common `upstreams`.
    pub section: Option<Section<'n>>,
}

/// A route and its actions, if they could be read, with its field.
pub struct RouteDraft<'n> {
    pub route: Option<Route>,
    pub actions: Option<ActionsDraft>,
    pub field: Field<'n>,
}

impl<'n> PolicyDraft<'n> {
    /// The compiled policy; `None` if a part could not be read. `identification` lists the settings that determine how paths and
    /// users are read.
    pub fn compile(&self, identification: Vec<Box<str>>, refuses_unread_credentials: bool) -> Option<Policy> {
        let regions = self.regions.iter().map(|draft| Some((draft.id, draft.region.clone()?))).collect::<Option<Vec<_>>>()?;
        let draft = Draft {
            local: self.local?,
            regions,
            jurisdictions: self.jurisdictions.clone(),
            services: self.services.clone(),
            classes: self.classes.clone(),
            routes: self.routes.iter().map(|draft| draft.route.clone()).collect::<Option<_>>()?,
            geo: self.geo.clone().unwrap_or_default(),
            refuses_unread_credentials,
            identification,
        };
        Some(Policy::compile(draft, hash))
    }

    /// The region that a field names.
    pub fn region(&self, field: &Field<'n>) -> Option<RegionId> {
        let name = field.text()?;
        let found = self.regions.iter().find(|draft| draft.name == name).map(|draft| draft.id);
        let known = self.regions.iter().map(|draft| draft.name);
        found.or_else(|| field.report(format!("unknown region `{name}`{}", suggestion(name, known))))
    }

    /// The service that a field names.
    pub fn service(&self, field: &Field<'n>) -> Option<ServiceId> {
        let name = field.text()?;
        let found = self.services.iter().find(|(_, known)| **known == *name).map(|(id, _)| *id);
        let known = self.services.iter().map(|(_, name)| &**name);
        found.or_else(|| field.report(format!("unknown service `{name}`{}", suggestion(name, known))))
    }

    /// The service that a field names, if every region has it.
    pub fn service_of_every_region(&self, field: &Field<'n>) -> Option<ServiceId> {
        let id = self.service(field)?;
        let lacks = |region: &&RegionDraft<'_>| !region.services.iter().any(|service| service.id == id);
        match self.regions.iter().find(lacks) {
            Some(region) => field.report(format!(
                "`{}` does not have this service, so that it could not serve the route; add the service to every region",
                region.name
            )),
            None => Some(id),
        }
    }

    /// The service of a route that names none: the only one, or the one with the standard name.
    pub fn default_service(&self) -> Option<ServiceId> {
        match &self.services[..] {
            [(only, _)] => Some(*only),
            services => services.iter().find(|(_, name)| **name == *DEFAULT_SERVICE).map(|(id, _)| *id),
        }
    }

    /// The data class that a field names.
    pub fn class(&self, field: &Field<'n>) -> Option<ClassId> {
        let name = field.text()?;
        let found = self.classes.iter().position(|class| *class.name == *name).and_then(ClassId::new);
        let known = self.classes.iter().map(|class| &*class.name);
        found.or_else(|| field.report(format!("unknown data class `{name}`{}", suggestion(name, known))))
    }

    pub fn find_jurisdiction(&self, name: &str) -> Option<JurisdictionId> {
        self.jurisdictions.iter().find(|(_, known, _)| **known == *name).map(|(id, _, _)| *id)
    }

    pub fn jurisdiction_names(&self) -> impl Iterator<Item = &str> {
        self.jurisdictions.iter().map(|(_, name, _)| &**name)
    }

    pub fn jurisdiction(&self, field: &Field<'n>) -> Option<JurisdictionId> {
        let name = field.text()?;
        self.find_jurisdiction(name)
            .or_else(|| field.report(format!("unknown jurisdiction `{name}`{}", suggestion(name, self.jurisdiction_names()))))
    }

    /// Reads one jurisdiction or several. `words` may stand here instead, and have been read before.
    pub fn jurisdiction_set(&self, field: &Field<'n>, words: &[&str]) -> Option<JurisdictionSet> {
        if let Value::Text(text) = &field.node.value
            && self.find_jurisdiction(text).is_none()
        {
            let known = words.iter().copied().chain(self.jurisdiction_names());
            return field.report(format!("unknown jurisdiction `{text}`{}", suggestion(text, known)));
        }
        let mut set = JurisdictionSet::default();
        let items = field.one_or_many();
        if items.is_empty() {
            return field.report("this list is empty; name at least one jurisdiction");
        }
        for item in items {
            set = set.with(Jurisdiction::Named(self.jurisdiction(&item)?));
        }
        Some(set)
    }
}

/// The first half of the SHA-256 of a policy's canonical text.
fn hash(canonical: &str) -> PolicyHash {
    let digest = digest::digest(&digest::SHA256, canonical.as_bytes());
    PolicyHash(digest.as_ref()[..16].try_into().expect("SHA-256 has 32 bytes"))
}
