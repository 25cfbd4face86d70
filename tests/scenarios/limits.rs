//! Limits on rates, sizes, times and counts: exceeding one affects only the client or upstream that exceeds it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use tokio::sync::Notify;

use crate::support::{
    Plan, Recorder, TIMEOUT, World, assert_closed, eventually, get, http2, post, read, remember, request, runtime, whole,
};

/// An upstream that responds to one request for each notification on `release`.
fn held(release: &Arc<Notify>) -> impl Fn(&'static str) -> Vec<Recorder> + use<> {
    let release = Arc::clone(release);
    move |_| {
        let release = Arc::clone(&release);
        vec![Recorder::with(Arc::new(move |request, seen| {
            let release = Arc::clone(&release);
            Box::pin(async move {
                remember(request, &seen).await;
                release.notified().await;
                Response::new(whole("released"))
            })
        }))]
    }
}

fn large(_: &'static str) -> Vec<Recorder> {
    let body = Bytes::from(vec![0; 8 << 20]);
    vec![Recorder::with(Arc::new(move |request, _| {
        let body = if request.uri().path().ends_with("large") { body.clone() } else { Bytes::from_static(b"small") };
        Box::pin(async move { Response::new(whole(body)) })
    }))]
}

#[test]
fn a_stream_whose_reader_stops_is_ended_and_its_connection_goes_on() {
    let world =
        World::planned(Plan { upstreams: Box::new(large), extra: "limits: { idle_timeout: 300ms }\n".into(), ..Plan::default() });
    runtime().block_on(async {
        let mut sender = http2(&world, world.eu().https, "localhost").await;
        let target =
            |path: &str| request(Method::GET, &format!("https://localhost/users/alice/orders/{path}"), "", &[], whole(""));
        let stopped = sender.send_request(target("large")).await.unwrap();
        let is_ended = || world.eu().sum_of("domicile_requests_total") >= 1.0;
        tokio::task::block_in_place(|| eventually("the stalled stream is ended", is_ended));
        let other = read(sender.send_request(target("small")).await.unwrap()).await.unwrap();
        assert_eq!(other.text(), "small");
        assert!(read(stopped).await.is_err(), "the cut response is not complete");
    });
}

