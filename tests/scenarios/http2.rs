//! HTTP/2 at the level of frames: malformed requests are refused, floods and rapid resets end the connection, and informational
//! responses are forwarded.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};

use crate::support::{Plan, Recorder, TIMEOUT, World, eventually, get, raw, remember, runtime, whole};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Frame types (RFC 9113 section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

/// A client that sends arbitrary frames.
struct Frames(TcpStream);

impl Frames {
    fn open(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(PREFACE).unwrap();
        let mut frames = Self(stream);
        frames.send(SETTINGS, 0, 0, b"");
        frames
    }

    /// Ignores write errors: if the server has closed the connection, the next read reports it.
    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        let _ = self.0.write_all(&frame);
    }

    fn head(&mut self, stream: u32, flags: u8, fields: &[(&str, &str)]) {
        self.send(HEADERS, END_HEADERS | flags, stream, &literal(fields));
    }

    /// Returns the next frame (type, flags, stream, payload), or `None` at the end of the connection.
    fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).ok()?;
        Some((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
    }

    /// Whether the server ends the connection, with or without GOAWAY.
    fn is_ended(&mut self) -> bool {
        loop {
            let mut head = [0; 9];
            match self.0.read_exact(&mut head) {
                Err(error) => return !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
                Ok(()) if head[3] == GOAWAY => return true,
                Ok(()) => {
                    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                    if self.0.read_exact(&mut vec![0; length]).is_err() {
                        return true;
                    }
                }
            }
        }
    }

    /// Waits for the response on a stream and returns the first byte of its header block, which encodes the status; `None` if the
    /// stream is reset or the connection ends.
    fn status_byte(&mut self, stream: u32) -> Option<u8> {
        loop {
            match self.next()? {
                (HEADERS, _, at, payload) if at == stream => return Some(payload[0]),
                (RST_STREAM, _, at, _) if at == stream => return None,
                (GOAWAY, ..) => return None,
                _ => {}
            }
        }
    }
}

/// Encodes header fields as HPACK literals without indexing (RFC 7541 section 6.2.2).
fn literal(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    let text = |block: &mut Vec<u8>, text: &str| {
        assert!(text.len() < 127);
        block.push(text.len() as u8);
        block.extend(text.as_bytes());
    };
    for (name, value) in fields {
        block.push(0);
        text(&mut block, name);
        text(&mut block, value);
    }
    block
}

const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "a.test"), (":path", "/users/alice/orders/1")];

/// `:status: 200` in HPACK's static table: the first byte of the header block of a 200 response.
const STATUS_200: u8 = 0x88;

