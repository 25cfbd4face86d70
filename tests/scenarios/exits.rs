//! Exits: data does not leave its region, and no request escapes its judgement, by reloads, labels, trailers or tunnels.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use domicile::model::user::{Evidence, Proof};
use domicile::model::vitals::PolicyHash;
use domicile::peer::Envelope;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use hyper::body::Frame;

use crate::identity::{SECRET, keys, token};
use crate::peers::showing;
use crate::streams::{echo, open_http1, speak};
use crate::support::{
    Answer, NAMES, Plan, RULES, Recorder, Region, TIMEOUT, Wire, World, eventually, get, http2, pieces, post, raw, read,
    remember, request, runtime, whole,
};

/// A client address in Germany, in the United States and in Brazil.
const GERMAN: [(&str, &str); 1] = [("x-forwarded-for", "91.64.0.1")];
const AMERICAN: [(&str, &str); 1] = [("x-forwarded-for", "8.8.8.8")];
const BRAZILIAN: [(&str, &str); 1] = [("x-forwarded-for", "177.1.1.1")];

/// A plan in which every region has these rules.
fn with_rules(rules: &str) -> Plan {
    Plan { rules: NAMES.map(|name| (name, rules.to_owned())).into(), ..Plan::default() }
}

pub fn start_all(mut world: World) -> World {
    for index in 0..NAMES.len() {
        world.start_region(index).unwrap();
    }
    world.wait_until_measured();
    world
}

fn reload_by_admin(region: &Region, query: &str, fields: &[(&str, &str)]) -> Answer {
    post(region.admin, &format!("/reload{query}"), fields, "")
}

const WITHOUT_BOB: &str = "user,home\nalice,eu-west\nchika,ap-northeast\n";
const CONFIRMED: [(&str, &str); 1] = [("domicile-command", "reload")];

#[test]
pub fn a_user_table_that_lost_users_is_used_only_after_an_operator_accepts_the_loss() {
    let world = World::start();
    std::fs::write(world.folder.path().join("users-eu-west.csv"), WITHOUT_BOB).unwrap();
    let bob = || get(world.eu().http, "/users/bob/orders/1", &[]);
    for attempt in ["first", "second"] {
        let error = world.eu().reload().unwrap_err();
        assert!(error.contains("has 2 users and had 3") && error.contains("--accept-loss"), "{attempt}: {error}");
        assert_eq!(bob().text(), "us-east", "the previous table is kept after the {attempt} reload");
    }
    let unmarked = reload_by_admin(world.eu(), "?accept_loss=true", &[]);
    assert_eq!(unmarked.status, StatusCode::FORBIDDEN);
    assert_eq!(bob().text(), "us-east");
    let unaccepted = reload_by_admin(world.eu(), "", &CONFIRMED);
    assert_eq!(unaccepted.status, StatusCode::CONFLICT);
    assert!(unaccepted.text().contains("--accept-loss"), "{}", unaccepted.text());
    assert_eq!(bob().text(), "us-east");
    let before = world.us().upstream().seen().len();
    let accept = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_domicile"));
        command.args(["reload", "--accept-loss", "--config"]).arg(&world.eu().config).env_remove("DOMICILE_REGION");
        command.output().unwrap().status.success()
    };
    eventually("the command accepts the loss", accept);
    assert_eq!(bob().code(), "home.unresolved");
    assert_eq!(world.us().upstream().seen().len(), before, "bob's home is not known in eu-west any more");
    world.eu().upstream().assert_no_requests();
    world.assert_no_requests(&["ap-northeast"]);
}

#[test]
fn a_loss_that_is_accepted_while_another_reload_runs_is_accepted() {
    let world = World::start();
    std::fs::write(world.folder.path().join("users-eu-west.csv"), WITHOUT_BOB).unwrap();
    // A reload waits until the file has not changed for a while, so the first one still runs when the second one is requested.
    let mut first = TcpStream::connect(world.eu().admin).unwrap();
    first.set_read_timeout(Some(TIMEOUT)).unwrap();
    first.write_all(b"POST /reload HTTP/1.1\r\nHost: a\r\nDomicile-Command: reload\r\nContent-Length: 0\r\n\r\n").unwrap();
    assert_eq!(get(world.eu().admin, "/readyz", &[]).status, StatusCode::OK, "the control thread responds meanwhile");
    let accepting = reload_by_admin(world.eu(), "?accept_loss=true", &CONFIRMED);
    assert_eq!((accepting.status, accepting.text()), (StatusCode::OK, "reloaded\n"));
    assert!(first.read(&mut [0; 100]).unwrap() > 0, "the first reload gets a response as well");
    assert_eq!(get(world.eu().http, "/users/bob/orders/1", &[]).code(), "home.unresolved");
}

