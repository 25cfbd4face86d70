use super::*;
use crate::review::Matrix;

/// A valid file; the tests introduce mistakes into it.
const VALID: &str = r#"region: eu-west
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

#[test]
fn a_missing_region_name_is_the_only_mistake() {
    let own = "listen: [127.0.0.1:8080, { address: \"127.0.0.1:9443\", peers: true }], jurisdiction";
    let text = VALID.replace("listen:\n  - address: \"127.0.0.1:8080\"\n  - { address: \"127.0.0.1:9443\", peers: true }\n", "");
    let text = text.replace("jurisdiction: eu", &own.replace("jurisdiction", "jurisdiction: eu"));
    assert_eq!(problems(&text), [""; 0]);
    let [only] = &problems(&text.replace("region: eu-west\n", ""))[..] else { panic!() };
    assert!(only.contains("`region` is missing"), "{only}");
}

#[test]
fn app_servers_are_checked_by_a_connection_unless_the_file_says_otherwise() {
    use crate::services::Check;
    let check = |health: &str| {
        let text = VALID.replacen("gateway:", &format!("{health}gateway:"), 1);
        let config = parse(&text, Path::new("d.yaml"), None, &mut Registry::default(), today());
        config.unwrap_or_else(|problems| panic!("{problems:?}")).settings.services[0].1.check.clone()
    };
    assert_eq!([check(""), check("health: connect, ")], [Some(Check::default()), Some(Check::default())]);
    assert_eq!(check("health: off, "), None);
    assert_eq!(check("health: /up, "), Some(Check { path: Some("/up".into()), ..Check::default() }));
    assert_eq!(check("health: { fall: 1 }, "), Some(Check { fall: 1, ..Check::default() }));
}

/// The problems of the valid file with assertions.
fn asserting(text: &str) -> Vec<String> {
    problems(&VALID.replace("routes:\n", &format!("assert:\n{text}\nroutes:\n")))
}

#[test]
fn assertions_that_hold_are_proven() {
    let holding = "  - never: { data: restricted, of: eu, processed_in: us }
  - never: { data: restricted, of: eu, carried_by: [us] }
  - never: { route: rest, evidence: inferred, outcome: proceed }
  - always: { route: rest, of: us, served_by: us-east }";
    assert_eq!(asserting(holding), [""; 0]);
    let text = VALID.replace("routes:\n", &format!("assert:\n{holding}\nroutes:\n"));
    let config = parse(&text, Path::new("d.yaml"), None, &mut Registry::default(), today()).unwrap_or_else(|_| panic!());
    let proven = config.proven.unwrap();
    // No user's key is merely claimed in this file, so that no home is inferred.
    assert!(proven.situations > 100 && proven.idle == [2] && config.assertions.len() == 4, "{proven:?}");
}

#[test]
fn an_assertion_that_does_not_hold_is_refused_with_a_situation() {
    let [only] = &asserting("  - never: { data: public, processed_in: us }")[..] else { panic!() };
    let parts = ["d.yaml:19:5: assert[0]: this assertion does not hold: a read of route `feed`, sent to ", "verdict ", "us-east"];
    assert!(parts.iter().all(|part| only.contains(part)), "{only}");
    let [only] = &asserting("  - never: { data: restricted, outcome: redirect }")[..] else { panic!() };
    assert!(only.contains("so the client is redirected to us-east"), "{only}");
}

#[test]
fn an_assertion_is_proven_for_the_days_after_a_transfer_ends() {
    let transfers = "[{ from: us, to: eu, basis: a, until: 2027-12-31 }, { from: eu, to: us, basis: b, until: 2030-12-31 }]";
    let text = VALID.replace("restricted: { stays: home }", &format!("restricted: {{ stays: home, transfers: {transfers} }}"));
    let text = text.replace("routes:\n", "assert: [{ never: { data: restricted, outcome: redirect } }]\nroutes:\n");
    let [only] = &problems(&text)[..] else { panic!() };
    assert!(only.contains(", on 2028-01-01"), "{only}");
    assert_eq!(problems(&text.replace("restricted, outcome: redirect", "restricted, of: elsewhere, processed_in: us")), [""; 0]);
}

#[test]
fn an_assertion_must_say_something() {
    let only = |text: &str| {
        let found = asserting(text);
        let [only] = &found[..] else { panic!("{found:?}") };
        only.clone()
    };
    assert!(only("  - never: { data: restricted, of: eu }").contains("has one of `processed_in`, `served_by`"));
    assert!(only("  - never: { data: restricted, of: eu, processed_in: us, carried_by: us }").contains("has one of"));
    assert!(only("  - always: { data: restricted, carried_by: us }").contains("not possible with `always`"));
    assert!(only("  - { never: { outcome: proceed }, always: { served_by: eu-west } }").contains("write one of `never"));
    assert!(
        only("  - never: { data: restricted, of: eux, processed_in: us }")
            .contains("unknown jurisdiction `eux`; did you mean `eu`?")
    );
    assert!(only("  - never: { route: feeds, processed_in: us }").contains("no route `feeds`"));
}

/// The problems of the valid file after one replacement.
fn with(old: &str, new: &str) -> Vec<String> {
    assert!(VALID.contains(old), "{old}");
    problems(&VALID.replacen(old, new, 1))
}

