//! Domicile: a geo-routing reverse proxy.
//!
//! It finds each request's home region, serves the request there, and refuses requests that residency rules forbid. Start
//! reading at `proxy::request`, the life of one request. `model` defines the domain types, `decision` decides where a request
//! may go, and `app` connects the modules.

pub mod access_log;
pub mod acme;
pub mod admin;
pub mod app;
pub mod audit;
pub mod cli;
pub mod config;
pub mod decision;
pub mod demo;
pub mod directory;
pub mod engine;
pub mod geoip;
pub mod http;
pub mod metrics;
pub mod model;
pub mod page;
pub mod passwords;
pub mod peer;
pub mod probes;
pub mod prove;
pub mod proxy;
pub mod review;
pub mod services;
pub mod session;
pub mod tokens;
pub mod traces;
pub mod transport;