#[test]
fn a_user_in_the_path_that_cannot_be_decoded_is_answered_400() {
    let world = World::start();
    let long = "a".repeat(300);
    for user in ["%FF", "%C3%28", "%00", "%C2%85", "%2F", "%", &long] {
        for fields in [&[][..], &[("x-user-id", "alice")]] {
            let answer = get(world.us().http, &format!("/users/{user}/orders/1"), fields);
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{user}");
            assert!(["request.malformed_path", "request.malformed_user"].contains(&&*answer.code()), "{user}");
        }
    }
    world.us().upstream().assert_no_requests();
    world.assert_no_requests(&["eu-west", "ap-northeast"]);
}

#[test]
fn an_alias_in_the_path_stands_for_the_caller() {
    let orders = "match: { path: \"/users/{user}/orders/**\" },";
    let world = World::planned(with_rules(&RULES.replace(orders, &format!("{orders} user: {{ me: [me] }},"))));
    let ask = |fields: &[(&str, &str)]| get(world.us().http, "/users/me/orders/1", fields);
    assert_eq!(ask(&[]).code(), "home.unresolved");
    world.us().upstream().assert_no_requests();
    world.assert_no_requests(&["eu-west", "ap-northeast"]);
    assert_eq!(ask(&[("x-user-id", "alice")]).text(), "eu-west");
    assert_eq!(ask(&[("x-user-id", "bob")]).text(), "us-east");
    let seen = world.eu().upstream().seen();
    assert_eq!((seen.len(), &*seen[0].target), (1, "/users/me/orders/1"));
    assert_eq!(world.us().upstream().seen().len(), 1);
    world.assert_no_requests(&["ap-northeast"]);
}

/// App servers that label each response with the class in the query of the request.
fn labelling(_: &'static str) -> Vec<Recorder> {
    vec![Recorder::with(Arc::new(|request, seen| {
        let label = request.uri().query().map(|query| HeaderValue::from_str(query).unwrap());
        Box::pin(async move {
            remember(request, &seen).await;
            let mut response = Response::new(whole("the answer itself"));
            if let Some(label) = label {
                response.headers_mut().insert("domicile-data-class", label);
            }
            response
        })
    }))]
}

/// The lines about movements in a region's ledger.
pub fn movements(world: &World, region: &Region) -> Vec<serde_json::Value> {
    region.ledger(world).into_iter().filter(|line| line["kind"] == "movement").collect()
}

pub fn assert_no_own_field(headers: &HeaderMap) {
    let is_own = |name: &http::HeaderName| name.as_str().starts_with("domicile-") && name != "domicile-request-id";
    assert!(!headers.keys().any(is_own), "{headers:?}");
}

#[test]
fn an_answer_whose_label_needs_a_record_is_withheld_where_nobody_owns_the_request() {
    let rules = RULES.replace("    needs: inferred\n", "    needs: recorded\n");
    let world = World::planned(Plan { upstreams: Box::new(labelling), ..with_rules(&rules) });
    for label in ["personal", "restricted"] {
        let answer = get(world.eu().http, &format!("/feed/1?{label}"), &GERMAN);
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (451, "residency.answer_not_cleared"), "{label}");
        assert!(!answer.text().contains("itself"));
        assert_no_own_field(&answer.headers);
    }
    assert_eq!(get(world.eu().http, "/feed/1", &GERMAN).text(), "the answer itself");
    assert_eq!(world.eu().upstream().seen().len(), 3);
    assert!(movements(&world, world.eu()).is_empty());
    world.assert_no_requests(&["us-east", "ap-northeast"]);

    let inferred = World::planned(Plan { upstreams: Box::new(labelling), ..Plan::default() });
    let answer = get(inferred.eu().http, "/feed/1?personal", &GERMAN);
    assert_eq!(answer.text(), "the answer itself", "inferred evidence is enough for this class");
    assert_no_own_field(&answer.headers);
}

/// Rules with a public route whose home is eu-west.
fn with_press() -> String {
    let press = "  - { name: press, match: { path: \"/press/**\" }, data: public, home: [{ region: eu-west }] }\n";
    RULES.replace("  - { name: feed,", &format!("{press}  - {{ name: feed,"))
}

