//! An attempt at a peer: adds the envelope, asks whether the peer accepts the request before a body is sent, and reads
//! the peer's refusal code.

use std::pin::pin;
use std::time::Duration;

use http::Request;
use http::header::{COOKIE, HOST, HeaderMap, HeaderName, HeaderValue};
use http_body::Body as _;

use crate::decision::permit::Permitted;
use crate::http::body::Body;
use crate::http::pool::{BoxedRequest, Gateway};
use crate::http::sent::Sent;
use crate::model::outcome::Code;
use crate::model::region::RegionId;
use crate::model::vitals::Health;
use crate::peer::response::{ACCEPTED, Meaning, meaning_of};
use crate::peer::{Envelope, fields};
use crate::proxy::headers;
use crate::proxy::intake::is_credential;
use crate::proxy::worker::Worker;

use super::forward::{self, AttemptOptions, Failure, Response, copy_field, copy_head};
use super::{Forwarding, Stopped};

/// How often a request that waits for a peer checks whether the peer's region is down.
const DOWN_CHECK: Duration = Duration::from_millis(250);

/// Waits until the proxy of a region responds to no probes. A read that may go to another region does not wait for its timeout.
async fn until_unreachable(worker: &Worker, region: RegionId, may_leave: bool) {
    if !may_leave {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(DOWN_CHECK).await;
        let vitals = worker.vitals();
        let seen = vitals.region(region);
        if seen.health == Health::Down && !seen.is_reachable {
            return;
        }
    }
}

/// Whether a request that the owner refused with this code may have reached an app server. If it has not, another attempt needs no
/// part of the retry budget: the owner sends no write again after one that an app server may have received, so that the code of its
/// last attempt holds for all.
const fn sent_under(code: Code) -> Sent {
    match code {
        Code::UpstreamUnreachable | Code::HomeDown | Code::AllDown => Sent::Unprocessed,
        _ => Sent::Partly,
    }
}

