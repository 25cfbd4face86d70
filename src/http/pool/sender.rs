//! One request after the other on streams of one HTTP/2 connection, and what is known of those that got no answer.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use tokio::time::Instant;

use super::super::body::Body;
use super::super::framing::MOST_INTERIM;
use super::super::http2::{self, Piece, Received, StreamReader, StreamWriter, Tunnel, Upload};
use super::replay::{self, ReplayBuffer};
use super::{InFlight, Listener, Reply, SendError};

/// Opens streams on one connection.
#[derive(Clone)]
pub(super) struct Sender {
    streams: SendRequest<Piece>,
    /// The other end's first settings have come, or were waited for long enough.
    is_settled: Rc<Cell<bool>>,
}

impl Sender {
    pub(super) fn new(streams: SendRequest<Piece>) -> Self {
        Self { streams, is_settled: Rc::default() }
    }

    /// Whether the connection takes new streams.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.streams.clone().poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(())))
    }

    /// Whether the other end opens tunnels (RFC 8441). It says so in its first settings: those of a new connection are waited
    /// for, an old one knows.
    pub(super) async fn offers_tunnels(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while !self.streams.is_extended_connect_protocol_enabled() {
            if self.is_settled.get() || Instant::now() >= deadline {
                self.is_settled.set(true);
                return false;
            }
            // Nobody tells when they come.
            tokio::time::sleep(SETTINGS_LOOK).await;
        }
        true
    }

    /// Opens a stream with the head of a request, and waits until it is really open; gives the request back if none was opened.
    async fn begin(self, request: Request<Body>) -> Result<Begun, SendError> {
        let mut streams = match self.streams.ready().await {
            Ok(streams) => streams,
            Err(error) => return Err(SendError::broken(error, Some(request))),
        };
        let (mut head, body) = request.into_parts();
        http2::fit(&mut head.headers, &body);
        // What a tunnel carries comes after it has been opened.
        let is_whole = body.is_end_stream() && head.method != Method::CONNECT;
        let begun = streams.send_request(Request::from_parts(head.clone(), ()), is_whole);
        let (answer, stream) = begun.map_err(|error| SendError::broken(error, None))?;
        // The other end may have as many open as it allows. Should the connection end meanwhile, the answer says what has become of
        // this stream: it may have been opened in time.
        let _ = streams.ready().await;
        Ok(Begun { answer, stream, head, body })
    }

    /// Sends a request and waits for the head of the answer.
    /// `in_flight` is kept until the request has been sent.
    pub(super) async fn send(
        self,
        request: Request<Body>,
        stall: Duration,
        in_flight: InFlight,
    ) -> Result<Response<Body>, SendError> {
        let listener = Listener::of(&request);
        let Begun { answer, stream, head, body } = self.begin(request).await?;
        let (upload, kept) = if body.is_end_stream() {
            (None, None)
        } else {
            let (lent, kept) = replay::keep(body);
            let sending = async move {
                http2::send(Body::streamed(lent), StreamWriter::new(stream), Reason::CANCEL, stall).await;
                drop(in_flight);
            };
            (Some(Upload::new(tokio::task::spawn_local(sending))), Some(kept))
        };
        let answered = head_of(answer, listener).await;
        let unprocessed = || kept.map_or(Some(Body::empty()), ReplayBuffer::again).map(|body| Request::from_parts(head, body));
        let (head, incoming) = answered.map_err(|error| error.into_send_error(unprocessed))?.into_parts();
        let body = Received::answering(incoming, &head.headers, upload);
        Ok(Response::from_parts(head, body.into()))
    }

    /// Asks for a tunnel.
    pub(super) async fn open(self, request: Request<Body>) -> Result<Reply, SendError> {
        let Begun { answer, stream: outgoing, head, body } = self.begin(request).await?;
        let answered = head_of(answer, None).await;
        let unprocessed = || Some(Request::from_parts(head, body));
        let (head, incoming) = answered.map_err(|error| error.into_send_error(unprocessed))?.into_parts();
        if head.status.is_success() {
            return Ok(Reply::Opened(head, Box::pin(Tunnel::new(StreamReader::new(incoming), StreamWriter::new(outgoing)))));
        }
        let body = Received::answering(incoming, &head.headers, None);
        Ok(Reply::Answered(Response::from_parts(head, body.into())))
    }
}

/// A request whose stream is open.
struct Begun {
    answer: ResponseFuture,
    stream: SendStream<Piece>,
    head: Parts,
    body: Body,
}

/// Why there is no answer.
enum NoAnswer {
    Broken(h2::Error),
    Malformed(&'static str),
}

impl NoAnswer {
    /// `request` is what may be sent again if the other end says that it has not looked at it: its stream was refused, or came
    /// behind the last that it took (RFC 9113 section 8.7).
    fn into_send_error(self, request: impl FnOnce() -> Option<Request<Body>>) -> SendError {
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

/// The head of the answer, after those of the interim answers.
async fn head_of(mut answer: ResponseFuture, listener: Option<Listener>) -> Result<Response<RecvStream>, NoAnswer> {
    for _ in 0..=MOST_INTERIM {
        match poll_fn(|cx| answer.poll_informational(cx)).await {
            Some(Ok(interim)) if interim.status() == StatusCode::SWITCHING_PROTOCOLS => {
                return Err(NoAnswer::Malformed("it switches protocols, which HTTP/2 does not"));
            }
            Some(Ok(interim)) => {
                let (head, ()) = interim.into_parts();
                listener.iter().for_each(|listener| listener.hear(head.status, head.headers.clone()));
            }
            Some(Err(error)) => return Err(NoAnswer::Broken(error)),
            None => return answer.await.map_err(NoAnswer::Broken),
        }
    }
    Err(NoAnswer::Malformed("too many interim answers"))
}

/// What [`DialError::OtherProtocol`] calls the tunnels of RFC 8441.
pub const EXTENDED_CONNECT: &str = "extended CONNECT";

/// How often the settings of a new connection are looked for.
const SETTINGS_LOOK: Duration = Duration::from_millis(2);