#[test]
fn a_public_request_whose_answer_is_labelled_personal_crosses_the_border_with_its_lines() {
    let world = World::planned(Plan { upstreams: Box::new(labelling), ..with_rules(&with_press()) });
    let ask = |target: &str, client: &[(&str, &str)]| {
        let answer = get(world.us().http, target, client);
        assert_no_own_field(&answer.headers);
        answer
    };
    assert_eq!(ask("/press/1", &GERMAN).text(), "the answer itself");
    assert_eq!(ask("/press/1?public", &GERMAN).text(), "the answer itself");
    assert!(movements(&world, world.eu()).is_empty(), "public data needs no ledger line");
    assert_eq!(ask("/press/1?personal", &GERMAN).text(), "the answer itself");
    let lines = movements(&world, world.eu());
    let [line] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!((&line["what"], &line["from"], &line["to"]), (&"answer".into(), &"eu-west".into(), &"us-east".into()));
    assert!(line["classes"].as_array().unwrap().contains(&"personal".into()), "{line}");
    // The data of an American is processed in eu-west under the transfer.
    assert_eq!(ask("/press/1?personal", &AMERICAN).text(), "the answer itself");
    let lines = movements(&world, world.eu());
    assert_eq!(lines.len(), 3, "{lines:?}");
    let processing = lines.iter().find(|line| line["what"] == "processing").expect("a line about the processing");
    assert_eq!((&processing["from"], &processing["to"]), (&"us".into(), &"eu-west".into()));
    assert_eq!(processing["transfers"], serde_json::json!([{ "basis": "contract", "record": "DPA 7" }]));
    // No rule lets the data of a Brazilian be processed in eu-west.
    let refused = ask("/press/1?personal", &BRAZILIAN);
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (451, "residency.answer_not_cleared"));
    assert!(!refused.text().contains("itself"));
    assert_eq!(movements(&world, world.eu()).len(), 3);
    world.us().upstream().assert_no_requests();
    world.assert_no_requests(&["ap-northeast"]);
}

#[test]
fn a_uniform_refusal_hides_that_a_response_was_not_cleared() {
    let rules = with_press().replace("users:\n", "users:\n  uniform_refusals: true\n");
    let world = World::planned(Plan { upstreams: Box::new(labelling), ..with_rules(&rules) });
    for region in [world.us(), world.eu()] {
        let refused = get(region.http, "/press/1?personal", &BRAZILIAN);
        assert_eq!((refused.status, refused.code().as_str()), (StatusCode::FORBIDDEN, "home.unresolved"), "{}", region.name);
        assert!(!refused.text().contains("itself"));
    }
}

#[test]
fn a_labelled_answer_without_its_line_does_not_leave() {
    let world = World::prepare(&Plan { upstreams: Box::new(labelling), ..with_rules(&with_press()) });
    let folder = world.folder.path().join("ledger-eu-west");
    std::fs::create_dir(&folder).unwrap();
    std::os::unix::fs::symlink("/dev/full", folder.join("ledger.jsonl")).unwrap();
    std::fs::write(folder.join("pseudonym.key"), "0".repeat(64)).unwrap();
    let world = start_all(world);
    let answer = get(world.us().http, "/press/1?personal", &GERMAN);
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "ledger.unavailable"));
    assert!(!answer.text().contains("itself"));
    assert_no_own_field(&answer.headers);
    assert_eq!(get(world.us().http, "/press/1", &GERMAN).text(), "the answer itself", "public data needs no ledger line");
    world.us().upstream().assert_no_requests();
}

pub type BodySender = tokio::sync::mpsc::UnboundedSender<Frame<Bytes>>;

/// App servers whose response to `/users/alice/orders/NAME` ends when the sender for NAME is dropped.
pub fn downloads<const N: usize>(names: [&'static str; N]) -> (impl Fn(&'static str) -> Vec<Recorder>, [BodySender; N]) {
    let (senders, bodies): (Vec<_>, Vec<_>) = names.iter().map(|_| pieces()).unzip();
    let bodies: Vec<_> = names.into_iter().zip(bodies).collect();
    let bodies = Arc::new(Mutex::new(bodies));
    let upstreams = move |region: &'static str| {
        let bodies = Arc::clone(&bodies);
        vec![Recorder::with(Arc::new(move |request, seen| {
            let name = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            let mut bodies = bodies.lock().unwrap();
            let body = bodies.iter().position(|(known, _)| *known == name).map(|at| bodies.remove(at).1);
            drop(bodies);
            Box::pin(async move {
                remember(request, &seen).await;
                Response::new(body.unwrap_or_else(|| whole(region)))
            })
        }))]
    };
    (upstreams, senders.try_into().unwrap_or_else(|_| unreachable!("one sender for each name")))
}

