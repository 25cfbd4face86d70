//! One request on a stream, and the way back to whoever asked.

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
use super::super::framing::Handover;
use super::reader::StreamReader;
use super::writer::{Piece, StreamWriter};
use super::{Received, Tunnel, fit, send};

/// A request's stream, seen from the side that answers.
pub struct Exchange {
    way_back: RefCell<SendResponse<Piece>>,
    handover: RefCell<Option<Handover>>,
    /// What CONNECT sends behind its head, once it has been agreed to.
    incoming: RefCell<Option<StreamReader>>,
    task: OnceCell<AbortHandle>,
}

impl Exchange {
    /// Takes a request from its stream.
    pub fn open(request: Request<RecvStream>, way_back: SendResponse<Piece>) -> (Request<Body>, Self) {
        let (head, incoming) = request.into_parts();
        let (body, incoming) = if head.method == Method::CONNECT {
            (Body::empty(), Some(StreamReader::new(incoming)))
        } else {
            (Received::new(incoming, &head.headers).into(), None)
        };
        let (way_back, incoming) = (RefCell::new(way_back), RefCell::new(incoming));
        let exchange = Self { way_back, incoming, handover: RefCell::default(), task: OnceCell::new() };
        (Request::from_parts(head, body), exchange)
    }

    /// The task that serves it; told once, before it runs.
    pub fn served_by(&self, task: AbortHandle) {
        let _ = self.task.set(task);
    }

    /// Ends it, whatever state it is in.
    pub fn cutter(&self) -> Box<dyn Fn()> {
        let task = self.task.get().cloned();
        Box::new(move || task.iter().for_each(AbortHandle::abort))
    }

    /// Waits until whoever asked wants no answer any more.
    pub async fn given_up(&self) {
        poll_fn(|cx| self.way_back.borrow_mut().poll_reset(cx).map(drop)).await;
    }

    /// Sends an interim answer.
    pub fn inform(&self, answer: Response<()>) {
        if let Err(error) = self.way_back.borrow_mut().send_informational(answer) {
            tracing::debug!(%error, "an interim answer could not be sent");
        }
    }

    /// Has the stream turned into a tunnel behind a successful answer; `handover` gets its bytes.
    pub fn hand_over(&self, handover: Handover) {
        self.handover.replace(Some(handover));
    }

    /// Sends the answer to its end, and what comes behind it; whoever takes nothing of it for as long as `stall` gets no more.
    pub async fn answer(&self, answer: Response<Body>, stall: Duration) {
        let (mut head, body) = answer.into_parts();
        fit(&mut head.headers, &body);
        head.headers.entry(DATE).or_insert_with(|| {
            let now = httpdate::fmt_http_date(std::time::SystemTime::now());
            HeaderValue::try_from(now).expect("a date is plain text")
        });
        let handover = self.handover.take();
        let is_whole = body.is_end_stream() && handover.is_none();
        let begun = self.way_back.borrow_mut().send_response(Response::from_parts(head, ()), is_whole);
        let outgoing = match begun {
            Ok(outgoing) => outgoing,
            Err(error) => {
                tracing::debug!(%error, "an answer could not be sent");
                return self.way_back.borrow_mut().send_reset(Reason::INTERNAL_ERROR);
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
