//! Three regions in one process, with everything around them: it plays the world.
//!
//! Promises: each region is a whole Domicile on ports of its own, joined to the others by mutual TLS through relays that
//! take as long as the real distance. Never: used by anything but `demo` and the command that makes trial certificates.

pub mod certificates;
mod client;
mod relay;
mod sample_app;
mod tour;
mod world;

pub use tour::tour;
pub use world::World;
