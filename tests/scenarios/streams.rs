//! Tunnels, streams and gRPC calls are judged like every request, also across regions, and end when the rules change.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use domicile::http::tunnel::websocket_accept;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    NAMES, Plan, RULES, Recorder, TIMEOUT, USERS, Wire, World, assert_closed, eventually, get, http2, pieces, raw, read,
    remember, request, runtime, tls, whole,
};

/// An app server that echoes the bytes of a tunnel.
pub fn echo(wire: Wire) -> Recorder {
    Recorder::with_protocol(
        wire,
        Arc::new(|mut request, seen| {
            Box::pin(async move {
                let is_tunnel = request.headers().contains_key("upgrade") || request.method() == Method::CONNECT;
                let is_http1 = request.version() == http::Version::HTTP_11;
                let key = request.headers().get("sec-websocket-key").cloned();
                let protocol = request.headers().get("upgrade").cloned();
                let label =
                    request.uri().query().and_then(|query| query.strip_prefix("label=")).map(|label| label.parse().unwrap());
                let upgraded = hyper::upgrade::on(&mut request);
                remember(request, &seen).await;
                if !is_tunnel {
                    return Response::new(whole("no tunnel"));
                }
                tokio::spawn(async move {
                    let Ok(upgraded) = upgraded.await else { return };
                    let (mut reader, mut writer) = tokio::io::split(TokioIo::new(upgraded));
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                    let _ = writer.shutdown().await;
                });
                let mut response = Response::new(whole(""));
                if let Some(label) = label {
                    response.headers_mut().insert("domicile-data-class", label);
                }
                if let (true, Some(protocol)) = (is_http1, protocol) {
                    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                    response.headers_mut().insert("connection", "upgrade".parse().unwrap());
                    response.headers_mut().insert("upgrade", protocol);
                    if let Some(key) = key {
                        response.headers_mut().insert("sec-websocket-accept", websocket_accept(key.as_bytes()).parse().unwrap());
                    }
                }
                response
            })
        }),
    )
}

pub fn echoing(wire: Wire) -> Plan {
    Plan { upstreams: Box::new(move |_| vec![echo(wire.clone())]), ..Plan::default() }
}

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// Requests a WebSocket over HTTP/1.1; returns the connection and the response head.
pub fn open_http1(address: SocketAddr, target: &str, fields: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let head = format!(
        "GET {target} HTTP/1.1\r\nHost: app.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{fields}\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let answer = head_of_answer(&mut stream);
    (stream, answer)
}

/// Reads a response head, and no byte after it, and returns it in lower case.
fn head_of_answer(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            break;
        }
        answer.push(byte[0]);
    }
    String::from_utf8_lossy(&answer).to_lowercase()
}

pub fn speak(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).unwrap();
    let mut echoed = vec![0; text.len()];
    stream.read_exact(&mut echoed).unwrap();
    assert_eq!(echoed, text);
}

#[test]
fn a_websocket_opens_at_home_and_from_abroad() {
    for wire in [Wire::Http1, Wire::Http2] {
        let world = World::planned(echoing(wire));
        for region in [world.eu(), world.us()] {
            let (mut stream, answer) = open_http1(region.http, "/users/alice/orders/live", "Sec-WebSocket-Protocol: chat\r\n");
            assert!(answer.starts_with("http/1.1 101 ") && answer.contains("upgrade: websocket"), "{answer}");
            assert!(
                answer.contains(&format!("sec-websocket-accept: {}", websocket_accept(KEY.as_bytes()).to_lowercase())),
                "{answer}"
            );
            speak(&mut stream, b"\x81\x05hello");
            speak(&mut stream, &[7; 100_000]);
            // After the half-close, the other direction stays open until its own end.
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(stream.read(&mut [0; 10]).unwrap(), 0);
        }
        let seen = world.eu().upstream().seen();
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[1].headers["sec-websocket-protocol"], "chat");
        assert_ne!(seen[1].headers.get("sec-websocket-key").map(|key| key.as_bytes()), Some(KEY.as_bytes()));
        world.us().upstream().assert_no_requests();
        world.assert_no_requests(&["ap-northeast"]);
        eventually("the bytes across the border are counted", || world.us().sum_of("domicile_border_bytes_total") >= 100_007.0);
        eventually("the tunnel is settled", || world.us().settlements(&world).len() == 1);
        let (movement, settled) = (world.us().ledger(&world).remove(0), world.us().settlements(&world).remove(0));
        assert_eq!((&movement["what"], &settled["outcome"]), (&"upgrade".into(), &"answered".into()));
        assert_eq!((&settled["request_bytes"], &settled["response_bytes"]), (&100_007.into(), &100_007.into()), "{settled}");
    }
}

#[test]
fn the_label_of_a_tunnel_reaches_the_region_that_carries_it() {
    let press = "  - { name: press, match: { path: \"/press/**\" }, data: public, home: [{ region: eu-west }] }\n";
    let rules = RULES.replace("  - { name: feed,", &format!("{press}  - {{ name: feed,"));
    let rules = NAMES.map(|name| (name, rules.clone())).into();
    let world = World::planned(Plan { rules, ..echoing(Wire::Http1) });
    let (mut stream, answer) = open_http1(world.us().http, "/press/live?label=personal", "X-Forwarded-For: 91.64.0.1\r\n");
    assert!(answer.starts_with("http/1.1 101") && !answer.replace("domicile-request-id", "").contains("domicile-"), "{answer}");
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
    drop(stream);
    let counted = r#"domicile_border_bytes_total{class="public+personal",from="us-east",to="eu-west"} 5"#;
    eventually("us-east counts what it carried under the label", || world.us().metrics().contains(counted));
}