/// A text of the valid file, the mistake that replaces it, and a part of the message.
const MISTAKES: &[(&str, &str, &str)] = &[
    (
        "https://127.0.0.1:2",
        "https://127.0.0.1:8080",
        "regions.eu-west: its `gateway` names port 8080, where a listener accepts clients; peers connect to port 9443",
    ),
    (
        "  - { address: \"127.0.0.1:9443\", peers: true }\n",
        "",
        "regions.eu-west: peers connect to its `gateway`, but none of its listeners has `peers: true`; add one",
    ),
    (
        "data: restricted, home",
        "data: resticted, home",
        "d.yaml:20:36: routes[1].data: unknown data class `resticted`; did you mean `restricted`?",
    ),
    ("region: eu-west", "region: eu-wst", "d.yaml:1:9: region: unknown region `eu-wst`; did you mean `eu-west`?"),
    ("jurisdiction: us,", "jurisdiction: usa,", "regions.us-east.jurisdiction: unknown jurisdiction `usa`; did you mean `us`?"),
    ("[US]", "[UK]", "jurisdictions.us.countries[0]: unknown country code `UK`; the code of the United Kingdom is `GB`"),
    ("[US]", "[us]", "unknown country code `us`"),
    ("upstreams: [\"http://127.0.0.1:1\"], gateway", "gateway", "regions.eu-west: `upstreams` is missing: list the app servers"),
    ("upstreams: [\"http://127.0.0.1:1\"]", "services: {}", "regions.eu-west.services: no service is listed"),
    (
        "upstreams: [\"http://127.0.0.1:1\"]",
        "services: { App: \"http://a:1\" }",
        "services.App: `App` is not a valid service name",
    ),
    (
        "upstreams: [\"http://127.0.0.1:1\"]",
        "upstreams: [{ dns: app.internal }]",
        "upstreams[0]: `port` is missing: name the port",
    ),
    ("upstreams: [\"http://127.0.0.1:1\"]", "upstreams: [{ dns: 10.0.0.1, port: 80 }]", "`10.0.0.1` is not a valid DNS name"),
    ("upstreams: [\"http://127.0.0.1:1\"]", "upstreams: [{ srv: app.internal, port: 80 }]", "upstreams[0]: unknown key `port`"),
    ("upstreams: [\"http://127.0.0.1:1\"]", "upstreams: [{ srv: app.internal, dns: a }]", "write one of `url`, `dns` and `srv`"),
    ("upstreams: [\"http://127.0.0.1:1\"]", "upstreams: [{ weight: 2 }]", "upstreams[0]: name the app server: a `url` such as"),
    (
        "upstreams: [\"http://127.0.0.1:1\"]",
        "upstreams: [{ dns: app.internal, port: 80, path: app/ }]",
        "the path `app/` is not in canonical form",
    ),
    ("upstreams: [\"http://127.0.0.1:1\"]", "upstreams: [{ dns: app.internal, port: 80, tls: {} }]", "`tls` needs `https`"),
    (
        "upstreams: [\"http://127.0.0.1:1\"]",
        "services: { app: { upstreams: [http://a:1], balance: { sticky: {} } } }",
        "services.app.balance.sticky: `keys` is missing: name the file of the keys",
    ),
    (
        "upstreams: [\"http://127.0.0.1:1\"]",
        "services: { app: { upstreams: [http://a:1], balance: sticky } }",
        "`sticky` is not a valid balance; write `least_busy`, `{ hash: user }`, or `{ sticky: { keys: FILE } }`",
    ),
    (
        "upstreams: [\"http://127.0.0.1:1\"]",
        "services: { app: { upstreams: [http://a:1], tls: { name: a } } }",
        "services.app.tls: no upstream of this service uses `https`",
    ),
    (
        "upstreams: [\"http://127.0.0.1:1\"]",
        "services: { app: { upstreams: [http://a:1], queues: 1 } }",
        "services.app: unknown key `queues`; did you mean `queue`?",
    ),
    ("upstreams: [\"http://127.0.0.1:1\"]", "services: { app: {} }", "services.app: `upstreams` is missing"),
    ("upstreams: [\"http://127.0.0.1:1\"]", "services: { app: [] }", "services.app: no upstream is listed"),
    (
        "upstreams: [\"http://127.0.0.1:1\"]",
        "upstreams: [\"http://127.0.0.1:1\"], services: { app: \"http://a:1\" }",
        "regions.eu-west.upstreams: this belongs to a service; move it into one of the `services`",
    ),
    (
        "upstreams: [\"http://127.0.0.1:1\"]",
        "services: { api: \"http://a:1\", web: \"http://a:2\", app: \"http://a:3\" }, health: /up",
        "regions.eu-west.health: this belongs to a service",
    ),
    ("path: \"/feed/**\"", "path: []", "routes[0].match.path: this list is empty; remove the key to match every path"),
    (
        "path: \"/feed/**\"",
        "path: [\"/feed/{user}\", \"/{user}/feed\"]",
        "routes[0].match.path: `{user}` must be the same segment in all paths of a route",
    ),
    (
        "gateway:",
        "health: no, gateway:",
        "regions.eu-west.health: `no` is not a valid check; write a path such as `/healthz`, `connect` or `off`",
    ),
    ("path: \"/feed/**\"", "path: [\"/feed/**\", \"feed\"]", "routes[0].match.path[1]: `feed` is not a valid path pattern"),
    ("path: \"/feed/**\"", "host: [a.test, \"a b\"]", "routes[0].match.host[1]: `a b`"),
    (
        "data: public, home",
        "redirect: \"www.a.test\", data: public, home",
        "routes[0].redirect: `www.a.test` is not a valid target; begin it with `/`, `http://` or `https://`",
    ),
    (
        "data: public, home",
        "redirect: { to: /a, status: 200 }, data: public, home",
        "routes[0].redirect.status: `200` is not a status of redirects; write 301, 302, 303, 307 or 308",
    ),
    (
        "data: public, home",
        "redirect: \"/{pth}\", data: public, home",
        "routes[0].redirect: `{pth}` is not a known value; write one of `{client.address}`",
    ),
    (
        "data: public, home",
        "redirect: /a, respond: 204, data: public, home",
        "routes[0].respond: a route has either `redirect` or `respond`",
    ),
    (
        "data: public, home",
        "redirect: /a, service: app, data: public, home",
        "routes[0].service: a route that responds itself needs no service",
    ),
    (
        "data: public, home",
        "redirect: /a, rewrite: { path: /b }, data: public, home",
        "routes[0].rewrite: a route that responds itself sends no request",
    ),
    (
        "data: public, home",
        "respond: 99, data: public, home",
        "routes[0].respond: `99` is not a valid value; write a whole number from 200 to 599",
    ),
    (
        "data: public, home",
        "respond: { status: 204, body: x }, data: public, home",
        "routes[0].respond.body: a response with status 204 has no body",
    ),
    ("data: public, home", "respond: { type: html }, data: public, home", "routes[0].respond.type: `html` is not a media type"),
    (
        "data: public, home",
        "rewrite: { strip_prefix: /api }, data: public, home",
        "routes[0].rewrite.strip_prefix: not every path of this route begins with `/api`",
    ),
    (
        "data: public, home",
        "rewrite: { strip_prefix: feed }, data: public, home",
        "routes[0].rewrite.strip_prefix: `feed` is not a valid path",
    ),
    (
        "data: public, home",
        "rewrite: { prefix: /feed }, data: public, home",
        "routes[0].rewrite: write one of `strip_prefix: /api`",
    ),
    (
        "data: public, home",
        "rewrite: { path: \"/a?b\" }, data: public, home",
        "routes[0].rewrite.path: `/a?b` is not a valid path",
    ),
    ("data: public, home", "rewrite: { host: \"a b\" }, data: public, home", "routes[0].rewrite.host: `a b` is not a valid host"),
    (
        "data: public, home",
        "request_headers: { set: { \"x y\": \"1\" } }, data: public, home",
        "routes[0].request_headers.set.x y: `x y` is not a valid header name",
    ),
    (
        "data: public, home",
        "request_headers: { set: { host: a } }, data: public, home",
        "`host` cannot be changed by a route, because Domicile sets it itself; `rewrite.host` changes the host",
    ),
    (
        "data: public, home",
        "response_headers: { remove: [content-length] }, data: public, home",
        "routes[0].response_headers.remove[0]: `content-length` cannot be changed",
    ),
    (
        "data: public, home",
        "response_headers: { st: { a: b } }, data: public, home",
        "routes[0].response_headers: unknown key `st`; did you mean `set`?",
    ),
    (
        "data: public, home",
        "clients: { allow: [10.0.0.0/99] }, data: public, home",
        "routes[0].clients.allow[0]: `10.0.0.0/99` is not a valid network",
    ),
    (
        "data: public, home",
        "clients: { deny: [10.1.2.3/8] }, data: public, home",
        "has address bits after its prefix; did you mean `10.0.0.0/8`?",
    ),
    (
        "data: public, home",
        "timeouts: { request: 0s }, data: public, home",
        "routes[0].timeouts.request: this duration must be longer than zero",
    ),
    (
        "data: public, home",
        "attempts: 0, data: public, home",
        "routes[0].attempts: `0` is not a valid value; write a whole number from 1 to 10",
    ),
    ("\"http://127.0.0.1:1\"", "\"http://127.0.0.1:1/a/../b\"", "the path `/a/../b` is not in canonical form"),
    ("\"http://127.0.0.1:1\"", "\"unix:run/app.sock\"", "`run/app.sock` is not the path of a socket; write an absolute path"),
    (
        "\"http://127.0.0.1:1\"",
        "{ url: \"http://a:1\", weight: 0 }",
        "upstreams[0].weight: `0` is not a valid value; write a whole number from 1 to 1000",
    ),
    (
        "\"http://127.0.0.1:1\"]",
        "\"http://127.0.0.1:1\"], balance: { hash: usr }",
        "balance.hash: `usr` is not a valid key; write `user`, `{ header: NAME }` or `{ cookie: NAME }`",
    ),
    (
        "\"http://127.0.0.1:1\"]",
        "\"http://127.0.0.1:1\"], balance: random",
        "balance: `random` is not a valid balance; write `least_busy`, `{ hash: user }`, or",
    ),
    (
        "\"http://127.0.0.1:1\"]",
        "\"http://127.0.0.1:1\"], balance: { hash: {} }",
        "balance.hash: name either a `header` or a `cookie`",
    ),
    (
        "data: public, home",
        "compress: [gzip, deflate], data: public, home",
        "routes[0].compress[1]: `deflate` is not a valid value; expected one of",
    ),
    ("data: public, home", "compress: [br, br], data: public, home", "routes[0].compress[1]: this coding is already in the list"),
    (
        "data: public, home",
        "rate_limit: { rate: 100 }, data: public, home",
        "routes[0].rate_limit.rate: `100` is not a valid rate; write 1 to",
    ),
    (
        "data: public, home",
        "rate_limit: { burst: 1 }, data: public, home",
        "routes[0].rate_limit: `rate` is missing: write a number of",
    ),
    (
        "data: public, home",
        "rate_limit: [{ rate: 1/s, by: ip }], data: public, home",
        "routes[0].rate_limit[0].by: `ip` is not a valid key; write `client`, `user`, `route` or `{ header: NAME }`",
    ),
    (
        "path: \"/feed/**\"",
        "headers: { x-forwarded-for: a }",
        "routes[0].match.headers.x-forwarded-for: routes cannot match on `x-forwarded-for`, because Domicile removes or changes it",
    ),
    ("path: \"/feed/**\"", "headers: { \"x y\": a }", "routes[0].match.headers.x y: `x y` is not a valid header name"),
    ("path: \"/feed/**\"", "clients: [10.0.0.1/8]", "routes[0].match.clients[0]: `10.0.0.1/8` has address bits after its prefix"),
    (
        "path: \"/feed/**\"",
        "path: \"/feed/**\", headers: { x-beta: \"1\" }",
        "clients decide by header fields or the query whether `feed` or `rest` matches, so both need the same clearance",
    ),
    ("data: public, home", "auth: { service: ap, path: / }, data: public, home", "routes[0].auth.service: unknown service `ap`"),
    ("data: public, home", "auth: { path: /verify }, data: public, home", "routes[0].auth: name the `service` that decides"),
    (
        "data: public, home",
        "auth: { service: app, path: / , copy: [host] }, data: public, home",
        "routes[0].auth.copy[0]: `host` cannot be changed",
    ),
    ("data: public, home", "clients: { allow: [] }, data: public, home", "routes[0].clients.allow: this list is empty"),
    ("data: public, home", "redirect: \"{uri}\", data: public, home", "routes[0].redirect: `{uri}` is not a valid target"),
    ("data: public, home", "redirect: \"{host}/a\", data: public, home", "routes[0].redirect: `{host}/a` is not a valid target"),
    ("data: public, home", "respond: { status: 205, body: x }, data: public, home", "a response with status 205 has no body"),
    ("data: public, home", "rate_limit: [100/x], data: public, home", "routes[0].rate_limit[0]: `100/x` is not a valid rate"),
    (
        "data: public, home",
        "cors: { origins: [a.test] }, data: public, home",
        "routes[0].cors.origins[0]: `a.test` is not a valid origin",
    ),
    (
        "data: public, home",
        "cors: { origins: \"*\", credentials: true }, data: public, home",
        "routes[0].cors.credentials: browsers refuse",
    ),
    (
        "data: public, home",
        "cors: { origins: [https://a.test, \"*\"] }, data: public, home",
        "routes[0].cors.origins[1]: `*` is every origin",
    ),
    (
        "data: public, home",
        "cors: { origins: [https://a.test], headers: \"*\", credentials: true }, data: public, home",
        "routes[0].cors.credentials: with credentials, browsers take `*` for a name",
    ),
    (
        "data: public, home",
        "split: [{ service: app, weight: 1 }], data: public, home",
        "routes[0].split: a split needs at least two services",
    ),
    (
        "data: public, home",
        "rate_limit: { rate: 1/s, scope: world }, data: public, home",
        "routes[0].rate_limit.scope: `world` is not a valid value",
    ),
    (
        "data: restricted, home",
        "rate_limit: { rate: 1/s, scope: global }, data: restricted, home",
        "routes[1]: a global rate limit tells all regions how often each of its keys is used, but data of class `restricted`",
    ),
    (
        "routes:\n",
        "latency: { every: 1m }\nroutes:\n  - { name: a, match: {}, data: public, home: [latency], rate_limit: { rate: 1/s, scope: global } }\n",
        "a rate limit with `scope: global` needs `latency.every` of at most 20s",
    ),
    (
        "data: public, home",
        "auth: { passwords: a, realm: 'a\"b' }, data: public, home",
        "a realm has only ASCII characters, without quotes",
    ),
    ("data: public, home", "auth: { passwords: a, path: /x }, data: public, home", "routes[0].auth: unknown key `path`"),
    (
        "data: public, home",
        "auth: { path: /x }, data: public, home",
        "routes[0].auth: name the `service` that decides, such as `auth`, or a file of `passwords`",
    ),
    (
        "data: public, home",
        "mirror: { service: app }, data: public, home",
        "routes[0].mirror: `share` is missing: write the share of the reads",
    ),
    ("data: public, home", "mirror: { service: app, share: 101% }, data: public, home", "`101%` is not a valid percentage"),
    ("data: public, home", "mirror: { service: next, share: 1% }, data: public, home", "unknown service `next`"),
    (
        "data: public, home",
        "split: [{ service: app, header: x-canary }, { service: app, weight: 1 }], data: public, home",
        "routes[0].split[0].header: a split is by weight; to choose a service by a header field, write a route before this one",
    ),
    ("data: public, home", "priority: urgent, data: public, home", "routes[0].priority: `urgent` is not a valid value"),
    ("users: {", "overload: { memory: { shed: 90% } }\nusers: {", "overload.memory: `shed` must be less than `stop`"),
    ("users: {", "overload: { event_loop: { stop: 2 } }\nusers: {", "overload.event_loop.stop: `2` is not a valid duration"),
    ("users: {", "overload: { memory: { limit: 512 } }\nusers: {", "overload.memory.limit: the process needs more memory"),
    (
        "upstreams: [\"http://127.0.0.1:1\"]",
        "services: { app: { upstreams: [http://a:1], balance: { sticky: { keys: k, cookie: sid } } }, api: { upstreams: [http://a:2], balance: { sticky: { keys: k, cookie: sid } } } }",
        "the sticky sessions of the service `api` use the cookie `sid`, which has another use already",
    ),
    ("data: public, home", "mirror: { service: app, share: 1% }, respond: 204, data: public, home", "there is nothing to mirror"),
    ("users: {", "overload: { memory: { limit: lots } }\nusers: {", "overload.memory.limit: `lots` is not a valid size"),
    ("data: public, home", "split: { app: 95 }, data: public, home", "such as `[{ service: app, weight: 95 }"),
    (
        "data: public, home",
        "respond: hello, data: public, home",
        "routes[0].respond: `hello` is not a status; write one such as `404`",
    ),
    ("data: public, home", "split: [{ service: app }], data: public, home", "routes[0].split[0]: `weight` is missing"),
    (
        "data: public, home",
        "paths: { encoded_slash: keep, dots: keep }, data: public, home",
        "routes[0].paths: unknown key `dots`",
    ),
    ("data: public, home", "service: ap, data: public, home", "routes[0].service: unknown service `ap`; did you mean `app`?"),
    ("[US]", "[US, DE]", "jurisdictions.us.countries[1]: `DE` is already in jurisdiction `eu`"),
    ("stays: anywhere", "stay: anywhere", "data.public: `stays` is missing"),
    ("stays: anywhere", "stay: anywhere", "data.public: unknown key `stay`; did you mean `stays`?"),
    ("{ stays: home }", "{}", "data.restricted: `stays` is missing"),
    ("stays: home", "stays: hom", "data.restricted.stays: unknown jurisdiction `hom`; did you mean `home`?"),
    ("stays: home", "stays: home, carried_by: anybody", "data.restricted.carried_by: unknown jurisdiction `anybody`"),
    ("stays: home", "stays: [eu, mars]", "data.restricted.stays[1]: unknown jurisdiction `mars`"),
    ("[directory, refuse]", "[directory]", "routes[1].home: the chain has no final step"),
    ("[directory, refuse]", "[refuse, directory]", "routes[1].home[1]: this step is never reached"),
    ("[directory, refuse]", "[directory, directory, refuse]", "this step is already in the chain"),
    ("[directory, refuse]", "[direktory, refuse]", "`direktory` is not a valid value; did you mean `directory`?"),
    ("[directory, refuse]", "[{ region: mars }]", "unknown region `mars`"),
    (
        "data: restricted, home: [directory, refuse]",
        "data: restricted, home: [latency]",
        "`latency` finds no home, but data of class `restricted` stays in its user's jurisdiction",
    ),
    ("directory: { file: users.csv }", "", "this step needs a directory"),
    ("{ name: rest, match: {},", "{ name: rest, ", "routes[1]: `match` is missing"),
    ("data: restricted, home", "home", "routes[1]: `data` is missing: every route needs a data class"),
    ("match: {}", "match: { path: feed }", "routes[1].match.path: `feed` is not a valid path pattern; start it with `/`"),
    ("match: {}", "match: { methods: [GTE] }", "unknown method `GTE`; did you mean `GET`?"),
    ("match: {}", "match: {}, upgrades: [websockets]", "unknown protocol `websockets`; did you mean `websocket`?"),
    ("match: {}", "match: {}, upgrades: [conect]", "did you mean `connect`?"),
    ("name: rest", "name: feed", "another route above is named `feed`"),
    (
        "http://127.0.0.1:1\"], gateway: \"https://127.0.0.1:2\", url: \"https://us",
        "ftp://127.0.0.1:1\"], gateway: \"https://127.0.0.1:2\", url: \"https://us",
        "write `http://host:port`",
    ),
    ("at: [53.35, -6.26]", "at: [153.35, -6.26]", "write a number from -90 to 90"),
    ("at: [53.35, -6.26]", "at: \"53.35, -6.26\"", "at: write `[latitude, longitude]` in degrees"),
    ("c/{region}.key", "c/{regoin}.key", "peer_tls.key: the only placeholder in this path is `{region}`"),
    (
        "address: \"127.0.0.1:8080\"",
        "proxy_protocol: v2\n    address: \"127.0.0.1:8080\"",
        "name the senders instead: `proxy_protocol: { from:",
    ),
    ("peers: true }", "peers: true, cleartext: true }", "a listener for peers uses the certificate in `peer_tls`"),
    ("peers: true }", "peers: maybe }", "`maybe` is not a valid value"),
    ("\"127.0.0.1:8080\"", "\"0.0.0.0:8080\"", "cleartext is limited to loopback"),
    ("\"127.0.0.1:8080\"", "\"localhost:8080\"", "`localhost:8080` is not a valid address"),
    ("peer_tls:", "admin: { address: \"127.0.0.1:8080\" }\npeer_tls:", "is already used by `listen`"),
    ("\"127.0.0.1:8080\"", "\"127.0.0.1:9443\"", "is listed twice"),
    ("peer_tls:", "#peer_tls:", "`peer_tls` is missing"),
    ("audit:", "#audit:", "`audit` is missing"),
    ("file: users.csv", "file: users.csv, kind: csv", "unknown key `kind`"),
    (
        "geoip: { database: country.mmdb }",
        "geoip: { database: country.mmdb, networks: { 10.0.0.1/8: eu-west } }",
        "did you mean `10.0.0.0/8`?",
    ),
    ("geoip: { database: country.mmdb }", "geoip: { database: country.mmdb, max_age: 90 }", "`90` is not a valid duration"),
    (
        "geoip: { database: country.mmdb }",
        "geoip: { database: country.mmdb, continents: { EUR: eu-west } }",
        "unknown continent `EUR`",
    ),
    ("geoip: { database: country.mmdb }", "limits: { body: 10 loads }", "`10 loads` is not a valid size"),
    ("region: eu-west", "region: eu-west\nregion: us-east", "`region` is set twice, first in line 1"),
    ("region: eu-west", "region: [eu", "this is not valid YAML"),
];