#[test]
fn requests_that_http1_cannot_express_reach_no_upstream() {
    let world = World::start();
    let with = |more: &[(&'static str, &'static str)]| GET.into_iter().chain(more.iter().copied()).collect::<Vec<_>>();
    let but = |name: &str, value: &'static str| {
        GET.map(|(known, was)| if known == name { (known, value) } else { (known, was) }).to_vec()
    };
    let without = |name: &str| GET.into_iter().filter(|(known, _)| *known != name).collect::<Vec<_>>();
    let twice = |name: &str| {
        let again = GET.into_iter().find(|(known, _)| *known == name).unwrap();
        GET.into_iter().chain([again]).collect::<Vec<_>>()
    };
    let cases: Vec<(&str, Vec<(&str, &str)>)> = vec![
        ("a line break in a value", with(&[("x", "a\r\nx-forwarded-for: 6.6.6.6")])),
        ("a line feed in a value", with(&[("x", "a\nb")])),
        ("a carriage return in a value", with(&[("x", "a\rb")])),
        ("a NUL in a value", with(&[("x", "a\0b")])),
        ("a line break in a name", with(&[("x\r\ny", "b")])),
        ("a colon in a name", with(&[("x:y", "b")])),
        ("a space in a name", with(&[("x y", "b")])),
        ("an upper case name", with(&[("X-Upper", "b")])),
        ("an empty name", with(&[("", "b")])),
        ("connection", with(&[("connection", "close")])),
        ("keep-alive", with(&[("keep-alive", "1")])),
        ("proxy-connection", with(&[("proxy-connection", "close")])),
        ("transfer-encoding", with(&[("transfer-encoding", "chunked")])),
        ("upgrade", with(&[("upgrade", "websocket")])),
        ("te of more than trailers", with(&[("te", "trailers, gzip")])),
        ("an unknown pseudo-header", with(&[(":x", "y")])),
        ("a status", with(&[(":status", "200")])),
        ("two methods", twice(":method")),
        ("two paths", twice(":path")),
        ("two schemes", twice(":scheme")),
        ("two authorities", twice(":authority")),
        ("a pseudo-header after a field", [&[("x", "y")], &GET[..]].concat()),
        ("no method", without(":method")),
        ("no path", without(":path")),
        ("no scheme", without(":scheme")),
        ("no authority", without(":authority")),
        ("an empty path", but(":path", "")),
        ("a path without a slash", but(":path", "users/alice/orders/1")),
        ("a whole URL as a path", but(":path", "http://b.test/users/alice/orders/1")),
        ("a space in a path", but(":path", "/users/alice/orders/1 HTTP/1.1")),
        ("a line break in a path", but(":path", "/users/alice/orders/1\r\nX: y")),
        ("raw bytes in a path", but(":path", "/users/alice/orders/\u{e4}")),
        ("an asterisk as a path", but(":path", "*")),
        ("a space in a method", but(":method", "GET /x")),
        ("a line break in a method", but(":method", "GET\r\nX")),
        ("a line break in an authority", but(":authority", "a.test\r\nX: y")),
        ("a user in an authority", but(":authority", "u@a.test")),
        ("a path in an authority", but(":authority", "a.test/x")),
        ("a host that differs from the authority", with(&[("host", "b.test")])),
        ("a port that the authority does not have", with(&[("host", "a.test:99")])),
        ("two hosts", with(&[("host", "a.test"), ("host", "a.test")])),
        ("two lengths", with(&[("content-length", "0"), ("content-length", "0")])),
        ("lengths that differ", with(&[("content-length", "0"), ("content-length", "5")])),
        ("a length that is not a number", with(&[("content-length", "+0")])),
        ("a list of lengths", with(&[("content-length", "0, 0")])),
        ("a length without a body", with(&[("content-length", "5")])),
        ("a length with an underscore", with(&[("content_length", "0")])),
        ("CONNECT to a path", [&[(":method", "CONNECT")], &GET[1..]].concat()),
        ("CONNECT", vec![(":method", "CONNECT"), (":authority", "a.test:80")]),
        ("CONNECT with an unknown protocol", [&[(":method", "CONNECT"), (":protocol", "x")], &GET[1..]].concat()),
    ];
    for (it, fields) in cases {
        let mut frames = Frames::open(world.eu().http);
        frames.head(1, END_STREAM, &fields);
        let status = frames.status_byte(1);
        assert_ne!(status, Some(STATUS_200), "{it}");
        assert!(world.eu().upstream().seen().is_empty(), "{it}: {:?}", world.eu().upstream().seen());
    }
    // Valid but unusual requests are served.
    for (it, fields) in [
        ("an ordinary request", GET.to_vec()),
        // A fragment is not part of the target, so it is not forwarded.
        ("a fragment", but(":path", "/users/alice/orders/1#x")),
        ("characters outside ASCII in a query", but(":path", "/users/alice/orders/1?\u{e4}")),
        ("the same host", with(&[("host", "A.test.")])),
        ("a cookie", with(&[("cookie", "a=b"), ("cookie", "c=d")])),
    ] {
        let mut frames = Frames::open(world.eu().http);
        frames.head(1, END_STREAM, &fields);
        assert_eq!(frames.status_byte(1), Some(STATUS_200), "{it}");
    }
    assert_eq!(world.eu().upstream().seen().last().unwrap().headers["cookie"], "a=b; c=d");
}

