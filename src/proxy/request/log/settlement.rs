//! The settlement of a request: how it ended, in the ledger that has its movements.

use crate::audit::{Outcome, Settlement};
use crate::decision::policy::Policy;
use crate::model::outcome::Code;

use super::super::super::body::BodyFailure;
use super::{Names, RequestLog};

impl RequestLog {
    /// Writes how the request ended, if the ledger has a line about its data. Nothing waits for the line.
    pub(super) fn settle(&self, names: &Names<'_>, policy: &Policy) {
        let lines = self.recorded.lines();
        let Some(ledger) = self.worker.ledger.as_ref().filter(|_| lines > 0) else { return };
        ledger.settle(&Settlement {
            request: &self.id,
            movements: lines,
            outcome: self.outcome(),
            code: self.code.map(Code::as_str),
            status: self.status.map(|status| status.as_u16()),
            served_by: self.served_by.map(|_| names.served_by),
            sent_to: self.sent_to.map(|region| policy.region_name(region)),
            request_bytes: self.request_body.bytes.get(),
            // A page of this proxy itself is no data of the user.
            response_bytes: self.served_by.map_or(0, |_| self.response_body.bytes.get()),
        });
    }

    fn outcome(&self) -> Outcome {
        let failure = self.response_body.failure.get().or(self.request_body.failure.get());
        match (self.status, self.code) {
            (None, _) => Outcome::Abandoned,
            (Some(_), Some(_)) if self.request_body.failure.get() == Some(BodyFailure::SenderFailed) => Outcome::Interrupted,
            (Some(_), Some(_)) => Outcome::Refused,
            (Some(_), None) if failure.is_some() || self.response_body.is_cut() => Outcome::Interrupted,
            (Some(_), None) => Outcome::Answered,
        }
    }
}
