//! The case book: every case of `tests/decisions/*.yaml`, judged by the same functions as live traffic.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use domicile::config;
use domicile::decision::facts::{Credential, Ingress};
use domicile::decision::narrate;
use domicile::decision::policy::Policy;
use domicile::decision::policy::route::Fields;
use domicile::decision::policy::route::Method;
use domicile::decision::verdict::{Decision, Verdict};
use domicile::engine::question::{Identity, Question, read_fields};
use domicile::model::country::CountryCode;
use domicile::model::day::Day;
use domicile::model::region::Registry;
use domicile::model::user::{Evidence, Proof};
use domicile::model::vitals::{Health, PolicyHash, RegionVitals, TableVersion, Vitals};
use domicile::peer::Envelope;
use domicile::session::Hint;
use domicile::tokens::Verified;
use serde::Deserialize;

use crate::support::{Table, World, address_in, noon};

/// The minimum number of cases, so that the test fails if it does not find the case files.
const CASES: usize = 164;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Book {
    #[expect(dead_code, reason = "for the reader")]
    about: String,
    policy: String,
    #[serde(default)]
    people: BTreeMap<String, Person>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Person {
    home: String,
    jurisdiction: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    it: String,
    /// The region that receives and judges the request.
    at: String,
    /// Method and path.
    ask: String,
    path: Option<String>,
    host: Option<String>,
    user: Option<String>,
    #[serde(default)]
    claimed: bool,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    query: Option<String>,
    /// A CORS preflight for this request.
    #[serde(default)]
    preflight: bool,
    /// A peer says that the key is proven, and this region cannot verify it.
    #[serde(default)]
    vouched: bool,
    ip: Option<IpAddr>,
    /// The country that GeoIP finds.
    from: Option<String>,
    #[serde(default)]
    stale: bool,
    day: Option<String>,
    /// `unavailable`, or `remembered` for a hint that was issued from the table in use.
    directory: Option<String>,
    /// `unverifiable` or `other`.
    credential: Option<String>,
    /// Further data classes of the message, as the label of a response.
    #[serde(default)]
    labels: Vec<String>,
    /// The region that a verified token names; `none` for a token without the claim.
    token: Option<String>,
    /// The home in our own sealed cookie.
    hint: Option<Person>,
    /// Regions, and services of regions as `REGION/SERVICE`.
    #[serde(default)]
    down: Vec<String>,
    #[serde(default)]
    draining: Vec<String>,
    #[serde(default)]
    recovering: Vec<String>,
    peer: Option<String>,
    claims: Option<Claims>,
    /// `proceed REGION…`, `redirect REGION` or `refuse CODE`.
    expect: String,
    /// A part of the explanation.
    says: Option<String>,
    #[serde(default)]
    reported: bool,
    enforced: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Claims {
    home: Option<String>,
    evidence: Option<String>,
    country: Option<String>,
    class: String,
}

pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/decisions")
}

pub fn policy_at(file: &str, region: &str, registry: &mut Registry) -> Policy {
    load_policy(&folder().join("policies").join(file), region, registry)
}

pub fn load_policy(file: &Path, region: &str, registry: &mut Registry) -> Policy {
    let today = Day::parse("2026-06-01").unwrap();
    match config::load(file, Some(region), registry, today) {
        Ok(config) => config.policy,
        Err(problems) => panic!("{}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")),
    }
}

/// The user table of a book's people, as CSV.
fn table(people: &BTreeMap<String, Person>) -> String {
    // Domicile refuses a table without users.
    let somebody = "user,home,jurisdiction\nsomebody-else,dublin,\n";
    people.iter().fold(somebody.into(), |text, (key, person)| {
        format!("{text}{key},{},{}\n", person.home, person.jurisdiction.as_deref().unwrap_or_default())
    })
}

impl Case {
    /// The fields of the request that conditions read.
    fn fields(&self, policy: &Policy) -> Fields {
        let headers = self.headers.iter().map(|(name, value)| {
            (
                name.parse::<http::HeaderName>().expect("a header name"),
                value.parse::<http::HeaderValue>().expect("a header value"),
            )
        });
        read_fields(&policy.routes.field_names, &headers.collect(), self.query.as_deref())
    }

