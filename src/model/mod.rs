//! The basic types of Domicile: regions, jurisdictions, countries, places, users, vitals and outcomes.
//!
//! Promises: plain values that need only the standard library, are cheap to copy and cannot hold an invalid state.
//! Never: a clock, a socket, a file, a log line. Start reading at `region`.

pub mod coordinates;
pub mod country;
pub mod day;
pub mod jurisdiction;
pub mod outcome;
pub mod place;
pub mod region;
pub mod service;
pub mod user;
pub mod vitals;
