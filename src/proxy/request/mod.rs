//! The life of a request, one step a line: intake, guards, judgement, attempts, response, log.
//!
//! Judgement uses only the request head. The body is read only after a permit has been issued, so that no byte of it
//! leaves before its destination and its carrier are cleared. The steps are in `serve`; `docs/life-of-a-request.md`
//! names the files in their order.

mod attempts;
mod context;
mod hint;
mod informational;
mod log;
mod response;
mod timeouts;
mod tunnel;

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::header::{CONTENT_LENGTH, EXPECT, HOST, MAX_FORWARDS, STRICT_TRANSPORT_SECURITY};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;

use crate::decision::facts::Ingress;
use crate::decision::verdict::{Itinerary, Verdict};
use crate::engine::judge::Judged;
use crate::engine::recheck::Lease;
use crate::http::body::Body;
use crate::http::compression::Coding;
use crate::http::names::TRACEPARENT;
use crate::http::pool::BoxedRequest;
use crate::model::outcome::{Code, Rule};
use crate::model::region::RegionId;
use crate::peer::fields;
use crate::peer::probe::Report;
use crate::peer::rates::RateCount;
use crate::peer::response::ACCEPTED;
use crate::transport::tls::ACME_PATH;

use super::actions::{Upgrades, may_stream};
use super::admission::Admitted;
use super::admission::overload::Priority;
use super::body::{BodyFailure, Metered};
use super::headers::Forwarded;
use super::ingress::{ConnectionContext, ResponseChannel};
use super::intake::{self, Intake, Verifiers};
use super::worker::Worker;
use super::{Snapshot, headers, reply};

use attempts::forward::AttemptOptions;
use attempts::{ActionsDone, Forwarding};
use context::Context;
use informational::InformationalResponses;
use log::RequestLog;
use timeouts::MessageTimeouts;

pub use timeouts::response_idle_timeout;

/// The maximum number of Domicile proxies in `Via` that a request may have passed before. A request with more is in a loop.
const MAX_PASSES_OF_CLIENT: usize = 1;
const MAX_PASSES_OF_PEER: usize = 2;

/// Serves one request of a connection.
pub async fn handle(
    worker: Rc<Worker>,
    connection: Rc<ConnectionContext>,
    channel: ResponseChannel,
    request: BoxedRequest,
) -> Response<Body> {
    let is_head = request.method() == Method::HEAD;
    let hsts = connection.options.hsts.clone();
    let mut response = if is_probe(&connection, &request) {
        respond_to_probe(&worker, request.headers())
    } else {
        serve(worker, connection, channel, request).await
    };
    if is_head {
        drop_body(&mut response);
    }
    if let Some(hsts) = hsts {
        response.headers_mut().insert(STRICT_TRANSPORT_SECURITY, hsts);
    }
    response
}

/// Refuses a request whose head could not be read.
pub fn refuse_unread(
    worker: Rc<Worker>,
    connection: Rc<ConnectionContext>,
    channel: ResponseChannel,
    code: Code,
) -> Response<Body> {
    let (parts, ()) = Request::new(()).into_parts();
    let hsts = connection.options.hsts.clone();
    let mut context = Context::open(worker, connection, channel, &parts, false);
    context.log.forget_head();
    let mut response = context.refuse(code, None);
    if let Some(hsts) = hsts {
        response.headers_mut().insert(STRICT_TRANSPORT_SECURITY, hsts);
    }
    response
}

/// Counts and logs a request that the HTTP/2 connection itself refused, without a response.
pub fn log_unread(worker: &Rc<Worker>, connection: &ConnectionContext, code: Code) {
    let mut log = RequestLog::open(worker, &worker.snapshot(), connection, None);
    (log.code, log.status) = (Some(code), Some(reply::status_of(code)));
    log.write();
}

