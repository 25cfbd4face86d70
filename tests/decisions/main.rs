//! Tests of decisions: cases that a lawyer can read, an independent checker, and properties that hold in thousands of worlds.

mod case_book;
mod checker;
mod comparison;
mod leases;
mod properties;
mod prover;
mod support;
mod worlds;
