//! How long what may be waited for: an ordinary message has to keep a pace, a stream may be quiet.

use std::time::Duration;

use http::HeaderMap;
use http::header::CONTENT_TYPE;

use super::super::Limits;
use super::super::body::Allowance;
use super::super::delivery::Pace;

/// The patience with one message.
pub(super) struct Pacing {
    /// For all tries of a request without a body.
    pub request_timeout: Duration,
    /// From the end of a request to the head of its answer.
    pub response_timeout: Duration,
    idle: Duration,
    pace: Option<Pace>,
}

impl Pacing {
    /// Streams are told by their media type: gRPC calls and event streams come when there is something to say, and a gRPC
    /// call brings its own deadline.
    pub(super) fn of(headers: &HeaderMap, limits: &Limits) -> Self {
        let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
        let is_grpc = kind.starts_with("application/grpc");
        if !is_grpc && !kind.starts_with("text/event-stream") {
            let pace = Pace { bytes_per_second: limits.body_rate, grace: limits.body_rate_grace };
            return Self {
                request_timeout: limits.request_timeout,
                response_timeout: limits.response_timeout,
                idle: limits.idle_timeout,
                pace: (limits.body_rate > 0).then_some(pace),
            };
        }
        let limit = headers.get("grpc-timeout").filter(|_| is_grpc).and_then(|value| grpc_timeout(value.to_str().ok()?));
        let patience = limit.unwrap_or(limits.tunnel_idle);
        Self { request_timeout: patience, response_timeout: patience, idle: limits.tunnel_idle, pace: None }
    }

    pub(super) const fn allowance(&self, most_bytes: u64) -> Allowance {
        Allowance { most_bytes, idle: self.idle, pace: self.pace }
    }
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
        let with = |fields: &[(&'static str, &str)]| {
            let fields = fields.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()));
            Pacing::of(&fields.collect(), &limits)
        };
        let call = [("content-type", "application/grpc+proto"), ("grpc-timeout", "250m")];
        assert_eq!(with(&call).response_timeout, Duration::from_millis(250));
        assert!(with(&call).pace.is_none());
        assert_eq!(with(&call[1..]).response_timeout, limits.response_timeout);
        assert_eq!(with(&[("content-type", "text/event-stream; charset=utf-8")]).idle, limits.tunnel_idle);
        for bad in ["", "m", "123456789S", "5x", "-1S", "1.5S"] {
            assert_eq!(grpc_timeout(bad), None, "{bad}");
        }
    }
}
