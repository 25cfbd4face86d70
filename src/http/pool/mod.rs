//! Connections that are kept open between requests, each by the worker that opened it.

mod form;
mod http1;
mod http2;
mod interim;
mod replay;
mod sender;
mod upstream;

use http::response::Parts;
use http::{Request, Response};

use std::rc::Rc;
use std::time::Duration;

use crate::transport::dial::{DialError, DialOptions};

use super::body::{Body, BodyError};
use super::tunnel::Wire;
use super::window::Buffers;

pub use http2::{InFlight, PeerPool};
pub use interim::Listener;
pub use sender::EXTENDED_CONNECT;
pub use upstream::UpstreamPool;

/// How a request is sent.
#[derive(Clone, Debug)]
pub struct SendOptions {
    /// How a connection is opened, where none is idle.
    pub dial: DialOptions,
    /// The flow-control budget of the client connection that the request arrived on.
    pub buffers: Rc<Buffers>,
}

impl SendOptions {
    /// For requests of our own, which are small.
    pub fn within(timeout: Duration) -> Self {
        Self { dial: DialOptions::within(timeout), buffers: Buffers::of(0) }
    }
}

/// A request that got no answer.
pub struct SendError {
    pub cause: SendCause,
    /// The request, whole, if not a byte of it was sent, or the other end says that it has not looked at it: it may be sent again.
    pub unsent: Option<Box<Request<Body>>>,
}

#[derive(Debug, thiserror::Error)]
pub enum SendCause {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the connection broke: {0}")]
    Broken(BodyError),
    #[error("the request cannot be written down for this connection")]
    Form,
    #[error("it agreed to another protocol than it was asked for")]
    OtherUpgrade,
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

    /// Of a connection of HTTP/1.
    fn of(mut error: hyper::client::conn::TrySendError<Request<Body>>) -> Self {
        let unsent = error.take_message().map(Box::new);
        Self { cause: SendCause::Broken(error.into_error().into()), unsent }
    }
}

/// What came of asking for a tunnel.
pub enum Reply {
    Opened(Parts, Wire),
    /// The other end would rather answer.
    Answered(Response<Body>),
}
