//! Interim answers (RFC 9110 section 15.2) to a request, on their way to whoever made it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use http::{HeaderMap, Request, Response, StatusCode};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::super::body::Body;

/// Bytes of the fields of one request's interim answers that are told: they wait for whoever takes no answer. Of the rest nobody hears,
/// which costs no more than a hint.
const MOST_TOLD: usize = 16 << 10;

/// PeerSettings of the interim answers to the request that it is put into.
#[derive(Clone)]
pub struct Listener {
    sender: UnboundedSender<Response<()>>,
    told: Arc<AtomicUsize>,
}

impl Listener {
    /// Has the interim answers to a request told. They are few ([`MOST_INTERIM`](crate::http::framing::MOST_INTERIM)), so none has to wait.
    pub fn put_into(request: &mut Request<Body>) -> UnboundedReceiver<Response<()>> {
        let (sender, receiver) = unbounded_channel();
        request.extensions_mut().insert(Self { sender, told: Arc::default() });
        receiver
    }

    pub(super) fn of(request: &Request<Body>) -> Option<Self> {
        request.extensions().get().cloned()
    }

    /// `100` is nobody's business but ours: we asked for the body ourselves.
    pub(super) fn hear(&self, status: StatusCode, fields: HeaderMap) {
        let bytes: usize = fields.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        let with_these = move |told: usize| Some(told + bytes).filter(|told| *told <= MOST_TOLD);
        if status != StatusCode::CONTINUE && self.told.fetch_update(Relaxed, Relaxed, with_these).is_ok() {
            let mut answer = Response::new(());
            *answer.status_mut() = status;
            *answer.headers_mut() = fields;
            // Who asked has gone, and needs none.
            let _ = self.sender.send(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::LINK;

    use super::*;

    #[test]
    fn what_waits_of_interim_answers_is_little() {
        let mut request = Request::new(Body::empty());
        let mut told = Listener::put_into(&mut request);
        let listener = Listener::of(&request).unwrap();
        let hear = |size: usize| {
            let fields = HeaderMap::from_iter([(LINK, HeaderValue::from_str(&"x".repeat(size)).unwrap())]);
            listener.hear(StatusCode::EARLY_HINTS, fields);
        };
        for size in [MOST_TOLD - 4 - 10, 20, 6] {
            hear(size);
        }
        let sizes: Vec<_> = std::iter::from_fn(|| told.try_recv().ok()).map(|answer| answer.headers()[LINK].len()).collect();
        assert_eq!(sizes, [MOST_TOLD - 4 - 10, 6], "the second was too much, the third was not");
    }
}
