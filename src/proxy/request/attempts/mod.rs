//! The attempts at one request: one after another over (stop, upstream), each under a permit of its own.

pub(super) mod forward;

use std::rc::Rc;
use std::sync::Arc;

use http::header::{HOST, HeaderValue};
use http::{Request, StatusCode};
use http_body::Body as _;
use tokio::time::Instant;

use crate::decision::permit::Permitted;
use crate::decision::verdict::{Itinerary, Stop, Verdict};
use crate::engine::judge::{Judged, judge};
use crate::engine::permit::Registrar;
use crate::engine::recheck::Lease;
use crate::http::body::Body;
use crate::model::outcome::Code;
use crate::model::region::RegionId;
use crate::peer::{Envelope, fields};
use crate::transport::dial::Server;
use crate::upstreams::{Busy, Taken, Upstream};

use crate::proxy::headers;
use crate::proxy::intake::{Intake, forward_identity};

use super::context::Context;
use forward::{AttemptOptions, Failure, Response, Sent, copy_field, copy_head, may_retry};

/// Where the next attempt goes.
enum Target {
    Upstream(Stop, Arc<Upstream>, Option<Busy>),
    Peer(Stop, Server),
}

impl Target {
    const fn stop(&self) -> Stop {
        match self {
            Self::Upstream(stop, ..) | Self::Peer(stop, _) => *stop,
        }
    }
}

/// The attempts that are left: the stops of the itinerary in order, and the upstreams of the local one.
struct Attempts {
    itinerary: Itinerary,
    /// The stop that is tried now.
    stop: usize,
    /// The upstreams of that stop that have been tried.
    tried: Vec<Arc<Upstream>>,
    /// Attempts of that stop that sent something.
    spent: usize,
    /// Regions that were tried under an itinerary that has been replaced.
    tried_before: Vec<RegionId>,
    /// How often a request may be tried, the first attempt included.
    most: usize,
}

impl Attempts {
    const fn along(itinerary: Itinerary, most: usize) -> Self {
        Self { itinerary, stop: 0, tried: Vec::new(), spent: 0, tried_before: Vec::new(), most }
    }

    /// Follows another itinerary from here on: the request was judged again.
    fn follow(&mut self, itinerary: Itinerary) {
        let tried = self.itinerary.regions().take(self.stop);
        self.tried_before.extend(tried);
        self.itinerary = itinerary;
        self.stop = 0;
    }

    fn current(&self) -> Option<Stop> {
        self.itinerary.stops().iter().take(self.most).nth(self.stop).copied()
    }

    fn next_stop(&mut self) {
        self.stop += 1;
        self.tried.clear();
        self.spent = 0;
    }

    /// The target of the next attempt; `Err` if there is none, and why.
    async fn next(&mut self, context: &Context, deadline: Option<Instant>) -> Result<Target, Code> {
        let mut refusal = Code::UpstreamUnreachable;
        while let Some(stop) = self.current() {
            let region = stop.region();
            if self.tried_before.contains(&region) {
                self.next_stop();
                continue;
            }
            if region != context.snapshot.policy().local {
                match context.snapshot.gateways.get(&region) {
                    Some(gateway) => return Ok(Target::Peer(stop, gateway.clone())),
                    None => self.next_stop(),
                }
                continue;
            }
            if self.tried.is_empty() {
                context.worker.load.retries.deposit();
            }
            let upstreams = &context.snapshot.upstreams;
            match context.worker.load.take_in_turn(upstreams, &self.tried, deadline.map(Instant::into_std)).await {
                Taken::One(upstream, busy) => return Ok(Target::Upstream(stop, upstream, Some(busy))),
                Taken::None => self.next_stop(),
                Taken::Full => {
                    refusal = Code::Overloaded;
                    self.next_stop();
                }
            }
        }
        Err(refusal)
    }