/// The valid file with other services in the two regions, and with a service for its first route.
fn with_services(eu: &str, us: &str, route: &str) -> Vec<String> {
    let text = VALID.replacen("upstreams: [\"http://127.0.0.1:1\"]", &format!("services: {eu}"), 1);
    let text = text.replacen("upstreams: [\"http://127.0.0.1:1\"]", &format!("services: {us}"), 1);
    problems(&text.replacen("name: rest,", &format!("name: rest, {route}"), 1))
}

#[test]
fn a_route_below_several_hosts_and_paths_of_another_never_matches() {
    let above = |pattern: &str| with("match: { path: \"/feed/**\" }", &format!("match: {{ {pattern} }}"));
    let shadowed = |problems: Vec<String>| problems.iter().any(|problem| problem.contains("route `rest` can never match"));
    assert!(!shadowed(above("host: [a.test, b.test], path: [\"/a/**\", \"/b/**\"]")));
    assert!(shadowed(above("host: [a.test, \"*\"], path: [\"/a/**\", \"/**\"]")));
}

#[test]
fn conditions_count_when_routes_are_compared() {
    let above = |pattern: &str| {
        with(
            "match: { path: \"/feed/**\" }, data: public, home: [latency]",
            &format!("match: {{ {pattern} }}, data: restricted, home: [directory, refuse]"),
        )
    };
    let none: Vec<String> = Vec::new();
    assert_eq!(above("headers: { x-beta: \"1\" }"), none, "the route below matches the other requests");
    assert_eq!(above("query: { v: [\"1\", \"2\"] }"), none);
    assert_eq!(above("clients: [10.0.0.0/8]"), none);
    assert!(above("path: \"/**\"")[0].contains("route `rest` can never match"));
    let text = VALID.replacen("routes:\n", "routes:\n  - { name: any, match: { headers: { x-beta: \"*\" } }, data: restricted, home: [directory, refuse] }\n  - { name: one, match: { headers: { X-Beta: \"1\" } }, data: restricted, home: [directory, refuse] }\n", 1).replace("  - { name: feed, match: { path: \"/feed/**\" }, data: public, home: [latency] }\n", "");
    let shadowed = problems(&text);
    assert!(
        shadowed.len() == 1 && shadowed[0].contains("route `one` can never match: the routes above it, up to `any`"),
        "{shadowed:?}"
    );
}

