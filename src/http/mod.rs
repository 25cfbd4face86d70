//! HTTP messages and the connections that carry them.
//!
//! Promises: a message is read only if its end is unambiguous; bodies stream through bounded buffers; a pool belongs to one
//! thread and needs no lock. Each version of HTTP has its own module, with the same rules for messages. Never: routing, policy, the meaning of a header. Start reading at `pool`.

pub mod body;
pub mod compression;
pub mod connection;
pub mod http1;
pub mod http2;
pub mod io;
pub mod lists;
pub mod names;
pub mod pool;
pub mod sent;
pub mod tunnel;
pub mod window;
