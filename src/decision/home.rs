//! The home of a request, and the evidence for it.

use crate::model::jurisdiction::Jurisdiction;
use crate::model::region::RegionId;
use crate::model::user::Evidence;

/// The home of a request, and the evidence for it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Home {
    Owned {
        region: RegionId,
        evidence: Evidence,
        /// The user's jurisdiction, which may differ from the region's.
        jurisdiction: Jurisdiction,
    },
    /// No region owns the request, so any cleared region may serve it.
    Unowned { jurisdiction: Jurisdiction },
}

impl Home {
    pub const fn region(&self) -> Option<RegionId> {
        match self {
            Self::Owned { region, .. } => Some(*region),
            Self::Unowned { .. } => None,
        }
    }

    pub const fn evidence(&self) -> Option<Evidence> {
        match self {
            Self::Owned { evidence, .. } => Some(*evidence),
            Self::Unowned { .. } => None,
        }
    }

    pub const fn jurisdiction(&self) -> Jurisdiction {
        match self {
            Self::Owned { jurisdiction, .. } | Self::Unowned { jurisdiction } => *jurisdiction,
        }
    }
}
