//! The log of one request: metrics, ledger counts and access log line, written once, when the request ends.

mod line;
mod settlement;
mod span;

use std::borrow::Cow;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderValue, REFERER, USER_AGENT};
use http::request::Parts;
use http::{StatusCode, Version};
use tokio::time::Instant;

use crate::audit::Count;
use crate::decision::facts::Ingress;
use crate::decision::policy::Policy;
use crate::decision::route_of;
use crate::engine::judge::Judged;
use crate::engine::permit::{Recorded, Reported, class_label};
use crate::engine::question::Question;
use crate::engine::recheck::Lease;
use crate::http::names::TRACEPARENT;
use crate::metrics::{RequestLabels, RequestMeasures};
use crate::model::outcome::Code;
use crate::model::region::RegionId;
use crate::services::{Service, Upstream};
use crate::traces::Trace;

use super::super::body::Progress;
use super::super::headers::Handling;
use super::super::ingress::ConnectionContext;
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
    pub id: Rc<str>,
    client: Option<IpAddr>,
    /// `None` for a request that could not be read.
    pub method: Option<http::Method>,
    version: Option<Version>,
    tls_version: Option<&'static str>,
    user_agent: Option<HeaderValue>,
    referer: Option<HeaderValue>,
    /// The last attempt.
    pub attempt: Attempt,
    /// The trace of the request, if traces are configured.
    pub trace: Option<Trace>,
    /// Its path is logged only if this region may process the data; otherwise the route alone identifies the request.
    question: Option<Rc<Question>>,
    /// The last judgement of the request as a whole, whose verdict was followed; `None` before the first one.
    judged: Option<Rc<Judged>>,
    /// The lease of a request that proceeds. It has the last judgement, response labels included.
    lease: Option<Rc<Lease>>,
    pub reported: Reported,
    pub recorded: Recorded,
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

/// The last attempt at a request.
#[derive(Default)]
pub(super) struct Attempt {
    /// The app server; `None` for an attempt at a peer.
    pub upstream: Option<(Arc<Service>, Arc<Upstream>)>,
    /// Its start, if the request is traced.
    pub started: Option<Instant>,
    /// From its start to the head of the response; `None` without a response.
    pub took: Option<Duration>,
    /// Its number, from 1 on; 0 before the first.
    pub number: u64,
}

impl RequestLog {
    pub fn open(worker: &Rc<Worker>, snapshot: &Arc<Snapshot>, connection: &ConnectionContext, request: Option<&Parts>) -> Self {
        let arrival = connection.arrival;
        let field = |name| request.and_then(|parts| parts.headers.get(name).cloned());
        Self {
            worker: Rc::clone(worker),
            snapshot: Arc::clone(snapshot),
            arrival,
            version: request.map(|parts| parts.version),
            tls_version: connection.tls_version,
            user_agent: field(USER_AGENT),
            referer: field(REFERER),
            attempt: Attempt::default(),
            trace: worker.shared.traces.as_ref().map(|traces| {
                let is_trusted = arrival.ingress != Ingress::Client || snapshot.intake.trusts(arrival.remote);
                traces.begin(text_of(field(TRACEPARENT).as_ref()), is_trusted)
            }),
            started: Instant::now(),
            id: new_id(),
            // `judged` replaces it by the address from a trusted hop's header, or sets it from the peer's envelope.
            client: (arrival.ingress == Ingress::Client).then_some(arrival.remote),
            method: request.map(|parts| parts.method.clone()),
            question: None,
            judged: None,
            lease: None,
            reported: Reported::default(),
            recorded: Recorded::default(),
            code: None,
            status: None,
            served_by: None,
            sent_to: None,
            request_body: Rc::default(),
            response_body: Rc::default(),
            is_written: false,
        }
    }

    /// Records that the head of the request could not be read.
    pub fn forget_head(&mut self) {
        (self.method, self.version) = (None, None);
    }

    /// Records the first judgement, or one that replaces it.
    pub fn record_judgement(&mut self, intake: &Intake, judged: &Rc<Judged>) {
        self.id.clone_from(&intake.id);
        self.client = Some(intake.question.client);
        self.question = Some(Rc::clone(&intake.question));
        self.judged = Some(Rc::clone(judged));
    }

