//! Upstreams that DNS names lead to: one app server behind a name, and every address of a name or of a service.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use http::Response;

use crate::support::{Handler, Plan, Recorder, Wire, World, eventually, get, remember, whole};

/// The records of a name.
#[derive(Clone)]
enum Records {
    Addresses(Vec<Ipv4Addr>),
    /// Priority, weight, port and target.
    Services(Vec<(u16, u16, u16, &'static str)>),
}

/// A DNS server with these records, with a TTL of one second.
#[derive(Clone, Default)]
struct Zone {
    records: Arc<Mutex<BTreeMap<&'static str, Records>>>,
    /// How many queries had no answer.
    unanswered: Arc<AtomicUsize>,
}

impl Zone {
    fn set(&self, name: &'static str, records: Records) {
        self.records.lock().unwrap().insert(name, records);
    }

    fn addresses(&self, name: &'static str, last: &[u8]) {
        self.set(name, Records::Addresses(last.iter().map(|last| Ipv4Addr::new(127, 0, 0, *last)).collect()));
    }

    fn serve(&self) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (address, zone) = (socket.local_addr().unwrap(), self.clone());
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((size, from)) = socket.recv_from(&mut query) {
                let answer = zone.answer(&query[..size]);
                socket.send_to(&answer, from).unwrap();
            }
        });
        address
    }

    fn answer(&self, query: &[u8]) -> Vec<u8> {
        // The name follows the 12-byte header and ends in a zero byte; type and class follow it, two bytes each.
        let end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
        let name = decoded(&query[12..end - 5]);
        let kind = query[end - 3];
        let zone = self.records.lock().unwrap();
        let data: Vec<Vec<u8>> = match (zone.get(&*name), kind) {
            (Some(Records::Addresses(addresses)), 1) => addresses.iter().map(|address| address.octets().to_vec()).collect(),
            (Some(Records::Services(services)), 33) => services.iter().map(encoded).collect(),
            _ => Vec::new(),
        };
        self.unanswered.fetch_add(usize::from(!zone.contains_key(&*name)), Ordering::SeqCst);
        let mut answer = query[..end].to_vec();
        let status = if zone.contains_key(&*name) { 0x80 } else { 0x83 };
        answer[2..4].copy_from_slice(&[0x81, status]);
        answer[6..12].copy_from_slice(&[0, data.len() as u8, 0, 0, 0, 0]);
        for data in data {
            answer.extend_from_slice(&[0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 1, 0, data.len() as u8]);
            answer.extend_from_slice(&data);
        }
        answer
    }
}

fn decoded(mut labels: &[u8]) -> String {
    let mut name = Vec::new();
    while let [size, rest @ ..] = labels {
        let (label, rest) = rest.split_at(usize::from(*size));
        name.push(std::str::from_utf8(label).unwrap().to_ascii_lowercase());
        labels = rest;
    }
    name.join(".")
}

fn encoded((priority, weight, port, target): &(u16, u16, u16, &'static str)) -> Vec<u8> {
    let mut data: Vec<u8> = [priority, weight, port].iter().flat_map(|number| number.to_be_bytes()).collect();
    for label in target.split('.') {
        data.push(label.len() as u8);
        data.extend_from_slice(label.as_bytes());
    }
    data.push(0);
    data
}

/// An app server at this address that responds with the host that it was asked for in health checks, and with `name` otherwise.
fn app(address: &str, name: &'static str) -> Recorder {
    let handler: Handler = Arc::new(move |request, seen| {
        Box::pin(async move {
            remember(request, &seen).await;
            Response::new(whole(name))
        })
    });
    Recorder::at(address.parse().unwrap(), Wire::Http1, handler)
}

/// Three regions, of which `eu-west` has one upstream with this entry, in which `PORT` is that of the first app server. Returns the
/// app servers of `eu-west` at 127.0.0.1, .2 and .3.
fn world(zone: &Zone, entry: &'static str, health: &'static str) -> (World, Arc<Mutex<Vec<Recorder>>>) {
    let others: Arc<Mutex<Vec<Recorder>>> = Arc::default();
    let kept = Arc::clone(&others);
    let upstreams = move |name: &'static str| {
        let mut first = if name == "eu-west" { app("127.0.0.1:0", "one") } else { Recorder::start(name) };
        if name == "eu-west" {
            let port = first.address.port();
            kept.lock().unwrap().extend([app(&format!("127.0.0.2:{port}"), "two"), app(&format!("127.0.0.3:{port}"), "three")]);
            first.entry = entry.replace("PORT", &port.to_string());
        }
        vec![first]
    };
    let extra = format!("dns: {{ servers: [\"{}\"] }}\n", zone.serve());
    (World::planned(Plan { upstreams: Box::new(upstreams), extra, health, ..Plan::default() }), others)
}

fn ask(world: &World) -> String {
    get(world.eu().http, "/users/alice/orders/1", &[]).text().to_owned()
}

/// Waits until each of these app servers and no other has answered in a row of requests.
fn eventually_only(world: &World, names: &[&str]) {
    eventually(&format!("{names:?} serve"), || {
        let answers: Vec<_> = (0..24).map(|_| ask(world)).collect();
        names.iter().all(|name| answers.iter().any(|answer| answer == name))
            && answers.iter().all(|answer| names.contains(&&**answer))
    });
}

#[test]
fn an_upstreams_name_is_looked_up_again_when_its_ttl_is_over() {
    let zone = Zone::default();
    zone.addresses("app.eu.test", &[1]);
    let (world, _others) = world(&zone, "\"http://app.eu.test:PORT\"", "");
    eventually_only(&world, &["one"]);
    zone.addresses("app.eu.test", &[2]);
    // The pooled connection leads to the old address and is not used any more.
    eventually_only(&world, &["two"]);
}