/// Runs the steps of one request.
async fn serve(
    worker: Rc<Worker>,
    connection: Rc<ConnectionContext>,
    channel: ResponseChannel,
    request: BoxedRequest,
) -> Response<Body> {
    let Received { mut context, mut intake, request, admitted } = match receive(worker, connection, channel, request) {
        Ok(received) => received,
        Err(response) => return *response,
    };
    let judged = context.judge(&intake).await;
    let itinerary = match judged.decision.verdict.clone() {
        _ if intake.is_peer_question => return respond_to_question(context, &intake, &judged),
        Verdict::Proceed(itinerary) => itinerary,
        Verdict::Redirect(region) => return redirect(context, &intake, &judged, region, &request),
        Verdict::Refuse(code) => return refuse_or_answer_preflight(context, &intake, &judged, code, request.headers()),
    };
    let lease = context.worker.leases.open(&intake.question, judged);
    context.log.follow(&lease);
    match forward(&mut context, &mut intake, &lease, itinerary, request).await {
        Ok(served) => response::relay(context, intake, lease, served, admitted).await,
        Err(code) => {
            let failure = context.log.request_body.failure.get().filter(|failure| *failure != BodyFailure::NoLongerCleared);
            let code = failure.map_or(code, code_of_failure);
            context.refuse(code, Some(&intake.question))
        }
    }
}

/// A request that was read and that may be judged.
struct Received {
    context: Context,
    intake: Intake,
    request: BoxedRequest,
    admitted: Admitted,
}

/// Reads a request. The error is the response to a request that needs no judgement, or that is refused before it.
fn receive(
    worker: Rc<Worker>,
    connection: Rc<ConnectionContext>,
    channel: ResponseChannel,
    request: BoxedRequest,
) -> Result<Received, Box<Response<Body>>> {
    let (mut parts, body) = request.into_parts();
    let context = Context::open(worker, connection, channel, &parts, !body.is_end_stream());
    let Some(admitted) = context.worker.shared.enter_request(context.snapshot.limits.requests) else {
        return Err(Box::new(context.refuse(Code::Overloaded, None)));
    };
    let intake = match read(&mut parts, &context) {
        Ok(intake) => intake,
        Err(code) => return Err(Box::new(context.refuse(code, None))),
    };
    if let Some(response) = own_response(&context, &intake, &parts) {
        return Err(Box::new(context.finish(response, None)));
    }
    match take_hop(&mut parts) {
        Ok(None) => {}
        Ok(Some(response)) => return Err(Box::new(context.finish(response, None))),
        Err(code) => return Err(Box::new(context.refuse(code, Some(&intake.question)))),
    }
    match guard(&context, &intake, &parts) {
        Ok(()) => Ok(Received { context, intake, request: Box::new(Request::from_parts(parts, body)), admitted }),
        Err(code) => Err(Box::new(context.refuse(code, Some(&intake.question)))),
    }
}

fn read(parts: &mut Parts, context: &Context) -> Result<Intake, Code> {
    let worker = &context.worker;
    let verifiers =
        Verifiers { snapshot: &context.snapshot, tokens: &worker.tokens, metrics: &worker.metrics, now: SystemTime::now() };
    intake::read(parts, &context.log.id, context.has_body, &context.connection.arrival, &verifiers)
}

/// Responses that need no judgement: to `OPTIONS *` and to ACME challenges, and redirects from listeners that redirect
/// every client to HTTPS.
fn own_response(context: &Context, intake: &Intake, parts: &Parts) -> Option<Response<Body>> {
    let (question, options) = (&intake.question, &context.connection.options);
    if question.path == "*" {
        return Some(reply::options());
    }
    let challenge = options.challenges.as_ref().zip(question.path.strip_prefix(ACME_PATH));
    if let Some(answer) = challenge.and_then(|(challenges, token)| challenges.answer_to(token)) {
        return Some(Response::new(Body::whole(answer)));
    }
    let port = options.redirect.filter(|_| context.grpc_call.is_none())?;
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    reply::to_https(&question.host, port, target)
}

