//! The protocol between the proxies of different regions: the envelope of a request, probes, and their header fields.
//!
//! Promises: one protocol version for all of it; whatever is written reads back the same, and a message that is not
//! understood whole is not believed in part. Never: read from anyone but a peer whose certificate proved its region.
//! `docs/peer-protocol.md` describes it for other implementations. Start reading at `envelope`.

#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::wildcard_enum_match_arm
    )
)]

pub mod envelope;
pub mod fields;
pub mod probe;

pub use envelope::Envelope;

/// The version of the protocol between peers. A request of another version is answered 421 before anything is judged.
pub const VERSION: i64 = 2;
