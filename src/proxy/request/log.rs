//! The log of one request: metrics, ledger counts and access log line, written once, when the request ends.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::StatusCode;
use tokio::time::Instant;

use crate::audit::Count;
use crate::decision::facts::Ingress;
use crate::decision::policy::Policy;
use crate::decision::route_of;
use crate::decision::verdict::Trail;
use crate::engine::judge::Judged;
use crate::engine::permit::class_label;
use crate::engine::snapshot::Moment;
use crate::model::outcome::Code;
use crate::model::region::RegionId;

use super::super::body::Progress;
use super::super::intake::{Arrival, Intake, new_id};
use super::super::worker::Worker;
use super::super::{Snapshot, reply};

/// nginx's status for a request whose client closed the connection first.
const CLIENT_CLOSED: u16 = 499;

/// The log of one request.
pub(super) struct RequestLog {
    worker: Rc<Worker>,
    snapshot: Arc<Snapshot>,
    arrival: Arrival,
    pub started: Instant,
    /// For a peer's request, the id in the peer's envelope.
    pub id: String,
    client: Option<IpAddr>,
    /// The pseudonym of the user whose data the request accesses.
    pub user: Option<String>,
    method: http::Method,
    /// `None` if this region only carries the data: the log line then identifies the request by its route alone.
    path: Option<String>,
    /// The last judgement, response labels included; `None` before the first judgement.
    trail: Option<Trail>,
    /// The moment of that judgement. The ids in the trail belong to the policy of this moment.
    moment: Option<Moment>,
    verdict: Option<&'static str>,
    pub code: Option<Code>,
    /// The status of the response; `None` before there is a response.
    pub status: Option<StatusCode>,
    pub served_by: Option<RegionId>,
    /// The region that the body was sent to, whether or not it responded.
    pub sent_to: Option<RegionId>,
    pub request_body: Rc<Progress>,
    pub response_body: Rc<Progress>,
    is_written: bool,
}

impl RequestLog {
    pub fn open(worker: &Rc<Worker>, snapshot: &Arc<Snapshot>, arrival: Arrival, method: &http::Method) -> Self {
        Self {
            worker: Rc::clone(worker),
            snapshot: Arc::clone(snapshot),
            arrival,
            started: Instant::now(),
            id: new_id(),
            // `judged` replaces it by the address from a trusted hop's header, or sets it from the peer's envelope.
            client: (arrival.ingress == Ingress::Client).then_some(arrival.remote),
            user: None,
            method: method.clone(),
            path: None,
            trail: None,
            moment: None,
            verdict: None,
            code: None,
            status: None,
            served_by: None,
            sent_to: None,
            request_body: Rc::default(),
            response_body: Rc::default(),
            is_written: false,
        }
    }

    /// Records the first judgement, or one that replaces it.
    pub fn judged(&mut self, intake: &Intake, judged: &Judged) {
        self.id.clone_from(&intake.id);
        self.client = Some(intake.question.client);
        self.user = judged.user.as_ref().map(|(user, _)| self.worker.shared.pseudonyms.of(user));
        let trail = &judged.decision.trail;
        let is_processed_here = trail.clearance.contains(judged.moment.policy().local);
        self.path = is_processed_here.then(|| without_user(&intake.question.path, judged.user_segment));
        self.verdict = Some(judged.decision.verdict.as_str());
        self.trail = Some(trail.clone());
        self.moment = Some(judged.moment.clone());
    }

    /// Records the judgement of the response.
    pub fn rejudged(&mut self, trail: Trail, moment: Moment) {
        if !trail.clearance.contains(moment.policy().local) {
            self.path = None;
        }
        self.trail = Some(trail);
        self.moment = Some(moment);
    }

    fn policy(&self) -> &Policy {
        self.moment.as_ref().map_or_else(|| self.snapshot.policy(), Moment::policy)
    }

    fn local_name(&self) -> &str {
        self.policy().region_name(self.policy().local)
    }

    /// The names of the request's classes as a label; `none` where no route matched.
    fn class(&self) -> String {
        self.trail.as_ref().map_or_else(|| "none".to_owned(), |trail| class_label(self.policy(), trail.classes))
    }

    /// Counts an event in the ledger, for auditors.
    pub fn count_in_ledger(&self, what: &'static str, code: &'static str, to: &str) {
        if let Some(ledger) = &self.worker.shared.ledger {
            ledger.count(Count { what, code, class: self.class().into(), from: self.local_name().into(), to: to.into() });
        }
    }

