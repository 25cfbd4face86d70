//! Issues permits: a request may be sent to one stop once its ledger line is written.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};

use crate::audit::{Count, Direction, Grounds, Movement, Pseudonyms, WorkerLedger};
use crate::decision::facts::Ingress;
use crate::decision::lines::{Applied, Clause, rules, transfers, users_of};
use crate::decision::permit::Permitted;
use crate::decision::policy::Policy;
use crate::decision::policy::class::{ClassId, ClassSet};
use crate::decision::policy::rule::{Stays, Transfer};
use crate::decision::route_of;
use crate::decision::verdict::{Stop, Trail};
use crate::metrics::WorkerMetrics;
use crate::model::jurisdiction::Jurisdiction;
use crate::model::outcome::Code;
use crate::model::region::RegionId;

use super::judge::Judged;
use super::recheck::Lease;

/// Writes the ledger lines that must precede a request or a response.
pub struct Registrar<'a> {
    pub ledger: Option<&'a WorkerLedger>,
    pub pseudonyms: &'a Pseudonyms,
    pub metrics: &'a WorkerMetrics,
    /// The request's id, which is the same in the ledgers of both regions.
    pub request_id: &'a str,
    pub reported: &'a Reported,
    pub recorded: &'a Recorded,
    pub kind: Kind,
}

/// A kind of request that the ledger tells apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Plain,
    Upgrade,
    Preflight,
}

/// The ledger lines of one request, which a settlement closes.
#[derive(Default)]
pub struct Recorded {
    lines: Cell<u32>,
    /// The region of the last line about the request on its way.
    last: Cell<Option<RegionId>>,
}

impl Recorded {
    pub const fn lines(&self) -> u32 {
        self.lines.get()
    }
}

/// The regions and classes of one request that were counted because only report-only mode allows them.
#[derive(Default)]
pub struct Reported(RefCell<Vec<(ClassSet, RegionId)>>);

impl Reported {
    /// Counts that only report-only mode allows these classes in `region`, once for each region and set of classes.
    pub fn count(&self, metrics: &WorkerMetrics, policy: &Policy, trail: &Trail, region: RegionId) {
        let exit = (trail.classes, region);
        if self.0.borrow().contains(&exit) {
            return;
        }
        self.0.borrow_mut().push(exit);
        let (from, to) = (policy.region_name(trail.carrier), policy.region_name(region));
        metrics.reported(&class_label(policy, trail.classes), from, to);
    }

    /// Counts a request that `enforce` would have refused, if it was not counted at an exit. The request may have
    /// ended before its first attempt.
    pub fn count_at_the_end(&self, metrics: &WorkerMetrics, judged: &Judged, is_redirect: bool, served_by: Option<RegionId>) {
        let (policy, trail) = (judged.moment.policy(), &judged.decision.trail);
        if served_by.is_some_and(|region| trail.is_only_reported(region)) || trail.would_be_refused(is_redirect) {
            let home = trail.home.and_then(|home| home.region());
            let was_counted = served_by.is_none() && !self.0.borrow().is_empty();
            if !was_counted {
                self.count(metrics, policy, trail, served_by.or(home).unwrap_or(policy.local));
            }
        }
    }
}

