//! Reading and writing under limits of time.

mod buffered;
mod deadline;
mod stall;

pub use buffered::BufferedStream;
pub use deadline::{Deadline, Deadlines, SWEEP_INTERVAL};
