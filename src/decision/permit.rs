//! A request bound to one stop of its itinerary.

use crate::model::region::RegionId;

use super::verdict::Stop;

/// A permit: a request that may be sent to one region. The connection pools accept nothing else.
///
/// INVARIANT: a permit cannot be cloned, and its ledger line is written before it is made. Only `engine::permit` binds
/// requests to stops, which `tests/architecture.rs` checks.
#[derive(Debug)]
pub struct Permitted<R> {
    request: R,
    region: RegionId,
}

impl Stop {
    /// Binds a request to this stop.
    pub const fn bind<R>(self, request: R) -> Permitted<R> {
        Permitted { request, region: self.region() }
    }
}

impl<R> Permitted<R> {
    /// Permits a request of this process that contains no user data, such as a probe or a health check.
    pub const fn without_user_data(region: RegionId, request: R) -> Self {
        Self { request, region }
    }

    /// The region that may receive the request.
    pub const fn region(&self) -> RegionId {
        self.region
    }

    pub const fn request(&self) -> &R {
        &self.request
    }

    /// The request, for the header fields that its stop needs.
    pub const fn request_mut(&mut self) -> &mut R {
        &mut self.request
    }

    /// Permits a question about this request to the same stop, under the same ledger line.
    pub fn with_question<Q>(&self, question: Q) -> Permitted<Q> {
        Permitted { request: question, region: self.region }
    }

    /// Takes the request out, so that it can be written to a connection to its region.
    pub fn into_request(self) -> R {
        self.request
    }
}
