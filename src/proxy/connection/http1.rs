//! HTTP/1: one request after the other, then the tunnel of an upgrade or CONNECT.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;

use bytes::BytesMut;
use http::StatusCode;
use http::header::{CONNECTION, HeaderValue};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use crate::http::body::Body;
use crate::http::framing::{ConnectionState, ExchangeInFlight, RequestGate};
use crate::transport::stream::Stream;

use super::super::ingress::{ConnectionContext, ResponseChannel};
use super::super::worker::Worker;
use super::super::{Limits, request};
use super::{drain_started, linger};

pub(super) async fn serve(
    worker: Rc<Worker>,
    stream: Stream,
    first: (Instant, BytesMut),
    context: Rc<ConnectionContext>,
    limits: &Limits,
) {
    let connection_state = Rc::clone(&context.connection_state);
    let io = TokioIo::new(RequestGate::new(stream, first, limits.head(), Rc::clone(&connection_state)));
    let (draining_worker, state) = (Rc::clone(&worker), Rc::clone(&connection_state));
    // `RequestGate` ends idle connections.
    let mut end = pin!(async move { drain_started(&draining_worker, &state).await });
    let requests_per_connection = limits.requests_per_connection as u64;
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (worker, context, in_flight) =
            (Rc::clone(&worker), Rc::clone(&context), ExchangeInFlight::count(&context.connection_state));
        Box::pin(async move {
            let is_last = context.connection_state.requests() >= requests_per_connection;
            let channel = ResponseChannel::Connection(Rc::clone(&context.connection_state));
            let mut response = request::handle(worker, Rc::clone(&context), channel, request.map(Body::from)).await;
            if response.headers().get(CONNECTION).is_some_and(|value| value == "close") {
                context.connection_state.linger();
            }
            if is_last && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            drop(in_flight);
            Ok::<_, Infallible>(response)
        })
    });
    let mut connection = builder(limits).serve_connection(io, service);
    let mut ending = false;
    let ended = poll_fn(|cx| {
        if !ending && end.as_mut().poll(cx).is_ready() {
            ending = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        connection.poll_without_shutdown(cx)
    });
    let ended = tokio::select! {
        ended = ended => ended,
        // Cutting off the response ends the connection.
        () = connection_state.abort.notified() => return,
    };
    match ended {
        Ok(()) => {
            let mut gate = connection.into_parts().io.into_inner();
            match connection_state.take_handover() {
                Some(handover) => handover(Box::pin(gate)).await,
                None => close(&mut gate, &connection_state).await,
            }
        }
        Err(error) => tracing::debug!(%error, "connection ended with an error"),
    }
}

/// Closes the connection so that the last response arrives even if the client is still sending.
async fn close(gate: &mut RequestGate<Stream>, connection_state: &ConnectionState) {
    if gate.shutdown().await.is_err() || !connection_state.lingers() {
        return;
    }
    linger(gate.stream(), u64::MAX).await;
}

fn builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    // `RequestGate` enforces timeouts and sizes; these values only limit hyper's own memory.
    builder.timer(TokioTimer::new()).header_read_timeout(None).max_headers(limits.headers + 8);
    builder.max_buf_size((limits.header_bytes + 8192).max(limits.connection_buffer.min(256 << 10))).half_close(true);
    builder
}
