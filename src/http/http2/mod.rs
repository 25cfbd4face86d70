//! HTTP/2 messages on streams of the `h2` crate, for the client and the server side: bodies, tunnels, frame limits and
//! keep-alive pings.
//!
//! hyper's HTTP/2, which uses the same crate, does not fit: it drops informational responses in both directions, does not
//! say which stream a request came on, and does not limit how often a client resets its requests (rapid reset,
//! CVE-2023-44487).

mod body;
mod exchange;
mod frame_guard;
mod keepalive;
mod monitored_io;
mod reader;
mod tunnel;
mod writer;

use super::names::{KEEP_ALIVE, PROXY_CONNECTION};

use http::HeaderMap;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use http_body::Body as _;

pub use body::{Received, Upload, send};
pub use exchange::Exchange;
pub use frame_guard::{FrameGuard, PeerSettings, Reset};
pub use keepalive::Keepalive;
pub use monitored_io::{FrameBatch, MonitoredIo};
pub use reader::StreamReader;
pub use tunnel::Tunnel;
pub use writer::{Piece, StreamWriter};

/// Prepares the headers of a message for HTTP/2: removes connection-specific headers (RFC 9113 section 8.2.2), and adds
/// `Content-Length` if the message has a body of known length.
pub fn fit(fields: &mut HeaderMap, body: &super::body::Body) {
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE, KEEP_ALIVE, PROXY_CONNECTION] {
        fields.remove(name);
    }
    if let (false, Some(length)) = (body.is_end_stream(), body.size_hint().exact()) {
        fields.entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
}
