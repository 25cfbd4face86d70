//! Interim answers (RFC 9110 section 15.2) to a request, on their way to whoever made it.

use http::{HeaderMap, Request, Response, StatusCode};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::super::body::Body;

/// Told of the interim answers to the request that it is put into.
#[derive(Clone)]
pub struct Listener(UnboundedSender<Response<()>>);

impl Listener {
    /// Has the interim answers to a request told. They are few ([`MOST_INTERIM`](crate::transport::framing::MOST_INTERIM)), so none has to wait.
    pub fn put_into(request: &mut Request<Body>) -> UnboundedReceiver<Response<()>> {
        let (sender, receiver) = unbounded_channel();
        request.extensions_mut().insert(Self(sender));
        receiver
    }

    pub(super) fn of(request: &Request<Body>) -> Option<Self> {
        request.extensions().get().cloned()
    }

    /// `100` is nobody's business but ours: we asked for the body ourselves.
    pub(super) fn hear(&self, status: StatusCode, fields: HeaderMap) {
        if status != StatusCode::CONTINUE {
            let mut answer = Response::new(());
            *answer.status_mut() = status;
            *answer.headers_mut() = fields;
            // Who asked has gone, and needs none.
            let _ = self.0.send(answer);
        }
    }
}
