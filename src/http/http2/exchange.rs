//! One request on a stream, and the channel for its response.

use std::cell::{OnceCell, RefCell};
use std::future::poll_fn;
use std::time::Duration;

use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::{DATE, HeaderValue};
use http::{Method, Request, Response};
use http_body::Body as _;
use tokio::task::AbortHandle;

use super::super::body::Body;
use super::super::tunnel::Handover;
use super::reader::StreamReader;
use super::writer::{Piece, StreamWriter};
use super::{Received, Tunnel, fit, send};

/// The server side of a request's stream.
pub struct Exchange {
    responder: RefCell<SendResponse<Piece>>,
    handover: RefCell<Option<Handover>>,
    /// For CONNECT: the bytes that the client sends through the tunnel.
    incoming: RefCell<Option<StreamReader>>,
    task: OnceCell<AbortHandle>,
}

impl Exchange {
    /// Splits a request from `h2` into a request with its body, and the exchange for its response.
    pub fn open(request: Request<RecvStream>, responder: SendResponse<Piece>) -> (Request<Body>, Self) {
        let (head, incoming) = request.into_parts();
        let (body, incoming) = if head.method == Method::CONNECT {
            (Body::empty(), Some(StreamReader::new(incoming)))
        } else {
            (Received::new(incoming, &head.headers).into(), None)
        };
        let (responder, incoming) = (RefCell::new(responder), RefCell::new(incoming));
        let exchange = Self { responder, incoming, handover: RefCell::default(), task: OnceCell::new() };
        (Request::from_parts(head, body), exchange)
    }

    /// Sets the task that serves this request; called once, before the task runs.
    pub fn served_by(&self, task: AbortHandle) {
        let _ = self.task.set(task);
    }

    /// Returns a function that aborts the task of this request, in any state.
    pub fn abort_handle(&self) -> Box<dyn Fn()> {
        let task = self.task.get().cloned();
        Box::new(move || task.iter().for_each(AbortHandle::abort))
    }

    /// Waits until the client resets the stream.
    pub async fn given_up(&self) {
        poll_fn(|cx| self.responder.borrow_mut().poll_reset(cx).map(drop)).await;
    }

    /// Sends an informational response.
    pub fn inform(&self, response: Response<()>) {
        if let Err(error) = self.responder.borrow_mut().send_informational(response) {
            tracing::debug!(%error, "failed to send an informational response");
        }
    }

    /// Turns the stream into a tunnel after a successful response; `handover` gets its byte stream.
    pub fn hand_over(&self, handover: Handover) {
        self.handover.replace(Some(handover));
    }

    /// Sends the complete response and then serves the tunnel, if there is one. Resets the stream if the client reads nothing
    /// of the body for `stall`.
    pub async fn answer(&self, response: Response<Body>, stall: Duration) {
        let (mut head, body) = response.into_parts();
        fit(&mut head.headers, &body);
        head.headers.entry(DATE).or_insert_with(|| {
            let now = httpdate::fmt_http_date(std::time::SystemTime::now());
            HeaderValue::try_from(now).expect("an HTTP date is a valid header value")
        });
        let handover = self.handover.take();
        let is_whole = body.is_end_stream() && handover.is_none();
        let begun = self.responder.borrow_mut().send_response(Response::from_parts(head, ()), is_whole);
        let outgoing = match begun {
            Ok(outgoing) => outgoing,
            Err(error) => {
                tracing::debug!(%error, "failed to send a response");
                return self.responder.borrow_mut().send_reset(Reason::INTERNAL_ERROR);
            }
        };
        let incoming = self.incoming.take();
        match handover.zip(incoming) {
            Some((handover, incoming)) => handover(Box::pin(Tunnel::new(incoming, StreamWriter::new(outgoing)))).await,
            None if is_whole => {}
            None => send(body, StreamWriter::new(outgoing), Reason::INTERNAL_ERROR, stall).await,
        }
    }
}
