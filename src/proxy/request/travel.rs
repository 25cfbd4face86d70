//! Sends a cleared request on its way: a line in the ledger first, then the stops of its itinerary in order.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{EXPECT, HOST, HeaderValue};
use http::request::Parts;
use http::{Request, Response, StatusCode, Version};
use http_body::Body as _;
use tokio::time::Instant;

use crate::audit::Direction;
use crate::decision::facts::Ingress;
use crate::decision::route_of;
use crate::decision::verdict::{Itinerary, Stop, Verdict};
use crate::envelope::Envelope;
use crate::http::body::Body;
use crate::http::window::Buffers;
use crate::model::outcome::Code;

use super::super::body::Metered;
use super::super::forward::{self, Answer, Effort, Sent};
use super::super::ingress::{Back, Session};
use super::super::intake::Intake;
use super::super::{Worker, headers};
use super::account::Account;
use super::interim::Interim;
use super::pacing::Pacing;
use super::record::record_movement;
use super::relay::{Label, relay};
use super::watch::Watch;
use super::{Judged, judge};

/// Sends the request along its itinerary and relays the answer.
pub(super) async fn run(
    mut account: Account,
    (session, back): (Rc<Session>, Back),
    mut intake: Intake,
    judged: Judged,
    itinerary: Itinerary,
    (parts, body): (Parts, Body),
) -> Response<Body> {
    let limits = account.snapshot.limits;
    let route = route_of(&judged.decision.trail, &account.snapshot.policy).expect("who proceeds has a route");
    let most_bytes = route.body.unwrap_or(limits.body);
    if body.size_hint().lower() > most_bytes {
        return account.refuse(Code::BodyTooLarge);
    }
    if let Some(upgrade) = intake.upgrade.take_if(|upgrade| !route.upgrades.contains(&upgrade.protocol)) {
        tracing::debug!(protocol = &*upgrade.protocol, "the route opens no such tunnel");
        if upgrade.is_connect() {
            return account.refuse(Code::MethodNotAllowed);
        }
        if matches!(back, Back::Stream(_)) {
            return account.refuse(Code::UpgradeRefused);
        }
        // Over HTTP/1.1 an upgrade is an offer: the request goes on without it.
    }
    let takes_interim = parts.version >= Version::HTTP_11;
    let pace = Pacing::of_request(parts.version, &parts.headers, &limits);
    let host = HeaderValue::from_str(&intake.authority).expect("a canonical host is plain text");
    let intake = Rc::new(intake);
    let watch = |account: &Account, at| Watch::new(&account.worker, &account.snapshot, &intake, account.arrival.ingress, at);
    let has_body = !body.is_end_stream();
    let body = if has_body {
        let snapshot = Arc::clone(&account.snapshot);
        let scrub =
            move |trailers: &mut http::HeaderMap| headers::scrub_trailers(trailers, |name| snapshot.intake.names_a_client(name));
        let metered = Metered::new(body, pace.allowance(most_bytes), Rc::clone(&account.request_body));
        Body::streamed(metered.scrubbed(scrub).watched(watch(&account, itinerary.first()).recheck()))
    } else {
        Body::empty()
    };
    if has_body && parts.headers.contains_key(EXPECT) {
        back.ask_for_body();
    }
    let mut request = Request::from_parts(parts, body);
    request.headers_mut().insert(HOST, host.clone());
    request.extensions_mut().clear();
    headers::rebuild(request.headers_mut(), &intake, &host);
    let told = intake.envelope.as_ref().and_then(|envelope| envelope.certificate.as_deref());
    let certificate = session.client_certificate.as_deref().or(told);
    headers::tell_certificate(request.headers_mut(), certificate);
    let interim = takes_interim.then(|| Interim::of(&mut request, back.clone()));
    let label = Label::of(&account, &judged);
    let whole = if has_body { pace.deadline } else { Some(pace.request_timeout) };
    let deadline = whole.map(|whole| account.started + whole);
    let (patience, idle, is_hurried) = (pace.response_timeout, pace.idle, pace.deadline.is_some());
    let (certificate, buffers) = (session.client_certificate.clone(), Rc::clone(&session.buffers));
    let mut journey = Journey { deadline, patience, idle, is_hurried, certificate, buffers, judged, second_try: false };
    let outcome = {
        let work = pin!(async {
            match journey.follow(&mut account, &intake, itinerary, request).await {
                Err(Stopped::Misdirected { spare: Some(spare) }) => journey.ask_again(&mut account, &intake, *spare).await,
                outcome => outcome,
            }
        });
        match interim {
            Some(interim) => interim.during(work, |fields| label.clears(fields)).await,
            None => work.await,
        }
    };
    match outcome {
        Ok((stop, answer)) => {
            let watch = watch(&account, stop.region());
            relay(account, &session, &intake, stop, answer, (back, watch, label))
        }
        Err(Stopped::Misdirected { .. }) => account.refuse(Code::PeersDisagree),
        Err(Stopped::Failed(code)) => {
            let code = account.request_body.broken.get().map_or(code, code_of_broken);
            account.refuse(code)
        }
    }
}

