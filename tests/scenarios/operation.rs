//! Operation: reloads, drain, start with an invalid configuration, metrics.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use domicile::app::{App, Launch};
use http::{Method, Response, StatusCode};

use crate::support::{
    Plan, RULES, Recorder, TIMEOUT, USERS, World, eventually, get, http2, read, request, runtime, tls, try_send, whole,
};

#[test]
pub fn a_changed_user_table_is_swapped_in_and_a_broken_one_is_not() {
    let world = World::start();
    let users = world.folder.path().join("users-eu-west.csv");
    let home = || get(world.eu().http, "/users/dora/orders/1", &[]).status;
    assert_eq!(home(), StatusCode::FORBIDDEN);
    // The proxy watches the file, so the test requests no reload.
    std::fs::write(&users, format!("{USERS}dora,eu-west\n")).unwrap();
    eventually("dora is known", || home() == StatusCode::OK);
    std::fs::write(&users, "user,home\ndora,atlantis\n").unwrap();
    eventually("the broken table is refused", || world.eu().metrics().contains("domicile_reloads_total{result=\"partly\"} 1"));
    assert_eq!(home(), StatusCode::OK, "the old table stays");
    let error = world.eu().reload().unwrap_err();
    assert!(error.contains("line 2: unknown region `atlantis`") && error.contains("the previous user table is kept"), "{error}");
}

#[test]
fn a_broken_reload_changes_nothing_and_reports_the_mistake() {
    let world = World::start();
    let sound = std::fs::read_to_string(&world.eu().config).unwrap();
    for (old, new, expected) in [
        ("data: restricted, home", "data: resticted, home", "did you mean `restricted`?"),
        ("region: eu-west\n", "region: us-east\n", "`region` cannot change while the process runs"),
        ("site.pem", "absent.pem", "absent.pem`: cannot read the certificate"),
        ("ca.pem", "site.key", "site.key`: contains no certificate"),
    ] {
        std::fs::write(&world.eu().config, sound.replacen(old, new, 1)).unwrap();
        let error = world.eu().reload().unwrap_err();
        assert!(error.contains(expected), "{new}: {error}");
        assert_eq!(get(world.eu().http, "/users/alice/orders/1", &[]).text(), "eu-west");
    }
    std::fs::write(&world.eu().config, sound.replace("countries: { BR: us-east }", "countries: { BR: eu-west }")).unwrap();
    world.eu().reload().unwrap();
    let home = get(world.eu().admin, "/explain?format=json&ip=177.1.1.1&url=http://a/profile/1", &[]);
    assert!(home.text().contains("\"region\": \"eu-west\""), "{}", home.text());
}

#[test]
fn no_request_is_lost_in_twenty_reloads() {
    let world = World::start();
    let (stop, lost, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (stop, lost, served, address) = (Arc::clone(&stop), Arc::clone(&lost), Arc::clone(&served), world.us().http);
            runtime().spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    match try_send(address, Method::POST, "/users/alice/orders/1", &[], whole("x")).await {
                        Ok(answer) if answer.status == StatusCode::OK => served.fetch_add(1, Ordering::Relaxed),
                        _ => lost.fetch_add(1, Ordering::Relaxed),
                    };
                }
            })
        })
        .collect();
    for _ in 0..20 {
        world.us().reload().unwrap();
        world.eu().reload().unwrap();
        let before = served.load(Ordering::Relaxed);
        eventually("requests are still served", || served.load(Ordering::Relaxed) > before + 2);
    }
    stop.store(true, Ordering::Relaxed);
    runtime().block_on(async {
        for client in clients {
            client.await.unwrap();
        }
    });
    assert_eq!(lost.load(Ordering::Relaxed), 0, "lost requests, with {} served", served.load(Ordering::Relaxed));
}

