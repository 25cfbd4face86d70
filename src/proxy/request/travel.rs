//! Sends a cleared request on its way: a line in the ledger first, then the stops of its itinerary in order.

use std::rc::Rc;
use std::time::Duration;

use http::header::{HOST, HeaderValue};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::audit::{Count, Direction, Movement};
use crate::decision::facts::Ingress;
use crate::decision::may_return;
use crate::decision::policy::ClassSet;
use crate::decision::residency::Stays;
use crate::decision::verdict::{Itinerary, Stop, Trail, Verdict};
use crate::envelope::Envelope;
use crate::model::jurisdiction::Jurisdiction;
use crate::model::outcome::Code;
use crate::model::region::RegionId;
use crate::transport::body::Body;

use super::super::body::{Allowance, Metered};
use super::super::forward::{self, Answer, Effort};
use super::super::headers;
use super::super::intake::Intake;
use super::account::Account;
use super::{Judged, judge};

/// Sends the request along its itinerary and relays the answer.
pub(super) async fn run(
    mut account: Account,
    intake: Intake,
    judged: Judged,
    itinerary: Itinerary,
    parts: Parts,
    body: Incoming,
) -> Response<Body> {
    let limits = account.snapshot.limits;
    if body.size_hint().lower() > limits.body {
        return account.refuse(Code::BodyTooLarge);
    }
    let host = match parts.headers.get(HOST).cloned() {
        Some(host) => host,
        None => match parts.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok()) {
            Some(host) => host,
            None => return account.refuse(Code::RequestMalformed),
        },
    };
    let deadline = account.started + limits.request_timeout;
    let allowance = Allowance { most_bytes: limits.body, idle: limits.idle_timeout, deadline };
    let body = if body.is_end_stream() {
        Body::empty()
    } else {
        {
            let snapshot = std::sync::Arc::clone(&account.snapshot);
            let scrub = move |trailers: &mut http::HeaderMap| {
                headers::scrub_trailers(trailers, |name| snapshot.intake.names_a_client(name))
            };
            Body::streamed(Metered::new(body, allowance, Rc::clone(&account.request_body)).scrubbed(scrub))
        }
    };
    let mut request = Request::from_parts(parts, body);
    headers::rebuild(request.headers_mut(), &intake, &host);
    let mut journey = Journey { host, deadline, judged, second_try: false };
    let outcome = match journey.follow(&mut account, &intake, itinerary, request).await {
        Err(Stopped::Misdirected { spare: Some(spare) }) => journey.ask_again(&mut account, &intake, *spare).await,
        outcome => outcome,
    };
    match outcome {
        Ok((stop, answer)) => relay(account, &intake, stop, answer, deadline).await,
        Err(Stopped::Misdirected { .. }) => account.refuse(Code::PeersDisagree),
        Err(Stopped::Failed(code)) => {
            let code = account.request_body.broken.get().map_or(code, code_of_broken);
            account.refuse(code)
        }
    }
}

/// A request under way.
struct Journey {
    host: HeaderValue,
    deadline: Instant,
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
            forward::address(&mut request, &self.host, !is_local).ok_or(Stopped::Failed(Code::RequestMalformed))?;
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
                attempts: attempts - index,
                keep_head: !is_last,
                body: &request_body,
            };
            match forward::to_stop(&worker, &snapshot, *stop, request, effort).await {
                Ok(answer) => match code_of(&answer).filter(|_| !is_local) {
                    Some(Code::Misdirected | Code::PeerMalformed) => return Err(Stopped::Misdirected { spare }),
                    // A peer that cannot serve a read is a failed try, as an upstream of ours would be.
                    Some(code) if intake.is_read && !is_last && is_failure(code) && spare.is_some() => {
                        last = code;
                        request = *spare.expect("just seen");
                    }
                    _ => return Ok((*stop, answer)),
                },
                Err(failure) => {
                    last = failure.code;
                    match failure.again {
                        Some(again) if Instant::now() < self.deadline => request = again,
                        _ => break,
                    }
                }
            }
        }
        Err(Stopped::Failed(last))
    }

    /// A peer said that it does not own the request: judge once more on what is known now, then give up.
    async fn ask_again(
        &mut self,
        account: &mut Account,
        intake: &Intake,
        spare: Request<Body>,
    ) -> Result<(Stop, Answer), Stopped> {
        account.snapshot = account.worker.snapshot();
        self.judged = judge(&account.worker, &account.snapshot, intake, account.arrival.ingress);
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
        let effort = Effort { is_read: true, deadline: self.deadline, attempts: 1, keep_head: false, body: &account.answer_body };
        let answer = forward::to_stop(&account.worker, &account.snapshot, stop, question, effort).await;
        let answer = answer.map_err(|failure| Stopped::Failed(failure.code))?;
        match code_of(&answer) {
            None if answer.response.status() == StatusCode::NO_CONTENT => Ok(()),
            Some(Code::Misdirected | Code::PeerMalformed) => Err(Stopped::Misdirected { spare: None }),
            Some(code) => Err(Stopped::Failed(code)),
            None => Err(Stopped::Failed(Code::UpstreamBad)),
        }
    }
}

