//! Takes a request along its itinerary: here to an upstream, elsewhere to the region's own proxy.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http::response::Parts;
use http_body::Body as _;
use tokio::time::Instant;

use crate::decision::verdict::Stop;
use crate::http::body::Body;
use crate::http::pool::{EXTENDED_CONNECT, InFlight, Reply, SendCause, SendError, SendOptions};
use crate::http::tunnel::Wire;
use crate::http::window::Buffers;
use crate::model::outcome::Code;
use crate::transport::dial::{DialError, DialOptions};
use crate::transport::proxy_protocol;
use crate::upstreams::{Busy, Taken, Upstream};

use super::body::Progress;
use super::{Snapshot, Worker};

/// An answer's head, what follows it, and what it keeps busy until that has ended.
pub struct Answer {
    pub head: Parts,
    pub rest: Rest,
    /// Dropping it tells the balance that the request is over.
    pub hold: Hold,
}

/// What follows an answer's head.
pub enum Rest {
    Body(Body),
    Tunnel(Wire),
}

impl Answer {
    fn of(reply: Reply, hold: Hold) -> Self {
        match reply {
            Reply::Answered(response) => {
                let (head, body) = response.into_parts();
                Self { head, rest: Rest::Body(body), hold }
            }
            Reply::Opened(head, wire) => Self { head, rest: Rest::Tunnel(wire), hold },
        }
    }

    /// The code by which a peer says why it refused.
    pub fn code(&self) -> Option<Code> {
        let code = self.head.headers.get("domicile-code")?;
        Code::ALL.iter().copied().find(|known| code == known.as_str())
    }
}

/// What is busy with a request until its answer has ended.
pub enum Hold {
    Upstream(Busy, Option<InFlight>),
    Peer(InFlight),
}

/// A try that brought no answer.
pub struct Failure {
    pub code: Code,
    pub sent: Sent,
    /// The request, if it may be tried elsewhere.
    pub again: Option<Request<Body>>,
}

/// What was sent when a try failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    Nothing,
    Something,
}

/// Whether a failed try may be followed by another: nothing sent is always safe; a write that was sent is never repeated.
pub fn may_try_next(sent: Sent, is_read: bool, attempts_left: usize, time_left: Duration) -> bool {
    attempts_left > 0 && !time_left.is_zero() && (sent == Sent::Nothing || is_read)
}

/// How a request is tried: what it may cost, and what it is.
#[derive(Clone, Copy)]
pub struct Effort<'a> {
    pub is_read: bool,
    /// For all tries together. A body has its own pace, so a request with one has none unless its caller says so.
    pub deadline: Option<Instant>,
    /// From the end of the request to the head of its answer.
    pub patience: Duration,
    /// How long a piece of the request's body may lie untaken.
    pub idle: Duration,
    /// The deadline is the caller's own: missing it is nobody's fault.
    pub is_hurried: bool,
    pub attempts: usize,
    /// There is somewhere else to try, so a read's head is kept.
    pub keep_head: bool,
    /// What has become of the request's body: the wait for an answer begins at its end.
    pub body: &'a Progress,
    /// What the connection is to become.
    pub upgrade: Option<&'a str>,
    /// Whose request it is, and where it came in: for upstreams that are told by the PROXY protocol.
    pub client: SocketAddr,
    pub local: SocketAddr,
    /// What the connection that it came on may have under way.
    pub buffers: &'a Rc<Buffers>,
}

impl Effort<'_> {
    fn time_left(&self) -> Duration {
        self.deadline.map_or(Duration::MAX, |deadline| deadline - Instant::now())
    }
}

