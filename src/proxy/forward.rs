//! Takes a request along its itinerary: here to an upstream, elsewhere to the region's own proxy.

use std::sync::Arc;
use std::time::Duration;

use http::header::{COOKIE, HOST, HeaderValue, TRANSFER_ENCODING};
use http::{Request, Response, Uri, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::decision::verdict::Stop;
use crate::model::outcome::Code;
use crate::transport::body::Body;
use crate::transport::pool::{InFlight, SendCause, SendError};
use crate::upstreams::{Busy, Upstream};

use super::body::Progress;
use super::{Snapshot, Worker};

/// An answer's head, and what it keeps busy until its body has ended.
pub struct Answer {
    pub response: Response<Incoming>,
    /// Dropping it tells the balance that the request is over.
    pub hold: Hold,
}

/// What is busy with a request until its answer has ended.
pub enum Hold {
    Upstream(Busy),
    Peer(InFlight),
}

/// A try that brought no answer.
pub struct Failure {
    pub code: Code,
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
    pub deadline: Instant,
    pub attempts: usize,
    /// There is somewhere else to try, so a read's head is kept.
    pub keep_head: bool,
    /// What has become of the request's body: the wait for an answer begins at its end.
    pub body: &'a Progress,
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
        return Err(Failure { code: Code::UpstreamUnreachable, again: Some(request) });
    };
    let limits = &snapshot.limits;
    let copy = copy_of_read(&request, effort);
    let has_body = !request.body().is_end_stream();
    let work = worker.peer_pool.send(stop.region(), gateway, limits.peer_connections, request, limits.connect_timeout);
    match answer_of(work, limits.response_timeout, effort, has_body).await {
        Some(Ok((response, in_flight))) => Ok(Answer { response, hold: Hold::Peer(in_flight) }),
        Some(Err(error)) => {
            tracing::warn!(region = snapshot.policy.region_name(stop.region()), cause = %error.cause, "a peer gave no answer");
            Err(failure(error, copy))
        }
        None => Err(Failure { code: Code::UpstreamTimeout, again: copy }),
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
    loop {
        let Some((upstream, busy)) = worker.load.take(&snapshot.upstreams, &tried) else {
            return Err(Failure { code: Code::UpstreamUnreachable, again: Some(request) });
        };
        let has_body = !request.body().is_end_stream();
        let more = Effort { keep_head: snapshot.upstreams.all().len() > tried.len() + 1 || effort.keep_head, ..effort };
        let copy = copy_of_read(&request, more);
        let work = worker.upstream_pool.send(&upstream.authority, request, limits.connect_timeout);
        let outcome = answer_of(work, limits.response_timeout, effort, has_body).await;
        let failure = match outcome {
            Some(Ok(response)) => {
                worker.metrics.upstream_request(&upstream.authority, "answered");
                return Ok(Answer { response, hold: Hold::Upstream(busy) });
            }
            Some(Err(error)) if effort.body.broken.get().is_some() => {
                // The client broke it: no fault of the upstream's.
                worker.metrics.upstream_request(&upstream.authority, "abandoned");
                return Err(failure(error, None));
            }
            Some(Err(error)) => {
                worker.metrics.upstream_request(&upstream.authority, "failed");
                tracing::warn!(upstream = &*upstream.authority, cause = %error.cause, "an upstream gave no answer");
                let sent = if error.unsent.is_some() { Sent::Nothing } else { Sent::Something };
                (sent, failure(error, copy))
            }
            None => {
                worker.metrics.upstream_request(&upstream.authority, "timeout");
                (Sent::Something, Failure { code: Code::UpstreamTimeout, again: copy })
            }
        };
        tried.push(upstream);
        let (sent, failure) = failure;
        // What was never sent costs the upstreams nothing: each may be tried.
        let most = if sent == Sent::Nothing { snapshot.upstreams.all().len() } else { effort.attempts };
        let left = most.saturating_sub(tried.len());
        let others = snapshot
            .upstreams
            .all()
            .iter()
            .any(|upstream| upstream.is_up() && !tried.iter().any(|other| Arc::ptr_eq(other, upstream)));
        match failure.again {
            Some(again) if others && may_try_next(sent, effort.is_read, left, effort.deadline - Instant::now()) => {
                request = again
            }
            again => return Err(Failure { code: failure.code, again }),
        }
    }
}

/// Waits for the head of an answer: `limit` from the end of the request's body, and never past the deadline.
async fn answer_of<T>(work: impl Future<Output = T>, limit: Duration, effort: Effort<'_>, has_body: bool) -> Option<T> {
    let too_late = async {
        if has_body {
            effort.body.ended().await;
        }
        tokio::time::sleep(limit).await;
    };
    tokio::select! {
        biased;
        answer = work => Some(answer),
        () = too_late => None,
        () = tokio::time::sleep_until(effort.deadline) => None,
    }
}

fn failure(error: SendError, copy: Option<Request<Body>>) -> Failure {
    let code = match error.cause {
        SendCause::Dial(_) => Code::UpstreamUnreachable,
        SendCause::Broken(_) => Code::UpstreamBad,
    };
    Failure { code, again: error.unsent.map(|request| *request).or(copy) }
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
    copy
}

/// Puts a request into the form of the next hop: origin form and `Host` for an upstream, HTTP/2 with authority for a peer.
pub fn address(request: &mut Request<Body>, host: &HeaderValue, to_peer: bool) -> Option<()> {
    let target = request.uri().path_and_query().cloned()?;
    if to_peer {
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().remove(HOST);
        let authority = host.to_str().ok()?;
        *request.uri_mut() = Uri::builder().scheme("https").authority(authority).path_and_query(target).build().ok()?;
    } else {
        *request.version_mut() = Version::HTTP_11;
        request.headers_mut().insert(HOST, host.clone());
        *request.uri_mut() = Uri::from(target);
        join_cookies(request.headers_mut());
        // hyper takes a GET of unknown length for one without a body.
        if !request.body().is_end_stream() && request.body().size_hint().exact().is_none() {
            request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
    }
    Some(())
}

/// HTTP/2 clients split cookies over several fields; HTTP/1 has one (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut http::HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crumbs_of_cookies_become_one_field() {
        let mut headers = http::HeaderMap::new();
        for crumb in ["a=1", "b=2", "c=3"] {
            headers.append(COOKIE, crumb.parse().unwrap());
        }
        join_cookies(&mut headers);
        assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
    }

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
