//! Forwards informational (1xx) responses (RFC 9110 section 15.2) to the client of a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use http::{HeaderMap, Request, Response, StatusCode};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::super::body::Body;

/// Header bytes of one request's informational responses that are forwarded. They are buffered while the client does not read,
/// so further responses are dropped; the client only loses hints.
const MAX_FORWARDED: usize = 16 << 10;

/// Forwards the informational responses to one request; stored in the request's extensions.
#[derive(Clone)]
pub struct InformationalSender {
    sender: UnboundedSender<Response<()>>,
    /// Header bytes forwarded so far.
    forwarded: Arc<AtomicUsize>,
}

impl InformationalSender {
    /// Adds a informational to a request and returns the receiver of its informational responses. The channel needs no bound, because
    /// a response has at most [`MAX_INFORMATIONAL`](crate::http::http1::MAX_INFORMATIONAL) of them.
    pub fn put_into(request: &mut Request<Body>) -> UnboundedReceiver<Response<()>> {
        let (sender, receiver) = unbounded_channel();
        request.extensions_mut().insert(Self { sender, forwarded: Arc::default() });
        receiver
    }

    pub(super) fn of(request: &Request<Body>) -> Option<Self> {
        request.extensions().get().cloned()
    }

    /// Forwards a response. Drops `100 Continue`, because the proxy itself sends it to the client.
    pub(super) fn send(&self, status: StatusCode, fields: &HeaderMap) {
        let bytes: usize = fields.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        let add = move |forwarded: usize| Some(forwarded + bytes).filter(|total| *total <= MAX_FORWARDED);
        if status != StatusCode::CONTINUE && self.forwarded.fetch_update(Relaxed, Relaxed, add).is_ok() {
            let mut response = Response::new(());
            *response.status_mut() = status;
            *response.headers_mut() = fields.clone();
            // Sending fails only if the client is gone.
            let _ = self.sender.send(response);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::LINK;

    use super::*;

    #[test]
    fn forwarded_informational_responses_are_bounded() {
        let mut request = Request::new(Body::empty());
        let mut hints = InformationalSender::put_into(&mut request);
        let informational = InformationalSender::of(&request).unwrap();
        let forward = |size: usize| {
            let fields = HeaderMap::from_iter([(LINK, HeaderValue::from_str(&"x".repeat(size)).unwrap())]);
            informational.send(StatusCode::EARLY_HINTS, &fields);
        };
        for size in [MAX_FORWARDED - 4 - 10, 20, 6] {
            forward(size);
        }
        let sizes: Vec<_> = std::iter::from_fn(|| hints.try_recv().ok()).map(|hint| hint.headers()[LINK].len()).collect();
        assert_eq!(sizes, [MAX_FORWARDED - 4 - 10, 6], "the second exceeds the limit, the third does not");
    }
}