#[test]
fn a_listener_that_a_reload_adds_accepts_and_one_that_it_removes_does_not() {
    let world = World::start();
    let sound = std::fs::read_to_string(&world.eu().config).unwrap();
    let spare = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    std::fs::write(&world.eu().config, sound.replacen("listen:\n", &format!("listen:\n  - address: \"{spare}\"\n"), 1)).unwrap();
    world.eu().reload().unwrap();
    eventually("the new listener serves", || {
        TcpStream::connect(spare).is_ok() && get(spare, "/users/alice/orders/1", &[]).status == StatusCode::OK
    });
    std::fs::write(&world.eu().config, sound).unwrap();
    world.eu().reload().unwrap();
    eventually("the removed listener is closed", || TcpStream::connect(spare).is_err());
    assert_eq!(get(world.eu().http, "/users/alice/orders/1", &[]).status, StatusCode::OK);
}

#[test]
fn certificates_follow_the_name_and_are_replaced_without_a_restart() {
    let world = World::start();
    // The TLS client refuses a certificate for another name.
    let leaf = |name: &str| {
        let stream = runtime().block_on(tls(&world, world.eu().https, name, &[b"h2"]));
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let folder = world.folder.path();
    let site = leaf("localhost");
    world.authority.write_site(folder, "other", &["other.test"]).unwrap();
    let pair = |name: &str| format!("{{ certificate: \"{0}/{name}.pem\", key: \"{0}/{name}.key\" }}", folder.display());
    let text = std::fs::read_to_string(&world.eu().config).unwrap();
    std::fs::write(&world.eu().config, text.replace(&pair("site"), &format!("{}, {}", pair("site"), pair("other")))).unwrap();
    world.eu().reload().unwrap();
    assert_ne!(leaf("other.test"), site);
    assert_eq!((leaf("localhost"), leaf("api.example.com")), (site.clone(), site.clone()), "by name, and by wildcard");
    world.authority.write_site(folder, "site", &["localhost", "127.0.0.1", "*.example.com"]).unwrap();
    world.eu().reload().unwrap();
    assert_ne!(leaf("localhost"), site, "a renewed certificate is served");
}

#[test]
pub fn a_corrupt_geoip_database_is_not_swapped_in() {
    let world = World::start();
    let (bundled, own) =
        (std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("geoip/country.mmdb"), world.folder.path().join("own.mmdb"));
    std::fs::copy(&bundled, &own).unwrap();
    let text = std::fs::read_to_string(&world.eu().config).unwrap();
    std::fs::write(&world.eu().config, text.replace(bundled.to_str().unwrap(), own.to_str().unwrap())).unwrap();
    world.eu().reload().unwrap();
    std::fs::write(&own, b"half a file").unwrap();
    let error = world.eu().reload().unwrap_err();
    assert!(error.contains("the previous GeoIP database is kept") && error.contains("is not an MMDB database"), "{error}");
    assert_eq!(get(world.eu().http, "/profile/me", &[("x-forwarded-for", "91.64.0.1")]).text(), "eu-west");
}

#[test]
fn a_drain_ends_at_its_deadline() {
    let (mut plan, _gate) = gated();
    plan.extra = "limits: { drain: 300ms }\n".into();
    let mut world = World::planned(plan);
    let stuck = runtime().spawn(try_send(world.eu().http, Method::GET, "/users/alice/orders/1", &[], whole("")));
    eventually("the upstream has the request", || world.eu().upstream().seen().len() == 1);
    world.regions[0].app.take().unwrap().shut_down();
    assert!(runtime().block_on(stuck).unwrap().is_err(), "the unfinished request is cut off");
}

/// Upstreams that respond to one request for each permit of the gate.
fn gated() -> (Plan, Arc<tokio::sync::Semaphore>) {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let plan = Plan {
        upstreams: Box::new(move |name| {
            let gate = Arc::clone(&opened);
            vec![Recorder::with(Arc::new(move |request, seen| {
                let gate = Arc::clone(&gate);
                Box::pin(async move {
                    crate::support::remember(request, &seen).await;
                    gate.acquire().await.unwrap().forget();
                    Response::new(whole(name))
                })
            }))]
        }),
        ..Plan::default()
    };
    (plan, gate)
}

#[test]
fn a_drain_finishes_what_is_in_flight_and_takes_nothing_new() {
    let (plan, gate) = gated();
    let mut world = World::planned(plan);
    let (http, https, admin) = (world.eu().http, world.eu().https, world.eu().admin);
    let over_http1 = runtime().spawn(try_send(http, Method::POST, "/users/alice/orders/1", &[], whole("x")));
    let mut http2 = runtime().block_on(http2(&world, https, "localhost"));
    let sent = http2.send_request(request(Method::GET, "https://localhost/users/alice/orders/2", "", &[], whole("")));
    let over_http2 = runtime().spawn(async move { read(sent.await.map_err(|error| error.to_string())?).await });
    eventually("the upstream has both requests", || world.eu().upstream().seen().len() == 2);
    let app = world.regions[0].app.take().unwrap();
    app.drain();
    world.us().wait_for_health("eu-west", "draining");
    assert_eq!(get(world.us().http, "/users/alice/orders/3", &[]).code(), "failover.all_down", "a draining region is not tried");
    eventually("readiness fails", || get(admin, "/readyz", &[]).status == StatusCode::SERVICE_UNAVAILABLE);
    assert!(get(admin, "/readyz", &[]).text().contains("draining"));
    eventually("the port is closed", || TcpStream::connect(http).is_err());
    eventually("the HTTP/2 connection gets GOAWAY", || {
        runtime().block_on(async {
            http2.ready().await.is_err()
                || http2.send_request(request(Method::GET, "https://localhost/", "", &[], whole(""))).await.is_err()
        })
    });
    gate.add_permits(2);
    for answer in [runtime().block_on(over_http1), runtime().block_on(over_http2)] {
        assert_eq!(answer.unwrap().unwrap().text(), "eu-west");
    }
    app.shut_down();
}

#[test]
fn a_drain_without_peers_waits_for_nobody() {
    // The notice for peers lasts as long as two rounds of probes, an hour here.
    let rules = RULES.replace("latency: { every: 50ms, timeout: 5s,", "latency: { every: 50ms, timeout: 1h,");
    assert_ne!(rules, RULES);
    let extra = "limits: { drain: 1h }\n".to_owned();
    let mut world = World::prepare(&Plan { rules: [("eu-west", rules)].into(), extra, ..Plan::default() });
    world.start_region(0).unwrap();
    assert_eq!(get(world.eu().http, "/users/alice/orders/1", &[]).text(), "eu-west");
    let app = world.regions[0].app.take().unwrap();
    let (done, drained) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        app.shut_down();
        let _ = done.send(());
    });
    drained.recv_timeout(TIMEOUT).expect("the drain does not wait for probes of regions that are not there");
}