/// A line for what crosses a border with data that may not be anywhere; a count for what may.
async fn record_movement(
    account: &Account,
    judged: &Judged,
    direction: Direction,
    from: RegionId,
    to: RegionId,
) -> Result<(), Code> {
    let policy = &account.snapshot.policy;
    if policy.jurisdiction_of(from) == policy.jurisdiction_of(to) {
        return Ok(());
    }
    let ledger = match &account.worker.shared.ledger {
        Some(ledger) => ledger,
        None if account.may_be_anywhere() => return Ok(()),
        // A reload may have brought borders to a process that was started without a ledger.
        None => return Err(Code::LedgerUnavailable),
    };
    let (from_name, to_name) = (policy.region_name(from), policy.region_name(to));
    if account.may_be_anywhere() {
        ledger.count(Count {
            what: "movement",
            code: "",
            class: account.class().into(),
            from: from_name.into(),
            to: to_name.into(),
        });
        return Ok(());
    }
    let trail = &judged.decision.trail;
    let user = trail.home.map_or(Jurisdiction::Unknown, |home| home.jurisdiction());
    let movement = Movement {
        request: account.id(),
        direction,
        from: from_name,
        to: to_name,
        route: crate::decision::route_of(trail, policy).map_or("none", |route| &route.name),
        classes: trail.classes.iter().map(|class| &*policy.class(class).name).collect(),
        user: account.user(),
        jurisdiction: policy.jurisdiction_name(user),
        evidence: trail.home.and_then(|home| home.evidence()).map(|evidence| evidence.as_str()),
        bases: bases(account, trail, user, to),
        reported: trail.reported,
        policy: policy.hash,
    };
    ledger.record(&movement).await.map_err(|_| Code::LedgerUnavailable)
}

/// The legal bases without which the data could not be processed in `to`.
fn bases<'a>(account: &'a Account, trail: &Trail, user: Jurisdiction, to: RegionId) -> Vec<&'a str> {
    let policy = &account.snapshot.policy;
    let place = policy.jurisdiction_of(to);
    let of_class = |class| {
        let rule = &policy.class(class).rule;
        let at_home = rule.stays == Stays::Home && user == place;
        let transfers = rule.transfers_from(user, trail.today).filter(move |transfer| !at_home && transfer.to.contains(place));
        transfers.map(|transfer| &*transfer.basis)
    };
    trail.classes.iter().flat_map(of_class).collect()
}

/// Relays an answer: its label judged first, its fields scrubbed, its body counted.
async fn relay(mut account: Account, intake: &Intake, stop: Stop, answer: Answer, deadline: Instant) -> Response<Body> {
    account.served_by = Some(stop.region());
    // Only a peer's word counts: an upstream could say anything.
    if stop.region() != account.snapshot.policy.local {
        account.code = code_of(&answer);
    }
    let (mut parts, body) = answer.response.into_parts();
    if let Err(code) = judge_label(&account, intake, &parts.headers) {
        return account.refuse(code);
    }
    let peer_code = account.code.filter(|_| matches!(account.arrival.ingress, Ingress::Peer(_)));
    headers::scrub_answer(&mut parts.headers);
    if let Some(code) = peer_code {
        parts.headers.insert("domicile-code", HeaderValue::from_static(code.as_str()));
    }
    account.answered(parts.status);
    let limits = account.snapshot.limits;
    let allowance = Allowance {
        most_bytes: u64::MAX,
        idle: limits.idle_timeout,
        deadline: deadline.max(Instant::now() + Duration::from_secs(1)),
    };
    let progress = Rc::clone(&account.answer_body);
    let hold = answer.hold;
    let body = Metered::new(body, allowance, progress).scrubbed(|trailers| headers::scrub_trailers(trailers, |_| false)).then(
        move || {
            drop(hold);
            account.tell();
        },
    );
    Response::from_parts(parts, Body::streamed(body))
}

/// An upstream may say what its answer holds; what its label does not clear for the asking region stays here.
fn judge_label(account: &Account, intake: &Intake, answer: &http::HeaderMap) -> Result<(), Code> {
    let Ingress::Peer(peer) = account.arrival.ingress else { return Ok(()) };
    let policy = &account.snapshot.policy;
    let refusal = if intake.is_read { Code::AnswerNotCleared } else { Code::AnswerWithheld };
    let mut label = ClassSet::EMPTY;
    for value in answer.get_all("domicile-data-class") {
        for name in value.to_str().map_err(|_| refusal)?.split(',').map(str::trim) {
            let class = policy.find_class(name).ok_or(refusal)?;
            label = label.union(ClassSet::only(class));
        }
    }
    if label == ClassSet::EMPTY {
        return Ok(());
    }
    let trail = &account.decision.as_ref().expect("an answered request was judged").trail;
    if may_return(trail, label, peer, policy) { Ok(()) } else { Err(refusal) }
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

/// The code by which a peer says why it refused.
fn code_of(answer: &Answer) -> Option<Code> {
    let code = answer.response.headers().get("domicile-code")?;
    Code::ALL.iter().copied().find(|known| code == known.as_str())
}

const fn code_of_broken(broken: super::super::body::Broken) -> Code {
    use super::super::body::Broken;
    match broken {
        Broken::TooLarge => Code::BodyTooLarge,
        Broken::Silent => Code::RequestTimeout,
        Broken::DeadlineExceeded => Code::DeadlineExceeded,
    }
}