impl Forwarding<'_> {
    /// Sends the request to the proxy of another region, and reads what its response means.
    pub(super) async fn to_peer(
        &self,
        gateway: &Gateway,
        permitted: Permitted<BoxedRequest>,
        spare: Option<BoxedRequest>,
        has_another: bool,
    ) -> Result<Result<Response, Failure>, Stopped> {
        let (worker, snapshot) = (&self.context.worker, &self.context.snapshot);
        let copy = spare.as_ref().filter(|_| self.intake.question.is_read).map(|spare| copy_head(spare));
        let may_leave = has_another && copy.is_some();
        let work = pin!(forward::to_peer(worker, snapshot, gateway, permitted, copy, &self.options));
        let down = pin!(until_unreachable(worker, gateway.region, may_leave));
        let sent = tokio::select! {
            biased;
            sent = self.while_cleared(work) => sent?,
            () = down => return Ok(Err(Failure { code: Code::UpstreamTimeout, sent: Sent::Partly, retry: spare })),
        };
        let response = match sent {
            Ok(response) => response,
            Err(failure) => return Ok(Err(failure)),
        };
        match meaning_of(&response.head.headers) {
            Meaning::Disowned => Err(Stopped::Misdirected { spare }),
            // A peer that cannot serve a request is a failed attempt, like a failed upstream. Without another target, the
            // peer's response is relayed.
            Meaning::Outage(code) if has_another && spare.is_some() && self.may_retry(sent_under(code)) => {
                Ok(Err(Failure { code, sent: sent_under(code), retry: spare }))
            }
            Meaning::Served | Meaning::Outage(_) | Meaning::Refused(_) => Ok(Ok(response)),
        }
    }

    /// Adds the envelope, which the peer needs for its judgement, and removes tracing fields if the peer is in another
    /// jurisdiction.
    pub(super) fn seal(&self, region: RegionId, request: &mut Request<Body>, is_question: bool, is_retry: bool) {
        let judged = self.lease.judged();
        let (moment, trail) = (&judged.moment, &judged.decision.trail);
        let (policy, home) = (moment.policy(), trail.home.as_ref());
        let question = &self.intake.question;
        let envelope = Envelope {
            id: self.intake.id.to_string(),
            client: question.client,
            user: question.identity.caller.clone(),
            home: home.and_then(|home| home.region()).map(|region| policy.region_name(region).to_owned()),
            evidence: home.and_then(|home| home.evidence()),
            country: trail.country.filter(|_| !trail.place_is_stale),
            classes: trail.classes.iter().map(|class| policy.class(class).name.to_string()).collect(),
            policy: policy.hash,
            directory: moment.snapshot.table_version(),
            certificate: self.context.connection.client_certificate.clone(),
            is_https: self.intake.is_https,
            is_question,
            is_retry,
        };
        if policy.jurisdiction_of(region) != policy.jurisdiction_of(policy.local) {
            headers::drop_tracing(request.headers_mut(), &self.context.snapshot.privacy.tracing_across_borders);
        }
        if let Ok(mut value) = HeaderValue::from_str(&envelope.write()) {
            // It differs from request to request, so that it has no place in the table of HPACK.
            value.set_sensitive(true);
            request.headers_mut().insert(fields::REQUEST, value);
        }
    }

    /// Asks the peer whether it accepts the request, before any byte of the body is sent. Only needed if the policy or
    /// the user table of the peer differs from that of this region, or is not known yet.
    pub(super) async fn clear_with_peer(
        &self,
        gateway: &Gateway,
        permitted: &Permitted<BoxedRequest>,
        is_second: bool,
    ) -> Result<(), Stopped> {
        let judged = self.lease.judged();
        let (moment, trail) = (&judged.moment, &judged.decision.trail);
        let vitals = self.context.worker.vitals();
        let theirs = vitals.region(permitted.region());
        let is_same = theirs.policy == Some(moment.policy().hash) && theirs.directory == moment.snapshot.table_version();
        let request = permitted.request();
        if is_same || request.body().is_end_stream() || moment.policy().may_be_anywhere(trail.classes) {
            return Ok(());
        }
        let mut question = Request::new(Body::empty());
        *question.method_mut() = request.method().clone();
        *question.uri_mut() = request.uri().clone();
        *question.version_mut() = request.version();
        copy_field(request, &mut question, &HOST);
        for name in self.identifying_fields(request.headers()) {
            copy_field(request, &mut question, &name);
        }
        self.seal(permitted.region(), &mut question, true, is_second);
        let limits = &self.context.snapshot.limits;
        let (response_timeout, idle_timeout) = (limits.response_timeout, limits.idle_timeout);
        let progress = Default::default();
        let options = AttemptOptions {
            response_timeout,
            idle_timeout,
            is_client_deadline: false,
            body: &progress,
            upgrade: None,
            informational: None,
            ..self.options
        };
        let (worker, snapshot) = (&self.context.worker, &self.context.snapshot);
        let work = pin!(forward::to_peer(worker, snapshot, gateway, permitted.with_question(Box::new(question)), None, &options));
        let response = self.while_cleared(work).await?.map_err(|failure| Stopped::Refused(failure.code))?;
        match meaning_of(&response.head.headers) {
            Meaning::Served if response.head.status == ACCEPTED => Ok(()),
            Meaning::Served => Err(Stopped::Refused(Code::UpstreamBad)),
            Meaning::Disowned => Err(Stopped::Misdirected { spare: None }),
            Meaning::Outage(code) | Meaning::Refused(code) => Err(Stopped::Refused(code)),
        }
    }

    /// The header fields from which the peer identifies the caller. All credentials are included, because the peer may
    /// accept kinds that this region does not read.
    fn identifying_fields(&self, headers: &HeaderMap) -> Vec<HeaderName> {
        let location = self.context.snapshot.tokens.as_ref().map(|tokens| &tokens.settings.location);
        headers.keys().filter(|name| **name == COOKIE || is_credential(name.as_str(), location)).cloned().collect()
    }
}