/// A download over HTTP/1.1 that has begun.
pub struct Download {
    stream: TcpStream,
    received: String,
}

impl Download {
    pub fn begin(address: SocketAddr, name: &str) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        write!(stream, "GET /users/alice/orders/{name} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        Self { stream, received: String::new() }
    }

    pub fn read_until(&mut self, text: &str) {
        while !self.received.contains(text) {
            let mut buffer = [0; 1000];
            let size = self.stream.read(&mut buffer).unwrap();
            assert!(size > 0, "{}", self.received);
            self.received.push_str(&String::from_utf8_lossy(&buffer[..size]));
        }
    }

    /// Reads to the end. Returns whether the body was complete.
    pub fn ends_complete(mut self) -> bool {
        let mut rest = Vec::new();
        let is_closed_cleanly = self.stream.read_to_end(&mut rest).is_ok();
        is_closed_cleanly && rest.ends_with(b"0\r\n\r\n")
    }
}

pub fn send(sender: &BodySender, text: &'static str) {
    sender.send(Frame::data(Bytes::from_static(text.as_bytes()))).unwrap();
}

#[test]
fn failover_that_only_report_mode_allows_is_counted() {
    const HEALTH: &str = "{ path: /healthz, every: 20ms, timeout: 5s, rise: 1, fall: 1 }";
    let report = RULES.replace("    needs: inferred\n", "    needs: inferred\n    mode: report\n");
    let world = World::planned(Plan { health: HEALTH, ..with_rules(&report) });
    let reported = |region: &Region| region.sum_of("domicile_residency_reported_total");
    let ask = |region: &Region| get(region.http, "/users/alice/orders/1", &[]);
    assert_eq!((ask(world.eu()).text(), ask(world.us()).text()), ("eu-west", "eu-west"));
    assert_eq!((reported(world.eu()), reported(world.us())), (0.0, 0.0), "the rules allow both");
    world.eu().upstream().crash();
    world.regions.iter().for_each(|region| region.wait_for_health("eu-west", "down"));
    assert_eq!(ask(world.us()).text(), "us-east", "a European's data leaves the EU");
    let metrics = world.us().metrics();
    let line = r#"domicile_residency_reported_total{class="personal",from="us-east",to="us-east"} 1"#;
    assert!(metrics.contains(line), "{metrics}");
    let write = post(world.us().http, "/users/alice/orders/1", &[], "x");
    assert_eq!(write.code(), "failover.home_down");
    assert_eq!((reported(world.us()), world.us().upstream().seen().len()), (1.0, 1), "the write did not move");
    // From eu-west the request crosses a border, so the ledger has a line about it as well.
    assert_eq!(ask(world.eu()).status, StatusCode::OK);
    assert_eq!(reported(world.eu()), 1.0);
    let lines = movements(&world, world.eu());
    let line = lines.last().expect("a line about the failover");
    assert_eq!((&line["what"], &line["reported"]), (&"request".into(), &true.into()));
}