    /// Writes the metrics, the ledger counts and the access log line, once.
    pub fn write(&mut self) {
        if std::mem::replace(&mut self.is_written, true) {
            return;
        }
        let policy = self.policy();
        let route = self.trail.as_ref().and_then(|trail| route_of(trail, policy)).map_or("none", |route| &*route.name);
        let home = match self.trail.as_ref().and_then(|trail| trail.home) {
            None => "none",
            Some(home) => home.region().map_or("unowned", |region| policy.region_name(region)),
        };
        let served_by = self.served_by.map_or("none", |region| policy.region_name(region));
        let verdict = self.verdict();
        self.worker.metrics.request(route, home, served_by, verdict, self.started.elapsed());
        if let Some(code) = self.code {
            self.count_failure(code, home);
        }
        self.count_border_bytes();
        if self.snapshot.log_requests {
            self.write_line(route, home, served_by, verdict);
        }
    }

    fn verdict(&self) -> &'static str {
        let is_refused_here =
            |code| self.verdict.is_none() || (self.served_by.is_none() && reply::status_of(code).is_client_error());
        match (self.code, self.verdict) {
            (Some(code), _) if is_refused_here(code) => "refuse",
            (_, Some(verdict)) => verdict,
            (_, None) if self.status.is_some_and(|status| status.is_redirection()) => "redirect",
            (_, None) => "proceed",
        }
    }

    fn count_failure(&self, code: Code, home: &str) {
        self.worker.metrics.failure(code.as_str());
        if reply::status_of(code) == StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS {
            self.worker.metrics.refusal(&self.class(), self.local_name(), home, code.as_str());
            self.count_in_ledger("refusal", code.as_str(), home);
        }
    }

    /// Counts the bytes that this proxy sends to another region. The sending region counts the request, the owner the
    /// response.
    fn count_border_bytes(&self) {
        let local = self.policy().local;
        let count = |to: RegionId, bytes: u64| {
            if to != local && bytes > 0 {
                self.worker.metrics.border_bytes(&self.class(), self.local_name(), self.policy().region_name(to), bytes);
            }
        };
        if let Some(region) = self.sent_to {
            count(region, self.request_body.bytes.get());
        }
        if let Ingress::Peer(peer) = self.arrival.ingress {
            count(peer, self.response_body.bytes.get());
        }
    }

    fn write_line(&self, route: &str, home: &str, served_by: &str, verdict: &str) {
        let evidence = self.trail.as_ref().and_then(|trail| trail.home).and_then(|home| home.evidence());
        let peer = match self.arrival.ingress {
            Ingress::Client => None,
            Ingress::Peer(peer) => Some(self.policy().region_name(peer)),
        };
        let broken = self.response_body.failure.get().or(self.request_body.failure.get()).map(|broken| broken.to_string());
        tracing::info!(
            target: "domicile::request",
            id = self.id,
            client = self.client.map(masked),
            peer,
            user = self.user,
            method = self.method.as_str(),
            path = self.path,
            route,
            class = self.class(),
            home,
            evidence = evidence.map(|evidence| evidence.as_str()),
            served_by,
            verdict,
            code = self.code.map(Code::as_str),
            status = self.status.map_or(CLIENT_CLOSED, |status| status.as_u16()),
            request_bytes = self.request_body.bytes.get(),
            answer_bytes = self.response_body.bytes.get(),
            broken,
            seconds = self.started.elapsed().as_secs_f64(),
            "request"
        );
    }
}

impl Drop for RequestLog {
    /// A request whose client closed the connection before the response is logged as well.
    fn drop(&mut self) {
        self.write();
    }
}

/// The path for the log: `{user}` replaces the segment that names a user.
fn without_user(path: &str, user_segment: Option<usize>) -> String {
    let Some(at) = user_segment else { return path.to_owned() };
    let segments = path.split('/').skip(1).enumerate();
    segments.fold(String::new(), |out, (index, segment)| out + "/" + if index == at { "{user}" } else { segment })
}

/// An address without the part that identifies a household: /24 of IPv4, /48 of IPv6.
fn masked(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            format!("{a}.{b}.{c}.0/24")
        }
        IpAddr::V6(address) => {
            let [a, b, c, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}::/48")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logged_path_names_no_user() {
        assert_eq!(without_user("/users/alice/orders/1", Some(1)), "/users/{user}/orders/1");
        assert_eq!(without_user("/a/b", None), "/a/b");
    }

    #[test]
    fn a_logged_address_names_no_household() {
        assert_eq!(masked("81.2.69.142".parse().unwrap()), "81.2.69.0/24");
        assert_eq!(masked("2001:db8:1:2::3".parse().unwrap()), "2001:db8:1::/48");
    }
}
