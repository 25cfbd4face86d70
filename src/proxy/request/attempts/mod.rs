//! The attempts at one request: sends it to the stops of its itinerary, and at the local stop to its upstreams, until
//! there is a response. Each attempt has its own permit.

mod actions;
pub(super) mod forward;
mod mirror;
mod peer;
mod plan;

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use http::{HeaderMap, Request, Uri};
use http_body::Body as _;
use tokio::time::Instant;

use crate::decision::permit::Permitted;
use crate::decision::verdict::{Itinerary, Stop, Verdict};
use crate::engine::judge::{Judged, judge};
use crate::engine::recheck::Lease;
use crate::http::body::Body;
use crate::http::pool::{BoxedRequest, Gateway};
use crate::http::sent::Sent;
use crate::model::outcome::{Code, Rule};
use crate::model::region::RegionId;
use crate::model::service::ServiceId;
use crate::peer::fields;

use crate::proxy::actions::set_path;
use crate::proxy::intake::{Intake, drop_cookies, forward_identity};

use super::context::Context;
use super::log::Attempt;
use forward::{AttemptOptions, Failure, Response, copy_head, may_retry};
use plan::{Attempts, Target};

pub(super) use actions::ActionsDone;

/// The copies of a request that another attempt needs, made before the request is sent.
struct Copies {
    /// The whole request, if it may be repeated after it was sent.
    spare: Option<BoxedRequest>,
    /// The headers and the target as they were before `prepare` adapted them, if another attempt may need them.
    original: Option<(HeaderMap, Uri)>,
    /// The copy for the mirror of the route.
    mirror: Option<(ServiceId, BoxedRequest)>,
    has_another: bool,
}

/// A response, and the region that sent it.
pub(super) type RegionResponse = (RegionId, Response);

/// Why the attempts ended without a response.
enum Stopped {
    Refused(Code),
    /// A peer responded that it does not own the request. `spare` is the request, if it may be sent again.
    Misdirected {
        spare: Option<BoxedRequest>,
    },
}

impl From<Code> for Stopped {
    fn from(code: Code) -> Self {
        Self::Refused(code)
    }
}

/// The state that all attempts at one request share.
pub(super) struct Forwarding<'a> {
    pub context: &'a mut Context,
    pub intake: &'a Intake,
    pub lease: &'a Rc<Lease>,
    pub options: AttemptOptions<'a>,
    pub done: ActionsDone,
}

