//! Sockets: the only room that opens or accepts connections.
//!
//! Promises: a port belongs to one process; a peer is who its certificate says; HTTP/1 bytes are judged before anyone
//! parses them; pools belong to one thread and need no lock. Never: routing, policy, a header's meaning. Start reading
//! at `listener`.

pub mod body;
pub mod dial;
pub mod framing;
pub mod http2;
pub mod listener;
pub mod pool;
pub mod proxy_protocol;
pub mod resolver;
pub mod stream;
pub mod tls;
pub mod tunnel;
pub mod window;