const TRACING: [(&str, &str); 8] = [
    ("b3", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1"),
    ("uber-trace-id", "80f198ee56343ba8:e457b5a2e4d86bd1:0:1"),
    ("x-datadog-trace-id", "1234567890"),
    ("sentry-trace", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1"),
    ("elastic-apm-traceparent", "00-80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-01"),
    ("x-amzn-trace-id", "Root=1-67891233-abcdef012345678912345678"),
    ("baggage", "user=alice"),
    ("tracestate", "vendor=alice"),
];
const TRACEPARENT: (&str, &str) = ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");

/// The tracing header fields that alice's app server receives, without `traceparent`, and the value of `traceparent`.
fn tracing_from(region: &Region, world: &World) -> (Vec<&'static str>, String) {
    let fields = [&TRACING[..], &[TRACEPARENT]].concat();
    assert_eq!(get(region.http, "/users/alice/orders/1", &fields).text(), "eu-west");
    let seen = world.eu().upstream().seen().pop().unwrap().headers;
    let arrived = TRACING.into_iter().filter(|(name, value)| seen.get(*name).is_some_and(|seen| seen == value));
    let arrived = arrived.map(|(name, _)| name).collect();
    assert!(TRACING.iter().all(|(name, value)| seen.get(*name).is_none_or(|seen| seen == value)), "{seen:?}");
    (arrived, seen["traceparent"].to_str().unwrap().to_owned())
}

#[test]
fn tracing_header_fields_do_not_cross_a_border_and_the_trace_id_does() {
    let world = World::start();
    let (arrived, traceparent) = tracing_from(world.eu(), &world);
    assert_eq!((arrived, &*traceparent), (TRACING.map(|(name, _)| name).to_vec(), TRACEPARENT.1), "nothing changes at home");
    let (arrived, traceparent) = tracing_from(world.us(), &world);
    assert!(arrived.is_empty(), "{arrived:?}");
    let [version, trace, parent, flags] = traceparent.split('-').collect::<Vec<_>>()[..] else { panic!("{traceparent}") };
    assert_eq!((version, trace, flags), ("00", "4bf92f3577b34da6a3ce929d0e0e4736", "01"));
    assert!(parent.len() == 16 && parent != "00f067aa0ba902b7", "{traceparent}");
    let (_, again) = tracing_from(world.us(), &world);
    assert_ne!(traceparent, again, "every request has its own parent id");
    world.us().upstream().assert_no_requests();
    world.assert_no_requests(&["ap-northeast"]);
}

#[test]
fn tracing_fields_in_trailers_do_not_cross_a_border() {
    let world = World::start();
    for region in [world.eu(), world.us()] {
        runtime().block_on(async {
            let mut sender = http2(&world, region.https, "localhost").await;
            let (sends, body) = pieces();
            let fields = [("te", "trailers"), ("trailer", "baggage, x-checksum")];
            let ask = request(Method::POST, "https://localhost/users/alice/orders/1", "", &fields, body);
            sends.send(Frame::data(Bytes::from_static(b"body"))).unwrap();
            let trailers = [("baggage", "user=alice"), ("x-checksum", "1")];
            let trailers = trailers.map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
            sends.send(Frame::trailers(trailers.into_iter().collect())).unwrap();
            drop(sends);
            assert_eq!(read(sender.send_request(ask).await.unwrap()).await.unwrap().text(), "eu-west");
        });
    }
    let [near, far] = &world.eu().upstream().seen()[..] else { panic!("two requests") };
    let trailers = [near, far].map(|seen| seen.trailers.clone().unwrap_or_default());
    assert!(trailers.iter().all(|trailers| trailers.contains_key("x-checksum")), "{trailers:?}");
    assert!(!trailers.iter().any(|trailers| trailers.contains_key("baggage")), "{trailers:?}");
    world.us().upstream().assert_no_requests();
}

#[test]
fn tracing_header_fields_that_the_policy_lists_cross_a_border() {
    let world = World::planned(Plan { extra: "borders: { tracing: [tracestate, b3] }\n".into(), ..Plan::default() });
    let (arrived, traceparent) = tracing_from(world.us(), &world);
    assert_eq!(arrived, ["b3", "tracestate"]);
    assert!(traceparent.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && traceparent != TRACEPARENT.1, "{traceparent}");
}

#[test]
fn an_upgrade_that_the_owner_declines_opens_no_tunnel() {
    let world = World::start();
    let path = "/users/alice/orders/live";
    let upgrade =
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    for region in [world.eu(), world.us()] {
        // The bytes after the declined upgrade are an HTTP request, which is malformed.
        let next = "GET /account%2f1 HTTP/1.1\r\nHost: a\r\n\r\n";
        let answers = raw(region.http, format!("GET {path} HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n\r\n{next}").as_bytes());
        assert!(answers.starts_with("HTTP/1.1 200 ") && answers.contains("\r\n\r\neu-west"), "{answers}");
        assert!(answers.contains("HTTP/1.1 400 ") && !answers.contains(" 101 "), "{answers}");
        assert!(!answers.to_lowercase().replace("domicile-request-id", "").contains("domicile-"), "{answers}");
        runtime().block_on(async {
            let mut sender = http2(&world, region.https, "localhost").await;
            let url = format!("https://localhost{path}");
            // The response to a first request makes sure that the server's SETTINGS, which allow extended CONNECT, have arrived.
            sender.send_request(request(Method::GET, &url, "", &[], whole(""))).await.unwrap();
            let mut connect = request(Method::CONNECT, &url, "", &[("sec-websocket-version", "13")], whole(""));
            connect.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
            let declined = read(sender.send_request(connect).await.unwrap()).await.unwrap();
            assert_eq!((declined.status, declined.code().as_str()), (StatusCode::NOT_IMPLEMENTED, "request.upgrade_refused"));
            assert_no_own_field(&declined.headers);
            let after = read(sender.send_request(request(Method::GET, &url, "", &[], whole(""))).await.unwrap()).await.unwrap();
            assert_eq!(after.text(), "eu-west", "the connection serves the next request");
        });
    }
    assert_eq!(world.eu().upstream().seen().len(), 8, "the app server received the requests, and no byte of a tunnel");
    world.us().upstream().assert_no_requests();
    world.assert_no_requests(&["ap-northeast"]);
}

#[test]
fn a_request_is_counted_until_its_body_has_ended() {
    let (upstreams, [slow]) = downloads(["slow"]);
    let extra = "limits: { requests: 1 }\n".into();
    let world = World::planned(Plan { upstreams: Box::new(upstreams), extra, ..Plan::default() });
    let mut download = Download::begin(world.eu().http, "slow");
    send(&slow, "one");
    download.read_until("one");
    for _ in 0..3 {
        let refused = get(world.eu().http, "/users/alice/orders/1", &[]);
        assert_eq!((refused.status, refused.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "proxy.overloaded"));
    }
    assert_eq!(world.eu().upstream().seen().len(), 1, "the app server saw only the download");
    send(&slow, "two");
    download.read_until("two");
    drop(slow);
    assert!(download.ends_complete());
    eventually("the next request is served", || get(world.eu().http, "/users/alice/orders/1", &[]).text() == "eu-west");
    world.assert_no_requests(&["us-east", "ap-northeast"]);
}

#[test]
fn a_tunnel_is_counted_until_it_has_ended() {
    let extra = "limits: { requests: 1 }\n".into();
    let world = World::planned(Plan { upstreams: Box::new(|_| vec![echo(Wire::Http1)]), extra, ..Plan::default() });
    let (mut tunnel, answer) = open_http1(world.eu().http, "/users/alice/orders/live", "");
    assert!(answer.starts_with("http/1.1 101 "), "{answer}");
    speak(&mut tunnel, b"hello");
    assert_eq!(get(world.eu().http, "/users/alice/orders/1", &[]).code(), "proxy.overloaded");
    assert_eq!(world.eu().upstream().seen().len(), 1, "the app server saw only the tunnel");
    drop(tunnel);
    eventually("the next request is served", || get(world.eu().http, "/users/alice/orders/1", &[]).status == StatusCode::OK);
}

/// A world that identifies users by tokens, then by a header of trusted hops.
fn with_tokens() -> (World, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    std::fs::write(&file, keys(SECRET)).unwrap();
    let old = "  key: [{ header: x-user-id }, { cookie: uid }]\n";
    let token = format!("{{ keys: \"{}\", issuer: \"https://id.test\", audience: api }}", file.display());
    let new = format!("  token: {token}\n  key: [{{ token: sub }}, {{ header: x-user-id }}]\n");
    (World::planned(with_rules(&RULES.replace(old, &new))), folder)
}

/// The values of `x-user-id` at alice's app server, for a request with her token and a header that names bob.
fn users_named(world: &World, region: &Region) -> Vec<HeaderValue> {
    let fields = [("authorization", &*token("alice", "", SECRET)), ("x-user-id", "bob")];
    assert_eq!(get(region.http, "/profile/1", &fields).text(), "eu-west");
    world.eu().upstream().seen().pop().unwrap().headers.get_all("x-user-id").iter().cloned().collect()
}

#[test]
fn a_header_that_names_the_user_is_rebuilt_by_the_owner() {
    let (world, _keys) = with_tokens();
    assert_eq!(users_named(&world, world.us()), ["alice"]);
    world.us().upstream().assert_no_requests();
    world.assert_no_requests(&["ap-northeast"]);
}

#[test]
fn a_header_that_names_the_user_is_rebuilt_at_home() {
    let (world, _keys) = with_tokens();
    assert_eq!(users_named(&world, world.eu()), ["alice"]);
    world.assert_no_requests(&["us-east", "ap-northeast"]);
}

/// Requests a profile from eu-west's gateway as the peer us-east, with an envelope that names `user` as the proven caller.
fn ask_as_peer(world: &World, user: &str, fields: &[(&str, &str)]) -> Answer {
    ask_as_peer_for((user, Proof::Proven), world, fields)
}

/// An envelope of us-east that names `user` as the caller.
fn envelope(user: &str, proof: Proof) -> String {
    let envelope = Envelope {
        id: "1".into(),
        client: "91.64.0.1".parse().unwrap(),
        user: Some((user.into(), proof)),
        home: Some("eu-west".into()),
        evidence: Some(Evidence::Recorded),
        country: None,
        classes: vec!["personal".into()],
        policy: PolicyHash::default(),
        directory: None,
        certificate: None,
        is_https: true,
        is_question: false,
        is_retry: false,
    };
    envelope.write()
}

fn ask_as_peer_for((user, proof): (&str, Proof), world: &World, fields: &[(&str, &str)]) -> Answer {
    let envelope = envelope(user, proof);
    let fields = [fields, &[("domicile-request", &*envelope)]].concat();
    runtime().block_on(async {
        let stream = tokio::net::TcpStream::connect(world.eu().peers).await.unwrap();
        let config = showing(world, "us-east");
        let stream = tokio_rustls::TlsConnector::from(config).connect("localhost".try_into().unwrap(), stream).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let executor = hyper_util::rt::TokioExecutor::new();
        let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
        tokio::spawn(connection);
        let request = request(Method::GET, "https://localhost/profile/1", "", &fields, whole(""));
        read(sender.send_request(request).await.unwrap()).await.unwrap()
    })
}

#[test]
fn a_peer_does_not_name_one_user_with_the_token_of_another() {
    let (world, _keys) = with_tokens();
    let of_bob = [("authorization", &*token("bob", "", SECRET))];
    let answer = ask_as_peer(&world, "alice", &of_bob);
    assert!(!answer.status.is_success(), "{answer:?}");
    world.eu().upstream().assert_no_requests();
    let of_alice = [("authorization", &*token("alice", "", SECRET))];
    assert_eq!(ask_as_peer(&world, "alice", &of_alice).text(), "eu-west");
    world.assert_no_requests(&["us-east", "ap-northeast"]);
}

#[test]
fn a_request_of_a_peer_with_two_envelopes_is_refused() {
    let world = World::start();
    let answer = ask_as_peer(&world, "alice", &[("domicile-request", &envelope("alice", Proof::Proven))]);
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::MISDIRECTED_REQUEST, "peer.malformed"));
    world.eu().upstream().assert_no_requests();
}

