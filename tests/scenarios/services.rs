//! Services: the pools of app servers that a region has.

use std::sync::Arc;

use http::{Response, StatusCode};

use crate::support::{Handler, Plan, RULES, Recorder, Wire, World, eventually, get, post, remember, runtime, whole};

const CHECKS: &str = "{ path: /healthz, every: 20ms, timeout: 5s, rise: 1, fall: 1 }";

/// The rules with two more routes, whose service is `api`.
fn rules() -> String {
    let routes = "routes:
  - { name: lists, match: { path: \"/users/{user}/lists/**\" }, service: api, data: personal, home: [directory, refuse], failover: { reads: nearest } }
  - { name: api, match: { path: \"/api/**\" }, service: api, data: restricted, home: [directory, refuse] }
";
    RULES.replace("routes:\n", routes)
}

/// A world in which `with_api` are the regions that have the service `api` beside `app`.
fn world_of(with_api: &'static [&'static str]) -> World {
    let names = [("eu-west", "api of eu-west"), ("us-east", "api of us-east"), ("ap-northeast", "api of ap-northeast")];
    let upstreams = move |name: &'static str| {
        let api = names.iter().find(|(region, _)| *region == name && with_api.contains(region));
        let api = api.map(|(_, answer)| Recorder::start(answer).of_service("api"));
        std::iter::once(Recorder::start(name)).chain(api).collect()
    };
    let rules = crate::support::NAMES.into_iter().map(|name| (name, rules())).collect();
    World::planned(Plan { upstreams: Box::new(upstreams), rules, health: CHECKS, ..Plan::default() })
}

const ALICE: [(&str, &str); 1] = [("x-user-id", "alice")];

#[test]
fn each_service_has_its_own_app_servers_here_and_in_other_regions() {
    let world = world_of(&["eu-west", "us-east"]);
    assert_eq!(get(world.eu().http, "/api/1", &ALICE).text(), "api of eu-west");
    assert_eq!(get(world.eu().http, "/account/1", &ALICE).text(), "eu-west");
    assert_eq!(get(world.us().http, "/users/alice/lists/1", &[]).text(), "api of eu-west");
    assert_eq!(get(world.us().http, "/users/alice/orders/1", &[]).text(), "eu-west");
    let paths = |service| world.eu().upstream_of(service).seen().iter().map(|seen| seen.target.clone()).collect::<Vec<_>>();
    assert_eq!(paths("api"), ["/api/1", "/users/alice/lists/1"]);
    assert_eq!(paths("app"), ["/account/1", "/users/alice/orders/1"]);
    world.us().upstreams.iter().for_each(Recorder::assert_no_requests);
}

#[test]
fn a_service_that_is_down_moves_its_own_reads_and_nothing_else() {
    let world = world_of(&["eu-west", "us-east"]);
    world.us().upstream_of("api").crash();
    for region in [world.us(), world.eu(), world.jp()] {
        region.wait_for_service("us-east", "api", false);
        region.wait_for_health("us-east", "up");
    }
    // A transfer lets Americans' personal data be processed in the EU.
    assert_eq!(get(world.us().http, "/users/bob/lists/1", &[]).text(), "api of eu-west");
    assert_eq!(get(world.jp().http, "/users/bob/lists/1", &[]).code(), "residency.carrier_not_cleared", "not through Japan");
    assert_eq!(get(world.eu().http, "/users/bob/lists/1", &[]).text(), "api of eu-west");
    let write = post(world.eu().http, "/users/bob/lists/1", &[], "x");
    assert_eq!((write.status, write.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "failover.home_down"));
    assert_eq!(get(world.eu().http, "/users/bob/orders/1", &[]).text(), "us-east", "the service `app` is up");
    assert_eq!(world.eu().upstream_of("api").seen().len(), 2, "only reads moved");
}

#[test]
fn a_region_without_the_service_is_never_tried() {
    let world = world_of(&["eu-west"]);
    assert_eq!(get(world.us().http, "/users/bob/lists/1", &[]).text(), "api of eu-west");
    let write = post(world.us().http, "/users/bob/lists/1", &[], "x");
    assert_eq!((write.status, write.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "failover.service_missing"));
    let chika = get(world.us().http, "/users/chika/lists/1", &[]);
    assert_eq!(chika.code(), "failover.service_missing", "no region of her jurisdiction has it");
    world.assert_no_requests(&["ap-northeast"]);
    world.us().upstreams.iter().for_each(Recorder::assert_no_requests);
    assert_eq!(world.eu().upstream_of("api").seen().len(), 1);
}

#[test]
fn a_reload_adds_a_service_to_a_running_region_and_removes_it() {
    let world = world_of(&["eu-west", "us-east"]);
    let file = &world.eu().config;
    let before = std::fs::read_to_string(file).unwrap();
    let api = format!("      api: {{ upstreams: [{}]", world.eu().upstream_of("api").entry);
    assert!(before.contains(&api));
    let third = Recorder::start("third");
    let with_third = before.replacen(&api, &format!("      third: [{}]\n{api}", third.entry), 1).replace(
        "routes:\n",
        "routes:\n  - { name: third, match: { path: \"/third/**\" }, service: third, data: restricted, home: [directory, refuse] }\n",
    );
    assert_eq!(get(world.eu().http, "/third/1", &ALICE).text(), "eu-west", "the last route matches");
    std::fs::write(file, &with_third).unwrap();
    world.eu().reload().unwrap();
    assert_eq!(get(world.eu().http, "/third/1", &ALICE).text(), "third");
    assert_eq!(get(world.eu().http, "/api/1", &ALICE).text(), "api of eu-west");
    let unused = with_third.replacen("service: third,", "service: fourth,", 1);
    std::fs::write(file, unused).unwrap();
    let refused = world.eu().reload().unwrap_err();
    assert!(refused.contains("routes[0].service: unknown service `fourth`"), "{refused}");
    assert_eq!(get(world.eu().http, "/third/1", &ALICE).text(), "third", "the previous configuration stays");
    std::fs::write(file, &before).unwrap();
    world.eu().reload().unwrap();
    assert_eq!(get(world.eu().http, "/third/1", &ALICE).text(), "eu-west");
    assert_eq!(third.seen().len(), 2);
    eventually("the third service has no metrics", || !world.eu().metrics().contains("upstream_up{service=\"third\""));
}

/// Makes an upstream reachable through a Unix socket instead of its port.
fn behind_socket(mut upstream: Recorder, scheme: &str, file: &std::path::Path) -> Recorder {
    let _guard = runtime().enter();
    let (listener, address) = (tokio::net::UnixListener::bind(file).unwrap(), upstream.address);
    upstream.entry = format!("\"{scheme}:{}\"", file.display());
    runtime().spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut far = tokio::net::TcpStream::connect(address).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    upstream
}

fn answering(name: &'static str) -> Handler {
    Arc::new(move |request, seen| {
        Box::pin(async move {
            if request.uri().path() != "/healthz" {
                remember(request, &seen).await;
            }
            Response::new(whole(name))
        })
    })
}

#[test]
fn app_servers_are_reached_through_unix_sockets() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let upstreams = move |name: &'static str| {
        if name != "eu-west" {
            return vec![Recorder::start(name)];
        }
        let http2 = Recorder::with_protocol(Wire::Http2, answering("over HTTP/2")).of_service("api");
        vec![
            behind_socket(Recorder::start("over HTTP/1"), "unix", &path.join("app.sock")),
            behind_socket(http2, "h2c+unix", &path.join("api.sock")),
        ]
    };
    let rules = crate::support::NAMES.into_iter().map(|name| (name, rules())).collect();
    let world = World::planned(Plan { upstreams: Box::new(upstreams), rules, health: CHECKS, ..Plan::default() });
    world.us().wait_for_service("eu-west", "api", true);
    for proxy in [world.eu(), world.us()] {
        assert_eq!(get(proxy.http, "/users/alice/orders/1", &[]).text(), "over HTTP/1");
        assert_eq!(post(proxy.http, "/users/alice/lists/1", &[], "body").text(), "over HTTP/2");
    }
    std::fs::remove_file(folder.path().join("app.sock")).unwrap();
    world.eu().upstream_of("app").crash();
    world.us().wait_for_service("eu-west", "app", false);
    assert_eq!(get(world.eu().http, "/users/alice/lists/1", &[]).text(), "over HTTP/2");
}

