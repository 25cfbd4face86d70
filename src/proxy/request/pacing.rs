//! How long what may be waited for: an ordinary message has to keep a pace, a stream may be quiet.

use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Version};
use tokio::time::Instant;

use super::super::Limits;
use super::super::body::Allowance;
use super::super::delivery::Pace;

/// The patience with one message.
pub(super) struct Pacing {
    /// For all tries of a request without a body.
    pub request_timeout: Duration,
    /// From the end of a request to the head of its answer.
    pub response_timeout: Duration,
    /// For the whole of a request and the head of its answer, where the caller itself has said so.
    pub deadline: Option<Duration>,
    /// Between two pieces.
    pub idle: Duration,
    pace: Option<Pace>,
}

impl Pacing {
    /// A gRPC call comes when there is something to say, and brings its own deadline. It needs HTTP/2: over HTTP/1 its media type
    /// would only be a way round the least rate.
    pub(super) fn of_request(version: Version, headers: &HeaderMap, limits: &Limits) -> Self {
        if version != Version::HTTP_2 || !kind_of(headers).starts_with(GRPC) {
            return Self::of_message(limits);
        }
        let deadline = deadline_of(headers);
        let patience = deadline.map_or(limits.tunnel_idle, |deadline| deadline.min(limits.tunnel_idle));
        Self { deadline, request_timeout: patience, response_timeout: patience, ..Self::of_stream(limits) }
    }

    /// Answers that come when there is something to say are told by their media type.
    pub(super) fn of_response(headers: &HeaderMap, limits: &Limits) -> Self {
        let kind = kind_of(headers);
        let is_stream = kind.starts_with(GRPC) || kind.starts_with("text/event-stream");
        if is_stream { Self::of_stream(limits) } else { Self::of_message(limits) }
    }

    fn of_message(limits: &Limits) -> Self {
        let pace = Pace { bytes_per_second: limits.body_rate, grace: limits.body_rate_grace };
        Self {
            request_timeout: limits.request_timeout,
            response_timeout: limits.response_timeout,
            deadline: None,
            idle: limits.idle_timeout,
            pace: (limits.body_rate > 0).then_some(pace),
        }
    }

    fn of_stream(limits: &Limits) -> Self {
        Self { idle: limits.tunnel_idle, pace: None, ..Self::of_message(limits) }
    }

    pub(super) const fn allowance(&self, most_bytes: u64) -> Allowance {
        Allowance { most_bytes, idle: self.idle, pace: self.pace }
    }

    /// The limits on a response: an app server may send little and rarely, whatever the media type.
    pub(super) const fn allowance_of_response(&self) -> Allowance {
        Allowance { most_bytes: u64::MAX, idle: self.idle, pace: None }
    }

    /// How fast a client has to take an answer.
    pub(super) const fn client_pace(&self) -> Option<Pace> {
        self.pace
    }
}

/// How long a response may wait for its client to read it.
pub fn response_idle_timeout(answer: &HeaderMap, limits: &Limits) -> Duration {
    Pacing::of_response(answer, limits).idle
}

/// A gRPC call, whose client understands nothing but gRPC. What browsers send to gateways of gRPC is none.
pub(super) struct Call {
    /// Its media type, and that of its answer.
    pub kind: HeaderValue,
    /// When its client has no more use for an answer.
    pub deadline: Option<Instant>,
}

impl Call {
    pub fn of(request: &Parts) -> Option<Self> {
        let kind = kind_of(&request.headers);
        let is_grpc = kind.strip_prefix(GRPC).is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';', ' ']));
        let is_call = request.version == Version::HTTP_2 && request.method == Method::POST && is_grpc;
        let kind = request.headers.get(CONTENT_TYPE).filter(|_| is_call)?.clone();
        Some(Self { kind, deadline: deadline_of(&request.headers).map(|deadline| Instant::now() + deadline) })
    }
}

fn deadline_of(call: &HeaderMap) -> Option<Duration> {
    call.get("grpc-timeout").and_then(|value| grpc_timeout(value.to_str().ok()?))
}

const GRPC: &str = "application/grpc";

fn kind_of(headers: &HeaderMap) -> String {
    headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_ascii_lowercase()
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
        let of = |version, given: &[(&'static str, &str)]| Pacing::of_request(version, &fields(given), &limits);
        assert_eq!(of(Version::HTTP_2, &call).response_timeout, Duration::from_millis(250));
        assert!(of(Version::HTTP_2, &call).pace.is_none());
        let for_ever = [call[0], ("grpc-timeout", "99999999H")];
        assert_eq!(of(Version::HTTP_2, &for_ever).response_timeout, limits.tunnel_idle);
        for (version, plain) in [(Version::HTTP_11, &call[..]), (Version::HTTP_2, &call[1..])] {
            assert_eq!(of(version, plain).response_timeout, limits.response_timeout);
            assert!(of(version, plain).pace.is_some());
        }
        let events = [("content-type", "text/event-stream; charset=utf-8")];
        assert!(of(Version::HTTP_2, &events).pace.is_some(), "no request is an event stream");
        assert_eq!(Pacing::of_response(&fields(&events), &limits).idle, limits.tunnel_idle);
        for bad in ["", "m", "123456789S", "5x", "-1S", "1.5S"] {
            assert_eq!(grpc_timeout(bad), None, "{bad}");
        }
    }
}
