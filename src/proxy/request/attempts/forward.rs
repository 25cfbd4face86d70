//! One attempt: sends a permitted request to one upstream or peer, and waits for the head of the response.

use std::fmt::Display;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use http::response::Parts;
use http::{HeaderName, Request, StatusCode};
use http_body::Body as _;
use tokio::time::Instant;

use crate::decision::permit::Permitted;
use crate::http::body::Body;
use crate::http::pool::{
    BoxedRequest, EXTENDED_CONNECT, Gateway, InformationalQueue, Reply, SendCause, SendError, SendOptions, StreamInFlight,
};
use crate::http::sent::Sent;
use crate::http::tunnel::Wire;
use crate::http::window::Buffers;
use crate::model::outcome::Code;
use crate::services::Outstanding;
use crate::transport::dial::{DialError, DialOptions};
use crate::transport::proxy_protocol;

use crate::proxy::body::Progress;
use crate::proxy::worker::Worker;
use crate::proxy::{Limits, Snapshot};

use super::plan::Selected;

/// A response: its head, its body or tunnel, and the counters that it holds until it ends.
pub(in crate::proxy::request) struct Response {
    pub head: Parts,
    pub rest: Rest,
    /// From the start of the attempt to the head; zero for a response of this proxy itself.
    pub took: Duration,
    /// Dropping it reports the end of the request to the load balancer.
    pub hold: ResponseCounters,
}

/// The part of a response after its head.
pub(in crate::proxy::request) enum Rest {
    Body(Body),
    Tunnel(Wire),
}

impl Response {
    /// A response of this proxy itself.
    pub fn of_proxy(response: http::Response<Body>) -> Self {
        let (head, body) = response.into_parts();
        Self { head, rest: Rest::Body(body), took: Duration::ZERO, hold: ResponseCounters::None }
    }

    fn of(reply: Reply, took: Duration, hold: ResponseCounters) -> Self {
        match reply {
            Reply::Answered(response) => {
                let (head, body) = response.into_parts();
                Self { head, rest: Rest::Body(body), took, hold }
            }
            Reply::Opened(head, wire) => Self { head, rest: Rest::Tunnel(wire), took, hold },
        }
    }

    /// Whether the status is 502, 503 or 504, with which a gateway in front of the app servers reports that none can serve.
    fn is_gateway_error(&self) -> bool {
        let failing = [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];
        matches!(self.rest, Rest::Body(_)) && failing.contains(&self.head.status)
    }
}

/// The counters that a response holds until it ends.
#[expect(dead_code, reason = "dropping them decrements the counters")]
pub(in crate::proxy::request) enum ResponseCounters {
    None,
    Upstream(Outstanding, Option<StreamInFlight>),
    Peer(StreamInFlight),
}

/// An attempt that ended without a response.
pub(in crate::proxy::request) struct Failure {
    pub code: Code,
    pub sent: Sent,
    /// The request, if it may be sent again.
    pub retry: Option<BoxedRequest>,
}

/// Whether another attempt may follow a failed one. If nothing was sent or processed, another attempt is always safe. A read
/// that was sent may be repeated while the retry budget lasts. A write that was sent is never repeated.
///
/// A pool moves an unsent request from a closed connection to another connection to the same server without this check,
/// because both belong to one attempt.
pub(in crate::proxy::request) fn may_retry(sent: Sent, is_read: bool, has_budget: bool, time_left: Duration) -> bool {
    if time_left.is_zero() {
        return false;
    }
    match sent {
        Sent::Nothing | Sent::Unprocessed => true,
        // The server closed the connection while it was idle, and the next attempt uses a new one, so this cannot repeat.
        Sent::Stale => is_read,
        Sent::Partly => is_read && has_budget,
    }
}

/// The timeouts of an attempt, and the data that its connection needs.
pub(in crate::proxy::request) struct AttemptOptions<'a> {
    /// For the log.
    pub request_id: &'a str,
    /// For all attempts together. A request with a body has a minimum rate instead of a deadline, unless the client
    /// sets a deadline.
    pub deadline: Option<Instant>,
    /// From the end of the request to the head of its response.
    pub response_timeout: Duration,
    /// How long a chunk of the request's body may wait to be sent.
    pub idle_timeout: Duration,
    /// The client set the deadline, so a timeout is not counted as a failure of the upstream.
    pub is_client_deadline: bool,
    /// The progress of the request's body. `response_timeout` starts when the body ends.
    pub body: &'a Progress,
    /// The protocol of the requested upgrade.
    pub upgrade: Option<&'a str>,
    /// Source address of the PROXY protocol header, for upstreams that expect one.
    pub client: SocketAddr,
    /// Destination address of that header.
    pub local: SocketAddr,
    /// The flow-control budget of the client's connection.
    pub buffers: &'a Rc<Buffers>,
    pub informational: Option<Rc<InformationalQueue>>,
    /// The last attempt found that the server had closed an idle connection.
    pub is_fresh: bool,
}

