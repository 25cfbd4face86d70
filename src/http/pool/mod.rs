//! Pools of connections to upstreams and peers, kept open between requests. Each worker has its own pools.

mod form;
mod http1;
mod http2;
mod informational;
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
use super::sent::Sent;
use super::tunnel::Wire;
use super::window::Buffers;

pub use http2::StreamInFlight;
pub use informational::InformationalQueue;
pub use peers::{Gateway, PeerPool};
pub use sender::EXTENDED_CONNECT;
pub use upstream::UpstreamPool;

/// A request with its body. It is boxed, because each of the many futures on its way would hold and copy its 264 bytes.
pub type BoxedRequest = Box<Request<Body>>;

/// How a request is sent.
#[derive(Clone, Debug)]
pub struct SendOptions {
    /// How a connection is opened if no idle one is available.
    pub dial: DialOptions,
    /// The flow-control budget of the client connection that the request arrived on.
    pub buffers: Rc<Buffers>,
    /// The measured round trip to the destination.
    pub round_trip: Duration,
    /// The maximum number of idle HTTP/1 connections to the server.
    pub max_idle: usize,
    /// Gets the informational responses, unless they are dropped.
    pub informational: Option<Rc<InformationalQueue>>,
    /// Do not use an idle connection, because the last attempt found that the server had closed one.
    pub is_fresh: bool,
}

impl SendOptions {
    /// For Domicile's own requests, which are small.
    pub fn within(timeout: Duration) -> Self {
        Self {
            dial: DialOptions::within(timeout),
            buffers: Buffers::none(),
            round_trip: Duration::ZERO,
            max_idle: 1,
            informational: None,
            is_fresh: false,
        }
    }
}

/// A request that got no response.
pub struct SendError {
    pub cause: SendCause,
    pub sent: Sent,
    /// The complete request, unless a part of its body was read. It is always present if nothing was sent.
    pub request: Option<BoxedRequest>,
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
        Self { cause: SendCause::NotPermitted, sent: Sent::Partly, request: None }
    }
}

impl SendError {
    fn dial(error: DialError, request: BoxedRequest) -> Self {
        Self { cause: error.into(), sent: Sent::Nothing, request: Some(request) }
    }

    /// `unprocessed` is the request if the server did not process it.
    fn broken(error: impl Into<BodyError>, unprocessed: Option<BoxedRequest>) -> Self {
        let sent = if unprocessed.is_some() { Sent::Nothing } else { Sent::Partly };
        Self { cause: SendCause::Broken(error.into()), sent, request: unprocessed }
    }

    fn form(request: BoxedRequest) -> Self {
        Self { cause: SendCause::Form, sent: Sent::Nothing, request: Some(request) }
    }
}

/// The response to a request for a tunnel.
pub enum Reply {
    Opened(Parts, Wire),
    /// The server sent an ordinary response instead.
    Answered(Response<Body>),
}
