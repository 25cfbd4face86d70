//! The rules of the wire between clients, proxies and app servers: connections that break, versions of HTTP, bodies and trailers.
//! They hold in one region and over two.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{
    Plan, Recorder, TIMEOUT, Wire, World, eventually, get, http2, log, pieces, post, raw, read, remember, request, runtime, whole,
};

/// The heads of the requests that a scripted upstream received.
type Heads = Arc<Mutex<Vec<String>>>;

/// A plan whose only app server is in `eu-west` and runs `script` for each connection, in a thread of its own.
fn scripted(script: impl Fn(TcpStream, &Heads) + Send + Sync + 'static) -> (Plan, Heads) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (heads, script) = (Heads::default(), Arc::new(script));
    let seen = Arc::clone(&heads);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (script, seen) = (Arc::clone(&script), Arc::clone(&seen));
            std::thread::spawn(move || script(stream, &seen));
        }
    });
    let upstreams = move |name: &'static str| {
        let mut recorder = Recorder::start(name);
        if name == "eu-west" {
            recorder.crash();
            recorder.entry = format!("\"http://{address}\"");
        }
        vec![recorder]
    };
    (Plan { upstreams: Box::new(upstreams), ..Plan::default() }, heads)
}

/// A plan whose only app server sends `answer` to every request.
fn answering(answer: &'static [u8]) -> (Plan, Heads) {
    scripted(move |mut stream, heads| {
        while read_head(&mut stream, heads) {
            stream.write_all(answer).unwrap();
        }
    })
}

/// Reads a request head and records it; false at the end of the connection.
fn read_head(stream: &mut TcpStream, heads: &Heads) -> bool {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            return false;
        }
        head.push(byte[0]);
    }
    heads.lock().unwrap().push(String::from_utf8_lossy(&head).to_lowercase());
    true
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn a_read_on_a_reused_connection_that_broke_before_an_answer_is_sent_once_more() {
    // Each connection serves one request, and breaks when the second one has arrived.
    let (plan, heads) = scripted(|mut stream, heads| {
        if read_head(&mut stream, heads) {
            stream.write_all(OK).unwrap();
            read_head(&mut stream, heads);
        }
    });
    let world = World::planned(plan);
    // The last request to the first region leaves a connection that has served its one request.
    for (region, sent) in [(world.eu(), 5), (world.us(), 6)] {
        heads.lock().unwrap().clear();
        for _ in 0..3 {
            assert_eq!(get(region.http, "/users/alice/orders/1", &[]).text(), "ok", "{}", region.name);
        }
        assert_eq!(heads.lock().unwrap().len(), sent, "each on a connection that was used before was sent twice");
        heads.lock().unwrap().clear();
        let answer = post(region.http, "/users/alice/orders/1", &[], "");
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::BAD_GATEWAY, "upstream.bad_response"));
        assert_eq!(heads.lock().unwrap().len(), 1, "a write that was sent is not repeated");
        assert_eq!(get(region.http, "/users/alice/orders/1", &[]).text(), "ok", "the app server is not ejected");
    }
}

#[test]
fn only_one_connection_is_found_to_be_broken_for_one_read() {
    let both = Arc::new(std::sync::Barrier::new(2));
    let (plan, heads) = scripted(move |mut stream, heads| {
        if read_head(&mut stream, heads) {
            if heads.lock().unwrap().last().unwrap().contains("/together") {
                both.wait();
            }
            stream.write_all(OK).unwrap();
            read_head(&mut stream, heads);
        }
    });
    let world = World::planned(plan);
    let address = world.eu().http;
    let two = [(); 2].map(|()| std::thread::spawn(move || get(address, "/users/alice/orders/together", &[])));
    two.into_iter().for_each(|one| assert_eq!(one.join().unwrap().text(), "ok"));
    // Both connections break with the next request. The second attempt at the read does not try the other one.
    heads.lock().unwrap().clear();
    assert_eq!(get(address, "/users/alice/orders/1", &[]).text(), "ok");
    assert_eq!(heads.lock().unwrap().len(), 2);
}