/// Counts this proxy in `Max-Forwards` of OPTIONS and TRACE (RFC 9110 section 7.6.2). At zero, the proxy responds itself; it does
/// not echo a TRACE.
fn take_hop(parts: &mut Parts) -> Result<Option<Response<Body>>, Code> {
    if !matches!(parts.method, Method::OPTIONS | Method::TRACE) {
        return Ok(None);
    }
    let mut values = parts.headers.get_all(MAX_FORWARDS).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let is_number = !value.is_empty() && value.as_bytes().iter().all(u8::is_ascii_digit) && values.next().is_none();
    let left = value.to_str().ok().filter(|_| is_number).ok_or(Code::Malformed(Rule::Hops))?;
    // More digits than fit are more hops than any path has.
    match left.parse::<u32>().unwrap_or(u32::MAX) {
        0 if parts.method == Method::OPTIONS => Ok(Some(reply::options())),
        0 => Err(Code::MethodNotAllowed),
        left => {
            parts.headers.insert(MAX_FORWARDS, HeaderValue::from(left - 1));
            Ok(None)
        }
    }
}

/// Refuses requests before judgement: on a listener that only redirects, for a host that the connection's certificate
/// does not cover, or in a loop.
fn guard(context: &Context, intake: &Intake, parts: &Parts) -> Result<(), Code> {
    if context.connection.options.redirect.is_some() {
        return Err(if context.grpc_call.is_some() { Code::RouteNone } else { Code::Malformed(Rule::Host) });
    }
    let site = context.connection.site.as_ref();
    if site.is_some_and(|site| !site.may_serve(&intake.question.host, &context.snapshot.sites)) {
        return Err(Code::WrongSite);
    }
    let most = if context.is_peer() { MAX_PASSES_OF_PEER } else { MAX_PASSES_OF_CLIENT };
    if headers::passes(&parts.headers) > most { Err(Code::Loop) } else { Ok(()) }
}

/// Responds to a peer that asks whether this region accepts a request.
fn respond_to_question(context: Context, intake: &Intake, judged: &Judged) -> Response<Body> {
    match judged.decision.refusal() {
        Some(code) => context.refuse(code, Some(&intake.question)),
        None => context.finish(reply::status_only(ACCEPTED), None),
    }
}

/// Redirects the client to a region to which this proxy may not forward the request.
fn redirect(context: Context, intake: &Intake, judged: &Judged, region: RegionId, request: &Request<Body>) -> Response<Body> {
    // Browsers do not follow a redirect of a preflight, gRPC clients follow no redirects, and a uniform refusal must not
    // reveal the region.
    if intake.preflight.is_some() || context.grpc_call.is_some() || context.is_uniform(Some(&intake.question)) {
        return refuse_or_answer_preflight(context, intake, judged, Code::CarrierNotCleared, request.headers());
    }
    let url = context.snapshot.urls.get(&region);
    let Some(response) = url.and_then(|url| reply::redirect(url, &intake.question.path, request.uri().query())) else {
        return context.refuse(Code::CarrierNotCleared, Some(&intake.question));
    };
    let region = judged.moment.policy().region_name(region);
    context.log.count_in_ledger("redirect", Code::CarrierNotCleared.as_str(), region);
    context.finish(response, Some(&intake.question))
}

/// Refuses a request. A CORS preflight gets a response from the proxy instead, if its route has CORS settings or its origin is
/// configured for all routes: no app server may receive the preflight, and the browser needs a response before it sends the
/// actual request, which can be judged.
fn refuse_or_answer_preflight(
    mut context: Context,
    intake: &Intake,
    judged: &Judged,
    code: Code,
    asked: &HeaderMap,
) -> Response<Body> {
    context.adopt_actions(judged);
    match context.preflight_response(intake, asked).filter(|_| code != Code::Malformed(Rule::User)) {
        Some(response) => context.finish(response, Some(&intake.question)),
        None => context.refuse(code, Some(&intake.question)),
    }
}