#[test]
fn every_address_of_a_name_is_an_upstream_of_its_own() {
    let zone = Zone::default();
    zone.addresses("app.eu.test", &[1, 2]);
    let (world, others) =
        world(&zone, "{ dns: app.eu.test, port: PORT, path: /base }", "{ path: /healthz, every: 50ms, timeout: 5s }");
    eventually_only(&world, &["one", "two"]);
    let port = world.eu().upstream().address.port();
    let up = |last: u8, is_up: u8| format!("domicile_upstream_up{{service=\"app\",upstream=\"127.0.0.{last}:{port}\"}} {is_up}");
    eventually("both are in the metrics", || [1, 2].iter().all(|last| world.eu().metrics().contains(&up(*last, 1))));
    let seen = world.eu().upstream().seen();
    let served: Vec<_> = seen.iter().filter(|request| request.target != "/base/healthz").collect();
    assert_eq!(served[0].target, "/base/users/alice/orders/1");
    let checked = seen.iter().find(|request| request.target == "/base/healthz").unwrap();
    assert_eq!(checked.headers["host"], format!("app.eu.test:{port}"), "a check names the host, not its address");

    // One goes down and another joins; the one that stays is not checked from the start.
    others.lock().unwrap()[0].crash();
    eventually("the crashed one is down", || world.eu().metrics().contains(&up(2, 0)));
    zone.addresses("app.eu.test", &[1, 2, 3]);
    eventually_only(&world, &["one", "three"]);
    assert!(world.eu().metrics().contains(&up(2, 0)), "it is still known as down");
    zone.addresses("app.eu.test", &[3]);
    eventually_only(&world, &["three"]);
    eventually("the others are gone", || !world.eu().metrics().contains(&up(1, 1)));
    let label =
        format!("domicile_upstream_requests_total{{result=\"answered\",service=\"app\",upstream=\"app.eu.test:{port}\"}}");
    let metrics = world.eu().metrics();
    assert!(metrics.contains(&label), "addresses that come and go make no series: {metrics}");
    world.assert_no_requests(&["us-east", "ap-northeast"]);
}

#[test]
fn a_service_in_dns_has_ports_weights_and_priorities() {
    let zone = Zone::default();
    for (name, last) in [("a.eu.test", 1), ("b.eu.test", 2), ("spare.eu.test", 3)] {
        zone.addresses(name, &[last]);
    }
    zone.set("_http._tcp.eu.test", Records::Services(vec![(1, 1, 9, "spare.eu.test")]));
    let (world, _others) = world(&zone, "{ srv: _http._tcp.eu.test }", "");
    let port = world.eu().upstream().address.port();
    let records = |heavy: u16| {
        Records::Services(vec![(10, heavy, port, "a.eu.test"), (10, 1, port, "b.eu.test"), (20, 1, port, "spare.eu.test")])
    };
    zone.set("_http._tcp.eu.test", records(9));
    eventually_only(&world, &["one", "two"]);
    let answers: Vec<_> = (0..300).map(|_| ask(&world)).collect();
    assert!(answers.iter().all(|answer| answer != "three"), "a higher priority is not used");
    let light = answers.iter().filter(|answer| *answer == "two").count();
    assert!((5..75).contains(&light), "about a tenth: {light} of 300");
}

#[test]
fn a_target_that_cannot_be_resolved_does_not_hide_the_others() {
    let zone = Zone::default();
    zone.addresses("a.eu.test", &[2]);
    zone.set("_http._tcp.eu.test", Records::Services(vec![(1, 1, 9, "a.eu.test")]));
    let (world, _others) = world(&zone, "{ srv: _http._tcp.eu.test }", "");
    let port = world.eu().upstream().address.port();
    zone.set("_http._tcp.eu.test", Records::Services(vec![(1, 1, port, "retired.eu.test"), (1, 1, port, "a.eu.test")]));
    eventually_only(&world, &["two"]);
}

#[test]
fn a_reload_to_a_name_without_addresses_is_refused() {
    let zone = Zone::default();
    zone.addresses("app.eu.test", &[2]);
    let (world, _others) = world(&zone, "{ dns: app.eu.test, port: PORT }", "");
    // A start waits for the first lookup.
    assert_eq!(ask(&world), "two");
    let text = std::fs::read_to_string(&world.eu().config).unwrap();
    std::fs::write(&world.eu().config, text.replace("dns: app.eu.test", "dns: ap.eu.test")).unwrap();
    let error = world.eu().reload().unwrap_err();
    assert!(error.contains("service `app`: no app server was found under `ap.eu.test:"), "{error}");
    assert_eq!(ask(&world), "two", "the app servers before serve on");
    zone.addresses("ap.eu.test", &[3]);
    // The resolver remembers for a while that there was no such name.
    eventually("the name is found", || world.eu().reload().is_ok());
    assert_eq!(ask(&world), "three");
}

#[test]
fn answers_without_addresses_keep_the_last_ones() {
    let zone = Zone::default();
    zone.addresses("app.eu.test", &[2]);
    let (world, _others) = world(&zone, "{ dns: app.eu.test, port: PORT }", "");
    eventually_only(&world, &["two"]);
    zone.records.lock().unwrap().clear();
    let before = zone.unanswered.load(Ordering::SeqCst);
    eventually("two lookups have failed", || zone.unanswered.load(Ordering::SeqCst) >= before + 3);
    assert_eq!(ask(&world), "two");
}
