//! Tunnels of upgraded connections. A tunnel runs under the lease of the request that opened it, and closes when the
//! request is no longer cleared.

use std::future::poll_fn;
use std::rc::Rc;

use http::header::{self, HeaderMap, HeaderValue};
use http::response::Parts;
use http::{Response, StatusCode};

use crate::engine::recheck::Lease;
use crate::http::body::Body;
use crate::http::connection::ExchangeInFlight;
use crate::http::tunnel::{self, Ending, Traffic, Wire};
use crate::model::outcome::Code;

use super::super::admission::Admitted;
use super::super::body::BodyFailure;
use super::super::ingress::ResponseChannel;
use super::super::intake::{Intake, Upgrade};
use super::attempts::forward::ResponseCounters;
use super::context::Context;

/// Accepts the upgrade towards the client with a head whose fields are already scrubbed, and relays bytes between the client and the server.
pub(super) fn open(
    mut context: Context,
    intake: &Intake,
    upgrade: &Upgrade,
    (head, server): (Parts, Wire),
    hold: ResponseCounters,
    lease: Rc<Lease>,
    admitted: Admitted,
) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.headers_mut() = head.headers;
    for name in [header::CONTENT_LENGTH, header::SEC_WEBSOCKET_ACCEPT] {
        response.headers_mut().remove(name);
    }
    let status = match &context.channel {
        ResponseChannel::Connection(_) if upgrade.is_connect() => StatusCode::OK,
        ResponseChannel::Connection(_) => {
            if write_upgrade_fields(response.headers_mut(), upgrade).is_none() {
                return context.refuse(Code::UpstreamBad, Some(&intake.question));
            }
            StatusCode::SWITCHING_PROTOCOLS
        }
        ResponseChannel::Stream(_) => StatusCode::OK,
    };
    *response.status_mut() = status;
    context.show(Some(&intake.question), response.headers_mut(), Some(head.status));
    context.log.status = Some(status);
    let in_flight = ExchangeInFlight::count(&context.connection.connection_state);
    let channel = context.channel.clone();
    channel.hand_over(Box::new(move |client| {
        Box::pin(async move {
            run(context, client, server, hold, lease).await;
            drop((in_flight, admitted));
        })
    }));
    response
}

/// Writes the header fields of a 101 response (RFC 9110 section 7.8, RFC 6455 section 4.2.2).
fn write_upgrade_fields(headers: &mut HeaderMap, upgrade: &Upgrade) -> Option<()> {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_str(&upgrade.protocol).ok()?);
    if let Some(key) = &upgrade.key {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, HeaderValue::from_str(&tunnel::websocket_accept(key.as_bytes())).ok()?);
    }
    Some(())
}

async fn run(mut context: Context, client: Wire, server: Wire, hold: ResponseCounters, lease: Rc<Lease>) {
    let traffic = Rc::new(Traffic::default());
    let idle = context.limits().tunnel_idle;
    let failure = tokio::select! {
        biased;
        () = poll_fn(|cx| lease.poll_ended(cx)) => Some(BodyFailure::NoLongerCleared),
        ending = tunnel::join(client, server, idle, Rc::clone(&traffic)) => match ending {
            Ending::Closed | Ending::Broken => None,
            Ending::Idle => Some(BodyFailure::IdleTimeout),
        },
    };
    drop(hold);
    context.log.request_body.bytes.set(traffic.up.get());
    context.log.response_body.bytes.set(traffic.down.get());
    context.log.response_body.failure.set(failure);
    context.log.write();
}