#[test]
fn a_body_that_is_incomplete_or_of_the_wrong_length_is_not_forwarded_as_complete() {
    let world = World::start();
    let post = |length: &'static str| [&[(":method", "POST"), ("content-length", length)], &GET[1..]].concat();
    let order = |fields: Vec<(&'static str, &'static str)>| {
        let (pseudo, others): (Vec<_>, Vec<_>) = fields.into_iter().partition(|(name, _)| name.starts_with(':'));
        [pseudo, others].concat()
    };
    for (length, body) in [("5", &b"four"[..]), ("5", b"longer"), ("0", b"x")] {
        let mut frames = Frames::open(world.eu().http);
        frames.head(1, 0, &order(post(length)));
        frames.send(DATA, END_STREAM, 1, body);
        assert_ne!(frames.status_byte(1), Some(STATUS_200), "{length} {body:?}");
    }
    // A body that ends in RST_STREAM, with and without Content-Length, is never forwarded as complete.
    for fields in [order(post("10")), [&[(":method", "POST")], &GET[1..]].concat()] {
        for reason in [0_u32, 8] {
            let mut frames = Frames::open(world.eu().http);
            frames.head(1, 0, &fields);
            frames.send(DATA, 0, 1, b"half");
            frames.send(RST_STREAM, 0, 1, &reason.to_be_bytes());
            // The next request on this connection is served. By then the proxy has read the reset.
            frames.head(3, END_STREAM, &GET);
            assert_eq!(frames.status_byte(3), Some(STATUS_200));
        }
    }
    let seen = world.eu().upstream().seen();
    assert!(seen.iter().all(|seen| seen.body.is_empty()), "{seen:?}");
}

#[test]
fn a_preflight_with_a_body_is_not_treated_as_a_preflight() {
    let world = World::start();
    let fields = [
        (":method", "OPTIONS"),
        (":scheme", "http"),
        (":authority", "a.test"),
        (":path", "/account/1"),
        ("origin", "https://app.example.com"),
        ("access-control-request-method", "PUT"),
    ];
    let mut frames = Frames::open(world.eu().http);
    frames.head(1, 0, &fields);
    frames.send(DATA, END_STREAM, 1, b"smuggled");
    assert_ne!(frames.status_byte(1), Some(STATUS_200));
    world.eu().upstream().assert_no_requests();
    frames.head(
        3,
        END_STREAM,
        &fields.map(|(name, value)| (name, if name == ":path" { "/users/alice/orders/1" } else { value })),
    );
    assert_eq!(frames.status_byte(3), Some(STATUS_200), "without a body it is judged as the request that it asks about");
}

#[test]
fn an_answer_to_head_has_no_body_from_an_upstream_the_proxy_or_a_peer() {
    let world = World::start();
    for (region, path) in
        [(world.eu(), "/users/alice/orders/1"), (world.eu(), "/account/1"), (world.us(), "/users/chika/orders/1")]
    {
        let mut frames = Frames::open(region.http);
        frames.head(1, END_STREAM, &[(":method", "HEAD"), (":scheme", "http"), (":authority", "a.test"), (":path", path)]);
        loop {
            match frames.next().expect("a response") {
                (HEADERS, flags, 1, _) => {
                    assert_eq!(flags & END_STREAM, END_STREAM, "{path}: the response has headers only");
                    break;
                }
                (kind @ (RST_STREAM | GOAWAY), ..) => panic!("{path}: frame {kind}"),
                _ => {}
            }
        }
        let answer = raw(region.http, format!("HEAD {path} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").as_bytes());
        assert!(answer.ends_with("\r\n\r\n") && answer.to_lowercase().contains("content-length: "), "{answer}");
    }
}

