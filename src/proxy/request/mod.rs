//! The life of a request: read it, find its route, gather facts, decide, record, act, tell.
//!
//! Judgement sees the head alone; the body is touched only when the request is sent on its way, and by whom it may be
//! carried is settled by then.

mod account;
mod interim;
mod pacing;
mod record;
mod relay;
mod travel;
mod tunnel;
mod watch;

use std::rc::Rc;
use std::time::SystemTime;

use http::header::{CONTENT_LENGTH, STRICT_TRANSPORT_SECURITY};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body as _;

use crate::audit::Count;
use crate::decision::facts::{Head, Ingress, Lookup};
use crate::decision::verdict::{Decision, Verdict};
use crate::decision::{decide, match_route, route_of};
use crate::envelope::boolean;
use crate::http::body::Body;
use crate::model::outcome::Code;
use crate::model::user::{Proof, Record};
use crate::probes::fields;
use crate::session::Hint;
use crate::transport::tls::ACME_PATH;

use super::gather::{Question, gather};
use super::ingress::{Back, Session};
use super::intake::{self, Intake, Verifiers};
use super::{Snapshot, Worker, headers, reply};

use account::Account;
pub use pacing::patience_with_taker;

/// Two proxies may hand a request over; a third pass is a loop.
const MAX_PASSES_OF_CLIENT: usize = 1;
const MAX_PASSES_OF_PEER: usize = 2;

/// Serves one request.
pub async fn handle(worker: Rc<Worker>, session: Rc<Session>, back: Back, request: Request<Body>) -> Response<Body> {
    let is_head = request.method() == Method::HEAD;
    let mut response = answer(worker, Rc::clone(&session), back, request).await;
    if is_head {
        drop_body(&mut response);
    }
    if let Some(hsts) = &session.options.hsts {
        response.headers_mut().insert(STRICT_TRANSPORT_SECURITY, hsts.clone());
    }
    response
}

/// An answer to HEAD says how long its body would be, and has none (RFC 9110 section 9.3.2).
fn drop_body(response: &mut Response<Body>) {
    let length = response.body().size_hint().exact().filter(|_| !response.body().is_end_stream());
    if let Some(length) = length {
        response.headers_mut().entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
        *response.body_mut() = Body::empty();
    }
}

async fn answer(worker: Rc<Worker>, session: Rc<Session>, back: Back, request: Request<Body>) -> Response<Body> {
    let (snapshot, arrival) = (worker.snapshot(), session.arrival);
    if matches!(arrival.ingress, Ingress::Peer(_)) && request.headers().contains_key(fields::PROBE) {
        return answer_probe(&worker, &snapshot);
    }
    let shared = std::sync::Arc::clone(&worker.shared);
    let under_way = shared.requests.enter(snapshot.limits.requests);
    let (mut parts, body) = request.into_parts();
    let has_body = !body.is_end_stream();
    let account = Account::open(worker, snapshot, arrival, &parts, has_body);
    if under_way.is_none() {
        return account.refuse(Code::Overloaded);
    }
    let worker = &account.worker;
    let verifiers =
        Verifiers { snapshot: &account.snapshot, tokens: &worker.tokens, metrics: &worker.metrics, now: SystemTime::now() };
    match intake::read(&mut parts, has_body, &arrival, &verifiers) {
        Ok(intake) => serve(account, (session, back), intake, (parts, body)).await,
        Err(code) => account.refuse(code),
    }
}