/// Sends a cleared request along its itinerary, and returns the first response.
async fn forward(
    context: &mut Context,
    intake: &mut Intake,
    lease: &Rc<Lease>,
    itinerary: Itinerary,
    mut request: BoxedRequest,
) -> Result<attempts::RegionResponse, Code> {
    let judged = lease.judged();
    context.adopt_actions(&judged);
    let priority = context.actions.as_ref().map_or(Priority::Normal, |actions| actions.priority);
    if !context.worker.pressure().admits(priority) {
        return Err(Code::Overloaded);
    }
    context.query = request.uri().query().filter(|_| context.actions.is_some()).map(Into::into);
    let offered = context.actions.as_ref().filter(|_| may_stream(request.version())).map(|actions| &*actions.compress);
    context.coding = offered.and_then(|offered| Coding::negotiate(request.headers(), offered));
    let limits = context.limits();
    let most_bytes = limits.body;
    if request.body().size_hint().lower() > most_bytes {
        return Err(Code::BodyTooLarge);
    }
    check_upgrade(context, intake)?;
    let timeouts = MessageTimeouts::of_request(request.version(), request.headers(), limits);
    let takes_informational = request.version() >= Version::HTTP_11;
    if context.has_body && request.headers().contains_key(EXPECT) {
        context.channel.send_continue();
    }
    let body = std::mem::replace(request.body_mut(), Body::empty());
    *request.body_mut() = outgoing_body(context, lease, body, &timeouts, most_bytes);
    prepare(context, intake, &mut request);
    let informational = takes_informational.then(|| InformationalResponses::of(context));
    let (connection, request_body) = (Rc::clone(&context.connection), Rc::clone(&context.log.request_body));
    let total_timeout = if context.has_body { timeouts.deadline } else { Some(timeouts.request_timeout) };
    let upgrade = intake.upgrade.as_ref().map(|upgrade| upgrade.protocol.clone());
    let id = Rc::clone(&intake.id);
    let options = AttemptOptions {
        request_id: &id,
        deadline: total_timeout.map(|timeout| context.log.started + timeout),
        response_timeout: timeouts.response_timeout,
        idle_timeout: timeouts.idle,
        is_client_deadline: timeouts.deadline.is_some(),
        body: &request_body,
        upgrade: upgrade.as_deref(),
        client: connection.arrival.client(intake.question.client),
        local: connection.arrival.local,
        buffers: &connection.buffers,
        informational: informational.as_ref().map(InformationalResponses::queue),
        is_fresh: false,
    };
    let forwarding = Forwarding { context, intake, lease, options, done: ActionsDone::default() };
    let work = std::pin::pin!(forwarding.run(itinerary, request));
    match informational {
        Some(informational) => informational.relay_during(work, lease).await,
        None => work.await,
    }
}

/// Checks the upgrade against the route. An HTTP/1.1 upgrade that the route does not allow is ignored, as RFC 9110
/// section 7.8 permits; CONNECT and extended CONNECT are refused.
fn check_upgrade(context: &Context, intake: &mut Intake) -> Result<(), Code> {
    let allows = |protocol: &str| match &context.actions {
        Some(actions) => actions.upgrades.allow(protocol),
        None => Upgrades::default().allow(protocol),
    };
    let Some(upgrade) = intake.upgrade.take_if(|upgrade| !allows(&upgrade.protocol)) else { return Ok(()) };
    tracing::debug!(protocol = &*upgrade.protocol, "the route does not allow upgrades to this protocol");
    match &context.channel {
        _ if upgrade.is_connect() => Err(Code::MethodNotAllowed),
        ResponseChannel::Stream(_) => Err(Code::UpgradeRefused),
        ResponseChannel::Connection(_) => Ok(()),
    }
}