#[test]
fn rapid_resets_end_the_connection() {
    let upstreams = |_: &'static str| {
        vec![Recorder::with(Arc::new(|request, seen| {
            Box::pin(async move {
                remember(request, &seen).await;
                std::future::pending::<()>().await;
                Response::new(whole("never"))
            })
        }))]
    };
    let extra = "limits: { resets: 20 }\n".to_owned();
    let world = World::planned(Plan { upstreams: Box::new(upstreams), extra, ..Plan::default() });
    let mut frames = Frames::open(world.eu().http);
    for asked in 0..1000 {
        let stream = asked * 2 + 1;
        frames.head(stream, END_STREAM, &GET);
        if asked < 30 {
            // Wait, because h2's own limit counts only streams that are reset before they are accepted.
            eventually("the upstream has the request", || world.eu().upstream().seen().len() > asked as usize || asked >= 21);
        }
        frames.send(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
    }
    assert!(frames.is_ended(), "the connection is not left open");
    assert!(world.eu().upstream().seen().len() <= 120, "{}", world.eu().upstream().seen().len());
}

#[test]
fn interim_answers_cross_regions_and_versions() {
    let early = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\nDomicile-Code: x\r\nBaggage: user=alice\r\n\r\nHTTP/1.1 103 Early Hints\r\nDomicile-Data-Class: restricted\r\nLink: </secret.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let world = World::planned(Plan { upstreams: Box::new(move |_| vec![Recorder::raw(early)]), ..Plan::default() });
    for region in [world.eu(), world.us()] {
        // The 103 response labelled `restricted` is dropped, because its data class would need a ledger line first.
        let answer = raw(region.http, b"GET /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert_eq!(answer.matches("HTTP/1.1 103").count(), 1, "{answer}");
        assert!(
            answer.starts_with("HTTP/1.1 103") && answer.contains("link: </style.css>") && answer.ends_with("ok"),
            "{answer}"
        );
        assert!(!answer.contains("secret"), "{answer}");
        assert!(!answer.replace("domicile-request-id", "").contains("domicile-"), "{answer}");
        assert_eq!(answer.contains("baggage"), region.name == "eu-west", "tracing fields do not cross a border");
        runtime().block_on(async {
            let stream = tokio::net::TcpStream::connect(region.http).await.unwrap();
            let (sender, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            let request = Request::get("http://a.test/users/alice/orders/1").body(()).unwrap();
            let (mut answer, _) = sender.ready().await.unwrap().send_request(request, true).unwrap();
            {
                let interim = std::future::poll_fn(|cx| answer.poll_informational(cx)).await.unwrap().unwrap();
                assert_eq!(interim.status(), 103);
                assert!(interim.headers()["link"].to_str().unwrap().starts_with("</s"));
                assert!(!interim.headers().keys().any(|name| name.as_str().starts_with("domicile-")));
            }
            assert!(std::future::poll_fn(|cx| answer.poll_informational(cx)).await.is_none());
            assert_eq!(answer.await.unwrap().status(), 200);
        });
    }
    assert_eq!(get(world.us().http, "/users/alice/orders/1", &[]).text(), "ok");
}

/// An HTTP/2 upstream that calls `answer` for each stream, with the number of earlier streams.
fn scripted(answer: fn(usize, h2::server::SendResponse<Bytes>)) -> Recorder {
    let mut recorder = Recorder::start("scripted");
    recorder.crash();
    let listener = runtime().block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    recorder.address = listener.local_addr().unwrap();
    recorder.entry = format!("\"h2c://{}\"", recorder.address);
    let count = Arc::new(AtomicUsize::new(0));
    runtime().spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((_, respond))) = connection.accept().await {
                    answer(count.fetch_add(1, Ordering::Relaxed), respond);
                }
            });
        }
    });
    recorder
}

