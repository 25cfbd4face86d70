//! Distributed traces: continues or starts the trace of a request (W3C Trace Context), and sends its spans to a collector (OTLP over
//! HTTP).
//!
//! Promises: a request that is not sampled costs no span; spans wait in a bounded queue and are dropped when it is full, so that no
//! request waits for the collector. Never: a path, a query, an address or a user in a span.

use std::fmt;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::HttpClient;
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor};

/// The collector of the spans, and the share of the requests that are sampled.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    /// The base URL of a collector in the same region.
    pub collector: http::Uri,
    /// The share of the requests that start a trace, from 0 to 1. A trace that a trusted hop or a peer has sampled is always continued.
    pub sample: f32,
    /// The name of the service in the traces.
    pub service: String,
}

/// How long the end of the process waits for the last spans.
const FINAL_WAIT: Duration = Duration::from_secs(2);

/// The spans of this process, on their way to the collector.
pub struct Traces {
    processor: BatchSpanProcessor,
    scope: InstrumentationScope,
    sample: f32,
}

/// The trace of one request.
#[derive(Clone, Copy, Debug)]
pub struct Trace {
    id: TraceId,
    /// The span of the request in this process.
    span: SpanId,
    /// The span of the attempts to forward it, which is the parent of the next hop's span.
    hop: SpanId,
    parent: SpanId,
    pub is_sampled: bool,
}

/// A span that has ended.
pub struct Ended {
    pub name: String,
    pub started: SystemTime,
    pub ended: SystemTime,
    pub attributes: Vec<(&'static str, String)>,
    pub has_failed: bool,
}

impl Traces {
    /// Starts the thread that sends the spans with `client`.
    pub fn start(settings: &Settings, region: &str, client: impl HttpClient + 'static) -> Result<Self, String> {
        let base = settings.collector.to_string();
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_endpoint(format!("{}/v1/traces", base.trim_end_matches('/')))
            .build()
            .map_err(|error| format!("the exporter of traces cannot start: {error}"))?;
        let mut processor = BatchSpanProcessor::builder(exporter).build();
        let attributes = [
            KeyValue::new("service.name", settings.service.clone()),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("cloud.region", region.to_owned()),
        ];
        processor.set_resource(&Resource::builder_empty().with_attributes(attributes).build());
        Ok(Self { processor, scope: InstrumentationScope::builder("domicile").build(), sample: settings.sample })
    }

    /// Continues the trace of a `traceparent` field, or starts one. `is_trusted` says whether its sender may decide that the trace is
    /// sampled.
    pub fn begin(&self, traceparent: Option<&str>, is_trusted: bool) -> Trace {
        let continued = traceparent.and_then(parse);
        let is_sampled = match continued {
            Some((_, _, true)) if is_trusted => true,
            // The decision of a trusted hop against sampling counts as well.
            Some((_, _, false)) if is_trusted => false,
            _ => fastrand::f32() < self.sample,
        };
        let (id, parent) =
            continued.map_or((TraceId::from(fastrand::u128(1..)), SpanId::INVALID), |(id, parent, _)| (id, parent));
        Trace { id, span: new_span_id(), hop: new_span_id(), parent, is_sampled }
    }

    /// Sends the span of a request, and that of its attempts if it was forwarded.
    pub fn end(&self, trace: &Trace, request: Ended, attempt: Option<Ended>) {
        if let Some(attempt) = attempt {
            self.processor.on_end(self.span(trace, (trace.hop, trace.span), SpanKind::Client, attempt));
        }
        self.processor.on_end(self.span(trace, (trace.span, trace.parent), SpanKind::Server, request));
    }

    fn span(&self, trace: &Trace, (id, parent): (SpanId, SpanId), kind: SpanKind, ended: Ended) -> SpanData {
        let is_remote = kind == SpanKind::Server && parent != SpanId::INVALID;
        SpanData {
            span_context: SpanContext::new(trace.id, id, TraceFlags::SAMPLED, false, TraceState::NONE),
            parent_span_id: parent,
            parent_span_is_remote: is_remote,
            span_kind: kind,
            name: ended.name.into(),
            start_time: ended.started,
            end_time: ended.ended,
            attributes: ended.attributes.into_iter().map(|(name, value)| KeyValue::new(name, value)).collect(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: if ended.has_failed { Status::error("") } else { Status::Unset },
            instrumentation_scope: self.scope.clone(),
        }
    }

    /// Sends the last spans. Must not be called on the thread that serves the client.
    pub fn shut_down(&self) {
        let _ = self.processor.shutdown_with_timeout(FINAL_WAIT);
    }
}

fn new_span_id() -> SpanId {
    SpanId::from(fastrand::u64(1..))
}

/// Reads a `traceparent` of version 00 (W3C Trace Context section 3.2): the trace, the parent, and whether it is sampled. Later versions begin
/// with the same fields.
fn parse(text: &str) -> Option<(TraceId, SpanId, bool)> {
    let mut parts = text.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex =
        |text: &str, length: usize| text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_sound = is_hex(version, 2) && is_hex(trace, 32) && is_hex(parent, 16) && is_hex(flags, 2);
    if !is_sound || version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let (trace, parent) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(parent).ok()?);
    let is_sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
    (trace != TraceId::INVALID && parent != SpanId::INVALID).then_some((trace, parent, is_sampled))
}

impl Trace {
    /// The `traceparent` for the next hop.
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-{:02x}", self.id, self.hop, u8::from(self.is_sampled))
    }
}

/// The id of the trace.
impl fmt::Display for Trace {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[derive(Debug)]
    struct Nobody;

    #[async_trait::async_trait]
    impl HttpClient for Nobody {
        async fn send_bytes(
            &self,
            _: http::Request<bytes::Bytes>,
        ) -> Result<http::Response<bytes::Bytes>, opentelemetry_http::HttpError> {
            Err("nobody listens".into())
        }
    }

    fn traces(sample: f32) -> Traces {
        let settings = Settings { collector: "http://127.0.0.1:4318".parse().unwrap(), sample, service: "domicile".into() };
        Traces::start(&settings, "eu-west", Nobody).unwrap()
    }

    #[test]
    fn a_trace_is_continued_and_its_sender_decides_if_it_is_trusted() {
        let (none, all) = (traces(0.0), traces(1.0));
        let continued = none.begin(Some(PARENT), true);
        assert!(continued.is_sampled && continued.to_string() == "4bf92f3577b34da6a3ce929d0e0e4736");
        let next = continued.traceparent();
        assert!(
            next.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-")
                && next.ends_with("-01")
                && !next.contains("00f067aa0ba902b7")
        );
        assert!(!none.begin(Some(PARENT), false).is_sampled, "a client does not decide how much is sampled");
        let unsampled = PARENT.replace("-01", "-00");
        assert!(!all.begin(Some(&unsampled), true).is_sampled && all.begin(Some(&unsampled), false).is_sampled);
        assert!(all.begin(Some(&unsampled), true).traceparent().ends_with("-00"));
    }

    #[test]
    fn a_malformed_parent_starts_a_new_trace() {
        let all = traces(1.0);
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        ] {
            let (one, other) = (all.begin(Some(bad), true), all.begin(Some(bad), true));
            assert!(one.is_sampled && one.to_string() != other.to_string(), "{bad}");
            assert!(!one.traceparent().contains("4bf92f35"), "{bad}");
        }
    }
}
