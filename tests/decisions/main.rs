//! Judgement, tried by cases that a lawyer can read and by properties over thousands of invented worlds.

mod case_book;
mod properties;
