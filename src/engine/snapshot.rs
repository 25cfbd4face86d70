//! The basis of judgement: one policy and its tables, replaced as a whole.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::decision::policy::Policy;
use crate::directory::Directory;
use crate::geoip::GeoIp;
use crate::model::day::Day;
use crate::model::vitals::TableVersion;

use super::path::Slashes;

/// The policy and the tables of one configuration; immutable.
pub struct JudgingSnapshot {
    pub policy: Policy,
    pub slashes: Slashes,
    pub geoip: Option<Arc<GeoIp>>,
    /// Past this age the GeoIP database proves no jurisdiction.
    pub geoip_max_age: Option<Duration>,
    pub directory: Option<Arc<Directory>>,
}

impl JudgingSnapshot {
    /// The version of the user table; `None` if there is none.
    pub fn table_version(&self) -> Option<TableVersion> {
        self.directory.as_ref().map(|directory| directory.version())
    }

    fn geoip_is_stale(&self, now: SystemTime) -> bool {
        match (&self.geoip, self.geoip_max_age) {
            (Some(geoip), Some(most)) => geoip.age(now) > most,
            (None, _) | (_, None) => false,
        }
    }
}

/// Everything that a judgement depends on, except the request and the health of the regions. When it changes, all open
/// requests are judged again.
#[derive(Clone)]
pub struct Moment {
    pub snapshot: Arc<JudgingSnapshot>,
    pub today: Day,
    pub geoip_is_stale: bool,
}

impl Moment {
    /// The moment of live traffic. A clock that is behind the day on which the GeoIP database was built is wrong, and must not
    /// revive a transfer that has ended; that day then counts.
    pub fn live(snapshot: Arc<JudgingSnapshot>, clock: SystemTime) -> Self {
        let now = snapshot.geoip.as_ref().map_or(clock, |geoip| clock.max(geoip.built()));
        Self::at(snapshot, now)
    }

    /// The moment of any day, past ones included.
    pub fn at(snapshot: Arc<JudgingSnapshot>, now: SystemTime) -> Self {
        let geoip_is_stale = snapshot.geoip_is_stale(now);
        Self { snapshot, today: Day::of(now), geoip_is_stale }
    }

    /// Whether a judgement made under one of the two moments is valid under the other.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.snapshot, &other.snapshot) && self.today == other.today && self.geoip_is_stale == other.geoip_is_stale
    }

    pub fn policy(&self) -> &Policy {
        &self.snapshot.policy
    }
}
