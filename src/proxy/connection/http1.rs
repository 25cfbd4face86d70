//! HTTP/1: one request after the other, then the tunnel of an upgrade or CONNECT.

use std::pin::pin;
use std::rc::Rc;

use bytes::BytesMut;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use crate::http::body::Body;
use crate::http::connection::ExchangeInFlight;
use crate::http::http1::{Ended, ServerConnection};
use crate::http::io::BufferedStream;
use crate::model::outcome::Code;
use crate::transport::stream::Stream;

use super::super::ingress::{ConnectionContext, ResponseChannel};
use super::super::request;
use super::super::worker::Worker;
use super::{LINGER, drain_started, linger};

pub(super) async fn serve(
    worker: Rc<Worker>,
    stream: Stream,
    (begun, received): (Instant, BytesMut),
    context: Rc<ConnectionContext>,
) {
    let (connection, most_requests) = {
        let limits = worker.snapshot().limits;
        let mut io = BufferedStream::new(stream, received, limits.idle_timeout);
        io.allow_reads_of(limits.windows().wide);
        let (head, allows_half_close) = (limits.head(), context.options.allows_half_close);
        let connection = ServerConnection::new(io, begun, head, allows_half_close, &worker.deadlines);
        (connection, limits.requests_per_connection as u64)
    };
    let handle = |received| {
        let channel = ResponseChannel::Connection(Rc::clone(&connection));
        respond(Rc::clone(&worker), Rc::clone(&context), channel, received, most_requests)
    };
    let drain = pin!(drain_started(&worker, &context.connection_state));
    let ended = connection.serve(handle, drain).await;
    let Some(mut stream) = connection.take_stream() else { return };
    let lingers = match ended {
        // A TLS client that does not read could hold up even the end of the connection.
        Ended::Gone => return,
        Ended::Tunnel(handover) => return handover(Box::pin(stream)).await,
        Ended::Closed { lingers } => lingers,
    };
    if !lingers && stream.stream().is_plain() {
        // Closing the socket ends the connection.
        return;
    }
    let is_closed = tokio::time::timeout(LINGER, stream.shutdown()).await;
    // The last response must arrive even if the client is still sending.
    if lingers && matches!(is_closed, Ok(Ok(()))) {
        linger(&mut stream, u64::MAX).await;
    }
}

async fn respond(
    worker: Rc<Worker>,
    context: Rc<ConnectionContext>,
    channel: ResponseChannel,
    received: Result<Request<Body>, Code>,
    most_requests: u64,
) -> Response<Body> {
    let _in_flight = ExchangeInFlight::count(&context.connection_state);
    let has_most = context.connection_state.requests() >= most_requests;
    let mut response = match received {
        Ok(request) => request::handle(Rc::clone(&worker), context, channel, Box::new(request)).await,
        Err(code) => request::refuse_unread(Rc::clone(&worker), context, channel, code),
    };
    if (has_most || worker.saves()) && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
