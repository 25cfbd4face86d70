//! The state that all steps of one request share.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use http::header::{ORIGIN, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version};
use tokio::time::Instant;

use crate::decision::facts::{Credential, Ingress};
use crate::decision::route_of;
use crate::engine::judge::{Judged, judge};
use crate::engine::permit::{Kind, Registrar};
use crate::engine::question::Question;
use crate::engine::snapshot::Moment;
use crate::http::body::Body;
use crate::http::compression::Coding;
use crate::model::outcome::Code;
use crate::model::user::Proof;

use super::super::actions::{Actions, Values};
use super::super::admission::rate_limit::Exceeded;
use super::super::headers;
use super::super::ingress::{ConnectionContext, ResponseChannel};
use super::super::intake::Intake;
use super::super::reply::{self, Recipient};
use super::super::worker::Worker;
use super::super::{Limits, Snapshot};
use super::log::RequestLog;
use super::timeouts::GrpcCall;

/// The worker, the snapshot, the connection and the log of one request.
pub(super) struct Context {
    pub worker: Rc<Worker>,
    /// The snapshot under which the request is served; `refresh` replaces it before the request is judged again.
    pub snapshot: Arc<Snapshot>,
    pub connection: Rc<ConnectionContext>,
    pub channel: ResponseChannel,
    pub log: RequestLog,
    /// Present for a client's gRPC call: refusals are then sent as gRPC statuses.
    pub grpc_call: Option<GrpcCall>,
    pub has_body: bool,
    /// The actions of the request's route, under the snapshot under which it was judged.
    pub actions: Option<Arc<Actions>>,
    /// The query of the request, if actions may need it after the request was sent.
    pub query: Option<Box<str>>,
    /// The coding in which the response may be compressed.
    pub coding: Option<Coding>,
    /// The origin of the page that sends the request.
    pub origin: Option<HeaderValue>,
    /// The rate limit that the request exceeds.
    pub exceeded: Cell<Option<Exceeded>>,
    /// The challenge of the route's passwords, which the request has not met.
    pub challenge: RefCell<Option<HeaderValue>>,
    /// An app server or a peer may have received the request.
    pub may_have_arrived: bool,
    is_http1: bool,
    wants_html: bool,
}

impl Context {
    pub fn open(
        worker: Rc<Worker>,
        connection: Rc<ConnectionContext>,
        channel: ResponseChannel,
        parts: &Parts,
        has_body: bool,
    ) -> Self {
        let (snapshot, arrival) = (worker.snapshot(), connection.arrival);
        Self {
            log: RequestLog::open(&worker, &snapshot, &connection, Some(parts)),
            grpc_call: GrpcCall::of(parts).filter(|_| arrival.ingress == Ingress::Client),
            has_body,
            actions: None,
            query: None,
            coding: None,
            origin: parts.headers.get(ORIGIN).cloned(),
            exceeded: Cell::new(None),
            challenge: RefCell::default(),
            may_have_arrived: false,
            is_http1: parts.version < Version::HTTP_2,
            wants_html: reply::wants_html(&parts.headers),
            worker,
            snapshot,
            connection,
            channel,
        }
    }

    pub fn is_peer(&self) -> bool {
        matches!(self.connection.arrival.ingress, Ingress::Peer(_))
    }

    /// Switches to the newest snapshot.
    pub fn refresh(&mut self) {
        self.snapshot = self.worker.snapshot();
    }

    /// Whether a judgement was made under the snapshot under which the request is served.
    pub fn is_of_snapshot(&self, moment: &Moment) -> bool {
        Arc::ptr_eq(&self.snapshot.judging, &moment.snapshot)
    }

    /// Takes the actions of the route that a judgement found; returns whether they differ from the previous ones. Routes of another
    /// snapshot have other numbers.
    pub fn adopt_actions(&mut self, judged: &Judged) -> bool {
        let route = judged.decision.trail.route.filter(|_| self.is_of_snapshot(&judged.moment));
        let actions = route.and_then(|route| self.snapshot.actions.get(route.index()).cloned().flatten());
        let differ = actions != self.actions;
        self.actions = actions;
        differ
    }

