//! Looks up the place of an IP address in a MaxMind database.
//!
//! Promises: a database that is damaged or contains no countries is refused when it is opened; a lookup allocates nothing.
//! Never: a guess. Private addresses have no place, and codes such as `EU` that name no country are ignored.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
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
    /// The places of all records, by their offsets in the database, because decoding a record takes longer than finding it.
    places: HashMap<usize, Place>,
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

impl GeoIp {
    /// Reads a database into memory, checks it, and detects its layout.
    pub fn open(file: &Path) -> Result<Self, GeoIpError> {
        let refuse = |reason: String| GeoIpError { file: file.into(), reason };
        let bytes = std::fs::read(file).map_err(|error| refuse(format!("cannot read the GeoIP database: {error}")))?;
        let reader = Reader::from_source(bytes).map_err(|error| refuse(format!("is not an MMDB database: {error}")))?;
        let records = records(&reader).map_err(|error| refuse(format!("is damaged; download it again: {error}")))?;
        let layout = layout_of(&records).ok_or_else(|| {
            let kind = &reader.metadata().database_type;
            refuse(format!("is a database of type `{kind}` without countries in `country.iso_code`, `country_code` or `country`; name a country or city database"))
        })?;
        let places = records.iter().filter_map(|(offset, record)| Some((*offset, layout.place_in(record)?))).collect();
        let built = reader.metadata().build_time().map_err(|error| refuse(format!("has no valid build time: {error}")))?;
        Ok(Self { reader, places, built })
    }

    /// The place of an address, if the database knows it.
    pub fn place(&self, address: IpAddr) -> Option<Place> {
        let found = self.reader.lookup(address.to_canonical()).ok()?;
        self.places.get(&found.offset()?).copied()
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

    /// The place in a record; `None` if the record has none.
    fn place_in(self, record: &Record<'_>) -> Option<Place> {
        let text = |path: &[&'static str]| decode::<&str>(record, path);
        let country = self.country_paths().iter().find_map(|path| text(path).and_then(CountryCode::parse));
        let continent = match self {
            Self::Nested => text(&["continent", "code"]).and_then(Continent::parse),
            Self::Flat | Self::FlatCountry => None,
        };
        let continent = continent.or_else(|| country.map(|code| code.country().continent));
        let place = Place { country, continent, coordinates: self.coordinates_in(record) };
        (place != Place::default()).then_some(place)
    }

    fn coordinates_in(self, record: &Record<'_>) -> Option<Coordinates> {
        let (latitude, longitude): (&[&'static str], &[&'static str]) = match self {
            Self::Nested => (&["location", "latitude"], &["location", "longitude"]),
            Self::Flat | Self::FlatCountry => (&["latitude"], &["longitude"]),
        };
        let (latitude, longitude) = (decode::<f64>(record, latitude)? as f32, decode::<f64>(record, longitude)? as f32);
        let on_earth = (-90.0..=90.0).contains(&latitude) && (-180.0..=180.0).contains(&longitude);
        on_earth.then_some(Coordinates { latitude, longitude })
    }

    fn has_country(self, record: &Record<'_>) -> bool {
        let is_country = |path: &&[&'static str]| decode::<&str>(record, path).and_then(CountryCode::parse).is_some();
        self.country_paths().iter().any(is_country)
    }
}

type Record<'r> = maxminddb::LookupResult<'r, Vec<u8>>;

/// Walks every network and decodes every record; many networks share one. The reader's own `verify` is too strict: it also requires
/// metadata that a lookup does not need, such as a description, which databases in use do not have.
fn records(reader: &Reader<Vec<u8>>) -> Result<HashMap<usize, Record<'_>>, maxminddb::MaxMindDbError> {
    let mut records = HashMap::new();
    for record in reader.networks(WithinOptions::default())? {
        let record = record?;
        if let Some(offset) = record.offset()
            && let Entry::Vacant(entry) = records.entry(offset)
        {
            record.decode::<serde::de::IgnoredAny>()?;
            entry.insert(record);
        }
    }
    Ok(records)
}

/// The layout in which the most records contain a country; `None` if no record contains one.
fn layout_of(records: &HashMap<usize, Record<'_>>) -> Option<Layout> {
    let counts = Layout::ALL.map(|layout| (records.values().filter(|record| layout.has_country(record)).count(), layout));
    // The first of equals is the most specific layout.
    let best = counts.into_iter().rev().max_by_key(|(count, _)| *count);
    best.filter(|(count, _)| *count > 0).map(|(_, layout)| layout)
}

/// One value of a record; `None` if it is absent or has another type.
fn decode<'a, T: serde::Deserialize<'a>>(record: &Record<'a>, path: &[&'static str]) -> Option<T> {
    let mut elements = [PathElement::Key(""), PathElement::Key("")];
    for (element, key) in elements.iter_mut().zip(path) {
        *element = PathElement::Key(key);
    }
    record.decode_path(&elements[..path.len()]).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(geoip: &GeoIp) -> Layout {
        layout_of(&records(&geoip.reader).unwrap()).unwrap()
    }

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
        assert_eq!(compared, 244);
    }

