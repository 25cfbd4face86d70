//! The overload guard: priorities, connections, peers and recovery.

use std::io::{Read, Write};
use std::net::TcpStream;

use http::{Method, StatusCode};

use crate::support::{NAMES, Plan, RULES, TIMEOUT, World, eventually, get, http2, request, runtime, whole};

const ROUTES: &str = "  - { name: low, match: { path: /low }, data: public, home: [{ region: eu-west }], priority: low }
  - { name: high, match: { path: /high }, data: public, home: [{ region: eu-west }], priority: high }
  - { name: normal, match: { path: /normal }, data: public, home: [{ region: eu-west }] }";

/// More memory than is used, and at its first threshold; less memory than is used.
const RAISED: &str = "overload: { memory: { shed: 0%, stop: 100% } }\n";
const FULL: &str = "overload: { memory: { limit: 64MiB, shed: 0%, stop: 1% } }\n";

/// Three regions, of which only `eu-west` has this overload section.
fn plan(overload: &str) -> Plan {
    let rules = RULES.replace("routes:\n", &format!("routes:\n{ROUTES}\n"));
    let rules = NAMES.map(|name| (name, if name == "eu-west" { format!("{overload}{rules}") } else { rules.clone() }));
    Plan { rules: rules.into(), ..Plan::default() }
}

fn recover(world: &World) {
    world.write_config(0, &plan(""));
    world.eu().reload().unwrap();
}

/// A client that keeps its connection open.
struct Client(TcpStream);

impl Client {
    fn connect(world: &World) -> Self {
        let stream = TcpStream::connect(world.eu().http).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self(stream)
    }

    fn send(&mut self, path: &str) {
        write!(self.0, "HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    }

    /// Reads one response without a body, in lower case.
    fn read(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        String::from_utf8(head).unwrap().to_ascii_lowercase()
    }
}

#[test]
fn low_priority_is_refused_first_and_recovers() {
    let world = World::planned(plan(""));
    let mut idle = Client::connect(&world);
    idle.send("/high");
    assert!(!idle.read().contains("connection: close"));
    world.write_config(0, &plan(RAISED));
    world.eu().reload().unwrap();
    eventually("low priority is refused", || get(world.eu().http, "/low", &[]).status == StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(idle.0.read(&mut [0; 1]).unwrap(), 0, "the idle connection is closed");
    let seen = world.eu().upstream().seen().len();
    for proxy in [world.eu(), world.us()] {
        let refused = get(proxy.http, "/low", &[]);
        assert_eq!((refused.status, refused.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "proxy.overloaded"));
        assert_eq!(refused.headers["retry-after"], "5");
    }
    assert_eq!(world.eu().upstream().seen().len(), seen, "the app server saw none of them");
    world.assert_no_requests(&["ap-northeast"]);
    world.us().upstream().assert_no_requests();
    assert_eq!(["/normal", "/high"].map(|path| get(world.eu().http, path, &[]).status), [StatusCode::OK; 2]);
    let mut client = Client::connect(&world);
    client.send("/high");
    let head = client.read();
    assert!(head.starts_with("http/1.1 200") && head.contains("connection: close"), "{head}");
    assert!(world.eu().metrics().contains("domicile_overload_pressure 1"));
    recover(&world);
    eventually("low priority is served", || get(world.eu().http, "/low", &[]).status == StatusCode::OK);
    let mut client = Client::connect(&world);
    client.send("/high");
    assert!(!client.read().contains("connection: close"));
}

#[test]
fn an_http2_connection_ends_after_its_requests() {
    let world = World::planned(plan(RAISED));
    runtime().block_on(async {
        let refused = |answer: StatusCode| answer == StatusCode::SERVICE_UNAVAILABLE;
        let mut sender = http2(&world, world.eu().https, "localhost").await;
        let ask = |path| request(Method::GET, &format!("https://localhost{path}"), "", &[], whole(""));
        // The pressure may be published after the first requests.
        while !refused(sender.send_request(ask("/low")).await.map_or(StatusCode::SERVICE_UNAVAILABLE, |answer| answer.status())) {
            tokio::task::yield_now().await;
        }
        let mut sender = http2(&world, world.eu().https, "localhost").await;
        assert_eq!(sender.send_request(ask("/high")).await.unwrap().status(), StatusCode::OK);
        tokio::time::timeout(TIMEOUT, async {
            while sender.ready().await.is_ok() {
                tokio::task::yield_now().await
            }
        })
        .await
        .unwrap();
    });
}

#[test]
fn a_full_process_accepts_nothing_but_probes_and_commands() {
    let world = World::planned(plan(""));
    let mut open = Client::connect(&world);
    open.send("/high");
    assert!(open.read().starts_with("http/1.1 200"));
    world.us().wait_for_health("eu-west", "up");
    world.write_config(0, &plan(FULL));
    world.eu().reload().unwrap();
    eventually("the guard has seen the limit", || world.eu().metrics().contains("domicile_overload_pressure 3"));
    eventually("idle connections are closed", || {
        let metrics = world.eu().metrics();
        metrics.contains(&format!("domicile_connections{{listener=\"{}\"}} 0", world.eu().http))
    });
    let seen = world.eu().upstream().seen().len();
    let mut waiting = Client::connect(&world);
    waiting.send("/high");
    let from_peer = get(world.us().http, "/high", &[]);
    assert_eq!((from_peer.status, from_peer.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "proxy.overloaded"));
    // Each answered probe changes the smoothed round trip, and three failures would change the health.
    let round_trip = || world.us().sum_of("domicile_region_round_trip_seconds{region=\"eu-west\"}");
    for _ in 0..4 {
        let before = round_trip();
        eventually("another probe is answered", || round_trip() != before);
    }
    world.us().wait_for_health("eu-west", "up");
    assert_eq!(get(world.eu().admin, "/livez", &[]).status, StatusCode::OK);
    let unready = get(world.eu().admin, "/readyz", &[]);
    assert_eq!((unready.status, unready.text().contains("overloaded")), (StatusCode::SERVICE_UNAVAILABLE, true));
    assert_eq!(world.eu().upstream().seen().len(), seen, "no request was accepted");
    world.assert_no_requests(&["ap-northeast"]);
    world.us().upstream().assert_no_requests();
    recover(&world);
    assert!(waiting.read().starts_with("http/1.1 200"), "the connection waited in the queue");
}
