//! The protocol between the proxies of different regions: the envelope of a request, the response to it, probes, and
//! their header fields.
//!
//! Promises: one version for the whole protocol; every message reads back as it was written; an envelope that is not valid as a
//! whole is refused. Never: a message from a sender other than a peer whose certificate proved its region.
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
pub mod rates;
pub mod response;

pub use envelope::Envelope;

/// The version of the protocol between peers. A request of another version gets a 421 response before it is judged.
pub const VERSION: i64 = 2;
