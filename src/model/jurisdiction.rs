//! A legal area: a set of countries and of regions.

/// A jurisdiction's number in this process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct JurisdictionId(u8);

impl JurisdictionId {
    pub const fn new(index: usize) -> Option<Self> {
        if index < 64 { Some(Self(index as u8)) } else { None }
    }

    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The jurisdiction of a user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Jurisdiction {
    Named(JurisdictionId),
    /// No jurisdiction lists the user's country. No region is in `Elsewhere`.
    Elsewhere,
    /// The user's country is not known. No region is in `Unknown`.
    Unknown,
}

/// A set of jurisdictions, which may contain `Elsewhere` and `Unknown`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct JurisdictionSet {
    named: u64,
    elsewhere: bool,
    unknown: bool,
}

impl JurisdictionSet {
    #[must_use]
    pub const fn with(mut self, jurisdiction: Jurisdiction) -> Self {
        match jurisdiction {
            Jurisdiction::Named(id) => self.named |= 1 << id.0,
            Jurisdiction::Elsewhere => self.elsewhere = true,
            Jurisdiction::Unknown => self.unknown = true,
        }
        self
    }

    pub const fn contains(self, jurisdiction: Jurisdiction) -> bool {
        match jurisdiction {
            Jurisdiction::Named(id) => self.named & (1 << id.0) != 0,
            Jurisdiction::Elsewhere => self.elsewhere,
            Jurisdiction::Unknown => self.unknown,
        }
    }

    pub const fn contains_id(self, id: JurisdictionId) -> bool {
        self.contains(Jurisdiction::Named(id))
    }

    pub const fn is_subset_of(self, other: Self) -> bool {
        self.named & !other.named == 0 && (!self.elsewhere || other.elsewhere) && (!self.unknown || other.unknown)
    }

    /// The named jurisdictions of the set, in the order of their numbers.
    pub fn ids(self) -> impl Iterator<Item = JurisdictionId> {
        (0..64).filter_map(JurisdictionId::new).filter(move |id| self.contains_id(*id))
    }
}
