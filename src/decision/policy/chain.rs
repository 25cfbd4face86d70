//! How a route finds the home of a request, and whether the request may leave it.

use crate::model::region::RegionId;

/// The most steps a chain may have.
pub const MAX_CHAIN: usize = 8;

/// One way of finding a home.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    Directory,
    /// A claim of a verified token names the home.
    Token,
    GeoIp,
    Latency,
    Region(RegionId),
    /// The end of a chain that may find no home.
    Refuse,
}

/// Whether an owned request may leave a home that cannot serve it. Health alone moves nothing.
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

/// Writes move only by an operator's word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Writes {
    Never,
}
