//! The resources of the process: fits the limits to them.

mod descriptors;

pub use descriptors::fit;
