//! The state of the process for its operator: gauges, the status report, log lines about regions, and files that expire.

mod expiry;
mod gauges;
mod report;
mod reports;

pub use expiry::{Expiring, of as expiring, transfers as expiring_transfers, until_next_note};
pub use gauges::{State, set as set_gauges};
pub use report::{Loaded, Process, report};
pub use reports::{Policies, hooks};
