//! Who a request belongs to, and how well that is known.

use super::jurisdiction::JurisdictionId;
use super::region::RegionId;

/// How well the key that names a user is shown to be theirs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Proof {
    /// Anyone could have written it: a plain cookie.
    Claimed,
    /// A trusted hop, a verified token or our own seal vouches for it.
    Proven,
}

impl Proof {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Claimed => "claimed",
            Self::Proven => "proven",
        }
    }
}

/// How well a home is known, weakest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Evidence {
    /// From an address or a default.
    Inferred,
    /// From a verified token or our own sealed cookie.
    Asserted,
    /// From the directory, for a key that is proven.
    Recorded,
}

impl Evidence {
    pub const ALL: [Self; 3] = [Self::Inferred, Self::Asserted, Self::Recorded];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inferred => "inferred",
            Self::Asserted => "asserted",
            Self::Recorded => "recorded",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|evidence| evidence.as_str() == text)
    }
}

/// A row of the directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    pub home: RegionId,
    /// The directory's own column; without it, the jurisdiction of the home.
    pub jurisdiction: Option<JurisdictionId>,
}