    fn question(&self, policy: &Policy, table: TableVersion) -> Question {
        let region = |name: &str| policy.find_region(name).unwrap_or_else(|| panic!("{}: no region {name}", self.it));
        let (method, path) = self.ask.split_once(' ').expect("METHOD /path");
        let method = Method::of(method);
        let proof = match (self.claimed, self.vouched) {
            (true, _) => Proof::Claimed,
            (false, true) => Proof::Vouched,
            (false, false) => Proof::Proven,
        };
        let token = self.token.as_deref().map(|name| match name {
            "none" => Verified::saying(&[]),
            name => Verified::saying(&[("home_region".to_owned(), name.to_owned())]),
        });
        let credential = match self.credential.as_deref() {
            None if token.is_some() => Credential::Verified,
            None => Credential::Absent,
            Some("unverifiable") => Credential::Unverifiable,
            Some("other") => Credential::Unread,
            Some(other) => panic!("{}: credential `{other}`", self.it),
        };
        let is_from_hint = self.directory.as_deref() == Some("remembered");
        let hint = self.hint.as_ref().map(|person| Hint {
            user: self.user.clone().expect("a hint belongs to a user"),
            home: person.home.clone(),
            jurisdiction: person.jurisdiction.clone(),
            table: if is_from_hint { table } else { TableVersion::default() },
            expires: noon("2100-01-01"),
        });
        let country = self.from.as_deref().map(|code| CountryCode::parse(code).expect("a country"));
        let client = self.ip.or_else(|| country.map(address_in)).unwrap_or([203, 0, 113, 1].into());
        let caller = self.user.clone().map(|user| (user, proof));
        let envelope = self.claims.as_ref().map(|claims| Envelope {
            id: "case".into(),
            client,
            user: caller.clone(),
            home: claims.home.clone(),
            evidence: claims.evidence.as_deref().map(|evidence| Evidence::parse(evidence).expect("an evidence")),
            country: claims.country.as_deref().map(|code| CountryCode::parse(code).expect("a country")),
            classes: claims.class.split(' ').map(str::to_owned).collect(),
            policy: PolicyHash::default(),
            directory: None,
            certificate: None,
            is_https: true,
            is_question: false,
            is_retry: false,
        });
        Question {
            ingress: self.peer.as_deref().map_or(Ingress::Client, |peer| Ingress::Peer(region(peer))),
            method,
            host: self.host.clone().unwrap_or_else(|| "www.example.com".into()),
            path: self.path.clone().unwrap_or_else(|| path.to_owned()),
            is_read: matches!(method, Method::Get | Method::Head),
            client,
            fields: self.fields(policy),
            identity: Identity { caller, token: token.map(Into::into), credential, hint, is_fresh: false },
            is_preflight: self.preflight,
            ignores_hint: Default::default(),
            envelope,
        }
    }
}

fn judge(case: &Case, people: &BTreeMap<String, Person>, book: &str) -> (Decision, World) {
    let mut registry = Registry::default();
    let policy = policy_at(book, &case.at, &mut registry);
    let is_available = case.directory.as_deref() != Some("unavailable");
    let table = if is_available { Table::Text(table(people)) } else { Table::Unavailable };
    let mut vitals = Vitals::unmeasured(policy.nearest_first());
    let states = [(&case.down, Health::Down), (&case.draining, Health::Draining), (&case.recovering, Health::Recovering)];
    for (names, health) in states {
        let region = |name: &str| policy.find_region(name).unwrap_or_else(|| panic!("{}: no region {name}", case.it));
        for name in names {
            match name.split_once('/') {
                Some((name, service)) => vitals.set_down(policy.find_service(service).expect("a service"), region(name)),
                None => vitals.set(region(name), RegionVitals { health, ..RegionVitals::default() }),
            }
        }
    }
    let day = case.day.as_deref().unwrap_or("2026-06-01");
    let world = World::new(policy, &registry, &table, case.stale, noon(day), vitals);
    let question = case.question(world.policy(), world.table_version());
    let labels: Vec<Box<str>> = case.labels.iter().map(|label| label.as_str().into()).collect();
    (world.judge(&question, &labels), world)
}

/// Whether the request may go to its destination only because of report-only mode.
fn reported(decision: &Decision) -> bool {
    match &decision.verdict {
        Verdict::Proceed(itinerary) => decision.trail.is_only_reported(itinerary.first()),
        Verdict::Redirect(region) => decision.trail.is_redirect_only_reported(*region),
        Verdict::Refuse(_) => false,
    }
}

#[test]
fn the_case_book_holds() {
    let (mut count, mut wrong) = (0, Vec::new());
    let mut books: Vec<_> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "yaml"))
        .collect();
    books.sort();
    for file in books {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let book: Book =
            serde_yaml::from_str(&fs::read_to_string(&file).unwrap()).unwrap_or_else(|error| panic!("{name}: {error}"));
        for case in &book.cases {
            count += 1;
            let (decision, world) = judge(case, &book.people, &book.policy);
            let policy = world.policy();
            let found = narrate::outcome(&decision, policy);
            let story: Vec<_> = narrate::narrate(&decision, policy, &world.vitals)
                .iter()
                .map(|line| format!("      {}: {}", line.heading, line.text))
                .collect();
            let story = story.join("\n");
            if found != case.expect || case.says.as_ref().is_some_and(|part| !story.contains(part)) {
                let (it, expected) = (&case.it, &case.expect);
                wrong.push(format!("{name}: {it}\n    expected {expected}\n    found    {found}\n{story}"));
            }
            let reported = reported(&decision);
            if reported != case.reported {
                wrong.push(format!("{name}: {}\n    reported is {reported}", case.it));
            }
            if let Some(enforced) = &case.enforced {
                let names: Vec<_> = decision.trail.enforced.iter().map(|region| policy.region_name(region).to_owned()).collect();
                assert_eq!(&names, enforced, "{name}: {}", case.it);
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count} cases are wrong\n{}", wrong.len(), wrong.join("\n"));
    assert!(count >= CASES, "the case book has shrunk to {count} cases");
}
