//! Connections that are kept open between requests, each by the worker that opened it.

mod form;
mod http1;
mod http2;
mod upstream;

use http::response::Parts;
use http::{Request, Response};
use hyper::body::Incoming;

use super::body::Body;
use super::dial::DialError;
use super::tunnel::Wire;

pub use http2::{InFlight, PeerPool};
pub use upstream::UpstreamPool;

/// A request that got no answer.
pub struct SendError {
    pub cause: SendCause,
    /// The request, whole, if not a byte of it was sent: it may be sent elsewhere.
    pub unsent: Option<Box<Request<Body>>>,
}

#[derive(Debug, thiserror::Error)]
pub enum SendCause {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the connection broke: {0}")]
    Broken(hyper::Error),
    #[error("the request cannot be written down for this connection")]
    Form,
    #[error("it agreed to another protocol than it was asked for")]
    OtherUpgrade,
}

impl SendError {
    fn dial(error: DialError, request: Request<Body>) -> Self {
        Self { cause: error.into(), unsent: Some(Box::new(request)) }
    }

    fn form(request: Request<Body>) -> Self {
        Self { cause: SendCause::Form, unsent: Some(Box::new(request)) }
    }

    fn of(mut error: hyper::client::conn::TrySendError<Request<Body>>) -> Self {
        let unsent = error.take_message().map(Box::new);
        Self { cause: SendCause::Broken(error.into_error()), unsent }
    }
}

/// What came of asking for a tunnel.
pub enum Reply {
    Opened(Parts, Wire),
    /// The other end would rather answer.
    Answered(Response<Incoming>),
}

/// Runs hyper's futures on the worker's own thread.
#[derive(Clone, Copy)]
pub struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}