    /// The limits of the request's route.
    pub fn limits(&self) -> &Limits {
        let own = self.actions.as_ref().and_then(|actions| actions.limits.as_ref());
        own.unwrap_or(&self.snapshot.limits)
    }

    /// Calls `use_values` with the values of the request, for the templates of its actions.
    pub fn with_values<T>(&self, intake: &Intake, judged: &Judged, use_values: impl FnOnce(&Values<'_>) -> T) -> T {
        let (trail, policy, question) = (&judged.decision.trail, judged.moment.policy(), &intake.question);
        let country = trail.country.map(|country| country.as_str().to_owned());
        let home = trail.home.and_then(|home| home.region());
        let pseudonym = || judged.user.as_ref().map(|(user, _)| self.worker.shared.pseudonyms.of(user));
        use_values(&Values {
            client: question.client,
            country: country.as_deref(),
            host: &intake.authority,
            method: self.log.method.as_ref().map_or("GET", |method| method.as_str()),
            path: &question.path,
            query: self.query.as_deref(),
            is_https: intake.is_https,
            home: home.map(|home| policy.region_name(home)),
            region: policy.region_name(policy.local),
            route: route_of(trail, policy).map_or("", |route| &route.name),
            request_id: &intake.id,
            pseudonym: &pseudonym,
        })
    }

    /// Judges the request for the first time, and counts the look-ups in the metrics.
    pub async fn judge(&mut self, intake: &Intake) -> Rc<Judged> {
        // Judged under the snapshot under which the request was read. If there is a newer one, the attempts judge again.
        let newest = self.worker.moment();
        let judging = &self.snapshot.judging;
        let is_newest = Arc::ptr_eq(&newest.snapshot, judging);
        let moment = if is_newest { newest } else { Moment::live(Arc::clone(judging), SystemTime::now()) };
        let judged = Rc::new(judge(&intake.question, &[], moment, &self.worker.vitals()).await);
        for result in [judged.lookups.directory, judged.lookups.caller].into_iter().flatten() {
            self.worker.metrics.directory_lookup(result);
        }
        judged.lookups.geoip.into_iter().for_each(|result| self.worker.metrics.geoip_lookup(result));
        self.log.record_judgement(intake, &judged);
        judged
    }

    /// The writer of ledger lines for this request.
    pub fn registrar<'a>(&'a self, intake: &'a Intake) -> Registrar<'a> {
        Registrar {
            ledger: self.worker.ledger.as_ref(),
            pseudonyms: &self.worker.shared.pseudonyms,
            metrics: &self.worker.metrics,
            request_id: &intake.id,
            reported: &self.log.reported,
            recorded: &self.log.recorded,
            kind: match () {
                () if intake.question.is_preflight => Kind::Preflight,
                () if intake.upgrade.is_some() => Kind::Upgrade,
                () => Kind::Plain,
            },
        }
    }

    /// Refuses the request, and writes its log.
    pub fn refuse(mut self, code: Code, question: Option<&Question>) -> Response<Body> {
        self.log.code = Some(code);
        // The log contains the HTTP status of the code, even if the client gets a gRPC status in a 200 response.
        self.log.status = Some(reply::status_of(code));
        let shown = if self.is_uniform(question) { uniform(code) } else { code };
        let recipient = Recipient {
            request_id: &self.log.id,
            wants_html: self.wants_html,
            grpc: self.grpc_call.as_ref().map(|call| &call.kind),
            is_peer: self.is_peer(),
            is_http1: self.is_http1,
            // The proxy does not read the body of a refused request, and cannot read on after a malformed head.
            closes: self.is_http1 && (self.has_body || question.is_none()),
        };
        let mut response = reply::refusal(shown, &recipient);
        if let Some(exceeded) = self.exceeded.get().filter(|_| code == Code::RateLimited) {
            exceeded.write(response.headers_mut());
        }
        if let Some(challenge) = self.challenge.take().filter(|_| code == Code::PasswordRefused) {
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        // Without its fields, the page could not read why its request was refused.
        if let Some(cors) = self.actions.as_ref().and_then(|actions| actions.cors.as_ref()) {
            cors.apply(self.origin.as_ref(), response.headers_mut());
        }
        self.show(question, response.headers_mut(), None);
        let bytes = http_body::Body::size_hint(response.body()).exact().unwrap_or(0);
        self.log.response_body.bytes.set(bytes);
        self.log.write();
        response
    }

    /// Whether refusals and redirects must not depend on a user's record, because the caller's identity is not proven.
    pub fn is_uniform(&self, question: Option<&Question>) -> bool {
        let has_proven = |question: &Question| {
            matches!(question.identity.caller, Some((_, proof)) if proof > Proof::Claimed)
                || question.identity.credential == Credential::Verified
        };
        self.snapshot.privacy.uniform_refusals && !self.is_peer() && question.is_some_and(|question| !has_proven(question))
    }

    /// Sends a response of the proxy itself, and writes the log.
    pub fn finish(mut self, mut response: Response<Body>, question: Option<&Question>) -> Response<Body> {
        self.log.status = Some(response.status());
        if self.has_body && self.is_http1 {
            reply::close(&mut response);
        }
        self.show(question, response.headers_mut(), None);
        self.log.write();
        response
    }

    /// Adds the id by which a client finds its request in the logs, and the fields that show how it was handled. A peer adds the id itself.
    pub fn show(&self, question: Option<&Question>, response: &mut HeaderMap, received: Option<StatusCode>) {
        if self.is_peer() {
            return;
        }
        headers::identify(response, &self.log.id);
        // Until its head is read, the client behind a trusted hop is not known.
        let Some(question) = question else { return };
        if self.snapshot.privacy.exposure.covers(question.client) && !self.is_uniform(Some(question)) {
            self.log.with_handling(received, |handling| headers::expose(response, handling));
        }
    }

    /// The response to a CORS preflight that is not forwarded, if its route has CORS settings, or those for all routes contain its
    /// origin.
    pub fn preflight_response(&self, intake: &Intake, asked: &HeaderMap) -> Option<Response<Body>> {
        let origin = intake.preflight.as_ref()?;
        if let Some(cors) = self.actions.as_ref().and_then(|actions| actions.cors.as_ref()) {
            return Some(cors.preflight(origin, asked));
        }
        let is_known = self.snapshot.cors_origins.iter().any(|known| origin == &**known);
        is_known.then(|| reply::preflight(origin, asked))
    }

    /// The code for an exchange that is no longer cleared. The code differs for a write that may have arrived, because
    /// its client must know that the write may have taken effect.
    pub fn ended_code(&self, intake: &Intake) -> Code {
        let is_whole = !self.has_body || (self.log.request_body.has_ended() && self.log.request_body.failure.get().is_none());
        let may_stand = !intake.question.is_read && self.may_have_arrived && is_whole;
        if may_stand { Code::ResponseWithheld } else { Code::NoLongerCleared }
    }

    /// The tracing headers that may cross the border, if the request came from a peer in another jurisdiction.
    pub fn border(&self) -> Option<&[HeaderName]> {
        let policy = self.snapshot.policy();
        let crosses = match self.connection.arrival.ingress {
            Ingress::Client => false,
            Ingress::Peer(peer) => policy.jurisdiction_of(peer) != policy.jurisdiction_of(policy.local),
        };
        crosses.then_some(&*self.snapshot.privacy.tracing_across_borders)
    }

    /// The time after which the client of a gRPC call no longer waits for a response.
    pub fn grpc_deadline(&self) -> Option<Instant> {
        self.grpc_call.as_ref()?.deadline
    }
}

/// Replaces every code that depends on a user's record by one code, so that a refusal does not reveal the record.
const fn uniform(code: Code) -> Code {
    match code {
        Code::NowhereCleared
        | Code::EvidenceTooWeak
        | Code::HomeNotCleared
        | Code::CarrierNotCleared
        | Code::ResponseNotCleared
        | Code::HomeDown
        | Code::AllDown
        | Code::ServiceMissing => Code::HomeUnresolved,
        _ => code,
    }
}