#[test]
fn the_base_path_of_an_app_server_is_added_once_also_if_a_request_is_sent_again() {
    let with_base = |name| {
        let mut upstream = Recorder::start(name);
        upstream.entry = format!("\"http://{}/shop/app\"", upstream.address);
        upstream
    };
    let world =
        World::planned(Plan { upstreams: Box::new(move |name| vec![with_base(name), with_base(name)]), ..Plan::default() });
    world.eu().upstreams[0].crash();
    for _ in 0..10 {
        assert_eq!(get(world.us().http, "/users/alice/orders/1?x=/y", &[]).text(), "eu-west");
    }
    let targets: Vec<_> = world.eu().upstreams[1].seen().iter().map(|seen| seen.target.clone()).collect();
    assert_eq!(targets, ["/shop/app/users/alice/orders/1?x=/y"; 10]);
}

/// A world whose services `api` have these options.
fn with_options(plan: &Plan, options: &str) -> World {
    let mut world = World::prepare(plan);
    let options = options.replace("FOLDER", &world.folder.path().display().to_string());
    std::fs::write(world.folder.path().join("sticky.key"), "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n").unwrap();
    for region in &world.regions {
        let text = std::fs::read_to_string(&region.config).unwrap();
        let changed = text.replace("      api: { upstreams", &format!("      api: {{ {options}, upstreams"));
        assert_ne!(text, changed);
        std::fs::write(&region.config, changed).unwrap();
    }
    (0..3).for_each(|index| world.start_region(index).unwrap());
    world.wait_until_measured();
    world
}