    /// Notes that an attempt failed: the next one goes to another upstream, or to the next stop.
    fn note_failure(&mut self, target: &Target, sent: Sent) {
        match target {
            Target::Peer(..) => self.next_stop(),
            Target::Upstream(_, upstream, _) => {
                self.tried.push(Arc::clone(upstream));
                self.spent += usize::from(sent == Sent::Something);
                // An attempt that sent nothing costs the upstreams nothing: each may be tried.
                if sent == Sent::Something && self.spent + self.stop >= self.most {
                    self.next_stop();
                }
            }
        }
    }

    /// Whether another target is left after the one that is tried now.
    fn has_another(&self, context: &Context) -> bool {
        let is_last_stop = self.stop + 1 >= self.itinerary.stops().len().min(self.most);
        !is_last_stop || context.snapshot.upstreams.all().len() > self.tried.len() + 1
    }
}

/// A response, and the region that gave it.
pub(super) type Served = (RegionId, Response);

/// Why the attempts ended without a response.
enum Stopped {
    Refused(Code),
    /// A peer says that it does not own the request. `spare` is the request, if it may be sent again.
    Misdirected {
        spare: Option<Box<Request<Body>>>,
    },
}

impl From<Code> for Stopped {
    fn from(code: Code) -> Self {
        Self::Refused(code)
    }
}

/// Everything that the attempts at one request share.
pub(super) struct Forwarding<'a> {
    pub context: &'a mut Context,
    pub intake: &'a Intake,
    pub lease: &'a Rc<Lease>,
    pub options: AttemptOptions<'a>,
    /// The user whose data is touched.
    pub user: Option<String>,
}

