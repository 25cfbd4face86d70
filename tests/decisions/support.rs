//! The engine for tests: it makes facts as for live traffic, from a real user table and a real GeoIP database.

use std::collections::HashMap;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use domicile::decision::policy::Policy;
use domicile::decision::verdict::Decision;
use domicile::directory::{self, Directory};
use domicile::engine::judge::judge;
use domicile::engine::path::Slashes;
use domicile::engine::question::Question;
use domicile::engine::snapshot::{JudgingSnapshot, Moment};
use domicile::geoip::GeoIp;
use domicile::model::country::CountryCode;
use domicile::model::region::Registry;
use domicile::model::vitals::{TableVersion, Vitals};

/// The user table of a world.
pub enum Table {
    /// The text of a CSV file.
    Text(String),
    Unavailable,
}

/// The inputs of judging.
pub struct World {
    moment: Moment,
    pub vitals: Vitals,
}

impl World {
    pub fn new(policy: Policy, registry: &Registry, table: &Table, stale: bool, now: SystemTime, vitals: Vitals) -> Self {
        let snapshot = JudgingSnapshot {
            policy,
            slashes: Slashes::Merge,
            geoip: Some(geoip()),
            geoip_max_age: None,
            directory: match table {
                Table::Text(text) => Some(Arc::new(open(text, registry))),
                Table::Unavailable => None,
            },
        };
        // The test decides whether the database counts as too old.
        Self { moment: Moment { geoip_is_stale: stale, ..Moment::at(Arc::new(snapshot), now) }, vitals }
    }

    pub fn moment(&self) -> Moment {
        self.moment.clone()
    }

    pub fn policy(&self) -> &Policy {
        self.moment.policy()
    }

    pub fn table_version(&self) -> TableVersion {
        self.moment.snapshot.table_version().unwrap_or_default()
    }

    /// Judges with the function that judges live traffic.
    pub fn judge(&self, question: &Question, labels: &[Box<str>]) -> Decision {
        self.judge_with(question, labels, &self.vitals)
    }

    pub fn judge_with(&self, question: &Question, labels: &[Box<str>], vitals: &Vitals) -> Decision {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(judge(question, labels, self.moment.clone(), vitals)).decision
    }
}

fn open(text: &str, registry: &Registry) -> Directory {
    let mut file = tempfile::Builder::new().suffix(".csv").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    Directory::open(&directory::Settings { file: file.path().into(), max_loss: 10, stale_after: None }, registry).unwrap()
}

fn database() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("geoip/country.mmdb")
}

fn geoip() -> Arc<GeoIp> {
    static GEOIP: OnceLock<Arc<GeoIp>> = OnceLock::new();
    Arc::clone(GEOIP.get_or_init(|| Arc::new(GeoIp::open(&database()).unwrap())))
}

/// An address that the bundled database places in a country.
pub fn address_in(country: CountryCode) -> IpAddr {
    static ADDRESSES: OnceLock<HashMap<String, IpAddr>> = OnceLock::new();
    let addresses = ADDRESSES.get_or_init(|| {
        let reader = maxminddb::Reader::open_readfile(database()).unwrap();
        let networks = reader.networks(maxminddb::WithinOptions::default()).unwrap().flatten();
        let mut found = HashMap::new();
        for network in networks {
            let address = network.network().unwrap().ip();
            if let Some(country) = geoip().place(address).and_then(|place| place.country) {
                found.entry(country.as_str().to_owned()).or_insert(address);
            }
        }
        found
    });
    *addresses.get(country.as_str()).unwrap_or_else(|| panic!("no address in {}", country.as_str()))
}

/// Noon of a day, UTC.
pub fn noon(day: &str) -> SystemTime {
    let date: jiff::civil::Date = day.parse().unwrap();
    let noon = date.at(12, 0, 0, 0).to_zoned(jiff::tz::TimeZone::UTC).unwrap();
    SystemTime::UNIX_EPOCH + Duration::from_secs(noon.timestamp().as_second().try_into().unwrap())
}
