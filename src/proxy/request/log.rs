//! The log of one request: metrics, ledger counts and access log line, written once, when the request ends.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{HeaderValue, REFERER, USER_AGENT};
use http::request::Parts;
use http::{StatusCode, Version};
use tokio::time::Instant;

use crate::access_log::Entry;
use crate::audit::Count;
use crate::decision::facts::Ingress;
use crate::decision::policy::Policy;
use crate::decision::route_of;
use crate::engine::judge::Judged;
use crate::engine::permit::{Reported, class_label};
use crate::engine::question::Question;
use crate::engine::recheck::Lease;
use crate::http::names::TRACEPARENT;
use crate::metrics::{RequestLabels, RequestMeasures};
use crate::model::outcome::Code;
use crate::model::region::RegionId;
use crate::services::{Service, Upstream};
use crate::traces::{Ended, Trace};

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

    /// Sends the spans of a sampled request. They name no path, address or user, because a collector keeps them.
    fn end_trace(&self, names: &Names<'_>, judged: Option<&Judged>, policy: &Policy, elapsed: Duration) {
        let Some((traces, trace)) = self.worker.shared.traces.as_ref().zip(self.trace).filter(|(_, trace)| trace.is_sampled)
        else {
            return;
        };
        let ended = SystemTime::now();
        let status = self.status.map_or(CLIENT_CLOSED, |status| status.as_u16());
        let method = self.method.as_ref().map_or("_OTHER", http::Method::as_str);
        let evidence = judged.and_then(|judged| judged.decision.trail.home).and_then(|home| home.evidence());
        let text = |value: &str| value.to_owned();
        let mut attributes = vec![
            ("http.request.method", text(method)),
            ("http.response.status_code", status.to_string()),
            ("domicile.route", text(names.route)),
            ("domicile.class", names.class.clone().into_owned()),
            ("domicile.home", text(names.home)),
            ("domicile.served_by", text(names.served_by)),
            ("domicile.verdict", text(names.verdict)),
            ("domicile.request_id", text(&self.id)),
        ];
        attributes.extend(evidence.map(|evidence| ("domicile.evidence", text(evidence.as_str()))));
        attributes.extend(self.code.map(|code| ("error.type", text(code.as_str()))));
        let request = Ended {
            name: format!("{method} {}", names.route),
            started: ended - elapsed,
            ended,
            attributes,
            has_failed: status >= 500,
        };
        let attempt = self.attempt.started.map(|started| {
            let hop = self.attempt.upstream.as_ref().map(|(_, upstream)| ("server.address", text(upstream.authority())));
            let region = self.sent_to.map(|region| ("domicile.region", text(policy.region_name(region))));
            let begun = ended - started.elapsed();
            Ended {
                name: if hop.is_some() { text("upstream") } else { text("region") },
                started: begun,
                // Without a response, the attempt ended with the request.
                ended: self.attempt.took.map_or(ended, |took| begun + took),
                attributes: hop.into_iter().chain(region).collect(),
                has_failed: self.attempt.took.is_none(),
            }
        });
        traces.end(&trace, request, attempt);
    }

    fn write_line(&self, names: &Names<'_>, judged: Option<&Judged>, policy: &Policy, elapsed: Duration) {
        let trail = judged.map(|judged| &judged.decision.trail);
        let user = judged.and_then(|judged| judged.user.as_ref()).map(|(user, _)| self.worker.shared.pseudonyms.of(user));
        let evidence = trail.and_then(|trail| trail.home).and_then(|home| home.evidence());
        let processed_here = judged.filter(|judged| judged.decision.trail.clearance.contains(policy.local));
        let path = processed_here.zip(self.question.as_ref());
        let path = path.map(|(judged, question)| WithoutUser(&question.path, judged.user_segment));
        let peer = match self.arrival.ingress {
            Ingress::Client => None,
            Ingress::Peer(peer) => Some(policy.region_name(peer)),
        };
        let trace = self.trace.map(|trace| trace.to_string());
        let broken = self.response_body.failure.get().or(self.request_body.failure.get());
        let sent_to = self.attempt.upstream.as_ref();
        self.worker.log_request(&Entry {
            ended: Some(SystemTime::now()),
            id: &self.id,
            client: self.client,
            peer,
            user: user.as_deref(),
            method: self.method.as_ref().map(http::Method::as_str),
            host: processed_here.and(self.question.as_ref()).map(|question| &*question.host),
            path: path.as_ref().map(|path| path as &dyn fmt::Display),
            protocol: self.version.map(protocol_name),
            tls: self.tls_version,
            route: Some(names.route),
            class: Some(&names.class),
            home: Some(names.home),
            evidence: evidence.map(|evidence| evidence.as_str()),
            served_by: Some(names.served_by),
            verdict: Some(names.verdict),
            code: self.code.map(Code::as_str),
            status: self.status.map_or(CLIENT_CLOSED, |status| status.as_u16()),
            service: sent_to.map(|(service, _)| &*service.settings.name),
            upstream: sent_to.map(|(_, upstream)| upstream.authority()),
            upstream_time: self.attempt.took,
            attempts: self.attempt.number,
            request_bytes: self.request_body.bytes.get(),
            response_bytes: self.response_body.bytes.get(),
            broken: broken.as_ref().map(|broken| broken as &dyn fmt::Display),
            referer: processed_here.and(text_of(self.referer.as_ref())).map(origin_of),
            user_agent: text_of(self.user_agent.as_ref().filter(|_| processed_here.is_some())),
            trace: trace.as_deref(),
            elapsed,
        });
    }
}

fn text_of(value: Option<&HeaderValue>) -> Option<&str> {
    value.and_then(|value| value.to_str().ok())
}

/// The origin of a URL. The rest belongs to another request, which other rules may cover, and may name a user.
fn origin_of(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url[host..].find(['/', '?', '#']).map_or(url.len(), |at| host + at);
    // A user name in a URL comes before the host.
    if url[host..end].contains('@') { &url[..host] } else { &url[..end] }
}

const fn protocol_name(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
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

/// A path for the log: `{user}` replaces the segment that names a user.
struct WithoutUser<'a>(&'a str, Option<usize>);

impl fmt::Display for WithoutUser<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(at) = self.1 else { return out.write_str(self.0) };
        for (index, segment) in self.0.split('/').skip(1).enumerate() {
            out.write_str("/")?;
            out.write_str(if index == at { "{user}" } else { segment })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logged_referer_has_neither_path_nor_query_nor_user() {
        for (url, origin) in [
            ("https://a.test/users/alice?token=1", "https://a.test"),
            ("https://a.test", "https://a.test"),
            ("https://a.test?x", "https://a.test"),
            ("https://alice@a.test/", "https://"),
            ("/users/alice", ""),
            ("android-app://com.example/x", "android-app://com.example"),
        ] {
            assert_eq!(origin_of(url), origin);
        }
    }

    #[test]
    fn a_logged_path_names_no_user() {
        assert_eq!(WithoutUser("/users/alice/orders/1", Some(1)).to_string(), "/users/{user}/orders/1");
        assert_eq!(WithoutUser("/a/b", None).to_string(), "/a/b");
    }
}
