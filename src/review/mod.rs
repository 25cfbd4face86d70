//! Shows a policy to the people who answer for it: who may process and who may carry what, and what changes between two policies.
//!
//! Promises: every statement comes from the same judgement as live traffic. Never: a file, a clock. Start reading at [`Matrix`].

pub mod compare;
pub mod html;
mod matrix;
mod reach;
pub mod replay;

pub use matrix::Matrix;

use crate::decision::narrate;
use crate::decision::policy::Policy;
use crate::decision::policy::chain::Step;
use crate::model::region::RegionSet;

/// The names of regions, in the order of their numbers.
fn names(policy: &Policy, regions: RegionSet) -> Vec<String> {
    regions.iter().map(|region| policy.region_name(region).to_owned()).collect()
}

/// A step of a chain as the configuration names it.
fn step_name(policy: &Policy, step: Step) -> String {
    match step {
        Step::Region(region) => policy.region_name(region).to_owned(),
        Step::Directory | Step::Token | Step::GeoIp | Step::Latency | Step::Refuse => narrate::name_of(step).to_owned(),
    }
}

/// Names for people.
fn listed(names: &[String]) -> String {
    if names.is_empty() { "nowhere".into() } else { names.join(", ") }
}
