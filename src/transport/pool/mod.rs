//! Connections that are kept open between requests, each by the worker that opened it.

mod http1;
mod http2;

use http::Request;

use super::body::Body;
use super::dial::DialError;

pub use http1::UpstreamPool;
pub use http2::{Gateway, InFlight, PeerPool};

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
}

impl SendError {
    fn dial(error: DialError, request: Request<Body>) -> Self {
        Self { cause: error.into(), unsent: Some(Box::new(request)) }
    }
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
