//! The user that a request belongs to, and the evidence for the user's home.

use super::jurisdiction::JurisdictionId;
use super::region::RegionId;

/// Whether a request proves that its user key is the user's own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Proof {
    /// The key comes from a plain cookie, which any client could have written.
    Claimed,
    /// A peer states that the key is proven, and this region cannot verify it.
    Vouched,
    /// A trusted hop, a verified token or our own sealed cookie proves it to this process.
    Proven,
}

impl Proof {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Claimed => "claimed",
            Self::Vouched => "vouched",
            Self::Proven => "proven",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Claimed, Self::Vouched, Self::Proven].into_iter().find(|proof| proof.as_str() == text)
    }
}

/// The strength of the evidence for a home, weakest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Evidence {
    /// From an address, a default, or the directory for a key that is only claimed.
    Inferred,
    /// From a verified token, our own sealed cookie, or the directory for a key that a peer vouches for.
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
    /// The jurisdiction column of the row; `None` means the jurisdiction of the home.
    pub jurisdiction: Option<JurisdictionId>,
}
