use std::io;
use std::rc::Rc;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::*;
use crate::model::outcome::Code;

fn limits() -> RequestGateLimits {
    let timeout = Duration::from_secs(3600);
    RequestGateLimits { bytes: 4096, fields: 20, target_bytes: 200, timeout, keep_alive: timeout, write_stall: timeout }
}

/// Returns the bytes that hyper would read if a client sent `sent` in steps of `step` bytes, or the kind of the error.
fn through(sent: &[u8], step: usize) -> Result<String, io::ErrorKind> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(step.max(1));
        let sent = sent.to_vec();
        let mut gate = RequestGate::new(server, (Instant::now(), BytesMut::new()), limits(), Rc::default());
        let write = async {
            let _ = client.write_all(&sent).await;
            drop(client);
        };
        // The gate is dropped when it has ended, so that a writer with unsent bytes does not block.
        let read = async move {
            let mut out = Vec::new();
            gate.read_to_end(&mut out).await.map(|_| out)
        };
        let ((), out) = tokio::join!(write, read);
        out.map(|out| String::from_utf8_lossy(&out).into_owned()).map_err(|error| error.kind())
    })
}

fn assert_refused(sent: &str, code: Code) {
    for step in [1, 7, 5000] {
        let out = through(sent.as_bytes(), step).unwrap();
        assert!(out.starts_with("GET / HTTP/1.1\r\nhost: fault\r\n"), "{sent:?} passed as {out:?}");
        assert!(out.contains(code.as_str()), "{sent:?} gave {out:?}");
    }
}

fn assert_passes(sent: &str) {
    for step in [1, 7, 5000] {
        assert_eq!(through(sent.as_bytes(), step).as_deref(), Ok(sent));
    }
}

