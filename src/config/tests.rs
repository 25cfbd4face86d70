use super::*;
use crate::config::summary;

/// A sound file, into which a test puts one mistake.
const SOUND: &str = r#"region: eu-west
listen:
  - address: "127.0.0.1:8080"
  - { address: "127.0.0.1:9443", peers: true }
peer_tls: { certificate: "c/{region}.pem", key: "c/{region}.key", authority: c/ca.pem }
jurisdictions:
  eu: { countries: [EEA] }
  us: { countries: [US] }
regions:
  eu-west: { jurisdiction: eu, at: [53.35, -6.26], upstreams: ["http://127.0.0.1:1"], gateway: "https://127.0.0.1:2", url: "https://eu.example.com" }
  us-east: { jurisdiction: us, at: [38.95, -77.45], upstreams: ["http://127.0.0.1:1"], gateway: "https://127.0.0.1:2", url: "https://us.example.com" }
data:
  public: { stays: anywhere }
  restricted: { stays: home }
users: { key: [{ header: x-user-id }], directory: { file: users.csv } }
geoip: { database: country.mmdb }
audit: { directory: ledger }
routes:
  - { name: feed, match: { path: "/feed/**" }, data: public, home: [latency] }
  - { name: rest, match: {}, data: restricted, home: [directory, refuse] }
"#;

fn today() -> Day {
    Day::parse("2026-11-23").unwrap()
}

