//! Reads ledgers, also on a machine that runs no Domicile: verifies them, finds lines, and sums them up.
//!
//! Promises: every line that is shown or counted has been verified with the chain before it. Never: writes into a ledger.

pub mod html;
pub mod query;
pub mod report;
pub mod verify;

use std::borrow::Cow;

use serde::Deserialize;

/// A line of the ledger. A field that its kind does not have is empty.
#[derive(Deserialize)]
pub struct Line<'a> {
    #[serde(borrow)]
    pub kind: Cow<'a, str>,
    #[serde(borrow)]
    pub time: Cow<'a, str>,
    #[serde(borrow, default)]
    pub what: Cow<'a, str>,
    #[serde(borrow, default)]
    pub from: Cow<'a, str>,
    #[serde(borrow, default)]
    pub to: Cow<'a, str>,
    #[serde(borrow, default)]
    pub route: Cow<'a, str>,
    #[serde(borrow, default)]
    pub request: Cow<'a, str>,
    #[serde(borrow, default)]
    pub jurisdiction: Cow<'a, str>,
    #[serde(borrow, default)]
    pub classes: Vec<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub transfers: Vec<Ground<'a>>,
    /// For each class, the part of its rule that allowed the movement.
    #[serde(borrow, default)]
    pub rules: Vec<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub user: Option<Cow<'a, str>>,
    #[serde(default)]
    pub request_bytes: u64,
    #[serde(default)]
    pub response_bytes: u64,
    #[serde(borrow, default)]
    pub counts: Vec<Counted<'a>>,
}

/// The legal grounds of a transfer.
#[derive(Deserialize)]
pub struct Ground<'a> {
    #[serde(borrow)]
    pub basis: Cow<'a, str>,
    #[serde(borrow)]
    pub record: Option<Cow<'a, str>>,
}

/// Events of one kind that a line of counts sums up.
#[derive(Deserialize)]
pub struct Counted<'a> {
    #[serde(borrow)]
    pub what: Cow<'a, str>,
    #[serde(borrow)]
    pub code: Cow<'a, str>,
    #[serde(borrow)]
    pub class: Cow<'a, str>,
    #[serde(borrow)]
    pub from: Cow<'a, str>,
    #[serde(borrow)]
    pub to: Cow<'a, str>,
    pub count: u64,
}

impl Line<'_> {
    /// Reads a line; `None` if it has not the form that Domicile writes.
    pub fn parse(text: &str) -> Option<Line<'_>> {
        serde_json::from_str(text).ok()
    }

    pub fn is_movement(&self) -> bool {
        self.kind == "movement"
    }

    /// Whether the line tells how a request ended that has movements.
    pub fn is_settlement(&self) -> bool {
        self.kind == "settlement"
    }
}
