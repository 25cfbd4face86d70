//! Informational responses (RFC 9110 section 15.2): relayed before the final response. `100` is not relayed, because the
//! proxy itself asks the client for the body.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use http::{HeaderMap, HeaderName, Response};

use crate::engine::recheck::Lease;
use crate::http::pool::InformationalQueue;
use crate::peer::response::labels_of;

use super::super::headers;
use super::super::ingress::ResponseChannel;
use super::context::Context;

/// The informational responses to one request.
pub(super) struct InformationalResponses {
    queue: Rc<InformationalQueue>,
    channel: ResponseChannel,
    /// The tracing headers that may cross the border, if the responses cross one.
    border: Option<Vec<HeaderName>>,
}

impl InformationalResponses {
    pub(super) fn of(context: &Context) -> Self {
        let border = context.border().map(<[_]>::to_vec);
        Self { queue: Rc::default(), channel: context.channel.clone(), border }
    }

    /// The queue that the pool fills.
    pub(super) fn queue(&self) -> Rc<InformationalQueue> {
        Rc::clone(&self.queue)
    }

    /// Awaits `work`, which fills the queue, and meanwhile relays the informational responses that are cleared.
    pub(super) async fn relay_during<T, W>(self, mut work: Pin<&mut W>, lease: &Rc<Lease>) -> T
    where
        W: Future<Output = T>,
    {
        loop {
            let done = poll_fn(|cx| match work.as_mut().poll(cx) {
                Poll::Ready(done) => Poll::Ready(Some(done)),
                Poll::Pending if self.queue.is_empty() => Poll::Pending,
                Poll::Pending => Poll::Ready(None),
            });
            let done = done.await;
            // The final response may arrive together with informational ones.
            while let Some(response) = self.queue.pop() {
                Box::pin(self.relay(response, lease)).await;
            }
            if let Some(done) = done {
                return done;
            }
        }
    }

    async fn relay(&self, mut response: Response<()>, lease: &Lease) {
        if is_cleared(response.headers(), lease) {
            let version = response.version();
            headers::scrub_response(response.headers_mut(), version, self.border.as_deref());
            self.channel.inform(response).await;
        }
    }
}

/// Whether an informational response may be relayed: only if it adds no data class. A new class needs a ledger line
/// before the response leaves, and only the final response waits for one.
fn is_cleared(response: &HeaderMap, lease: &Lease) -> bool {
    let (Some(region), Some(labels)) = (lease.region(), labels_of(response)) else { return false };
    let judged = lease.judged();
    let trail = &judged.decision.trail;
    let is_known = |name: &str| judged.moment.policy().find_class(name).is_some_and(|class| trail.classes.contains(class));
    !lease.has_ended() && trail.is_cleared(region) && labels.iter().all(|name| is_known(name))
}
