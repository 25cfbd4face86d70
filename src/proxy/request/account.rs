//! What is told of a request when it is over: metrics, the access log, the counts of the ledger.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderValue, Response, StatusCode, Version};
use hyper::body::Body as _;
use tokio::time::Instant;

use crate::decision::facts::{Ingress, Lookup};
use crate::decision::residency::Stays;
use crate::decision::verdict::Decision;
use crate::decision::{policy::ClassId, route_of};
use crate::http::body::Body;
use crate::metrics::WorkerMetrics;
use crate::model::outcome::Code;
use crate::model::region::RegionId;
use crate::model::user::Record;

use super::super::body::Progress;
use super::super::gather::Findings;
use super::super::intake::{Arrival, Intake, new_id};
use super::super::{Snapshot, Worker, reply};
use super::Judged;
use super::pacing::Call;

/// One request's story, told once at its end.
pub(super) struct Account {
    pub worker: Rc<Worker>,
    pub snapshot: Arc<Snapshot>,
    pub arrival: Arrival,
    pub started: Instant,
    pub decision: Option<Decision>,
    /// What the directory said.
    pub record: Option<Record>,
    pub code: Option<Code>,
    pub served_by: Option<RegionId>,
    pub request_body: Rc<Progress>,
    pub answer_body: Rc<Progress>,
    status: StatusCode,
    id: String,
    client: Option<IpAddr>,
    user: Option<String>,
    method: http::Method,
    /// `None` where this region may not carry the data: then the route's name has to do.
    path: Option<String>,
    has_body: bool,
    is_http1: bool,
    /// A client's gRPC call, which is refused in its own terms.
    call: Option<Call>,
    told: bool,
}

impl Account {
    pub fn open(worker: Rc<Worker>, snapshot: Arc<Snapshot>, arrival: Arrival, parts: &Parts, has_body: bool) -> Self {
        Self {
            worker,
            snapshot,
            arrival,
            started: Instant::now(),
            decision: None,
            record: None,
            code: None,
            served_by: None,
            request_body: Rc::default(),
            answer_body: Rc::default(),
            status: StatusCode::OK,
            // Replaced by the peer's, for a peer's request.
            id: new_id(),
            // Until its own word for it, or a trusted hop's, has been read.
            client: (arrival.ingress == Ingress::Client).then_some(arrival.remote),
            user: None,
            method: parts.method.clone(),
            path: None,
            has_body,
            is_http1: parts.version < Version::HTTP_2,
            call: Call::of(parts).filter(|_| arrival.ingress == Ingress::Client),
            told: false,
        }
    }

    /// Notes what judgement found.
    pub fn note(&mut self, intake: &Intake, judged: &Judged) {
        let trail = &judged.decision.trail;
        self.id.clone_from(&intake.id);
        self.client = Some(intake.client);
        self.user = judged.user.as_ref().map(|(user, _)| self.worker.shared.pseudonyms.of(user));
        let local = self.snapshot.policy.local;
        let may_see = trail.carriers.contains(local) || trail.clearance.contains(local);
        self.path = may_see.then(|| loggable(&intake.path, judged.named_user));
        self.code = judged.decision.refusal();
        self.decision = Some(judged.decision.clone());
        self.record = judged.record;
    }

    /// Whether the data that was touched is this caller's own.
    pub fn is_of(&self, caller: &str) -> bool {
        self.user.as_ref().is_some_and(|user| *user == self.worker.shared.pseudonyms.of(caller))
    }

