//! Forwarding: requests and responses arrive completely, directly or through a peer, and no other region receives them.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Frame;

use crate::support::{Plan, Recorder, World, get, http2, pieces, post, read, remember, request, runtime, tls, whole};

#[test]
fn a_user_abroad_is_served_at_home_and_nowhere_else() {
    let world = World::start();
    let answer = get(world.us().http, "/users/alice/orders/7?full=1", &[("x-forwarded-for", "8.8.8.8"), ("accept", "text/x")]);
    assert_eq!((answer.status, answer.text()), (StatusCode::OK, "eu-west"));
    let seen = world.eu().upstream().seen();
    assert_eq!(seen.len(), 1);
    let (target, headers) = (&seen[0].target, &seen[0].headers);
    assert_eq!(target, "/users/alice/orders/7?full=1");
    assert_eq!(
        (&headers["host"], &headers["x-forwarded-for"], &headers["accept"]),
        (&"app.example.com".parse::<HeaderValue>().unwrap(), &"8.8.8.8".parse().unwrap(), &"text/x".parse().unwrap())
    );
    assert!(headers.keys().all(|name| !name.as_str().starts_with("domicile-")), "{headers:?}");
    crate::exits::assert_no_own_field(&answer.headers);
    world.us().upstream().assert_no_requests();
    world.assert_no_requests(&["ap-northeast"]);
}

#[test]
fn a_large_body_arrives_byte_for_byte_in_both_directions() {
    let echo = |_: &'static str| {
        vec![Recorder::with(Arc::new(|request, _| {
            Box::pin(async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                Response::new(whole(body))
            })
        }))]
    };
    let world = World::planned(Plan { upstreams: Box::new(echo), ..Plan::default() });
    let mut random = fastrand::Rng::with_seed(3);
    let body: Vec<u8> = (0..5 << 20).map(|_| random.u8(..)).collect();
    for region in [world.eu(), world.us()] {
        let answer = post(region.http, "/users/alice/orders/1", &[], body.clone());
        assert_eq!(answer.status, StatusCode::OK);
        assert!(answer.body == body, "{} of {} bytes were returned", answer.body.len(), body.len());
    }
    assert_eq!(world.us().sum_of("domicile_border_bytes_total"), body.len() as f64, "the sender counts the request");
    assert_eq!(world.eu().sum_of("domicile_border_bytes_total"), body.len() as f64, "the owner counts the response");
}

#[test]
fn a_stream_is_passed_on_piece_by_piece_in_both_directions() {
    // The upstream echoes each frame as it arrives, so a proxy that buffers the whole body fails this test.
    let mirror = |_: &'static str| {
        vec![Recorder::with(Arc::new(|request, _| {
            Box::pin(async move {
                let (sender, body) = pieces();
                tokio::spawn(async move {
                    let mut incoming = request.into_body();
                    while let Some(Ok(frame)) = incoming.frame().await {
                        let _ = sender.send(frame);
                    }
                });
                Response::new(body)
            })
        }))]
    };
    let world = World::planned(Plan { upstreams: Box::new(mirror), ..Plan::default() });
    for (region, path) in [(world.eu(), "/users/alice/orders/1"), (world.us(), "/users/alice/orders/1")] {
        runtime().block_on(async {
            let mut sender = http2(&world, region.https, "localhost").await;
            let (upload, body) = pieces();
            upload.send(Frame::data(Bytes::from_static(b"first"))).unwrap();
            let target = format!("https://localhost{path}");
            let answer = sender.send_request(request(Method::POST, &target, "", &[], body)).await.unwrap();
            let mut download = answer.into_body();
            assert_eq!(download.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
            upload.send(Frame::data(Bytes::from_static(b"second"))).unwrap();
            assert_eq!(download.frame().await.unwrap().unwrap().into_data().unwrap(), "second");
            drop(upload);
            assert!(download.collect().await.unwrap().to_bytes().is_empty(), "the response ends after the upload");
        });
    }
}