impl Forwarding<'_> {
    /// Sends the request along its itinerary until there is a response.
    pub async fn run(mut self, itinerary: Itinerary, request: BoxedRequest) -> Result<RegionResponse, Code> {
        match self.attempt_all(itinerary, request, false).await {
            Ok(served) => Ok(served),
            Err(Stopped::Refused(code)) => Err(code),
            Err(Stopped::Misdirected { spare: None }) => Err(Code::PeersDisagree),
            Err(Stopped::Misdirected { spare: Some(spare) }) if self.may_retry(Sent::Unprocessed) => {
                Box::pin(self.retry_elsewhere(spare)).await
            }
            Err(Stopped::Misdirected { spare: Some(_) }) => Err(Code::PeersDisagree),
        }
    }

    /// Judges the request once more, after a peer responded that it does not own it, and sends it again. Ignores the
    /// home in the sealed cookie, because it may be outdated.
    async fn retry_elsewhere(&mut self, spare: BoxedRequest) -> Result<RegionResponse, Code> {
        self.intake.question.ignores_hint.set(true);
        let judged = self.rejudge().await;
        match &judged.decision.verdict {
            Verdict::Proceed(itinerary) => match self.attempt_all(itinerary.clone(), spare, true).await {
                Ok(served) => Ok(served),
                Err(Stopped::Refused(code)) => Err(code),
                Err(Stopped::Misdirected { .. }) => Err(Code::PeersDisagree),
            },
            Verdict::Redirect(_) => Err(Code::PeersDisagree),
            Verdict::Refuse(code) => Err(*code),
        }
    }

    /// Judges the whole request again under the newest snapshot. The new judgement replaces the previous one.
    async fn rejudge(&mut self) -> Rc<Judged> {
        self.context.refresh();
        let worker = Rc::clone(&self.context.worker);
        let judged = Rc::new(judge(&self.intake.question, &[], worker.moment(), &worker.vitals()).await);
        self.lease.adopt(Rc::clone(&judged));
        // Other actions have another `auth`, which was not asked, and other rate limits.
        if self.context.adopt_actions(&judged) {
            self.done = ActionsDone::default();
        }
        self.context.log.record_judgement(self.intake, &judged);
        judged
    }

    async fn attempt_all(
        &mut self,
        itinerary: Itinerary,
        mut request: BoxedRequest,
        is_second: bool,
    ) -> Result<RegionResponse, Stopped> {
        let mut attempts = Attempts::along(itinerary, self.lease.judged().moment.clone(), self.context.limits().attempts);
        let (mut last, mut is_retry) = (None, false);
        loop {
            if !self.is_current(&attempts) {
                self.follow_newest(&mut attempts).await?;
            }
            self.check_password(&attempts, &request).await?;
            let service = self.service(&attempts);
            let preference = self.preference(service, &request);
            let service = (service, preference);
            let admit = || self.admit(&request);
            let target = attempts.next(self.context, admit, self.answers_preflight(), service, self.options.deadline).await;
            let mut target = target.map_err(|code| if is_of_route(code) { code } else { last.unwrap_or(code) })?;
            // The moment may have changed while the request waited for an app server.
            if !self.is_current(&attempts) {
                continue;
            }
            let mut permitted = self.permit(target.stop(), request).await?;
            if !self.is_current(&attempts) {
                // The moment changed while the ledger line was written. The line stays, as it only records an intention.
                request = permitted.give_back();
                self.lease.leave();
                continue;
            }
            if let Some(response) = self.authorize(&target, &permitted).await? {
                return Ok((target.stop().region(), response));
            }
            if !self.is_current(&attempts) {
                request = permitted.give_back();
                self.lease.leave();
                continue;
            }
            let Copies { spare, original, mirror, has_another } =
                self.prepare(&target, permitted.request_mut(), &attempts, is_second);
            if let Some((service, copy)) = mirror {
                self.send_mirror(service, copy, &permitted);
            }
            if std::mem::take(&mut is_retry) {
                self.context.worker.load.retries.withdraw();
            }
            self.begin_attempt();
            let outcome = self.attempt(&mut target, permitted, spare, has_another, is_second).await?;
            self.end_attempt(&target, outcome.as_ref().ok());
            let failure = match outcome {
                Ok(mut response) => {
                    self.stick(&target, preference, last.is_some(), &mut response);
                    return Ok((target.stop().region(), response));
                }
                Err(failure) => failure,
            };
            self.lease.leave();
            attempts.note_failure(&target, failure.sent);
            last = Some(failure.code);
            let again = failure.retry.filter(|_| self.may_retry(failure.sent));
            request = again.ok_or(failure.code)?;
            // Another target may need header fields that were removed for this one.
            if let Some((headers, target)) = original {
                *request.headers_mut() = headers;
                *request.uri_mut() = target;
            }
            is_retry = failure.sent == Sent::Partly;
            self.options.is_fresh = failure.sent == Sent::Stale;
        }
    }

    /// Judges the request under the newest moment, and replaces the itinerary.
    async fn follow_newest(&mut self, attempts: &mut Attempts) -> Result<(), Code> {
        if self.lease.has_ended() {
            return Err(self.context.ended_code(self.intake));
        }
        let judged = self.rejudge().await;
        match &judged.decision.verdict {
            Verdict::Proceed(itinerary) => attempts.follow(itinerary.clone(), judged.moment.clone()),
            Verdict::Redirect(_) => return Err(Code::NoLongerCleared),
            Verdict::Refuse(code) => return Err(*code),
        }
        Ok(())
    }

    /// Whether the itinerary was made under the newest moment, and the request is still cleared.
    fn is_current(&self, attempts: &Attempts) -> bool {
        let newest = self.context.worker.moment();
        let is_judged = attempts.moment.is_same(&newest) && self.lease.is_current(&newest) && !self.lease.has_ended();
        is_judged && self.context.is_of_snapshot(&newest)
    }

    /// Whether another attempt may follow one that sent this much.
    fn may_retry(&self, sent: Sent) -> bool {
        let has_budget = self.context.worker.load.retries.has_some();
        may_retry(sent, self.intake.question.is_read, has_budget, self.options.time_left())
    }

    /// Adapts the request to its target, and returns the copies that another attempt needs.
    fn prepare(&self, target: &Target, request: &mut Request<Body>, attempts: &Attempts, is_second: bool) -> Copies {
        let (is_whole, has_another) = (request.body().is_end_stream(), attempts.has_another(target));
        match target {
            Target::Proxy(_) => Copies { spare: None, original: None, mirror: None, has_another: false },
            Target::Upstream(_, selected) => {
                let may_repeat = is_whole && self.intake.question.is_read && has_another;
                // Copied before the headers are adapted to an app server, because another attempt may go to a peer.
                let spare = may_repeat.then(|| copy_head(request));
                let actions = self.context.actions.as_deref();
                let has_cookies = !self.context.snapshot.services.sticky_cookies().is_empty();
                let is_changed = actions.is_some() || !selected.upstream.base.is_empty() || has_cookies;
                // Also for the last attempt: one that sent nothing, or met a stale connection, is made again.
                let is_kept = attempts.has_another_stop() || is_changed;
                let original = is_kept.then(|| (request.headers().clone(), request.uri().clone()));
                self.adapt_headers(request.headers_mut());
                if let Some(actions) = actions {
                    self.act(request, actions);
                }
                let mirror = self.mirror_of(request);
                if !selected.upstream.base.is_empty() {
                    let path = format!("{}{}", selected.upstream.base, request.uri().path());
                    set_path(request, &path);
                }
                Copies { spare, original, mirror, has_another }
            }
            Target::Peer(stop, _) => {
                let spare = is_whole.then(|| copy_head(request));
                let original = attempts.has_another_stop().then(|| (request.headers().clone(), request.uri().clone()));
                self.seal(stop.region(), request, false, is_second);
                Copies { spare, original, mirror: None, has_another }
            }
        }
    }

    /// Adapts the header fields of a request to an app server: removes the envelope, our own cookies and credentials that do not verify.
    fn adapt_headers(&self, headers: &mut HeaderMap) {
        let snapshot = &self.context.snapshot;
        headers.remove(fields::REQUEST);
        forward_identity(headers, &self.intake.question, &snapshot.intake, snapshot.tokens.as_deref());
        for cookie in snapshot.services.sticky_cookies() {
            drop_cookies(headers, |name| name == cookie.as_bytes());
        }
    }

    /// Counts an attempt in the log.
    fn begin_attempt(&mut self) {
        let log = &mut self.context.log;
        let is_traced = log.trace.is_some_and(|trace| trace.is_sampled);
        let started = is_traced.then(Instant::now);
        log.attempt = Attempt { number: log.attempt.number + 1, started, ..Attempt::default() };
    }

    /// Records how long the server took to respond, if it did.
    fn end_attempt(&mut self, target: &Target, response: Option<&Response>) {
        let is_forwarded = !matches!(target, Target::Proxy(_));
        self.context.log.attempt.took = response.filter(|_| is_forwarded).map(|response| response.took);
    }

    async fn permit(&self, stop: Stop, request: BoxedRequest) -> Result<Permitted<BoxedRequest>, Code> {
        self.context.registrar(self.intake).permit(self.lease, stop, request).await
    }

    /// Makes one attempt. The outer error ends all attempts.
    async fn attempt(
        &mut self,
        target: &mut Target,
        permitted: Permitted<BoxedRequest>,
        spare: Option<BoxedRequest>,
        has_another: bool,
        is_second: bool,
    ) -> Result<Result<Response, Failure>, Stopped> {
        match target {
            // A value of the request, such as its query, is not valid in a header field.
            Target::Proxy(_) => self.answer(permitted.request().headers()).map(Ok).ok_or(Code::Malformed(Rule::Target).into()),
            Target::Upstream(_, selected) => {
                self.context.may_have_arrived = true;
                self.context.log.attempt.upstream = Some((Arc::clone(&selected.service), Arc::clone(&selected.upstream)));
                let outcome = {
                    let (worker, limits) = (&self.context.worker, &self.context.snapshot.limits);
                    let work = pin!(forward::to_upstream(worker, limits, selected, permitted, spare, &self.options));
                    self.while_cleared(work).await?
                };
                self.note_unsent(&outcome);
                Ok(outcome)
            }
            Target::Peer(_, gateway) => Box::pin(self.attempt_peer(gateway, permitted, spare, has_another, is_second)).await,
        }
    }

    /// Makes one attempt at a peer.
    async fn attempt_peer(
        &mut self,
        gateway: &Gateway,
        permitted: Permitted<BoxedRequest>,
        spare: Option<BoxedRequest>,
        has_another: bool,
        is_second: bool,
    ) -> Result<Result<Response, Failure>, Stopped> {
        if let Err(stopped) = self.clear_with_peer(gateway, &permitted, is_second).await {
            return Err(match stopped {
                // Nothing of the request was sent, so all of it can be sent to another region.
                Stopped::Misdirected { .. } => Stopped::Misdirected { spare: Some(permitted.give_back()) },
                Stopped::Refused(code) => Stopped::Refused(code),
            });
        }
        // The policy or the table may have changed while the peer was asked.
        let worker = &self.context.worker;
        if !self.lease.renew(&worker.moment(), &worker.vitals()).await {
            return Err(self.context.ended_code(self.intake).into());
        }
        self.context.log.sent_to = Some(permitted.region());
        self.context.may_have_arrived = true;
        let outcome = self.to_peer(gateway, permitted, spare, has_another).await?;
        self.note_unsent(&outcome);
        Ok(outcome)
    }

    /// Clears `may_have_arrived` if the attempt sent nothing.
    fn note_unsent(&mut self, outcome: &Result<Response, Failure>) {
        if matches!(outcome, Err(Failure { sent: Sent::Nothing, .. })) {
            self.context.may_have_arrived = false;
        }
    }

    /// Awaits `work`, and fails as soon as the request is no longer cleared.
    async fn while_cleared<T>(&self, mut work: Pin<&mut impl Future<Output = T>>) -> Result<T, Code> {
        poll_fn(|cx| {
            if self.lease.poll_ended(cx).is_ready() {
                return Poll::Ready(Err(self.context.ended_code(self.intake)));
            }
            work.as_mut().poll(cx).map(Ok)
        })
        .await
    }
}

/// Whether the route itself refuses the request, which no earlier failure explains.
const fn is_of_route(code: Code) -> bool {
    matches!(code, Code::ClientDenied | Code::RateLimited | Code::PasswordRefused)
}
