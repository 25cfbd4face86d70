//! One snapshot of what is known about every region's health.

use std::time::Duration;

use super::region::{MAX_REGIONS, RegionId, RegionSet};

/// Whether a region takes requests.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Health {
    /// Nobody has heard from it yet: it is tried.
    #[default]
    Unmeasured,
    Up,
    /// It finishes what it has and takes nothing new.
    Draining,
    /// It does not answer, or none of its upstreams does.
    Down,
}

impl Health {
    pub const ALL: [Self; 4] = [Self::Unmeasured, Self::Up, Self::Draining, Self::Down];

    pub const fn takes_requests(self) -> bool {
        matches!(self, Self::Unmeasured | Self::Up)
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unmeasured => "unmeasured",
            Self::Up => "up",
            Self::Draining => "draining",
            Self::Down => "down",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|health| health.as_str() == text)
    }
}

/// The hash of a policy: equal hashes mean equal judgement.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct PolicyHash(pub [u8; 16]);

impl PolicyHash {
    /// Reads what `Display` writes: 32 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        if text.len() != 32 || !text.is_ascii() {
            return None;
        }
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[index * 2..index * 2 + 2], 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl std::fmt::Display for PolicyHash {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

/// What is known about one region.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct RegionVitals {
    pub health: Health,
    /// Smoothed round trip from here; `None` until enough probes have come back.
    pub round_trip: Option<Duration>,
    /// Smoothed time its upstreams take to answer.
    pub upstream_time: Option<Duration>,
    /// The policy it judges by, once it has said so.
    pub policy: Option<PolicyHash>,
}

/// What is known about all regions, and the order in which an unowned request prefers them.
#[derive(Clone, PartialEq, Debug)]
pub struct Vitals {
    regions: [RegionVitals; MAX_REGIONS],
    /// Those that take no requests; of a region that is not known yet nothing speaks against trying it.
    refusing: RegionSet,
    nearest_first: Vec<RegionId>,
}

impl Vitals {
    /// Nothing measured yet; `nearest_first` orders the regions by distance.
    pub fn unmeasured(nearest_first: Vec<RegionId>) -> Self {
        Self { regions: [RegionVitals::default(); MAX_REGIONS], refusing: RegionSet::EMPTY, nearest_first }
    }

    pub fn region(&self, region: RegionId) -> &RegionVitals {
        &self.regions[region.index()]
    }

    pub fn set(&mut self, region: RegionId, vitals: RegionVitals) {
        self.regions[region.index()] = vitals;
        self.refusing = if vitals.health.takes_requests() { self.refusing.without(region) } else { self.refusing.with(region) };
    }

    /// The regions from the cheapest to reach to the dearest, measured cost first, distance where nothing is measured.
    pub fn nearest_first(&self) -> &[RegionId] {
        &self.nearest_first
    }

    /// Those of `regions` that take requests now.
    pub const fn taking_requests(&self, regions: RegionSet) -> RegionSet {
        regions.intersection(self.refusing.complement())
    }
}
