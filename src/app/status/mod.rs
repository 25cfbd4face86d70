//! What an operator sees of the process: gauges, log lines about regions, and files that stop being valid.

mod expiry;
mod gauges;
mod report;
mod reports;

pub use expiry::{Expiring, of as expiring};
pub use gauges::{State, set as set_gauges};
pub use report::{Loaded, Process, report};
pub use reports::{Policies, hooks};
