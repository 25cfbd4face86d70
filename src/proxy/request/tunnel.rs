//! An upgraded connection: judged as the request that asked for it, and again whenever the rules change.

use std::future::poll_fn;
use std::rc::Rc;

use http::header::{self, HeaderMap, HeaderValue};
use http::response::Parts;
use http::{Response, StatusCode};

use crate::http::body::Body;
use crate::http::framing::InFlight;
use crate::http::tunnel::{self, Ending, Traffic, Wire};
use crate::model::outcome::Code;

use super::super::body::Broken;
use super::super::forward::Hold;
use super::super::headers;
use super::super::ingress::{Back, Session};
use super::super::intake::Upgrade;
use super::account::Account;
use super::watch::Watch;

/// Answers the client and joins both ends.
pub(super) fn open(
    mut account: Account,
    session: &Rc<Session>,
    upgrade: &Upgrade,
    (head, server): (Parts, Wire),
    hold: Hold,
    (back, watch): (Back, Watch),
) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.headers_mut() = head.headers;
    headers::scrub_answer(response.headers_mut());
    for name in [header::CONTENT_LENGTH, header::SEC_WEBSOCKET_ACCEPT] {
        response.headers_mut().remove(name);
    }
    let status = match &back {
        Back::Connection(_) if upgrade.is_connect() => StatusCode::OK,
        Back::Connection(_) => {
            if announce(response.headers_mut(), upgrade).is_none() {
                return account.refuse(Code::UpstreamBad);
            }
            StatusCode::SWITCHING_PROTOCOLS
        }
        Back::Stream(_) => StatusCode::OK,
    };
    *response.status_mut() = status;
    account.answered(status);
    let busy = InFlight::count(&session.connection_state);
    back.hand_over(Box::new(move |client| {
        Box::pin(async move {
            run(account, client, server, hold, watch).await;
            drop(busy);
        })
    }));
    response
}

/// RFC 9110 section 7.8, RFC 6455 section 4.2.2.
fn announce(headers: &mut HeaderMap, upgrade: &Upgrade) -> Option<()> {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_str(&upgrade.protocol).ok()?);
    if let Some(key) = &upgrade.key {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, HeaderValue::from_str(&tunnel::accept_of(key.as_bytes())).ok()?);
    }
    Some(())
}

async fn run(mut account: Account, client: Wire, server: Wire, hold: Hold, watch: Watch) {
    let traffic = Rc::new(Traffic::default());
    let idle = account.snapshot.limits.tunnel_idle;
    let broken = tokio::select! {
        biased;
        () = poll_fn(|cx| watch.poll_uncleared(cx)) => Some(Broken::NoLongerCleared),
        ending = tunnel::join(client, server, idle, Rc::clone(&traffic)) => match ending {
            Ending::Closed | Ending::Broken => None,
            Ending::Idle => Some(Broken::Silent),
        },
    };
    drop(hold);
    account.request_body.bytes.set(traffic.up.get());
    account.answer_body.bytes.set(traffic.down.get());
    account.answer_body.broken.set(broken);
    account.tell();
}