#[test]
fn trailers_cross_regions_in_both_directions() {
    let with_trailers = |_: &'static str| {
        vec![Recorder::with(Arc::new(|request, seen| {
            Box::pin(async move {
                remember(request, &seen).await;
                let (sender, body) = pieces();
                let _ = sender.send(Frame::data(Bytes::from_static(b"data")));
                let trailers =
                    [("grpc-status", "0"), ("domicile-data-class", "public"), ("domicile-code", "x"), ("x-request-id", "x")];
                let trailers = trailers.map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
                let _ = sender.send(Frame::trailers(trailers.into_iter().collect()));
                let mut response = Response::new(body);
                response
                    .headers_mut()
                    .insert("trailer", HeaderValue::from_static("grpc-status, domicile-data-class, domicile-code, x-request-id"));
                response
            })
        }))]
    };
    let world = World::planned(Plan { upstreams: Box::new(with_trailers), ..Plan::default() });
    for region in [world.eu(), world.us()] {
        let answer = runtime().block_on(async {
            let mut sender = http2(&world, region.https, "localhost").await;
            let (upload, body) = pieces();
            upload.send(Frame::data(Bytes::from_static(b"data"))).unwrap();
            let trailers: HeaderMap =
                [("x-checksum", "abc"), ("x-user-id", "mallory"), ("x-forwarded-for", "6.6.6.6"), ("x_api_key", "k")]
                    .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)))
                    .into_iter()
                    .collect();
            upload.send(Frame::trailers(trailers)).unwrap();
            drop(upload);
            let fields = [("te", "trailers"), ("trailer", "x-checksum, x-user-id, x-forwarded-for, x_api_key")];
            read(
                sender
                    .send_request(request(Method::POST, "https://localhost/users/alice/orders/1", "", &fields, body))
                    .await
                    .unwrap(),
            )
            .await
            .unwrap()
        });
        let trailers = answer.trailers.expect("the response has trailers");
        assert_eq!(
            (&trailers["grpc-status"], trailers.len()),
            (&HeaderValue::from_static("0"), 1),
            "{}: {trailers:?}",
            region.name
        );
    }
    let seen = world.eu().upstream().seen();
    assert_eq!(seen.len(), 2);
    for seen in seen {
        let trailers = seen.trailers.expect("the request has trailers");
        assert_eq!(
            (trailers.len(), &trailers["x-checksum"]),
            (1, &HeaderValue::from_static("abc")),
            "forged fields are removed from trailers"
        );
    }
}

#[test]
fn the_server_name_selects_the_certificate_and_alpn_the_protocol() {
    let world = World::start();
    runtime().block_on(async {
        for (alpn, expected) in
            [(&[&b"h2"[..], b"http/1.1"][..], Some(&b"h2"[..])), (&[b"http/1.1"], Some(b"http/1.1")), (&[], None)]
        {
            let stream = tls(&world, world.eu().https, "api.example.com", alpn).await;
            assert_eq!(stream.get_ref().1.alpn_protocol(), expected);
        }
        let mut sender = http2(&world, world.eu().https, "localhost").await;
        let answer = sender
            .send_request(request(Method::GET, "https://localhost/users/alice/orders/1", "", &[], whole("")))
            .await
            .unwrap();
        assert_eq!(read(answer).await.unwrap().text(), "eu-west");
    });
    assert_eq!(world.eu().upstream().seen()[0].headers["x-forwarded-proto"], "https");
}

#[test]
fn http2_with_prior_knowledge_is_spoken_on_cleartext() {
    let world = World::start();
    let answer = runtime().block_on(async {
        let stream = tokio::net::TcpStream::connect(world.eu().http).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        read(
            sender
                .send_request(request(Method::GET, "http://app.example.com/users/alice/orders/1", "", &[], whole("")))
                .await
                .unwrap(),
        )
        .await
        .unwrap()
    });
    assert_eq!(answer.text(), "eu-west");
    assert_eq!(world.eu().upstream().seen()[0].headers["host"], "app.example.com");
}

#[test]
fn the_head_of_an_answer_keeps_end_to_end_fields_and_loses_hop_by_hop_ones() {
    let rich = |_: &'static str| {
        vec![Recorder::with(Arc::new(|_, _| {
            Box::pin(async {
                Response::builder()
                    .status(203)
                    .header("date", "Mon, 01 Jan 2024 00:00:00 GMT")
                    .header("set-cookie", "a=1")
                    .header("set-cookie", "b=2")
                    .header("content-encoding", "br")
                    .header("connection", "x-private")
                    .header("x-private", "1")
                    .header("domicile-data-class", "public")
                    .body(whole("x"))
                    .unwrap()
            })
        }))]
    };
    let world = World::planned(Plan { upstreams: Box::new(rich), ..Plan::default() });
    for region in [world.eu(), world.us()] {
        let answer = get(region.http, "/users/alice/orders/1", &[]);
        assert_eq!(answer.status.as_u16(), 203);
        assert_eq!(answer.headers["date"], "Mon, 01 Jan 2024 00:00:00 GMT");
        assert_eq!(answer.headers.get_all("set-cookie").iter().count(), 2);
        assert_eq!(answer.headers["content-encoding"], "br");
        assert!(!answer.headers.contains_key("x-private") && !answer.headers.contains_key("domicile-data-class"));
        assert_eq!(answer.headers.get_all("date").iter().count(), 1);
    }
}

