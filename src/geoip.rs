//! Looks up the place of an IP address in a MaxMind database.
//!
//! Promises: a database that is damaged or contains no countries is refused when it is opened; a lookup allocates nothing.
//! Never: a guess. Private addresses have no place, and codes such as `EU` that name no country are ignored.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use maxminddb::{PathElement, Reader, WithinOptions};

use crate::model::coordinates::Coordinates;
use crate::model::country::{Continent, CountryCode};
use crate::model::place::Place;

/// The database, and its maximum age.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    pub database: PathBuf,
    /// A database that was built longer ago counts for latency but not for residency.
    pub max_age: Option<Duration>,
}

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`{}`: {reason}", file.display())]
pub struct GeoIpError {
    file: PathBuf,
    reason: String,
}

/// An open database, held in memory, so that the file may change or be removed.
pub struct GeoIp {
    reader: Reader<Vec<u8>>,
    layout: Layout,
    built: SystemTime,
}

/// Where the records of a database contain the country.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Layout {
    /// `country.iso_code`, as in databases of MaxMind.
    Nested,
    /// `country_code` at the top level, as in databases of DB-IP.
    Flat,
    /// `country` at the top level, as in databases of IPinfo.
    FlatCountry,
}

/// How many records are read to detect the layout.
const SAMPLE: usize = 2000;

impl GeoIp {
    /// Reads a database into memory, checks it, and detects its layout.
    pub fn open(file: &Path) -> Result<Self, GeoIpError> {
        let refuse = |reason: String| GeoIpError { file: file.into(), reason };
        let bytes = std::fs::read(file).map_err(|error| refuse(format!("cannot read the GeoIP database: {error}")))?;
        let reader = Reader::from_source(bytes).map_err(|error| refuse(format!("is not an MMDB database: {error}")))?;
        check(&reader).map_err(|error| refuse(format!("is damaged; download it again: {error}")))?;
        let layout = Layout::of(&reader).ok_or_else(|| {
            let kind = &reader.metadata().database_type;
            refuse(format!("is a database of type `{kind}` without countries in `country.iso_code`, `country_code` or `country`; name a country or city database"))
        })?;
        let built = reader.metadata().build_time().map_err(|error| refuse(format!("has no valid build time: {error}")))?;
        Ok(Self { reader, layout, built })
    }

    /// The place of an address, if the database knows it.
    pub fn place(&self, address: IpAddr) -> Option<Place> {
        let found = self.reader.lookup(address.to_canonical()).ok()?;
        let text = |path: &[&'static str]| decode::<&str>(&found, path);
        let country = self.layout.country_paths().iter().find_map(|path| text(path).and_then(CountryCode::parse));
        let continent = match self.layout {
            Layout::Nested => text(&["continent", "code"]).and_then(Continent::parse),
            Layout::Flat | Layout::FlatCountry => None,
        };
        let continent = continent.or_else(|| country.map(|code| code.country().continent));
        let place = Place { country, continent, coordinates: self.coordinates(&found) };
        (place != Place::default()).then_some(place)
    }

    fn coordinates(&self, found: &maxminddb::LookupResult<'_, Vec<u8>>) -> Option<Coordinates> {
        let (latitude, longitude): (&[&'static str], &[&'static str]) = match self.layout {
            Layout::Nested => (&["location", "latitude"], &["location", "longitude"]),
            Layout::Flat | Layout::FlatCountry => (&["latitude"], &["longitude"]),
        };
        let (latitude, longitude) = (decode::<f64>(found, latitude)? as f32, decode::<f64>(found, longitude)? as f32);
        let on_earth = (-90.0..=90.0).contains(&latitude) && (-180.0..=180.0).contains(&longitude);
        on_earth.then_some(Coordinates { latitude, longitude })
    }

    /// The time since the database was built.
    pub fn age(&self, now: SystemTime) -> Duration {
        now.duration_since(self.built).unwrap_or_default()
    }

    pub fn built(&self) -> SystemTime {
        self.built
    }
}

impl Layout {
    const ALL: [Self; 3] = [Self::Nested, Self::Flat, Self::FlatCountry];

    /// The paths of the country, in the order of preference.
    const fn country_paths(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::Nested => &[&["country", "iso_code"], &["registered_country", "iso_code"]],
            Self::Flat => &[&["country_code"]],
            Self::FlatCountry => &[&["country"]],
        }
    }

