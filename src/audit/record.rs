//! The lines of the ledger: one JSON object each.

use std::collections::HashMap;

use jiff::Timestamp;
use serde_json::json;

use crate::model::vitals::PolicyHash;

/// Data that crosses a border on behalf of one request.
pub struct Movement<'a> {
    pub request: &'a str,
    pub direction: Direction,
    pub from: &'a str,
    pub to: &'a str,
    pub route: &'a str,
    pub classes: Vec<&'a str>,
    /// The pseudonym of the user, if the request has one.
    pub user: Option<String>,
    /// The user's, which decides what may be processed where.
    pub jurisdiction: &'a str,
    pub evidence: Option<&'a str>,
    /// The legal bases of the transfers that allow it, if it needs any.
    pub bases: Vec<&'a str>,
    /// Report-only mode let it through.
    pub reported: bool,
    pub policy: PolicyHash,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// A request, handed to the region that serves it.
    Request,
    /// The answer, given to the peer that asked.
    Answer,
}

impl Movement<'_> {
    pub(super) fn line(&self) -> String {
        let direction = match self.direction {
            Direction::Request => "request",
            Direction::Answer => "answer",
        };
        let line = json!({
            "time": now(),
            "kind": "movement",
            "what": direction,
            "request": self.request,
            "from": self.from,
            "to": self.to,
            "route": self.route,
            "classes": self.classes,
            "user": self.user,
            "jurisdiction": self.jurisdiction,
            "evidence": self.evidence,
            "bases": self.bases,
            "reported": self.reported,
            "policy": self.policy.to_string(),
        });
        format!("{line}\n")
    }
}

/// What is counted: no user, no path, no address.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Count {
    /// `refusal`, `redirect` or `movement`.
    pub what: &'static str,
    pub code: &'static str,
    pub class: Box<str>,
    pub from: Box<str>,
    pub to: Box<str>,
}

/// The counts since the last line of them.
#[derive(Default)]
pub(super) struct Counts {
    counts: HashMap<Count, u64>,
}

impl Counts {
    pub(super) fn add(&mut self, what: Count) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Puts counts back that could not be written.
    pub(super) fn restore(&mut self, taken: Self) {
        for (what, count) in taken.counts {
            *self.counts.entry(what).or_default() += count;
        }
    }

    pub(super) fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// One line for all of them; `None` if there is nothing to tell.
    pub(super) fn line(&self) -> Option<String> {
        if self.counts.is_empty() {
            return None;
        }
        let mut counts: Vec<_> = self.counts.iter().collect();
        counts.sort_by(|(a, _), (b, _)| {
            (a.what, a.code, &a.class, &a.from, &a.to).cmp(&(b.what, b.code, &b.class, &b.from, &b.to))
        });
        let entry = |(what, count): &(&Count, &u64)| json!({ "what": what.what, "code": what.code, "class": what.class, "from": what.from, "to": what.to, "count": count });
        let line = json!({ "time": now(), "kind": "counts", "counts": counts.iter().map(entry).collect::<Vec<_>>() });
        Some(format!("{line}\n"))
    }
}

fn now() -> String {
    let now = Timestamp::now();
    format!("{now:.6}")
}
