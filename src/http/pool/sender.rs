//! Sends requests on streams of one HTTP/2 connection, and finds out which unanswered requests may be sent again.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Body as _;
use tokio::time::Instant;

use super::super::body::Body;
use super::super::http1::{MAX_INFORMATIONAL, MAX_RESPONSE_FIELDS};
use super::super::http2::{self, Piece, Received, StreamReader, StreamWriter, Tunnel, Upload};
use super::super::names::is_framing_look_alike;
use super::super::tunnel::DECLINED;
use super::replay::{self, ReplayBuffer};
use super::{BoxedRequest, InformationalQueue, Reply, SendError, SendOptions, StreamInFlight};

/// Opens streams on one connection.
#[derive(Clone)]
pub(super) struct StreamSender {
    streams: SendRequest<Piece>,
    /// The server's first SETTINGS have arrived, or the wait for them has timed out.
    is_settled: Rc<Cell<bool>>,
}

impl StreamSender {
    pub(super) fn new(streams: SendRequest<Piece>) -> Self {
        Self { streams, is_settled: Rc::default() }
    }

    /// Whether the connection accepts new streams.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.streams.clone().poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(())))
    }

    /// Whether the server supports extended CONNECT (RFC 8441). It advertises this in its first SETTINGS, so on a new connection
    /// this waits for them, at most for `limit`.
    pub(super) async fn offers_tunnels(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while !self.streams.is_extended_connect_protocol_enabled() {
            if self.is_settled.get() || Instant::now() >= deadline {
                self.is_settled.set(true);
                return false;
            }
            // `h2` does not notify about SETTINGS, so poll.
            tokio::time::sleep(SETTINGS_POLL_INTERVAL).await;
        }
        true
    }

    /// Opens a stream with the head of a request, and waits until the server's stream limit allows it. The error contains the
    /// request if no stream was opened.
    async fn open_stream(self, request: BoxedRequest) -> Result<OpenStream, SendError> {
        let mut streams = match self.streams.ready().await {
            Ok(streams) => streams,
            Err(error) => return Err(SendError::broken(error, Some(request))),
        };
        let (mut head, body) = request.into_parts();
        http2::fit(&mut head.headers, &body);
        // A CONNECT stream stays open: the tunnel's data follows the response.
        let is_whole = body.is_end_stream() && head.method != Method::CONNECT;
        let opened = streams.send_request(Request::from_parts(head.clone(), ()), is_whole);
        let (response, stream) = opened.map_err(|error| SendError::broken(error, None))?;
        // The stream waits while the server's limit of concurrent streams is reached. Ignore an error here: the stream may have
        // opened before the connection ended, and the response future reports the outcome.
        let _ = streams.ready().await;
        Ok(OpenStream { response, stream, head, body })
    }

    /// Sends a request and waits for the response head. Holds `in_flight` until the request body has been sent.
    pub(super) async fn send(
        self,
        request: BoxedRequest,
        options: &SendOptions,
        in_flight: StreamInFlight,
    ) -> Result<Response<Body>, SendError> {
        let OpenStream { response, stream, head, body } = self.open_stream(request).await?;
        let (upload, buffer) = if body.is_end_stream() {
            (None, None)
        } else {
            let ((recorded, buffer), stall) = (replay::keep(body), options.dial.write_stall);
            let sending = async move {
                http2::send(Body::streamed(recorded), StreamWriter::new(stream), Reason::CANCEL, stall).await;
                drop(in_flight);
            };
            (Some(Upload::new(tokio::task::spawn_local(sending))), Some(buffer))
        };
        let outcome = response_head(response, options.informational.as_deref()).await;
        let unprocessed =
            || buffer.map_or(Some(Body::empty()), ReplayBuffer::again).map(|body| Box::new(Request::from_parts(head, body)));
        let (mut head, incoming) = outcome.map_err(|error| error.into_send_error(unprocessed))?.into_parts();
        if matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            // Neither has a body, whatever the server sends (RFC 9110 section 6.4.1).
            if head.status == StatusCode::NO_CONTENT {
                head.headers.remove(CONTENT_LENGTH);
            }
            return Ok(Response::from_parts(head, Body::empty()));
        }
        let body = Received::answering(incoming, &head.headers, upload);
        Ok(Response::from_parts(head, body.into()))
    }

    /// Requests a tunnel.
    pub(super) async fn open(self, request: BoxedRequest) -> Result<Reply, SendError> {
        let OpenStream { response, stream: outgoing, head, body } = self.open_stream(request).await?;
        let outcome = response_head(response, None).await;
        let unprocessed = || Some(Box::new(Request::from_parts(head, body)));
        let (head, incoming) = outcome.map_err(|error| error.into_send_error(unprocessed))?.into_parts();
        // A peer says so when its app server declined the upgrade with a status of 2xx.
        if head.status.is_success() && !head.headers.contains_key(DECLINED) {
            return Ok(Reply::Opened(head, Box::pin(Tunnel::new(StreamReader::new(incoming), StreamWriter::new(outgoing)))));
        }
        let body = Received::answering(incoming, &head.headers, None);
        Ok(Reply::Answered(Response::from_parts(head, body.into())))
    }
}

