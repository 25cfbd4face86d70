#!/usr/bin/env python3
"""Writes src/model/country/atlas.rs from geoip/countries.csv: run it after changing the table.

    python3 geoip/atlas.py > src/model/country/atlas.rs && cargo fmt
"""
import csv, os
CONTINENT = dict(AF="Africa", AN="Antarctica", AS="Asia", EU="Europe", NA="NorthAmerica", OC="Oceania", SA="SouthAmerica")
here = os.path.dirname(os.path.abspath(__file__))
print("""//! Every country: its continent, the centre of its people, and whether it is in the EU or the EEA.
//!
//! Written by `geoip/atlas.py` from `geoip/countries.csv`. Contains data from GeoNames (geonames.org), CC BY 4.0.

use super::{Continent, Country};

use Continent::*;

/// Sorted by code, so that a binary search finds a country.
pub(super) const COUNTRIES: &[Country] = &[""")
for r in sorted(csv.DictReader(open(os.path.join(here, "countries.csv"))), key=lambda r: r["alpha2"]):
    where = next(((r[a], r[b]) for a, b in (("pop_lat", "pop_lon"), ("city_lat", "city_lon"), ("mainland_lat", "mainland_lon"), ("area_lat", "area_lon")) if r[a]), None)
    centre = "Some((%s, %s))" % tuple(repr(float(x)) for x in where) if where else "None"
    flag = lambda k: "true" if r[k] == "1" else "false"
    print("    Country::row(*b\"%s\", %s, %s, %s, %s)," % (r["alpha2"], CONTINENT[r["continent"]], centre, flag("eu"), flag("eea")))
print("];")
