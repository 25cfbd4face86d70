//! Malformed and abusive requests: refused or cut off, and never forwarded to an upstream.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use http::StatusCode;

use crate::support::{NAMES, Plan, RULES, Recorder, TIMEOUT, World, get, post, raw};

#[test]
fn ambiguous_requests_are_answered_400_and_reach_nobody() {
    let world = World::start();
    for (fields, code) in [
        ("Host: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "length"),
        ("Host: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "length"),
        ("Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "length"),
        ("Host: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", "length"),
        ("Host: a\r\nContent_Length: 5\r\n\r\nhello", "length"),
        ("Host: a\r\nHost: b\r\n\r\n", "host"),
        ("\r\n", "host"),
        ("Host: a b\r\n\r\n", "host"),
        ("Host: u@a\r\n\r\n", "host"),
        ("Host: a\r\nX: a\0b\r\n\r\n", "header"),
        ("Host: a\r\nX : y\r\n\r\n", "header"),
        ("Host: a\r\n X: folded\r\n\r\n", "header"),
        ("Host: a\n\n", "line"),
    ] {
        let answer = raw(world.eu().http, format!("POST /users/alice/orders/1 HTTP/1.1\r\n{fields}").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 400 "), "{fields:?}: {answer}");
        assert!(answer.contains(&format!("\"code\":\"request.malformed_{code}\"")), "{fields:?}: {answer}");
        assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "one response, then the connection closes: {answer}");
    }
    for (line, code) in [("GET  / HTTP/1.1", "line"), ("GET / HTTP/3.0", "line"), ("GET x HTTP/1.1", "target")] {
        let answer = raw(world.eu().http, format!("{line}\r\nHost: a\r\n\r\n").as_bytes());
        assert!(answer.contains(&format!("\"code\":\"request.malformed_{code}\"")), "{line}: {answer}");
    }
    world.eu().upstream().assert_no_requests();
}

#[test]
fn paths_that_two_servers_read_differently_are_answered_400() {
    let world = World::start();
    for path in [
        "/account%2f1",
        "/feed/..%2faccount",
        "/feed/%2e%2e%5caccount",
        "/feed/;x/../account",
        "/feed/%00",
        "/%252e%252e/account",
        "/..%c0%af",
    ] {
        let answer = get(world.eu().http, path, &[("x-user-id", "alice")]);
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::BAD_REQUEST, "request.malformed_path"), "{path}");
    }
    world.eu().upstream().assert_no_requests();
    // A path with only one interpretation is judged and forwarded in its canonical form.
    let answer =
        raw(world.eu().http, b"GET /feed/%2e%2e/account/1 HTTP/1.1\r\nHost: a\r\nX-User-Id: alice\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(world.eu().upstream().seen()[0].target, "/account/1");
}

#[test]
fn headers_of_an_untrusted_client_name_no_user_and_no_address() {
    let rules = RULES.replace("trust: [127.0.0.0/8]", "trust: []");
    let world = World::planned(Plan { rules: NAMES.map(|name| (name, rules.clone())).into(), ..Plan::default() });
    let forged =
        [("x-user-id", "alice"), ("x-forwarded-for", "91.64.0.1"), ("forwarded", "for=91.64.0.1"), ("x-real-ip", "91.64.0.1")];
    assert_eq!(get(world.eu().http, "/account/1", &forged).code(), "home.unresolved");
    world.eu().upstream().assert_no_requests();
    assert_eq!(get(world.eu().http, "/users/alice/orders/1", &forged).status, StatusCode::OK);
    let seen = &world.eu().upstream().seen()[0].headers;
    assert!(!seen.contains_key("x-user-id") && !seen.contains_key("x-real-ip"), "{seen:?}");
    assert_eq!(
        (&seen["x-forwarded-for"], &seen["forwarded"]),
        (&"127.0.0.1".parse().unwrap(), &"for=127.0.0.1;host=\"app.example.com\";proto=http".parse().unwrap())
    );
}

#[test]
fn a_malformed_pipelined_request_is_answered_in_order_and_ends_the_connection() {
    let world = World::start();
    let good = "GET /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\n\r\n";
    let answer = raw(world.eu().http, format!("{good}{good}GET /third HTTP/1.1\r\n\r\n{good}").as_bytes());
    assert_eq!((answer.matches("HTTP/1.1 200").count(), answer.matches("HTTP/1.1 400").count()), (2, 1), "{answer}");
    assert_eq!(world.eu().upstream().seen().len(), 2);
}

#[test]
fn each_limit_has_its_own_status() {
    let world = World::planned(Plan {
        extra: "limits: { header_bytes: 8KiB, target_bytes: 1KiB, body: 1KiB }\n".into(),
        ..Plan::default()
    });
    let long = "x".repeat(9000);
    let status = |request: String| raw(world.eu().http, request.as_bytes()).lines().next().unwrap_or_default().to_owned();
    assert!(status(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n")).contains("431"));
    assert!(status(format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", &long[..2000])).contains("414"));
    assert!(status("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n".into()).contains("405"));
    assert_eq!(post(world.eu().http, "/users/alice/orders/1", &[], long.clone()).code(), "request.body_too_large");
    let chunked = format!(
        "POST /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2000\r\n{}",
        "x".repeat(0x2000)
    );
    assert!(status(chunked).contains("413"), "a body of unknown length is cut at the limit");
    world.eu().upstream().assert_no_requests();
}

#[test]
fn a_client_that_drips_its_head_is_cut() {
    let world =
        World::planned(Plan { extra: "limits: { header_timeout: 300ms, keep_alive: 300ms }\n".into(), ..Plan::default() });
    let mut silent = TcpStream::connect(world.eu().http).unwrap();
    silent.set_read_timeout(Some(TIMEOUT)).unwrap();
    assert_eq!(silent.read(&mut [0; 16]).unwrap(), 0, "a client that sends nothing gets no response");
    let mut slow = TcpStream::connect(world.eu().http).unwrap();
    slow.set_read_timeout(Some(TIMEOUT)).unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nHost:").unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    let mut idle = TcpStream::connect(world.eu().http).unwrap();
    idle.set_read_timeout(Some(TIMEOUT)).unwrap();
    idle.write_all(b"GET /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut answer = String::new();
    idle.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.matches("HTTP/1.1").count() == 1,
        "an idle connection is closed without another response: {answer}"
    );
}

#[test]
fn a_client_that_stops_reading_is_cut() {
    let large = |_: &'static str| {
        let body = bytes::Bytes::from(vec![0; 64 << 20]);
        vec![Recorder::with(std::sync::Arc::new(move |_, _| {
            let body = body.clone();
            Box::pin(async move { http::Response::new(crate::support::whole(body)) })
        }))]
    };
    let world =
        World::planned(Plan { upstreams: Box::new(large), extra: "limits: { idle_timeout: 300ms }\n".into(), ..Plan::default() });
    let mut greedy = TcpStream::connect(world.eu().http).unwrap();
    greedy.write_all(b"GET /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    greedy.set_read_timeout(Some(TIMEOUT)).unwrap();
    assert!(greedy.read(&mut [0; 64]).unwrap() > 0, "the response has begun");
    let none = format!("domicile_connections{{listener=\"{}\"}} 0", world.eu().http);
    crate::support::eventually("the connection is closed", || world.eu().metrics().contains(&none));
}

#[test]
fn an_idle_http2_connection_gets_goaway() {
    let world = World::planned(Plan { extra: "limits: { keep_alive: 100ms }\n".into(), ..Plan::default() });
    crate::support::runtime().block_on(async {
        let mut sender = crate::support::http2(&world, world.eu().https, "localhost").await;
        let target = "https://localhost/users/alice/orders/1";
        for _ in 0..3 {
            let request = crate::support::request(http::Method::GET, target, "", &[], crate::support::whole(""));
            assert_eq!(sender.send_request(request).await.unwrap().status(), StatusCode::OK);
        }
        // hyper reports a received GOAWAY through `ready` and `is_closed`.
        let gone = async {
            while sender.ready().await.is_ok() && !sender.is_closed() {
                tokio::task::yield_now().await
            }
        };
        tokio::time::timeout(TIMEOUT, gone).await.expect("an idle connection is closed");
    });
}

#[test]
fn connections_from_one_address_are_limited_and_others_are_not() {
    let world = World::planned(Plan { extra: "limits: { connections_per_address: 3 }\n".into(), ..Plan::default() });
    let mut held: Vec<_> = (0..3).map(|_| TcpStream::connect(world.eu().http).unwrap()).collect();
    for stream in &mut held {
        stream.write_all(b"GET /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        assert!(stream.read(&mut [0; 64]).unwrap() > 0);
    }
    let mut fourth = TcpStream::connect(world.eu().http).unwrap();
    fourth.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert!(!matches!(fourth.read(&mut [0; 16]), Ok(1..)), "the fourth connection gets no response");
    let other = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    other.bind(&"127.0.0.2:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    other.connect(&world.eu().http.into()).unwrap();
    let mut other: TcpStream = other.into();
    other.set_read_timeout(Some(TIMEOUT)).unwrap();
    other.write_all(b"GET /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    other.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(held);
    crate::support::eventually("closed connections are no longer counted", || {
        let mut again = TcpStream::connect(world.eu().http).unwrap();
        again.set_read_timeout(Some(TIMEOUT)).unwrap();
        let _ = again.write_all(b"GET /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let mut answer = String::new();
        let _ = again.read_to_string(&mut answer);
        answer.starts_with("HTTP/1.1 200")
    });
}