#[test]
fn an_answer_that_is_reset_is_incomplete_whatever_the_error_code() {
    let half = |_, mut respond: h2::server::SendResponse<Bytes>| {
        let mut body = respond.send_response(Response::new(()), false).unwrap();
        body.send_data(Bytes::from_static(b"half"), false).unwrap();
        tokio::spawn(async move {
            // Yield, so that the data is sent before the reset.
            tokio::task::yield_now().await;
            body.send_reset(h2::Reason::NO_ERROR);
        });
    };
    let world = World::planned(Plan { upstreams: Box::new(move |_| vec![scripted(half)]), ..Plan::default() });
    for region in [world.eu(), world.us()] {
        let outcome = runtime().block_on(crate::support::try_send(
            region.http,
            http::Method::POST,
            "/users/alice/orders/1",
            &[],
            whole("a body"),
        ));
        let is_whole = outcome.as_ref().is_ok_and(|answer| answer.status == 200);
        assert!(!is_whole, "{outcome:?}");
    }
}

#[test]
fn a_request_that_is_reset_by_refused_stream_is_sent_again() {
    let refused_once = |count, mut respond: h2::server::SendResponse<Bytes>| {
        if count == 0 {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
        } else {
            respond.send_response(Response::new(()), true).unwrap();
        }
    };
    let world = World::planned(Plan { upstreams: Box::new(move |_| vec![scripted(refused_once)]), ..Plan::default() });
    assert_eq!(crate::support::post(world.eu().http, "/users/alice/orders/1", &[], "").status, 200, "the write is repeated");
}

#[test]
fn an_upstream_that_switches_protocols_over_http2_is_malformed() {
    let switches = |_, mut respond: h2::server::SendResponse<Bytes>| {
        let mut interim = Response::new(());
        *interim.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
        let _ = respond.send_informational(interim);
        let _ = respond.send_response(Response::new(()), true);
    };
    let world = World::planned(Plan { upstreams: Box::new(move |_| vec![scripted(switches)]), ..Plan::default() });
    let answer = get(world.eu().http, "/users/alice/orders/1", &[]);
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (502, "upstream.bad_response"));
}