/// Asserts that a client is cut that reads the first bytes of a large response and then no more.
fn assert_slow_reader_is_cut(extra: &str) {
    let world = World::planned(Plan { upstreams: Box::new(large), extra: extra.into(), ..Plan::default() });
    let mut slow = TcpStream::connect(world.eu().http).unwrap();
    slow.write_all(b"GET /users/alice/orders/large HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    slow.set_read_timeout(Some(TIMEOUT)).unwrap();
    assert!(slow.read(&mut [0; 64]).unwrap() > 0, "the response has begun");
    let none = format!("domicile_connections{{listener=\"{}\"}} 0", world.eu().http);
    eventually("the connection is closed", || world.eu().metrics().contains(&none));
}

#[test]
fn a_slow_reader_is_cut_by_the_minimum_rate() {
    assert_slow_reader_is_cut("limits: { body_rate: 1GiB, body_rate_grace: 100ms }\n");
}

#[test]
fn bytes_in_the_kernel_earn_a_slow_reader_no_time() {
    // At this rate, the megabytes that the kernel buffers would be worth an hour.
    assert_slow_reader_is_cut("limits: { body_rate: 1KiB, body_rate_grace: 500ms, idle_timeout: 1h }\n");
}

#[test]
fn the_number_of_requests_per_connection_is_limited() {
    let world = World::planned(Plan { extra: "limits: { requests_per_connection: 2 }\n".into(), ..Plan::default() });
    let ask = "GET /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\n\r\n";
    let answer = crate::support::raw(world.eu().http, ask.repeat(3).as_bytes());
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
    assert_eq!(answer.to_lowercase().matches("connection: close").count(), 1, "{answer}");
    assert_eq!(world.eu().upstream().seen().len(), 2);
    runtime().block_on(async {
        let mut sender = http2(&world, world.eu().https, "localhost").await;
        for _ in 0..2 {
            let ask = request(Method::GET, "https://localhost/users/alice/orders/1", "", &[], whole(""));
            assert_eq!(sender.send_request(ask).await.unwrap().status(), StatusCode::OK);
        }
        let gone = async {
            while sender.ready().await.is_ok() && !sender.is_closed() {
                tokio::task::yield_now().await
            }
        };
        tokio::time::timeout(TIMEOUT, gone).await.expect("the connection gets GOAWAY");
    });
}

#[test]
fn the_newest_work_is_shed_and_the_admin_port_stays() {
    for extra in ["limits: { requests: 1 }\n", "upstreams: { requests: 1, queue: 0 }\n"] {
        let release = Arc::new(Notify::new());
        let world = World::planned(Plan { upstreams: Box::new(held(&release)), extra: extra.into(), ..Plan::default() });
        let address = world.eu().http;
        let first = std::thread::spawn(move || get(address, "/users/alice/orders/1", &[]));
        eventually("the first request is in flight", || world.eu().upstream().seen().len() == 1);
        let second = post(address, "/users/alice/orders/1", &[], "x");
        assert_eq!((second.status, second.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "proxy.overloaded"), "{extra}");
        assert!(second.headers.contains_key("retry-after"));
        assert_eq!(get(world.eu().admin, "/livez", &[]).status, StatusCode::OK);
        release.notify_one();
        assert_eq!(first.join().unwrap().text(), "released");
        release.notify_one();
        assert_eq!(get(address, "/users/alice/orders/1", &[]).text(), "released", "the next request is accepted again");
        assert_eq!(world.eu().upstream().seen().len(), 2);
    }
}

#[test]
fn a_request_queued_for_a_full_upstream_is_served_in_turn() {
    let release = Arc::new(Notify::new());
    let extra = "upstreams: { requests: 1, queue: 1, queue_timeout: 30s }\n".to_owned();
    let world = World::planned(Plan { upstreams: Box::new(held(&release)), extra, ..Plan::default() });
    let address = world.eu().http;
    let ask = move || std::thread::spawn(move || get(address, "/users/alice/orders/1", &[]));
    let first = ask();
    eventually("the first request is in flight", || world.eu().upstream().seen().len() == 1);
    // The queue has room for only one of these requests.
    let others = [ask(), ask()];
    eventually("one request is refused", || others.iter().any(std::thread::JoinHandle::is_finished));
    release.notify_one();
    assert_eq!(first.join().unwrap().text(), "released");
    eventually("the queued request is in flight", || world.eu().upstream().seen().len() == 2);
    release.notify_one();
    let statuses = others.map(|other| other.join().unwrap().status.as_u16());
    assert!(statuses == [200, 503] || statuses == [503, 200], "{statuses:?}");
}

#[test]
fn an_upstream_that_keeps_failing_is_ejected() {
    let upstreams = |name: &'static str| {
        let failing = Recorder::with(Arc::new(|request, seen| {
            Box::pin(async move {
                remember(request, &seen).await;
                let mut response = Response::new(whole("failing"));
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                response
            })
        }));
        vec![failing, Recorder::start(name)]
    };
    let extra = "upstreams: { ejection: { after: 3, for: 1h } }\n".to_owned();
    let world = World::planned(Plan { upstreams: Box::new(upstreams), extra, ..Plan::default() });
    eventually("the first upstream has failed three times", || {
        get(world.eu().http, "/users/alice/orders/1", &[]);
        world.eu().upstreams[0].seen().len() == 3
    });
    let ejected = format!("domicile_upstream_ejected{{service=\"app\",upstream=\"{}\"}} 1", world.eu().upstreams[0].address);
    assert!(world.eu().metrics().contains(&ejected));
    for _ in 0..20 {
        assert_eq!(get(world.eu().http, "/users/alice/orders/1", &[]).text(), "eu-west");
    }
    assert_eq!(world.eu().upstreams[0].seen().len(), 3);
    // The other upstream is not ejected as well, because then none would be left.
    world.eu().upstreams[1].crash();
    for _ in 0..10 {
        assert_eq!(get(world.eu().http, "/users/alice/orders/1", &[]).status.as_u16() / 100, 5);
    }
    let other = format!("domicile_upstream_ejected{{service=\"app\",upstream=\"{}\"}} 0", world.eu().upstreams[1].address);
    assert!(world.eu().metrics().contains(&other));
}

#[test]
fn the_number_of_connections_is_limited() {
    let world = World::planned(Plan { extra: "limits: { connections: 2 }\n".into(), ..Plan::default() });
    let held: Vec<_> = (0..2).map(|_| TcpStream::connect(world.eu().http).unwrap()).collect();
    let two = format!("domicile_connections{{listener=\"{}\"}} 2", world.eu().http);
    eventually("both connections are open", || world.eu().metrics().contains(&two));
    let mut third = TcpStream::connect(world.eu().http).unwrap();
    assert_closed(&mut third);
    assert_eq!(world.us().metrics().matches("connections_refused_total{reason=\"connections\"} 1").count(), 0);
    assert!(world.eu().metrics().contains("domicile_connections_refused_total{reason=\"connections\"} 1"));
    drop(held);
    eventually("a new connection is served", || {
        runtime()
            .block_on(crate::support::try_send(world.eu().http, Method::GET, "/users/alice/orders/1", &[], whole("")))
            .is_ok()
    });
}