impl Registrar<'_> {
    /// Permits sending a request to one stop of its itinerary. Its movements are in the ledger when this returns: one line for
    /// each region and judgement, regardless of how many upstreams of that region are tried.
    ///
    /// # Errors
    /// `NoLongerCleared` if the last judgement does not clear the region, `LedgerUnavailable` if the line could not be written.
    pub async fn permit<R>(&self, lease: &Lease, stop: Stop, request: R) -> Result<Permitted<R>, Code> {
        let judged = lease.judged();
        let (policy, trail, region) = (judged.moment.policy(), &judged.decision.trail, stop.region());
        if lease.has_ended() || !trail.is_cleared(region) {
            return Err(Code::NoLongerCleared);
        }
        if !lease.is_recorded(region) {
            self.count_reported(policy, trail, region);
            self.record_attempt(&judged, region).await?;
            if lease.is_current(&judged.moment) {
                lease.note_recorded(region);
            }
        }
        // Only after the ledger is written: until then no region processes the request, so a new judgement does not end it.
        lease.move_to(region);
        Ok(stop.bind_request(request, lease.validity()))
    }

    async fn record_attempt(&self, judged: &Judged, region: RegionId) -> Result<(), Code> {
        let local = judged.moment.policy().local;
        match judged.decision.trail.ingress {
            Ingress::Client if region == local => {}
            Ingress::Client => self.record(judged, self.way_to(region), local, region).await?,
            Ingress::Peer(peer) => self.record(judged, Direction::Answer, local, peer).await?,
        }
        if region == local { self.record_processing(judged).await } else { Ok(()) }
    }

    /// How the request goes to a region: the first time, again under a new judgement, or after another region.
    const fn way_to(&self, region: RegionId) -> Direction {
        match (self.kind, self.recorded.last.get()) {
            (Kind::Preflight, _) => Direction::Preflight,
            (Kind::Upgrade, _) => Direction::Upgrade,
            (Kind::Plain, None) => Direction::Request,
            (Kind::Plain, Some(last)) if last.index() == region.index() => Direction::Retry,
            (Kind::Plain, Some(_)) => Direction::Failover,
        }
    }

    /// Records a response that its upstream labelled with more data classes than the request has, before its head is sent.
    pub async fn record_label(&self, lease: &Lease, before: ClassSet) -> Result<(), Code> {
        let judged = lease.judged();
        let (policy, trail) = (judged.moment.policy(), &judged.decision.trail);
        self.count_reported(policy, trail, policy.local);
        let needs_line = trail.classes.iter().any(|class| !before.contains(class) && !may_be_anywhere(policy, class));
        if !needs_line {
            return Ok(());
        }
        self.record_processing(&judged).await?;
        match trail.ingress {
            Ingress::Client => Ok(()),
            Ingress::Peer(peer) => self.record(&judged, Direction::Answer, policy.local, peer).await,
        }
    }

    /// Counts a request that only report-only mode allows.
    fn count_reported(&self, policy: &Policy, trail: &Trail, region: RegionId) {
        if trail.is_only_reported(region) {
            self.reported.count(self.metrics, policy, trail, region);
        }
    }

    /// Records data that crosses a border: with a line, or with a count if the data may be anywhere.
    async fn record(&self, judged: &Judged, direction: Direction, from: RegionId, to: RegionId) -> Result<(), Code> {
        let (policy, trail) = (judged.moment.policy(), &judged.decision.trail);
        if policy.jurisdiction_of(from) == policy.jurisdiction_of(to) {
            return Ok(());
        }
        let names = (policy.region_name(from), policy.region_name(to));
        if policy.may_be_anywhere(trail.classes) {
            let class = class_label(policy, trail.classes).into_owned().into();
            let count = Count { what: "movement", code: "", class, from: names.0.into(), to: names.1.into() };
            self.ledger.iter().for_each(|ledger| ledger.count(count.clone()));
            return Ok(());
        }
        // A response is processed where it comes from, and only carried to where it goes.
        let is_answer = direction == Direction::Answer;
        let processing = if is_answer { from } else { to };
        let reported = trail.is_only_reported(processing);
        let rules = rules(policy, trail, to, is_answer);
        let is_transferred = rules.iter().any(|rule| rule.clause == Clause::Transfers);
        let grounds = if is_transferred { transfers(policy, trail, to) } else { Vec::new() };
        self.write(judged, direction, names, (grounds, rules), reported).await?;
        if !is_answer {
            self.recorded.last.set(Some(to));
        }
        Ok(())
    }

    /// Records data of another jurisdiction's user that a transfer or report-only mode allows to be processed here, because
    /// such data has crossed a border.
    async fn record_processing(&self, judged: &Judged) -> Result<(), Code> {
        let (policy, trail) = (judged.moment.policy(), &judged.decision.trail);
        let (transfers, is_reported) = (transfers(policy, trail, policy.local), trail.is_only_reported(policy.local));
        let needs_line = !transfers.is_empty() || (is_reported && self.ledger.is_some());
        if !needs_line || policy.may_be_anywhere(trail.classes) {
            return Ok(());
        }
        let place = policy.jurisdiction_of(policy.local);
        let from = users_of(trail).find(|user| *user != place).unwrap_or_else(|| user_of(trail));
        let names = (policy.jurisdiction_name(from), policy.region_name(policy.local));
        let rules = rules(policy, trail, policy.local, false);
        self.write(judged, Direction::Processing, names, (transfers, rules), is_reported).await
    }

    async fn write(
        &self,
        judged: &Judged,
        direction: Direction,
        (from, to): (&str, &str),
        (transfers, rules): (Vec<&Transfer>, Vec<Applied>),
        reported: bool,
    ) -> Result<(), Code> {
        let (policy, trail) = (judged.moment.policy(), &judged.decision.trail);
        // A process without a ledger gets here if a reload added a second jurisdiction.
        let ledger = self.ledger.ok_or(Code::LedgerUnavailable)?;
        let movement = Movement {
            request: self.request_id,
            direction,
            from,
            to,
            route: route_of(trail, policy).map_or("none", |route| &route.name),
            classes: trail.classes.iter().map(|class| &*policy.class(class).name).collect(),
            user: judged.user.as_ref().map(|(user, _)| self.pseudonyms.of(user)),
            jurisdiction: policy.jurisdiction_name(user_of(trail)),
            evidence: trail.home.and_then(|home| home.evidence()).map(|evidence| evidence.as_str()),
            grounds: transfers
                .iter()
                .map(|transfer| Grounds { basis: &transfer.basis, record: transfer.record.as_deref() })
                .collect(),
            reported,
            rules: rules.iter().map(|rule| format!("{}.{}", policy.class(rule.class).name, rule.clause.as_str())).collect(),
            policy: policy.hash,
        };
        // Counted first, because the line may be written although the client has gone.
        let before = self.recorded.lines();
        self.recorded.lines.set(before.saturating_add(1));
        let written = ledger.record(&movement).await;
        written.map_err(|_| {
            self.recorded.lines.set(before);
            Code::LedgerUnavailable
        })
    }
}

fn user_of(trail: &Trail) -> Jurisdiction {
    trail.home.map_or(Jurisdiction::Unknown, |home| home.jurisdiction())
}

fn may_be_anywhere(policy: &Policy, class: ClassId) -> bool {
    policy.class(class).rule.stays == Stays::Anywhere
}

/// The classes of a message as one label: their names joined by `+`, `none` if there are none.
pub fn class_label(policy: &Policy, classes: ClassSet) -> Cow<'_, str> {
    let mut names = classes.iter().map(|class| &*policy.class(class).name);
    match (names.next(), names.next()) {
        (None, _) => Cow::Borrowed("none"),
        (Some(name), None) => Cow::Borrowed(name),
        (Some(first), Some(second)) => [first, second].into_iter().chain(names).collect::<Vec<_>>().join("+").into(),
    }
}
