//! Timeouts and minimum rates, by kind of message: an ordinary message has a minimum rate, a stream may be idle for
//! longer.

use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Version};
use tokio::time::Instant;

use crate::http::names::GRPC_TIMEOUT;

use super::super::Limits;
use super::super::body::BodyLimits;
use super::super::read_monitor::MinRate;

/// The timeouts and the minimum rate of one message.
pub(super) struct MessageTimeouts {
    /// For all attempts at a request without a body, together.
    pub request_timeout: Duration,
    /// From the end of a request to the head of its response.
    pub response_timeout: Duration,
    /// From the start of a request to the head of its response, if the client sets a deadline (`grpc-timeout`).
    pub deadline: Option<Duration>,
    /// Between two frames of the body.
    pub idle: Duration,
    /// The minimum rate of the body; `None` for streams.
    min_rate: Option<MinRate>,
}

impl MessageTimeouts {
    /// A gRPC call may set its own deadline. It has no minimum rate, because its messages may be far apart. The request must be
    /// HTTP/2, so that an HTTP/1 client cannot avoid the minimum rate with the media type of gRPC.
    pub(super) fn of_request(version: Version, headers: &HeaderMap, limits: &Limits) -> Self {
        if version != Version::HTTP_2 || rest_after(GRPC, kind_of(headers)).is_none() {
            return Self::of_message(limits);
        }
        let deadline = deadline_of(headers);
        let timeout = deadline.map_or(limits.tunnel_idle, |deadline| deadline.min(limits.tunnel_idle));
        Self { deadline, request_timeout: timeout, response_timeout: timeout, ..Self::of_stream(limits) }
    }

    /// The media type identifies streams: gRPC and server-sent events.
    pub(super) fn of_response(headers: &HeaderMap, limits: &Limits) -> Self {
        let kind = kind_of(headers);
        let is_stream = [GRPC, "text/event-stream"].iter().any(|stream| rest_after(stream, kind).is_some());
        if is_stream { Self::of_stream(limits) } else { Self::of_message(limits) }
    }

    fn of_message(limits: &Limits) -> Self {
        let min_rate = MinRate { bytes_per_second: limits.body_rate, grace: limits.body_rate_grace };
        Self {
            request_timeout: limits.request_timeout,
            response_timeout: limits.response_timeout,
            deadline: None,
            idle: limits.idle_timeout,
            min_rate: (limits.body_rate > 0).then_some(min_rate),
        }
    }

    fn of_stream(limits: &Limits) -> Self {
        Self { idle: limits.tunnel_idle, min_rate: None, ..Self::of_message(limits) }
    }

    pub(super) const fn request_limits(&self, max_bytes: u64) -> BodyLimits {
        BodyLimits { max_bytes, idle_timeout: self.idle, min_rate: self.min_rate }
    }

    /// The limits on a response. There is no minimum rate, because an app server may send slowly with any media type.
    pub(super) const fn response_limits(&self) -> BodyLimits {
        BodyLimits { max_bytes: u64::MAX, idle_timeout: self.idle, min_rate: None }
    }

    /// The minimum rate at which a client must read the response.
    pub(super) const fn client_min_rate(&self) -> Option<MinRate> {
        self.min_rate
    }
}

/// How long a response may wait for its client to read it.
pub fn response_idle_timeout(response: &HeaderMap, limits: &Limits) -> Duration {
    MessageTimeouts::of_response(response, limits).idle
}

/// A gRPC call. Its client needs a gRPC status instead of a plain HTTP error. gRPC-Web is excluded.
pub(super) struct GrpcCall {
    /// The media type of the request, and of the response.
    pub kind: HeaderValue,
    /// The time after which the client no longer waits for a response.
    pub deadline: Option<Instant>,
}

impl GrpcCall {
    pub fn of(request: &Parts) -> Option<Self> {
        let kind = kind_of(&request.headers);
        let is_grpc = rest_after(GRPC, kind).is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';', ' ']));
        let is_call = request.version == Version::HTTP_2 && request.method == Method::POST && is_grpc;
        let kind = request.headers.get(CONTENT_TYPE).filter(|_| is_call)?.clone();
        Some(Self { kind, deadline: deadline_of(&request.headers).map(|deadline| Instant::now() + deadline) })
    }
}

fn deadline_of(call: &HeaderMap) -> Option<Duration> {
    call.get(GRPC_TIMEOUT).and_then(|value| grpc_timeout(value.to_str().ok()?))
}

const GRPC: &str = "application/grpc";

fn kind_of(headers: &HeaderMap) -> &str {
    headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default()
}

/// The rest of a media type that begins with `start`, in any case.
fn rest_after<'k>(start: &str, kind: &'k str) -> Option<&'k str> {
    let (beginning, rest) = kind.split_at_checked(start.len())?;
    beginning.eq_ignore_ascii_case(start).then_some(rest)
}

/// The deadline of a gRPC call: up to eight digits and a unit (gRPC over HTTP/2, Requests).
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_call_brings_its_deadline_and_an_ordinary_request_has_none() {
        let limits = Limits::default();
        let fields = |fields: &[(&'static str, &str)]| {
            let fields = fields.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()));
            fields.collect::<HeaderMap>()
        };
        let call = [("content-type", "application/grpc+proto"), ("grpc-timeout", "250m")];
        let of = |version, given: &[(&'static str, &str)]| MessageTimeouts::of_request(version, &fields(given), &limits);
        assert_eq!(of(Version::HTTP_2, &call).response_timeout, Duration::from_millis(250));
        assert!(of(Version::HTTP_2, &call).min_rate.is_none());
        let for_ever = [call[0], ("grpc-timeout", "99999999H")];
        assert_eq!(of(Version::HTTP_2, &for_ever).response_timeout, limits.tunnel_idle);
        for (version, plain) in [(Version::HTTP_11, &call[..]), (Version::HTTP_2, &call[1..])] {
            assert_eq!(of(version, plain).response_timeout, limits.response_timeout);
            assert!(of(version, plain).min_rate.is_some());
        }
        let events = [("content-type", "text/event-stream; charset=utf-8")];
        assert!(of(Version::HTTP_2, &events).min_rate.is_some(), "a request is never an event stream");
        assert_eq!(MessageTimeouts::of_response(&fields(&events), &limits).idle, limits.tunnel_idle);
        for bad in ["", "m", "123456789S", "5x", "-1S", "1.5S"] {
            assert_eq!(grpc_timeout(bad), None, "{bad}");
        }
    }
}
