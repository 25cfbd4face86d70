//! Issues permits: a request may leave for one stop, now, because its ledger line is written.

use crate::audit::{Count, Direction, Ledger, Movement, Pseudonyms};
use crate::decision::facts::Ingress;
use crate::decision::permit::Permitted;
use crate::decision::policy::Policy;
use crate::decision::policy::class::{ClassId, ClassSet};
use crate::decision::policy::rule::Stays;
use crate::decision::route_of;
use crate::decision::verdict::{Stop, Trail};
use crate::metrics::WorkerMetrics;
use crate::model::jurisdiction::Jurisdiction;
use crate::model::outcome::Code;
use crate::model::region::RegionId;

use super::recheck::Lease;

/// Writes what must be written before a request or a response leaves.
pub struct Registrar<'a> {
    pub ledger: Option<&'a Ledger>,
    pub pseudonyms: &'a Pseudonyms,
    pub metrics: &'a WorkerMetrics,
    /// The request's id, in the ledger of both sides.
    pub request_id: &'a str,
    /// The user whose data is touched.
    pub user: Option<&'a str>,
}

impl Registrar<'_> {
    /// Permits a request to leave for one stop of its itinerary. Its movements are in the ledger when this returns: one line
    /// for each region and judgement, however many app servers of that region are tried.
    ///
    /// # Errors
    /// `NoLongerCleared` where the last judgement does not clear the region, `LedgerUnavailable` where the line could not be
    /// written.
    pub async fn permit<R>(&self, lease: &Lease, stop: Stop, request: R) -> Result<Permitted<R>, Code> {
        let (moment, trail) = (lease.moment(), lease.trail());
        let (policy, region) = (moment.policy(), stop.region());
        if lease.has_ended() || !trail.is_cleared(region) {
            return Err(Code::NoLongerCleared);
        }
        if lease.is_recorded(region) {
            lease.move_to(region);
            return Ok(stop.bind(request));
        }
        self.count_reported(policy, &trail, region);
        let local = policy.local;
        match trail.ingress {
            Ingress::Client if region == local => {}
            Ingress::Client => self.record(policy, &trail, Direction::Request, local, region).await?,
            Ingress::Peer(peer) => self.record(policy, &trail, Direction::Answer, local, peer).await?,
        }
        if region == local {
            self.record_processing(policy, &trail).await?;
        }
        if lease.is_current(&moment) {
            lease.note_recorded(region);
        }
        // Only now: while the ledger is written, the request is nowhere, and a new judgement may send it elsewhere.
        lease.move_to(region);
        Ok(stop.bind(request))
    }

    /// Records a response that its upstream labelled with classes that the request did not have, before its head leaves.
    pub async fn record_label(&self, lease: &Lease, before: ClassSet) -> Result<(), Code> {
        let (moment, trail) = (lease.moment(), lease.trail());
        let policy = moment.policy();
        let is_news = trail.classes.iter().any(|class| !before.contains(class) && !is_free(policy, class));
        if !is_news {
            return Ok(());
        }
        self.count_reported(policy, &trail, policy.local);
        self.record_processing(policy, &trail).await?;
        match trail.ingress {
            Ingress::Client => Ok(()),
            Ingress::Peer(peer) => self.record(policy, &trail, Direction::Answer, policy.local, peer).await,
        }
    }

    /// Counts what report-only mode lets through.
    fn count_reported(&self, policy: &Policy, trail: &Trail, region: RegionId) {
        if trail.is_reported(region) {
            self.report(policy, trail, region);
        }
    }

    /// The same for a client that is sent to a region.
    pub fn count_reported_redirect(&self, policy: &Policy, trail: &Trail, region: RegionId) {
        if trail.is_reported_redirect(region) {
            self.report(policy, trail, region);
        }
    }

    fn report(&self, policy: &Policy, trail: &Trail, region: RegionId) {
        let (from, to) = (policy.region_name(trail.carrier), policy.region_name(region));
        self.metrics.reported(&class_label(policy, trail.classes), from, to);
    }

    /// A line for data that crosses a border and may not be anywhere; a count for data that may.
    async fn record(
        &self,
        policy: &Policy,
        trail: &Trail,
        direction: Direction,
        from: RegionId,
        to: RegionId,
    ) -> Result<(), Code> {
        if policy.jurisdiction_of(from) == policy.jurisdiction_of(to) {
            return Ok(());
        }
        let names = (policy.region_name(from), policy.region_name(to));
        if policy.may_be_anywhere(trail.classes) {
            let class = class_label(policy, trail.classes).into();
            let count = Count { what: "movement", code: "", class, from: names.0.into(), to: names.1.into() };
            self.ledger.iter().for_each(|ledger| ledger.count(count.clone()));
            return Ok(());
        }
        self.write(policy, trail, direction, names, bases(policy, trail, to), trail.is_reported(to)).await
    }

    /// A line for data of another jurisdiction's user that is processed here because a transfer allows it, or because its
    /// rule only reports: it has moved.
    async fn record_processing(&self, policy: &Policy, trail: &Trail) -> Result<(), Code> {
        let (bases, is_reported) = (bases(policy, trail, policy.local), trail.is_reported(policy.local));
        let is_news = !bases.is_empty() || (is_reported && self.ledger.is_some());
        if !is_news || policy.may_be_anywhere(trail.classes) {
            return Ok(());
        }
        let place = policy.jurisdiction_of(policy.local);
        let from = users_of(trail).find(|user| *user != place).unwrap_or_else(|| user_of(trail));
        let names = (policy.jurisdiction_name(from), policy.region_name(policy.local));
        self.write(policy, trail, Direction::Processing, names, bases, is_reported).await
    }

    async fn write(
        &self,
        policy: &Policy,
        trail: &Trail,
        direction: Direction,
        (from, to): (&str, &str),
        bases: Vec<&str>,
        reported: bool,
    ) -> Result<(), Code> {
        // A reload may have brought borders to a process that was started without a ledger.
        let ledger = self.ledger.ok_or(Code::LedgerUnavailable)?;
        let movement = Movement {
            request: self.request_id,
            direction,
            from,
            to,
            route: route_of(trail, policy).map_or("none", |route| &route.name),
            classes: trail.classes.iter().map(|class| &*policy.class(class).name).collect(),
            user: self.user.map(|user| self.pseudonyms.of(user)),
            jurisdiction: policy.jurisdiction_name(user_of(trail)),
            evidence: trail.home.and_then(|home| home.evidence()).map(|evidence| evidence.as_str()),
            bases,
            reported,
            policy: policy.hash,
        };
        ledger.record(&movement).await.map_err(|_| Code::LedgerUnavailable)
    }
}