#[test]
fn a_websocket_opens_over_http2() {
    let world = World::planned(echoing(Wire::Http1));
    runtime().block_on(async {
        let mut sender = http2(&world, world.us().https, "localhost").await;
        let mut connect = request(
            Method::CONNECT,
            "https://localhost/users/alice/orders/live",
            "",
            &[("sec-websocket-version", "13")],
            whole(""),
        );
        connect.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
        // A first request makes sure that the server's SETTINGS, which allow extended CONNECT, have arrived.
        sender.send_request(request(Method::GET, "https://localhost/", "", &[], whole(""))).await.unwrap();
        let mut answer = sender.send_request(connect).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let mut tunnel = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
        tunnel.write_all(b"hello").await.unwrap();
        let mut echoed = [0; 5];
        tunnel.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, b"hello");
        let mut other = request(Method::CONNECT, "https://localhost/users/alice/orders/live", "", &[], whole(""));
        other.extensions_mut().insert(hyper::ext::Protocol::from_static("connect-udp"));
        assert_eq!(sender.send_request(other).await.unwrap().status(), StatusCode::NOT_IMPLEMENTED);
    });
    let seen = world.eu().upstream().seen();
    assert_eq!(seen.len(), 1);
    assert!(seen[0].headers.contains_key("sec-websocket-key"), "the upstream gets an HTTP/1.1 upgrade");
}

#[test]
fn an_upgrade_escapes_no_rule() {
    let world = World::planned(echoing(Wire::Http1));
    let (_, answer) = open_http1(world.us().http, "/account/1", "X-User-Id: alice\r\n");
    assert!(answer.starts_with("http/1.1 307"), "us-east must not carry restricted data in a tunnel: {answer}");
    let (_, answer) = open_http1(world.us().http, "/users/nobody/orders/1", "");
    assert!(answer.starts_with("http/1.1 403"), "{answer}");
    // Failover of reads does not apply to tunnels.
    world.eu().upstream().crash();
    let (_, answer) = open_http1(world.eu().http, "/users/bob/orders/1", "");
    assert!(answer.starts_with("http/1.1 101"), "{answer}");
    let (_, answer) = open_http1(world.us().http, "/users/alice/orders/1", "");
    assert!(answer.starts_with("http/1.1 502"), "{answer}");
    world.eu().upstream().assert_no_requests();
}