#[test]
fn unambiguous_requests_pass_unchanged() {
    assert_passes("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_passes("GET / HTTP/1.0\r\n\r\n");
    assert_passes("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_passes(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    assert_passes("\r\nGET / HTTP/1.1\r\nHost: a\r\nX-Latin: \u{e4}\r\n\r\n");
}

#[test]
fn every_ambiguous_framing_is_refused() {
    let with = |fields: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\nxxxxx");
    for fields in [
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: , chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding:",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5, 5",
        "Content-Length: +5",
        "Content-Length: 0x5",
        "Content-Length:",
        "Content-Length: 99999999999999999999",
        "Content_Length: 5",
        "Transfer_Encoding: chunked",
        "Content-Length : 5",
        "X: a\r\n b: folded",
        "X: a\0b",
        "X: a\rb",
        ": empty",
        "Host: b",
    ] {
        assert_refused(&with(fields), Code::RequestMalformed);
    }
    assert_refused("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Code::RequestMalformed);
    assert_refused("GET / HTTP/1.1\r\n\r\n", Code::RequestMalformed);
    assert_refused("GET / HTTP/1.1\nHost: a\n\n", Code::RequestMalformed);
    assert_refused("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", Code::RequestMalformed);
    assert_refused("GET / HTTP/2.0\r\nHost: a\r\n\r\n", Code::RequestMalformed);
    assert_refused("GET /\r\nHost: a\r\n\r\n", Code::RequestMalformed);
    assert_refused("\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Code::RequestMalformed);
}

#[test]
fn oversized_heads_are_refused_with_their_own_codes() {
    let long = "a".repeat(5000);
    assert_refused(&format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"), Code::HeadTooLarge);
    assert_refused(&format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", &long[..300]), Code::TargetTooLong);
    assert_refused(&format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(30)), Code::HeadTooLarge);
}

#[test]
fn a_malformed_chunk_breaks_the_connection() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in [
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX",
        "0x5\r\n",
        "-1\r\n",
        " 5\r\n",
        "5 \r\n",
        "fffffffffffffffff\r\n",
        "5;a\x01\r\nhello",
        "0\r\nX : y\r\n\r\n",
        "\r\n",
    ] {
        for step in [1, 5000] {
            assert_eq!(through(format!("{head}{body}").as_bytes(), step), Err(io::ErrorKind::InvalidData), "{body:?}");
        }
    }
}

#[test]
fn a_refused_head_waits_behind_the_requests_before_it() {
    let good = "GET /first HTTP/1.1\r\nHost: a\r\n\r\n";
    let out = through(format!("{good}GET / HTTP/1.1\r\n\r\n").as_bytes(), 5000).unwrap();
    assert!(out.starts_with(good) && out.contains(FAULT_HEADER), "{out:?}");
}

#[test]
fn a_busy_connection_outlives_its_keep_alive_and_an_idle_one_does_not() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(4096);
        let limits = RequestGateLimits { keep_alive: Duration::from_secs(60), ..limits() };
        let connection_state = Rc::new(ConnectionState::default());
        let mut gate = RequestGate::new(server, (Instant::now(), BytesMut::new()), limits, Rc::clone(&connection_state));
        let mut space = [0; 256];
        for _ in 0..5 {
            client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            assert!(gate.read(&mut space).await.unwrap() > 0);
            drop(ExchangeInFlight::count(&connection_state));
            let waited = tokio::time::timeout(Duration::from_secs(50), gate.read(&mut space)).await;
            assert!(waited.is_err(), "the connection stays open after 50 of 60 seconds");
        }
        let started = Instant::now();
        assert_eq!(gate.read(&mut space).await.unwrap(), 0);
        assert_eq!(started.elapsed().as_secs(), 10, "the connection closes after 60 seconds: 50 before, 10 here");
    });
}

/// Returns the bytes that hyper would read if an upstream sent `sent` after a request of the kind `asked`.
fn answer_through(sent: &[u8], asked: RequestKind, step: usize) -> Result<String, io::ErrorKind> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let (mut upstream, end) = tokio::io::duplex(step.max(1));
        let (sent, link) = (sent.to_vec(), Rc::new(ExchangeState::default()));
        let mut gate = ResponseGate::new(end, Rc::clone(&link), Duration::from_secs(3600));
        link.ask(asked);
        let write = async {
            let _ = upstream.write_all(&sent).await;
            drop(upstream);
        };
        let read = async move {
            let mut out = Vec::new();
            let ended = gate.read_to_end(&mut out).await;
            assert_eq!(ended.is_err(), link.is_faulty());
            ended.map(|_| out)
        };
        let ((), out) = tokio::join!(write, read);
        out.map(|out| String::from_utf8_lossy(&out).into_owned()).map_err(|error| error.kind())
    })
}

