//! Informational responses (RFC 9110 section 15.2): relayed before the final response. `100` is not relayed, because the
//! proxy itself asks the client for the body.

use std::pin::Pin;
use std::rc::Rc;

use http::{HeaderMap, HeaderName, Request, Response};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::engine::recheck::Lease;
use crate::http::body::Body;
use crate::http::pool::InformationalSender;
use crate::peer::response::labels_of;

use super::super::headers;
use super::super::ingress::ResponseChannel;
use super::context::Context;

/// The informational responses to one request.
pub(super) struct InformationalResponses {
    responses: UnboundedReceiver<Response<()>>,
    channel: ResponseChannel,
    /// The tracing headers that may cross the border, if the responses cross one.
    border: Option<Vec<HeaderName>>,
}

impl InformationalResponses {
    /// Registers a receiver for the informational responses to this request.
    pub(super) fn of(request: &mut Request<Body>, context: &Context) -> Self {
        let border = context.border().map(<[_]>::to_vec);
        Self { responses: InformationalSender::put_into(request), channel: context.channel.clone(), border }
    }

    /// Awaits `work`, and meanwhile relays the informational responses that are cleared.
    pub(super) async fn relay_during<T, W>(mut self, mut work: Pin<&mut W>, lease: &Rc<Lease>) -> T
    where
        W: Future<Output = T>,
    {
        loop {
            tokio::select! {
                biased;
                Some(response) = self.responses.recv() => self.relay(response, lease).await,
                done = work.as_mut() => {
                    // The final response may arrive together with the last informational one.
                    while let Ok(response) = self.responses.try_recv() {
                        self.relay(response, lease).await;
                    }
                    return done;
                }
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
