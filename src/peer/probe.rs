//! The response to a probe: a region's report about itself.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use sfv::RefBareItem;

use crate::http::lists;
use crate::model::service::MAX_SERVICES;
use crate::model::vitals::{PolicyHash, TableVersion};

use super::fields;
use super::rates::{self, RateCount};

/// The report of a region about itself.
#[derive(Clone, PartialEq, Debug)]
pub struct Report {
    /// The region accepts no new requests.
    pub is_draining: bool,
    /// At least one upstream is up.
    pub is_serving: bool,
    /// The services of which no upstream is up.
    pub down_services: Vec<Box<str>>,
    pub upstream_time: Option<Duration>,
    pub policy: Option<PolicyHash>,
    /// The version of the region's user table; `None` if it has none.
    pub directory: Option<TableVersion>,
    /// The counters of global rate limits.
    pub rates: Vec<RateCount>,
}

impl Report {
    /// Adds the report to the header fields of a response.
    pub fn write(&self, headers: &mut HeaderMap) {
        let mut put = |name: HeaderName, text: String| {
            if let Ok(value) = HeaderValue::from_str(&text) {
                headers.insert(name, value);
            }
        };
        put(fields::DRAINING, boolean(self.is_draining));
        put(fields::SERVING, boolean(self.is_serving));
        if !self.down_services.is_empty() {
            put(fields::DOWN_SERVICES, self.down_services.join(", "));
        }
        if let Some(policy) = self.policy {
            put(fields::POLICY, policy.to_string());
        }
        if let Some(directory) = self.directory {
            put(fields::DIRECTORY, directory.to_string());
        }
        if !self.rates.is_empty() {
            put(fields::RATES, rates::write(&self.rates));
        }
        if let Some(time) = self.upstream_time {
            put(fields::UPSTREAM_MICROS, time.as_micros().to_string());
        }
    }

    /// Reads the fields that [`Report::write`] writes; a field that is missing or malformed counts as unknown.
    pub fn read(headers: &HeaderMap) -> Self {
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        Self {
            is_draining: text(fields::DRAINING) == Some("?1"),
            is_serving: text(fields::SERVING) == Some("?1"),
            down_services: text(fields::DOWN_SERVICES).map_or(Vec::new(), names),
            upstream_time: text(fields::UPSTREAM_MICROS).and_then(|micros| micros.parse().ok()).map(Duration::from_micros),
            policy: text(fields::POLICY).and_then(PolicyHash::parse),
            directory: text(fields::DIRECTORY).and_then(TableVersion::parse),
            rates: text(fields::RATES).map_or(Vec::new(), rates::read),
        }
    }
}

/// The members of a list of names.
fn names(list: &str) -> Vec<Box<str>> {
    let members = lists::tokens(list.as_bytes()).map(|name| String::from_utf8_lossy(name).into());
    members.take(MAX_SERVICES).collect()
}

/// A boolean as a structured field.
fn boolean(value: bool) -> String {
    let mut out = String::new();
    let _ = sfv::ItemSerializer::with_buffer(&mut out).bare_item(RefBareItem::Boolean(value));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_back_as_it_was_written() {
        let whole = Report {
            is_draining: true,
            is_serving: false,
            down_services: vec!["api".into(), "app-next".into()],
            upstream_time: Some(Duration::from_micros(1234)),
            policy: Some(PolicyHash([7; 16])),
            directory: Some(TableVersion([9; 16])),
            rates: vec![RateCount { counter: 1, key: 2, requests: 3, interval: 4, burst: 5 }],
        };
        let bare = Report {
            is_draining: false,
            is_serving: true,
            down_services: Vec::new(),
            upstream_time: None,
            policy: None,
            directory: None,
            rates: Vec::new(),
        };
        for report in [whole, bare] {
            let mut headers = HeaderMap::new();
            report.write(&mut headers);
            assert_eq!(Report::read(&headers), report);
        }
    }
}