#[test]
fn nothing_but_a_plain_get_of_http11_becomes_a_tunnel() {
    let world = World::planned(echoing(Wire::Http1));
    let asks = "Host: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let path = "/users/alice/orders/1";
    for (head, status) in [
        (format!("POST {path} HTTP/1.1\r\n{asks}Content-Length: 0\r\n\r\n"), "200"),
        (format!("GET {path} HTTP/1.0\r\n{asks}\r\n"), "200"),
        (format!("GET {path} HTTP/1.1\r\n{asks}Content-Length: 2\r\n\r\nhi"), "200"),
        (format!("GET {path} HTTP/1.1\r\n{}\r\n", asks.replace("Connection: Upgrade\r\n", "")), "200"),
        (format!("GET {path} HTTP/1.1\r\n{}\r\n", asks.replace("websocket\r\n", "h2c\r\n")), "200"),
        (format!("GET {path} HTTP/1.1\r\n{}\r\n", asks.replace("dGhlIHNhbXBsZSBub25jZQ==", "short")), "400"),
        (format!("GET {path} HTTP/1.1\r\n{}\r\n", asks.replace("Version: 13", "Version: 8")), "426"),
        (format!("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\nGET {path} HTTP/1.1\r\nHost: a\r\n\r\n"), "405"),
    ] {
        let mut stream = TcpStream::connect(world.eu().http).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.") && answer[9..].starts_with(status), "{head:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{answer}");
    }
    assert!(world.eu().upstream().seen().iter().all(|seen| !seen.headers.contains_key("upgrade")));
}

#[test]
fn another_websocket_version_is_answered_with_the_supported_one() {
    let world = World::planned(echoing(Wire::Http1));
    let handshake = "Host: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let versions = ["", "Sec-WebSocket-Version: 14\r\n", "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 8\r\n"];
    for version in versions {
        let ask = format!("GET /users/alice/orders/1 HTTP/1.1\r\n{handshake}{version}\r\n");
        let answer = raw(world.eu().http, ask.as_bytes()).to_lowercase();
        assert!(answer.starts_with("http/1.1 426 "), "{version}: {answer}");
        for field in
            ["sec-websocket-version: 13", "upgrade: websocket", "connection: close, upgrade", "request.websocket_version"]
        {
            assert!(answer.contains(field), "{field}: {answer}");
        }
    }
    runtime().block_on(async {
        let mut sender = http2(&world, world.eu().https, "localhost").await;
        sender.send_request(request(Method::GET, "https://localhost/", "", &[], whole(""))).await.unwrap();
        let version = [("sec-websocket-version", "8")];
        let mut ask = request(Method::CONNECT, "https://localhost/users/alice/orders/live", "", &version, whole(""));
        ask.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
        let response = sender.send_request(ask).await.unwrap();
        assert_eq!(response.status(), StatusCode::UPGRADE_REQUIRED);
        assert_eq!(response.headers()["sec-websocket-version"], "13");
    });
    let seen = world.eu().upstream().seen();
    assert!(seen.iter().all(|seen| seen.target == "/"), "{seen:?}");
}

#[test]
fn there_is_no_tunnel_before_the_upstream_agrees() {
    // The upstream responds with 200, so the next bytes are an HTTP request and are judged.
    let plain = |_: &'static str| vec![Recorder::start("plain")];
    let world = World::planned(Plan { upstreams: Box::new(plain), ..Plan::default() });
    let ask = format!(
        "GET /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    );
    let answer =
        raw(world.eu().http, format!("{ask}GET /account%2f1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("HTTP/1.1 400"), "{answer}");
    // The upstream accepts another protocol, or its Sec-WebSocket-Accept does not match the key.
    for answer in [
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: AAAA\r\n\r\n",
    ] {
        let world = World::planned(Plan { upstreams: Box::new(move |_| vec![Recorder::raw(answer)]), ..Plan::default() });
        let (_, answer) = open_http1(world.eu().http, "/users/alice/orders/1", "");
        assert!(answer.starts_with("http/1.1 502"), "{answer}");
    }
}

/// Moves alice to Japan, so that only ap-northeast may process her data.
fn move_alice(world: &World) {
    let moved = USERS.replace("alice,eu-west", "alice,ap-northeast");
    for region in &world.regions {
        std::fs::write(world.folder.path().join(format!("users-{}.csv", region.name)), &moved).unwrap();
        region.reload().unwrap();
    }
}

#[test]
fn a_tunnel_is_cut_when_its_region_is_no_longer_cleared() {
    let world = World::planned(echoing(Wire::Http1));
    let (mut restricted, answer) = open_http1(world.us().http, "/account/live", "X-User-Id: bob\r\n");
    assert!(answer.starts_with("http/1.1 101"), "{answer}");
    let (mut other, answer) = open_http1(world.us().http, "/users/alice/orders/1", "");
    assert!(answer.starts_with("http/1.1 101"), "{answer}");
    speak(&mut restricted, b"before");
    // us-east may no longer process bob's restricted data; nothing changes for alice.
    let moved = USERS.replace("bob,us-east", "bob,eu-west");
    std::fs::write(world.folder.path().join("users-us-east.csv"), moved).unwrap();
    world.us().reload().unwrap();
    let mut rest = Vec::new();
    if let Err(error) = restricted.read_to_end(&mut rest) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "the tunnel must be closed, not only idle");
    }
    assert!(rest.is_empty());
    speak(&mut other, b"still here");
}

#[test]
fn an_upload_is_cut_when_its_region_is_no_longer_cleared() {
    let (began, ended): (Arc<AtomicUsize>, Arc<AtomicUsize>) = Default::default();
    let counts = (Arc::clone(&began), Arc::clone(&ended));
    let world = World::planned(Plan {
        upstreams: Box::new(move |_| {
            let (began, ended) = (Arc::clone(&counts.0), Arc::clone(&counts.1));
            vec![Recorder::with(Arc::new(move |request, _| {
                let (began, ended) = (Arc::clone(&began), Arc::clone(&ended));
                Box::pin(async move {
                    let mut body = request.into_body();
                    while let Some(Ok(_)) = body.frame().await {
                        began.fetch_add(1, Ordering::SeqCst);
                    }
                    ended.fetch_add(1, Ordering::SeqCst);
                    Response::new(whole("stored"))
                })
            }))]
        }),
        ..Plan::default()
    });
    let mut upload = TcpStream::connect(world.us().http).unwrap();
    upload.set_read_timeout(Some(TIMEOUT)).unwrap();
    upload.write_all(b"POST /account/1 HTTP/1.1\r\nHost: a\r\nX-User-Id: bob\r\nContent-Length: 1000\r\n\r\nfirst").unwrap();
    eventually("the app server has the first bytes", || began.load(Ordering::SeqCst) == 1);
    let moved = USERS.replace("bob,us-east", "bob,eu-west");
    std::fs::write(world.folder.path().join("users-us-east.csv"), moved).unwrap();
    world.us().reload().unwrap();
    let mut answer = Vec::new();
    let _ = upload.read_to_end(&mut answer);
    assert!(answer.starts_with(b"HTTP/1.1 451"), "{}", String::from_utf8_lossy(&answer));
    eventually("the app server sees the end", || ended.load(Ordering::SeqCst) == 1);
    assert_eq!(began.load(Ordering::SeqCst), 1, "no byte followed the first ones");
}

#[test]
fn an_upload_that_has_been_answered_is_cut_as_well() {
    let (received, ended): (Arc<AtomicUsize>, Arc<AtomicUsize>) = Default::default();
    let counts = (Arc::clone(&received), Arc::clone(&ended));
    let world = World::planned(Plan {
        upstreams: Box::new(move |_| {
            let (received, ended) = (Arc::clone(&counts.0), Arc::clone(&counts.1));
            let answer_first: crate::support::Handler = Arc::new(move |request, _| {
                let (received, ended) = (Arc::clone(&received), Arc::clone(&ended));
                runtime().spawn(async move {
                    let mut body = request.into_body();
                    while let Some(Ok(_)) = body.frame().await {
                        received.fetch_add(1, Ordering::SeqCst);
                    }
                    ended.fetch_add(1, Ordering::SeqCst);
                });
                Box::pin(async { Response::new(whole("early")) })
            });
            vec![Recorder::with_protocol(Wire::Http2, answer_first)]
        }),
        ..Plan::default()
    });
    let mut upload = runtime().block_on(async {
        let stream = tokio::net::TcpStream::connect(world.us().http).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let request = Request::post("http://a.test/account/1").header("x-user-id", "bob").body(()).unwrap();
        let (answer, mut upload) = sender.ready().await.unwrap().send_request(request, false).unwrap();
        upload.send_data(Bytes::from_static(b"first"), false).unwrap();
        let mut body = answer.await.unwrap().into_body();
        while let Some(data) = body.data().await {
            data.unwrap();
        }
        upload
    });
    eventually("the app server has the first bytes", || received.load(Ordering::SeqCst) == 1);
    let moved = USERS.replace("bob,us-east", "bob,eu-west");
    std::fs::write(world.folder.path().join("users-us-east.csv"), moved).unwrap();
    world.us().reload().unwrap();
    let _ = upload.send_data(Bytes::from_static(b"second"), true);
    eventually("the app server sees the end", || ended.load(Ordering::SeqCst) == 1);
    assert_eq!(received.load(Ordering::SeqCst), 1, "no byte followed the first ones");
}

#[test]
fn a_read_that_waits_at_its_old_home_ends_when_its_user_moves() {
    let silent: crate::support::Handler = Arc::new(|request, seen| {
        Box::pin(async move {
            remember(request, &seen).await;
            std::future::pending().await
        })
    });
    let world = World::planned(Plan { upstreams: only_in_eu(silent), ..Plan::default() });
    let address = world.us().http;
    let waiting = std::thread::spawn(move || get(address, "/users/alice/orders/1", &[]));
    eventually("the old home has the request", || world.eu().upstream().seen().len() == 1);
    move_alice(&world);
    let answer = waiting.join().unwrap();
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (451, "residency.no_longer_cleared"));
    assert_eq!(get(address, "/users/bob/orders/1", &[]).text(), "us-east", "the worker is free for others");
}

/// An event stream that sends what the test sends. Only the first response is endless.
fn endless() -> (tokio::sync::mpsc::UnboundedSender<Frame<Bytes>>, crate::support::Handler) {
    let (sender, body) = pieces();
    let body = std::sync::Mutex::new(Some(body));
    let handler: crate::support::Handler = Arc::new(move |request, seen| {
        let body = body.lock().unwrap().take();
        Box::pin(async move {
            remember(request, &seen).await;
            let mut response = Response::new(body.unwrap_or_else(|| whole("second")));
            response.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
            response
        })
    });
    (sender, handler)
}

/// Upstreams of which the one in eu-west has this handler.
fn only_in_eu(handler: crate::support::Handler) -> Box<dyn Fn(&'static str) -> Vec<Recorder>> {
    Box::new(move |name| if name == "eu-west" { vec![Recorder::with(Arc::clone(&handler))] } else { vec![Recorder::start(name)] })
}

/// Reads until this text has arrived.
fn read_until(stream: &mut TcpStream, text: &str) {
    let mut received = String::new();
    while !received.contains(text) {
        let mut buffer = [0; 1000];
        let size = stream.read(&mut buffer).unwrap();
        assert!(size > 0, "{received}");
        received.push_str(&String::from_utf8_lossy(&buffer[..size]));
    }
}

/// Asserts that the response ends as incomplete, and that the upstream's response ends with it.
fn assert_ends_incomplete(mut stream: TcpStream, sender: &tokio::sync::mpsc::UnboundedSender<Frame<Bytes>>) {
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(!String::from_utf8_lossy(&rest).contains("0\r\n\r\n"), "the response ends as incomplete");
    eventually("the upstream's response is ended as well", || sender.is_closed());
}

#[test]
fn a_download_whose_client_reads_nothing_ends_when_its_region_is_no_longer_cleared() {
    let large: crate::support::Handler = Arc::new(|request, seen| {
        Box::pin(async move {
            remember(request, &seen).await;
            Response::new(whole(vec![0; 16 << 20]))
        })
    });
    let extra = "limits: { body_rate: 0B, idle_timeout: 1h }\n".to_owned();
    let world = World::planned(Plan { upstreams: only_in_eu(large), extra, ..Plan::default() });
    let mut stalled = TcpStream::connect(world.us().http).unwrap();
    stalled.set_read_timeout(Some(TIMEOUT)).unwrap();
    stalled.write_all(b"GET /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(stalled.read(&mut [0; 64]).unwrap() > 0, "the response has begun");
    move_alice(&world);
    let none = format!("domicile_connections{{listener=\"{}\"}} 0", world.us().http);
    eventually("the connection is closed although its client reads nothing", || world.us().metrics().contains(&none));
}

#[test]
fn a_draining_process_ends_what_its_geoip_database_no_longer_proves() {
    let (sender, endless) = endless();
    let mut world =
        World::planned(Plan { upstreams: only_in_eu(endless), extra: "limits: { drain: 1h }\n".into(), ..Plan::default() });
    let mut stream = TcpStream::connect(world.eu().http).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(b"GET /profile/events HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 91.64.0.1\r\n\r\n").unwrap();
    sender.send(Frame::data(Bytes::from_static(b"data: one\n\n"))).unwrap();
    read_until(&mut stream, "data: one");
    // The database becomes too old in a few seconds, while the process drains.
    let database = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("geoip/country.mmdb");
    let age = domicile::geoip::GeoIp::open(&database).unwrap().age(std::time::SystemTime::now());
    let config = std::fs::read_to_string(&world.eu().config).unwrap();
    let aged = config.replace("geoip: { ", &format!("geoip: {{ max_age: {}s, ", age.as_secs() + 4));
    assert_ne!(aged, config);
    std::fs::write(&world.eu().config, aged).unwrap();
    world.eu().reload().unwrap();
    let app = world.regions[0].app.take().unwrap();
    let drained = std::thread::spawn(move || app.shut_down());
    assert_ends_incomplete(stream, &sender);
    drained.join().unwrap();
}

#[test]
fn a_reload_during_a_drain_ends_what_is_no_longer_cleared() {
    let (sender, endless) = endless();
    let extra = "limits: { drain: 1h }\n".to_owned();
    let mut world = World::planned(Plan { upstreams: only_in_eu(endless), extra, ..Plan::default() });
    let mut stream = TcpStream::connect(world.us().http).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(b"GET /users/alice/orders/events HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    sender.send(Frame::data(Bytes::from_static(b"data: one\n\n"))).unwrap();
    read_until(&mut stream, "data: one");
    world.us().app.as_ref().unwrap().drain();
    // A reload that does not affect the stream does not end it.
    world.us().reload().unwrap();
    sender.send(Frame::data(Bytes::from_static(b"data: two\n\n"))).unwrap();
    read_until(&mut stream, "data: two");
    move_alice(&world);
    assert_ends_incomplete(stream, &sender);
    world.regions[1].app.take().unwrap().shut_down();
}

#[test]
fn endless_bodies_are_cut_when_the_rules_change_and_others_go_on() {
    let (sender, endless) = endless();
    let world = World::planned(Plan { upstreams: only_in_eu(endless), ..Plan::default() });
    let mut stream = TcpStream::connect(world.us().http).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(b"GET /users/alice/orders/events HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    sender.send(Frame::data(Bytes::from_static(b"data: one\n\n"))).unwrap();
    read_until(&mut stream, "data: one");
    // A reload that does not affect the stream does not end it.
    world.us().reload().unwrap();
    world.eu().reload().unwrap();
    sender.send(Frame::data(Bytes::from_static(b"data: two\n\n"))).unwrap();
    read_until(&mut stream, "data: two");
    move_alice(&world);
    assert_ends_incomplete(stream, &sender);
}

#[test]
fn a_slow_body_is_cut_and_a_stream_may_be_quiet() {
    let world = World::planned(Plan {
        extra: "limits: { body_rate: 1MiB, body_rate_grace: 100ms }\n".into(),
        upstreams: Box::new(|_| vec![echo(Wire::Http1)]),
        ..Plan::default()
    });
    let (mut tunnel, _) = open_http1(world.eu().http, "/users/alice/orders/1", "");
    let answer = raw(world.eu().http, b"POST /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nsome");
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    speak(&mut tunnel, b"still here");
}

#[test]
fn malformed_responses_of_upstreams_become_502() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 4\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nX: a\nSet-Cookie: b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        "SSH-2.0-OpenSSH\r\n\r\n",
    ] {
        let world = World::planned(Plan { upstreams: Box::new(move |_| vec![Recorder::raw(answer)]), ..Plan::default() });
        for region in [world.eu(), world.us()] {
            let seen = crate::support::post(region.http, "/users/alice/orders/1", &[], "");
            assert_eq!((seen.status, seen.code().as_str()), (StatusCode::BAD_GATEWAY, "upstream.bad_response"), "{answer:?}");
        }
    }
}

#[test]
fn a_second_answer_to_one_request_is_never_delivered() {
    let two = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirstHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    let world = World::planned(Plan { upstreams: Box::new(move |_| vec![Recorder::raw(two)]), ..Plan::default() });
    for _ in 0..20 {
        let answer = get(world.eu().http, "/users/alice/orders/1", &[]);
        assert_eq!(answer.text(), "first");
    }
}

#[test]
fn interim_answers_come_before_the_answer() {
    let early = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\nDomicile-Code: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let world = World::planned(Plan { upstreams: Box::new(move |_| vec![Recorder::raw(early)]), ..Plan::default() });
    let answer = raw(world.eu().http, b"GET /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let (interim, rest) = answer.split_once("\r\n\r\n").unwrap();
    assert!(interim.starts_with("HTTP/1.1 103") && interim.contains("link: </style.css>"), "{answer}");
    assert!(!interim.contains("domicile-code"), "{answer}");
    assert!(rest.starts_with("HTTP/1.1 200") && rest.ends_with("ok"), "{answer}");
    let answer = raw(world.eu().http, b"GET /users/alice/orders/1 HTTP/1.0\r\nHost: a\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"), "HTTP/1.0 gets no 103: {answer}");
}

#[test]
fn grpc_calls_stream_both_ways_and_end_in_trailers() {
    let call: crate::support::Handler = Arc::new(|request: Request<hyper::body::Incoming>, seen| {
        Box::pin(async move {
            remember(request, &seen).await;
            let (sender, body) = pieces();
            sender.send(Frame::data(Bytes::from_static(b"\0\0\0\0\x05hello"))).unwrap();
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            sender.send(Frame::trailers(trailers)).unwrap();
            let mut response = Response::new(body);
            response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            response
        })
    });
    let folder = tempfile::tempdir().unwrap();
    let authority = domicile::demo::certificates::Authority::new("upstreams").unwrap();
    authority.write(&folder.path().join("ca.pem")).unwrap();
    authority.write_site(folder.path(), "app", &["app.internal"]).unwrap();
    let config = Arc::new(server_config(folder.path()));
    for (wire, name) in [(Wire::Http2, ""), (Wire::Tls(config), "app.internal")] {
        let (call, folder) = (Arc::clone(&call), folder.path().to_owned());
        let upstream = move |_: &'static str| {
            let mut recorder = Recorder::with_protocol(wire.clone(), Arc::clone(&call));
            if !name.is_empty() {
                let authority = folder.join("ca.pem");
                recorder.entry =
                    format!("{{ url: {}, tls: {{ authority: \"{}\", name: {name} }} }}", recorder.entry, authority.display());
            }
            vec![recorder]
        };
        let world = World::planned(Plan { upstreams: Box::new(upstream), ..Plan::default() });
        runtime().block_on(async {
            for region in [world.eu(), world.us()] {
                let mut sender = http2(&world, region.https, "localhost").await;
                let fields = [("content-type", "application/grpc"), ("te", "trailers")];
                let call = request(Method::POST, "https://localhost/users/alice/orders/Call", "", &fields, whole("ping"));
                let answer = read(sender.send_request(call).await.unwrap()).await.unwrap();
                assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &b"\0\0\0\0\x05hello"[..]));
                assert_eq!(answer.trailers.unwrap()["grpc-status"], "0");
            }
        });
        let seen = world.eu().upstream().seen();
        assert_eq!((seen.len(), &seen[1].headers["te"], &seen[1].body[..]), (2, &"trailers".parse().unwrap(), &b"ping"[..]));
    }
}