/// Three app servers of `api` and one of `app` in each region.
fn three_servers() -> Plan {
    let upstreams = |name: &'static str| {
        let api = (0..3).map(|_| Recorder::start(name).of_service("api"));
        api.chain([Recorder::start(name)]).collect()
    };
    let rules = crate::support::NAMES.into_iter().map(|name| (name, rules())).collect();
    Plan { upstreams: Box::new(upstreams), rules, health: CHECKS, ..Plan::default() }
}

#[test]
fn a_sealed_cookie_keeps_a_session_at_its_app_server() {
    let world = with_options(&three_servers(), "balance: { sticky: { keys: \"FOLDER/sticky.key\", cookie: sid, lifetime: 8h } }");
    let counts = || world.eu().upstreams.iter().map(|upstream| upstream.seen().len()).collect::<Vec<_>>();
    let target = "/users/alice/lists/1";
    let mut used = std::collections::BTreeSet::new();
    // Also through another region: only the owner reads and writes the cookie.
    for (session, proxy) in (0..16).zip([world.eu(), world.us()].into_iter().cycle()) {
        let first = get(proxy.http, target, &[]);
        let cookie = first.headers["set-cookie"].to_str().unwrap();
        assert!(cookie.starts_with("sid=") && cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax; Max-Age=28800"), "{cookie}");
        let pair = cookie.split(';').next().unwrap().to_owned();
        let before = counts();
        for _ in 0..4 {
            let again = get(proxy.http, target, &[("cookie", &format!("a=b; {pair}; c=d"))]);
            assert!(!again.headers.contains_key("set-cookie"), "the cookie is set once");
        }
        let grown: Vec<_> = counts().iter().zip(&before).map(|(now, before)| now - before).collect();
        let at = grown.iter().position(|count| *count == 4).unwrap_or_else(|| panic!("session {session}: {grown:?}"));
        assert_eq!(
            world.eu().upstreams[at].seen().last().unwrap().headers["cookie"],
            "a=b; c=d",
            "the app server gets no sealed cookie"
        );
        used.insert(at);
    }
    assert!(used.len() > 1, "sessions are spread: {used:?}");

    // A forged cookie is none, and a server that is down loses its sessions to another one.
    for forged in ["sid=AAAA", "sid=MTI3LjAuMC4xOjMwMDA"] {
        assert!(get(world.eu().http, target, &[("cookie", forged)]).headers.contains_key("set-cookie"));
    }
    let cookie =
        |answer: &crate::support::Answer| answer.headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let before = counts();
    let pair = cookie(&get(world.eu().http, target, &[]));
    let at = counts().iter().zip(&before).position(|(now, before)| now > before).unwrap();
    world.eu().upstreams[at].crash();
    let moved = get(world.eu().http, target, &[("cookie", &pair)]);
    assert_eq!(moved.status, StatusCode::OK);
    let new = cookie(&moved);
    assert_ne!(new, pair);
    assert!(!get(world.eu().http, target, &[("cookie", &new)]).headers.contains_key("set-cookie"));
    world.assert_no_requests(&["ap-northeast"]);
}

#[test]
fn a_service_has_limits_of_its_own() {
    let release = Arc::new(tokio::sync::Notify::new());
    let held = Arc::clone(&release);
    let upstreams = move |name: &'static str| {
        let held = Arc::clone(&held);
        let slow: Handler = Arc::new(move |request, seen| {
            let held = Arc::clone(&held);
            Box::pin(async move {
                remember(request, &seen).await;
                held.notified().await;
                Response::new(whole("slow"))
            })
        });
        vec![Recorder::with(slow).of_service("api"), Recorder::start(name)]
    };
    let rules = crate::support::NAMES.into_iter().map(|name| (name, rules())).collect();
    let plan = Plan { upstreams: Box::new(upstreams), rules, ..Plan::default() };
    let world = with_options(&plan, "requests: 1, queue: 0");
    std::thread::scope(|scope| {
        let address = world.eu().http;
        let waiting = scope.spawn(move || get(address, "/api/1", &ALICE));
        eventually("the app server has the request", || !world.eu().upstreams[0].seen().is_empty());
        let refused = get(address, "/api/2", &ALICE);
        assert_eq!((refused.status, refused.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "proxy.overloaded"));
        assert_eq!(get(address, "/account/1", &ALICE).text(), "eu-west", "the other service has its own limit");
        release.notify_one();
        assert_eq!(waiting.join().unwrap().text(), "slow");
    });
    assert_eq!(world.eu().upstreams[0].seen().len(), 1);
}