async fn serve(
    mut account: Account,
    (session, back): (Rc<Session>, Back),
    intake: Intake,
    (parts, body): (Parts, Body),
) -> Response<Body> {
    if intake.path == "*" {
        return account.finish(reply::options());
    }
    let challenge = session.options.challenges.as_ref().zip(intake.path.strip_prefix(ACME_PATH));
    if let Some(answer) = challenge.and_then(|(challenges, token)| challenges.answer_to(token)) {
        return account.finish(Response::new(Body::whole(answer)));
    }
    if let Some(port) = session.options.redirect {
        if account.is_call() {
            return account.refuse(Code::RouteNone);
        }
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        return match reply::to_https(&intake.host, port, target) {
            Some(response) => account.finish(response),
            None => account.refuse(Code::RequestMalformed),
        };
    }
    if session.site.as_ref().is_some_and(|site| !site.may_serve(&intake.host, &account.snapshot.sites)) {
        return account.refuse(Code::WrongSite);
    }
    let most = if intake.envelope.is_some() { MAX_PASSES_OF_PEER } else { MAX_PASSES_OF_CLIENT };
    if headers::passes(&parts.headers) > most {
        return account.refuse(Code::Loop);
    }
    let judged = judge(&account.worker, &account.snapshot, &intake, account.arrival.ingress, intake.identity.hint.as_ref());
    account.note(&intake, &judged);
    if intake.envelope.as_ref().is_some_and(|envelope| envelope.is_question) {
        return match judged.decision.refusal() {
            Some(code) => account.refuse(code),
            None => account.finish(reply::bare(StatusCode::NO_CONTENT)),
        };
    }
    match judged.decision.verdict.clone() {
        Verdict::Refuse(code) => account.refuse(code),
        Verdict::Redirect(region) => {
            // No client of gRPC goes elsewhere.
            if account.is_call() {
                return account.refuse(Code::CarrierNotCleared);
            }
            let redirect =
                account.snapshot.urls.get(&region).and_then(|url| reply::redirect(url, &intake.path, parts.uri.query()));
            match redirect {
                Some(response) => account.redirect(region, response),
                None => account.refuse(Code::CarrierNotCleared),
            }
        }
        Verdict::Proceed(itinerary) => travel::run(account, (session, back), intake, judged, itinerary, (parts, body)).await,
    }
}

/// A decision, and the user it was made for.
pub struct Judged {
    pub decision: Decision,
    pub user: Option<(String, Proof)>,
    /// The user's record, where the directory was asked and has one.
    pub record: Option<Record>,
    /// The segment of the path that names the user, where one does.
    pub named_user: Option<usize>,
}

/// Route, facts, decision: the whole of judgement for one request.
fn judge(worker: &Worker, snapshot: &Snapshot, intake: &Intake, ingress: Ingress, hint: Option<&Hint>) -> Judged {
    let head = Head { method: intake.method, host: &intake.host, path: &intake.path };
    let question = Question {
        route: match_route(&head, &snapshot.policy),
        ingress,
        is_read: intake.is_read,
        is_preflight: intake.is_preflight,
        client: intake.client,
        identity: &intake.identity,
        hint,
        envelope: intake.envelope.as_ref(),
        now: SystemTime::now(),
    };
    let findings = gather(&question, snapshot);
    account::count_lookups(&worker.metrics, &findings);
    let decision = decide(&findings.facts(&question, &worker.vitals()), &snapshot.policy);
    let named_user = route_of(&decision.trail, &snapshot.policy).and_then(|route| route.pattern.path.user_segment());
    let record = match findings.directory {
        Lookup::Found(record) => Some(record),
        _ => None,
    };
    Judged { decision, user: findings.user, record, named_user }
}

/// Tells a peer how this region is.
fn answer_probe(worker: &Worker, snapshot: &Snapshot) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let mut put = |name, text: String| {
        if let Ok(value) = HeaderValue::from_str(&text) {
            response.headers_mut().insert(name, value);
        }
    };
    put(fields::POLICY, snapshot.policy.hash.to_string());
    put(fields::DRAINING, boolean(worker.is_draining()));
    put(fields::SERVING, boolean(snapshot.upstreams.any_up()));
    if let Some(time) = snapshot.upstreams.answer_time() {
        put(fields::UPSTREAM_MICROS, time.as_micros().to_string());
    }
    response
}

impl Account {
    /// Counts a refusal where an auditor looks for it.
    fn count_in_ledger(&self, what: &'static str, code: &'static str, to: &str) {
        if let Some(ledger) = &self.worker.shared.ledger {
            let class = self.class().into();
            ledger.count(Count { what, code, class, from: self.local_name().into(), to: to.into() });
        }
    }
}
