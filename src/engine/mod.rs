//! Judging live: makes decisions and permits for requests, and ends them when they are no longer valid.
//!
//! Promises: facts are made in one place, asynchronously and with a deadline, for live traffic, `explain` and the tests alike;
//! a request is sent only under a permit whose ledger line is written; every open request is judged again when the policy, the
//! user table, the day or the age of the GeoIP database changes, and ends when it is no longer cleared. Never: a socket, a
//! header. Start reading at `judge`.

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

pub mod explain;
pub mod facts;
pub mod judge;
pub mod path;
pub mod permit;
pub mod question;
pub mod recheck;
pub mod snapshot;
