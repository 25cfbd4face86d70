//! Relays a response: judges it with its data class labels, records it in the ledger, removes headers that must not
//! leave, streams the body and counts it.

use std::rc::Rc;

use http::Response;
use http::header::{CONTENT_LENGTH, WWW_AUTHENTICATE};
use http_body::Body as _;

use crate::engine::recheck::Lease;
use crate::http::body::Body;
use crate::model::outcome::Code;
use crate::model::region::RegionId;
use crate::peer::response::{code_of, labels_of, write_code, write_declined, write_labels};

use super::super::actions::compress;
use super::super::admission::Admitted;
use super::super::admission::overload::Pressure;
use super::super::admission::rate_limit;
use super::super::body::{BodyFailure, Metered, Progress, Until};
use super::super::ingress::ResponseChannel;
use super::super::intake::Intake;
use super::super::read_monitor::{ReadLimits, ReadMonitor};
use super::super::{headers, reply};
use super::attempts::RegionResponse;
use super::attempts::forward::{ResponseCounters, Rest};
use super::context::Context;
use super::timeouts::MessageTimeouts;
use super::{hint, tunnel};

/// Relays a response to the client or peer that sent the request.
pub(super) async fn relay(
    mut context: Context,
    intake: Intake,
    lease: Rc<Lease>,
    (region, response): RegionResponse,
    admitted: Admitted,
) -> Response<Body> {
    context.log.served_by = Some(region);
    let local = context.snapshot.policy().local;
    // Only a peer's code is trusted, because an app server could send any code.
    context.log.code = code_of(&response.head.headers).filter(|_| region != local);
    // The owner's refusal is a plain HTTP response, which a gRPC client does not understand. It also depends on the
    // user's record, which a uniform refusal must not.
    let rewrites = context.grpc_call.is_some() || context.is_uniform(Some(&intake.question));
    if let Some(code) = context.log.code.filter(|_| rewrites) {
        let mut refusal = context.refuse(code, Some(&intake.question));
        rate_limit::copy_fields(&response.head.headers, refusal.headers_mut());
        if let Some(challenge) = response.head.headers.get(WWW_AUTHENTICATE).filter(|_| code == Code::PasswordRefused) {
            refusal.headers_mut().insert(WWW_AUTHENTICATE, challenge.clone());
        }
        return refusal;
    }
    let labels = match clear(&context, &intake, &lease, region, &response.head.headers).await {
        Ok(labels) => labels,
        Err(code) => return context.refuse(code, Some(&intake.question)),
    };
    let super::attempts::forward::Response { mut head, rest, hold, .. } = response;
    let body = match (rest, &intake.upgrade) {
        (Rest::Body(body), _) => body,
        (Rest::Tunnel(wire), Some(upgrade)) => {
            headers::scrub_response(&mut head.headers, head.version, context.border());
            if context.is_peer() {
                write_peer_fields(&mut head.headers, None, &labels, false);
            }
            return tunnel::open(context, &intake, upgrade, (head, wire), hold, lease, admitted);
        }
        (Rest::Tunnel(_), None) => unreachable!("a tunnel is opened for a request that asked for one"),
    };
    let is_declined_upgrade = intake.upgrade.is_some() && head.status.is_success();
    if is_declined_upgrade && !context.is_peer() && matches!(context.channel, ResponseChannel::Stream(_)) {
        // On a stream of HTTP/2 a status of 2xx would open the tunnel that the app server declined (RFC 8441 section 4).
        return context.refuse(Code::UpgradeRefused, Some(&intake.question));
    }
    headers::scrub_response(&mut head.headers, head.version, context.border());
    if let Some(cors) = context.actions.as_ref().and_then(|actions| actions.cors.as_ref()).filter(|_| region == local)
        && intake.preflight.is_none()
    {
        cors.apply(context.origin.as_ref(), &mut head.headers);
    }
    if let Some(actions) = context.actions.as_ref().filter(|actions| region == local && !actions.response_headers.is_empty()) {
        context.with_values(&intake, &lease.judged(), |values| actions.response_headers.apply(&mut head.headers, values));
    }
    if context.is_peer() {
        write_peer_fields(&mut head.headers, context.log.code, &labels, is_declined_upgrade);
    }
    context.show(Some(&intake.question), &mut head.headers, Some(head.status));
    hint::issue(&context, &intake, &lease.judged(), &mut head.headers);
    context.log.status = Some(head.status);
    let compresses = region == local && context.actions.as_ref().is_some_and(|actions| !actions.compress.is_empty());
    let admit = || {
        let most = if context.worker.pressure() > Pressure::None { 0 } else { context.snapshot.limits.compressions };
        Admitted::enter(&context.worker.shared.compressions, most)
    };
    let method = context.log.method.as_ref();
    let body = if compresses { compress(&mut head, body, method, context.coding, admit) } else { body };
    let body = outgoing_body(context, lease, &mut head, body, hold, admitted);
    Response::from_parts(head, body)
}