#[test]
fn a_grpc_call_is_refused_in_terms_of_grpc() {
    // The app server of eu-west closes every connection at once.
    let closing = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closing.local_addr().unwrap();
    std::thread::spawn(move || closing.incoming().for_each(drop));
    let upstreams = move |name| {
        let mut recorder = Recorder::start(name);
        if name == "eu-west" {
            recorder.entry = format!("\"h2c://{address}\"");
        }
        vec![recorder]
    };
    let world = World::planned(Plan { upstreams: Box::new(upstreams), ..Plan::default() });
    let call = |region: &crate::support::Region, path: &str, fields: &[(&str, &str)]| {
        runtime().block_on(async {
            let mut sender = http2(&world, region.https, "localhost").await;
            let fields: Vec<_> =
                [("content-type", "application/grpc+proto"), ("te", "trailers")].iter().chain(fields).copied().collect();
            let call = request(Method::POST, &format!("https://localhost{path}"), "", &fields, whole("ping"));
            let answer = read(sender.send_request(call).await.unwrap()).await.unwrap();
            assert_eq!(
                (answer.status, &answer.headers["content-type"]),
                (StatusCode::OK, &"application/grpc+proto".parse().unwrap())
            );
            assert!(answer.body.is_empty() && answer.headers.contains_key("proxy-status"));
            (answer.headers["grpc-status"].to_str().unwrap().to_owned(), answer.code().to_owned())
        })
    };
    let refused = |status: &str, code: &str| (status.to_owned(), code.to_owned());
    assert_eq!(call(world.eu(), "/account/Call", &[]), refused("7", "home.unresolved"));
    // gRPC clients do not follow redirects, so they get a refusal where other clients get a redirect.
    let alice = [("cookie", "uid=alice")];
    assert_eq!(call(world.us(), "/account/Call", &alice), refused("16", "residency.evidence_too_weak"));
    let by_trusted_hop = [("x-user-id", "alice")];
    assert_eq!(call(world.us(), "/account/Call", &by_trusted_hop), refused("7", "residency.carrier_not_cleared"));
    // The owner's refusal has the same form, also when a peer forwards it.
    for region in [world.eu(), world.us()] {
        let (status, code) = call(region, "/users/alice/orders/Call", &[]);
        assert!(status == "14" && code.starts_with("upstream."), "{}: {status} {code}", region.name);
    }
    assert!(world.us().upstream().seen().is_empty());
}

