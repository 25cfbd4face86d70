//! Interim answers (RFC 9110 section 15.2): passed on before the answer itself, to clients of HTTP/1.1. `100` is ours to give:
//! the proxy itself asked for it. Over HTTP/2 there is no way to send them yet.

use http::Request;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::transport::body::Body;
use crate::transport::framing::Signals;

use super::super::headers;

/// Interim answers on their way to the client.
pub(super) struct Interim(UnboundedReceiver<Vec<u8>>);

impl Interim {
    /// Listens for those of the upstream that gets this request.
    pub(super) fn of(request: &mut Request<Body>) -> Self {
        let (sender, receiver) = unbounded_channel();
        hyper::ext::on_informational(request, move |answer| {
            if answer.status() != http::StatusCode::CONTINUE {
                let mut fields = answer.headers().clone();
                headers::scrub_answer(&mut fields);
                // A client that has gone needs none.
                let _ = sender.send(head_of(answer.status(), &fields));
            }
        });
        Self(receiver)
    }

    /// Does the work, passing on what comes meanwhile.
    pub(super) async fn during<T>(mut self, work: impl Future<Output = T>, signals: &Signals) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                Some(head) = self.0.recv() => signals.inform(&head).await,
                done = work.as_mut() => return done,
            }
        }
    }
}

fn head_of(status: http::StatusCode, fields: &http::HeaderMap) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {} {}\r\n", status.as_u16(), status.canonical_reason().unwrap_or_default()).into_bytes();
    for (name, value) in fields {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}
