//! The assertions of an operator about a policy.

use crate::decision::home::Home;
use crate::decision::policy::class::{ClassId, ClassSet};
use crate::decision::policy::route::RouteId;
use crate::decision::verdict::{Decision, Verdict};
use crate::model::jurisdiction::Jurisdiction;
use crate::model::region::RegionSet;
use crate::model::user::Evidence;

use super::Kind;

/// A statement about all requests that `about` describes.
#[derive(Clone, PartialEq, Debug)]
pub struct Assertion {
    pub about: About,
    pub claim: Claim,
}

/// The requests that an assertion is about: those that have every property. `None` admits all.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct About {
    /// The class is one of the request's: that of its route, or one that a label adds.
    pub data: Option<ClassId>,
    /// The jurisdiction of the user, or of one of two users for whom the request is judged.
    pub of: Option<Jurisdiction>,
    pub route: Option<RouteId>,
    /// The evidence of the home; a request that no region owns counts as inferred.
    pub evidence: Option<Evidence>,
    pub kind: Option<Kind>,
}

/// The asserted property. Destinations are the regions that a request may be sent to, and the one that its client is redirected to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// No destination is one of these.
    NeverIn(RegionSet),
    /// Every destination is one of these.
    AlwaysIn(RegionSet),
    /// None of these carries the request to another region.
    NeverCarriedBy(RegionSet),
    /// The request is not sent to an app server.
    NeverProceeds,
    /// The client is not redirected.
    NeverRedirects,
}

/// The properties of a request that `About` can name.
pub(super) struct Properties<'h> {
    pub classes: ClassSet,
    pub homes: &'h [Home],
    pub route: RouteId,
    pub kind: Kind,
}

impl About {
    pub(super) fn admits(&self, request: &Properties<'_>) -> bool {
        let evidence = request.homes.first().and_then(Home::evidence).unwrap_or(Evidence::Inferred);
        self.data.is_none_or(|class| request.classes.contains(class))
            && self.of.is_none_or(|user| request.homes.iter().any(|home| home.jurisdiction() == user))
            && self.route.is_none_or(|route| route == request.route)
            && self.evidence.is_none_or(|wanted| wanted == evidence)
            && self.kind.is_none_or(|kind| kind == request.kind)
    }
}

impl Claim {
    /// Whether a decision contradicts the claim.
    pub fn is_broken_by(&self, decision: &Decision) -> bool {
        let destinations: RegionSet = match &decision.verdict {
            Verdict::Proceed(itinerary) => itinerary.regions().collect(),
            Verdict::Redirect(region) => RegionSet::only(*region),
            Verdict::Refuse(_) => return false,
        };
        let proceeds = matches!(decision.verdict, Verdict::Proceed(_));
        let carrier = decision.trail.carrier;
        match self {
            Self::NeverIn(regions) => !destinations.intersection(*regions).is_empty(),
            Self::AlwaysIn(regions) => !destinations.is_subset_of(*regions),
            Self::NeverCarriedBy(regions) => proceeds && regions.contains(carrier) && !destinations.without(carrier).is_empty(),
            Self::NeverProceeds => proceeds,
            Self::NeverRedirects => !proceeds,
        }
    }
}