/// Presents its certificate only to clients that send the expected server name (SNI).
#[derive(Debug)]
struct SniResolver {
    name: &'static str,
    certificate: Arc<rustls::sign::CertifiedKey>,
}

impl rustls::server::ResolvesServerCert for SniResolver {
    fn resolve(&self, hello: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        (hello.server_name() == Some(self.name)).then(|| Arc::clone(&self.certificate))
    }
}

/// The TLS configuration of an app server that clients address as `app.internal`.
pub fn server_config(folder: &std::path::Path) -> rustls::ServerConfig {
    use rustls_pki_types::pem::PemObject;
    let chain = rustls_pki_types::CertificateDer::pem_file_iter(folder.join("app.pem")).unwrap().map(Result::unwrap).collect();
    let key = rustls_pki_types::PrivateKeyDer::from_pem_file(folder.join("app.key")).unwrap();
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let key = provider.key_provider.load_private_key(key).unwrap();
    let resolver = SniResolver { name: "app.internal", certificate: Arc::new(rustls::sign::CertifiedKey::new(chain, key)) };
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

#[test]
fn an_upstream_that_does_not_prove_its_name_gets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let authority = domicile::demo::certificates::Authority::new("upstreams").unwrap();
    authority.write(&folder.path().join("ca.pem")).unwrap();
    authority.write_site(folder.path(), "app", &["other.internal"]).unwrap();
    let config = Arc::new(server_config(folder.path()));
    let ca = folder.path().join("ca.pem");
    let upstream = move |_: &'static str| {
        let handler: crate::support::Handler = Arc::new(|request, seen| {
            Box::pin(async move {
                remember(request, &seen).await;
                Response::new(whole("served"))
            })
        });
        let mut recorder = Recorder::with_protocol(Wire::Tls(Arc::clone(&config)), handler);
        recorder.entry = format!("{{ url: {}, tls: {{ authority: \"{}\", name: app.internal }} }}", recorder.entry, ca.display());
        vec![recorder]
    };
    let world = World::planned(Plan { upstreams: Box::new(upstream), ..Plan::default() });
    assert_eq!(get(world.eu().http, "/users/alice/orders/1", &[]).code(), "upstream.unreachable");
    world.eu().upstream().assert_no_requests();
}

