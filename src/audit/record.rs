//! The lines of the ledger: one JSON object each.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::json;

use crate::model::vitals::PolicyHash;

use super::chain::{Hash, now};
use super::signing::{PublicKey, Signer};

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
    /// The user's jurisdiction, which decides where the data may be processed.
    pub jurisdiction: &'a str,
    pub evidence: Option<&'a str>,
    /// The grounds of the transfers that allow the movement; empty if it needs none.
    pub grounds: Vec<Grounds<'a>>,
    /// Whether only report-only mode allowed the movement.
    pub reported: bool,
    /// For each class, the part of its rule that allows it, such as `personal.transfers`.
    pub rules: Vec<String>,
    pub policy: PolicyHash,
}

/// The legal grounds of a transfer, in the operator's words.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Grounds<'a> {
    pub basis: &'a str,
    pub record: Option<&'a str>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// A request, sent to the region that serves it.
    Request,
    /// A request, sent to the same region again under a new judgement.
    Retry,
    /// A request, sent to another region after the first.
    Failover,
    /// A request that asks for a tunnel, such as a WebSocket.
    Upgrade,
    /// A question of a browser before its request (CORS).
    Preflight,
    /// A response, sent to the peer that forwarded the request.
    Answer,
    /// Data of another jurisdiction's user, processed here under a transfer; `from` is the user's jurisdiction.
    Processing,
}

impl Movement<'_> {
    pub(super) fn line(&self) -> String {
        let direction = match self.direction {
            Direction::Request => "request",
            Direction::Retry => "retry",
            Direction::Failover => "failover",
            Direction::Upgrade => "upgrade",
            Direction::Preflight => "preflight",
            Direction::Answer => "answer",
            Direction::Processing => "processing",
        };
        let line = MovementLine {
            classes: &self.classes,
            evidence: self.evidence,
            from: self.from,
            jurisdiction: self.jurisdiction,
            kind: "movement",
            policy: &self.policy.to_string(),
            reported: self.reported,
            request: self.request,
            route: self.route,
            rules: &self.rules,
            time: &now(),
            to: self.to,
            transfers: &self.grounds,
            user: self.user.as_deref(),
            what: direction,
        };
        let mut line = serde_json::to_string(&line).expect("texts and lists of texts are valid JSON");
        line.push('\n');
        line
    }
}

/// How a request ended whose movements have lines. Without this line, nobody knows: the process ended before.
pub struct Settlement<'a> {
    pub request: &'a str,
    /// The number of the request's movements in this ledger.
    pub movements: u32,
    pub outcome: Outcome,
    /// The code of a refusal or a failure.
    pub code: Option<&'a str>,
    /// `None` if the client left before there was a response.
    pub status: Option<u16>,
    /// The region that responded.
    pub served_by: Option<&'a str>,
    /// The region that the body was sent to, whether or not it responded.
    pub sent_to: Option<&'a str>,
    /// Bytes of the body of the request, and of the response.
    pub request_bytes: u64,
    pub response_bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The response was relayed whole, or the tunnel was closed by one of its ends.
    Answered,
    /// A proxy responded instead of an app server.
    Refused,
    /// The request or the response broke off.
    Interrupted,
    /// The client left before there was a response.
    Abandoned,
}

impl Settlement<'_> {
    pub(super) fn line(&self) -> String {
        let outcome = match self.outcome {
            Outcome::Answered => "answered",
            Outcome::Refused => "refused",
            Outcome::Interrupted => "interrupted",
            Outcome::Abandoned => "abandoned",
        };
        let line = SettlementLine {
            code: self.code,
            kind: "settlement",
            movements: self.movements,
            outcome,
            request: self.request,
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            sent_to: self.sent_to,
            served_by: self.served_by,
            status: self.status,
            time: &now(),
        };
        let mut line = serde_json::to_string(&line).expect("texts and numbers are valid JSON");
        line.push('\n');
        line
    }
}