#[test]
fn a_route_names_a_service_that_a_region_may_serve_it_with() {
    let (both, none): (_, Vec<String>) = ("{ api: \"http://a:1\", app: \"http://a:2\" }", Vec::new());
    assert_eq!(with_services(both, both, "service: api,"), none);
    assert_eq!(with_services(both, both, ""), none, "the standard name");
    assert_eq!(with_services("{ web: \"http://a:1\" }", "{ web: \"http://a:1\" }", ""), none, "the only service");
    assert_eq!(with_services(both, "{ app: \"http://a:1\" }", "service: api,"), none, "for users in eu");
    let unnamed = with_services("{ api: \"http://a:1\", web: \"http://a:2\" }", "{ web: \"http://a:1\" }", "");
    assert!(
        unnamed[0].contains("routes[0]: `service` is missing: name the service of this route, one of `api`, `web`"),
        "{unnamed:?}"
    );
    let everywhere = "{ stays: home }";
    let text = VALID
        .replacen("upstreams: [\"http://127.0.0.1:1\"]", &format!("services: {both}"), 1)
        .replacen(everywhere, "{ stays: [us] }", 1)
        .replacen("name: rest,", "name: rest, service: api,", 1);
    let unserved = problems(&text);
    assert!(
        unserved[0].contains(
            "no request of this route can be served: the service `api` is only in eu-west, where `restricted` may never be processed"
        ),
        "{unserved:?}"
    );
    let text = VALID.replacen("upstreams: [\"http://127.0.0.1:1\"]", &format!("services: {both}"), 1).replacen(
        "data: public, home: [latency]",
        "service: api, data: public, home: [{ region: us-east }]",
        1,
    );
    let unserved = problems(&text);
    assert!(unserved[0].contains("its home is always `us-east`, which does not have the service `api`"), "{unserved:?}");
}

