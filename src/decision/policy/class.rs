//! Data class numbers, and sets of data classes.

/// Maximum number of data classes in a policy, because a set of them is one `u64`.
pub const MAX_CLASSES: usize = 64;

/// A data class's number in one policy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClassId(usize);

impl ClassId {
    pub const fn new(index: usize) -> Option<Self> {
        if index < MAX_CLASSES { Some(Self(index)) } else { None }
    }

    pub const fn index(self) -> usize {
        self.0
    }
}

/// The classes claimed for one message.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ClassSet(u64);

impl ClassSet {
    pub const EMPTY: Self = Self(0);

    pub const fn only(class: ClassId) -> Self {
        Self(1 << class.0)
    }

    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub const fn contains(self, class: ClassId) -> bool {
        self.0 & (1 << class.0) != 0
    }

    /// The classes in the order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = ClassId> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let lowest = (rest != 0).then(|| rest.trailing_zeros() as usize)?;
            rest &= rest.wrapping_sub(1);
            Some(ClassId(lowest))
        })
    }
}
