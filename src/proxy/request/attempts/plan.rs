//! The order of the attempts: the stops of the itinerary, and the upstreams of the local stop.

use std::sync::Arc;

use tokio::time::Instant;

use crate::decision::verdict::{Itinerary, Stop};
use crate::engine::snapshot::Moment;
use crate::http::pool::Gateway;
use crate::http::sent::Sent;
use crate::model::outcome::Code;
use crate::model::region::RegionId;
use crate::model::service::ServiceId;
use crate::services::{Outstanding, Preference, Selection, Service, Upstream};

use super::super::context::Context;

/// The target of one attempt.
pub(super) enum Target {
    /// The proxy of the local region itself, because the route responds without an app server.
    Proxy(Stop),
    Upstream(Stop, Selected),
    Peer(Stop, Gateway),
}

/// An app server of the local region.
pub(in crate::proxy::request) struct Selected {
    pub service: Arc<Service>,
    pub upstream: Arc<Upstream>,
    /// Taken by the attempt.
    pub outstanding: Option<Outstanding>,
}

impl Target {
    pub const fn stop(&self) -> Stop {
        match self {
            Self::Proxy(stop) | Self::Upstream(stop, ..) | Self::Peer(stop, _) => *stop,
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

    /// The region of the next attempt, as far as it is known.
    pub fn next_region(&self) -> Option<RegionId> {
        self.current().map(Stop::region)
    }

    fn next_stop(&mut self) {
        self.stop += 1;
        self.tried.clear();
        self.spent = 0;
    }

    /// Returns the target of the next attempt, or the refusal if there is none. `admit` says whether the actions of the route let
    /// this region serve the request.
    pub async fn next(
        &mut self,
        context: &Context,
        admit: impl Fn() -> Result<(), Code>,
        answers_preflight: bool,
        (service, preference): (Option<ServiceId>, Preference),
        deadline: Option<Instant>,
    ) -> Result<Target, Code> {
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
            if let Some(actions) = &context.actions {
                admit()?;
                if actions.answer.is_some() || answers_preflight {
                    return Ok(Target::Proxy(stop));
                }
            }
            if !std::mem::replace(&mut self.has_deposited, true) {
                context.worker.load.retries.deposit();
            }
            // A reload may have removed the service from the region while the request was judged.
            let Some(service) = service.and_then(|service| context.snapshot.services.get(service)) else {
                self.next_stop();
                continue;
            };
            match context.worker.load.select_or_queue(service, &self.tried, preference, deadline.map(Instant::into_std)).await {
                Selection::Upstream(upstream, outstanding) => {
                    let service = Arc::clone(service);
                    return Ok(Target::Upstream(stop, Selected { service, upstream, outstanding: Some(outstanding) }));
                }
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
            Target::Peer(..) | Target::Proxy(_) => self.next_stop(),
            Target::Upstream(_, selected) => {
                self.tried.push(Arc::clone(&selected.upstream));
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

    /// Whether an app server of the service is up and was not tried at the current stop.
    pub fn is_left(&self, service: &Service) -> bool {
        let was_tried = |upstream: &Arc<Upstream>| self.tried.iter().any(|tried| Arc::ptr_eq(tried, upstream));
        service.all().iter().any(|upstream| upstream.takes_requests() && !was_tried(upstream))
    }

    /// Whether another target is left after `target`.
    pub fn has_another(&self, target: &Target) -> bool {
        let has_another_upstream = || match target {
            Target::Peer(..) | Target::Proxy(_) => false,
            Target::Upstream(_, Selected { service, upstream, .. }) => {
                let is_left = |other: &&Arc<Upstream>| {
                    other.takes_requests()
                        && !Arc::ptr_eq(other, upstream)
                        && !self.tried.iter().any(|tried| Arc::ptr_eq(tried, other))
                };
                self.spent + self.stop + 1 < self.limit && service.all().iter().any(|other| is_left(&other))
            }
        };
        self.has_another_stop() || has_another_upstream()
    }
}