#[test]
fn a_route_that_asks_for_passwords_must_be_reachable_with_one() {
    let with_tokens = |others: &str| {
        let users = format!("users: {{ token: {{ keys: jwks.json, issuer: i, audience: a{others} }}, key:");
        VALID.replacen("users: { key:", &users, 1).replacen("name: rest,", "name: rest, auth: { passwords: staff },", 1)
    };
    let refused = problems(&with_tokens(""));
    assert!(refused.len() == 1 && refused[0].contains("routes[1]: nobody can use this route: with `users.token`"), "{refused:?}");
    assert_eq!(problems(&with_tokens(", others: ignore")), Vec::<String>::new());
    let anywhere = VALID
        .replacen("users: { key:", "users: { token: { keys: jwks.json, issuer: i, audience: a }, key:", 1)
        .replacen("name: feed,", "name: feed, auth: { passwords: staff },", 1);
    assert_eq!(problems(&anywhere), Vec::<String>::new());
}

#[test]
fn a_service_that_no_route_uses_is_noted() {
    let services = "services: { app: \"http://a:1\", auth: \"http://a:2\", next: \"http://a:3\", copy: \"http://a:4\", old: \"http://a:5\" }";
    let text = VALID.replace("upstreams: [\"http://127.0.0.1:1\"]", services);
    let actions = "name: feed, auth: { service: auth, path: /x }, mirror: { service: copy, share: 1% }, split: [{ service: app, weight: 1 }, { service: next, weight: 1 }],";
    let text = text.replacen("name: feed,", actions, 1);
    let Ok(config) = parse(&text, Path::new("d.yaml"), None, &mut Registry::default(), today()) else { panic!("valid") };
    let notes = crate::config::unused_services(&config.policy, &config.settings.actions);
    assert_eq!(notes, ["no route uses the service `old`; name it in a route, or remove it"]);
}

