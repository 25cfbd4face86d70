//! The protocol between the proxies of different regions: the envelope of a request, probes, and their header fields.
//!
//! Promises: one protocol version for all of it; whatever is written reads back the same, and a message that is not
//! understood whole is not believed in part. Never: read from anyone but a peer whose certificate proved its region.
//! `docs/peer-protocol.md` describes it for other implementations. Start reading at `envelope`.

pub mod envelope;
pub mod fields;
pub mod probe;

pub use envelope::Envelope;

/// The version of the protocol between peers. A request of another version is answered 421 before anything is judged.
pub const VERSION: i64 = 2;
