//! The result of judgement: a verdict, and the trail that led to it.

use crate::model::country::CountryCode;
use crate::model::day::Day;
use crate::model::outcome::Code;
use crate::model::region::{MAX_REGIONS, RegionId, RegionSet};
use crate::model::user::Evidence;

use super::facts::{Facts, Ingress};
use super::home::Home;
use super::policy::chain::{MAX_CHAIN, Step};
use super::policy::class::ClassSet;
use super::policy::route::RouteId;
use super::residency::{Clearance, Ruling};

/// The verdict on a request.
#[derive(Clone, PartialEq, Debug)]
pub enum Verdict {
    Proceed(Itinerary),
    /// The client is redirected to this region's public URL.
    Redirect(RegionId),
    Refuse(Code),
}

impl Verdict {
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Proceed(_) => "proceed",
            Self::Redirect(_) => "redirect",
            Self::Refuse(_) => "refuse",
        }
    }
}

/// The cleared regions to try, in order.
///
/// INVARIANT: an itinerary is never empty, and every stop is in the clearance that the itinerary was made from.
#[derive(Clone, PartialEq, Debug)]
pub struct Itinerary {
    stops: [Stop; MAX_REGIONS],
    len: usize,
}

/// A region that a request may be sent to. A permit is made from a stop.
///
/// INVARIANT: only an itinerary makes stops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stop {
    region: RegionId,
}

impl Stop {
    pub const fn region(self) -> RegionId {
        self.region
    }
}

impl Itinerary {
    /// The `regions` that are in the clearance, in their order; `None` if there are none.
    pub(super) fn through(clearance: Clearance, regions: impl Iterator<Item = RegionId>) -> Option<Self> {
        let nowhere = Stop { region: RegionId::new(0)? };
        let mut itinerary = Self { stops: [nowhere; MAX_REGIONS], len: 0 };
        let mut left = clearance.regions();
        for region in regions.filter(|region| clearance.contains(*region)) {
            if left.contains(region) {
                left = left.without(region);
                itinerary.push(Stop { region });
            }
        }
        (itinerary.len > 0).then_some(itinerary)
    }

    /// The stops for which `is_kept` holds, in the same order; `None` if there are none.
    pub(super) fn only(&self, is_kept: impl Fn(RegionId) -> bool) -> Option<Self> {
        let mut kept = Self { len: 0, ..self.clone() };
        for stop in self.stops().iter().filter(|stop| is_kept(stop.region)) {
            kept.push(*stop);
        }
        (kept.len > 0).then_some(kept)
    }

    /// INVARIANT: every region is pushed at most once, so that there is always room.
    fn push(&mut self, stop: Stop) {
        let slot = self.stops.get_mut(self.len).expect("no more stops than regions");
        *slot = stop;
        self.len = self.len.saturating_add(1);
    }

    pub fn stops(&self) -> &[Stop] {
        self.stops.get(..self.len).expect("no more stops than slots")
    }

    pub fn regions(&self) -> impl Iterator<Item = RegionId> {
        self.stops().iter().map(|stop| stop.region)
    }

    pub fn first(&self) -> RegionId {
        self.stops[0].region
    }
}

/// The finding of one step of the chain.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Finding {
    NoKey,
    Absent,
    /// The directory lookup failed, or the recorded home is not in the policy; `goes_on` if the next step may guess.
    Unavailable {
        goes_on: bool,
    },
    /// The directory's record.
    Recorded {
        home: RegionId,
        evidence: Evidence,
    },
    /// The record in our own sealed cookie, because it is current or the directory is unavailable (`is_asked`).
    Hinted {
        home: RegionId,
        is_asked: bool,
    },
    /// No token, or none that can be verified.
    NoToken,
    /// The token does not have the claim.
    NoClaim,
    /// The token names a region that this policy does not have.
    UnknownRegion,
    /// The token's claim.
    Asserted {
        home: RegionId,
    },
    /// The peer's own inference, taken as given.
    Given {
        home: RegionId,
    },
    /// An operator's network.
    Network {
        home: RegionId,
    },
    /// The table of countries.
    Country {
        country: CountryCode,
        home: RegionId,
    },
    /// The table of continents.
    Continent {
        country: Option<CountryCode>,
        home: RegionId,
    },
    /// The nearest region, preferring those of the country's own jurisdiction.
    Nearest {
        country: Option<CountryCode>,
        home: RegionId,
    },
    /// The region for all other countries.
    Otherwise {
        country: Option<CountryCode>,
        home: RegionId,
    },
    /// The region for addresses without a known location.
    UnknownPlace {
        home: RegionId,
    },
    /// The address has no known location, or no table gives a region for it.
    Unplaced {
        country: Option<CountryCode>,
    },
    /// No region owns the request; the nearest cleared region serves it.
    Unowned,
    /// The chain names the region.
    Fixed {
        home: RegionId,
    },
    /// The chain ends without a home.
    Refused,
}