    pub fn user(&self) -> Option<String> {
        self.user.clone()
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Answers with a problem, and tells.
    pub fn refuse(mut self, code: Code) -> Response<Body> {
        self.code = Some(code);
        // Of a call too, whose own status stands elsewhere: it says what has become of it.
        self.status = reply::status_of(code);
        let mut response = match &self.call {
            Some(call) => reply::call_problem(code, &self.id, &call.kind),
            None => reply::problem(code, &self.id),
        };
        if let Ingress::Peer(_) = self.arrival.ingress {
            response.headers_mut().insert("domicile-code", HeaderValue::from_static(code.as_str()));
        }
        // What a client sends to the wrong region is not read, and after a malformed head nothing is: the connection ends.
        if self.is_http1 && (self.has_body || self.decision.is_none()) {
            response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
        }
        self.answer_body.bytes.set(response.body().size_hint().exact().unwrap_or(0));
        self.tell();
        response
    }

    /// Sends the client elsewhere, and tells.
    pub fn redirect(mut self, region: RegionId, mut response: Response<Body>) -> Response<Body> {
        self.status = response.status();
        let to = self.snapshot.policy.region_name(region).to_owned();
        self.count_in_ledger("redirect", "residency.carrier_not_cleared", &to);
        if self.has_body && self.is_http1 {
            response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
        }
        self.tell();
        response
    }

    /// Answers without asking anyone, and tells.
    pub fn finish(mut self, mut response: Response<Body>) -> Response<Body> {
        self.status = response.status();
        if self.has_body && self.is_http1 {
            response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
        }
        self.tell();
        response
    }

    /// Notes the answer's status; what remains is told when its body has ended.
    pub fn answered(&mut self, status: StatusCode) {
        self.status = status;
    }

    /// Whether a client waits for an answer in the terms of gRPC.
    pub const fn is_call(&self) -> bool {
        self.call.is_some()
    }

    /// When a client that waits for one has no more use for it.
    pub fn deadline_of_call(&self) -> Option<Instant> {
        self.call.as_ref()?.deadline
    }

    pub fn local_name(&self) -> &str {
        self.snapshot.policy.region_name(self.snapshot.policy.local)
    }

    /// The name of the route's class; `none` where no route matched.
    pub fn class(&self) -> &str {
        self.class_id().map_or("none", |class| &self.snapshot.policy.class(class).name)
    }

    fn class_id(&self) -> Option<ClassId> {
        route_of(&self.decision.as_ref()?.trail, &self.snapshot.policy).map(|route| route.class)
    }

    /// Whether every class of the request may be anywhere.
    pub fn may_be_anywhere(&self) -> bool {
        let policy = &self.snapshot.policy;
        let classes = self.decision.as_ref().map(|decision| decision.trail.classes).unwrap_or_default();
        classes.iter().all(|class| policy.class(class).rule.stays == Stays::Anywhere)
    }

    /// Metrics, the ledger's counts, the access log: once, whatever happens.
    pub fn tell(&mut self) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        let took = self.started.elapsed();
        let policy = &self.snapshot.policy;
        let trail = self.decision.as_ref().map(|decision| &decision.trail);
        let route = trail.and_then(|trail| route_of(trail, policy)).map_or("none", |route| &*route.name);
        let home = trail.and_then(|trail| trail.home);
        let home_name = match home {
            None => "none",
            Some(home) => home.region().map_or("unowned", |region| policy.region_name(region)),
        };
        let served_by = self.served_by.map_or("none", |region| policy.region_name(region));
        let verdict = match (&self.decision, self.code) {
            (None, Some(_)) => "refuse",
            (None, None) if self.status.is_redirection() => "redirect",
            (None, None) => "proceed",
            (Some(decision), None) => decision.verdict.as_str(),
            (Some(_), Some(code)) if self.served_by.is_none() && reply::status_of(code).is_client_error() => "refuse",
            (Some(decision), Some(_)) => decision.verdict.as_str(),
        };
        self.worker.metrics.request(route, home_name, served_by, verdict, took);
        if let Some(code) = self.code {
            self.tell_failure(code, home_name);
        }
        if trail.is_some_and(|trail| trail.reported) {
            self.worker.metrics.reported(self.class(), self.local_name(), home_name);
        }
        self.tell_border_bytes();
        if self.snapshot.log_requests {
            self.log(route, home_name, served_by, verdict);
        }
    }