#[test]
fn over_http2_a_request_that_expects_100_continue_gets_it() {
    let world = World::start();
    for region in [world.eu(), world.us()] {
        let stream = runtime().block_on(async {
            let stream = tokio::net::TcpStream::connect(region.http).await.unwrap();
            let (sender, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            let request = Request::post("http://a.test/users/alice/orders/1").header("expect", "100-continue").body(()).unwrap();
            let (mut answer, mut body) = sender.ready().await.unwrap().send_request(request, false).unwrap();
            let informational = std::future::poll_fn(|cx| answer.poll_informational(cx));
            let informational = tokio::time::timeout(TIMEOUT, informational).await.expect("100 Continue in time");
            assert_eq!(informational.unwrap().unwrap().status(), 100);
            body.send_data(Bytes::from_static(b"held back"), true).unwrap();
            answer.await.unwrap()
        });
        assert_eq!(stream.status(), 200);
    }
    let seen = world.eu().upstream().seen();
    assert!(seen.len() == 2 && seen.iter().all(|seen| seen.body == "held back" && !seen.headers.contains_key("expect")));
}

#[test]
fn over_http1_100_continue_is_sent_only_if_the_body_is_wanted() {
    let world = World::start();
    for region in [world.eu(), world.us()] {
        let mut stream = TcpStream::connect(region.http).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let head =
            |path: &str| format!("POST {path} HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n");
        stream.write_all(head("/users/alice/orders/1").as_bytes()).unwrap();
        // The client sends no byte of the body before 100 Continue.
        let mut informational = [0; 25];
        stream.read_exact(&mut informational).unwrap();
        assert_eq!(&informational, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(b"held back").unwrap();
        let mut answer = [0; 15];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        // A refused request gets no 100 Continue.
        let mut refused = TcpStream::connect(region.http).unwrap();
        refused.set_read_timeout(Some(TIMEOUT)).unwrap();
        refused.write_all(head("/account/1").as_bytes()).unwrap();
        let mut answer = String::new();
        let _ = refused.read_to_string(&mut answer);
        assert!(answer.starts_with("HTTP/1.1 403") && !answer.contains("100 Continue"), "{answer}");
    }
    let seen = world.eu().upstream().seen();
    assert!(seen.len() == 2 && seen.iter().all(|seen| seen.body == "held back" && !seen.headers.contains_key("expect")));
}

#[test]
fn floods_end_their_own_connection_and_no_other() {
    let world = World::planned(Plan { extra: "limits: { resets: 10 }\n".into(), ..Plan::default() });
    let post = [(":method", "POST"), (":scheme", "http"), (":authority", "a.test"), (":path", "/users/alice/orders/1")];
    type Flood<'a> = (&'a str, Box<dyn Fn(&mut Frames) + 'a>);
    let floods: Vec<Flood<'_>> = vec![
        (
            "CONTINUATION frames without end",
            Box::new(|frames| {
                frames.send(HEADERS, END_STREAM, 1, &literal(&GET));
                (0..5000).for_each(|_| frames.send(9, 0, 1, &literal(&[("x", &"y".repeat(100))])));
            }),
        ),
        (
            "streams that the server has to reset (CVE-2025-8671)",
            Box::new(|frames| {
                for stream in (1..4001).step_by(2) {
                    frames.head(stream, 0, &post);
                    // A WINDOW_UPDATE of zero is a stream error (RFC 9113 section 6.9).
                    frames.send(8, 0, stream, &0_u32.to_be_bytes());
                }
            }),
        ),
        (
            "empty DATA frames",
            Box::new(|frames| {
                frames.head(1, 0, &post);
                (0..200_000).for_each(|_| frames.send(DATA, 0, 1, b""));
            }),
        ),
    ];
    for (it, flood) in &floods {
        let mut frames = Frames::open(world.eu().http);
        flood(&mut frames);
        assert!(frames.is_ended(), "{it}");
        let mut ordinary = Frames::open(world.eu().http);
        ordinary.head(1, END_STREAM, &GET);
        assert_eq!(ordinary.status_byte(1), Some(STATUS_200), "{it}");
    }
}

#[test]
fn a_flood_of_control_frames_ends_its_connection_and_holds_up_nobody_else() {
    let world = World::start();
    for (it, kind, payload) in [("SETTINGS", SETTINGS, &b""[..]), ("PING", 6, b"12345678")] {
        let mut frames = Frames::open(world.eu().http);
        // An ordinary client may send this many.
        (0..100).for_each(|_| frames.send(kind, 0, 0, payload));
        frames.head(1, END_STREAM, &GET);
        assert_eq!(frames.status_byte(1), Some(STATUS_200), "{it}");
        // Read all responses, so that the flood ends because of the limit, and not because of backpressure.
        let mut answers = frames.0.try_clone().unwrap();
        let reader = std::thread::spawn(move || std::io::copy(&mut answers, &mut std::io::sink()));
        let mut flood = Vec::new();
        for _ in 0..1000 {
            flood.extend([0, 0, payload.len() as u8, kind, 0, 0, 0, 0, 0]);
            flood.extend(payload);
        }
        let written = (0..100_000).take_while(|_| frames.0.write_all(&flood).is_ok()).count();
        assert!(written < 100_000, "{it}: the connection must end");
        drop(reader.join());
        let mut ordinary = Frames::open(world.eu().http);
        ordinary.head(1, END_STREAM, &GET);
        assert_eq!(ordinary.status_byte(1), Some(STATUS_200), "{it}");
    }
}

/// Reads one request with its body on the first connection, then sends GOAWAY with last stream 0: it did not process the request.
/// Forwards all later connections to `behind`.
fn refuses_once(behind: SocketAddr, received: Arc<AtomicUsize>) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; PREFACE.len()]).unwrap();
        let mut frames = Frames(stream);
        // SETTINGS_INITIAL_WINDOW_SIZE is 1 MiB; the connection window grows by 1 MiB.
        frames.send(SETTINGS, 0, 0, &[0, 4, 0, 0x10, 0, 0]);
        frames.send(WINDOW_UPDATE, 0, 0, &[0, 0x10, 0, 0]);
        while let Some((kind, flags, _, payload)) = frames.next() {
            if kind == DATA {
                received.fetch_add(payload.len(), Ordering::Relaxed);
            }
            if kind == DATA && flags & END_STREAM != 0 {
                // Last stream 0, NO_ERROR.
                frames.send(GOAWAY, 0, 0, &[0; 8]);
            }
        }
        for stream in listener.incoming() {
            let (mut near, mut far) = (stream.unwrap(), TcpStream::connect(behind).unwrap());
            let (mut from, mut to) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            std::thread::spawn(move || std::io::copy(&mut far, &mut near));
        }
    });
    address
}