    /// From now on, the last judgement is that of the lease.
    pub fn follow(&mut self, lease: &Rc<Lease>) {
        self.lease = Some(Rc::clone(lease));
    }

    /// The last judgement, response labels included; `None` before the first judgement.
    fn judgement(&self) -> Option<Rc<Judged>> {
        self.lease.as_ref().map(|lease| lease.judged()).or_else(|| self.judged.clone())
    }

    /// Counts an event in the ledger, for auditors.
    pub fn count_in_ledger(&self, what: &'static str, code: &'static str, to: &str) {
        let judged = self.judgement();
        if let Some(ledger) = &self.worker.ledger {
            let policy = self.policy(judged.as_deref());
            let (class, from) = (class_of(judged.as_deref()), policy.region_name(policy.local));
            ledger.count(Count { what, code, class: class.into_owned().into(), from: from.into(), to: to.into() });
        }
    }

    /// The policy of a judgement, whose trail has its numbers; before the first judgement, the policy of the snapshot.
    fn policy<'a>(&'a self, judged: Option<&'a Judged>) -> &'a Policy {
        judged.map_or_else(|| self.snapshot.policy(), |judged| judged.moment.policy())
    }

    /// Calls `show` with how the request was handled. `received` is the status of the response of the next hop.
    pub fn with_handling(&self, received: Option<StatusCode>, show: impl FnOnce(&Handling<'_>)) {
        let judged = self.judgement();
        let policy = self.policy(judged.as_deref());
        let name = |region: RegionId| policy.region_name(region);
        let home = judged.as_ref().and_then(|judged| judged.decision.trail.home);
        let reason = match (self.code, home.and_then(|home| home.evidence()), home.and_then(|home| home.region())) {
            (Some(code), _, _) => code.as_str().to_owned(),
            (None, Some(evidence), Some(home)) => format!("{}; home={}", evidence.as_str(), name(home)),
            (None, _, _) => "unowned".to_owned(),
        };
        let upstream = self.attempt.upstream.as_ref().map(|(_, upstream)| upstream.authority());
        show(&Handling {
            region: self.served_by.map(name),
            reason: &reason,
            next_hop: upstream.or_else(|| self.sent_to.map(name)),
            received: received.map(|status| status.as_u16()),
            total: self.started.elapsed(),
            upstream: self.attempt.took,
        });
    }

    /// Writes the metrics, the ledger counts and the access log line, once.
    #[inline(never)] // a stage of benches/stages
    pub fn write(&mut self) {
        if std::mem::replace(&mut self.is_written, true) {
            return;
        }
        let judged = self.judgement();
        let policy = self.policy(judged.as_deref());
        let trail = judged.as_ref().map(|judged| &judged.decision.trail);
        let names = Names {
            route: trail.and_then(|trail| route_of(trail, policy)).map_or("none", |route| &*route.name),
            home: match trail.and_then(|trail| trail.home) {
                None => "none",
                Some(home) => home.region().map_or("unowned", |region| policy.region_name(region)),
            },
            served_by: self.served_by.map_or("none", |region| policy.region_name(region)),
            verdict: self.verdict(),
            class: class_of(judged.as_deref()),
        };
        let elapsed = self.started.elapsed();
        self.count_request(&names, judged.as_deref(), elapsed);
        if let Some(judged) = &judged {
            let is_redirect = names.verdict == "redirect";
            self.reported.count_at_the_end(&self.worker.metrics, judged, is_redirect, self.served_by);
        }
        if let Some(code) = self.code {
            self.count_failure(code, &names, policy);
        }
        self.count_border_bytes(&names.class, policy);
        self.settle(&names, policy);
        let has_failed =
            self.code.is_some() || self.status.is_none_or(|status| status.is_client_error() || status.is_server_error());
        self.end_trace(&names, judged.as_deref(), policy, elapsed);
        if self.worker.logs_request(has_failed) {
            self.write_line(&names, judged.as_deref(), policy, elapsed);
        }
    }

    fn count_request(&self, names: &Names<'_>, judged: Option<&Judged>, took: Duration) {
        let labels = RequestLabels {
            route: names.route,
            home: names.home,
            served_by: names.served_by,
            verdict: names.verdict,
            status: self.status_class(),
        };
        let measures = RequestMeasures {
            took,
            request_bytes: self.request_body.bytes.get(),
            response_bytes: self.response_body.bytes.get(),
        };
        let snapshot = judged.map_or(&self.snapshot.judging, |judged| &judged.moment.snapshot);
        self.worker.metrics.request((snapshot, self.label_key(judged)), &labels, &measures);
    }

    /// The class of the response's status.
    fn status_class(&self) -> &'static str {
        const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
        let Some(status) = self.status else { return "client_closed" };
        CLASSES.get(usize::from(status.as_u16() / 100).wrapping_sub(1)).copied().unwrap_or("other")
    }