    /// The layout of the first record that contains a country.
    fn of(reader: &Reader<Vec<u8>>) -> Option<Self> {
        let networks = reader.networks(WithinOptions::default()).ok()?;
        networks.take(SAMPLE).flatten().find_map(|record| {
            let holds = |path: &[&'static str]| decode::<&str>(&record, path).and_then(CountryCode::parse).is_some();
            Self::ALL.into_iter().find(|layout| layout.country_paths().iter().any(|path| holds(path)))
        })
    }
}

/// Walks every network and decodes every record. The reader's own `verify` is too strict: it also requires metadata that a
/// lookup does not need, such as a description, which databases in use do not have.
fn check(reader: &Reader<Vec<u8>>) -> Result<(), maxminddb::MaxMindDbError> {
    let mut checked = std::collections::HashSet::new();
    for record in reader.networks(WithinOptions::default())? {
        let record = record?;
        // Many networks share a record.
        if record.offset().is_some_and(|offset| checked.insert(offset)) {
            record.decode::<serde::de::IgnoredAny>()?;
        }
    }
    Ok(())
}

/// One value of a record; `None` if it is absent or has another type.
fn decode<'a, T: serde::Deserialize<'a>>(record: &maxminddb::LookupResult<'a, Vec<u8>>, path: &[&'static str]) -> Option<T> {
    let mut elements = [PathElement::Key(""), PathElement::Key("")];
    for (element, key) in elements.iter_mut().zip(path) {
        *element = PathElement::Key(key);
    }
    record.decode_path(&elements[..path.len()]).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundled() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("geoip/country.mmdb")
    }

    #[test]
    fn the_bundled_database_knows_countries_and_gives_no_place_to_private_addresses() {
        let geoip = GeoIp::open(&bundled()).unwrap();
        let country = |address: &str| {
            geoip.place(address.parse().unwrap()).and_then(|place| place.country).map(|code| code.as_str().to_owned())
        };
        assert_eq!(country("81.2.69.142").as_deref(), Some("GB"));
        assert_eq!(country("::ffff:81.2.69.142").as_deref(), Some("GB"), "an IPv4-mapped address is looked up as IPv4");
        assert_eq!(country("2001:200::1").as_deref(), Some("JP"));
        for nowhere in ["10.0.0.1", "127.0.0.1", "192.168.1.1", "::1", "fe80::1", "0.0.0.0"] {
            assert_eq!(country(nowhere), None, "{nowhere}");
        }
    }

    #[test]
    fn a_damaged_database_is_refused_with_its_name() {
        let scratch = tempfile::tempdir().unwrap();
        let whole = std::fs::read(bundled()).unwrap();
        let metadata = whole.windows(14).rposition(|window| window == b"\xab\xcd\xefMaxMind.com").unwrap();
        let mut flipped = whole.clone();
        flipped[metadata / 2..metadata / 2 + 4096].fill(0xff);
        for (name, bytes) in
            [("empty", &[][..]), ("text", b"not a database"), ("cut", &whole[..whole.len() / 2]), ("flipped", &flipped)]
        {
            let file = scratch.path().join(name);
            std::fs::write(&file, bytes).unwrap();
            let error = GeoIp::open(&file).err().unwrap_or_else(|| panic!("{name} was taken")).to_string();
            assert!(error.contains(name), "{error}");
        }
        assert!(GeoIp::open(&scratch.path().join("absent")).is_err());
    }

    /// A file of a third party.
    fn vector(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/geoip").join(name)
    }

    #[test]
    fn maxminds_own_country_database_reads_as_its_source_says() {
        let source = vector("GeoLite2-Country-Test.json");
        let geoip = GeoIp::open(&vector("GeoLite2-Country-Test.mmdb")).unwrap();
        let source: Vec<serde_json::Map<String, serde_json::Value>> =
            serde_json::from_str(&std::fs::read_to_string(source).unwrap()).unwrap();
        let (mut compared, mut later) = (0, std::collections::HashSet::new());
        // A later line overrides the networks inside it that came before.
        for (network, record) in source.iter().rev().flatten() {
            let network: ipnet::IpNet = network.parse().unwrap();
            if !later.insert(network.addr()) {
                continue;
            }
            let code = |key: &str| record.get(key)?.get("iso_code")?.as_str();
            let expected =
                code("country").and_then(CountryCode::parse).or_else(|| code("registered_country").and_then(CountryCode::parse));
            assert_eq!(geoip.place(network.addr()).and_then(|place| place.country), expected, "{network}");
            compared += 1;
        }
        assert!(compared > 200, "{compared}");
    }

    #[test]
    fn flat_databases_are_read_and_those_without_countries_refused() {
        let geoip = GeoIp::open(&vector("dbip-city-lite-subset.mmdb")).unwrap();
        assert_eq!(geoip.layout, Layout::Flat);
        let place = geoip.place("83.149.9.216".parse().unwrap()).unwrap();
        assert_eq!((place.country.unwrap().as_str(), place.coordinates.is_some()), ("RU", true));
        for name in
            ["GeoLite2-ASN-Test", "GeoIP2-Anonymous-IP-Test", "MaxMind-DB-test-decoder", "MaxMind-DB-string-value-entries"]
        {
            let error =
                GeoIp::open(&vector(&format!("{name}.mmdb"))).err().unwrap_or_else(|| panic!("{name} was taken")).to_string();
            assert!(error.contains("name a country or city database") || error.contains("damaged"), "{error}");
        }
    }

    #[test]
    fn a_broken_database_is_refused_or_answers_but_never_panics() {
        for name in [
            "GeoIP2-City-Test-Invalid-Node-Count",
            "GeoIP2-City-Test-Broken-Double-Format",
            "MaxMind-DB-test-broken-pointers-24",
            "MaxMind-DB-test-broken-search-tree-24",
        ] {
            let file = vector(&format!("{name}.mmdb"));
            assert!(file.exists(), "{}", file.display());
            if let Ok(geoip) = GeoIp::open(&file) {
                for index in 0..=u16::MAX {
                    let [a, b] = index.to_be_bytes();
                    let _ = geoip.place(IpAddr::from([a, b, 1, 1]));
                }
            }
        }
    }
}
