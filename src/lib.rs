//! Domicile: a geo-routing reverse proxy.
//!
//! It finds each request's home region, serves it there, and refuses what residency rules forbid. The five-minute tour:
//! `model` holds the nouns, `decision` the judgement, `proxy::request` the life of one request, `app` the wiring.

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
pub mod peer;
pub mod probes;
pub mod proxy;
pub mod session;
pub mod tokens;
pub mod transport;
pub mod upstreams;
