//! Forwards informational (1xx) responses (RFC 9110 section 15.2) to the client of a request.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use http::{HeaderMap, Response, StatusCode};

/// Header bytes of one request's informational responses that are forwarded. They are buffered while the client does not read,
/// so further responses are dropped; the client only loses hints.
const MAX_FORWARDED: usize = 16 << 10;

/// The informational responses to one request that wait to be relayed. The queue needs no bound, because a response has at most
/// [`MAX_INFORMATIONAL`](crate::http::http1::MAX_INFORMATIONAL) of them. The pool fills it only while its sending is polled.
#[derive(Debug, Default)]
pub struct InformationalQueue {
    waiting: RefCell<VecDeque<Response<()>>>,
    /// Header bytes forwarded so far.
    forwarded: Cell<usize>,
}

impl InformationalQueue {
    /// Adds a response. Drops `100 Continue`, because the proxy itself sends it to the client.
    pub(super) fn push(&self, status: StatusCode, fields: HeaderMap) {
        let bytes: usize = fields.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        let forwarded = self.forwarded.get() + bytes;
        if status != StatusCode::CONTINUE && forwarded <= MAX_FORWARDED {
            self.forwarded.set(forwarded);
            let mut response = Response::new(());
            *response.status_mut() = status;
            *response.headers_mut() = fields;
            self.waiting.borrow_mut().push_back(response);
        }
    }

    /// Takes the oldest response.
    pub fn pop(&self) -> Option<Response<()>> {
        self.waiting.borrow_mut().pop_front()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::LINK;

    use super::*;

    #[test]
    fn forwarded_informational_responses_are_bounded() {
        let queue = InformationalQueue::default();
        for size in [MAX_FORWARDED - 4 - 10, 20, 6] {
            let fields = HeaderMap::from_iter([(LINK, HeaderValue::from_str(&"x".repeat(size)).unwrap())]);
            queue.push(StatusCode::EARLY_HINTS, fields);
        }
        let sizes: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|hint| hint.headers()[LINK].len()).collect();
        assert_eq!(sizes, [MAX_FORWARDED - 4 - 10, 6], "the second exceeds the limit, the third does not");
    }
}