#[test]
fn an_upload_that_an_upstream_did_not_process_is_sent_again_if_it_is_in_the_replay_buffer() {
    for (size, is_buffered) in [(50_000, true), (200_000, false)] {
        let received = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&received);
        let upstream = move |name| {
            let handler = Arc::new(move |request, seen: Arc<std::sync::Mutex<Vec<_>>>| -> crate::support::Reply {
                Box::pin(async move {
                    remember(request, &seen).await;
                    Response::new(whole("received"))
                })
            });
            let mut recorder = Recorder::with_protocol(crate::support::Wire::Http2, handler);
            if name == "eu-west" {
                recorder.entry = format!("\"h2c://{}\"", refuses_once(recorder.address, Arc::clone(&counted)));
            }
            vec![recorder]
        };
        let world = World::planned(Plan { upstreams: Box::new(upstream), ..Plan::default() });
        let body: String = "0123456789".chars().cycle().take(size).collect();
        let answer = crate::support::send(world.us().http, http::Method::POST, "/users/alice/orders/1", &[], whole(body.clone()));
        let seen = world.eu().upstream().seen();
        assert_eq!(received.load(Ordering::Relaxed), size, "the first connection received the whole body");
        if is_buffered {
            assert_eq!((answer.text(), seen.len(), &seen[0].body[..]), ("received", 1, body.as_bytes()));
        } else {
            // The body exceeds the replay buffer, so the write is not repeated.
            assert_eq!((answer.code().as_str(), seen.len()), ("upstream.bad_response", 0));
        }
    }
}

