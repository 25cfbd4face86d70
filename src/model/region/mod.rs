//! Region numbers, and sets of regions in one machine word.

mod registry;

pub use registry::{Names, Registry};

/// The maximum number of regions in the life of a process, because a set of regions is one `u64`.
pub const MAX_REGIONS: usize = 64;

/// A region's number in this process; a name keeps its number until the process ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RegionId(u8);

impl RegionId {
    /// The region with this number; `None` if the number is too large.
    pub const fn new(index: usize) -> Option<Self> {
        if index < MAX_REGIONS { Some(Self(index as u8)) } else { None }
    }

    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A set of regions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct RegionSet(u64);

impl RegionSet {
    pub const EMPTY: Self = Self(0);

    pub const fn only(region: RegionId) -> Self {
        Self(1 << region.0)
    }

    #[must_use]
    pub const fn with(self, region: RegionId) -> Self {
        Self(self.0 | 1 << region.0)
    }

    #[must_use]
    pub const fn without(self, region: RegionId) -> Self {
        Self(self.0 & !(1 << region.0))
    }

    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Every region that is not in this set.
    #[must_use]
    pub const fn complement(self) -> Self {
        Self(!self.0)
    }

    pub const fn contains(self, region: RegionId) -> bool {
        self.0 & (1 << region.0) != 0
    }

    pub const fn is_subset_of(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The regions in the order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = RegionId> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            if rest == 0 {
                return None;
            }
            let lowest = rest.trailing_zeros() as u8;
            rest &= rest - 1;
            Some(RegionId(lowest))
        })
    }
}

impl FromIterator<RegionId> for RegionSet {
    fn from_iter<I: IntoIterator<Item = RegionId>>(regions: I) -> Self {
        regions.into_iter().fold(Self::EMPTY, Self::with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_put_in_and_nothing_else() {
        let region = |index| RegionId::new(index).unwrap();
        let set = RegionSet::EMPTY.with(region(0)).with(region(63));
        assert_eq!(set.iter().map(RegionId::index).collect::<Vec<_>>(), [0, 63]);
        assert!(!set.contains(region(1)));
        assert!(set.without(region(63)).is_subset_of(set));
        assert!(!set.is_subset_of(RegionSet::only(region(0))));
    }
}
