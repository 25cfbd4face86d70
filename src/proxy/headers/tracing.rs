//! Tracing headers: known by name, and removed where a message crosses a border.

use http::{HeaderMap, HeaderName};

use crate::http::names::{TRACEPARENT, TRACING};

use super::set;

/// Whether a field carries tracing context, except `traceparent`.
pub fn is_tracing(name: &str) -> bool {
    TRACING.contains_any_spelling(name)
}

/// Removes tracing headers before a message crosses a border, except those in `allowed`. `traceparent` gets a new parent id, so
/// that the traces of both sides share only the trace id.
pub fn drop_tracing(headers: &mut HeaderMap, allowed: &[HeaderName]) {
    let is_dropped = |name: &&HeaderName| is_tracing(name.as_str()) && !allowed.contains(name);
    let dropped: Vec<HeaderName> = headers.keys().filter(is_dropped).cloned().collect();
    for name in dropped {
        headers.remove(name);
    }
    let replaced = headers.get(TRACEPARENT).and_then(|value| with_new_parent(value.to_str().ok()?));
    headers.remove(TRACEPARENT);
    if let Some(value) = replaced {
        set(headers, TRACEPARENT, &value);
    }
}

/// The same trace with a new parent id (W3C Trace Context section 3.2); `None` if the value is not a valid `traceparent` of
/// version 00.
fn with_new_parent(traceparent: &str) -> Option<String> {
    let mut parts = traceparent.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex =
        |text: &str, length: usize| text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_zero = |text: &str| text.bytes().all(|byte| byte == b'0');
    let is_sound = version == "00" && parts.next().is_none() && is_hex(trace, 32) && is_hex(parent, 16) && is_hex(flags, 2);
    (is_sound && !is_zero(trace) && !is_zero(parent)).then(|| format!("00-{trace}-{:016x}-{flags}", fastrand::u64(1..)))
}
