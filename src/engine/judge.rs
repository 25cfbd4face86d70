//! Judges one request: makes the facts, then decides.

use crate::decision::verdict::Decision;
use crate::decision::{decide, route_of};
use crate::model::user::{Proof, Record};
use crate::model::vitals::Vitals;

use crate::decision::facts::Lookup;

use super::facts;
use super::question::Question;
use super::snapshot::Moment;

/// A decision, and the inputs that it was made from.
pub struct Judged {
    pub decision: Decision,
    /// The moment under which the decision was made.
    pub moment: Moment,
    /// The user whose data is touched.
    pub user: Option<(String, Proof)>,
    /// The user's record, if the directory has one.
    pub record: Option<Record>,
    /// The index of the path segment that names the user, if there is one.
    pub user_segment: Option<usize>,
    pub lookups: Lookups,
}

/// The results of the lookups, as metric labels; `None` for a lookup that was not made.
#[derive(Clone, Copy, Default)]
pub struct Lookups {
    pub directory: Option<&'static str>,
    /// The second lookup, of the caller, if the user in the path is not in the directory.
    pub caller: Option<&'static str>,
    pub geoip: Option<&'static str>,
}

/// Judges a request under one moment. `labels` are the data classes of the response, if there is one.
pub async fn judge(question: &Question, labels: &[Box<str>], moment: Moment, vitals: &Vitals) -> Judged {
    let findings = facts::find(question, labels, &moment).await;
    let decision = decide(&findings.facts(vitals), moment.policy());
    let user_segment = route_of(&decision.trail, moment.policy()).and_then(|route| route.pattern.user_segment());
    let record = match findings.directory {
        Lookup::Found(record) => Some(record),
        Lookup::NotAsked | Lookup::NoKey | Lookup::Absent | Lookup::Unavailable | Lookup::Unverifiable => None,
    };
    let lookups = Lookups {
        directory: if findings.is_from_hint { Some("remembered") } else { result_of(&findings.directory) },
        caller: result_of(&findings.caller),
        geoip: result_of(&findings.place),
    };
    let user = findings.user;
    Judged { decision, moment, user, record, user_segment, lookups }
}

const fn result_of<T>(lookup: &Lookup<T>) -> Option<&'static str> {
    match lookup {
        Lookup::NotAsked => None,
        Lookup::NoKey => Some("no_key"),
        Lookup::Absent => Some("absent"),
        Lookup::Unavailable => Some("unavailable"),
        Lookup::Unverifiable => Some("unverifiable"),
        Lookup::Found(_) => Some("found"),
    }
}