fn user_of(trail: &Trail) -> Jurisdiction {
    trail.home.map_or(Jurisdiction::Unknown, |home| home.jurisdiction())
}

/// The jurisdictions of every user whom the request was judged for: one, or two.
fn users_of(trail: &Trail) -> impl Iterator<Item = Jurisdiction> {
    let first = trail.homes().next().is_none().then_some(Jurisdiction::Unknown);
    first.into_iter().chain(trail.homes().map(|home| home.jurisdiction()))
}

fn is_free(policy: &Policy, class: ClassId) -> bool {
    policy.class(class).rule.stays == Stays::Anywhere
}

/// The legal bases without which the data could not be processed in `region`.
fn bases<'p>(policy: &'p Policy, trail: &Trail, region: RegionId) -> Vec<&'p str> {
    let (place, today) = (policy.jurisdiction_of(region), trail.today);
    let of_class = |(class, user)| {
        let rule = &policy.class(class).rule;
        let stays_allow = match rule.stays {
            Stays::Home => user == place,
            Stays::In(set) => set.contains(place),
            Stays::Anywhere => true,
        };
        let transfers = rule.transfers_from(user, today).filter(move |transfer| !stays_allow && transfer.to.contains(place));
        transfers.map(|transfer| &*transfer.basis)
    };
    let judged = trail.classes.iter().flat_map(|class| users_of(trail).map(move |user| (class, user)));
    let mut bases = Vec::new();
    for basis in judged.flat_map(of_class) {
        if !bases.contains(&basis) {
            bases.push(basis);
        }
    }
    bases
}

/// The classes of a message as one label: their names joined by `+`, `none` where there is none.
pub fn class_label(policy: &Policy, classes: ClassSet) -> String {
    let names: Vec<_> = classes.iter().map(|class| &*policy.class(class).name).collect();
    if names.is_empty() { "none".to_owned() } else { names.join("+") }
}