#[test]
fn a_connection_reaches_no_host_of_another_certificate() {
    let world = World::prepare(&Plan::default());
    world.authority.write_site(world.folder.path(), "tenant", &["tenant.test"]).unwrap();
    let folder = world.folder.path().display().to_string();
    let text = std::fs::read_to_string(&world.eu().config).unwrap();
    let second = format!("{{ certificate: \"{folder}/tenant.pem\", key: \"{folder}/tenant.key\" }}] }} }}");
    std::fs::write(&world.eu().config, text.replacen("}] } }", &format!("}}, {second}"), 1)).unwrap();
    let mut world = world;
    world.start_region(0).unwrap();
    let ask = |name: &'static str, host: &'static str| {
        let world = &world;
        runtime().block_on(async move {
            let mut stream = tls(world, world.eu().https, name, &[b"http/1.1"]).await;
            let head = format!("GET /users/alice/orders/1 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer).await;
            answer[9..12].to_owned()
        })
    };
    assert_eq!(ask("a.example.com", "b.example.com"), "200", "one certificate for both");
    assert_eq!(ask("tenant.test", "TENANT.test.:443"), "200");
    assert_eq!(ask("tenant.test", "a.example.com"), "421");
    assert_eq!(ask("a.example.com", "tenant.test"), "421");
    assert_eq!(world.eu().upstream().seen().len(), 2);
}

#[test]
fn rules_of_a_route_hold_for_its_upgrades_and_bodies() {
    let rules = RULES.replace("failover: { reads: nearest } }", "failover: { reads: nearest }, upgrades: [echo], body: 20MiB }");
    let world = World::planned(Plan { rules: NAMES.map(|name| (name, rules.clone())).into(), ..echoing(Wire::Http1) });
    let (_, answer) = open_http1(world.eu().http, "/users/alice/orders/1", "");
    assert!(answer.starts_with("http/1.1 200"), "the route does not allow websocket: {answer}");
    for region in [world.eu(), world.us()] {
        let mut stream = TcpStream::connect(region.http).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream
            .write_all(b"GET /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
            .unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
        speak(&mut stream, b"anything");
    }
    let large = Bytes::from(vec![0; 15 << 20]);
    assert_eq!(crate::support::post(world.eu().http, "/users/alice/orders/1", &[], large.clone()).status, StatusCode::OK);
    let answer = crate::support::post(world.eu().http, "/profile/1", &[("x-user-id", "alice")], large);
    assert_eq!(answer.code(), "request.body_too_large");
}

/// Sends CONNECT over HTTP/1.1 and, without waiting, the bytes `behind`; returns the connection and the response head.
fn connect_http1(address: SocketAddr, target: &str, fields: &str, behind: &[u8]) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{fields}\r\n").into_bytes();
    head.extend_from_slice(behind);
    stream.write_all(&head).unwrap();
    let answer = head_of_answer(&mut stream);
    (stream, answer)
}

#[test]
fn connect_opens_a_tunnel_only_where_a_route_allows_it() {
    let rules = RULES.replace(
        "routes:\n",
        "routes:\n  - { name: tunnels, match: { path: /, methods: [CONNECT] }, data: personal, home: [directory, geoip, refuse], upgrades: [connect] }\n",
    );
    for wire in [Wire::Http1, Wire::Http2] {
        let world = World::planned(Plan { rules: NAMES.map(|name| (name, rules.clone())).into(), ..echoing(wire) });
        let who = "X-User-Id: alice\r\nX-Forwarded-For: 127.0.0.9\r\n";
        for region in [world.eu(), world.us()] {
            // Bytes that the client sends before the response belong to the tunnel.
            let (mut stream, answer) = connect_http1(region.http, "db.example.com:5432", who, b"early");
            assert!(answer.starts_with("http/1.1 200 ") && !answer.contains("content-length"), "{answer}");
            let mut early = [0; 5];
            stream.read_exact(&mut early).unwrap();
            assert_eq!(&early, b"early");
            speak(&mut stream, &[7; 100_000]);
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(stream.read(&mut [0; 10]).unwrap(), 0);
            runtime().block_on(async {
                let stream = tokio::net::TcpStream::connect(region.http).await.unwrap();
                let (mut sender, connection) =
                    hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), TokioIo::new(stream))
                        .await
                        .unwrap();
                tokio::spawn(connection);
                let ask = Request::builder().method(Method::CONNECT).uri("db.example.com:5432").header("x-user-id", "alice");
                let mut answer = sender.send_request(ask.body(whole("")).unwrap()).await.unwrap();
                assert_eq!(answer.status(), StatusCode::OK);
                let mut tunnel = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
                tunnel.write_all(b"over HTTP/2").await.unwrap();
                let mut echoed = [0; 11];
                tunnel.read_exact(&mut echoed).await.unwrap();
                assert_eq!(&echoed, b"over HTTP/2");
            });
        }
        let seen = world.eu().upstream().seen();
        assert_eq!(seen.len(), 4);
        assert!(seen.iter().all(|seen| seen.target == "db.example.com:5432"), "{seen:?}");
        assert!(seen.iter().all(|seen| seen.headers.contains_key("x-forwarded-for")));
        let (_, other) = connect_http1(world.eu().http, "db.example.com:5432", "X-User-Id: nobody\r\n", b"");
        assert!(other.starts_with("http/1.1 403"), "a user without a home gets no tunnel: {other}");
        let (_, other) = connect_http1(world.eu().http, "db.example.com", who, b"");
        assert!(other.starts_with("http/1.1 400"), "the port is missing: {other}");
        let refused = raw(world.eu().http, b"GET / HTTP/1.1\r\nHost: db.example.com:5432\r\nConnection: upgrade\r\nUpgrade: connect\r\nX-User-Id: alice\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert!(!refused.contains("101 Switching"), "an upgrade is not a CONNECT: {refused}");
        world.us().upstream().assert_no_requests();
        world.assert_no_requests(&["ap-northeast"]);
    }
    // An upstream that refuses the tunnel may send a response with a body.
    let world = World::planned(Plan {
        rules: NAMES.map(|name| (name, rules.clone())).into(),
        upstreams: Box::new(|_| vec![Recorder::raw("HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 2\r\n\r\nno")]),
        ..Plan::default()
    });
    for region in [world.eu(), world.us()] {
        let (mut stream, answer) = connect_http1(region.http, "db.example.com:5432", "X-User-Id: alice\r\n", b"");
        assert!(answer.starts_with("http/1.1 407"), "{answer}");
        let mut body = [0; 2];
        stream.read_exact(&mut body).unwrap();
        assert_eq!(&body, b"no");
    }
}

