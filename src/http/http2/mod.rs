//! HTTP/2 messages on streams of the `h2` crate, the same for those who ask and those who answer: bodies, tunnels, and the
//! signs of life of a connection.
//!
//! Why not hyper's HTTP/2, which is made of the same crate: it drops interim answers in both directions, does not say which
//! stream a request came on, and lets a client that resets what it asked for ask again without end.

mod body;
mod exchange;
mod frame_guard;
mod keepalive;
mod reader;
mod tunnel;
mod writer;

use http::HeaderMap;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use http_body::Body as _;

pub use body::{Received, Upload, send};
pub use exchange::Exchange;
pub use frame_guard::{FrameGuard, PeerSettings};
pub use keepalive::{Keepalive, MonitoredIo};
pub use reader::StreamReader;
pub use tunnel::Tunnel;
pub use writer::{Piece, StreamWriter};

/// Makes the fields of a message fit for HTTP/2: none that concern a connection (RFC 9113 section 8.2.2), and the length of
/// its body, where that is known.
pub fn fit(fields: &mut HeaderMap, body: &super::body::Body) {
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        fields.remove(name);
    }
    for name in ["keep-alive", "proxy-connection"] {
        fields.remove(name);
    }
    if let (false, Some(length)) = (body.is_end_stream(), body.size_hint().exact()) {
        fields.entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
}