    fn tell_failure(&self, code: Code, home: &str) {
        self.worker.metrics.failure(code.as_str());
        if reply::status_of(code) == StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS {
            self.worker.metrics.refusal(self.class(), self.local_name(), home, code.as_str());
            self.count_in_ledger("refusal", code.as_str(), home);
        }
    }

    /// Each proxy counts what it sends to another: the sender the request, the owner the answer.
    fn tell_border_bytes(&self) {
        let local = self.snapshot.policy.local;
        let tell = |to: RegionId, bytes: u64| {
            if to != local && bytes > 0 {
                self.worker.metrics.border_bytes(self.class(), self.local_name(), self.snapshot.policy.region_name(to), bytes);
            }
        };
        if let Some(region) = self.served_by {
            tell(region, self.request_body.bytes.get());
        }
        if let Ingress::Peer(peer) = self.arrival.ingress {
            tell(peer, self.answer_body.bytes.get());
        }
    }

    fn log(&self, route: &str, home: &str, served_by: &str, verdict: &str) {
        let evidence = self.decision.as_ref().and_then(|decision| decision.trail.home).and_then(|home| home.evidence());
        let peer = match self.arrival.ingress {
            Ingress::Client => None,
            Ingress::Peer(peer) => Some(self.snapshot.policy.region_name(peer)),
        };
        let broken = self.answer_body.broken.get().or(self.request_body.broken.get()).map(|broken| broken.to_string());
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
            status = self.status.as_u16(),
            request_bytes = self.request_body.bytes.get(),
            answer_bytes = self.answer_body.bytes.get(),
            broken,
            seconds = self.started.elapsed().as_secs_f64(),
            "request"
        );
    }
}

impl Drop for Account {
    /// A client that goes away before its answer is told of as well.
    fn drop(&mut self) {
        if !self.told {
            // nginx's status for a request whose client closed first.
            self.status = StatusCode::from_u16(499).expect("499 is in the range of statuses");
            self.tell();
        }
    }
}

/// A path as the log may show it: the segment that names a user says only that.
fn loggable(path: &str, user_segment: Option<usize>) -> String {
    let Some(at) = user_segment else { return path.to_owned() };
    let segments = path.split('/').skip(1).enumerate();
    segments.fold(String::new(), |out, (index, segment)| out + "/" + if index == at { "{user}" } else { segment })
}

/// An address without the part that names a household: /24 of IPv4, /48 of IPv6.
pub(super) fn masked(address: IpAddr) -> String {
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

/// Counts what the directory and the GeoIP database said.
pub(super) fn count_lookups(metrics: &WorkerMetrics, findings: &Findings) {
    let remembered = findings.is_remembered.then_some("remembered");
    if let Some(result) = remembered.or_else(|| result_of(&findings.directory)) {
        metrics.directory_lookup(result);
    }
    if let Some(result) = result_of(&findings.place) {
        metrics.geoip_lookup(result);
    }
}

const fn result_of<T>(lookup: &Lookup<T>) -> Option<&'static str> {
    match lookup {
        Lookup::NotAsked => None,
        Lookup::NoKey => Some("no_key"),
        Lookup::Absent => Some("absent"),
        Lookup::Unavailable => Some("unavailable"),
        Lookup::Found(_) => Some("found"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logged_path_names_no_user() {
        assert_eq!(loggable("/users/alice/orders/1", Some(1)), "/users/{user}/orders/1");
        assert_eq!(loggable("/a/b", None), "/a/b");
    }

    #[test]
    fn a_logged_address_names_no_household() {
        assert_eq!(masked("81.2.69.142".parse().unwrap()), "81.2.69.0/24");
        assert_eq!(masked("2001:db8:1:2::3".parse().unwrap()), "2001:db8:1::/48");
    }
}