#[test]
fn unambiguous_answers_pass_unchanged() {
    for (asked, sent) in [
        (RequestKind::Other, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        (RequestKind::Other, "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"),
        (RequestKind::Other, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n"),
        (RequestKind::Other, "HTTP/1.0 200 OK\r\n\r\neverything until the end"),
        (RequestKind::Other, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"),
        (RequestKind::Head, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        (RequestKind::Head, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (RequestKind::Other, "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
        (RequestKind::Upgrade, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x01\x02anything"),
        (RequestKind::Connect, "HTTP/1.1 200 OK\r\n\r\nanything"),
    ] {
        for step in [1, 7, 5000] {
            assert_eq!(answer_through(sent.as_bytes(), asked, step).as_deref(), Ok(sent));
        }
    }
}

#[test]
fn responses_with_ambiguous_framing_are_refused() {
    for (asked, sent) in [
        (RequestKind::Other, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (RequestKind::Other, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
        (RequestKind::Other, "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello"),
        (RequestKind::Other, "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello"),
        (RequestKind::Other, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        (RequestKind::Other, "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (RequestKind::Other, "HTTP/1.1 200 OK\r\nX: a\r\n folded\r\nContent-Length: 0\r\n\r\n"),
        (RequestKind::Other, "HTTP/1.1 200 OK\nContent-Length: 0\n\n"),
        (RequestKind::Other, "HTTP/1.1 2OO OK\r\nContent-Length: 0\r\n\r\n"),
        (RequestKind::Other, "HTTP/1.1 099 No\r\nContent-Length: 0\r\n\r\n"),
        (RequestKind::Other, "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"),
        (RequestKind::Other, "hello\r\n\r\n"),
        (RequestKind::Other, "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello"),
        (RequestKind::Other, "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (RequestKind::Other, "HTTP/1.1 100 Continue\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        (RequestKind::Other, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"),
        (RequestKind::Upgrade, "HTTP/1.1 101 Switching Protocols\r\nContent-Length: 5\r\n\r\nhello"),
        (RequestKind::Other, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n"),
        (RequestKind::Other, "HTTP/1.1 200 OK\r\nX\0: a\r\nContent-Length: 0\r\n\r\n"),
    ] {
        for step in [1, 7, 5000] {
            assert_eq!(answer_through(sent.as_bytes(), asked, step), Err(io::ErrorKind::InvalidData), "{sent:?}");
        }
    }
    let flood = "HTTP/1.1 102 Processing\r\n\r\n".repeat(17) + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    assert!(answer_through(flood.as_bytes(), RequestKind::Other, 5000).is_err());
    let large = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(70_000));
    assert!(answer_through(large.as_bytes(), RequestKind::Other, 5000).is_err());
}

#[test]
fn an_unexpected_response_ends_the_connection() {
    let one = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    assert!(answer_through(format!("{one}{one}").as_bytes(), RequestKind::Other, 5000).is_err());
    assert!(answer_through(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok!", RequestKind::Other, 5000).is_err());
    // The pool sees unread bytes between two responses before it uses the connection again.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (mut upstream, end) = tokio::io::duplex(1000);
        let gate = ResponseGate::new(end, Rc::default(), Duration::from_secs(3600));
        assert!(gate.is_quiet());
        upstream.write_all(one.as_bytes()).await.unwrap();
        assert!(!gate.is_quiet());
        let (upstream, end) = tokio::io::duplex(1000);
        let gate = ResponseGate::new(end, Rc::default(), Duration::from_secs(3600));
        drop(upstream);
        assert!(!gate.is_quiet(), "a closed connection is not idle");
    });
}

#[test]
fn bytes_after_an_upgrade_request_are_held_until_its_response() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let upgrade = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        let behind = "\x01\x02 is no HTTP";
        let (mut client, server) = tokio::io::duplex(1000);
        let connection_state: Rc<ConnectionState> = Rc::default();
        let mut gate = RequestGate::new(server, (Instant::now(), BytesMut::new()), limits(), Rc::clone(&connection_state));
        client.write_all(format!("{upgrade}{behind}").as_bytes()).await.unwrap();
        let mut read = vec![0; upgrade.len()];
        gate.read_exact(&mut read).await.unwrap();
        let in_flight = ExchangeInFlight::count(&connection_state);
        let more = tokio::time::timeout(Duration::from_millis(20), gate.read(&mut [0; 10])).await;
        assert!(more.is_err(), "the bytes after the upgrade are held");
        connection_state.hand_over(Box::new(|_| Box::pin(std::future::ready(()))));
        drop(in_flight);
        let mut read = vec![0; behind.len()];
        gate.read_exact(&mut read).await.unwrap();
        assert_eq!(read, behind.as_bytes());
    });
    // After a declined upgrade, the next bytes are checked as a request.
    for behind in ["GET / HTTP/1.1\r\nHost: a\r\n\r\n", "garbage\r\n\r\n"] {
        runtime.block_on(async {
            let upgrade = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
            let connection_state: Rc<ConnectionState> = Rc::default();
            let (mut client, server) = tokio::io::duplex(1000);
            let mut gate = RequestGate::new(server, (Instant::now(), BytesMut::new()), limits(), Rc::clone(&connection_state));
            client.write_all(format!("{upgrade}{behind}").as_bytes()).await.unwrap();
            drop(client);
            gate.read_exact(&mut vec![0; upgrade.len()]).await.unwrap();
            drop(ExchangeInFlight::count(&connection_state));
            let mut rest = String::new();
            gate.read_to_string(&mut rest).await.unwrap();
            assert_eq!(rest == behind, behind.starts_with("GET"), "{rest:?}");
        });
    }
}
