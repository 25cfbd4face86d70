//! The comparison of two policies: each change of a file is told, and nothing else is.

use std::path::Path;

use domicile::config;
use domicile::decision::policy::Policy;
use domicile::model::day::Day;
use domicile::model::jurisdiction::{Jurisdiction, JurisdictionId};
use domicile::model::region::Registry;
use domicile::model::vitals::PolicyHash;
use domicile::review::compare::{Difference, compare};
use fastrand::Rng;

use crate::checker::{self, Class};
use crate::worlds;

const FILE: &str = r#"region: eu-west
listen: ["127.0.0.1:1", { address: "127.0.0.1:2", peers: true }]
peer_tls: { certificate: c, key: k, authority: a }
jurisdictions: { eu: { countries: [DE, FR] }, us: { countries: [US] } }
regions:
  eu-west: { jurisdiction: eu, at: [53, -6], upstreams: "http://127.0.0.1:3", gateway: "https://127.0.0.1:2", url: "https://eu.test" }
  us-east: { jurisdiction: us, at: [39, -77], upstreams: "http://127.0.0.1:3", gateway: "https://127.0.0.1:2", url: "https://us.test" }
data:
  public: { stays: anywhere }
  personal: { stays: home, needs: inferred, carried_by: [eu] }
users: { key: [{ header: x-user }], directory: { file: users.csv } }
geoip: { database: g.mmdb, countries: { BR: us-east }, otherwise: nearest, unknown: next }
client_address: { trust: [10.0.0.0/8], from: x-forwarded-for }
failover: { reads: never, writes: never }
routes:
  - { name: account, match: { path: "/account/{user}" }, data: personal, home: [directory, refuse] }
  - { name: shop, match: { path: "/shop/**" }, data: public, home: [geoip, { region: eu-west }] }
  - { name: rest, match: {}, data: public, home: [latency] }
audit: { directory: ledger }
"#;

fn policy(text: &str, registry: &mut Registry) -> Policy {
    let parsed = config::parse(text, Path::new("d.yaml"), None, registry, Day::parse("2026-11-28").unwrap());
    parsed.unwrap_or_else(|problems| panic!("{problems:?}")).policy
}

fn told(differences: &[Difference]) -> Vec<String> {
    let example = |difference: &Difference| match &difference.example {
        Some(found) => {
            let on = found.on.map_or_else(String::new, |day| format!(" on {day}"));
            format!("; {} by {} at {}{on}: {} -> {}", found.request, found.by, found.at, found.before, found.after)
        }
        None => String::new(),
    };
    differences.iter().map(|one| format!("{}: {}{}", one.subject, one.change, example(one))).collect()
}