#[test]
fn a_peer_does_not_claim_one_user_with_the_cookie_of_another() {
    let world = World::start();
    let claimed = |user, fields: &[(&str, &str)]| ask_as_peer_for((user, Proof::Claimed), &world, fields);
    let answer = claimed("alice", &[("cookie", "uid=bob")]);
    assert_eq!(answer.code(), "peer.malformed");
    world.eu().upstream().assert_no_requests();
    assert_eq!(claimed("alice", &[("cookie", "uid=alice")]).text(), "eu-west");
    // A trusted hop's header precedes the cookie, also in the region that received the request.
    assert_eq!(ask_as_peer(&world, "alice", &[("x-user-id", "alice"), ("cookie", "uid=bob")]).text(), "eu-west");
}

#[test]
fn a_user_whom_only_a_peer_names_is_not_recorded() {
    let ask = |rules: &str| {
        let world = World::planned(with_rules(rules));
        let answer = ask_as_peer(&world, "alice", &[]);
        (answer.code(), world.eu().upstream().seen().len())
    };
    assert_eq!(ask(RULES), (String::new(), 1), "inferred suffices");
    let strict = RULES.replace("    needs: inferred\n", "    needs: recorded\n");
    assert_ne!(strict, RULES);
    assert_eq!(ask(&strict), ("residency.evidence_too_weak".into(), 0), "the envelope claims that alice is proven and recorded");
}

