//! How a route finds the home of a request, and whether the request may leave it.

use crate::model::region::RegionId;

/// Maximum number of steps in a chain.
pub const MAX_CHAIN: usize = 8;

/// A method of finding a home.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    Directory,
    /// A claim of a verified token names the home.
    Token,
    GeoIp,
    Latency,
    Region(RegionId),
    /// Ends the chain without a home.
    Refuse,
}

/// Whether an owned request may go to another region while its home cannot serve it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failover {
    pub reads: Reads,
    pub writes: Writes,
}

impl Failover {
    pub const NEVER: Self = Self { reads: Reads::Never, writes: Writes::Never };
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reads {
    Never,
    /// To the rest of the clearance, nearest first.
    Nearest,
}

/// Writes never fail over by themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Writes {
    Never,
}