/// The fields of a settlement, in the order of the line.
#[derive(Serialize)]
struct SettlementLine<'a> {
    code: Option<&'a str>,
    kind: &'a str,
    movements: u32,
    outcome: &'a str,
    request: &'a str,
    request_bytes: u64,
    response_bytes: u64,
    sent_to: Option<&'a str>,
    served_by: Option<&'a str>,
    status: Option<u16>,
    time: &'a str,
}

/// A line about the start or the end of a process.
pub(super) fn process_line(what: &str, detail: &str) -> String {
    format!("{}\n", json!({ "detail": detail, "kind": "process", "time": now(), "what": what }))
}

/// A checkpoint: the hash of the line before it, signed. `next` is the key that signs from now on, if it is another one.
pub(super) fn checkpoint_line(signer: &Signer, head: Hash, next: Option<PublicKey>) -> String {
    let (time, next) = (now(), next.map(|key| key.to_string()));
    let (key, signature) = (signer.public_key().to_string(), signer.sign(head, &time, next.as_deref()));
    let mut line = json!({ "key": key, "kind": "checkpoint", "region": signer.region(), "signature": signature, "time": time });
    if let Some((fields, next)) = line.as_object_mut().zip(next) {
        fields.insert("next".into(), next.into());
    }
    format!("{line}\n")
}

/// A line about a command of an operator; `changes` are the differences that it makes in the policy, in words.
pub(super) fn action_line(what: &str, detail: &str, changes: &[String]) -> String {
    let mut line = json!({ "time": now(), "kind": "action", "what": what, "detail": detail });
    if let Some(fields) = line.as_object_mut().filter(|_| !changes.is_empty()) {
        fields.insert("changes".into(), json!(changes));
    }
    format!("{line}\n")
}

/// The fields of a movement, in the order of the line: sorted, and after `chain`, which the writer adds.
#[derive(Serialize)]
struct MovementLine<'a> {
    classes: &'a [&'a str],
    evidence: Option<&'a str>,
    from: &'a str,
    jurisdiction: &'a str,
    kind: &'a str,
    policy: &'a str,
    reported: bool,
    request: &'a str,
    route: &'a str,
    rules: &'a [String],
    time: &'a str,
    to: &'a str,
    transfers: &'a [Grounds<'a>],
    user: Option<&'a str>,
    what: &'a str,
}

/// A kind of event that is counted; it contains no user, path or address.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Count {
    /// `refusal`, `redirect` or `movement`.
    pub what: &'static str,
    pub code: &'static str,
    pub class: Box<str>,
    pub from: Box<str>,
    pub to: Box<str>,
}

/// The counts since the last line of counts.
#[derive(Default)]
pub(super) struct Counts {
    counts: HashMap<Count, u64>,
}

impl Counts {
    pub(super) fn add(&mut self, event: Count) {
        self.add_many(event, 1);
    }

    fn add_many(&mut self, event: Count, more: u64) {
        let count = self.counts.entry(event).or_default();
        *count = count.saturating_add(more);
    }

    /// Puts back counts that could not be written.
    pub(super) fn restore(&mut self, taken: Self) {
        for (event, count) in taken.counts {
            self.add_many(event, count);
        }
    }

    pub(super) fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// One line with all counts; `None` if there are none.
    pub(super) fn line(&self) -> Option<String> {
        if self.counts.is_empty() {
            return None;
        }
        let mut counts: Vec<_> = self.counts.iter().collect();
        counts.sort_by(|(a, _), (b, _)| {
            (a.what, a.code, &a.class, &a.from, &a.to).cmp(&(b.what, b.code, &b.class, &b.from, &b.to))
        });
        let entry = |(event, count): &(&Count, &u64)| json!({ "what": event.what, "code": event.code, "class": event.class, "from": event.from, "to": event.to, "count": count });
        let line = json!({ "time": now(), "kind": "counts", "counts": counts.iter().map(entry).collect::<Vec<_>>() });
        Some(format!("{line}\n"))
    }
}
