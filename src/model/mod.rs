//! The nouns of Domicile: regions, jurisdictions, countries, places, users, vitals and outcomes.
//!
//! Promises: plain values from the standard library alone, cheap to copy, impossible to build wrong.
//! Never: a clock, a socket, a file, a log line. Start reading at `region`.

pub mod country;
pub mod day;
pub mod jurisdiction;
pub mod outcome;
pub mod place;
pub mod region;
pub mod user;
pub mod vitals;