    #[test]
    fn flat_databases_are_read_and_those_without_countries_refused() {
        let geoip = GeoIp::open(&vector("dbip-city-lite-subset.mmdb")).unwrap();
        assert_eq!(layout(&geoip), Layout::Flat);
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

    /// A value of a record, as the format encodes it (MaxMind DB 2.0).
    enum Value {
        Text(&'static str),
        Map(Vec<(&'static str, Value)>),
        Short(u16),
        Number(u32),
        Long(u64),
        EmptyList,
    }

    impl Value {
        fn write(&self, out: &mut Vec<u8>) {
            match self {
                Self::Text(text) => {
                    out.push((2 << 5) | text.len() as u8);
                    out.extend_from_slice(text.as_bytes());
                }
                Self::Map(pairs) => {
                    out.push((7 << 5) | pairs.len() as u8);
                    for (key, value) in pairs {
                        Self::Text(key).write(out);
                        value.write(out);
                    }
                }
                Self::Short(number) => {
                    out.push((5 << 5) | 2);
                    out.extend_from_slice(&number.to_be_bytes());
                }
                // The type of these is extended: 0 in the first byte, then the type less 7.
                Self::EmptyList => out.extend_from_slice(&[0, 4]),
                Self::Long(number) => {
                    out.extend_from_slice(&[8, 2]);
                    out.extend_from_slice(&number.to_be_bytes());
                }
                Self::Number(number) => {
                    out.push((6 << 5) | 4);
                    out.extend_from_slice(&number.to_be_bytes());
                }
            }
        }
    }

    /// An IPv4 database with one record for each of the first octets from 0, and 255 networks at most.
    fn database(records: Vec<Value>) -> Vec<u8> {
        const NODES: u32 = 255;
        let mut data = Vec::new();
        let offsets: Vec<u32> = records
            .iter()
            .map(|record| {
                let at = data.len() as u32;
                record.write(&mut data);
                at
            })
            .collect();
        // A complete binary tree of depth 8 in breadth-first order: the children of node n are 2n + 1 and 2n + 2.
        let pointer = |child: u32| match child.checked_sub(NODES) {
            None => child,
            Some(octet) => offsets.get(octet as usize).map_or(NODES, |offset| NODES + 16 + offset),
        };
        let mut out = Vec::new();
        for node in 0..NODES {
            for child in [2 * node + 1, 2 * node + 2] {
                out.extend_from_slice(&pointer(child).to_be_bytes()[1..]);
            }
        }
        out.extend_from_slice(&[0; 16]);
        out.extend_from_slice(&data);
        out.extend_from_slice(b"\xab\xcd\xefMaxMind.com");
        let metadata = Value::Map(vec![
            ("binary_format_major_version", Value::Short(2)),
            ("binary_format_minor_version", Value::Short(0)),
            ("build_epoch", Value::Long(1_700_000_000)),
            ("database_type", Value::Text("Test")),
            ("description", Value::Map(vec![])),
            ("languages", Value::EmptyList),
            ("ip_version", Value::Short(4)),
            ("node_count", Value::Number(NODES)),
            ("record_size", Value::Short(24)),
        ]);
        metadata.write(&mut out);
        out
    }

    #[test]
    fn the_layout_is_that_of_most_records_and_not_of_the_first() {
        let nested = |code| Value::Map(vec![("country", Value::Map(vec![("iso_code", Value::Text(code))]))]);
        let flat = |code| Value::Map(vec![("country", Value::Text(code))]);
        let without = || Value::Map(vec![("asn", Value::Number(64496))]);
        let scratch = tempfile::tempdir().unwrap();
        let open = |records| {
            let file = scratch.path().join("some.mmdb");
            std::fs::write(&file, database(records)).unwrap();
            GeoIp::open(&file)
        };
        let country = |geoip: &GeoIp, address: &str| {
            geoip.place(address.parse().unwrap()).and_then(|place| place.country).map(|code| code.as_str().to_owned())
        };

        let geoip = open(vec![flat("US"), nested("DE"), nested("FR")]).unwrap();
        assert_eq!(layout(&geoip), Layout::Nested);
        assert_eq!(country(&geoip, "1.0.0.1").as_deref(), Some("DE"));
        assert_eq!(country(&geoip, "0.0.0.1"), None, "a record of another layout has no place");

        let mut late: Vec<_> = (0..200).map(|_| without()).collect();
        late.push(flat("JP"));
        let geoip = open(late).unwrap();
        assert_eq!((layout(&geoip), country(&geoip, "200.1.1.1").as_deref()), (Layout::FlatCountry, Some("JP")));
        assert!(open(vec![without()]).is_err());
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
