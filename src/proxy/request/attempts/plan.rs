//! The order of the attempts: the stops of the itinerary, and the upstreams of the local stop.

use std::sync::Arc;

use tokio::time::Instant;

use crate::decision::verdict::{Itinerary, Stop};
use crate::engine::snapshot::Moment;
use crate::http::pool::Gateway;
use crate::http::sent::Sent;
use crate::model::outcome::Code;
use crate::model::region::RegionId;
use crate::services::{Outstanding, Selection, Upstream};

use super::super::context::Context;

/// The target of one attempt.
pub(super) enum Target {
    Upstream(Stop, Arc<Upstream>, Option<Outstanding>),
    Peer(Stop, Gateway),
}

impl Target {
    pub const fn stop(&self) -> Stop {
        match self {
            Self::Upstream(stop, ..) | Self::Peer(stop, _) => *stop,
        }
    }
}

/// The attempts that are left, and those that were made.
pub(super) struct Attempts {
    itinerary: Itinerary,
    /// The moment under which the itinerary was made.
    pub moment: Moment,
    /// The index of the current stop.
    stop: usize,
    /// The upstreams that were tried at the current stop.
    tried: Vec<Arc<Upstream>>,
    /// The number of attempts at the current stop that sent data.
    spent: usize,
    /// The regions that were tried under earlier itineraries.
    tried_before: Vec<RegionId>,
    /// The maximum number of attempts, including the first.
    limit: usize,
    /// Whether the request has given its share to the retry budget.
    has_deposited: bool,
}

impl Attempts {
    pub const fn along(itinerary: Itinerary, moment: Moment, limit: usize) -> Self {
        Self { itinerary, moment, stop: 0, tried: Vec::new(), spent: 0, tried_before: Vec::new(), limit, has_deposited: false }
    }

    /// Replaces the itinerary after the request was judged again. The stops before the current one are not tried again.
    pub fn follow(&mut self, itinerary: Itinerary, moment: Moment) {
        let tried = self.itinerary.regions().take(self.stop);
        self.tried_before.extend(tried);
        self.itinerary = itinerary;
        self.moment = moment;
        self.stop = 0;
    }

    fn current(&self) -> Option<Stop> {
        self.itinerary.stops().iter().take(self.limit).nth(self.stop).copied()
    }

    fn next_stop(&mut self) {
        self.stop += 1;
        self.tried.clear();
        self.spent = 0;
    }

    /// Returns the target of the next attempt, or the refusal if there is none.
    pub async fn next(&mut self, context: &Context, deadline: Option<Instant>) -> Result<Target, Code> {
        let mut refusal = Code::UpstreamUnreachable;
        while let Some(stop) = self.current() {
            let region = stop.region();
            if self.tried_before.contains(&region) {
                self.next_stop();
                continue;
            }
            if region != context.snapshot.policy().local {
                match context.snapshot.gateways.get(&region) {
                    Some(gateway) => return Ok(Target::Peer(stop, gateway.clone())),
                    None => self.next_stop(),
                }
                continue;
            }
            if !std::mem::replace(&mut self.has_deposited, true) {
                context.worker.load.retries.deposit();
            }
            let upstreams = &context.snapshot.upstreams;
            match context.worker.load.select_or_queue(upstreams, &self.tried, deadline.map(Instant::into_std)).await {
                Selection::Upstream(upstream, outstanding) => return Ok(Target::Upstream(stop, upstream, Some(outstanding))),
                Selection::None => self.next_stop(),
                Selection::Full => {
                    refusal = Code::Overloaded;
                    self.next_stop();
                }
            }
        }
        Err(refusal)
    }

    /// Records a failed attempt, so that the next attempt goes to another upstream or to the next stop.
    pub fn note_failure(&mut self, target: &Target, sent: Sent) {
        match target {
            // Says nothing about the target, because the server may close an idle connection at any time.
            _ if sent == Sent::Stale => {}
            Target::Peer(..) => self.next_stop(),
            Target::Upstream(_, upstream, _) => {
                self.tried.push(Arc::clone(upstream));
                self.spent += usize::from(sent == Sent::Partly);
                // An attempt that sent nothing does not count, because it put no load on an upstream.
                if sent == Sent::Partly && self.spent + self.stop >= self.limit {
                    self.next_stop();
                }
            }
        }
    }

    /// Whether another stop is left after the current one.
    pub fn has_another_stop(&self) -> bool {
        self.stop + 1 < self.itinerary.stops().len().min(self.limit)
    }

    /// Whether another target is left after `target`.
    pub fn has_another(&self, target: &Target, context: &Context) -> bool {
        let has_another_upstream = || match target {
            Target::Peer(..) => false,
            Target::Upstream(_, upstream, _) => {
                let is_left = |other: &&Arc<Upstream>| {
                    other.is_up() && !Arc::ptr_eq(other, upstream) && !self.tried.iter().any(|tried| Arc::ptr_eq(tried, other))
                };
                self.spent + self.stop + 1 < self.limit && context.snapshot.upstreams.all().iter().any(|other| is_left(&other))
            }
        };
        self.has_another_stop() || has_another_upstream()
    }
}