/// A request whose stream is open.
struct OpenStream {
    response: ResponseFuture,
    stream: SendStream<Piece>,
    head: Parts,
    body: Body,
}

/// Why there is no response.
enum NoResponse {
    Broken(h2::Error),
    Malformed(&'static str),
}

impl NoResponse {
    /// Attaches `request` if the server reported that it did not process it: the server refused the stream, or its GOAWAY names
    /// an earlier stream as the last (RFC 9113 section 8.7).
    fn into_send_error(self, request: impl FnOnce() -> Option<BoxedRequest>) -> SendError {
        match self {
            Self::Broken(error) => {
                let is_refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
                let is_unprocessed = error.is_remote() && (is_refused || error.is_go_away());
                SendError::broken(error, if is_unprocessed { request() } else { None })
            }
            Self::Malformed(why) => SendError::broken(why, None),
        }
    }
}

/// Waits for the final response head and forwards the informational responses before it.
async fn response_head(
    mut response: ResponseFuture,
    informational: Option<&InformationalQueue>,
) -> Result<Response<RecvStream>, NoResponse> {
    for _ in 0..=MAX_INFORMATIONAL {
        match poll_fn(|cx| response.poll_informational(cx)).await {
            Some(Ok(head)) if head.status() == StatusCode::SWITCHING_PROTOCOLS => {
                return Err(NoResponse::Malformed("the server sent 101 Switching Protocols, which HTTP/2 does not allow"));
            }
            Some(Ok(head)) => {
                let (head, ()) = head.into_parts();
                if !is_sound(&head.headers) || head.headers.contains_key(CONTENT_LENGTH) {
                    return Err(NoResponse::Malformed("malformed informational response"));
                }
                if let Some(queue) = informational {
                    queue.push(head.status, head.headers);
                }
            }
            Some(Err(error)) => return Err(NoResponse::Broken(error)),
            None => {
                let response = response.await.map_err(NoResponse::Broken)?;
                let is_sound = is_sound(response.headers());
                return if is_sound { Ok(response) } else { Err(NoResponse::Malformed("malformed or too many header fields")) };
            }
        }
    }
    Err(NoResponse::Malformed("the server sent too many informational responses"))
}

/// The rules of the HTTP/1 codec for the fields of a response, as far as `h2` does not check them.
fn is_sound(fields: &HeaderMap) -> bool {
    fields.len() <= MAX_RESPONSE_FIELDS
        && fields.get_all(CONTENT_LENGTH).iter().nth(1).is_none()
        && !fields.keys().any(is_framing_look_alike)
}

/// The name of RFC 8441 tunnels in [`DialError::OtherProtocol`](crate::transport::dial::DialError::OtherProtocol).
pub const EXTENDED_CONNECT: &str = "extended CONNECT";

/// How often to check whether the SETTINGS of a new connection have arrived.
const SETTINGS_POLL_INTERVAL: Duration = Duration::from_millis(2);
