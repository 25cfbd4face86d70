//! The way back: an answer's label is judged, its fields are scrubbed, its body is streamed and counted.

use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use http::header::{CACHE_CONTROL, CONTENT_LENGTH, EXPIRES, HeaderValue, SET_COOKIE};
use http::{HeaderMap, Response};
use http_body::Body as _;

use crate::decision::facts::Ingress;
use crate::decision::may_return;
use crate::decision::policy::ClassSet;
use crate::decision::verdict::{Stop, Trail};
use crate::http::body::Body;
use crate::model::jurisdiction::Jurisdiction;
use crate::model::outcome::Code;
use crate::model::region::RegionId;
use crate::session::{self, Hint};

use super::super::body::{Broken, Metered, Until};
use super::super::forward::{Answer, Rest};
use super::super::ingress::{Back, Session};
use super::super::intake::Intake;
use super::super::{Snapshot, headers, reply};
use super::account::Account;
use super::pacing::Pacing;
use super::watch::Watch;
use super::{Judged, tunnel};

/// Relays an answer: its label judged first, its fields scrubbed, its body counted.
pub(super) fn relay(
    mut account: Account,
    session: &Rc<Session>,
    intake: &Intake,
    stop: Stop,
    answer: Answer,
    (back, watch, label): (Back, Watch, Label),
) -> Response<Body> {
    account.served_by = Some(stop.region());
    // Only a peer's word counts: an upstream could say anything.
    if stop.region() != account.snapshot.policy.local {
        account.code = answer.code();
        // The owner refuses in terms of HTTP, whoever asks.
        if let Some(code) = account.code.filter(|_| account.is_call()) {
            return account.refuse(code);
        }
    }
    if !label.clears(&answer.head.headers) {
        return account.refuse(if intake.is_read { Code::AnswerNotCleared } else { Code::AnswerWithheld });
    }
    let Answer { mut head, rest, hold } = answer;
    let body = match (rest, &intake.upgrade) {
        (Rest::Body(body), _) => body,
        (Rest::Tunnel(wire), Some(upgrade)) => return tunnel::open(account, session, upgrade, (head, wire), hold, (back, watch)),
        (Rest::Tunnel(_), None) => unreachable!("a tunnel is opened for who asked for one"),
    };
    let peer_code = account.code.filter(|_| matches!(account.arrival.ingress, Ingress::Peer(_)));
    headers::scrub_answer(&mut head.headers);
    if let Some(code) = peer_code {
        head.headers.insert("domicile-code", HeaderValue::from_static(code.as_str()));
    }
    give_hint(&account, intake, &mut head.headers);
    account.answered(head.status);
    let pacing = Pacing::of_answer(&head.headers, &account.snapshot.limits);
    // A peer answers for its own clients.
    let delivery = (account.arrival.ingress == Ingress::Client)
        .then(|| account.worker.deliveries.watch(pacing.idle, pacing.pace_of_taker(), back.cutter()));
    let body = match account.deadline_of_call() {
        Some(deadline) if !body.is_end_stream() => {
            head.headers.remove(CONTENT_LENGTH);
            let trailers = reply::call_trailers(Code::DeadlineExceeded);
            Body::streamed(Until::new(body, deadline, trailers, Rc::clone(&account.answer_body)))
        }
        _ => body,
    };
    let mut body = Metered::new(body, pacing.allowance_of_answer(), Rc::clone(&account.answer_body));
    if let Some(delivery) = delivery {
        body = body.delivered(delivery);
    }
    let body = body.scrubbed(|trailers| headers::scrub_trailers(trailers, |_| false)).watched(watch.recheck()).then(move || {
        drop(hold);
        if account.answer_body.broken.get() == Some(Broken::OutOfTime) {
            account.code = Some(Code::DeadlineExceeded);
        }
        account.tell();
    });
    Response::from_parts(head, Body::streamed(body))
}

