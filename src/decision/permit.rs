//! A request bound to one stop of its itinerary.

use std::cell::Cell;
use std::rc::Rc;

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
    /// `None` for a request without user data, on which no judgement is made.
    validity: Option<Validity>,
}

/// Whether the permits of one request are valid. They end when the request is judged again, under a new policy, table or day, and
/// is no longer cleared.
#[derive(Clone, Default, Debug)]
pub struct Validity(Rc<Cell<bool>>);

/// A permit that is no longer valid, or that was issued for another region.
#[derive(Debug, PartialEq, Eq)]
pub struct NotPermitted;

impl Validity {
    pub fn has_ended(&self) -> bool {
        self.0.get()
    }

    /// Ends the validity of all permits of the request, for good.
    pub fn end(&self) {
        self.0.set(true);
    }
}

impl Stop {
    /// Binds a request to this stop.
    pub const fn bind_request<R>(self, request: R, validity: Validity) -> Permitted<R> {
        Permitted { request, region: self.region(), validity: Some(validity) }
    }
}

impl<R> Permitted<R> {
    /// Permits a request of this process that contains no user data, such as a probe or a health check.
    pub const fn without_user_data(region: RegionId, request: R) -> Self {
        Self { request, region, validity: None }
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

    /// Permits a question about this request, or a copy of it, to the same stop under the same ledger line.
    pub fn with_question<Q>(&self, question: Q) -> Permitted<Q> {
        Permitted { request: question, region: self.region, validity: self.validity.clone() }
    }

    /// Takes the request out to write it to a connection that leads to `region`.
    ///
    /// # Errors
    /// [`NotPermitted`] if the permit is for another region, or is no longer valid. The request is lost, so that it cannot
    /// be sent without a new permit.
    pub fn redeem(self, region: RegionId) -> Result<R, NotPermitted> {
        let is_valid = self.validity.is_none_or(|validity| !validity.has_ended());
        if is_valid && self.region == region { Ok(self.request) } else { Err(NotPermitted) }
    }

    /// Gives the unused permit back, so that the request can be permitted again.
    pub fn give_back(self) -> R {
        self.request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permit_is_redeemed_only_at_its_region_and_while_it_is_valid() {
        let [one, other] = [0, 1].map(|index| RegionId::new(index).unwrap());
        let permit = |validity: &Validity| Permitted { request: "data", region: one, validity: Some(validity.clone()) };
        let validity = Validity::default();
        assert_eq!(permit(&validity).redeem(one), Ok("data"));
        assert_eq!(permit(&validity).redeem(other), Err(NotPermitted));
        assert_eq!(permit(&validity).with_question("may I?").redeem(other), Err(NotPermitted));
        let before = permit(&validity);
        validity.end();
        assert_eq!(before.with_question("may I?").redeem(one), Err(NotPermitted));
        assert_eq!(before.redeem(one), Err(NotPermitted));
        assert_eq!(Permitted::without_user_data(one, "probe").redeem(one), Ok("probe"));
        assert_eq!(Permitted::without_user_data(one, "probe").redeem(other), Err(NotPermitted));
    }
}