#[test]
fn each_change_of_a_file_is_told_with_a_request_that_shows_it() {
    #[rustfmt::skip]
    let changes: &[(&str, &str, &[&str])] = &[
        ("carried_by: [eu]", "carried_by: [eu, us]", &[
            "data class personal: now may be carried through eu, us; was may be carried through eu",
            "data class personal: data of users in eu may also be carried through us-east; \
             GET https://any.example/account/example-user by a user whose home is eu-west at us-east: redirect eu-west -> proceed eu-west",
        ]),
        ("carried_by: [eu] }", "carried_by: [eu], transfers: [{ from: eu, to: us, basis: SCC, record: '7', until: 2026-12-31 }] }", &[
            "data class personal: new transfer from eu to us until 2026-12-31: SCC, 7",
            "data class personal: data of users in eu may also be processed in us-east; \
             GET https://any.example/account/example-user by a user whose home is eu-west at us-east: redirect eu-west -> proceed eu-west",
            "data class personal: from 2027-01-01 on, data of users in eu may be in the same regions as before",
        ]),
        ("needs: inferred, ", "needs: recorded, ", &[
            "data class personal: now needs a home that is recorded or better; was needs a home that is inferred or better",
        ]),
        ("data: public, home: [latency]", "data: personal, home: [directory, refuse]", &[
            "route rest: now data personal; now home by directory, refuse; was data public; was home by latency; \
             GET https://any.example/ by a user whose home is eu-west at eu-west: proceed eu-west us-east -> proceed eu-west",
        ]),
        ("  - { name: shop, match: { path: \"/shop/**\" }, data: public, home: [geoip, { region: eu-west }] }\n", "", &[
            "route shop: gone (data public; home by geoip, eu-west; service app; reads stay at home); \
             GET https://any.example/shop by a client in DE at eu-west: proceed eu-west -> proceed eu-west us-east",
        ]),
        ("countries: { BR: us-east }", "countries: { BR: eu-west }", &[
            "clients in BR: home now eu-west; was us-east; \
             GET https://any.example/shop by a client in BR at eu-west: proceed us-east -> proceed eu-west",
        ]),
        ("countries: [US]", "countries: [US, CA]", &[
            "jurisdiction us: now also CA",
        ]),
        ("gateway: \"https://127.0.0.1:2\", url: \"https://us.test\"", "url: \"https://us.test\"", &[
            "region us-east: now without a gateway; was with a gateway; \
             GET https://any.example/account/example-user by a user whose home is us-east at eu-west: proceed us-east -> redirect us-east",
        ]),
        ("countries: { BR: us-east }", "networks: { 10.1.0.0/16: us-east }, countries: { BR: us-east }", &[
            "network 10.1.0.0/16: new: home us-east; \
             GET https://any.example/shop by a client at 10.1.0.0 at eu-west: proceed eu-west -> proceed us-east",
        ]),
        ("match: { path: \"/account/{user}\" }", "match: { path: [\"/account/{user}\", \"/bills/{user}\"] }", &[
            "route account: now matches any method, any host, /account/{user} or /bills/{user}; matched any method, any host, /account/{user}; \
             GET https://any.example/bills/example-user by a user whose home is eu-west at eu-west: proceed eu-west us-east -> proceed eu-west",
        ]),
        ("unknown: next", "unknown: us-east", &[
            "clients in no known country: home now us-east; was none; \
             GET https://any.example/shop by a client at an unknown place at eu-west: proceed eu-west -> proceed us-east",
        ]),
        ("[{ header: x-user }]", "[{ header: x-user-id }]", &[
            "identification: now users.key[0] header x-user-id", "identification: was users.key[0] header x-user",
        ]),
    ];
    let mut wrong = Vec::new();
    for (from, to, expected) in changes {
        let mut registry = Registry::default();
        let text = FILE.replacen(from, to, 1);
        assert_ne!(text, FILE, "{from}");
        let (old, new) = (policy(FILE, &mut registry), policy(&text, &mut registry));
        let found = told(&compare(&old, &new, Day::parse("2026-11-28").unwrap()));
        if found != *expected {
            wrong.push(format!("{from} -> {to}: {found:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_equal_policy_differs_in_nothing_and_the_order_of_routes_by_its_effect() {
    let mut registry = Registry::default();
    let today = Day::parse("2026-11-28").unwrap();
    let old = policy(FILE, &mut registry);
    assert!(compare(&old, &policy(&format!("# a comment\n{FILE}"), &mut registry), today).is_empty());
    let swapped = |first: &str, second: &str| {
        let line = |name: &str| FILE.lines().find(|line| line.contains(&format!("name: {name},"))).unwrap();
        FILE.replace(line(first), "@").replace(line(second), line(first)).replace('@', line(second))
    };
    let without_effect = compare(&old, &policy(&swapped("account", "shop"), &mut registry), today);
    let order = "the policies differ: only in what changes no judgement, such as the order of routes that share no requests";
    assert_eq!(told(&without_effect), [order]);
    // A table of countries that says what is so anyway.
    let same_homes = policy(&FILE.replace("{ BR: us-east }", "{ BR: us-east, DE: eu-west }"), &mut registry);
    assert_eq!(told(&compare(&old, &same_homes, today)), [order]);
}

/// Whether a rule lets data of a user be processed in a jurisdiction, without the program's code.
fn admits(class: &Class, user: usize, place: usize, today: i32) -> bool {
    let holds = |transfer: &checker::Transfer| {
        transfer.from == checker::User::Named(user) && transfer.to.contains(&place) && today <= transfer.until
    };
    let stays = match &class.stays {
        checker::Stays::Anywhere => true,
        checker::Stays::Home => user == place,
        checker::Stays::In(places) => places.contains(&place),
    };
    class.report_only || stays || class.transfers.iter().any(holds)
}

#[test]
fn routes_that_change_places_are_told_with_a_request_that_both_match() {
    let today = Day::parse("2026-11-28").unwrap();
    let (private, shared) = (
        "  - { name: private, match: { path: \"/files/{folder}/private\" }, data: personal, home: [directory, refuse] }\n",
        "  - { name: shared, match: { path: \"/files/shared/**\" }, data: public, home: [latency] }\n",
    );
    let file = |order: [&str; 2]| FILE.replace("  - { name: rest,", &format!("{}  - {{ name: rest,", order.concat()));
    let mut registry = Registry::default();
    let old = policy(&file([private, shared]), &mut registry);
    // Also beside another change.
    let changed = file([shared, private]).replace("carried_by: [eu]", "carried_by: [eu, us]");
    let told = told(&compare(&old, &policy(&changed, &mut registry), today));
    let swapped = "route shared: now before route private, which matches some of the same requests; was after it; \
                   GET https://any.example/files/shared/private by a user whose home is eu-west at eu-west: \
                   proceed eu-west -> proceed eu-west us-east";
    assert!(told.iter().any(|one| one == swapped), "{told:#?}");
}

#[test]
fn the_regions_of_random_rules_are_compared_as_the_rules_say() {
    let today = Day::parse(worlds::TODAY).unwrap();
    let (mut gained, mut lost) = (0, 0);
    for seed in 0..300 {
        let mut random = Rng::with_seed(seed);
        let (world, second) = (worlds::world(&mut random), worlds::world(&mut random));
        let jurisdictions = world.jurisdictions.len();
        if second.jurisdictions.len() > jurisdictions {
            continue;
        }
        let with_name = |(index, class): (usize, &Class)| Class { name: format!("c{index}"), ..class.clone() };
        let classes = second.classes.iter().cycle().take(world.classes.len()).enumerate().map(with_name).collect();
        let changed = checker::World { classes, ..world.clone() };
        let policy_of = |world: &checker::World, hash| {
            let mut policy = worlds::program(world).policy().clone();
            policy.hash = PolicyHash([hash; 16]);
            policy
        };
        let (old, new) = (policy_of(&world, 1), policy_of(&changed, 2));
        let differences = compare(&old, &new, today);
        for (index, (before, after)) in world.classes.iter().zip(&changed.classes).enumerate() {
            for user in 0..jurisdictions {
                let name = new.jurisdiction_name(Jurisdiction::Named(JurisdictionId::new(user).unwrap()));
                let regions = |has: &Class, lacks: &Class| {
                    let place = |region: &usize| world.regions[*region].jurisdiction;
                    let differs = |region: &usize| {
                        admits(has, user, place(region), world.today) && !admits(lacks, user, place(region), world.today)
                    };
                    let found: Vec<_> = (0..world.regions.len()).filter(differs).map(|region| format!("r{region}")).collect();
                    found.join(", ")
                };
                let start = format!("data of users in {name} ");
                let says = |label: &str, regions: String| {
                    let is_it = |one: &&Difference| {
                        let parts = one.change.strip_prefix(&start).into_iter().flat_map(|rest| rest.split("; "));
                        let text = format!("{label} {regions}");
                        one.subject == format!("data class c{index}")
                            && parts
                                .into_iter()
                                .any(|part| if regions.is_empty() { part.starts_with(label) } else { part == text })
                    };
                    let found = differences.iter().any(|one| is_it(&one));
                    assert_eq!(found, !regions.is_empty(), "seed {seed}: c{index}, {start}{label} {regions}\n{differences:#?}");
                    usize::from(found)
                };
                gained += says("may also be processed in", regions(after, before));
                lost += says("may no longer be processed in", regions(before, after));
            }
        }
    }
    assert!(gained > 100 && lost > 100, "{gained} {lost}");
}