    /// Identifies the labels of this request among those of its policy: equal keys mean equal labels.
    fn label_key(&self, judged: Option<&Judged>) -> u64 {
        let trail = judged.map(|judged| &judged.decision.trail);
        let number = |region: Option<RegionId>| region.map_or(0, |region| region.index() as u64 + 1);
        let route = trail.and_then(|trail| trail.route).map_or(0, |route| route.index() as u64 + 1);
        let home = trail.and_then(|trail| trail.home);
        let home = home.map_or(0, |home| home.region().map_or(0xff, |region| number(Some(region))));
        let status = u64::from(self.status.map_or(0, |status| status.as_u16() / 100));
        let verdict = match self.verdict() {
            "proceed" => 0,
            "redirect" => 1,
            _ => 2,
        };
        route << 32 | home << 24 | number(self.served_by) << 16 | verdict << 8 | status
    }

    fn verdict(&self) -> &'static str {
        let verdict = self.judged.as_ref().map(|judged| judged.decision.verdict.as_str());
        let is_refused_here = |code| verdict.is_none() || (self.served_by.is_none() && reply::status_of(code).is_client_error());
        match (self.code, verdict) {
            (Some(code), _) if is_refused_here(code) => "refuse",
            (_, Some(verdict)) => verdict,
            (_, None) if self.status.is_some_and(|status| status.is_redirection()) => "redirect",
            (_, None) => "proceed",
        }
    }

    fn count_failure(&self, code: Code, names: &Names<'_>, policy: &Policy) {
        self.worker.metrics.failure(code.as_str());
        if reply::status_of(code) == StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS {
            self.worker.metrics.refusal(&names.class, policy.region_name(policy.local), names.home, code.as_str());
            self.count_in_ledger("refusal", code.as_str(), names.home);
        }
    }

    /// Counts the bytes that this proxy sends to another region. The sending region counts the request, the owner the
    /// response.
    fn count_border_bytes(&self, class: &str, policy: &Policy) {
        let local = policy.local;
        let count = |to: RegionId, bytes: u64| {
            if to != local && bytes > 0 {
                self.worker.metrics.border_bytes(class, policy.region_name(local), policy.region_name(to), bytes);
            }
        };
        if let Some(region) = self.sent_to {
            count(region, self.request_body.bytes.get());
        }
        if let Ingress::Peer(peer) = self.arrival.ingress {
            count(peer, self.response_body.bytes.get());
        }
    }
}

fn text_of(value: Option<&HeaderValue>) -> Option<&str> {
    value.and_then(|value| value.to_str().ok())
}

/// The names of a request in the metrics and in the access log.
struct Names<'a> {
    route: &'a str,
    home: &'a str,
    served_by: &'a str,
    verdict: &'static str,
    /// `none` if no route matched.
    class: Cow<'a, str>,
}

fn class_of(judged: Option<&Judged>) -> Cow<'_, str> {
    judged.map_or(Cow::Borrowed("none"), |judged| class_label(judged.moment.policy(), judged.decision.trail.classes))
}

impl Drop for RequestLog {
    /// A request whose client closed the connection before the response is logged as well.
    fn drop(&mut self) {
        self.write();
    }
}