#[test]
fn the_user_header_of_a_peers_request_is_rebuilt_from_its_envelope() {
    let world = World::start();
    assert_eq!(ask_as_peer(&world, "alice", &[("x-user-id", "bob"), ("x_user_id", "bob")]).text(), "eu-west");
    let seen = world.eu().upstream().seen().pop().unwrap().headers;
    assert_eq!(seen.get_all("x-user-id").iter().collect::<Vec<_>>(), ["alice"]);
    assert!(!seen.contains_key("x_user_id") && seen.values().all(|value| value != "bob"), "{seen:?}");
}

#[test]
fn a_client_certificate_that_is_only_claimed_reaches_no_app_server() {
    let world = World::start();
    let forged = [
        "client-cert",
        "client-cert-chain",
        "x-forwarded-client-cert",
        "x-forwarded-tls-client-cert",
        "x-client-cert",
        "x-ssl-client-cert",
        "x-ssl-client-verify",
        "x_ssl_client_verify",
        "ssl-client-subject-dn",
        "x-amzn-mtls-clientcert",
        "x-arr-clientcert",
    ]
    .map(|name| (name, "forged"));
    for region in [world.eu(), world.us()] {
        assert_eq!(get(region.http, "/users/alice/orders/1", &forged).text(), "eu-west");
    }
    let seen = world.eu().upstream().seen();
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|seen| seen.headers.values().all(|value| value != "forged")), "{seen:?}");
    world.us().upstream().assert_no_requests();
}