/// The body of the forwarded request: counted, limited, and aborted when the request is no longer cleared.
fn outgoing_body(context: &Context, lease: &Rc<Lease>, body: Body, timeouts: &MessageTimeouts, most_bytes: u64) -> Body {
    if !context.has_body {
        return Body::empty();
    }
    let snapshot = Arc::clone(&context.snapshot);
    // The target is not known yet, so tracing fields are always removed from the trailers.
    let actions = context.actions.clone();
    let is_unwanted = move |name: &str| {
        let location = snapshot.tokens.as_ref().map(|tokens| &tokens.settings.location);
        snapshot.intake.is_identity_header(name)
            || intake::is_credential(name, location)
            || headers::is_tracing(name)
            || name.eq_ignore_ascii_case(TRACEPARENT.as_str())
            || actions.as_ref().is_some_and(|actions| actions.govern_request_field(name))
    };
    let scrub = move |trailers: &mut HeaderMap| headers::scrub_trailers(trailers, &is_unwanted);
    let metered = Metered::new(body, timeouts.request_limits(most_bytes), Rc::clone(&context.log.request_body));
    Body::streamed(metered.scrubbed(scrub).with_lease(Rc::clone(lease)))
}

/// Prepares a request for the next hop. Verified values replace every header field that the client could have forged.
fn prepare(context: &Context, intake: &Intake, request: &mut Request<Body>) {
    request.extensions_mut().clear();
    let question = &intake.question;
    let host = HeaderValue::from_str(&intake.authority).expect("a canonical host is plain text");
    request.headers_mut().insert(HOST, host);
    let forwarded = Forwarded {
        request_id: &intake.id,
        client: question.client,
        is_https: intake.is_https,
        authority: &intake.authority,
        version: request.version(),
    };
    headers::rebuild(request.headers_mut(), &forwarded);
    if let Some(trace) = &context.log.trace {
        headers::set(request.headers_mut(), TRACEPARENT, &trace.traceparent());
    }
    let certificate = context.connection.client_certificate.as_deref().or(intake.certificate.as_deref());
    headers::set_client_certificate(request.headers_mut(), certificate);
}

const fn code_of_failure(failure: BodyFailure) -> Code {
    match failure {
        BodyFailure::TooLarge => Code::BodyTooLarge,
        BodyFailure::IdleTimeout | BodyFailure::TooSlow => Code::RequestTimeout,
        BodyFailure::SenderFailed => Code::Malformed(Rule::Body),
        BodyFailure::NoLongerCleared => Code::NoLongerCleared,
        BodyFailure::DeadlineExceeded => Code::DeadlineExceeded,
    }
}

/// Removes the body of a response to HEAD, and keeps its size in `Content-Length` (RFC 9110 section 9.3.2).
fn drop_body(response: &mut Response<Body>) {
    // An app server's response to HEAD has no body, but it may have the length of one.
    if response.body().is_end_stream() {
        return;
    }
    if let Some(length) = response.body().size_hint().exact() {
        response.headers_mut().entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    *response.body_mut() = Body::empty();
}

fn is_probe(connection: &ConnectionContext, request: &Request<Body>) -> bool {
    matches!(connection.arrival.ingress, Ingress::Peer(_)) && request.headers().contains_key(fields::PROBE)
}

/// Responds to a peer's probe with the state of this region.
fn respond_to_probe(worker: &Worker, probe: &HeaderMap) -> Response<Body> {
    let (rates, now) = (&worker.shared.rates, Instant::now());
    worker.metrics.rates_learned.inc_by(rates.learn(&Report::read(probe).rates, now));
    let snapshot = worker.snapshot();
    let mut response = reply::status_only(StatusCode::NO_CONTENT);
    region_report(&snapshot, worker.reports_drain(), rates.report(now)).write(response.headers_mut());
    response
}

/// The state of this region, for probes.
pub fn region_report(snapshot: &Snapshot, is_draining: bool, rates: Vec<RateCount>) -> Report {
    let down = snapshot.services.all().filter(|service| !service.any_up());
    Report {
        is_draining,
        is_serving: snapshot.services.any_up(),
        down_services: down.map(|service| service.settings.name.clone()).collect(),
        upstream_time: snapshot.services.answer_time(),
        policy: Some(snapshot.policy().hash),
        directory: snapshot.judging.table_version(),
        rates,
    }
}