impl AttemptOptions<'_> {
    pub fn time_left(&self) -> Duration {
        self.deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()))
    }

    fn send_options(&self, limits: &Limits, round_trip: Duration, greeting: Option<bytes::Bytes>) -> SendOptions {
        let (timeout, write_stall) = (limits.connect_timeout, limits.idle_timeout.max(limits.tunnel_idle));
        SendOptions {
            dial: DialOptions { timeout, write_stall, greeting, is_counted: true },
            buffers: Rc::clone(self.buffers),
            round_trip,
            max_idle: limits.idle_upstream_connections,
            informational: self.informational.clone(),
            is_fresh: self.is_fresh,
        }
    }
}

/// Sends a request to the gateway of its region. `copy` is the request for another attempt, if this one fails after
/// sending.
pub(in crate::proxy::request) async fn to_peer(
    worker: &Worker,
    snapshot: &Snapshot,
    gateway: &Gateway,
    permitted: Permitted<BoxedRequest>,
    copy: Option<BoxedRequest>,
    options: &AttemptOptions<'_>,
) -> Result<Response, Failure> {
    let region = permitted.region();
    let has_body = !permitted.request().body().is_end_stream();
    let round_trip = snapshot.round_trip_to(region, &worker.vitals());
    let send_options = options.send_options(&snapshot.limits, round_trip, None);
    let connections = snapshot.limits.peer_connections;
    let work = pin!(async {
        let pool = &worker.peer_pool;
        match options.upgrade {
            Some(protocol) => Box::pin(pool.open(gateway, connections, permitted, protocol, &send_options)).await,
            None => {
                let sent = pool.send(gateway, connections, permitted, &send_options).await;
                sent.map(|(response, in_flight)| (Reply::Answered(response), in_flight))
            }
        }
    });
    let started = Instant::now();
    match head_of(work, worker, options, has_body).await {
        Some(Ok((reply, in_flight))) => Ok(Response::of(reply, started.elapsed(), ResponseCounters::Peer(in_flight))),
        Some(Err(error)) => {
            warn_of_peer(worker, snapshot.policy().region_name(region), options, &error.cause);
            Err(failure(error, copy))
        }
        None => {
            warn_of_peer(worker, snapshot.policy().region_name(region), options, &timed_out(started));
            Err(Failure { code: Code::UpstreamTimeout, sent: Sent::Partly, retry: copy })
        }
    }
}

fn timed_out(started: Instant) -> String {
    format!("timeout after {:.1} s", started.elapsed().as_secs_f64())
}

/// Logs that a peer did not respond, unless the same was logged a moment ago.
fn warn_of_peer(worker: &Worker, region: &str, options: &AttemptOptions<'_>, cause: &dyn Display) {
    if let Some(suppressed) = worker.warnings.admit("no response from a peer", region, std::time::Instant::now()) {
        tracing::warn!(region, request = options.request_id, %cause, suppressed, "no response from a peer");
    }
}

/// Logs that an upstream did not respond, unless the same was logged a moment ago.
fn warn_of_upstream(worker: &Worker, service: &str, upstream: &str, options: &AttemptOptions<'_>, cause: &dyn Display) {
    if let Some(suppressed) = worker.warnings.admit("no response from an upstream", upstream, std::time::Instant::now()) {
        tracing::warn!(service, upstream, request = options.request_id, %cause, suppressed, "no response from an upstream");
    }
}

