//! Countries by their ISO 3166-1 alpha-2 codes.

mod atlas;

use super::coordinates::Coordinates;
use atlas::COUNTRIES;

/// Two upper-case letters that name a country in the bundled table.
///
/// INVARIANT: the code is in the table. The codes `EU`, `AP` and `??` of GeoIP databases are not, because they name no country.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CountryCode([u8; 2]);

impl CountryCode {
    /// The length of a table that is indexed by [`CountryCode::slot`].
    pub const SLOTS: usize = 26 * 26;

    /// The country with this code, in either case; `None` if there is no such country.
    pub fn parse(code: &str) -> Option<Self> {
        let &[first, second] = code.as_bytes() else { return None };
        let code = [first.to_ascii_uppercase(), second.to_ascii_uppercase()];
        COUNTRIES.binary_search_by_key(&code, |country| country.code).ok().map(|_| Self(code))
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("a code is two ASCII letters")
    }

    pub const fn slot(self) -> usize {
        (self.0[0] - b'A') as usize * 26 + (self.0[1] - b'A') as usize
    }

    /// The row of the country in the bundled table.
    pub fn country(self) -> &'static Country {
        let found = COUNTRIES.binary_search_by_key(&self.0, |country| country.code);
        &COUNTRIES[found.expect("a country code is in the table")]
    }

    /// Every country of the table.
    pub fn all() -> impl Iterator<Item = CountryCode> {
        COUNTRIES.iter().map(|country| CountryCode(country.code))
    }
}

/// A row of the bundled table.
#[derive(Debug)]
pub struct Country {
    code: [u8; 2],
    pub continent: Continent,
    /// The centre of the population, or the best known substitute; `None` for a few islands.
    pub centre: Option<Coordinates>,
    pub in_eu: bool,
    pub in_eea: bool,
}

impl Country {
    pub(super) const fn row(code: [u8; 2], continent: Continent, centre: Option<(f32, f32)>, in_eu: bool, in_eea: bool) -> Self {
        let centre = match centre {
            Some((latitude, longitude)) => Some(Coordinates { latitude, longitude }),
            None => None,
        };
        Self { code, continent, centre, in_eu, in_eea }
    }
}

/// The seven continents as GeoIP databases code them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Continent {
    Africa,
    Antarctica,
    Asia,
    Europe,
    NorthAmerica,
    Oceania,
    SouthAmerica,
}

impl Continent {
    pub const ALL: [Self; 7] =
        [Self::Africa, Self::Antarctica, Self::Asia, Self::Europe, Self::NorthAmerica, Self::Oceania, Self::SouthAmerica];

    /// The continent with this two-letter code (`AF AN AS EU NA OC SA`).
    pub fn parse(code: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|continent| continent.code().eq_ignore_ascii_case(code))
    }

    pub const fn code(self) -> &'static str {
        match self {
            Self::Africa => "AF",
            Self::Antarctica => "AN",
            Self::Asia => "AS",
            Self::Europe => "EU",
            Self::NorthAmerica => "NA",
            Self::Oceania => "OC",
            Self::SouthAmerica => "SA",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_so_that_every_row_can_be_found() {
        assert!(COUNTRIES.is_sorted_by_key(|country| country.code));
        assert!(CountryCode::all().all(|code| CountryCode::parse(code.as_str()) == Some(code)));
    }

    #[test]
    fn codes_that_databases_use_for_no_country_are_no_country() {
        for code in ["EU", "AP", "??", "", "DEU", "Ä"] {
            assert_eq!(CountryCode::parse(code), None, "{code}");
        }
    }

    #[test]
    fn territories_of_the_union_with_codes_of_their_own_are_in_it() {
        for code in ["GP", "MQ", "GF", "RE", "YT", "MF", "AX", "GR", "IE"] {
            assert!(CountryCode::parse(code).unwrap().country().in_eu, "{code}");
        }
        for code in ["GB", "CH", "NO", "UA"] {
            assert!(!CountryCode::parse(code).unwrap().country().in_eu, "{code}");
        }
        assert!(CountryCode::parse("no").unwrap().country().in_eea);
    }
}
