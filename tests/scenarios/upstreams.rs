//! Failing upstreams: each failure is attributed to the client or to the upstream, and retries have a budget.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use hyper::body::Frame;

use crate::support::{
    Plan, Recorder, TIMEOUT, Wire, World, eventually, get, http2, pieces, post, raw, read, remember, request, runtime, whole,
};

/// An upstream that accepts every connection and reads nothing from it.
fn not_reading() -> Recorder {
    let mut recorder = Recorder::start("not reading");
    recorder.crash();
    let listener = runtime().block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    recorder.address = listener.local_addr().unwrap();
    recorder.entry = format!("\"http://{}\"", recorder.address);
    runtime().spawn(async move {
        let mut held = Vec::new();
        loop {
            held.push(listener.accept().await);
        }
    });
    recorder
}

#[test]
fn retries_of_what_was_sent_stay_within_their_budget() {
    // Both upstreams receive the request and respond with bytes that are not HTTP.
    let upstreams = |_: &'static str| vec![Recorder::raw("no HTTP\r\n\r\n"), Recorder::raw("no HTTP\r\n\r\n")];
    let extra = "upstreams: { ejection: { after: 0 } }\n".to_owned();
    let world = World::planned(Plan { upstreams: Box::new(upstreams), extra, ..Plan::default() });
    let (started, requests) = (Instant::now(), 500);
    for _ in 0..requests {
        assert_eq!(get(world.eu().http, "/users/alice/orders/1", &[]).status, StatusCode::BAD_GATEWAY);
    }
    // The retry budget: 100 retries at the start, a fifth of the requests, and ten per second.
    let budget = 100 + requests / 5 + (started.elapsed().as_secs() as usize + 1) * 10;
    let attempts: usize = world.eu().upstreams.iter().map(|upstream| upstream.seen().len()).sum();
    assert!(attempts > requests, "some requests are retried: {attempts}");
    assert!(attempts <= requests + budget, "{attempts} attempts for {requests} requests");
}

#[test]
fn an_upstream_that_does_not_read_an_upload_times_out() {
    for region in 0..2 {
        let extra = "limits: { idle_timeout: 300ms }\n".to_owned();
        let world = World::planned(Plan { upstreams: Box::new(|_| vec![not_reading()]), extra, ..Plan::default() });
        let address = world.regions[region].http;
        let answer = post(address, "/users/alice/orders/1", &[], vec![0; 9 << 20]);
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::GATEWAY_TIMEOUT, "upstream.timeout"));
        let none = format!("domicile_connections{{listener=\"{address}\"}} 0");
        eventually("the connection is closed", || world.regions[region].metrics().contains(&none));
    }
}

#[test]
fn faults_of_clients_eject_no_upstream() {
    let upstreams = |name: &'static str| vec![Recorder::start(name), Recorder::start(name)];
    let extra = "upstreams: { ejection: { after: 2, for: 1h } }\n".to_owned();
    let world = World::planned(Plan { upstreams: Box::new(upstreams), extra, ..Plan::default() });
    let failures = |code: &str| {
        let line = format!("domicile_failures_total{{code=\"{code}\"}} ");
        let metrics = world.eu().metrics();
        metrics.lines().find_map(|metric| metric.strip_prefix(&line)?.parse::<f64>().ok()).unwrap_or(0.0)
    };
    for count in 1..=8 {
        let mut stream = TcpStream::connect(world.eu().http).unwrap();
        stream.write_all(b"POST /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nx").unwrap();
        drop(stream);
        eventually("the failure is counted", || failures("request.malformed_body") >= f64::from(count));
    }
    let bad_chunk = "POST /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX";
    for _ in 0..8 {
        raw(world.eu().http, bad_chunk.as_bytes());
    }
    runtime().block_on(async {
        let mut sender = http2(&world, world.eu().https, "localhost").await;
        for _ in 0..8 {
            let fields = [("content-type", "application/grpc"), ("grpc-timeout", "1n")];
            let ask = request(Method::POST, "https://localhost/users/alice/orders/1", "", &fields, whole("x"));
            let _ = sender.send_request(ask).await;
        }
    });
    assert_eq!(world.eu().sum_of("domicile_upstream_ejected"), 0.0, "{}", world.eu().metrics());
    assert_eq!(failures("upstream.bad_response"), 0.0);
}