#[test]
fn the_country_of_an_outdated_geoip_database_is_not_sent_to_a_peer() {
    let place_found = |max_age: &str| {
        let rules = RULES.replace("geoip: {", &format!("geoip: {{ {max_age}")).replace(
            "routes:\n",
            "routes:\n  - { name: pages, match: { path: \"/pages/**\" }, data: public, home: [{ region: eu-west }] }\n",
        );
        let rules = NAMES.map(|name| (name, rules.clone())).into();
        let world = World::planned(Plan { rules, ..Plan::default() });
        assert_eq!(get(world.us().http, "/pages/1", &[("x-forwarded-for", "91.64.0.1")]).text(), "eu-west");
        let metrics = world.eu().metrics();
        let count = |result: &str| metrics.contains(&format!("domicile_geoip_lookups_total{{result=\"{result}\"}} 1"));
        (count("found"), count("absent"))
    };
    assert_eq!(place_found(""), (true, false), "the owner takes the country of the sender");
    assert_eq!(place_found("max_age: 1s, "), (false, true));
}

#[test]
fn tracing_fields_of_a_response_do_not_cross_a_border() {
    let response = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-B3-TraceId: 1\r\nRequest-Context: appId=x\r\nX-App: y\r\nTrailer: baggage\r\n\r\n2\r\nok\r\n0\r\nBaggage: user=alice\r\n\r\n";
    let world = World::planned(Plan { upstreams: Box::new(move |_| vec![Recorder::raw(response)]), ..Plan::default() });
    let ask = "GET /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: close\r\n\r\n";
    let home = raw(world.eu().http, ask.as_bytes()).to_lowercase();
    assert!(home.contains("x-b3-traceid: 1") && home.contains("x-app: y"), "{home}");
    let abroad = raw(world.us().http, ask.as_bytes()).to_lowercase();
    assert!(abroad.contains("x-app: y") && abroad.contains("\r\nok\r\n"), "{abroad}");
    for field in ["x-b3-traceid", "request-context", "user=alice"] {
        assert!(!abroad.contains(field), "{field}: {abroad}");
    }
}

#[test]
fn tracing_fields_of_a_tunnels_response_do_not_cross_a_border() {
    let opened =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: other\r\nX-B3-TraceId: 1\r\nX-App: y\r\n\r\n";
    let rules = RULES.replace("name: orders,", "name: orders, upgrades: [other],");
    let world = World::planned(Plan { upstreams: Box::new(move |_| vec![Recorder::raw(opened)]), ..with_rules(&rules) });
    for region in [world.eu(), world.us()] {
        let mut stream = TcpStream::connect(region.http).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let ask = b"GET /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n";
        stream.write_all(ask).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        assert!(head.starts_with("http/1.1 101") && head.contains("x-app: y"), "{head}");
        assert_eq!(head.contains("x-b3-traceid"), region.name == "eu-west", "{head}");
    }
}

#[test]
fn a_user_table_that_was_cut_off_within_its_last_row_is_not_used() {
    let world = World::start();
    let file = world.folder.path().join("users-us-east.csv");
    // Each of these rows parses, and would move chika or forget her.
    for cut in [
        "user,home\nalice,eu-west\nbob,us-east\nchika,us-east",
        "user,home,jurisdiction\nalice,eu-west,\nbob,us-east,\nchika,us-east,",
    ] {
        std::fs::write(&file, cut).unwrap();
        let error = world.us().reload().unwrap_err();
        assert!(error.contains("may have been cut off") && error.contains("the previous user table is kept"), "{error}");
    }
    let answer = get(world.us().http, "/users/chika/orders/1", &[]);
    assert_ne!(answer.text(), "us-east", "chika still lives in ap-northeast");
    world.us().upstream().assert_no_requests();
}
