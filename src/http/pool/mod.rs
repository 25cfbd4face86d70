//! Pools of connections to upstreams and peers, kept open between requests. Each worker has its own pools.

mod form;
mod http1;
mod http2;
mod interim;
mod peers;
mod replay;
mod sender;
mod upstream;

use http::response::Parts;
use http::{Request, Response};

use std::rc::Rc;
use std::time::Duration;

use crate::decision::permit::NotPermitted;
use crate::transport::dial::{DialError, DialOptions};

use super::body::{Body, BodyError};
use super::tunnel::Wire;
use super::window::Buffers;

pub use http2::StreamInFlight;
pub use interim::InformationalSender;
pub use peers::{Gateway, PeerPool};
pub use sender::EXTENDED_CONNECT;
pub use upstream::UpstreamPool;

/// How a request is sent.
#[derive(Clone, Debug)]
pub struct SendOptions {
    /// How a connection is opened if no idle one is available.
    pub dial: DialOptions,
    /// The flow-control budget of the client connection that the request arrived on.
    pub buffers: Rc<Buffers>,
}

impl SendOptions {
    /// For Domicile's own requests, which are small.
    pub fn within(timeout: Duration) -> Self {
        Self { dial: DialOptions::within(timeout), buffers: Buffers::of(0) }
    }
}

/// A request that got no response.
pub struct SendError {
    pub cause: SendCause,
    /// The complete request, if it may be sent again: no byte of it was sent, or the server reported that it did not process it.
    pub unsent: Option<Box<Request<Body>>>,
}

#[derive(Debug, thiserror::Error)]
pub enum SendCause {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the connection failed: {0}")]
    Broken(BodyError),
    #[error("the request has no valid form for this connection's HTTP version")]
    Form,
    #[error("the server switched to a different protocol than requested")]
    OtherUpgrade,
    #[error("the permit has ended, or is for another region")]
    NotPermitted,
}

impl From<NotPermitted> for SendError {
    fn from(_: NotPermitted) -> Self {
        Self { cause: SendCause::NotPermitted, unsent: None }
    }
}

impl SendError {
    fn dial(error: DialError, request: Request<Body>) -> Self {
        Self { cause: error.into(), unsent: Some(Box::new(request)) }
    }

    fn broken(error: impl Into<BodyError>, unsent: Option<Request<Body>>) -> Self {
        Self { cause: SendCause::Broken(error.into()), unsent: unsent.map(Box::new) }
    }

    fn form(request: Request<Body>) -> Self {
        Self { cause: SendCause::Form, unsent: Some(Box::new(request)) }
    }

    /// The error of an HTTP/1 connection.
    fn of(mut error: hyper::client::conn::TrySendError<Request<Body>>) -> Self {
        let unsent = error.take_message().map(Box::new);
        Self { cause: SendCause::Broken(error.into_error().into()), unsent }
    }
}

/// The response to a request for a tunnel.
pub enum Reply {
    Opened(Parts, Wire),
    /// The server sent an ordinary response instead.
    Answered(Response<Body>),
}