impl Forwarding<'_> {
    /// Sends the request along its itinerary until there is a response.
    pub async fn run(mut self, itinerary: Itinerary, request: Request<Body>) -> Result<Served, Code> {
        match self.attempt_all(itinerary, request, false).await {
            Ok(served) => Ok(served),
            Err(Stopped::Refused(code)) => Err(code),
            Err(Stopped::Misdirected { spare: None }) => Err(Code::PeersDisagree),
            Err(Stopped::Misdirected { spare: Some(spare) }) => self.ask_again(*spare).await,
        }
    }

    /// A peer said that it does not own the request: it is judged once more on what is known now, without what a cookie
    /// remembers.
    async fn ask_again(&mut self, spare: Request<Body>) -> Result<Served, Code> {
        self.intake.question.ignores_hint.set(true);
        let judged = self.rejudge().await;
        match judged.decision.verdict {
            Verdict::Proceed(itinerary) => match self.attempt_all(itinerary, spare, true).await {
                Ok(served) => Ok(served),
                Err(Stopped::Refused(code)) => Err(code),
                Err(Stopped::Misdirected { .. }) => Err(Code::PeersDisagree),
            },
            Verdict::Redirect(_) => Err(Code::PeersDisagree),
            Verdict::Refuse(code) => Err(code),
        }
    }

    /// Judges the request as a whole once more; the judgement replaces the one before.
    async fn rejudge(&mut self) -> Judged {
        let worker = Rc::clone(&self.context.worker);
        let judged = judge(&self.intake.question, &[], worker.moment(), &worker.vitals()).await;
        self.lease.adopt(&judged);
        self.context.log.judged(self.intake, &judged);
        judged
    }

    async fn attempt_all(
        &mut self,
        itinerary: Itinerary,
        mut request: Request<Body>,
        is_second: bool,
    ) -> Result<Served, Stopped> {
        let mut attempts = Attempts::along(itinerary, self.context.snapshot.limits.attempts);
        let mut last = None;
        loop {
            if !self.lease.is_current(&self.context.worker.moment()) {
                self.context.refresh();
                match self.rejudge().await.decision.verdict {
                    Verdict::Proceed(itinerary) => attempts.follow(itinerary),
                    Verdict::Redirect(_) => return Err(Code::NoLongerCleared.into()),
                    Verdict::Refuse(code) => return Err(code.into()),
                }
            }
            let target = attempts.next(self.context, self.options.deadline).await;
            let mut target = target.map_err(|code| last.unwrap_or(code))?;
            let spare = self.prepare(&target, &mut request, attempts.has_another(self.context), is_second);
            let permitted = self.permit(target.stop(), request).await?;
            if !self.lease.is_current(&self.context.worker.moment()) {
                // The moment changed while the ledger was written: the line only says that something was about to happen.
                request = permitted.into_request();
                continue;
            }
            let failure = match self.attempt(&mut target, permitted, spare, is_second).await? {
                Ok(response) => return Ok((target.stop().region(), response)),
                Err(failure) => failure,
            };
            attempts.note_failure(&target, failure.sent);
            last = Some(failure.code);
            let (is_read, time_left) = (self.intake.question.is_read, self.options.time_left());
            let retries = &self.context.worker.load.retries;
            let again = failure.again.filter(|_| may_retry(failure.sent, is_read, retries.has_some(), time_left));
            request = again.ok_or(failure.code)?;
            if failure.sent == Sent::Something {
                retries.withdraw();
            }
        }
    }

    /// Makes the request fit for its target; returns a copy of it, if it may be sent again after it was sent.
    fn prepare(&self, target: &Target, request: &mut Request<Body>, has_another: bool, is_second: bool) -> Option<Request<Body>> {
        let is_whole = request.body().is_end_stream();
        match target {
            Target::Upstream(..) => {
                let may_repeat = is_whole && self.intake.question.is_read && has_another;
                // Before the fields that only an app server gets: another attempt may go to a peer.
                let spare = may_repeat.then(|| copy_head(request));
                let (snapshot, headers) = (&self.context.snapshot, request.headers_mut());
                headers.remove(fields::REQUEST);
                forward_identity(headers, &self.intake.question, &snapshot.intake, snapshot.tokens.as_deref());
                spare
            }
            Target::Peer(stop, _) => {
                let spare = is_whole.then(|| copy_head(request));
                self.seal(stop.region(), request, false, is_second);
                spare
            }
        }
    }

    async fn permit(&self, stop: Stop, request: Request<Body>) -> Result<Permitted<Request<Body>>, Code> {
        self.registrar().permit(self.lease, stop, request).await
    }

    fn registrar(&self) -> Registrar<'_> {
        let worker = &self.context.worker;
        Registrar {
            ledger: worker.shared.ledger.as_ref(),
            pseudonyms: &worker.shared.pseudonyms,
            metrics: &worker.metrics,
            request_id: &self.intake.id,
            user: self.user.as_deref(),
        }
    }

    /// One attempt. The outer error ends all attempts.
    async fn attempt(
        &mut self,
        target: &mut Target,
        permitted: Permitted<Request<Body>>,
        spare: Option<Request<Body>>,
        is_second: bool,
    ) -> Result<Result<Response, Failure>, Stopped> {
        match target {
            Target::Upstream(_, upstream, busy) => {
                let busy = busy.take().expect("an upstream that was taken is attempted once");
                let (worker, snapshot) = (&self.context.worker, &self.context.snapshot);
                let work = forward::to_upstream(worker, snapshot, (upstream, busy), permitted, spare, &self.options);
                Ok(self.while_cleared(work).await?)
            }
            Target::Peer(_, gateway) => {
                if let Err(stopped) = self.clear_with_peer(gateway, &permitted, is_second).await {
                    return Err(match stopped {
                        // The request is untouched, so it may be sent again whole.
                        Stopped::Misdirected { .. } => Stopped::Misdirected { spare: Some(Box::new(permitted.into_request())) },
                        Stopped::Refused(code) => Stopped::Refused(code),
                    });
                }
                self.context.log.sent_to = Some(permitted.region());
                self.to_peer(gateway, permitted, spare).await
            }
        }
    }

    async fn to_peer(
        &self,
        gateway: &Server,
        permitted: Permitted<Request<Body>>,
        spare: Option<Request<Body>>,
    ) -> Result<Result<Response, Failure>, Stopped> {
        let (worker, snapshot) = (&self.context.worker, &self.context.snapshot);
        let copy = spare.as_ref().filter(|_| self.intake.question.is_read).map(copy_head);
        let work = forward::to_peer(worker, snapshot, gateway, permitted, copy, &self.options);
        let response = match self.while_cleared(work).await? {
            Ok(response) => response,
            Err(failure) => return Ok(Err(failure)),
        };
        match response.code() {
            Some(Code::Misdirected | Code::PeerMalformed) => Err(Stopped::Misdirected { spare: spare.map(Box::new) }),
            // A peer that cannot serve a read is a failed attempt, as an upstream would be.
            Some(code) if self.intake.question.is_read && is_failure(code) && spare.is_some() => {
                Ok(Err(Failure { code, sent: Sent::Something, again: spare }))
            }
            _ => Ok(Ok(response)),
        }
    }

    /// Waits as long as the request stays cleared.
    async fn while_cleared<T>(&self, work: impl Future<Output = T>) -> Result<T, Code> {
        tokio::select! {
            biased;
            () = std::future::poll_fn(|cx| self.lease.poll_ended(cx)) => Err(self.context.ended_code(self.intake)),
            done = work => Ok(done),
        }
    }

    /// Adds the envelope that the peer judges by, and drops tracing at the border.
    fn seal(&self, region: RegionId, request: &mut Request<Body>, is_question: bool, is_second_try: bool) {
        let (moment, trail) = (self.lease.moment(), self.lease.trail());
        let (policy, home) = (moment.policy(), trail.home.as_ref());
        let question = &self.intake.question;
        let envelope = Envelope {
            id: self.intake.id.clone(),
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
            is_second_try,
        };
        if policy.jurisdiction_of(region) != policy.jurisdiction_of(policy.local) {
            headers::drop_tracing(request.headers_mut(), &self.context.snapshot.privacy.tracing_across_borders);
        }
        if let Ok(value) = HeaderValue::from_str(&envelope.write()) {
            request.headers_mut().insert(fields::REQUEST, value);
        }
    }

    /// Where the peer judges by another policy or another user table, or by one that is not known yet, no byte of a body is
    /// sent until the peer has cleared the head.
    async fn clear_with_peer(
        &self,
        gateway: &Server,
        permitted: &Permitted<Request<Body>>,
        is_second: bool,
    ) -> Result<(), Stopped> {
        let (moment, trail) = (self.lease.moment(), self.lease.trail());
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
        for name in self.identifying_fields() {
            copy_field(request, &mut question, &name);
        }
        self.seal(permitted.region(), &mut question, true, is_second);
        let limits = &self.context.snapshot.limits;
        let (response_timeout, idle_timeout) = (limits.response_timeout, limits.idle_timeout);
        let nothing = Default::default();
        let options = AttemptOptions {
            response_timeout,
            idle_timeout,
            is_callers_deadline: false,
            body: &nothing,
            upgrade: None,
            ..self.options
        };
        let (worker, snapshot) = (&self.context.worker, &self.context.snapshot);
        let work = forward::to_peer(worker, snapshot, gateway, permitted.beside(question), None, &options);
        let response = self.while_cleared(work).await?.map_err(|failure| Stopped::Refused(failure.code))?;
        match response.code() {
            None if response.head.status == StatusCode::NO_CONTENT => Ok(()),
            Some(Code::Misdirected | Code::PeerMalformed) => Err(Stopped::Misdirected { spare: None }),
            Some(code) => Err(Stopped::Refused(code)),
            None => Err(Stopped::Refused(Code::UpstreamBad)),
        }
    }

    /// The fields by which the peer verifies the caller itself.
    fn identifying_fields(&self) -> Vec<http::HeaderName> {
        use crate::tokens::TokenLocation;
        let mut names = vec![http::header::COOKIE];
        if let Some(TokenLocation::Header(name)) = self.context.snapshot.tokens.as_ref().map(|tokens| &tokens.settings.location) {
            names.push(name.clone());
        }
        names
    }
}

/// Whether a peer's refusal means that it could not serve, rather than that it may not.
const fn is_failure(code: Code) -> bool {
    matches!(
        code,
        Code::UpstreamUnreachable
            | Code::UpstreamBad
            | Code::UpstreamTimeout
            | Code::HomeDown
            | Code::AllDown
            | Code::LedgerUnavailable
            | Code::Overloaded
            | Code::DirectoryUnavailable
    )
}