#[test]
fn no_media_type_exempts_an_upload_from_the_minimum_rate() {
    let world = World::planned(Plan { extra: "limits: { body_rate: 1MiB, body_rate_grace: 100ms }\n".into(), ..Plan::default() });
    for kind in ["text/event-stream", "application/grpc"] {
        let head =
            format!("POST /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: 1000\r\n\r\n");
        let answer = raw(world.eu().http, format!("{head}some").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 408"), "{kind}: {answer}");
    }
    world.eu().upstream().assert_no_requests();
}

#[test]
fn an_upstream_may_pause_within_an_answer() {
    let upstreams = |_: &'static str| {
        vec![Recorder::with(Arc::new(|request, seen| {
            Box::pin(async move {
                remember(request, &seen).await;
                let (sender, body) = pieces();
                tokio::spawn(async move {
                    for line in ["{\"a\":1}\n", "{\"a\":2}\n", "{\"a\":3}\n"] {
                        sender.send(Frame::data(Bytes::from_static(line.as_bytes()))).unwrap();
                        // Longer than the grace period. The minimum rate does not apply to pauses of the upstream.
                        tokio::time::sleep(Duration::from_millis(150)).await;
                    }
                });
                let mut response = Response::new(body);
                response.headers_mut().insert("content-type", "application/x-ndjson".parse().unwrap());
                response
            })
        }))]
    };
    let extra = "limits: { body_rate: 1GiB, body_rate_grace: 50ms }\n".to_owned();
    let world = World::planned(Plan { upstreams: Box::new(upstreams), extra, ..Plan::default() });
    for region in [world.eu(), world.us()] {
        assert_eq!(get(region.http, "/users/alice/orders/1", &[]).text().lines().count(), 3);
    }
}

#[test]
fn a_call_that_streams_keeps_its_own_deadline() {
    let upstreams = |_: &'static str| {
        vec![Recorder::with_protocol(
            Wire::Http2,
            Arc::new(|request, seen| {
                Box::pin(async move {
                    remember(request, &seen).await;
                    Response::new(whole("late"))
                })
            }),
        )]
    };
    let world = World::planned(Plan { upstreams: Box::new(upstreams), ..Plan::default() });
    runtime().block_on(async {
        let mut sender = http2(&world, world.us().https, "localhost").await;
        let (held, body) = pieces();
        held.send(Frame::data(Bytes::from_static(b"first"))).unwrap();
        let fields = [("content-type", "application/grpc"), ("grpc-timeout", "200m")];
        let ask = request(Method::POST, "https://localhost/users/alice/orders/1", "", &fields, body);
        let answer = tokio::time::timeout(TIMEOUT, sender.send_request(ask)).await.expect("a response in time").unwrap();
        assert_eq!(read(answer).await.unwrap().code(), "upstream.timeout");
        drop(held);
    });
}

#[test]
fn a_stream_that_nobody_reads_holds_no_connection_for_ever() {
    // The response comes from the proxy itself, and the stream window of zero lets none of it through.
    let world = World::planned(Plan { extra: "limits: { idle_timeout: 200ms }\n".into(), ..Plan::default() });
    let mut stream = TcpStream::connect(world.eu().http).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00").unwrap();
    // GET https://a/: indexed fields and a literal `:authority`.
    stream.write_all(b"\x00\x00\x06\x01\x05\x00\x00\x00\x01\x82\x87\x84\x41\x01a").unwrap();
    let mut frames = Vec::new();
    let mut buffer = [0; 4096];
    // RST_STREAM for stream 1.
    while !frames.windows(9).any(|frame| frame == b"\x00\x00\x04\x03\x00\x00\x00\x00\x01") {
        let size = stream.read(&mut buffer).unwrap();
        assert!(size > 0, "{frames:?}");
        frames.extend_from_slice(&buffer[..size]);
    }
}

#[test]
fn an_upstream_that_speaks_http2_alone_opens_tunnels_and_is_not_ejected_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let authority = domicile::demo::certificates::Authority::new("upstreams").unwrap();
    authority.write(&folder.path().join("ca.pem")).unwrap();
    authority.write_site(folder.path(), "app", &["app.internal"]).unwrap();
    let config = crate::streams::server_config(folder.path());
    let path = folder.path().to_owned();
    let upstreams = move |_: &'static str| {
        let mut recorder = crate::streams::echo(Wire::Tls(Arc::new(config.clone())));
        let ca = path.join("ca.pem");
        recorder.entry = format!("{{ url: {}, tls: {{ authority: \"{}\", name: app.internal }} }}", recorder.entry, ca.display());
        vec![recorder]
    };
    let extra = "upstreams: { ejection: { after: 2, for: 1h, most_percent: 100 } }\n".to_owned();
    let world = World::planned(Plan { upstreams: Box::new(upstreams), extra, ..Plan::default() });
    for region in [world.eu(), world.us(), world.eu(), world.us()] {
        let (mut stream, answer) = crate::streams::open_http1(region.http, "/users/alice/orders/live", "");
        assert!(answer.starts_with("http/1.1 101 "), "{answer}");
        crate::streams::speak(&mut stream, b"hello");
    }
    assert_eq!(world.eu().sum_of("domicile_upstream_ejected"), 0.0);
}