#[test]
fn connections_in_the_accept_queue_are_served_when_the_drain_begins() {
    let mut world = World::start();
    let mut waiting: Vec<_> = (0..20).map(|_| TcpStream::connect(world.eu().http).unwrap()).collect();
    for stream in &mut waiting {
        stream.write_all(b"GET /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    }
    let app = world.regions[0].app.take().unwrap();
    app.shut_down();
    for stream in &mut waiting {
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    }
}

#[test]
fn a_configuration_that_cannot_be_served_is_refused_at_start() {
    let sound = World::prepare(&Plan::default());
    let config = std::fs::read_to_string(&sound.regions[0].config).unwrap();
    let folder = sound.folder.path();
    std::fs::write(folder.join("corrupt.mmdb"), b"\0\xab\xcd\xefMaxMind.com\xe0").unwrap();
    std::fs::write(folder.join("strangers.csv"), "user,home\nzoe,atlantis\n").unwrap();
    std::fs::write(folder.join("garbage.pem"), "-----BEGIN CERTIFICATE-----\nnot base64\n-----END CERTIFICATE-----\n").unwrap();
    let occupied = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let geoip = config.split("database: \"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let plain = format!("- address: \"{}\"", sound.regions[0].http);
    let (http, folder_text) = (sound.regions[0].http.to_string(), folder.display().to_string());
    for (old, new, expected) in [
        (geoip.as_str(), format!("{folder_text}/corrupt.mmdb"), "corrupt.mmdb`: is not an MMDB database"),
        (geoip.as_str(), format!("{folder_text}/absent.mmdb"), "absent.mmdb`: cannot read the GeoIP database"),
        ("users-eu-west.csv", "strangers.csv".into(), "strangers.csv`: line 2: unknown region `atlantis`"),
        ("site.pem", "garbage.pem".into(), "garbage.pem`: is not a PEM file of certificates"),
        ("site.key", "eu-west.key".into(), "does not match the certificate"),
        ("site.key", "absent.key".into(), "absent.key`: cannot read the private key"),
        (
            http.as_str(),
            occupied.local_addr().unwrap().to_string(),
            "another process listens there; stop it, or choose another port",
        ),
        (
            plain.as_str(),
            "- { address: \"203.0.113.1:80\", cleartext: true }".into(),
            "no interface of this machine has that address",
        ),
    ] {
        let file = folder.join("mistake.yaml");
        // The ports of the world are already bound, so the kernel chooses others.
        let text = config
            .replacen(old, &new, 1)
            .replace(&format!("admin: {{ address: \"{}\" }}", sound.regions[0].admin), "admin: { address: \"127.0.0.1:0\" }");
        let text = [sound.regions[0].http, sound.regions[0].https, sound.regions[0].peers]
            .iter()
            .fold(text, |text, address| text.replacen(&format!("address: \"{address}\""), "address: \"127.0.0.1:0\"", 1));
        std::fs::write(&file, text).unwrap();
        let error = App::start(Launch { config: file, ..Launch::default() })
            .err()
            .unwrap_or_else(|| panic!("{new} was accepted"))
            .to_string();
        assert!(error.contains(expected), "{new}: {error}");
    }
}

#[test]
fn metrics_add_up_to_what_happened() {
    let world = World::start();
    for _ in 0..5 {
        get(world.us().http, "/users/alice/orders/1", &[]);
    }
    get(world.us().http, "/users/bob/orders/1", &[]);
    get(world.us().http, "/users/nobody/orders/1", &[]);
    get(world.us().http, "/account/1", &[("x-user-id", "alice")]);
    // A movement and a settlement for each request that crosses the border.
    eventually("all lines are written", || world.us().sum_of("domicile_ledger_lines_total") >= 10.0);
    let metrics = world.us().metrics();
    for line in [
        r#"domicile_requests_total{home="eu-west",route="orders",served_by="eu-west",status="2xx",verdict="proceed"} 5"#,
        r#"domicile_requests_total{home="us-east",route="orders",served_by="us-east",status="2xx",verdict="proceed"} 1"#,
        r#"domicile_requests_total{home="none",route="orders",served_by="none",status="4xx",verdict="refuse"} 1"#,
        r#"domicile_requests_total{home="eu-west",route="account",served_by="none",status="3xx",verdict="redirect"} 1"#,
        r#"domicile_failures_total{code="home.unresolved"} 1"#,
        r#"domicile_directory_lookups_total{result="found"} 7"#,
        r#"domicile_directory_lookups_total{result="absent"} 1"#,
        r#"domicile_directory_users 3"#,
        r#"domicile_ledger_lines_total 10"#,
        r#"domicile_ready 1"#,
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    assert!(!metrics.contains("alice") && !metrics.contains("/users/"), "metrics name no user and no path");
}

#[test]
fn the_control_plane_explains_what_the_data_plane_does() {
    let world = World::start();
    let answer = get(world.us().admin, "/explain?url=http://app.example.com/users/alice/orders/1&ip=8.8.8.8", &[]);
    for part in ["`orders`, the first that matches", "the user lives in eu-west", "forwarded to eu-west"] {
        assert!(answer.text().contains(part), "{}", answer.text());
    }
    for (query, expected) in [
        ("", "the parameter `url` is missing"),
        ("?url=http://a/&ip=x", "`x` is not a valid IP address"),
        ("?url=http://a/&colour=red", "unknown parameter `colour`"),
        ("?url=http://a/%25252e", "ambiguous or malformed"),
    ] {
        let answer = get(world.us().admin, &format!("/explain{query}"), &[]);
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.text().contains(expected), "{}", answer.text());
    }
}

#[test]
fn an_explanation_names_the_cause_and_is_about_exactly_this_method_and_path() {
    let mut plan = Plan { health: "{ path: /healthz, every: 20ms, timeout: 5s, rise: 1, fall: 1 }", ..Plan::default() };
    let rules = RULES.replace("path: \"/feed/**\", methods: [GET, HEAD]", "path: \"/feed/**\", methods: [GET]");
    assert_ne!(rules, RULES);
    plan.rules.insert("us-east", rules);
    let mut world = World::prepare(&plan);
    // us-east does not know how to reach the proxy of ap-northeast.
    let config = world.us().config.clone();
    let gateway = format!("    gateway: \"https://{}\"\n", world.jp().peers);
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(text.contains(&gateway));
    let rules = text.replace(&gateway, "").replace("carried_by: [eu, us]", "carried_by: [eu, us, jp]");
    std::fs::write(&config, rules).unwrap();
    for index in 0..world.regions.len() {
        world.start_region(index).unwrap();
    }
    world.us().wait_for_health("eu-west", "up");
    let explain = |query: &str| get(world.us().admin, &format!("/explain?{query}"), &[]).text().to_owned();
    let assert_says = |query: &str, parts: &[&str]| {
        let text = explain(query);
        parts.iter().for_each(|part| assert!(text.contains(part), "`{part}` is not in\n{text}"));
    };
    let alice = "url=http://app.example.com/users/alice/orders/1&method=POST";

    assert_says(
        "url=http://a/users/chika/orders/1",
        &["redirect: ap-northeast has no `gateway`, so us-east cannot reach its proxy"],
    );
    assert_says("url=http://a/account/1&user=alice", &["redirect: us-east may not carry this data"]);
    world.eu().upstream().crash();
    world.us().wait_for_health("eu-west", "down");
    assert_says(alice, &["eu-west is down: its proxy responds, and none of its upstreams is up", "(failover.home_down)"]);
    world.regions[0].app.take().unwrap().shut_down();
    let unreachable = || get(world.us().admin, &format!("/explain?{alice}"), &[]).text().contains("does not respond to probes");
    eventually("the proxy of eu-west is known to be gone", unreachable);
    world.us().upstream().crash();
    world.us().wait_for_health("us-east", "down");
    let bob = "url=http://a/users/bob/orders/1&method=POST";
    let explain = |query: &str| get(world.us().admin, &format!("/explain?{query}"), &[]).text().to_owned();
    assert!(explain(bob).contains("us-east is down: its proxy responds, and none of its upstreams is up"), "{}", explain(bob));

    // HEAD is another method than GET, and `/feed/../account/1` is the path that it is judged as.
    let said = [
        ("GET", "/feed/1", "`feed`"),
        ("HEAD", "/feed/1", "`rest`"),
        ("get", "/feed/1", "`rest`"),
        ("GET", "/feed/../account/1", "`account`"),
    ];
    for (method, path, route) in said {
        let text = explain(&format!("url=http://a{path}&method={method}"));
        assert!(text.contains(&format!("{route}, the first that matches")), "{method} {path}: {text}");
        assert!(text.starts_with(&format!("{method} http://a{path} arriving at us-east")), "{text}");
    }
}

#[test]
fn every_unusable_file_is_reported_at_once() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config/every-option.yaml");
    let today = domicile::model::day::Day::parse("2026-06-01").unwrap();
    let mut registry = domicile::model::region::Registry::default();
    let config = domicile::config::load(&file, Some("eu-west"), &mut registry, today).map_err(|_| "invalid").unwrap();
    let mut wrong = Vec::new();
    domicile::app::check_files(&config, &registry, &mut wrong);
    let wrong: Vec<String> = wrong.iter().map(ToString::to_string).collect();
    for file in
        ["certs/eu-west.pem", "certs/site.pem", "config/jwks.json", "config/hint.key", "certs/apps-ca.pem", "`/run/domicile`"]
    {
        assert_eq!(wrong.iter().filter(|line| line.contains(file)).count(), 1, "{file}: {wrong:?}");
    }
}