#[test]
fn a_handshake_that_stands_still_is_not_waited_for() {
    let world = World::planned(Plan { extra: "limits: { header_timeout: 200ms }\n".into(), ..Plan::default() });
    // Each port gets a client that sends nothing, and a client that sends an incomplete TLS record.
    for address in [world.eu().https, world.eu().peers] {
        for sent in [&b""[..], b"\x16\x03\x01\x02"] {
            let mut silent = TcpStream::connect(address).unwrap();
            silent.set_read_timeout(Some(TIMEOUT)).unwrap();
            silent.write_all(sent).unwrap();
            let end = silent.read(&mut [0; 1]);
            assert!(
                matches!(end, Ok(0)) || end.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset),
                "the connection is closed"
            );
        }
    }
}

#[test]
fn the_number_of_handshakes_in_progress_is_limited() {
    let world = World::planned(Plan { extra: "limits: { handshakes: 1, header_timeout: 60s }\n".into(), ..Plan::default() });
    // This client sends nothing, so its handshake stays in progress.
    let silent = TcpStream::connect(world.eu().https).unwrap();
    let one = format!("domicile_connections{{listener=\"{}\"}} 1", world.eu().https);
    eventually("the first connection is open", || world.eu().metrics().contains(&one));
    let mut second = TcpStream::connect(world.eu().https).unwrap();
    assert_closed(&mut second);
    drop(silent);
    let none = format!("domicile_connections{{listener=\"{}\"}} 0", world.eu().https);
    eventually("the first connection is closed", || world.eu().metrics().contains(&none));
    runtime().block_on(async {
        let mut sender = http2(&world, world.eu().https, "localhost").await;
        let ask = request(Method::GET, "https://localhost/users/alice/orders/1", "", &[], whole(""));
        assert_eq!(sender.send_request(ask).await.unwrap().status(), StatusCode::OK);
    });
}

#[test]
fn an_answer_that_does_not_come_is_not_waited_for() {
    for extra in ["limits: { response_timeout: 200ms }\n", "limits: { request_timeout: 200ms }\n"] {
        let release = Arc::new(Notify::new());
        let world = World::planned(Plan { upstreams: Box::new(held(&release)), extra: extra.into(), ..Plan::default() });
        let answer = get(world.eu().http, "/users/alice/orders/1", &[]);
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::GATEWAY_TIMEOUT, "upstream.timeout"), "{extra}");
    }
}

#[test]
fn the_connection_buffer_limits_the_window_of_a_connection() {
    let extra = "limits: { connection_buffer: 128KiB }\n".to_owned();
    let world = World::planned(Plan { extra, ..Plan::default() });
    let mut stream = TcpStream::connect(world.eu().http).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00").unwrap();
    // The first WINDOW_UPDATE of the connection adds to the initial window of 65,535 bytes.
    let mut frames = Vec::new();
    let window = loop {
        let mut buffer = [0; 4096];
        let size = stream.read(&mut buffer).unwrap();
        assert!(size > 0, "{frames:?}");
        frames.extend_from_slice(&buffer[..size]);
        let update = frames.windows(13).find(|frame| frame.starts_with(b"\x00\x00\x04\x08\x00\x00\x00\x00\x00"));
        if let Some(update) = update {
            break u32::from_be_bytes(update[9..].try_into().unwrap()) + 65_535;
        }
    };
    assert_eq!(window, 128 << 10);
}

#[test]
fn a_body_that_stalls_is_cut_off() {
    let silent = |name| {
        vec![if name == "eu-west" {
            Recorder::raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        } else {
            Recorder::start(name)
        }]
    };
    // Without a minimum rate, only the idle timeout ends the body.
    let extra = "limits: { idle_timeout: 200ms, body_rate: 0B }\n".to_owned();
    let world = World::planned(Plan { upstreams: Box::new(silent), extra: extra.clone(), ..Plan::default() });
    for region in [world.eu(), world.us()] {
        let answer = crate::support::raw(region.http, b"GET /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nhalf"),
            "the response is cut off, and nothing is added: {answer}"
        );
    }
    let world = World::planned(Plan { extra, ..Plan::default() });
    for region in [world.eu(), world.us()] {
        let answer =
            crate::support::raw(region.http, b"POST /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf");
        assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("request.timeout"), "{}: {answer}", region.name);
    }
    world.eu().upstream().assert_no_requests();
}