/// A request under way.
struct Journey {
    deadline: Option<Instant>,
    patience: Duration,
    idle: Duration,
    /// The deadline is the caller's own.
    is_hurried: bool,
    /// What the client has proven, for the owner.
    certificate: Option<Vec<u8>>,
    /// What the connection that it came on may have under way.
    buffers: Rc<Buffers>,
    judged: Judged,
    second_try: bool,
}

/// Why a journey ended without an answer.
enum Stopped {
    Failed(Code),
    /// A peer says that it does not own the request; `spare` is a copy of it, if it has no body.
    Misdirected {
        spare: Option<Box<Request<Body>>>,
    },
}

impl Journey {
    /// Tries the stops in order.
    async fn follow(
        &self,
        account: &mut Account,
        intake: &Intake,
        itinerary: Itinerary,
        mut request: Request<Body>,
    ) -> Result<(Stop, Answer), Stopped> {
        let (worker, snapshot) = (Rc::clone(&account.worker), std::sync::Arc::clone(&account.snapshot));
        let attempts = snapshot.limits.attempts;
        let request_body = Rc::clone(&account.request_body);
        let stops = itinerary.stops();
        let mut last = Code::UpstreamUnreachable;
        for (index, stop) in stops.iter().take(attempts).enumerate() {
            let is_local = stop.region() == snapshot.policy.local;
            self.record(account, *stop).await.map_err(Stopped::Failed)?;
            let mut spare = None;
            if is_local {
                // What was sealed for a peer that gave no answer is not for an upstream.
                request.headers_mut().remove("domicile-request");
            } else {
                self.seal(account, intake, &mut request, false);
                match self.clear_with_peer(account, intake, *stop, &request).await {
                    Ok(()) => {}
                    // Its body is untouched, so it may be asked again whole.
                    Err(Stopped::Misdirected { .. }) => return Err(Stopped::Misdirected { spare: Some(Box::new(request)) }),
                    Err(stopped) => return Err(stopped),
                }
                spare = request.body().is_end_stream().then(|| Box::new(forward::copy_head(&request)));
            }
            let is_last = index + 1 == stops.len().min(attempts);
            let effort = Effort {
                is_read: intake.is_read,
                deadline: self.deadline,
                patience: self.patience,
                idle: self.idle,
                is_hurried: self.is_hurried,
                attempts: attempts - index,
                keep_head: !is_last,
                body: &request_body,
                upgrade: intake.upgrade.as_ref().map(|upgrade| &*upgrade.protocol),
                client: account.arrival.client(intake.client),
                local: account.arrival.local,
                buffers: &self.buffers,
            };
            match forward::to_stop(&worker, &snapshot, *stop, request, effort).await {
                Ok(answer) => match answer.code().filter(|_| !is_local) {
                    Some(Code::Misdirected | Code::PeerMalformed) => return Err(Stopped::Misdirected { spare }),
                    // A peer that cannot serve a read is a failed try, as an upstream of ours would be.
                    Some(code)
                        if intake.is_read
                            && !is_last
                            && is_failure(code)
                            && spare.is_some()
                            && worker.load.retries.withdraw() =>
                    {
                        last = code;
                        request = *spare.expect("just seen");
                    }
                    _ => return Ok((*stop, answer)),
                },
                Err(failure) => {
                    last = failure.code;
                    match failure.again {
                        Some(again) if self.may_go_on(failure.sent, &worker) => request = again,
                        _ => break,
                    }
                }
            }
        }
        Err(Stopped::Failed(last))
    }

    /// Whether there is time, and budget where a try has cost somebody something, for another stop.
    fn may_go_on(&self, sent: Sent, worker: &Worker) -> bool {
        let in_time = self.deadline.is_none_or(|deadline| Instant::now() < deadline);
        in_time && (sent == Sent::Nothing || worker.load.retries.withdraw())
    }

