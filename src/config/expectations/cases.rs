//! Test cases for a policy: requests, and the decisions that are expected for them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use serde::Deserialize;

/// A file of test cases.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cases {
    /// The subject of the cases, for the reader.
    #[serde(default)]
    pub about: Option<String>,
    /// Replaces the user table of the configuration.
    #[serde(default)]
    pub people: Option<BTreeMap<String, Person>>,
    pub cases: Vec<Case>,
}

/// A user of the table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Person {
    pub home: String,
    pub jurisdiction: Option<String>,
}

/// One request, and the decision that is expected.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// The promise that the case shows.
    pub it: String,
    /// The region that receives the request; default: the local region of the configuration.
    pub at: Option<String>,
    /// Method and URL, such as `GET https://api.example.com/account/1`.
    pub ask: String,
    pub ip: Option<IpAddr>,
    pub user: Option<String>,
    /// The user's key is not proven, as in a plain cookie.
    #[serde(default)]
    pub claimed: bool,
    /// The claims of a verified token.
    #[serde(default)]
    pub claims: BTreeMap<String, String>,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    pub day: Option<String>,
    /// Regions that are down, and services of regions as `REGION/SERVICE`.
    #[serde(default)]
    pub down: Vec<String>,
    /// `proceed REGION…`, `redirect REGION` or `refuse CODE`; or only the first region, or the code.
    pub expect: String,
    /// A part of the explanation.
    pub says: Option<String>,
}

/// Reads a file of test cases.
pub fn read(file: &Path) -> Result<Cases, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{}: cannot read this file: {error}", file.display()))?;
    let cases: Cases = serde_yaml::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))?;
    if cases.cases.is_empty() {
        return Err(format!(
            "{}: `cases` is empty; add a case such as `- {{ it: \"…\", ask: GET /, expect: refuse route.none }}`",
            file.display()
        ));
    }
    Ok(cases)
}