#[test]
fn an_upload_to_a_tls_upstream_that_reads_late_arrives_whole() {
    let folder = tempfile::tempdir().unwrap();
    let authority = domicile::demo::certificates::Authority::new("upstreams").unwrap();
    authority.write(&folder.path().join("ca.pem")).unwrap();
    authority.write_site(folder.path(), "app", &["app.internal"]).unwrap();
    let mut config = crate::streams::server_config(folder.path());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = runtime().block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    socket2::SockRef::from(&listener).set_recv_buffer_size(16 << 10).unwrap();
    let entry = format!(
        "{{ url: \"https://{}\", tls: {{ authority: \"{}/ca.pem\", name: app.internal }} }}",
        listener.local_addr().unwrap(),
        folder.path().display()
    );
    runtime().spawn(async move {
        loop {
            let (stream, acceptor) = (listener.accept().await.unwrap().0, acceptor.clone());
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let length = head.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap();
                // Meanwhile the upload fills all buffers on the way.
                tokio::time::sleep(Duration::from_millis(200)).await;
                stream.read_exact(&mut vec![0; length.parse().unwrap()]).await.unwrap();
                stream.write_all(OK).await.unwrap();
                let _ = stream.shutdown().await;
            });
        }
    });
    let upstreams = move |name: &'static str| {
        let mut recorder = Recorder::start(name);
        recorder.crash();
        recorder.entry.clone_from(&entry);
        vec![recorder]
    };
    let world = World::planned(Plan { upstreams: Box::new(upstreams), ..Plan::default() });
    // One of the sizes is a little more than the system takes at once, so that the end of the upload waits in the TLS layer.
    let address = world.eu().http;
    let uploads: Vec<_> = (1..=96)
        .map(|step| std::thread::spawn(move || post(address, "/users/alice/orders/1", &[], vec![b'x'; step * (48 << 10)])))
        .collect();
    for upload in uploads {
        assert_eq!(upload.join().unwrap().text(), "ok");
    }
}

#[test]
fn a_tls_client_that_reads_nothing_holds_no_connection() {
    let upstreams = |_: &'static str| {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 64 << 20);
        vec![Recorder::raw([answer.into_bytes(), vec![b'x'; 64 << 20]].concat())]
    };
    let extra = "limits: { body_rate: 1GiB, body_rate_grace: 100ms }\n".to_owned();
    let world = World::planned(Plan { upstreams: Box::new(upstreams), extra, ..Plan::default() });
    let held = runtime().block_on(async {
        let mut stream = crate::support::tls(&world, world.eu().https, "localhost", &[b"http/1.1"]).await;
        stream.write_all(b"GET /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        stream
    });
    eventually("the connection has begun", || world.eu().sum_of("domicile_requests_total") > 0.0 || connections(&world) > 0);
    eventually("the connection has ended", || connections(&world) == 0);
    drop(held);
}

/// The open connections to the listener of `eu-west` with TLS.
fn connections(world: &World) -> usize {
    let gauge = format!("domicile_connections{{listener=\"{}\"}} ", world.eu().https);
    let metrics = world.eu().metrics();
    metrics.lines().find_map(|line| line.strip_prefix(&*gauge)).map_or(0, |count| count.parse().unwrap())
}

