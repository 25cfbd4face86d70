//! The geographic place of an IP address.

use super::coordinates::Coordinates;
use super::country::{Continent, CountryCode};

/// The place that a GeoIP database gives for an address.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Place {
    pub country: Option<CountryCode>,
    pub continent: Option<Continent>,
    /// More precise than the country's centre; `None` if the database contains none.
    pub coordinates: Option<Coordinates>,
}

impl Place {
    /// The place of an address of which only the country is known.
    pub fn in_country(country: CountryCode) -> Self {
        Self { country: Some(country), continent: Some(country.country().continent), coordinates: None }
    }

    /// The most precise known point: the address's coordinates, else the centre of its country.
    pub fn point(&self) -> Option<Coordinates> {
        self.coordinates.or_else(|| self.country.and_then(|code| code.country().centre))
    }
}
