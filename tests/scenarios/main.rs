//! Whole proxies with real sockets and real TLS in front of recording upstreams.
//!
//! The strongest assertion is the negative one: the other region's proxy and upstream saw nothing.

mod support;

mod actions;
mod cli;
mod control;
mod discovery;
mod documentation;
mod exits;
mod failover;
mod faults;
mod files;
mod forwarding;
mod framing;
mod hostile;
mod http2;
mod identity;
mod ledger;
mod limits;
mod listeners;
mod observability;
mod operation;
mod overload;
mod peers;
mod residency;
mod revocation;
mod services;
mod streams;
mod upstreams;
mod windows;
mod wire;