/// A request: its target and its header fields.
type Sample = (String, Vec<(&'static str, String)>);

#[test]
fn a_service_balanced_by_a_key_sends_equal_keys_to_one_app_server() {
    let by_user: fn(usize) -> Sample = |key| (format!("/users/u{key}/lists/1"), Vec::new());
    let by_header: fn(usize) -> Sample = |key| ("/users/u0/lists/1".into(), vec![("x-tenant", format!("t{key}"))]);
    let by_cookie: fn(usize) -> Sample = |key| ("/users/u0/lists/1".into(), vec![("cookie", format!("a=b; cart={key}"))]);
    for (balance, sample) in
        [("{ hash: user }", by_user), ("{ hash: { header: x-tenant } }", by_header), ("{ hash: { cookie: cart } }", by_cookie)]
    {
        let upstreams = |name: &'static str| {
            let api = (0..4).map(|_| Recorder::start(name).of_service("api"));
            api.chain([Recorder::start(name)]).collect()
        };
        let rules = crate::support::NAMES.into_iter().map(|name| (name, rules())).collect();
        let table = (0..12).map(|key| format!("u{key},us-east\n")).collect::<String>();
        let users = crate::support::NAMES.into_iter().map(|name| (name, format!("user,home\n{table}"))).collect();
        let plan = Plan { upstreams: Box::new(upstreams), rules, users, ..Plan::default() };
        let world = with_options(&plan, &format!("balance: {balance}"));
        let counts = || world.us().upstreams.iter().map(|upstream| upstream.seen().len()).collect::<Vec<_>>();
        // The app server that each key gets, three times over.
        let mut taken = vec![std::collections::BTreeSet::new(); 12];
        for key in (0..12).cycle().take(36) {
            let (target, fields) = sample(key);
            let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let before = counts();
            assert_eq!(get(world.eu().http, &target, &fields).text(), "us-east");
            let at = counts().iter().zip(&before).position(|(now, before)| now > before).unwrap();
            taken[key].insert(at);
        }
        assert!(taken.iter().all(|servers| servers.len() == 1), "{balance}: {taken:?}");
        let all: std::collections::BTreeSet<_> = taken.iter().flatten().collect();
        assert!(all.len() > 1, "{balance}: {taken:?}");
    }
}

#[test]
fn a_header_field_or_a_network_chooses_the_route_in_every_region() {
    let routes = "routes:
  - { name: beta, match: { path: \"/users/{user}/lists/**\", headers: { x-beta: [\"1\", on] } }, service: api, data: personal, home: [directory, refuse] }
  - { name: office, match: { path: \"/users/{user}/lists/**\", clients: [10.0.0.0/8] }, service: api, data: personal, home: [directory, refuse] }
  - { name: new, match: { path: \"/users/{user}/lists/**\", query: { \"ui version\": \"2\" } }, service: api, data: personal, home: [directory, refuse] }
  - { name: lists, match: { path: \"/users/{user}/lists/**\" }, data: personal, home: [directory, refuse] }
";
    let upstreams = |name| vec![Recorder::start(name), Recorder::start("api").of_service("api")];
    let rules = crate::support::NAMES.into_iter().map(|name| (name, RULES.replace("routes:\n", routes))).collect();
    let world = World::planned(Plan { upstreams: Box::new(upstreams), rules, ..Plan::default() });
    for proxy in [world.eu(), world.us()] {
        let ask = |query: &str, fields: &[(&str, &str)]| {
            get(proxy.http, &format!("/users/alice/lists/1{query}"), fields).text().to_owned()
        };
        for fields in [[("x-beta", "1")], [("X-Beta", "on")], [("x-forwarded-for", "10.1.2.3")]] {
            assert_eq!(ask("", &fields), "api", "{fields:?}");
        }
        assert_eq!([ask("?a=b&ui+version=2", &[]), ask("?ui%20version=%32", &[])], ["api", "api"]);
        for fields in [[("x-beta", "2")], [("x-gamma", "1")], [("x-forwarded-for", "192.0.2.1")]] {
            assert_eq!(ask("?ui+version=3", &fields), "eu-west", "{fields:?}");
        }
    }
}
