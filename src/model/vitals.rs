//! A snapshot of the health and the measurements of every region.

use std::time::Duration;

use super::region::{MAX_REGIONS, RegionId, RegionSet};
use super::service::ServiceId;

/// Whether a region takes requests.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Health {
    /// There is no result yet; requests are sent to the region.
    #[default]
    Unmeasured,
    Up,
    /// The region takes requests again after it was down. Requests that may go elsewhere go elsewhere until it is up.
    Recovering,
    /// The region finishes the requests in flight and accepts no new ones.
    Draining,
    /// The region does not respond, or none of its upstreams is up.
    Down,
}

impl Health {
    pub const ALL: [Self; 5] = [Self::Unmeasured, Self::Up, Self::Recovering, Self::Draining, Self::Down];

    pub const fn takes_requests(self) -> bool {
        matches!(self, Self::Unmeasured | Self::Up | Self::Recovering)
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unmeasured => "unmeasured",
            Self::Up => "up",
            Self::Recovering => "recovering",
            Self::Draining => "draining",
            Self::Down => "down",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|health| health.as_str() == text)
    }
}

macro_rules! fingerprints {
    ($($(#[$doc:meta])* $name:ident,)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// Reads the 32 hexadecimal digits that `Display` writes.
            pub fn parse(text: &str) -> Option<Self> {
                let mut bytes = [0; 16];
                hex::decode_to_slice(text, &mut bytes).ok().map(|()| Self(bytes))
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str(&hex::encode(self.0))
            }
        }
    )*};
}

fingerprints! {
    /// The hash of a policy: equal hashes mean equal judgement.
    PolicyHash,
    /// The version of a user table: equal versions mean equal records.
    TableVersion,
}

/// The vitals of one region.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct RegionVitals {
    pub health: Health,
    /// Whether the region's proxy responded to the last probe. A region that is down although it responds has no upstream that
    /// is up.
    pub is_reachable: bool,
    /// Smoothed round trip from the local region; `None` until enough probes have succeeded.
    pub round_trip: Option<Duration>,
    /// Smoothed response time of the region's upstreams.
    pub upstream_time: Option<Duration>,
    /// The policy that the region uses; `None` until the region has reported it.
    pub policy: Option<PolicyHash>,
    /// The version of the region's user table; `None` until the region has reported it.
    pub directory: Option<TableVersion>,
}

/// The vitals of all regions, and the order in which an unowned request prefers the regions.
#[derive(Clone, PartialEq, Debug)]
pub struct Vitals {
    regions: [RegionVitals; MAX_REGIONS],
    /// The regions that take no requests. An unmeasured region is not among them.
    refusing: RegionSet,
    recovering: RegionSet,
    /// For each service, the regions in which none of its upstreams is up.
    down_services: Vec<RegionSet>,
    nearest_first: Vec<RegionId>,
}

impl Vitals {
    /// Nothing measured yet; `nearest_first` orders the regions by distance.
    pub fn unmeasured(nearest_first: Vec<RegionId>) -> Self {
        Self {
            regions: [RegionVitals::default(); MAX_REGIONS],
            refusing: RegionSet::EMPTY,
            recovering: RegionSet::EMPTY,
            down_services: Vec::new(),
            nearest_first,
        }
    }

    pub fn region(&self, region: RegionId) -> &RegionVitals {
        &self.regions[region.index()]
    }

    pub fn set(&mut self, region: RegionId, vitals: RegionVitals) {
        self.regions[region.index()] = vitals;
        let with = |set: RegionSet, is_member: bool| if is_member { set.with(region) } else { set.without(region) };
        self.refusing = with(self.refusing, !vitals.health.takes_requests());
        self.recovering = with(self.recovering, vitals.health == Health::Recovering);
    }

    /// The regions that were down a short time ago.
    pub const fn recovering(&self) -> RegionSet {
        self.recovering
    }

    /// The regions in the order of their cost, which is the measured time or, where nothing is measured, the distance.
    pub fn nearest_first(&self) -> &[RegionId] {
        &self.nearest_first
    }

    /// Records that none of the upstreams of `service` is up in `region`.
    pub fn set_down(&mut self, service: ServiceId, region: RegionId) {
        if self.down_services.len() <= service.index() {
            self.down_services.resize(service.index() + 1, RegionSet::EMPTY);
        }
        let regions = &mut self.down_services[service.index()];
        *regions = regions.with(region);
    }

    /// The regions in which no upstream of `service` is up.
    pub fn without(&self, service: ServiceId) -> RegionSet {
        self.down_services.get(service.index()).copied().unwrap_or_default()
    }

    /// The members of `regions` that take requests now, for `service` if the request needs one.
    pub fn taking_requests(&self, regions: RegionSet, service: Option<ServiceId>) -> RegionSet {
        let without = service.map_or(RegionSet::EMPTY, |service| self.without(service));
        regions.intersection(self.refusing.union(without).complement())
    }
}