/// Sends a request to one stop of its itinerary; locally, to one upstream after another.
pub async fn to_stop(
    worker: &Worker,
    snapshot: &Snapshot,
    stop: Stop,
    request: Request<Body>,
    effort: Effort<'_>,
) -> Result<Answer, Failure> {
    if stop.region() == snapshot.policy.local {
        return to_upstreams(worker, snapshot, request, effort).await;
    }
    let Some(gateway) = snapshot.gateways.get(&stop.region()) else {
        return Err(Failure { code: Code::UpstreamUnreachable, sent: Sent::Nothing, again: Some(request) });
    };
    let limits = &snapshot.limits;
    let (timeout, write_stall, buffers) = (limits.connect_timeout, stall_of(snapshot), Rc::clone(effort.buffers));
    let options = SendOptions { dial: DialOptions { timeout, write_stall, greeting: None }, buffers };
    let copy = copy_of_read(&request, effort);
    let has_body = !request.body().is_end_stream();
    let (region, connections) = (stop.region(), limits.peer_connections);
    let work = async {
        let pool = &worker.peer_pool;
        match effort.upgrade {
            Some(protocol) => pool.open(region, gateway, connections, request, protocol, &options).await,
            None => {
                let sent = pool.send(region, gateway, connections, request, &options).await;
                sent.map(|(response, in_flight)| (Reply::Answered(response), in_flight))
            }
        }
    };
    match answer_of(work, effort, has_body).await {
        Some(Ok((reply, in_flight))) => Ok(Answer::of(reply, Hold::Peer(in_flight))),
        Some(Err(error)) => {
            tracing::warn!(region = snapshot.policy.region_name(stop.region()), cause = %error.cause, "a peer gave no answer");
            Err(failure(error, copy))
        }
        None => Err(Failure { code: Code::UpstreamTimeout, sent: Sent::Something, again: copy }),
    }
}

async fn to_upstreams(
    worker: &Worker,
    snapshot: &Snapshot,
    mut request: Request<Body>,
    effort: Effort<'_>,
) -> Result<Answer, Failure> {
    let limits = &snapshot.limits;
    let mut tried: Vec<Arc<Upstream>> = Vec::new();
    worker.load.retries.deposit();
    loop {
        let deadline = effort.deadline.map(Instant::into_std);
        let (upstream, busy) = match worker.load.take_in_turn(&snapshot.upstreams, &tried, deadline).await {
            Taken::One(upstream, busy) => (upstream, busy),
            Taken::None => return Err(Failure { code: Code::UpstreamUnreachable, sent: Sent::Nothing, again: Some(request) }),
            Taken::Full => return Err(Failure { code: Code::Overloaded, sent: Sent::Nothing, again: Some(request) }),
        };
        let has_body = !request.body().is_end_stream();
        let more = Effort { keep_head: snapshot.upstreams.all().len() > tried.len() + 1 || effort.keep_head, ..effort };
        let copy = copy_of_read(&request, more);
        let greeting = upstream.proxy_protocol.map(|version| proxy_protocol::write(version, effort.client, effort.local));
        let (timeout, write_stall, buffers) = (limits.connect_timeout, stall_of(snapshot), Rc::clone(effort.buffers));
        let options = SendOptions { dial: DialOptions { timeout, write_stall, greeting }, buffers };
        let work = async {
            let (pool, server) = (&worker.upstream_pool, &upstream.server);
            match effort.upgrade {
                Some(protocol) => pool.open(server, request, protocol, &options).await,
                None => {
                    let sent = pool.send(server, request, &options).await;
                    sent.map(|(response, in_flight)| (Reply::Answered(response), in_flight))
                }
            }
        };
        let outcome = answer_of(work, effort, has_body).await;
        let failure = match outcome {
            Some(Ok((reply, in_flight))) => {
                worker.metrics.upstream_request(upstream.authority(), "answered");
                snapshot.upstreams.note(&upstream, !is_gateway_error(&reply));
                return Ok(Answer::of(reply, Hold::Upstream(busy, in_flight)));
            }
            Some(Err(error)) if effort.body.broken.get().is_some() => {
                // The client broke it: no fault of the upstream's.
                worker.metrics.upstream_request(upstream.authority(), "abandoned");
                return Err(failure(error, None));
            }
            Some(Err(error)) if matches!(error.cause, SendCause::Dial(DialError::OutOfDescriptors { .. })) => {
                // Ours alone.
                worker.metrics.upstream_request(upstream.authority(), "unsent");
                return Err(failure(error, None));
            }
            Some(Err(error)) => {
                worker.metrics.upstream_request(upstream.authority(), "failed");
                // What it has never said it speaks, it may go on not speaking.
                if !matches!(error.cause, SendCause::Dial(DialError::OtherProtocol { wanted: EXTENDED_CONNECT, .. })) {
                    snapshot.upstreams.note(&upstream, false);
                }
                tracing::warn!(upstream = upstream.authority(), cause = %error.cause, "an upstream gave no answer");
                failure(error, copy)
            }
            None => {
                worker.metrics.upstream_request(upstream.authority(), "timeout");
                if !effort.is_hurried {
                    snapshot.upstreams.note(&upstream, false);
                }
                Failure { code: Code::UpstreamTimeout, sent: Sent::Something, again: copy }
            }
        };
        tried.push(upstream);
        let sent = failure.sent;
        // What was never sent costs the upstreams nothing: each may be tried.
        let most = if sent == Sent::Nothing { snapshot.upstreams.all().len() } else { effort.attempts };
        let left = most.saturating_sub(tried.len());
        let others = snapshot
            .upstreams
            .all()
            .iter()
            .any(|upstream| upstream.is_up() && !tried.iter().any(|other| Arc::ptr_eq(other, upstream)));
        match failure.again {
            Some(again)
                if others
                    && may_try_next(sent, effort.is_read, left, effort.time_left())
                    && (sent == Sent::Nothing || worker.load.retries.withdraw()) =>
            {
                request = again;
            }
            again => return Err(Failure { again, ..failure }),
        }
    }
}