/// The upstream responds to one request per connection, and closes the connection when the test reaches the barrier.
#[test]
fn a_pooled_connection_that_was_closed_loses_no_request_and_repeats_none() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, closed) = (Arc::new(std::sync::Mutex::new(0)), Arc::new(std::sync::Barrier::new(2)));
    let (count, close) = (Arc::clone(&seen), Arc::clone(&closed));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"once") {
                let mut byte = [0];
                if stream.read(&mut byte).unwrap_or(0) == 0 {
                    break;
                }
                head.push(byte[0]);
            }
            if head.is_empty() {
                continue;
            }
            *count.lock().unwrap() += 1;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            close.wait();
            drop(stream);
            close.wait();
        }
    });
    let upstreams = move |_: &'static str| {
        let mut recorder = Recorder::start("closing");
        recorder.crash();
        recorder.entry = format!("\"http://{address}\"");
        vec![recorder]
    };
    let world = World::planned(Plan { upstreams: Box::new(upstreams), ..Plan::default() });
    for round in 1..=5 {
        assert_eq!(post(world.eu().http, "/users/alice/orders/1", &[], "once").text(), "ok");
        // The connection returns to the pool, and the upstream closes it while it is idle.
        closed.wait();
        closed.wait();
        assert_eq!(*seen.lock().unwrap(), round, "each write arrives once");
    }
}

#[test]
fn a_grpc_call_may_be_quiet_where_another_upload_may_not() {
    let extra = "limits: { body_rate: 1MiB, body_rate_grace: 50ms }\n".to_owned();
    let upstreams = |name: &'static str| {
        vec![Recorder::with_protocol(
            Wire::Http2,
            Arc::new(move |request, seen| {
                Box::pin(async move {
                    remember(request, &seen).await;
                    Response::new(whole(name))
                })
            }),
        )]
    };
    let world = World::planned(Plan { upstreams: Box::new(upstreams), extra, ..Plan::default() });
    for (kind, status) in [("application/grpc", StatusCode::OK), ("application/json", StatusCode::REQUEST_TIMEOUT)] {
        let answer = runtime().block_on(async {
            let mut sender = http2(&world, world.us().https, "localhost").await;
            let (held, body) = pieces();
            let fields = [("content-type", kind)];
            let ask = request(Method::POST, "https://localhost/users/alice/orders/1", "", &fields, body);
            let answer = tokio::spawn(sender.send_request(ask));
            held.send(Frame::data(Bytes::from_static(b"first"))).unwrap();
            // The client pauses for longer than the grace period and the next check of the rate.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            let _ = held.send(Frame::data(Bytes::from_static(b"second")));
            drop(held);
            answer.await.unwrap().unwrap()
        });
        assert_eq!(answer.status(), status, "{kind}");
    }
}

#[test]
fn the_wait_for_an_answer_begins_at_the_end_of_the_upload_over_http2_as_well() {
    // Sends one body without a length and one with Content-Length.
    let asked = |world: &World, region: &crate::support::Region, path: &str| {
        let asking = async {
            let mut sender = http2(world, region.https, "localhost").await;
            let (sends, body) = pieces();
            sends.send(Frame::data(Bytes::from_static(b"data"))).unwrap();
            drop(sends);
            let ask = request(Method::POST, &format!("https://localhost{path}"), "", &[], body);
            let streamed = read(sender.send_request(ask).await.unwrap()).await.unwrap();
            let whole = crate::support::try_send(region.http, Method::POST, path, &[], whole("whole")).await.unwrap();
            [streamed, whole]
        };
        runtime().block_on(async { tokio::time::timeout(TIMEOUT, asking).await.expect("a response in time") })
    };
    let upstreams = |delay: Option<Duration>| {
        Box::new(move |_: &'static str| {
            let handler: crate::support::Handler = Arc::new(move |request, seen| {
                Box::pin(async move {
                    remember(request, &seen).await;
                    match delay {
                        Some(delay) => tokio::time::sleep(delay).await,
                        None => std::future::pending().await,
                    }
                    Response::new(whole("late"))
                })
            });
            vec![Recorder::with_protocol(Wire::Http2, handler)]
        })
    };
    let extra = "limits: { response_timeout: 200ms, idle_timeout: 1h }\n".to_owned();
    let world = World::planned(Plan { upstreams: upstreams(None), extra, ..Plan::default() });
    for region in [world.eu(), world.us()] {
        for answer in asked(&world, region, "/users/alice/orders/1") {
            assert_eq!(answer.code(), "upstream.timeout", "{}", region.name);
        }
    }
    // The idle timeout does not apply while the upstream works on a complete request.
    let extra = "limits: { response_timeout: 1h, idle_timeout: 100ms }\n".to_owned();
    let world = World::planned(Plan { upstreams: upstreams(Some(Duration::from_millis(500))), extra, ..Plan::default() });
    for region in [world.eu(), world.us()] {
        for answer in asked(&world, region, "/users/alice/orders/1") {
            assert_eq!(answer.text(), "late", "{}", region.name);
        }
    }
}
