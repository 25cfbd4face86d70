//! Tests of decisions: cases that a lawyer can read, and properties that hold in thousands of random worlds.

mod case_book;
mod support;