/// What an upstream says that cannot serve, as a gateway before its own servers would.
fn is_gateway_error(reply: &Reply) -> bool {
    use http::StatusCode;
    let failing = [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];
    matches!(reply, Reply::Answered(answer) if failing.contains(&answer.status()))
}

/// How long a connection may take nothing of what is written to it: the last resort, behind what is told of one request.
fn stall_of(snapshot: &Snapshot) -> Duration {
    snapshot.limits.idle_timeout.max(snapshot.limits.tunnel_idle)
}

/// Waits for the head of an answer: no longer than patience lasts from the end of the request's body, not for one who takes
/// nothing of it, and never past the deadline.
async fn answer_of<T>(work: impl Future<Output = T>, effort: Effort<'_>, has_body: bool) -> Option<T> {
    let too_late = async {
        if has_body {
            tokio::select! {
                () = effort.body.ended() => {}
                () = effort.body.left_lying(effort.idle) => return,
            }
        }
        tokio::time::sleep(effort.patience).await;
    };
    let deadline = async {
        match effort.deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        answer = work => Some(answer),
        () = too_late => None,
        () = deadline => None,
    }
}

fn failure(error: SendError, copy: Option<Request<Body>>) -> Failure {
    let code = match error.cause {
        SendCause::Dial(DialError::OutOfDescriptors { .. }) => Code::Overloaded,
        SendCause::Dial(_) => Code::UpstreamUnreachable,
        SendCause::Broken(_) | SendCause::Form | SendCause::OtherUpgrade => Code::UpstreamBad,
    };
    let sent = if error.unsent.is_some() { Sent::Nothing } else { Sent::Something };
    Failure { code, sent, again: error.unsent.map(|request| *request).or(copy) }
}

/// A copy of a read without a body, if there is somewhere else to send it.
fn copy_of_read(request: &Request<Body>, effort: Effort<'_>) -> Option<Request<Body>> {
    if !effort.keep_head || !effort.is_read || !request.body().is_end_stream() {
        return None;
    }
    Some(copy_head(request))
}

/// The head of a request, for another try.
pub fn copy_head(request: &Request<Body>) -> Request<Body> {
    let mut copy = Request::new(Body::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_was_sent_is_never_repeated() {
        let second = Duration::from_secs(1);
        assert!(may_try_next(Sent::Nothing, false, 1, second));
        assert!(may_try_next(Sent::Something, true, 1, second));
        assert!(!may_try_next(Sent::Something, false, 9, second));
        assert!(!may_try_next(Sent::Nothing, true, 0, second));
        assert!(!may_try_next(Sent::Nothing, true, 1, Duration::ZERO));
    }
}
