//! The case book: every case of `tests/decisions/*.yaml`, judged by the same functions as live traffic.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use domicile::config;
use domicile::decision::facts::{Claim, Facts, Head, Ingress, Lookup};
use domicile::decision::policy::{ClassSet, Policy};
use domicile::decision::route::Method;
use domicile::decision::verdict::{Decision, Verdict};
use domicile::decision::{decide, match_route, narrate};
use domicile::model::country::CountryCode;
use domicile::model::day::Day;
use domicile::model::jurisdiction::{Jurisdiction, JurisdictionId};
use domicile::model::place::Place;
use domicile::model::region::Registry;
use domicile::model::user::{Evidence, Proof, Record};
use domicile::model::vitals::{Health, RegionVitals, Vitals};
use serde::Deserialize;

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
    /// The region that judges.
    at: String,
    /// Method and path.
    ask: String,
    path: Option<String>,
    host: Option<String>,
    user: Option<String>,
    #[serde(default)]
    claimed: bool,
    ip: Option<IpAddr>,
    /// The country that GeoIP finds.
    from: Option<String>,
    #[serde(default)]
    stale: bool,
    day: Option<String>,
    directory: Option<String>,
    #[serde(default)]
    preflight: bool,
    /// The region that a verified token names; `none` for one without the claim.
    token: Option<String>,
    /// The home in our own sealed cookie.
    hint: Option<Person>,
    #[serde(default)]
    down: Vec<String>,
    #[serde(default)]
    draining: Vec<String>,
    peer: Option<String>,
    claims: Option<Claims>,
    /// `proceed REGION…`, `redirect REGION` or `refuse CODE`.
    expect: String,
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

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/decisions")
}

fn policy_at(file: &str, region: &str) -> Policy {
    let file = folder().join("policies").join(file);
    let today = Day::parse("2026-06-01").unwrap();
    match config::load(&file, Some(region), &mut Registry::default(), today) {
        Ok(config) => config.policy,
        Err(problems) => panic!("{}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")),
    }
}

fn judge(case: &Case, people: &BTreeMap<String, Person>, policy: &Policy) -> Decision {
    let region = |name: &str| policy.find_region(name).unwrap_or_else(|| panic!("{}: no region {name}", case.it));
    let country = |code: &str| CountryCode::parse(code).unwrap_or_else(|| panic!("{}: no country {code}", case.it));
    let (method, path) = case.ask.split_once(' ').expect("METHOD /path");
    let (method, path) = (Method::of(method), case.path.as_deref().unwrap_or(path));
    let route = match_route(&Head { method, host: case.host.as_deref().unwrap_or("www.example.com"), path }, policy);
    let key = route.user.or(case.user.as_deref());
    let record = |person: &Person| Record {
        home: region(&person.home),
        jurisdiction: person.jurisdiction.as_deref().map(|name| match policy.find_jurisdiction(name) {
            Some(Jurisdiction::Named(id)) => id,
            _ => panic!("{}: no jurisdiction {name}", case.it),
        }) as Option<JurisdictionId>,
    };
    let directory = match (key, case.directory.as_deref()) {
        (None, _) => Lookup::NoKey,
        (Some(_), Some("unavailable")) => Lookup::Unavailable,
        (Some(_), Some("remembered")) => Lookup::NotAsked,
        (Some(key), None) => people.get(key).map_or(Lookup::Absent, |person| Lookup::Found(record(person))),
        (_, Some(other)) => panic!("{}: directory `{other}`", case.it),
    };
    let token = match case.token.as_deref() {
        None => Lookup::NoKey,
        Some("none") => Lookup::Absent,
        Some(name) => policy.find_region(name).map_or(Lookup::Unavailable, Lookup::Found),
    };
    let claim = case.claims.as_ref().map(|claims| Claim {
        home: claims.home.as_deref().map(region),
        evidence: claims.evidence.as_deref().map(|evidence| Evidence::parse(evidence).expect("an evidence")),
        country: claims.country.as_deref().map(country),
        classes: claims
            .class
            .split(' ')
            .map(|name| policy.find_class(name).map(ClassSet::only))
            .try_fold(ClassSet::EMPTY, |all, class| class.map(|class| all.union(class))),
    });
    let from = if case.peer.is_some() { claim.and_then(|claim| claim.country) } else { case.from.as_deref().map(country) };
    let network = case.ip.and_then(|ip| policy.geo.networks.find(ip)).and_then(|network| network.country);
    let mut vitals = Vitals::unmeasured(policy.nearest_first());
    for (names, health) in [(&case.down, Health::Down), (&case.draining, Health::Draining)] {
        names.iter().for_each(|name| vitals.set(region(name), RegionVitals { health, ..RegionVitals::default() }));
    }
    let facts = Facts {
        route,
        ingress: case.peer.as_deref().map_or(Ingress::Client, |peer| Ingress::Peer(region(peer))),
        is_read: matches!(method, Method::Get | Method::Head),
        is_preflight: case.preflight,
        today: Day::parse(case.day.as_deref().unwrap_or("2026-06-01")).expect("a day"),
        client: case.ip.unwrap_or([203, 0, 113, 1].into()),
        directory,
        token,
        hint: case.hint.as_ref().map(record),
        proof: if case.claimed && route.user.is_none() { Proof::Claimed } else { Proof::Proven },
        place: network.or(from).map_or(Lookup::Absent, |country| Lookup::Found(Place::in_country(country))),
        place_is_stale: case.stale,
        claim: claim.as_ref(),
        vitals: &vitals,
    };
    decide(&facts, policy)
}

fn outcome(decision: &Decision, policy: &Policy) -> String {
    match &decision.verdict {
        Verdict::Proceed(itinerary) => {
            itinerary.regions().fold("proceed".into(), |text, region| format!("{text} {}", policy.region_name(region)))
        }
        Verdict::Redirect(region) => format!("redirect {}", policy.region_name(*region)),
        Verdict::Refuse(code) => format!("refuse {}", code.as_str()),
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
            let policy = policy_at(&book.policy, &case.at);
            let decision = judge(case, &book.people, &policy);
            let found = outcome(&decision, &policy);
            if found != case.expect {
                let story: Vec<_> = narrate::tell(&decision, &policy)
                    .iter()
                    .map(|line| format!("      {}: {}", line.heading, line.text))
                    .collect();
                wrong.push(format!(
                    "{name}: {}\n    expected {}\n    found    {found}\n{}",
                    case.it,
                    case.expect,
                    story.join("\n")
                ));
            }
            if decision.trail.reported != case.reported {
                wrong.push(format!("{name}: {}\n    reported is {}", case.it, decision.trail.reported));
            }
            if let Some(enforced) = &case.enforced {
                let names: Vec<_> = decision.trail.enforced.iter().map(|region| policy.region_name(region).to_owned()).collect();
                assert_eq!(&names, enforced, "{name}: {}", case.it);
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count} cases are wrong\n{}", wrong.len(), wrong.join("\n"));
    assert!(count >= 80, "the case book has shrunk to {count} cases");
}
