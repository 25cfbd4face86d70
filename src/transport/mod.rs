//! Sockets: the only module that opens or accepts connections.
//!
//! Promises: a port belongs to one process; a peer is the region that its certificate names. Never: HTTP, routing,
//! policy. Start reading at `listener`.

pub mod dial;
pub mod listener;
pub mod proxy_protocol;
pub mod resolver;
pub mod stream;
pub mod tcp_info;
pub mod tls;