#[test]
fn a_head_that_arrives_too_slowly_ends_the_connection_even_with_a_request_in_flight() {
    // The upstream never responds, so a stream stays in flight.
    let upstreams = |_| {
        vec![Recorder::with(Arc::new(|request, seen| {
            Box::pin(async move {
                remember(request, &seen).await;
                std::future::pending().await
            })
        }))]
    };
    let extra = "limits: { header_timeout: 200ms }\n".to_owned();
    let world = World::planned(Plan { upstreams: Box::new(upstreams), extra, ..Plan::default() });
    let head = literal(&GET);
    // HEADERS without END_HEADERS, an incomplete payload, and an incomplete frame header.
    for (flags, kept) in [(0, head.len()), (END_HEADERS, head.len() - 1), (END_HEADERS, 0)] {
        let mut frame = (head.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([HEADERS, flags, 0, 0, 0, 3]);
        frame.extend(&head);
        let unfinished = if kept == 0 { 5 } else { 9 + kept };
        let mut frames = Frames::open(world.eu().http);
        frames.head(1, END_STREAM, &GET);
        frames.0.write_all(&frame[..unfinished]).unwrap();
        assert!(frames.is_ended(), "{unfinished} bytes of {}", frame.len());
    }
}

#[test]
fn limits_on_heads_and_streams_hold_over_http2() {
    let answers = |_| {
        vec![Recorder::with(Arc::new(|request: Request<hyper::body::Incoming>, seen| {
            Box::pin(async move {
                let waits = request.uri().path().ends_with("/wait");
                remember(request, &seen).await;
                if waits { std::future::pending().await } else { Response::new(whole("ok")) }
            })
        }))]
    };
    let extra = "limits: { streams: 4, headers: 20, header_bytes: 8KiB, target_bytes: 100 }\n".to_owned();
    let world = World::planned(Plan { upstreams: Box::new(answers), extra, ..Plan::default() });
    let ask = |fields: &[(&str, &str)]| {
        let mut frames = Frames::open(world.eu().http);
        frames.head(1, END_STREAM, fields);
        frames.status_byte(1)
    };
    // HPACK encodes status 200 as one indexed byte, and a status outside the static table as text after the name's index.
    let ok = Some(0x88);
    assert_eq!(ask(&GET), ok);
    let many: Vec<_> = GET.iter().copied().chain(std::iter::repeat_n(("x-a", "b"), 21)).collect();
    let large: Vec<_> = GET.iter().copied().chain(std::iter::repeat_n(("x-a", LONG), 80)).collect();
    let long = format!("/users/alice/orders/{}", "x".repeat(100));
    let far: Vec<_> = GET.iter().map(|(name, value)| (*name, if *name == ":path" { &*long } else { *value })).collect();
    let before = world.eu().upstream().seen().len();
    for (what, fields) in [("too many fields", many), ("too many bytes", large), ("too long a target", far)] {
        assert_ne!(ask(&fields), ok, "{what}");
    }
    assert_eq!(world.eu().upstream().seen().len(), before);
    // Opens one stream more than the limit; no stream gets a response.
    let wait: Vec<_> =
        GET.iter().map(|(name, value)| (*name, if *name == ":path" { "/users/alice/orders/wait" } else { *value })).collect();
    let mut frames = Frames::open(world.eu().http);
    for index in 0..5 {
        frames.head(index * 2 + 1, END_STREAM, &wait);
    }
    let refused = loop {
        match frames.next().expect("the connection stays open") {
            (RST_STREAM, _, stream, reason) => break (stream, reason),
            (GOAWAY, ..) => panic!("the connection is closed"),
            _ => {}
        }
    };
    assert_eq!(refused, (9, 7_u32.to_be_bytes().to_vec()), "REFUSED_STREAM, so the client may retry");
    eventually("four requests reach the upstream", || world.eu().upstream().seen().len() == before + 4);
}

/// A value of 120 bytes; [`literal`] encodes at most 126.
const LONG: &str =
    "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890";

#[test]
fn an_answer_that_is_read_below_the_minimum_rate_is_reset() {
    let upstreams = |_| {
        vec![Recorder::with(Arc::new(|request, seen| {
            Box::pin(async move {
                remember(request, &seen).await;
                Response::new(whole(vec![b'x'; 1 << 20]))
            })
        }))]
    };
    let extra = "limits: { body_rate: 100MiB, body_rate_grace: 200ms }\n".to_owned();
    let world = World::planned(Plan { upstreams: Box::new(upstreams), extra, ..Plan::default() });
    for region in [world.eu(), world.us()] {
        let mut frames = Frames::open(region.http);
        // The initial stream window is zero, and the client opens it one byte at a time.
        frames.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
        frames.head(1, END_STREAM, &GET);
        let mut received = 0;
        let is_reset = loop {
            match frames.next() {
                Some((RST_STREAM, _, 1, _)) => break true,
                Some((HEADERS, ..)) => frames.send(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes()),
                Some((DATA, flags, _, payload)) => {
                    received += payload.len();
                    assert!(flags & END_STREAM == 0, "the whole response was read");
                    frames.send(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes());
                }
                Some(_) => {}
                None => break false,
            }
        };
        assert!(is_reset && received < 1 << 20, "{received} bytes received at {}", region.name);
        // The connection stays open and serves other streams.
        frames.send(SETTINGS, 0, 0, &[0, 4, 0, 0x20, 0, 0]);
        frames.head(3, END_STREAM, &GET);
        assert_eq!(frames.status_byte(3), Some(STATUS_200));
    }
}