/// Sends a request to one upstream, and records success or failure for the ejection of the upstream.
pub(in crate::proxy::request) async fn to_upstream(
    worker: &Worker,
    limits: &Limits,
    Selected { service, upstream, outstanding }: &mut Selected,
    permitted: Permitted<BoxedRequest>,
    copy: Option<BoxedRequest>,
    options: &AttemptOptions<'_>,
) -> Result<Response, Failure> {
    let has_body = !permitted.request().body().is_end_stream();
    let greeting = upstream.proxy_protocol.map(|version| proxy_protocol::write(version, options.client, options.local));
    let send_options = options.send_options(limits, Duration::ZERO, greeting);
    let outstanding = outstanding.take().expect("a selected upstream is attempted once");
    let work = pin!(async {
        let (pool, server) = (&worker.upstream_pool, &upstream.server);
        match options.upgrade {
            Some(protocol) => Box::pin(pool.open(server, permitted, protocol, &send_options)).await,
            None => {
                let sent = pool.send(server, permitted, &send_options).await;
                sent.map(|(response, in_flight)| (Reply::Answered(response), in_flight))
            }
        }
    });
    let started = Instant::now();
    let outcome = head_of(work, worker, options, has_body).await;
    let count = |result| worker.metrics.upstream_request(&service.settings.name, &upstream.label, result);
    match outcome {
        Some(Ok((reply, in_flight))) => {
            let took = started.elapsed();
            worker.metrics.upstream_response(
                (service.id.index(), upstream.fingerprint),
                &service.settings.name,
                &upstream.label,
                took,
            );
            let response = Response::of(reply, took, ResponseCounters::Upstream(outstanding, in_flight));
            service.note(upstream, !response.is_gateway_error());
            Ok(response)
        }
        // The request's body was aborted, so this is not a failure of the upstream.
        Some(Err(error)) if options.body.failure.get().is_some() => {
            count("abandoned");
            Err(failure(error, None))
        }
        // This process has no file descriptor left, so this is not a failure of the upstream.
        Some(Err(error)) if matches!(error.cause, SendCause::Dial(DialError::OutOfDescriptors { .. })) => {
            count("unsent");
            Err(failure(error, None))
        }
        Some(Err(error)) => {
            count("failed");
            // The server never advertised extended CONNECT, so this is not a failure of the upstream.
            if !matches!(error.cause, SendCause::Dial(DialError::OtherProtocol { wanted: EXTENDED_CONNECT, .. })) {
                service.note(upstream, false);
            }
            warn_of_upstream(worker, &service.settings.name, upstream.authority(), options, &error.cause);
            Err(failure(error, copy))
        }
        None => {
            count("timeout");
            if !options.is_client_deadline {
                service.note(upstream, false);
                warn_of_upstream(worker, &service.settings.name, upstream.authority(), options, &timed_out(started));
            }
            Err(Failure { code: Code::UpstreamTimeout, sent: Sent::Partly, retry: copy })
        }
    }
}

/// Waits for the head of a response. Returns `None` if `response_timeout` has passed since the end of the request's
/// body, if the server has not read the body for `idle_timeout`, or if the deadline has passed.
async fn head_of<T>(
    mut work: Pin<&mut impl Future<Output = T>>,
    worker: &Worker,
    options: &AttemptOptions<'_>,
    has_body: bool,
) -> Option<T> {
    let until_response = |now: Instant| options.deadline.into_iter().fold(now + options.response_timeout, Instant::min);
    let deadline = worker.deadlines.deadline();
    if has_body {
        if let Some(at) = options.deadline {
            deadline.set(at);
        }
        let mut uploaded = Box::pin(async {
            tokio::select! {
                () = options.body.ended() => true,
                () = options.body.send_stalled(options.idle_timeout) => false,
            }
        });
        let first = poll_fn(|cx| {
            if let Poll::Ready(head) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(Some(head)));
            }
            match uploaded.as_mut().poll(cx) {
                Poll::Ready(true) => Poll::Ready(None),
                Poll::Ready(false) => Poll::Ready(Some(None)),
                Poll::Pending => deadline.poll_passed(cx).map(|()| Some(None)),
            }
        });
        if let Some(outcome) = first.await {
            return outcome;
        }
    }
    deadline.set(until_response(Instant::now()));
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(head) => Poll::Ready(Some(head)),
        Poll::Pending => deadline.poll_passed(cx).map(|()| None),
    })
    .await
}

fn failure(error: SendError, copy: Option<BoxedRequest>) -> Failure {
    let code = match error.cause {
        SendCause::Dial(DialError::OutOfDescriptors { .. }) => Code::Overloaded,
        SendCause::Dial(_) => Code::UpstreamUnreachable,
        SendCause::NotPermitted => Code::NoLongerCleared,
        SendCause::Broken(_) | SendCause::Form | SendCause::OtherUpgrade => Code::UpstreamBad,
    };
    Failure { code, sent: error.sent, retry: error.request.or(copy) }
}

/// A copy of a request without its body, for another attempt.
pub(in crate::proxy::request) fn copy_head(request: &Request<Body>) -> BoxedRequest {
    let mut copy = Box::new(Request::new(Body::empty()));
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    copy
}

/// Copies every line of one header field from one request to another.
pub(in crate::proxy::request) fn copy_field(from: &Request<Body>, to: &mut Request<Body>, name: &HeaderName) {
    let lines: Vec<_> = from.headers().get_all(name).iter().cloned().collect();
    to.headers_mut().remove(name);
    for line in lines {
        to.headers_mut().append(name, line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_was_sent_is_never_repeated() {
        let second = Duration::from_secs(1);
        for has_budget in [false, true] {
            assert!(may_retry(Sent::Nothing, false, has_budget, second));
            assert!(may_retry(Sent::Unprocessed, false, has_budget, second));
            assert!(!may_retry(Sent::Unprocessed, true, has_budget, Duration::ZERO));
            assert!(!may_retry(Sent::Partly, false, has_budget, second));
            assert!(!may_retry(Sent::Nothing, true, has_budget, Duration::ZERO));
        }
        assert!(may_retry(Sent::Partly, true, true, second));
        assert!(!may_retry(Sent::Partly, true, false, second), "the retry budget is spent");
    }
}
