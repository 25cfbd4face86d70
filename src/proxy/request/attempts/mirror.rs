//! Copies of reads for another service of the same region, such as a new version that is tried with real traffic. Their responses are
//! discarded, and nothing of them reaches the client.

use std::pin::pin;
use std::rc::Rc;

use http::Request;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use crate::decision::permit::Permitted;
use crate::engine::recheck::Lease;
use crate::http::body::Body;
use crate::http::pool::BoxedRequest;
use crate::http::window::Buffers;
use crate::model::service::ServiceId;
use crate::proxy::Limits;
use crate::proxy::actions::set_path;
use crate::proxy::admission::Admitted;
use crate::proxy::admission::overload::Pressure;
use crate::proxy::body::Progress;
use crate::proxy::worker::Worker;
use crate::services::{Preference, Selection};

use super::Forwarding;
use super::forward::{self, AttemptOptions, Rest, copy_head};
use super::plan::Selected;

/// The copies in flight in the whole process. Further reads have none.
const MAX_MIRRORS: usize = 1_000;

/// The bytes of a response that are read before its connection is given up.
const MAX_RESPONSE: usize = 1 << 20;

impl Forwarding<'_> {
    /// The copy of a request for the mirror of its route, with the service that gets it; `None` for a write, a body, an upgrade, or a
    /// read outside of the share. A request has one copy, however many attempts it needs.
    pub(super) fn mirror_of(&self, request: &Request<Body>) -> Option<(ServiceId, BoxedRequest)> {
        let mirror = self.context.actions.as_ref()?.mirror.as_ref()?;
        let is_plain_read = self.intake.question.is_read && request.body().is_end_stream() && self.options.upgrade.is_none();
        if !is_plain_read || self.done.is_mirrored.replace(true) || fastrand::u8(..100) >= mirror.percent {
            return None;
        }
        Some((mirror.service, copy_head(request)))
    }

    /// Sends the copy of a permitted request to the mirror, in a task of its own that ends with the request's lease. It goes to the
    /// same region under the same ledger line, so that it never leaves the clearance.
    pub(super) fn send_mirror(&self, service: ServiceId, mut copy: BoxedRequest, permitted: &Permitted<BoxedRequest>) {
        let (worker, limits) = (Rc::clone(&self.context.worker), *self.context.limits());
        let Some(service) = self.context.snapshot.services.get(service).cloned() else { return };
        let Some(admitted) = Admitted::enter(&worker.shared.mirrors, MAX_MIRRORS).filter(|_| worker.pressure() == Pressure::None)
        else {
            return;
        };
        let Selection::Upstream(upstream, outstanding) = worker.load.select(&service, &[], Preference::None) else { return };
        if !upstream.base.is_empty() {
            let path = format!("{}{}", upstream.base, copy.uri().path());
            set_path(&mut copy, &path);
        }
        let mut selected = Selected { service, upstream, outstanding: Some(outstanding) };
        let copy = permitted.with_question(copy);
        let (lease, id) = (Rc::clone(self.lease), Rc::clone(&self.intake.id));
        let (client, local) = (self.options.client, self.options.local);
        tokio::task::spawn_local(async move {
            let (progress, buffers) = (Progress::default(), Buffers::none());
            let options = AttemptOptions {
                request_id: &id,
                deadline: Some(Instant::now() + limits.request_timeout),
                response_timeout: limits.response_timeout,
                idle_timeout: limits.idle_timeout,
                is_client_deadline: false,
                body: &progress,
                upgrade: None,
                client,
                local,
                buffers: &buffers,
                informational: None,
                is_fresh: false,
            };
            let exchange = pin!(exchange(&worker, &limits, &mut selected, copy, &options));
            tokio::select! {
                biased;
                () = ended(&lease) => {}
                _ = tokio::time::timeout(limits.request_timeout, exchange) => {}
            }
            drop(admitted);
        });
    }
}

/// Sends the copy, and discards the response.
async fn exchange(
    worker: &Worker,
    limits: &Limits,
    selected: &mut Selected,
    copy: Permitted<BoxedRequest>,
    options: &AttemptOptions<'_>,
) {
    let Ok(response) = forward::to_upstream(worker, limits, selected, copy, None, options).await else { return };
    // Read to its end, so that the connection can serve another request.
    if let Rest::Body(mut body) = response.rest {
        let mut left = MAX_RESPONSE;
        while let Some(Ok(frame)) = body.frame().await {
            let size = frame.data_ref().map_or(0, |data| data.len());
            let Some(rest) = left.checked_sub(size) else { return };
            left = rest;
        }
    }
}

async fn ended(lease: &Lease) {
    std::future::poll_fn(|cx| lease.poll_ended(cx)).await;
}
