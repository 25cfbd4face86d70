//! Service numbers.

/// The maximum number of services in the life of a process.
pub const MAX_SERVICES: usize = 4096;

/// A service's number in this process; a name keeps its number until the process ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServiceId(u16);

impl ServiceId {
    /// The service with this number; `None` if the number is too large.
    pub const fn new(index: usize) -> Option<Self> {
        if index < MAX_SERVICES { Some(Self(index as u16)) } else { None }
    }

    pub const fn index(self) -> usize {
        self.0 as usize
    }
}