/// Seals the directory's record of a proven user into a cookie: it proves the user, and saves the next lookup.
fn give_hint(account: &Account, intake: &Intake, answer: &mut HeaderMap) {
    let (Some(seal), Some((user, _))) = (&account.snapshot.seal, &intake.identity.user) else { return };
    let is_client = account.arrival.ingress == Ingress::Client && intake.is_https && intake.identity.is_fresh;
    let (Some(record), Some(directory), true) = (account.record, &account.snapshot.directory, is_client && account.is_of(user))
    else {
        return;
    };
    let (policy, table, now) = (&account.snapshot.policy, directory.version(), SystemTime::now());
    if !policy.regions.contains(record.home) {
        return;
    }
    // Half its life is time enough to give a new one.
    let is_good = |hint: &Hint| hint.table == table && hint.expires > now + seal.settings.lifetime / 2;
    if intake.identity.hint.as_ref().is_some_and(is_good) || !may_be_private(answer) {
        return;
    }
    // It proves no longer than what it was given for.
    let latest = now + seal.settings.lifetime;
    let expires = intake.identity.token.as_ref().map_or(latest, |token| token.expires().min(latest));
    let lifetime = expires.duration_since(now).unwrap_or_default().as_secs();
    let jurisdiction = record.jurisdiction.map(|id| policy.jurisdiction_name(Jurisdiction::Named(id)).to_owned());
    let (home, table) = (policy.region_name(record.home).to_owned(), table.to_owned());
    let hint = Hint { user: user.clone(), home, jurisdiction, table, expires };
    let cookie = seal.seal(&hint).filter(|_| lifetime > 0).and_then(|sealed| {
        let attributes = format!("Max-Age={lifetime}; Path=/; Secure; HttpOnly; SameSite=Lax");
        HeaderValue::from_str(&format!("{}={sealed}; {attributes}", session::COOKIE)).ok()
    });
    if let Some(cookie) = cookie {
        answer.append(SET_COOKIE, cookie);
    }
}

/// Whether an answer may carry what is one user's alone: one that says nothing of caches is made private, one that others may
/// keep is not.
fn may_be_private(answer: &mut HeaderMap) -> bool {
    if !answer.contains_key(CACHE_CONTROL) && !answer.contains_key(EXPIRES) {
        answer.insert(CACHE_CONTROL, HeaderValue::from_static("private"));
    }
    let said = headers::members(answer, &CACHE_CONTROL).filter_map(|directive| directive.split(|byte| *byte == b'=').next());
    let said: Vec<_> = said.map(<[u8]>::to_ascii_lowercase).collect();
    let says = |names: &[&str]| names.iter().any(|name| said.iter().any(|directive| directive == name.as_bytes()));
    says(&["private", "no-store"])
        || !answer.contains_key(EXPIRES) && !says(&["public", "max-age", "s-maxage", "must-revalidate", "immutable"])
}

/// What an upstream may say that its answer holds (`Domicile-Data-Class`): what that does not clear for the asking region stays
/// here. An interim answer has a label of its own.
pub(super) struct Label {
    snapshot: Arc<Snapshot>,
    trail: Trail,
    /// The region that asks; `None` for a client, which may have whatever it was cleared for.
    peer: Option<RegionId>,
}

impl Label {
    pub(super) fn of(account: &Account, judged: &Judged) -> Self {
        let peer = match account.arrival.ingress {
            Ingress::Client => None,
            Ingress::Peer(peer) => Some(peer),
        };
        Self { snapshot: Arc::clone(&account.snapshot), trail: judged.decision.trail.clone(), peer }
    }

    pub(super) fn clears(&self, answer: &HeaderMap) -> bool {
        let Some(peer) = self.peer else { return true };
        let policy = &self.snapshot.policy;
        let mut label = ClassSet::EMPTY;
        for value in answer.get_all("domicile-data-class") {
            for name in value.to_str().unwrap_or_default().split(',').map(str::trim) {
                let Some(class) = policy.find_class(name) else { return false };
                label = label.union(ClassSet::only(class));
            }
        }
        label == ClassSet::EMPTY || may_return(&self.trail, label, peer, policy)
    }
}