#[test]
fn a_code_that_an_app_server_invents_is_not_a_code_of_a_peer() {
    let inventing = |_: &'static str| {
        vec![Recorder::with(Arc::new(|request, seen| {
            Box::pin(async move {
                remember(request, &seen).await;
                let mut response = Response::new(whole("ok"));
                response.headers_mut().insert("domicile-code", HeaderValue::from_static("peer.misdirected"));
                response
            })
        }))]
    };
    let world = World::planned(Plan { upstreams: Box::new(inventing), ..Plan::default() });
    for region in [world.eu(), world.us()] {
        let answer = get(region.http, "/users/alice/orders/1", &[]);
        assert_eq!((answer.status, answer.text()), (StatusCode::OK, "ok"), "{}", region.name);
        assert!(!answer.headers.contains_key("domicile-code"));
        assert!(!region.metrics().contains("peer.misdirected"), "no failure is counted");
    }
    assert_eq!(world.eu().upstream().seen().len(), 2, "each request was sent once");
}

#[test]
fn head_and_bodiless_answers_keep_their_shape() {
    let world = World::planned(Plan {
        upstreams: Box::new(|_| {
            vec![Recorder::with(Arc::new(|request, _| {
                Box::pin(async move {
                    let status = if request.uri().path().ends_with("none") { 204 } else { 200 };
                    let mut response =
                        Response::new(whole(if request.method() == Method::GET && status == 200 { "twelve bytes" } else { "" }));
                    *response.status_mut() = StatusCode::from_u16(status).unwrap();
                    if request.method() == Method::HEAD {
                        response.headers_mut().insert("content-length", HeaderValue::from_static("12"));
                    }
                    response
                })
            }))]
        }),
        ..Plan::default()
    });
    for region in [world.eu(), world.us()] {
        let head = crate::support::send(region.http, Method::HEAD, "/users/alice/orders/1", &[], whole(""));
        assert_eq!(
            (head.status, &head.headers["content-length"], head.body.len()),
            (StatusCode::OK, &HeaderValue::from_static("12"), 0)
        );
        let none = get(region.http, "/users/alice/orders/none", &[]);
        assert_eq!((none.status, none.body.len()), (StatusCode::NO_CONTENT, 0));
        assert_eq!(get(region.http, "/users/alice/orders/1", &[]).text(), "twelve bytes");
    }
}

#[test]
fn a_head_that_passes_at_home_passes_abroad() {
    let world = World::planned(Plan { extra: "limits: { headers: 60 }\n".into(), ..Plan::default() });
    let names: Vec<String> = (0..59).map(|index| format!("x-{index}")).collect();
    let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "y")).collect();
    let long = "z".repeat(31 << 10);
    for fields in [many, vec![("x", long.as_str())]] {
        for region in [world.eu(), world.us()] {
            assert_eq!(get(region.http, "/users/alice/orders/1", &fields).text(), "eu-west");
        }
    }
}

#[test]
fn repeated_slashes_are_handled_as_configured() {
    for (setting, status, path) in
        [("merge", 200, "/users/alice/orders/1"), ("keep", 200, "/users/alice/orders//1"), ("refuse", 400, "")]
    {
        let extra = format!("paths: {{ repeated_slashes: {setting} }}\n");
        let world = World::planned(Plan { extra, ..Plan::default() });
        for region in [world.eu(), world.us()] {
            let answer = get(region.http, "/users/alice/orders//1", &[]);
            assert_eq!(answer.status.as_u16(), status, "{setting}");
        }
        let seen: Vec<_> = world.eu().upstream().seen().iter().map(|seen| seen.target.clone()).collect();
        assert!(seen.len() == if status == 200 { 2 } else { 0 } && seen.iter().all(|seen| seen == path), "{setting}: {seen:?}");
    }
}