    /// A peer said that it does not own the request: judge once more on what is known now, then give up.
    async fn ask_again(
        &mut self,
        account: &mut Account,
        intake: &Intake,
        spare: Request<Body>,
    ) -> Result<(Stop, Answer), Stopped> {
        account.snapshot = account.worker.snapshot();
        // A peer knows better than what a cookie remembers.
        self.judged = judge(&account.worker, &account.snapshot, intake, account.arrival.ingress, None);
        self.second_try = true;
        account.note(intake, &self.judged);
        match self.judged.decision.verdict.clone() {
            Verdict::Proceed(itinerary) => self.follow(account, intake, itinerary, spare).await,
            Verdict::Redirect(_) => Err(Stopped::Failed(Code::PeersDisagree)),
            Verdict::Refuse(code) => Err(Stopped::Failed(code)),
        }
    }

    /// Writes what must be written before data crosses a border; an error means that it may not cross.
    async fn record(&self, account: &Account, stop: Stop) -> Result<(), Code> {
        let local = account.snapshot.policy.local;
        match account.arrival.ingress {
            Ingress::Peer(peer) => record_movement(account, &self.judged, Direction::Answer, local, peer).await,
            Ingress::Client => record_movement(account, &self.judged, Direction::Request, local, stop.region()).await,
        }
    }

    /// Tells the peer what it needs to judge again.
    fn seal(&self, account: &Account, intake: &Intake, request: &mut Request<Body>, is_question: bool) {
        let policy = &account.snapshot.policy;
        let trail = &self.judged.decision.trail;
        let home = trail.home.as_ref();
        let envelope = Envelope {
            id: intake.id.clone(),
            client: intake.client,
            user: self.judged.user.clone(),
            home: home.and_then(|home| home.region()).map(|region| policy.region_name(region).to_owned()),
            evidence: home.and_then(|home| home.evidence()),
            country: trail.country.filter(|_| !trail.place_is_stale),
            classes: trail.classes.iter().map(|class| policy.class(class).name.to_string()).collect(),
            policy: policy.hash,
            certificate: self.certificate.clone(),
            is_https: intake.is_https,
            is_question,
            is_second_try: self.second_try,
        };
        headers::drop_baggage(request.headers_mut());
        if let Ok(value) = HeaderValue::from_str(&envelope.write()) {
            request.headers_mut().insert("domicile-request", value);
        }
    }

    /// Where the peer judges by another policy, or by one not known yet, no byte of a body is sent until it has cleared the head.
    async fn clear_with_peer(
        &self,
        account: &Account,
        intake: &Intake,
        stop: Stop,
        request: &Request<Body>,
    ) -> Result<(), Stopped> {
        let policy = &account.snapshot.policy;
        let theirs = account.worker.vitals().region(stop.region()).policy;
        if request.body().is_end_stream() || account.may_be_anywhere() || theirs == Some(policy.hash) {
            return Ok(());
        }
        let mut question = Request::new(Body::empty());
        *question.method_mut() = request.method().clone();
        *question.uri_mut() = request.uri().clone();
        *question.version_mut() = request.version();
        self.seal(account, intake, &mut question, true);
        question.headers_mut().insert(HOST, request.headers().get(HOST).cloned().ok_or(Stopped::Failed(Code::RequestMalformed))?);
        let effort = Effort {
            is_read: true,
            deadline: self.deadline,
            patience: account.snapshot.limits.response_timeout,
            idle: account.snapshot.limits.idle_timeout,
            is_hurried: false,
            attempts: 1,
            keep_head: false,
            body: &account.answer_body,
            upgrade: None,
            client: account.arrival.client(intake.client),
            local: account.arrival.local,
            buffers: &self.buffers,
        };
        let answer = forward::to_stop(&account.worker, &account.snapshot, stop, question, effort).await;
        let answer = answer.map_err(|failure| Stopped::Failed(failure.code))?;
        match answer.code() {
            None if answer.head.status == StatusCode::NO_CONTENT => Ok(()),
            Some(Code::Misdirected | Code::PeerMalformed) => Err(Stopped::Misdirected { spare: None }),
            Some(code) => Err(Stopped::Failed(code)),
            None => Err(Stopped::Failed(Code::UpstreamBad)),
        }
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

const fn code_of_broken(broken: super::super::body::Broken) -> Code {
    use super::super::body::Broken;
    match broken {
        Broken::TooLarge => Code::BodyTooLarge,
        Broken::Silent => Code::RequestTimeout,
        Broken::TooSlow => Code::RequestTimeout,
        Broken::BrokenOff => Code::RequestMalformed,
        Broken::NoLongerCleared => Code::NoLongerCleared,
        Broken::OutOfTime => Code::DeadlineExceeded,
    }
}