fn problems(text: &str) -> Vec<String> {
    match parse(text, Path::new("d.yaml"), None, &mut Registry::default(), today()) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

/// The problems of the sound file with one text replaced by another.
fn with(old: &str, new: &str) -> Vec<String> {
    assert!(SOUND.contains(old), "{old}");
    problems(&SOUND.replacen(old, new, 1))
}

#[test]
fn every_mistake_is_answered_with_its_place_and_what_would_be_right() {
    assert_eq!(problems(SOUND), Vec::<String>::new());
    for (old, new, expected) in [
        (
            "data: restricted, home",
            "data: resticted, home",
            "d.yaml:20:36: routes[1].data: unknown data class `resticted`; did you mean `restricted`?",
        ),
        ("region: eu-west", "region: eu-wst", "d.yaml:1:9: region: unknown region `eu-wst`; did you mean `eu-west`?"),
        (
            "jurisdiction: us,",
            "jurisdiction: usa,",
            "regions.us-east.jurisdiction: unknown jurisdiction `usa`; did you mean `us`?",
        ),
        ("[US]", "[UK]", "jurisdictions.us.countries[0]: unknown country code `UK`; the code of the United Kingdom is `GB`"),
        ("[US]", "[us]", "unknown country code `us`"),
        ("[US]", "[US, DE]", "jurisdictions.us.countries[1]: `DE` is in jurisdiction `eu` already"),
        ("stays: anywhere", "stay: anywhere", "data.public: `stays` is missing"),
        ("stays: anywhere", "stay: anywhere", "data.public: unknown key `stay`; did you mean `stays`?"),
        ("{ stays: home }", "{}", "data.restricted: `stays` is missing"),
        ("stays: home", "stays: [eu, mars]", "data.restricted.stays[1]: unknown jurisdiction `mars`"),
        ("[directory, refuse]", "[directory]", "routes[1].home: the chain has no end"),
        ("[directory, refuse]", "[refuse, directory]", "routes[1].home[1]: this step is never reached"),
        ("[directory, refuse]", "[directory, directory, refuse]", "this step stands in the chain already"),
        ("[directory, refuse]", "[direktory, refuse]", "`direktory` is not possible here; did you mean `directory`?"),
        ("[directory, refuse]", "[{ region: mars }]", "unknown region `mars`"),
        (
            "data: restricted, home: [directory, refuse]",
            "data: restricted, home: [latency]",
            "`latency` finds no owner, and `restricted` stays at its owner's home",
        ),
        ("directory: { file: users.csv }", "", "there is no directory to ask"),
        ("{ name: rest, match: {},", "{ name: rest, ", "routes[1]: `match` is missing"),
        ("data: restricted, home", "home", "routes[1]: `data` is missing: every route names its data class"),
        ("match: {}", "match: { path: feed }", "routes[1].match.path: `feed` is no path pattern; it starts with `/`"),
        ("match: {}", "match: { methods: [GTE] }", "unknown method `GTE`; did you mean `GET`?"),
        ("match: {}", "match: {}, upgrades: [websockets]", "unknown protocol `websockets`; did you mean `websocket`?"),
        ("match: {}", "match: {}, upgrades: [conect]", "did you mean `connect`?"),
        ("name: rest", "name: feed", "a route named `feed` stands above"),
        (
            "http://127.0.0.1:1\"], gateway: \"https://127.0.0.1:2\", url: \"https://us",
            "ftp://127.0.0.1:1\"], gateway: \"https://127.0.0.1:2\", url: \"https://us",
            "write `http://host:port`",
        ),
        ("at: [53.35, -6.26]", "at: [153.35, -6.26]", "write a number from -90 to 90"),
        ("at: [53.35, -6.26]", "at: \"53.35, -6.26\"", "at: write `[latitude, longitude]` in degrees"),
        ("c/{region}.key", "c/{regoin}.key", "peer_tls.key: only `{region}` stands for something in this path"),
        (
            "address: \"127.0.0.1:8080\"",
            "proxy_protocol: v2\n    address: \"127.0.0.1:8080\"",
            "say who sends it: `proxy_protocol: { from:",
        ),
        ("peers: true }", "peers: maybe }", "`maybe` is not possible here"),
        ("\"127.0.0.1:8080\"", "\"0.0.0.0:8080\"", "cleartext stays on loopback"),
        ("\"127.0.0.1:8080\"", "\"localhost:8080\"", "`localhost:8080` is no address"),
        ("peer_tls:", "admin: { address: \"127.0.0.1:8080\" }\npeer_tls:", "is listened on already"),
        ("\"127.0.0.1:8080\"", "\"127.0.0.1:9443\"", "is listened on twice"),
        ("peer_tls:", "#peer_tls:", "`peer_tls` is missing"),
        ("audit:", "#audit:", "`audit` is missing"),
        ("file: users.csv", "file: users.csv, kind: csv", "unknown key `kind`"),
        (
            "geoip: { database: country.mmdb }",
            "geoip: { database: country.mmdb, networks: { 10.0.0.1/8: eu-west } }",
            "did you mean `10.0.0.0/8`?",
        ),
        ("geoip: { database: country.mmdb }", "geoip: { database: country.mmdb, max_age: 90 }", "`90` is no length of time"),
        (
            "geoip: { database: country.mmdb }",
            "geoip: { database: country.mmdb, continents: { EUR: eu-west } }",
            "unknown continent `EUR`",
        ),
        ("geoip: { database: country.mmdb }", "limits: { body: 10MB }", "`10MB` is no size"),
        ("region: eu-west", "region: eu-west\nregion: us-east", "`region` is set twice, first in line 1"),
        ("region: eu-west", "region: [eu", "this is no YAML"),
    ] {
        let found = with(old, new);
        assert!(found.iter().any(|problem| problem.contains(expected)), "{new}: expected {expected:?} in {found:#?}");
    }
}

#[test]
fn all_mistakes_are_reported_at_once_in_the_order_of_the_file() {
    let broken = SOUND
        .replace("[US]", "[UK]")
        .replace("stays: anywhere", "stays: nowhere")
        .replace("data: restricted, home", "data: secret, home");
    let found = problems(&broken);
    let order: Vec<_> =
        ["`UK`", "`nowhere`", "`secret`"].iter().map(|word| found.iter().position(|problem| problem.contains(word))).collect();
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{found:#?}");
}

#[test]
fn one_mistake_hides_no_other() {
    let broken = SOUND
        .replace("  - { name: rest,", "  - { name: late, match: { path: /feed/x }, data: public, home: [latency] }\n  - { name: rest,")
        .replace("data: restricted, home", "data: secret, home")
        .replace("audit: { directory: ledger }", "audit: { directory: ledger }\nlimits: { body: 10MB, drain: soon, headers: none }\nclient_address: { trust: [nobody] }");
    let found = problems(&broken);
    for part in [
        "`late` can never match",
        "data class `secret`",
        "limits.body:",
        "limits.drain:",
        "limits.headers:",
        "client_address.trust[0]:",
    ] {
        assert_eq!(found.iter().filter(|problem| problem.contains(part)).count(), 1, "{part} in {found:#?}");
    }
    assert_eq!(found.len(), 6, "and nothing that is no mistake: {found:#?}");
}

#[test]
fn a_route_that_can_never_match_is_a_mistake() {
    let found = with(
        "  - { name: rest,",
        "  - { name: late, match: { path: \"/feed/{item}\" }, data: public, home: [latency] }\n  - { name: rest,",
    );
    assert!(
        found[0].contains("routes[1]: route `late` can never match: `feed` above takes every request it is for"),
        "{found:#?}"
    );
    // Two routes that share the methods cover a third together.
    let split = "  - { name: a, match: { path: /x, methods: [GET] }, data: restricted, home: [directory, refuse] }\n  - { name: b, match: { path: /x, methods: [POST] }, data: restricted, home: [directory, refuse] }\n  - { name: c, match: { path: /x, methods: [GET, POST] }, data: restricted, home: [directory, refuse] }\n  - { name: rest,";
    assert!(with("  - { name: rest,", split).iter().any(|problem| problem.contains("route `c` can never match")));
}

#[test]
fn changing_only_the_method_must_not_widen_the_clearance() {
    let catch_all = SOUND.replace("data: restricted, home: [directory, refuse]", "data: public, home: [latency]");
    let guarded = catch_all.replace("  - { name: rest,", "  - { name: account, match: { path: \"/account/**\", methods: [GET] }, data: restricted, home: [directory, refuse] }\n  - { name: rest,");
    let found = problems(&guarded);
    assert!(
        found[0].contains("routes[1]: changing only the method escapes this route: `HEAD` to the same place falls to `rest`"),
        "{found:#?}"
    );
    let whole = guarded.replace(", methods: [GET]", "");
    assert_eq!(problems(&whole), Vec::<String>::new());
    // Falling to a narrower class is no escape: `feed` in the sound file does.
    assert_eq!(with("path: \"/feed/**\"", "path: \"/feed/**\", methods: [GET]"), Vec::<String>::new());
}

#[test]
fn following_our_own_redirect_must_not_change_the_class() {
    let by_host = SOUND
        .replace(
            "  - { name: rest,",
            "  - { name: api, match: { host: api.example.com }, data: restricted, home: [directory, refuse] }\n  - { name: rest,",
        )
        .replace(
            "{ name: rest, match: {}, data: restricted, home: [directory, refuse] }",
            "{ name: rest, match: {}, data: public, home: [latency] }",
        );
    let found = problems(&by_host);
    assert!(found[0].contains("routes[1]: following our own redirect changes the class: at `https://eu.example.com/` the same request falls to `rest`"), "{found:#?}");
    let covered = by_host.replace("host: api.example.com", "host: \"*.example.com\"");
    assert_eq!(problems(&covered), Vec::<String>::new());
}

#[test]
fn a_chain_must_not_end_where_its_data_may_never_be() {
    let found = with("home: [directory, refuse]", "home: [directory, { region: us-east }]");
    assert!(found[0].contains("the chain ends in `us-east`, where `restricted` may never be processed"), "{found:#?}");
}

fn registry_after(text: &str, registry: &mut Registry) -> Result<Config, Vec<Problem>> {
    parse(text, Path::new("d.yaml"), None, registry, today())
}

#[test]
fn a_name_keeps_its_number_over_reloads_and_a_bad_file_takes_none() {
    let mut registry = Registry::default();
    assert!(registry_after(SOUND, &mut registry).is_ok());
    let reordered = SOUND.replace("regions:\n", "regions:\n  ap-south: { jurisdiction: us, at: [1, 1], upstreams: [\"http://127.0.0.1:1\"], url: \"https://ap.example.com\" }\n");
    assert!(registry_after(&reordered.replace("refuse]", "refus]"), &mut registry).is_err());
    assert_eq!(registry.regions.find("ap-south"), None);
    assert!(registry_after(&reordered, &mut registry).is_ok());
    assert_eq!(
        (registry.regions.find("eu-west"), registry.regions.find("us-east"), registry.regions.find("ap-south")),
        (Some(0), Some(1), Some(2))
    );
}

#[test]
fn a_sixty_fifth_region_is_a_mistake() {
    let mut more = String::new();
    for index in 0..63 {
        more += &format!(
            "  r{index}: {{ jurisdiction: us, at: [1, 1], upstreams: [\"http://127.0.0.1:1\"], url: \"https://a.example.com\" }}\n"
        );
    }
    let found = problems(&SOUND.replace("data:\n", &format!("{more}data:\n")));
    assert!(found.iter().any(|problem| problem.contains("regions.r62: this is the 65th region")), "{found:#?}");
}

#[test]
fn equal_rules_have_equal_hashes_however_they_are_written() {
    let hash = |text: &str, region| parse(text, Path::new("d"), region, &mut Registry::default(), today()).unwrap().policy.hash;
    let base = hash(SOUND, None);
    assert_eq!(hash(SOUND, Some("us-east")), base, "regions that judge alike agree");
    assert_eq!(hash(&SOUND.replace("http://127.0.0.1:1", "http://10.9.9.9:80"), None), base, "upstreams are no rule");
    assert_eq!(
        hash(&SOUND.replace("  public: { stays: anywhere }\n", "  # a remark\n  public:\n    stays: anywhere\n"), None),
        base
    );
    assert_ne!(hash(&SOUND.replace("[US]", "[US, CA]"), None), base);
    assert_ne!(hash(&SOUND.replace("[directory, refuse]", "[directory, geoip, refuse]"), None), base);
}

#[test]
fn the_summary_says_where_every_class_may_be() {
    let config = parse(SOUND, Path::new("d"), None, &mut Registry::default(), today()).unwrap();
    let text = summary::print(&config.policy, today());
    for line in ["restricted: stays in the user's jurisdiction", "  eu             eu-west  ", "  elsewhere      nowhere  "] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn ten_thousand_routes_are_read_and_checked() {
    let mut text = SOUND.to_owned();
    for index in 0..10_000 {
        let rest = text.find("  - { name: rest").unwrap_or(text.len());
        if index == 0 {
            text.truncate(rest);
        }
        text += &format!("  - {{ name: r{index}, match: {{ path: \"/r{index}/**\" }}, data: public, home: [latency] }}\n");
    }
    assert_eq!(problems(&text), Vec::<String>::new());
}

#[test]
fn what_the_repository_ships_is_sound() {
    for name in ["minimal", "three-regions", "every-option"] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("config/{name}.yaml"));
        let loaded = load(&file, None, &mut Registry::default(), today());
        let problems: Vec<_> = loaded.err().into_iter().flatten().map(|problem| problem.to_string()).collect();
        assert_eq!(problems, Vec::<String>::new());
    }
}

#[test]
fn what_leads_to_refusals_by_surprise_is_noted() {
    let text = SOUND
        .replace(
            "geoip: { database: country.mmdb }",
            "geoip: { database: country.mmdb, countries: { DE: us-east, CA: us-east } }",
        )
        .replace(
            "restricted: { stays: home }",
            "restricted: { stays: home, needs: inferred, transfers: [{ from: us, to: eu, basis: b, until: 2020-01-01 }] }",
        )
        .replace("[directory, refuse]", "[directory, geoip, refuse]");
    let config = parse(&text, Path::new("d"), None, &mut Registry::default(), today()).unwrap();
    let notes = notes(&config.policy, today());
    assert_eq!(notes.len(), 2, "{notes:#?}");
    assert!(notes[0].contains("sends DE to us-east, which may not process its people's data of `rest`"), "{notes:#?}");
    assert!(notes[1].contains("expired after 2020-01-01"), "{notes:#?}");
}