#[test]
fn a_tunnel_that_is_quiet_for_too_long_is_closed() {
    let limited = Plan { extra: "limits: { tunnel_idle: 200ms }\n".into(), ..echoing(Wire::Http1) };
    let rules =
        RULES.replace("failover: { reads: nearest } }", "failover: { reads: nearest }, timeouts: { tunnel_idle: 200ms } }");
    let rules = NAMES.into_iter().map(|name| (name, rules.clone())).collect();
    let limited_by_route = Plan { rules, ..echoing(Wire::Http1) };
    for plan in [limited, limited_by_route] {
        let world = World::planned(plan);
        for region in [world.eu(), world.us()] {
            let (mut stream, answer) = open_http1(region.http, "/users/alice/orders/live", "");
            assert!(answer.starts_with("http/1.1 101 "), "{answer}");
            speak(&mut stream, b"hello");
            assert_closed(&mut stream);
        }
    }
}

#[test]
fn a_grpc_call_ends_at_its_deadline_in_the_middle_of_its_answer() {
    // The upstream begins a response and never ends it.
    let (cancelled, cancelled_calls) = (Arc::new(tokio::sync::Notify::new()), Arc::new(std::sync::atomic::AtomicUsize::new(0)));
    let (notify, count) = (Arc::clone(&cancelled), Arc::clone(&cancelled_calls));
    let upstreams = move |_: &'static str| {
        let (notify, count) = (Arc::clone(&notify), Arc::clone(&count));
        let call: crate::support::Handler = Arc::new(move |request: Request<hyper::body::Incoming>, seen| {
            let (notify, count) = (Arc::clone(&notify), Arc::clone(&count));
            Box::pin(async move {
                remember(request, &seen).await;
                let (sender, body) = pieces();
                sender.send(Frame::data(Bytes::from_static(b"\0\0\0\0\x05hello"))).unwrap();
                tokio::spawn(async move {
                    sender.closed().await;
                    count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    notify.notify_one();
                });
                let mut response = Response::new(body);
                response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
                response
            })
        });
        vec![Recorder::with_protocol(Wire::Http2, call)]
    };
    let world = World::planned(Plan { upstreams: Box::new(upstreams), ..Plan::default() });
    runtime().block_on(async {
        for region in [world.eu(), world.us()] {
            let mut sender = http2(&world, region.https, "localhost").await;
            let fields = [("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", "500m")];
            let call = request(Method::POST, "https://localhost/users/alice/orders/Call", "", &fields, whole("ping"));
            let asked = async { read(sender.send_request(call).await.unwrap()).await.unwrap() };
            let answer = tokio::time::timeout(crate::support::TIMEOUT, asked).await.expect("a response in time");
            assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &b"\0\0\0\0\x05hello"[..]), "{}", region.name);
            let trailers = answer.trailers.unwrap();
            assert_eq!(trailers["grpc-status"], "4", "DEADLINE_EXCEEDED");
            assert!(trailers["grpc-message"].to_str().unwrap().ends_with("(proxy.deadline_exceeded)"), "{trailers:?}");
            let notified = tokio::time::timeout(crate::support::TIMEOUT, cancelled.notified()).await;
            notified.expect("the upstream's call is cancelled");
        }
    });
    assert_eq!(cancelled_calls.load(std::sync::atomic::Ordering::SeqCst), 2);
    for region in [world.eu(), world.us()] {
        let late = "domicile_failures_total{code=\"proxy.deadline_exceeded\"} 1";
        eventually("the failure is counted under its code", || region.metrics().contains(late));
    }
}
