//! A request bound to one stop of its itinerary.

use crate::model::region::RegionId;

use super::verdict::Stop;

/// The only thing that the connection pools accept.
///
/// INVARIANT: it cannot be cloned, and whoever makes one has written the ledger line that the crossing needs:
/// `engine::permit` binds requests to stops, and `tests/architecture.rs` keeps it alone in that.
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
    /// A request of our own to a region, without anything of a user in it: a probe, or a health check.
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

    /// The request, to write the fields that its stop needs.
    pub const fn request_mut(&mut self) -> &mut R {
        &mut self.request
    }

    /// Permits a question about this very request beside it: the same stop, and the same ledger line.
    pub fn beside<Q>(&self, question: Q) -> Permitted<Q> {
        Permitted { request: question, region: self.region }
    }

    /// Takes the request out, to be written to a connection of that region.
    pub fn into_request(self) -> R {
        self.request
    }
}