/// The data about a decision from which `explain`, the ledger and the logs describe it.
#[derive(Clone, PartialEq, Debug)]
pub struct Trail {
    pub route: Option<RouteId>,
    pub ingress: Ingress,
    pub is_read: bool,
    pub today: Day,
    pub country: Option<CountryCode>,
    pub place_is_stale: bool,
    steps: [Option<(Step, Finding)>; MAX_CHAIN],
    pub home: Option<Home>,
    /// The home of the user that the path names, if the request is judged for this user and for the caller.
    pub other_home: Option<Home>,
    pub classes: ClassSet,
    /// The cleared regions; in report-only mode more than `enforced`.
    pub clearance: RegionSet,
    /// The regions that the rules would clear without report-only mode.
    pub enforced: RegionSet,
    /// The regions whose proxies may carry the data, in addition to the cleared regions.
    pub carriers: RegionSet,
    enforced_carriers: RegionSet,
    /// The region whose proxy carries the request and its response: the local one for a client, the sender for a peer.
    pub carrier: RegionId,
}

impl Trail {
    pub(super) fn of(facts: &Facts<'_>, local: RegionId) -> Self {
        Self {
            route: facts.route.id,
            ingress: facts.ingress,
            is_read: facts.is_read,
            today: facts.today,
            country: facts.country(),
            place_is_stale: facts.place_is_stale,
            steps: [None; MAX_CHAIN],
            home: None,
            other_home: None,
            classes: ClassSet::EMPTY,
            clearance: RegionSet::EMPTY,
            enforced: RegionSet::EMPTY,
            carriers: RegionSet::EMPTY,
            enforced_carriers: RegionSet::EMPTY,
            carrier: match facts.ingress {
                Ingress::Client => local,
                Ingress::Peer(peer) => peer,
            },
        }
    }

    pub(super) fn note(&mut self, step: Step, finding: Finding) {
        if let Some(free) = self.steps.iter_mut().find(|slot| slot.is_none()) {
            *free = Some((step, finding));
        }
    }

    /// The homes that were judged: one, or two if the path names a user who has no record.
    pub fn homes(&self) -> impl Iterator<Item = &Home> {
        self.home.iter().chain(&self.other_home)
    }

    pub(super) fn note_ruling(&mut self, ruling: &Ruling) {
        self.clearance = ruling.clearance.map_or(RegionSet::EMPTY, |clearance| clearance.regions());
        self.enforced = ruling.enforced;
        self.carriers = ruling.carriers;
        self.enforced_carriers = ruling.enforced_carriers;
    }

    /// Whether the data may be processed in `region` and carried by this request's carrier, also if only report-only mode
    /// allows it.
    pub fn is_cleared(&self, region: RegionId) -> bool {
        let owner_is_cleared = self.home.and_then(|home| home.region()).is_none_or(|owner| self.clearance.contains(owner));
        owner_is_cleared && self.clearance.contains(region) && self.carriers.union(self.clearance).contains(self.carrier)
    }

    /// Whether only report-only mode allows the data to be processed in `region`.
    pub fn is_only_reported(&self, region: RegionId) -> bool {
        let owner_is_cleared = self.home.and_then(|home| home.region()).is_none_or(|owner| self.enforced.contains(owner));
        let carriers = self.enforced.union(self.enforced_carriers);
        !(owner_is_cleared && self.enforced.contains(region) && carriers.contains(self.carrier))
    }

    /// Whether only report-only mode allows a redirect of the client to `region`.
    pub fn is_redirect_only_reported(&self, region: RegionId) -> bool {
        let owner_is_cleared = self.home.and_then(|home| home.region()).is_none_or(|owner| self.enforced.contains(owner));
        !(owner_is_cleared && self.enforced.contains(region))
    }

    /// Whether `enforce` would refuse the request, because only report-only mode clears its regions.
    pub fn would_be_refused(&self, is_redirect: bool) -> bool {
        let is_only_reported =
            |region| if is_redirect { self.is_redirect_only_reported(region) } else { self.is_only_reported(region) };
        !self.clearance.is_empty() && self.clearance.iter().all(is_only_reported)
    }

    /// The findings of the steps of the chain, in order.
    pub fn steps(&self) -> impl Iterator<Item = (Step, Finding)> {
        self.steps.iter().flatten().copied()
    }
}

/// The verdict on one request, and the trail that led to it.
#[derive(Clone, PartialEq, Debug)]
pub struct Decision {
    pub verdict: Verdict,
    pub trail: Trail,
}

impl Decision {
    /// The reason for the refusal, if the request is refused.
    pub const fn refusal(&self) -> Option<Code> {
        match self.verdict {
            Verdict::Refuse(code) => Some(code),
            Verdict::Proceed(_) | Verdict::Redirect(_) => None,
        }
    }
}
