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

/// The legal area a user is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Jurisdiction {
    Named(JurisdictionId),
    /// The country is known and no jurisdiction lists it. It owns no region.
    Elsewhere,
    /// The country is not known. It owns no region.
    Unknown,
}

/// A set of jurisdictions, `elsewhere` and `unknown` included.
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

    /// The jurisdictions that have a number, in its order.
    pub fn ids(self) -> impl Iterator<Item = JurisdictionId> {
        (0..64).filter_map(JurisdictionId::new).filter(move |id| self.contains_id(*id))
    }
}