/// Judges the response: the request must still be cleared, and so must the data classes of the response's label. New
/// classes are in the ledger when this returns.
async fn clear(
    context: &Context,
    intake: &Intake,
    lease: &Rc<Lease>,
    region: RegionId,
    response: &http::HeaderMap,
) -> Result<Vec<Box<str>>, Code> {
    let refusal = if intake.question.is_read { Code::ResponseNotCleared } else { Code::ResponseWithheld };
    let labels = labels_of(response).ok_or(refusal)?;
    let mut is_labelled = false;
    loop {
        if !lease.renew(&context.worker.moment(), &context.worker.vitals()).await {
            return Err(context.ended_code(intake));
        }
        let before = lease.judged().decision.trail.classes;
        if !labels.is_empty() && !is_labelled {
            is_labelled = true;
            if !lease.add_labels(&labels, &context.worker.vitals()).await {
                return Err(refusal);
            }
        }
        if region == lease.judged().moment.policy().local {
            let recorded = context.registrar(intake).record_label(lease, before).await;
            // The upstream has already made the write, so the code must not invite the client to repeat it.
            recorded.map_err(|code| if intake.question.is_read { code } else { Code::ResponseWithheld })?;
        }
        // The moment may have changed while the request was judged again, or while the ledger was written.
        if lease.is_current(&context.worker.moment()) {
            return Ok(labels);
        }
    }
}

/// Writes the header fields that the sending peer reads: refusal code, data classes and declined upgrade.
fn write_peer_fields(headers: &mut http::HeaderMap, code: Option<Code>, labels: &[Box<str>], is_declined_upgrade: bool) {
    if let Some(code) = code {
        write_code(headers, code);
    }
    write_labels(headers, labels);
    if is_declined_upgrade {
        write_declined(headers);
    }
}

/// The response body: counted, timed, and aborted when the request is no longer cleared. Writes the log when it ends.
fn outgoing_body(
    mut context: Context,
    lease: Rc<Lease>,
    head: &mut http::response::Parts,
    body: Body,
    hold: ResponseCounters,
    admitted: Admitted,
) -> Body {
    let timeouts = MessageTimeouts::of_response(&head.headers, context.limits());
    // A small body that is in memory has no trailers, and the system takes it at once, so that no client can delay it.
    let is_small = body.is_whole() && body.size_hint().exact().is_some_and(|size| size <= SMALL);
    let read_monitor = if is_small { None } else { read_monitor(&context, &timeouts) };
    let progress = Rc::clone(&context.log.response_body);
    let body = match context.grpc_deadline() {
        Some(deadline) if !body.is_end_stream() => {
            head.headers.remove(CONTENT_LENGTH);
            let trailers = reply::call_trailers(Code::DeadlineExceeded);
            Body::streamed(Until::new(body, deadline, trailers, Rc::clone(&progress)))
        }
        _ => body,
    };
    let mut body = Metered::new(body, timeouts.response_limits(), Rc::clone(&progress));
    if let Some(read_monitor) = read_monitor {
        body = body.with_read_monitor(read_monitor);
    }
    let abort = context.channel.abort_handle();
    let body = end_with(lease, body, Rc::clone(&progress), abort);
    let body = if is_small { body } else { with_scrubbed_trailers(body, &context) };
    let body = body.on_end(move || {
        drop((hold, admitted));
        if progress.failure.get() == Some(BodyFailure::DeadlineExceeded) {
            context.log.code = Some(Code::DeadlineExceeded);
        }
        context.log.write();
    });
    Body::streamed(body)
}

/// The largest body that is not monitored while it is written: less than any send buffer of the system.
const SMALL: u64 = 4 << 10;

/// Removes the fields from the trailers that must not leave.
fn with_scrubbed_trailers(body: Metered, context: &Context) -> Metered {
    let border = context.border().map(<[_]>::to_vec);
    body.scrubbed(move |trailers: &mut http::HeaderMap| {
        headers::scrub_trailers(trailers, |_| false);
        if let Some(allowed) = &border {
            headers::drop_tracing(trailers, allowed);
        }
    })
}

/// Ends the body with the lease: at its next frame, or by `abort` while the client reads nothing.
fn end_with(lease: Rc<Lease>, body: Metered, progress: Rc<Progress>, abort: impl Fn() + 'static) -> Metered {
    lease.on_end(move || {
        if !progress.has_ended() {
            progress.failure.set(Some(BodyFailure::NoLongerCleared));
            abort();
        }
    });
    body.with_lease(lease)
}

/// Monitors how fast a client reads. `None` for a peer, which monitors its own clients.
fn read_monitor(context: &Context, timeouts: &MessageTimeouts) -> Option<Rc<ReadMonitor>> {
    if context.is_peer() {
        return None;
    }
    let owns_connection = matches!(context.channel, ResponseChannel::Connection(_));
    let limits = ReadLimits { idle_timeout: timeouts.idle, min_rate: timeouts.client_min_rate(), owns_connection };
    let tcp_info = context.connection.tcp_info.clone();
    let acknowledged = Box::new(move || tcp_info.acknowledged());
    Some(context.worker.read_monitors.watch(limits, acknowledged, context.channel.abort_handle()))
}