#[test]
fn a_connection_with_bytes_behind_its_response_serves_no_other_request() {
    let opened = Arc::new(Mutex::new(0));
    let count = Arc::clone(&opened);
    let (plan, _) = scripted(move |mut stream, heads| {
        *count.lock().unwrap() += 1;
        while read_head(&mut stream, heads) {
            stream.write_all(&[OK, b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"].concat()).unwrap();
        }
    });
    let world = World::planned(plan);
    for requests in 1..=3 {
        assert_eq!(get(world.eu().http, "/users/alice/orders/1", &[]).text(), "ok");
        assert_eq!(*opened.lock().unwrap(), requests, "each request has a connection of its own");
    }
}

#[test]
fn as_many_idle_connections_are_kept_as_the_operator_says() {
    for (most, expected) in [(1, 3), (2, 2)] {
        let (both, opened) = (Arc::new(std::sync::Barrier::new(2)), Arc::new(Mutex::new(0)));
        let count = Arc::clone(&opened);
        let (plan, _) = scripted(move |mut stream, heads| {
            *count.lock().unwrap() += 1;
            while read_head(&mut stream, heads) {
                both.wait();
                stream.write_all(OK).unwrap();
            }
        });
        let world = World::planned(Plan { extra: format!("limits: {{ idle_upstream_connections: {most} }}\n"), ..plan });
        let address = world.eu().http;
        for _ in 0..2 {
            let two = [(); 2].map(|()| std::thread::spawn(move || get(address, "/users/alice/orders/1", &[])));
            two.into_iter().for_each(|one| assert_eq!(one.join().unwrap().text(), "ok"));
        }
        assert_eq!(*opened.lock().unwrap(), expected, "at most {most} idle");
    }
}

#[test]
fn an_answer_that_breaks_in_its_body_arrives_as_a_broken_answer_and_is_logged_as_broken() {
    let _ = log();
    for (number, broken) in [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nX",
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
    ]
    .into_iter()
    .enumerate()
    {
        let (plan, _) = scripted(move |mut stream, heads| {
            while read_head(&mut stream, heads) {
                stream.write_all(broken.as_bytes()).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
            }
        });
        let world = World::planned(plan);
        for region in [world.eu(), world.us()] {
            let head =
                format!("GET /users/alice/orders/broken{number}{} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", region.name);
            let answer = raw(region.http, head.as_bytes());
            // A peer resets the stream behind the head, and the reset may overtake the head.
            let is_refused = region.name != "eu-west" && answer.starts_with("HTTP/1.1 502 ");
            assert!(is_refused || answer.starts_with("HTTP/1.1 200 OK\r\n"), "{broken:?} at {}: {answer:?}", region.name);
            assert!(!answer.ends_with("0\r\n\r\n"), "it must not look complete: {answer:?}");
            let line = format!("broken{number}{}\"", region.name);
            eventually("it is logged as broken", || {
                let is_broken = |text: &str| {
                    text.contains("\"broken\":\"the sender aborted the body\"")
                        || (is_refused && text.contains("upstream.bad_response"))
                };
                log().lines().any(|text| text.contains(&line) && is_broken(text))
            });
        }
    }
}

#[test]
fn statuses_without_a_body_are_relayed_without_one_whatever_the_app_server_sends() {
    for (answer, status) in [
        ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello", 204),
        ("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 204),
        ("HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 304),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304),
        ("HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n", 205),
    ] {
        let world = World::planned(Plan { upstreams: Box::new(move |_| vec![Recorder::raw(answer)]), ..Plan::default() });
        for region in [world.eu(), world.us()] {
            let ask = b"GET /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
            let found = raw(region.http, ask);
            assert!(found.starts_with(&format!("HTTP/1.1 {status} ")) && found.ends_with("\r\n\r\n"), "{answer:?}: {found:?}");
            let has_length = found.to_lowercase().contains("content-length");
            assert!(status != 204 || !has_length, "{found:?}");
            assert!(!found.to_lowercase().contains("transfer-encoding"), "{found:?}");
        }
    }
}

#[test]
fn blanks_before_a_colon_of_a_response_are_removed() {
    let spaced = "HTTP/1.1 200 OK\r\nX-App \t: yes\r\nContent-Length : 2\r\n\r\nok";
    let world = World::planned(Plan { upstreams: Box::new(move |_| vec![Recorder::raw(spaced)]), ..Plan::default() });
    for region in [world.eu(), world.us()] {
        let answer = get(region.http, "/users/alice/orders/1", &[]);
        assert_eq!((answer.text(), &answer.headers["x-app"]), ("ok", &"yes".parse::<http::HeaderValue>().unwrap()));
    }
}

/// Sends a request, and returns the connection once an app server has received it.
fn ask(address: SocketAddr, heads: &Heads, target: &str) -> TcpStream {
    heads.lock().unwrap().clear();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).unwrap();
    eventually("the app server has the request", || !heads.lock().unwrap().is_empty());
    stream
}

#[test]
fn a_client_that_goes_away_while_it_waits_ends_its_upstream_request() {
    let ended = Arc::new(Mutex::new(0));
    let count = Arc::clone(&ended);
    let (plan, heads) = scripted(move |mut stream, heads| {
        let is_stream = read_head(&mut stream, heads) && heads.lock().unwrap().last().unwrap().contains("/events");
        if is_stream {
            // One event, and then silence.
            let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n";
            stream.write_all(head).unwrap();
        }
        while matches!(stream.read(&mut [0; 100]), Ok(1..)) {}
        *count.lock().unwrap() += 1;
    });
    let world = World::planned(plan);
    for region in [world.eu(), world.us()] {
        for target in ["/users/alice/orders/slow", "/users/alice/orders/events"] {
            for resets in [false, true] {
                let (before, mut client) = (*ended.lock().unwrap(), ask(region.http, &heads, target));
                if target.ends_with("events") {
                    let mut seen = Vec::new();
                    while !seen.ends_with(b"data: 1\n\n\r\n") {
                        let mut byte = [0];
                        client.read_exact(&mut byte).unwrap();
                        seen.push(byte[0]);
                    }
                }
                if resets {
                    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
                }
                let left = Instant::now();
                drop(client);
                eventually("the app server sees the end", || *ended.lock().unwrap() > before);
                // The timeouts of responses are 15 seconds and more.
                assert!(left.elapsed() < Duration::from_secs(10), "{target} at {} after {:?}", region.name, left.elapsed());
                eventually("the slot is free", || {
                    region.metrics().contains(&format!("domicile_connections{{listener=\"{}\"}} 0", region.http))
                });
            }
        }
    }
}

#[test]
fn a_listener_may_allow_clients_to_close_their_sending_side_early() {
    let (plan, heads) = scripted(|mut stream, heads| {
        if read_head(&mut stream, heads) {
            // The client has gone away by then, unless its listener allows a half-closed connection.
            std::thread::sleep(Duration::from_millis(1500));
            let _ = stream.write_all(OK);
        }
    });
    let mut world = World::prepare(&plan);
    let config = std::fs::read_to_string(&world.regions[0].config).unwrap();
    let address = world.regions[0].http;
    let allowing =
        config.replace(&format!("- address: \"{address}\""), &format!("- address: \"{address}\"\n    half_close: allow"));
    assert_ne!(config, allowing);
    std::fs::write(&world.regions[0].config, allowing).unwrap();
    for index in 0..world.regions.len() {
        world.start_region(index).unwrap();
    }
    world.wait_until_measured();
    for (region, is_answered) in [(world.eu(), true), (world.us(), false)] {
        let mut client = ask(region.http, &heads, "/users/alice/orders/1");
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        let _ = client.read_to_string(&mut answer);
        assert_eq!(answer.ends_with("\r\n\r\nok"), is_answered, "{}: {answer:?}", region.name);
    }
}

#[test]
fn messages_have_our_version_and_via_the_received_one() {
    let old = "HTTP/1.0 200 OK\r\nX-App: yes\r\n\r\nuntil the end";
    let (plan, heads) = scripted(move |mut stream, heads| {
        if read_head(&mut stream, heads) {
            stream.write_all(old.as_bytes()).unwrap();
        }
    });
    let world = World::planned(plan);
    for region in [world.eu(), world.us()] {
        let answer = get(region.http, "/users/alice/orders/1", &[]);
        assert_eq!(answer.text(), "until the end");
        assert!(answer.headers["via"].to_str().unwrap().starts_with("1.0 domicile"), "{:?}", answer.headers);
        let again = b"GET /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2);
        let last = b"GET /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let three = raw(region.http, &[&again[..], last].concat());
        assert_eq!(three.matches("HTTP/1.1 200 OK").count(), 3, "the client's connection stays open: {three:?}");
        // The client speaks HTTP/1.0 as well: the end of the connection ends the body.
        let closed = raw(region.http, b"GET /users/alice/orders/1 HTTP/1.0\r\nHost: a\r\n\r\n");
        assert!(closed.starts_with("HTTP/1.1 200 OK\r\n") && closed.ends_with("\r\n\r\nuntil the end"), "{closed:?}");
        assert!(!closed.to_lowercase().contains("transfer-encoding"), "{closed:?}");
        assert!(heads.lock().unwrap().last().unwrap().contains("via: 1.0 domicile"));
        assert!(heads.lock().unwrap().iter().all(|head| head.starts_with("get /users/alice/orders/1 http/1.1\r\n")));
    }
}

#[test]
fn an_http10_client_may_keep_its_connection() {
    let world = World::start();
    let kept = "GET /users/alice/orders/1 HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n";
    let closed = "GET /users/alice/orders/1 HTTP/1.0\r\nHost: a\r\n\r\n";
    let answer = raw(world.eu().http, format!("{kept}{closed}{kept}").as_bytes()).to_lowercase();
    assert_eq!(answer.matches("http/1.1 200 ok").count(), 2, "{answer}");
    assert_eq!(answer.matches("connection: keep-alive").count(), 1, "{answer}");
    assert_eq!(answer.matches("connection: close").count(), 1, "{answer}");
}

#[test]
fn an_http10_client_without_a_host_is_served_by_routes_for_any_host() {
    let world = World::start();
    for region in [world.eu(), world.us()] {
        let answer = raw(region.http, b"GET /users/alice/orders/1 HTTP/1.0\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        let seen = world.eu().upstream().seen().last().unwrap().clone();
        assert_eq!(seen.headers["host"], region.http.to_string(), "the address that the client connected to");
    }
    let answer = raw(world.eu().http, b"GET /users/alice/orders/1 HTTP/1.1\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 400 "), "HTTP/1.1 requires a host: {answer}");
}

#[test]
fn options_and_trace_end_where_max_forwards_says() {
    let world = World::start();
    for region in [world.eu(), world.us()] {
        for method in ["OPTIONS", "TRACE"] {
            let ask = |most: &str| {
                let head = format!(
                    "{method} /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\nMax-Forwards: {most}\r\n\r\n"
                );
                raw(region.http, head.as_bytes())
            };
            let before = world.eu().upstream().seen().len();
            let answer = ask("0").to_lowercase();
            assert!(answer.contains("\r\nallow: get, "), "{method}: {answer}");
            let status = if method == "OPTIONS" { "http/1.1 204 " } else { "http/1.1 405 " };
            assert!(answer.starts_with(status), "{method}: {answer}");
            assert_eq!(world.eu().upstream().seen().len(), before, "it is not forwarded");
            assert!(ask("many").starts_with("HTTP/1.1 400 "));
            assert!(ask("7").starts_with("HTTP/1.1 200 "));
            let left = if region.name == "eu-west" { "6" } else { "5" };
            assert_eq!(world.eu().upstream().seen().last().unwrap().headers["max-forwards"], left, "each proxy is a hop");
        }
        // The field means nothing for other methods.
        let other =
            raw(region.http, b"GET /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\nMax-Forwards: 0\r\n\r\n");
        assert!(other.starts_with("HTTP/1.1 200 "), "{other}");
    }
}

#[test]
fn options_for_a_whole_server_are_answered_here_in_both_forms() {
    let world = World::start();
    for target in ["*", "http://a", "HTTP://A"] {
        let head = format!("OPTIONS {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let answer = raw(world.eu().http, head.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 204 ") && answer.to_lowercase().contains("\r\nallow: get, "), "{target}: {answer}");
    }
    let other = raw(world.eu().http, b"OPTIONS http://b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(other.starts_with("HTTP/1.1 400 "), "the target and `Host` differ: {other}");
    world.eu().upstream().assert_no_requests();
}

#[test]
fn undeclared_trailers_reach_who_asked_for_trailers() {
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n";
    let (plan, heads) = answering(answer.as_bytes());
    let world = World::planned(plan);
    for region in [world.eu(), world.us()] {
        for (fields, is_asked) in [("TE: trailers\r\nConnection: TE, close\r\n", true), ("Connection: close\r\n", false)] {
            let ask = format!("GET /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            let answer = raw(region.http, ask.as_bytes());
            assert_eq!(answer.contains("x-sum: 1"), is_asked, "{fields:?} at {}: {answer:?}", region.name);
            let head = heads.lock().unwrap().last().unwrap().clone();
            assert_eq!(head.contains("\r\nte: trailers\r\n") && head.contains("\r\nconnection: te\r\n"), is_asked, "{head}");
        }
    }
}

#[test]
fn a_request_without_a_body_has_a_length_where_http1_servers_expect_one() {
    let (plan, heads) = answering(OK);
    let world = World::planned(plan);
    runtime().block_on(async {
        for region in [world.eu(), world.us()] {
            let mut sender = http2(&world, region.https, "localhost").await;
            for (method, has_length) in [(Method::POST, true), (Method::PUT, true), (Method::GET, false), (Method::DELETE, false)]
            {
                let ask = request(method.clone(), "https://localhost/users/alice/orders/1", "", &[], whole(""));
                assert_eq!(read(sender.send_request(ask).await.unwrap()).await.unwrap().text(), "ok");
                let head = heads.lock().unwrap().last().unwrap().clone();
                assert_eq!(head.contains("\r\ncontent-length: 0\r\n"), has_length, "{method}: {head}");
                assert!(!head.contains("transfer-encoding"), "{head}");
            }
        }
    });
}

#[test]
fn app_servers_that_speak_http2_obey_the_same_rules() {
    let handler: crate::support::Handler = Arc::new(|request, seen| {
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            remember(request, &seen).await;
            let mut response = Response::new(whole(""));
            let kind = path.rsplit('/').next().unwrap();
            match kind {
                "look-alike" => drop(response.headers_mut().insert("content_length", "5".parse().unwrap())),
                "many" => {
                    for number in 0..300 {
                        response.headers_mut().append("x-many", number.into());
                    }
                }
                "204" | "304" => {
                    *response.status_mut() = kind.parse().unwrap();
                    let (sender, body) = pieces();
                    sender.send(Frame::data(Bytes::from_static(b"hello"))).unwrap();
                    *response.body_mut() = body;
                }
                _ => {}
            }
            response
        })
    });
    let upstreams = move |_: &'static str| vec![Recorder::with_protocol(Wire::Http2, Arc::clone(&handler))];
    let world = World::planned(Plan { upstreams: Box::new(upstreams), ..Plan::default() });
    for region in [world.eu(), world.us()] {
        for kind in ["look-alike", "many"] {
            let answer = get(region.http, &format!("/users/alice/orders/{kind}"), &[]);
            assert_eq!((answer.status, answer.code().as_str()), (StatusCode::BAD_GATEWAY, "upstream.bad_response"), "{kind}");
        }
        for kind in ["204", "304"] {
            let head = format!("GET /users/alice/orders/{kind} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            let answer = raw(region.http, head.as_bytes());
            assert!(answer.starts_with(&format!("HTTP/1.1 {kind} ")) && answer.ends_with("\r\n\r\n"), "{answer:?}");
        }
    }
}

#[test]
fn a_request_that_cannot_be_read_is_answered_counted_and_logged() {
    let _ = log();
    let world = World::start();
    let answer = raw(world.eu().http, b"GET /users/alice/orders/1 HTTP/1.1\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("application/problem+json"), "{answer}");
    let code = answer.split("\"code\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap().to_owned();
    assert_eq!(code, "request.malformed_host");
    eventually("it is counted", || world.eu().metrics().contains(&format!("domicile_failures_total{{code=\"{code}\"}} 1")));
    let id = answer.split("\"request\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    eventually("it is logged", || log().lines().any(|line| line.contains(id) && line.contains(&code)));
}

/// A frame of HTTP/2 on a stream.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[a, b, c, kind, flags, 0, 0, 0, stream], payload].concat()
}

#[test]
fn a_malformed_stream_of_http2_is_counted_and_logged_and_ends_alone() {
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    let _ = log();
    let world = World::start();
    let mut stream = TcpStream::connect(world.eu().http).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[])].concat();
    // `:scheme http` and `:path /` without `:method`; then the same with `:method GET` and `:authority a`.
    let requests = [frame(HEADERS, 5, 1, &[0x86, 0x84]), frame(HEADERS, 5, 3, &[0x82, 0x86, 0x84, 0x41, 1, b'a'])].concat();
    stream.write_all(&[preface, requests].concat()).unwrap();
    let (mut was_reset, mut was_answered) = (false, false);
    while !(was_reset && was_answered) {
        let mut head = [0; 9];
        stream.read_exact(&mut head).unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).unwrap();
        was_reset |= (head[3], head[8]) == (RST_STREAM, 1);
        was_answered |= (head[3], head[8]) == (HEADERS, 3);
    }
    let counted = "domicile_failures_total{code=\"request.malformed_stream\"} 1\n";
    eventually("it is counted", || world.eu().metrics().contains(counted));
    eventually("it is logged", || log().contains("\"code\":\"request.malformed_stream\",\"status\":400"));
    // A request that has begun logs itself, and once.
    let requests = || {
        let metrics = world.eu().metrics();
        let counts = metrics.lines().filter(|line| line.starts_with("domicile_requests_total{"));
        counts.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum::<f64>()
    };
    let before = requests();
    // A body of another length than `content-length`, while its request is served. The response to PING shows that the head has
    // been read.
    let path = b"/users/alice/orders/1";
    let post = [&[0x83, 0x86, 0x44, 21], &path[..], &[0x41, 1, b'a', 0x5c, 1, b'9']].concat();
    stream.write_all(&[frame(HEADERS, 4, 5, &post), frame(6, 0, 0, &[0; 8])].concat()).unwrap();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).unwrap();
        if (head[3], head[4]) == (6, 1) {
            break;
        }
    }
    stream.write_all(&frame(0, 1, 5, b"short")).unwrap();
    eventually("the request with a wrong length is counted", || requests() > before);
    assert_eq!(requests(), before + 1.0);
    assert!(world.eu().metrics().contains(counted), "the stream of a request that is served is not counted again");
}