#[test]
fn a_home_without_the_service_of_a_route_is_noted() {
    let text = VALID
        .replacen("upstreams: [\"http://127.0.0.1:1\"]", "services: { app: \"http://a:1\", api: \"http://a:2\" }", 1)
        .replacen("name: rest,", "name: rest, service: api,", 1);
    let Ok(config) = parse(&text, Path::new("d.yaml"), None, &mut Registry::default(), today()) else { panic!("valid") };
    let notes = crate::config::notes(&config.policy, today());
    let about =
        |note: &&String| note.starts_with("us-east does not have the service `api`, and no other region may serve its users");
    assert_eq!(notes.iter().filter(about).count(), 1, "{notes:?}");
    assert!(notes.iter().any(|note| note.contains("(routes: `rest`)")), "{notes:?}");
}

#[test]
fn every_mistake_is_reported_with_its_position_and_a_correction() {
    assert_eq!(problems(VALID), Vec::<String>::new());
    for (old, new, expected) in MISTAKES {
        let found = with(old, new);
        assert!(found.iter().any(|problem| problem.contains(expected)), "{new}: expected {expected:?} in {found:#?}");
    }
}

#[test]
fn all_mistakes_are_reported_at_once_in_the_order_of_the_file() {
    let broken = VALID
        .replace("[US]", "[UK]")
        .replace("stays: anywhere", "stays: nowhere")
        .replace("data: restricted, home", "data: secret, home");
    let found = problems(&broken);
    let order: Vec<_> =
        ["`UK`", "`nowhere`", "`secret`"].iter().map(|word| found.iter().position(|problem| problem.contains(word))).collect();
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{found:#?}");
}

#[test]
fn a_single_region_with_a_transfer_needs_a_ledger_as_well() {
    let alone = |transfers: &str| {
        format!(
            "region: r\nlisten: [{{ address: \"127.0.0.1:8080\" }}]\njurisdictions: {{ eu: {{ countries: [EEA] }}, us: {{ countries: [US] }} }}\nregions:\n  r: {{ jurisdiction: eu, at: [50, 8], upstreams: [\"http://127.0.0.1:3000\"] }}\ndata:\n  personal: {{ stays: home, needs: inferred{transfers} }}\ngeoip: {{ database: country.mmdb }}\nroutes:\n  - {{ name: all, match: {{}}, data: personal, home: [geoip, refuse] }}\n"
        )
    };
    assert_eq!(problems(&alone("")), Vec::<String>::new());
    let found = problems(&alone(", transfers: [{ from: us, to: eu, basis: contract, until: 2099-12-31 }]"));
    assert!(found.len() == 1 && found[0].contains("`audit` is missing"), "{found:?}");
}

#[test]
fn one_mistake_hides_no_other() {
    let broken = VALID
        .replace("  - { name: rest,", "  - { name: late, match: { path: /feed/x }, data: public, home: [latency] }\n  - { name: rest,")
        .replace("data: restricted, home", "data: secret, home")
        .replace("audit: { directory: ledger }", "audit: { directory: ledger }\nlimits: { body: 10 loads, drain: soon, headers: none }\nclient_address: { trust: [nobody] }");
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
    assert_eq!(found.len(), 6, "only real mistakes are reported: {found:#?}");
}

#[test]
fn a_listener_may_be_written_as_its_address_alone() {
    let list = "listen:\n  - address: \"127.0.0.1:8080\"\n";
    assert!(VALID.contains(list));
    let short_form = |address: &str| format!("listen:\n  - {address}\n");
    for address in ["127.0.0.1:8080", "\"[::1]:8080\""] {
        assert_eq!(with(list, &short_form(address)), Vec::<String>::new());
    }
    let found = with(list, &short_form("0.0.0.0:8080"));
    assert!(found.len() == 1 && found[0].contains("listen[0]: cleartext is limited to loopback: write `{ address:"), "{found:?}");
    let found = with(list, &short_form("8080"));
    assert!(found.len() == 1 && found[0].contains("listen[0]: `8080` is not a valid address"), "{found:?}");
    let one = include_str!("../../config/minimal.yaml");
    assert!(one.contains("\nlisten: 127.0.0.1:8080\n"));
    assert_eq!(problems(one), Vec::<String>::new());
}

#[test]
fn a_mistake_in_the_only_listener_for_clients_is_reported_alone() {
    let found = with("- address: \"127.0.0.1:8080\"", "- { address: \"127.0.0.1:8080\", half_close: maybe }");
    assert_eq!(found, ["d.yaml:3:46: listen[0].half_close: `maybe` is not a valid value; expected one of `allow`, `abort`"]);
    let found = with("  - address: \"127.0.0.1:8080\"\n", "");
    assert_eq!(found, ["d.yaml:3:3: listen: no listener accepts clients; add one without `peers: true`"]);
}

#[test]
fn a_route_that_can_never_match_is_a_mistake() {
    let found = with(
        "  - { name: rest,",
        "  - { name: late, match: { path: \"/feed/{item}\" }, data: public, home: [latency] }\n  - { name: rest,",
    );
    assert!(
        found[0].contains("routes[1]: route `late` can never match: the routes above it, up to `feed`, already match"),
        "{found:#?}"
    );
    // Two routes can shadow a third route together, each with some of its methods.
    let split = "  - { name: a, match: { path: /x, methods: [GET] }, data: restricted, home: [directory, refuse] }\n  - { name: b, match: { path: /x, methods: [POST] }, data: restricted, home: [directory, refuse] }\n  - { name: c, match: { path: /x, methods: [GET, POST] }, data: restricted, home: [directory, refuse] }\n  - { name: rest,";
    assert!(with("  - { name: rest,", split).iter().any(|problem| problem.contains("route `c` can never match")));
}

#[test]
fn changing_only_the_method_must_not_widen_the_clearance() {
    let catch_all = VALID.replace("data: restricted, home: [directory, refuse]", "data: public, home: [latency]");
    let guarded = catch_all.replace("  - { name: rest,", "  - { name: account, match: { path: \"/account/**\", methods: [GET] }, data: restricted, home: [directory, refuse] }\n  - { name: rest,");
    let found = problems(&guarded);
    assert!(
        found[0].contains("routes[1]: a request can avoid this route by changing its method: `HEAD` for the same host and path")
            && found[0].contains("matches route `rest`"),
        "{found:#?}"
    );
    let whole = guarded.replace(", methods: [GET]", "");
    assert_eq!(problems(&whole), Vec::<String>::new());
    // A route with a narrower clearance may match the other methods.
    assert_eq!(with("path: \"/feed/**\"", "path: \"/feed/**\", methods: [GET]"), Vec::<String>::new());
}

#[test]
fn following_our_own_redirect_must_not_change_the_class() {
    let by_host = VALID
        .replace(
            "  - { name: rest,",
            "  - { name: api, match: { host: api.example.com }, data: restricted, home: [directory, refuse] }\n  - { name: rest,",
        )
        .replace(
            "{ name: rest, match: {}, data: restricted, home: [directory, refuse] }",
            "{ name: rest, match: {}, data: public, home: [latency] }",
        );
    let found = problems(&by_host);
    assert!(found[0].contains("routes[1]: Domicile's own redirect changes the data class: at `https://eu.example.com/` the redirected request matches route `rest`"), "{found:#?}");
    let covered = by_host.replace("host: api.example.com", "host: \"*.example.com\"");
    assert_eq!(problems(&covered), Vec::<String>::new());
}

#[test]
fn a_chain_must_not_end_where_its_data_may_never_be_processed() {
    let found = with("home: [directory, refuse]", "home: [directory, { region: us-east }]");
    assert!(found[0].contains("the chain ends in `us-east`, where `restricted` may never be processed"), "{found:#?}");
}

fn registry_after(text: &str, registry: &mut Registry) -> Result<Config, Vec<Problem>> {
    parse(text, Path::new("d.yaml"), None, registry, today())
}

#[test]
fn a_name_keeps_its_number_over_reloads_and_an_invalid_file_gets_none() {
    let mut registry = Registry::default();
    assert!(registry_after(VALID, &mut registry).is_ok());
    let reordered = VALID.replace("regions:\n", "regions:\n  ap-south: { jurisdiction: us, at: [1, 1], upstreams: [\"http://127.0.0.1:1\"], url: \"https://ap.example.com\" }\n");
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
    let found = problems(&VALID.replace("data:\n", &format!("{more}data:\n")));
    assert!(found.iter().any(|problem| problem.contains("regions.r62: this is the 65th region")), "{found:#?}");
}

#[test]
fn equal_rules_have_equal_hashes_however_they_are_written() {
    let hash = |text: &str, region| parse(text, Path::new("d"), region, &mut Registry::default(), today()).unwrap().policy.hash;
    let base = hash(VALID, None);
    assert_eq!(hash(VALID, Some("us-east")), base, "regions with equal rules have equal hashes");
    assert_eq!(
        hash(&VALID.replace("http://127.0.0.1:1", "http://10.9.9.9:80"), None),
        base,
        "upstreams are not part of the rules"
    );
    assert_eq!(
        hash(&VALID.replace("  public: { stays: anywhere }\n", "  # a remark\n  public:\n    stays: anywhere\n"), None),
        base
    );
    assert_ne!(hash(&VALID.replace("[US]", "[US, CA]"), None), base);
    let placed = "geoip: { database: country.mmdb, countries: { BR: eu-west } }";
    assert_ne!(hash(&VALID.replace("geoip: { database: country.mmdb }", placed), None), base);
    assert_ne!(hash(&VALID.replace("[directory, refuse]", "[directory, geoip, refuse]"), None), base);
}

#[test]
fn whatever_changes_who_is_judged_changes_the_hash_and_a_written_default_does_not() {
    let hash = |text: &str| match parse(text, Path::new("d"), None, &mut Registry::default(), today()) {
        Ok(config) => config.policy.hash,
        Err(problems) => panic!("{}", problems[0]),
    };
    let base = hash(VALID);
    let with = |more: &str| hash(&format!("{VALID}{more}"));
    assert_eq!(with("paths: { repeated_slashes: merge }\n"), base, "the default");
    assert_ne!(with("paths: { repeated_slashes: keep }\n"), base);
    let users = |key: &str| hash(&VALID.replace("users: { key: [{ header: x-user-id }]", &format!("users: {{ {key}")));
    assert_ne!(users("key: [{ cookie: uid }]"), base, "another source of the user's key");
    let token =
        |others: &str| users(&format!("key: [{{ token: sub }}], token: {{ keys: jwks.json, issuer: i, audience: a{others} }}"));
    assert_eq!(token(", others: refuse"), token(""), "the default");
    assert_ne!(token(", others: ignore"), token(""));
    assert_ne!(hash(&VALID.replace("stays: home }", "stays: home, needs: asserted }")), base);
}

#[test]
fn the_summary_shows_where_every_class_may_be_processed() {
    let config = parse(VALID, Path::new("d"), None, &mut Registry::default(), today()).unwrap();
    let text = Matrix::of(&config.policy, config.settings.tokens.is_some(), today()).text();
    assert!(text.contains("credentials are forwarded unread, because no tokens are verified"), "{text}");
    let text = Matrix::of(&config.policy, true, today()).text();
    assert!(text.contains("requests with other credentials than tokens (Basic, API keys) are refused"), "{text}");
    for line in ["restricted: stays in the user's jurisdiction", "  eu             eu-west  ", "  elsewhere      nowhere  "] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn ten_thousand_routes_are_read_and_checked() {
    let mut text = VALID.to_owned();
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
fn the_shipped_configurations_are_valid() {
    for name in ["minimal", "three-regions", "every-option"] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("config/{name}.yaml"));
        let loaded = load(&file, None, &mut Registry::default(), today());
        let problems: Vec<_> = loaded.err().into_iter().flatten().map(|problem| problem.to_string()).collect();
        assert_eq!(problems, Vec::<String>::new());
    }
}

#[test]
fn settings_that_cause_unexpected_refusals_are_noted() {
    let text = VALID
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
    assert!(
        notes[0].contains("maps DE to us-east, but us-east may not process data of users in DE (routes: `rest`)"),
        "{notes:#?}"
    );
    assert!(notes[1].contains("expired after 2020-01-01"), "{notes:#?}");
}

/// The valid file with a public catch-all and one guarded route above it.
fn guarded(path: &str) -> Config {
    let text = VALID
        .replace("data: restricted, home: [directory, refuse]", "data: public, home: [latency]")
        .replace("  - { name: rest,", &format!("  - {{ name: account, match: {{ path: \"{path}\" }}, data: restricted, home: [directory, refuse] }}\n  - {{ name: rest,"));
    parse(&text, Path::new("d"), None, &mut Registry::default(), today()).unwrap()
}

#[test]
fn other_spellings_of_a_guarded_path_are_noted() {
    for (path, spellings) in [
        ("/account/**", "does not match `/Account/1` and `/account.json`, which route `rest` of class `public`"),
        ("/account", "does not match `/Account` and `/account.json`, which"),
        ("/users/{user}", "does not match `/Users/1`, which"),
        (
            "/API/v1/{user}/orders",
            "does not match `/aPI/v1/1/orders` and `/API/V1/1/orders` and `/API/v1/1/Orders` and `/API/v1/1/orders.json`, which",
        ),
    ] {
        let found = notes(&guarded(path).policy, today());
        assert_eq!(found.len(), 1, "{path}: {found:#?}");
        assert!(found[0].starts_with("route `account` ") && found[0].contains(spellings), "{found:#?}");
    }
    let config = parse(VALID, Path::new("d"), None, &mut Registry::default(), today()).unwrap();
    assert_eq!(notes(&config.policy, today()), Vec::<String>::new(), "the catch-all is guarded itself");
}

#[test]
fn other_spellings_are_looked_for_at_every_host_and_method() {
    let config = |account: &str, rest: &str| {
        let routes = format!(
            "  - {{ name: account, match: {{ {account} }}, data: restricted, home: [directory, refuse] }}\n  - {{ name: open, match: {{ {rest} }}, data: public, home: [latency] }}\n  - {{ name: rest,"
        );
        let text = VALID.replace("  - { name: rest,", &routes);
        parse(&text, Path::new("d"), None, &mut Registry::default(), today()).unwrap()
    };
    for (account, rest) in [
        ("path: \"/account/**\"", "methods: [PUT], path: \"/**\""),
        ("path: \"/account/**\"", "host: api.example.com"),
        ("host: \"*.example.com\", path: \"/account/**\"", "host: api.example.com"),
    ] {
        let found = notes(&config(account, rest).policy, today());
        assert!(found.iter().any(|note| note.contains("`/Account/1`") && note.contains("route `open`")), "{rest}: {found:#?}");
    }
    let elsewhere = config("host: www.example.com, path: \"/account/**\"", "host: api.example.com");
    assert_eq!(notes(&elsewhere.policy, today()), Vec::<String>::new(), "no request matches both hosts");
}

#[test]
fn a_path_that_servers_fold_to_a_guarded_one_is_ambiguous() {
    use crate::decision::policy::route::{Head, Method, NO_FIELDS};
    use crate::engine::path::is_ambiguous;

    let config = guarded("/account/**");
    for (path, expected) in [
        ("/account/1", false),
        ("/account%3Bx/1", true),
        ("/account./1", true),
        ("/account%20/1", true),
        ("/%EF%BD%81ccount/1", true),
        ("/x/..%3B/account/1", true),
        ("/account%3B/%EF%BC%8E%EF%BC%8E/x", true),
        ("/account/a%3Bb", true),
        ("/account/a%20b", false),
        ("/account/zo%C3%AB", false),
        ("/other/a%3Bb", false),
        ("/other./%EF%BC%A1", false),
        ("/feed/a%3Bb", false),
    ] {
        let (client, fields) = ([192, 0, 2, 1].into(), &NO_FIELDS);
        let head = Head { method: Method::Get, host: "a.test", path, client, fields };
        assert_eq!(is_ambiguous(&head, &config.policy), expected, "{path}");
    }
}
