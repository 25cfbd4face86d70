//! The demo: three regions in one process, with their app servers, certificates and simulated network delays.
//!
//! Promises: each region is a complete Domicile on its own ports. It connects to the other regions with mutual TLS, through
//! relays that add the delay of the real distance. Never: used outside the commands `demo` and `certificates`, tests and
//! benchmarks. Start reading at [`World`].

pub mod certificates;
mod client;
mod page;
mod relay;
pub mod sample_app;
mod tour;
mod world;

pub use tour::tour;
pub use world::World;