/// A connection of HTTP/2 that sends these frames after its preface, and reads until the proxy closes it or `is_last` holds for the
/// kind and the stream of a frame.
fn converse_http2(address: SocketAddr, frames: &[Vec<u8>], is_last: impl Fn(u8, u8) -> bool) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[])].concat();
    stream.write_all(&[preface, frames.concat()].concat()).unwrap();
    let mut head = [0; 9];
    while stream.read_exact(&mut head).is_ok() {
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).unwrap();
        if is_last(head[3], head[8]) {
            return;
        }
    }
}

#[test]
fn only_malformed_streams_are_counted_as_malformed() {
    let world = World::start();
    // A GOAWAY with PROTOCOL_ERROR says that the client found a fault in what it received.
    converse_http2(world.eu().http, &[frame(7, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 1])], |_, _| false);
    // `h2` itself responds to a head that is too large, and then resets its stream.
    let large = [&[0x83, 0x86, 0x84, 0x41, 1, b'a'][..], &[0, 1, b'x', 0x7f, 0x81, 0x7e], &[b'y'; 16_256]].concat();
    let more = [&[0, 1, b'x', 0x7f, 0x81, 0x7e][..], &[b'y'; 16_256]].concat();
    let block = [frame(1, 0, 1, &large), frame(9, 0, 1, &more), frame(9, 0, 1, &more), frame(9, 4, 1, &more)];
    converse_http2(world.eu().http, &block, |kind, stream| (kind, stream) == (3, 1));
    let too_large = "domicile_failures_total{code=\"request.head_too_large\"} 1\n";
    eventually("it is counted", || world.eu().metrics().contains(too_large));
    assert!(!world.eu().metrics().contains("request.malformed_stream"), "{}", world.eu().metrics());
}

#[test]
fn connections_to_peers_are_open_before_the_first_request() {
    let world = World::start();
    world.wait_until_measured();
    let us = world.us();
    let gauge = format!("domicile_connections{{listener=\"{}\"}} ", us.peers);
    let open = || us.metrics().lines().find_map(|line| line.strip_prefix(&gauge)?.parse::<usize>().ok()).unwrap_or(0);
    // From each of two peers: one of its probes, two with wide windows, and one with a narrow window.
    eventually("the peers have opened their connections", || open() >= 8);
    us.upstream().assert_no_requests();
}
