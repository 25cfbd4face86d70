//! The actions of routes: rewriting, header fields, responses without an app server, client networks and limits.

use std::sync::Arc;

use http::{Response, StatusCode};
use hyper::body::Frame;

use crate::support::{
    NAMES, Plan, RULES, Recorder, World, eventually, get, http2, pieces, post, read, remember, request, runtime, send, whole,
};

/// Three regions with these routes before the usual ones, and these upstreams.
fn world_with(routes: &str, upstreams: impl Fn(&'static str) -> Vec<Recorder> + 'static) -> World {
    let rules = RULES.replace("routes:\n", &format!("routes:\n{routes}\n"));
    let rules = NAMES.into_iter().map(|name| (name, rules.clone())).collect();
    World::planned(Plan { rules, upstreams: Box::new(upstreams), ..Plan::default() })
}

fn world(routes: &str) -> World {
    world_with(routes, |name| vec![Recorder::start(name)])
}

const OWNED: &str = "data: personal, home: [directory, refuse]";

#[test]
fn the_owner_rewrites_the_target_and_the_header_fields() {
    let world = world(&format!(
        "  - {{ name: api, match: {{ path: \"/api/{{user}}/**\" }}, {OWNED},
      rewrite: {{ strip_prefix: /api, host: \"app.internal:81\" }},
      request_headers: {{ set: {{ x-country: \"{{client.country}}\", x-where: \"{{home}} {{region}} {{route}}\", x-path: \"{{uri}}\" }}, remove: [x-secret] }},
      response_headers: {{ set: {{ x-served-by: \"{{region}}\", cache-control: no-store }}, add: {{ vary: [accept, origin] }} }} }}"
    ));
    let forged = [("x-country", "forged"), ("x-secret", "1"), ("x-forwarded-for", "91.64.0.1")];
    for proxy in [world.eu(), world.us()] {
        let answer = get(proxy.http, "/api/alice/orders?a=%2Fapi", &forged);
        assert_eq!(answer.text(), "eu-west");
        assert_eq!([&answer.headers["x-served-by"], &answer.headers["cache-control"]], ["eu-west", "no-store"]);
        assert_eq!(answer.headers.get_all("vary").iter().collect::<Vec<_>>(), ["accept", "origin"]);
        let seen = world.eu().upstream().seen();
        let request = seen.last().unwrap();
        assert_eq!(
            (request.target.as_str(), request.headers["host"].to_str().unwrap()),
            ("/alice/orders?a=%2Fapi", "app.internal:81")
        );
        assert_eq!([&request.headers["x-country"], &request.headers["x-where"]], ["DE", "eu-west eu-west api"]);
        assert_eq!(&request.headers["x-path"], &"/api/alice/orders?a=%2Fapi");
        assert!(!request.headers.contains_key("x-secret"));
        assert_eq!(request.headers.get_all("x-country").iter().count(), 1);
    }
    world.assert_no_requests(&["ap-northeast"]);
    world.us().upstream().assert_no_requests();
}

#[test]
fn a_request_that_is_sent_again_is_rewritten_once() {
    let routes = format!(
        "  - {{ name: api, match: {{ path: \"/api/**\" }}, {OWNED}, rewrite: {{ prefix: /api, with: /api/api }}, rate_limit: {{ rate: 1/h, burst: 10 }}, request_headers: {{ add: {{ x-hop: one }} }} }}"
    );
    let world = world_with(&routes, |name| vec![Recorder::start(name), Recorder::start(name)]);
    world.eu().upstreams[0].crash();
    for _ in 0..10 {
        assert_eq!(get(world.eu().http, "/api/x", &[("x-user-id", "alice")]).text(), "eu-west");
    }
    for request in world.eu().upstreams[1].seen() {
        assert_eq!((request.target.as_str(), request.headers.get_all("x-hop").iter().count()), ("/api/api/x", 1));
    }
}

#[test]
fn a_route_responds_or_redirects_itself_at_the_owner() {
    let world = world(&format!(
        "  - {{ name: moved, match: {{ path: \"/moved/{{user}}/**\" }}, {OWNED}, redirect: {{ to: \"https://{{region}}.example.com{{uri}}\", status: 308 }} }}
  - {{ name: about, match: {{ path: \"/about/{{user}}\" }}, {OWNED}, respond: {{ status: 418, body: \"{{region}} for {{client.country}}\", type: text/html }}, response_headers: {{ set: {{ x-region: \"{{region}}\" }} }} }}
  - {{ name: gone, match: {{ path: /gone }}, data: public, home: [latency], respond: 410 }}"
    ));
    let german = [("x-forwarded-for", "91.64.0.1")];
    for proxy in [world.eu(), world.us()] {
        let moved = get(proxy.http, "/moved/alice/a?b=c", &german);
        assert_eq!(moved.status, StatusCode::PERMANENT_REDIRECT);
        assert_eq!(moved.headers["location"], "https://eu-west.example.com/moved/alice/a?b=c");
        let about = post(proxy.http, "/about/alice", &german, "ignored");
        assert_eq!((about.status.as_u16(), about.text()), (418, "eu-west for DE"));
        assert_eq!([&about.headers["content-type"], &about.headers["x-region"]], ["text/html", "eu-west"]);
        assert_eq!(get(proxy.http, "/gone", &[]).status, StatusCode::GONE);
    }
    let refused = get(world.jp().http, "/about/alice", &german);
    assert_eq!(refused.status, StatusCode::TEMPORARY_REDIRECT, "judged like any other request: Japan may not carry it");
    let unknown = get(world.eu().http, "/about/nobody", &[]);
    assert_eq!(unknown.code(), "home.unresolved");
    [world.eu(), world.us(), world.jp()].iter().for_each(|region| region.upstream().assert_no_requests());
}

#[test]
fn a_route_admits_only_the_clients_of_its_networks() {
    let world = world(&format!(
        "  - {{ name: office, match: {{ path: \"/office/{{user}}\" }}, {OWNED}, clients: {{ allow: [10.0.0.0/8, \"2001:db8::/32\"], deny: [10.6.6.6] }} }}"
    ));
    let from = |proxy: &crate::support::Region, client: &str| get(proxy.http, "/office/alice", &[("x-forwarded-for", client)]);
    for proxy in [world.eu(), world.us()] {
        for denied in ["10.6.6.6", "192.0.2.1", "2001:db9::1"] {
            let answer = from(proxy, denied);
            assert_eq!((answer.status, answer.code().as_str()), (StatusCode::FORBIDDEN, "route.client_denied"), "{denied}");
        }
    }
    world.eu().upstream().assert_no_requests();
    for proxy in [world.eu(), world.us()] {
        assert_eq!(from(proxy, "10.1.2.3").text(), "eu-west");
        assert_eq!(from(proxy, "2001:db8::1").text(), "eu-west");
    }
}

#[test]
fn a_route_has_limits_of_its_own_in_every_region() {
    let routes = format!(
        "  - {{ name: uploads, match: {{ path: \"/uploads/{{user}}\" }}, {OWNED}, body: 20B }}
  - {{ name: slow, match: {{ path: \"/slow/{{user}}\" }}, {OWNED}, timeouts: {{ response: 150ms }} }}"
    );
    let world = world_with(&routes, |name| {
        vec![Recorder::with(Arc::new(move |request, seen| {
            Box::pin(async move {
                let is_slow = request.uri().path().starts_with("/slow");
                remember(request, &seen).await;
                if is_slow {
                    std::future::pending::<()>().await;
                }
                Response::new(whole(name))
            })
        }))]
    });
    for proxy in [world.eu(), world.us()] {
        assert_eq!(post(proxy.http, "/uploads/alice", &[], "twenty bytes, exact.").text(), "eu-west");
        let large = post(proxy.http, "/uploads/alice", &[], "one byte more than 20");
        assert_eq!((large.status, large.code().as_str()), (StatusCode::PAYLOAD_TOO_LARGE, "request.body_too_large"));
        assert_eq!(get(proxy.http, "/slow/alice", &[]).code(), "upstream.timeout");
    }
}

#[test]
fn actions_change_no_decision() {
    let plain = world("  - { name: api, match: { path: \"/api/{user}/**\" }, data: personal, home: [directory, refuse] }");
    let acting = world(&format!(
        "  - {{ name: api, match: {{ path: \"/api/{{user}}/**\" }}, {OWNED}, rewrite: {{ path: /elsewhere, host: other.test }}, body: 1B, clients: {{ deny: [10.0.0.0/8] }},
      request_headers: {{ set: {{ x-user-id: bob }} }}, timeouts: {{ request: 1s }}, attempts: 1 }}"
    ));
    let explain = |world: &World, user: &str| {
        let target = format!("/explain?format=json&url=http://a.test/api/{user}/1&ip=10.1.1.1");
        let mut explained: serde_json::Value = serde_json::from_slice(&get(world.us().admin, &target, &[]).body).unwrap();
        assert_eq!(explained["route"], "api");
        explained.as_object_mut().unwrap().remove("url");
        let actions = explained.as_object_mut().unwrap().remove("actions").unwrap();
        (explained, actions)
    };
    for user in ["alice", "bob", "chika", "nobody"] {
        assert_eq!(explain(&plain, user).0, explain(&acting, user).0);
    }
    let phrases = serde_json::json!([
        "refuses clients of 10.0.0.0/8",
        "replaces the path by /elsewhere",
        "replaces the host by other.test",
        "changes header fields of the request",
        "has limits of its own",
    ]);
    assert_eq!((explain(&plain, "alice").1, explain(&acting, "alice").1), (serde_json::json!([]), phrases));
    // The hash of the policy, by which regions compare their judgement, is the same too.
    assert_eq!(explain(&plain, "alice").0["policy"], explain(&acting, "alice").0["policy"]);
}

/// Decompresses a body.
fn decompressed(coding: &str, data: &[u8]) -> Vec<u8> {
    use async_compression::tokio::bufread::{BrotliDecoder, GzipDecoder, ZstdDecoder};
    use tokio::io::AsyncReadExt;
    let mut plain = Vec::new();
    runtime().block_on(async {
        match coding {
            "gzip" => GzipDecoder::new(data).read_to_end(&mut plain).await,
            "br" => BrotliDecoder::new(data).read_to_end(&mut plain).await,
            "zstd" => ZstdDecoder::new(data).read_to_end(&mut plain).await,
            other => panic!("{other}"),
        }
        .unwrap()
    });
    plain
}

#[test]
fn responses_are_compressed_at_the_owner_for_clients_that_accept_it() {
    let text = "a line of text that repeats\n".repeat(4000);
    let body = text.clone();
    let routes = format!("  - {{ name: pages, match: {{ path: \"/pages/{{user}}/**\" }}, {OWNED}, compress: [zstd, br, gzip] }}");
    let world = world_with(&routes, move |_| {
        let body = body.clone();
        vec![Recorder::with(Arc::new(move |request, seen| {
            let body = body.clone();
            Box::pin(async move {
                let kind = if request.uri().path().ends_with(".png") { "image/png" } else { "text/plain" };
                remember(request, &seen).await;
                Response::builder().header("content-type", kind).header("etag", "\"v1\"").body(whole(body)).unwrap()
            })
        }))]
    });
    for proxy in [world.eu(), world.us()] {
        for (accept, expected) in
            [("gzip, br", "br"), ("gzip", "gzip"), ("gzip, br, zstd", "zstd"), ("gzip;q=1, br;q=0.1", "gzip")]
        {
            let answer = get(proxy.http, "/pages/alice/1", &[("accept-encoding", accept)]);
            let fields = ["content-encoding", "vary", "etag"].map(|name| answer.headers[name].to_str().unwrap().to_owned());
            assert_eq!(fields, [expected, "accept-encoding", "W/\"v1\""]);
            assert!(
                answer.body.len() < text.len() / 50 && !answer.headers.contains_key("content-length"),
                "{}",
                answer.body.len()
            );
            assert_eq!(decompressed(expected, &answer.body), text.as_bytes());
        }
        let plain = get(proxy.http, "/pages/alice/1", &[]);
        assert_eq!((plain.text(), plain.headers.contains_key("content-encoding")), (&*text, false));
        assert_eq!(
            (&plain.headers["vary"], &plain.headers["etag"]),
            (&"accept-encoding".parse().unwrap(), &"\"v1\"".parse().unwrap())
        );
        let image = get(proxy.http, "/pages/alice/1.png", &[("accept-encoding", "gzip")]);
        assert_eq!((image.text(), image.headers.contains_key("vary")), (&*text, false));
        let other = get(proxy.http, "/users/alice/orders/1", &[("accept-encoding", "gzip")]);
        assert!(!other.headers.contains_key("content-encoding"), "another route does not compress");
    }
}

#[test]
fn a_rate_limit_counts_at_the_owner_for_requests_of_all_regions() {
    let world = world(&format!(
        "  - {{ name: mine, match: {{ path: \"/mine/{{user}}\" }}, {OWNED}, rate_limit: {{ rate: 2/h, burst: 3, by: user }} }}
  - {{ name: theirs, match: {{ path: \"/theirs/{{user}}\" }}, {OWNED}, rate_limit: [1/h, {{ rate: 1000/s, by: route }}] }}
  - {{ name: keyed, match: {{ path: \"/keyed/{{user}}\" }}, {OWNED}, rate_limit: {{ rate: 1/h, by: {{ header: x-tenant }} }} }}"
    ));
    let from = |client: &'static str, user: &'static str| [("x-forwarded-for", client), ("x-user-id", user)];
    let ok = |answer: &crate::support::Answer| answer.status == StatusCode::OK;
    // The user's requests count together, through whichever region they come.
    let answers: Vec<_> = [world.eu(), world.us(), world.eu(), world.us(), world.eu()]
        .iter()
        .map(|proxy| get(proxy.http, "/mine/alice", &from("91.64.0.1", "alice")))
        .collect();
    assert_eq!(answers.iter().map(ok).collect::<Vec<_>>(), [true, true, true, false, false]);
    for refused in &answers[3..] {
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (429, "route.rate_limited"));
        let wait: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1700..=1800).contains(&wait), "{wait}");
        assert_eq!(refused.headers["ratelimit-policy"].to_str().unwrap(), "\"route\";q=3;w=5400");
        assert_eq!(refused.headers["ratelimit"].to_str().unwrap(), format!("\"route\";r=0;t={wait}"));
    }
    assert!(ok(&get(world.eu().http, "/mine/alice", &from("91.64.0.1", "bob"))), "another user");
    assert_eq!(world.eu().upstream().seen().len(), 4, "refused requests reach no app server");
    let theirs = |client: &'static str| ok(&get(world.us().http, "/theirs/alice", &[("x-forwarded-for", client)]));
    assert_eq!([theirs("192.0.2.1"), theirs("192.0.2.1"), theirs("192.0.2.2")], [true, false, true]);
    assert_eq!(
        [theirs("2001:db8::1"), theirs("2001:db8::2"), theirs("2001:db8:0:1::1")],
        [true, false, true],
        "a /64 is one client"
    );
    let keyed = |tenant: &str| ok(&get(world.us().http, "/keyed/alice", &[("x-tenant", tenant)]));
    assert_eq!([keyed("a"), keyed("a"), keyed("b")], [true, false, true]);
}

#[test]
fn a_limit_that_ends_a_failover_is_the_code_of_the_response() {
    let world = world(&format!(
        "  - {{ name: mine, match: {{ path: \"/mine/{{user}}\" }}, {OWNED}, failover: {{ reads: nearest }}, rate_limit: {{ rate: 1/h, burst: 1, by: route }} }}"
    ));
    assert_eq!(get(world.eu().http, "/mine/alice", &[]).text(), "eu-west");
    world.us().upstream().crash();
    let limited = get(world.eu().http, "/mine/bob", &[]);
    assert_eq!((limited.status.as_u16(), limited.code().as_str()), (429, "route.rate_limited"));
    assert_eq!(world.eu().upstream().seen().len(), 1);
}

#[test]
fn nobody_spends_the_tokens_of_a_user_whose_key_is_only_claimed() {
    let world = world(&format!(
        "  - {{ name: mine, match: {{ path: \"/mine/{{user}}\" }}, {OWNED}, rate_limit: {{ rate: 1/h, burst: 1, by: user }} }}"
    ));
    let claims = |client: &'static str| {
        get(world.eu().http, "/mine/alice", &[("x-forwarded-for", client), ("cookie", "uid=alice")]).status
    };
    assert_eq!([claims("192.0.2.1"), claims("192.0.2.1"), claims("192.0.2.2")], [200, 429, 200], "counted by client");
    let proven = get(world.eu().http, "/mine/alice", &[("x-forwarded-for", "192.0.2.1"), ("x-user-id", "alice")]);
    assert_eq!(proven.status, StatusCode::OK);
}

#[test]
fn a_refusal_of_the_route_is_told_as_such_also_after_another_region_has_failed() {
    let routes = "  - { name: feed2, match: { path: \"/feed2/**\" }, data: public, home: [directory, { region: us-east }], failover: { reads: nearest }, clients: { deny: [192.0.2.0/24] }, rate_limit: 1/h }";
    let mut world = world(routes);
    world.regions[1].app.take().unwrap().shut_down();
    // Before the probes notice it, the home is tried first.
    let ask = |client: &'static str| get(world.eu().http, "/feed2/1", &[("x-forwarded-for", client)]);
    assert_eq!(ask("192.0.2.1").code(), "route.client_denied");
    assert_eq!(ask("198.51.100.1").text(), "eu-west");
    // Without a burst, the requests of ten seconds pass: one.
    assert_eq!(ask("198.51.100.1").code(), "route.rate_limited");
}

#[test]
fn a_uniform_refusal_of_another_region_says_when_to_come_back() {
    let routes =
        format!("  - {{ name: mine, match: {{ path: \"/mine/{{user}}\" }}, {OWNED}, rate_limit: {{ rate: 1/h, burst: 1 }} }}");
    let rules =
        RULES.replace("routes:\n", &format!("routes:\n{routes}\n")).replace("users:\n", "users:\n  uniform_refusals: true\n");
    let rules = NAMES.into_iter().map(|name| (name, rules.clone())).collect();
    let world = World::planned(Plan { rules, ..Plan::default() });
    assert_eq!(get(world.us().http, "/mine/alice", &[]).text(), "eu-west");
    let refused = get(world.us().http, "/mine/alice", &[]);
    assert_eq!((refused.code().as_str(), refused.headers.contains_key("ratelimit")), ("route.rate_limited", true));
    assert!(refused.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 3000);
}

/// An upstream that closes the connection after every response, without saying so.
fn closing() -> Recorder {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut recorder = Recorder::start("closing");
    recorder.crash();
    let listener = runtime().block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    recorder.entry = format!("\"http://{}/app\"", listener.local_addr().unwrap());
    runtime().spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { break };
                head.push(byte);
            }
            // The response says what the app server got.
            let line = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
            let tags = String::from_utf8_lossy(&head).lines().filter(|line| line.to_lowercase().starts_with("x-tag:")).count();
            let body = format!("{line}; {tags}");
            let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes()).await;
        }
    });
    recorder
}

#[test]
fn a_request_that_meets_a_stale_connection_is_rewritten_once() {
    let routes = format!(
        "  - {{ name: api, match: {{ path: \"/api/**\" }}, {OWNED}, rewrite: {{ prefix: /api, with: /api/api }}, request_headers: {{ add: {{ x-tag: one }} }} }}"
    );
    let world = world_with(&routes, |_| vec![closing()]);
    for _ in 0..20 {
        assert_eq!(get(world.eu().http, "/api/x", &[("x-user-id", "alice")]).text(), "GET /app/api/api/x HTTP/1.1; 1");
    }
}

#[test]
fn the_last_attempt_is_rewritten_once_too() {
    let routes = format!(
        "  - {{ name: api, match: {{ path: \"/api/**\" }}, {OWNED}, attempts: 1, rewrite: {{ prefix: /api, with: /api/api }}, request_headers: {{ add: {{ x-hop: one }} }} }}"
    );
    let world = world_with(&routes, |name| vec![Recorder::start(name), Recorder::start(name)]);
    world.eu().upstreams[0].crash();
    for _ in 0..10 {
        assert_eq!(post(world.eu().http, "/api/x", &[("x-user-id", "alice")], "body").text(), "eu-west");
    }
    for request in world.eu().upstreams[1].seen() {
        assert_eq!((request.target.as_str(), request.headers.get_all("x-hop").iter().count()), ("/api/api/x", 1));
    }
}

/// An authorization service: it lets requests with the cookie `session=good` pass, and sends others to its login page.
fn authorizer() -> Recorder {
    let mut authorizer = Recorder::with(Arc::new(|request, seen| {
        Box::pin(async move {
            let is_good = request.headers().get_all("cookie").iter().any(|cookie| cookie == "session=good");
            remember(request, &seen).await;
            let answer = Response::builder();
            if is_good {
                let answer = answer.header("x-auth-user", "alice").header("x-other", "1");
                return answer.header("x-auth-role", "reader").header("x-auth-role", "writer").body(whole("")).unwrap();
            }
            let login = "https://login.example.com/";
            // Without a length, as a page that is generated.
            let (sends, page) = pieces();
            sends.send(Frame::data("log in".into())).unwrap();
            answer.status(302).header("location", login).header("set-cookie", "csrf=1").body(page).unwrap()
        })
    }))
    .of_service("auth");
    authorizer.entry = format!("\"http://{}/auth\"", authorizer.address);
    authorizer
}

#[test]
fn a_service_of_the_same_region_decides_which_requests_pass() {
    let routes = format!(
        "  - {{ name: guarded, match: {{ path: \"/guarded/{{user}}/**\" }}, service: app, {OWNED}, rewrite: {{ strip_prefix: /guarded }},
      auth: {{ service: auth, path: /verify, copy: [x-auth-user, x-auth-groups, x-auth-role, cookie] }} }}
  - {{ name: page, match: {{ path: \"/page/{{user}}\" }}, {OWNED}, auth: {{ service: auth, path: / }}, respond: {{ body: secret }} }}"
    );
    let world = world_with(&routes, |name| vec![Recorder::start(name), Recorder::start(name), authorizer(), authorizer()]);
    let auth = &world.eu().upstreams[2];
    // A dead authorization service is passed over.
    world.eu().upstreams[3].crash();
    let forged = ("x-auth-groups", "admin");
    for proxy in [world.eu(), world.us()] {
        for path in ["/guarded/alice/1?a=b", "/page/alice"] {
            let bad = [("cookie", "session=bad"), forged, ("x_forwarded_uri", "/public")];
            let refused = post(proxy.http, path, &bad, "a body that nobody reads");
            assert_eq!((refused.status, refused.text()), (StatusCode::FOUND, "log in"));
            assert_eq!(refused.headers["location"], "https://login.example.com/");
            assert_eq!(refused.headers["set-cookie"], "csrf=1");
        }
    }
    world.eu().upstreams[..2].iter().for_each(Recorder::assert_no_requests);
    assert_eq!(auth.seen().len(), 4);
    let head = runtime().block_on(async {
        let mut sender = http2(&world, world.us().https, "localhost").await;
        let ask = request(http::Method::HEAD, "https://localhost/page/alice", "", &[], whole(""));
        read(sender.send_request(ask).await.unwrap()).await.unwrap()
    });
    assert_eq!((head.status, head.text()), (StatusCode::FOUND, ""), "HEAD has no body, though the service was asked with GET");
    let asked = auth.seen()[0].clone();
    assert_eq!((asked.target.as_str(), asked.body.len()), ("/auth/verify", 0));
    let fields =
        ["x-forwarded-method", "x-forwarded-uri", "x-forwarded-for"].map(|name| asked.headers[name].to_str().unwrap().to_owned());
    assert_eq!(fields, ["POST", "/guarded/alice/1?a=b", "127.0.0.1"]);
    assert!(!asked.headers.contains_key("x-auth-groups") && !asked.headers.contains_key("x_forwarded_uri"));
    assert!(!asked.headers.contains_key("domicile-request"));
    for proxy in [world.eu(), world.us()] {
        let good =
            [("cookie", "session=good; __Host-domicile-home=x"), forged, ("x-auth-user", "mallory"), ("x_auth_groups", "admin")];
        assert_eq!(post(proxy.http, "/guarded/alice/1", &good, "body").text(), "eu-west");
        assert_eq!(get(proxy.http, "/page/alice", &good).text(), "secret");
    }
    for seen in world.eu().upstreams[..2].iter().flat_map(Recorder::seen) {
        assert_eq!((seen.target.as_str(), &*seen.body), ("/alice/1", &b"body"[..]));
        assert_eq!(seen.headers.get_all("x-auth-user").iter().collect::<Vec<_>>(), ["alice"]);
        assert_eq!(seen.headers.get_all("x-auth-role").iter().collect::<Vec<_>>(), ["reader", "writer"]);
        assert!(!seen.headers.contains_key("x-auth-groups") && !seen.headers.contains_key("x_auth_groups"));
    }
    let trailers =
        runtime().block_on(trailers_of(&world, &[("x-auth-user", "mallory"), ("x_auth_groups", "admin"), ("x-sum", "1")]));
    assert_eq!(trailers.keys().collect::<Vec<_>>(), ["x-sum"]);
    // Once for the request, also if it is sent again.
    world.eu().upstreams[0].crash();
    let before = auth.seen().len();
    (0..6).for_each(|_| assert_eq!(get(world.eu().http, "/guarded/alice/1", &[("cookie", "session=good")]).text(), "eu-west"));
    assert_eq!(auth.seen().len(), before + 6);
    // Without the service nobody passes.
    auth.crash();
    let closed = get(world.us().http, "/guarded/alice/1", &[("cookie", "session=good")]);
    assert_eq!((closed.status, closed.code().as_str()), (StatusCode::BAD_GATEWAY, "upstream.unreachable"));
    [world.us(), world.jp()].iter().for_each(|region| region.upstreams.iter().for_each(Recorder::assert_no_requests));
}

const MIRRORED: &str = "  - { name: mirrored, match: { path: \"/mirrored/{user}/**\" }, service: app, data: personal, home: [directory, refuse], mirror: { service: next, share: 100% }, rewrite: { strip_prefix: /mirrored }, request_headers: { set: { x-region: \"{region}\" } } }";

#[test]
fn reads_are_mirrored_within_their_region_and_change_nothing() {
    let upstreams = |name: &'static str| {
        let broken = Recorder::with(Arc::new(|request, seen| {
            Box::pin(async move {
                remember(request, &seen).await;
                let mut response = Response::new(whole("x".repeat(3 << 20)));
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                response.headers_mut().insert("set-cookie", "a=b".parse().unwrap());
                response
            })
        }));
        vec![Recorder::start(name), broken.of_service("next")]
    };
    let world = world_with(MIRRORED, upstreams);
    let mirror = world.eu().upstream_of("next");
    for (count, proxy) in (1..).zip([world.eu(), world.us(), world.eu()]) {
        let answer = get(proxy.http, "/mirrored/alice/1?a=b", &[("cookie", "c=d")]);
        assert_eq!((answer.status, answer.text()), (StatusCode::OK, "eu-west"));
        assert!(!answer.headers.contains_key("set-cookie"));
        eventually("the mirror has its copy", || mirror.seen().len() == count);
    }
    for copy in mirror.seen() {
        assert_eq!(
            (copy.target.as_str(), &copy.headers["x-region"]),
            ("/alice/1?a=b", &http::HeaderValue::from_static("eu-west"))
        );
        assert!(!copy.headers.contains_key("domicile-request"));
    }
    // Writes are not repeated, and without the mirror the route goes on.
    assert_eq!(post(world.us().http, "/mirrored/alice/1", &[], "x").text(), "eu-west");
    assert_eq!(post(world.eu().http, "/mirrored/alice/1", &[], "").text(), "eu-west");
    mirror.crash();
    assert_eq!(get(world.us().http, "/mirrored/alice/2", &[]).text(), "eu-west");
    assert_eq!((mirror.seen().len(), world.eu().upstream_of("app").seen().len()), (3, 6));
    for region in [world.us(), world.jp()] {
        region.upstreams.iter().for_each(Recorder::assert_no_requests);
    }
}

#[test]
fn a_mirrored_read_ends_when_it_is_no_longer_cleared() {
    /// Counts when it is dropped.
    struct Ends(Arc<std::sync::atomic::AtomicUsize>);
    impl Drop for Ends {
        fn drop(&mut self) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    }
    let ended: Arc<std::sync::atomic::AtomicUsize> = Arc::default();
    let count = Arc::clone(&ended);
    let upstreams = move |name: &'static str| {
        let count = Arc::clone(&count);
        let endless = Recorder::with(Arc::new(move |request, seen| {
            let ends = Ends(Arc::clone(&count));
            Box::pin(async move {
                remember(request, &seen).await;
                std::future::pending::<()>().await;
                drop(ends);
                Response::new(whole(""))
            })
        }));
        vec![Recorder::start(name), endless.of_service("next")]
    };
    let rules = RULES.replace("routes:\n", &format!("routes:\n{MIRRORED}\n"));
    let rules: std::collections::BTreeMap<_, _> = NAMES.into_iter().map(|name| (name, rules.clone())).collect();
    // Longer than the test waits for the end.
    let extra = "limits: { response_timeout: 10m, request_timeout: 10m }\n".to_owned();
    let world = World::planned(Plan { rules, upstreams: Box::new(upstreams), extra, ..Plan::default() });
    assert_eq!(get(world.eu().http, "/mirrored/alice/1", &[]).text(), "eu-west");
    eventually("the mirror has the copy", || world.eu().upstream_of("next").seen().len() == 1);
    world.eu().reload().unwrap();
    assert_eq!(ended.load(std::sync::atomic::Ordering::SeqCst), 0, "a reload that changes nothing ends nothing");
    std::fs::write(world.folder.path().join("users-eu-west.csv"), "user,home\nalice,us-east\nbob,us-east\nchika,ap-northeast\n")
        .unwrap();
    world.eu().reload().unwrap();
    eventually("the copy has ended", || ended.load(std::sync::atomic::Ordering::SeqCst) == 1);
}

#[test]
fn a_route_asks_for_a_password_at_the_owner() {
    let file = tempfile::NamedTempFile::new().unwrap();
    // `htpasswd -nbB -C 4 alice "open sesame"`
    let line = bcrypt::hash_with_result("open sesame", 4).unwrap().format_for_version(bcrypt::Version::TwoY);
    std::fs::write(file.path(), format!("alice:{line}\n")).unwrap();
    let world = world(&format!(
        "  - {{ name: staff, match: {{ path: \"/staff/{{user}}\" }}, {OWNED}, auth: {{ passwords: \"{}\", realm: Staff, header: x-auth-user }} }}",
        file.path().display()
    ));
    let basic = |pair: &str| format!("Basic {}", base64::Engine::encode(&base64::prelude::BASE64_STANDARD, pair));
    for proxy in [world.eu(), world.us()] {
        let wrong =
            [basic("alice:open"), basic("bob:open sesame"), basic("alice"), "Basic !".into(), "Bearer x".into(), String::new()];
        for value in &wrong {
            let refused = get(proxy.http, "/staff/alice", &[("authorization", value), ("x-auth-user", "alice")]);
            assert_eq!(
                (refused.status, refused.code().as_str()),
                (StatusCode::UNAUTHORIZED, "route.password_refused"),
                "{value}"
            );
            assert_eq!(refused.headers["www-authenticate"], "Basic realm=\"Staff\", charset=\"UTF-8\"");
        }
        let twice = [("authorization", basic("alice:open sesame")), ("authorization", basic("alice:open sesame"))];
        let twice: Vec<_> = twice.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(get(proxy.http, "/staff/alice", &twice).status, StatusCode::UNAUTHORIZED);
    }
    world.eu().upstream().assert_no_requests();
    let right = basic("alice:open sesame");
    for proxy in [world.eu(), world.us()] {
        let fields = [("authorization", right.as_str()), ("x-auth-user", "mallory"), ("x_auth_user", "mallory")];
        assert_eq!(get(proxy.http, "/staff/alice", &fields).text(), "eu-west");
    }
    for seen in world.eu().upstream().seen() {
        assert_eq!(seen.headers.get_all("x-auth-user").iter().collect::<Vec<_>>(), ["alice"]);
        assert!(!seen.headers.contains_key("authorization") && !seen.headers.contains_key("x_auth_user"));
    }
    world.assert_no_requests(&["ap-northeast"]);
    world.us().upstream().assert_no_requests();
    // Another file counts from the next request on, also for a password that was right before.
    std::fs::write(file.path(), format!("bob:{line}\n")).unwrap();
    world.eu().reload().unwrap();
    eventually("alice is refused", || {
        get(world.eu().http, "/staff/alice", &[("authorization", &right)]).status == StatusCode::UNAUTHORIZED
    });
    std::fs::write(file.path(), "bob:plain\n").unwrap();
    let error = world.eu().reload().unwrap_err();
    assert!(error.contains("line 1 is not a user and a bcrypt hash") && !error.contains("plain"), "{error}");
    assert_eq!(get(world.eu().http, "/staff/alice", &[("authorization", &basic("bob:open sesame"))]).status, StatusCode::OK);
}

#[test]
fn a_global_rate_limit_counts_the_requests_of_all_regions() {
    let world = world(
        "  - { name: all, match: { path: /all }, data: public, home: [latency], rate_limit: { rate: 1/h, burst: 6, by: route, scope: global } }
  - { name: each, match: { path: /each }, data: public, home: [latency], rate_limit: { rate: 1/h, burst: 3, by: client, scope: global } }
  - { name: alone, match: { path: /alone }, data: public, home: [latency], rate_limit: { rate: 1/h, burst: 1, by: route } }",
    );
    let regions = [world.eu(), world.us(), world.jp()];
    let learned = |region: &crate::support::Region| region.sum_of("domicile_rate_limit_learned_total") as usize;
    let from = |client: &'static str| [("x-forwarded-for", client)];
    let status = |region: &crate::support::Region, path: &str, client| get(region.http, path, &from(client)).status.as_u16();

    assert_eq!([(); 7].map(|()| status(world.eu(), "/all", "192.0.2.1")), [200, 200, 200, 200, 200, 200, 429]);
    eventually("the others have learned of them", || learned(world.us()) == 6 && learned(world.jp()) == 6);
    let refused = get(world.us().http, "/all", &from("198.51.100.1"));
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (429, "route.rate_limited"));
    assert_eq!(refused.headers["retry-after"], "3600");
    assert_eq!(status(world.jp(), "/all", "198.51.100.1"), 429);

    // Keys are counted apart, and each region adds its share.
    assert_eq!(regions.map(|region| status(region, "/each", "192.0.2.1")), [200; 3]);
    eventually("all have learned", || learned(world.eu()) == 2 && learned(world.us()) == 8 && learned(world.jp()) == 8);
    assert_eq!(regions.map(|region| status(region, "/each", "192.0.2.1")), [429; 3]);
    assert_eq!(status(world.us(), "/each", "192.0.2.2"), 200);
    assert_eq!(regions.map(|region| status(region, "/alone", "192.0.2.1")), [200; 3], "a limit of the region is not shared");
    for region in regions {
        let served = region.upstream().seen().len();
        assert_eq!(
            served,
            if region.name == "eu-west" { 8 } else { 2 } + usize::from(region.name == "us-east"),
            "{}",
            region.name
        );
    }
}

#[test]
fn regions_that_admit_at_once_exceed_a_global_limit_by_a_burst_each() {
    let world = world(
        "  - { name: all, match: { path: /all }, data: public, home: [latency], rate_limit: { rate: 1/h, burst: 5, by: route, scope: global } }",
    );
    let addresses = [world.eu(), world.us(), world.jp()].map(|region| region.http);
    let admitted = || {
        std::thread::scope(|scope| {
            let ask = |address| move || (0..20).filter(|_| get(address, "/all", &[]).status == StatusCode::OK).count();
            addresses.map(|address| scope.spawn(ask(address))).into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
        })
    };
    let first = admitted();
    assert!((5..=15).contains(&first), "{first}: the bound is a burst of each region");
    eventually("every region has learned of all", || {
        let served = [world.eu(), world.us(), world.jp()].map(|region| region.upstream().seen().len());
        let total: usize = served.iter().sum();
        let knows = |(region, served): (&crate::support::Region, usize)| {
            region.sum_of("domicile_rate_limit_learned_total") as usize + served == total
        };
        [world.eu(), world.us(), world.jp()].into_iter().zip(served).all(knows)
    });
    assert_eq!(admitted(), 0);
}

/// An app server that holds its first request until the semaphore has a permit, and closes that connection then.
fn holding(gate: &Arc<tokio::sync::Semaphore>) -> Recorder {
    let gate = Arc::clone(gate);
    Recorder::with(Arc::new(move |request, seen| {
        let gate = Arc::clone(&gate);
        Box::pin(async move {
            remember(request, &seen).await;
            gate.acquire().await.unwrap().forget();
            panic!("close the connection");
            #[expect(unreachable_code, reason = "gives the block its type")]
            Response::new(whole(""))
        })
    }))
}

#[test]
fn an_authorization_of_earlier_actions_does_not_count_after_a_reload() {
    let rules = |path: &str| {
        let route = format!(
            "  - {{ name: guarded, match: {{ path: \"/guarded/{{user}}\" }}, service: app, {OWNED}, auth: {{ service: auth, path: {path} }} }}"
        );
        NAMES.map(|name| (name, RULES.replace("routes:\n", &format!("routes:\n{route}\n")))).into()
    };
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let held = Arc::clone(&gate);
    let upstreams = Box::new(move |_| vec![holding(&held), holding(&held), only_first()]);
    let world = World::planned(Plan { rules: rules("/first"), upstreams, ..Plan::default() });
    std::thread::scope(|scope| {
        let address = world.eu().http;
        let read = scope.spawn(move || get(address, "/guarded/alice", &[]));
        let seen = || world.eu().upstreams[..2].iter().map(|app| app.seen().len()).sum::<usize>();
        crate::support::eventually("an app server has the read", || seen() == 1);
        world.write_config(0, &Plan { rules: rules("/second"), ..Plan::default() });
        world.eu().reload().unwrap();
        // The worker judges the open read again before it serves these requests.
        (0..3).for_each(|_| drop(get(address, "/account/1", &[])));
        gate.add_permits(1);
        assert_eq!(read.join().unwrap().status, StatusCode::FORBIDDEN);
        assert_eq!(seen(), 1, "the other app server saw nothing");
    });
    let asked: Vec<_> = world.eu().upstreams[2].seen().iter().map(|seen| seen.target.clone()).collect();
    assert_eq!(asked, ["/first", "/second"]);
}

/// An authorization service that lets only those requests pass that it is asked about at `/first`.
fn only_first() -> Recorder {
    Recorder::with(Arc::new(|request, seen| {
        Box::pin(async move {
            let status = if request.uri().path() == "/first" { StatusCode::OK } else { StatusCode::FORBIDDEN };
            remember(request, &seen).await;
            Response::builder().status(status).body(whole("")).unwrap()
        })
    }))
    .of_service("auth")
}

/// Sends a request with these trailers; returns those that the app server receives.
async fn trailers_of(world: &World, trailers: &[(&'static str, &'static str)]) -> http::HeaderMap {
    let mut sender = http2(world, world.us().https, "localhost").await;
    let (sends, body) = pieces();
    let fields = [("te", "trailers"), ("trailer", "x-sum, x-auth-user"), ("cookie", "session=good")];
    let ask = request(http::Method::POST, "https://localhost/guarded/alice/1", "", &fields, body);
    sends.send(Frame::data(bytes::Bytes::from_static(b"body"))).unwrap();
    let trailers = trailers.iter().map(|(name, value)| (name.parse().unwrap(), http::HeaderValue::from_static(value)));
    sends.send(Frame::trailers(trailers.collect())).unwrap();
    drop(sends);
    assert_eq!(read(sender.send_request(ask).await.unwrap()).await.unwrap().text(), "eu-west");
    let seen = world.eu().upstreams[..2].iter().flat_map(Recorder::seen).find_map(|seen| seen.trailers);
    seen.expect("the app server receives trailers")
}

#[test]
fn a_page_of_an_allowed_origin_reads_why_its_request_was_refused() {
    let world = world(&format!(
        "  - {{ name: shared, match: {{ path: \"/shared/{{user}}\" }}, {OWNED}, cors: {{ origins: [https://app.test] }}, rate_limit: {{ rate: 1/h, burst: 1, by: route }} }}"
    ));
    assert_eq!(get(world.eu().http, "/shared/alice", &[]).text(), "eu-west");
    for proxy in [world.eu(), world.us()] {
        // At the owner, and before the request leaves for it: nobody is known to live anywhere.
        for (path, code) in [("/shared/alice", "route.rate_limited"), ("/shared/nobody", "home.unresolved")] {
            let refused = get(proxy.http, path, &[("origin", "https://app.test")]);
            assert_eq!(refused.code(), code);
            assert_eq!(refused.headers["access-control-allow-origin"], "https://app.test");
            assert_eq!(refused.headers["vary"], "origin");
            let foreign = get(proxy.http, path, &[("origin", "https://other.test")]);
            assert!(!foreign.headers.contains_key("access-control-allow-origin"), "{path}");
        }
    }
}

#[test]
fn cors_settings_answer_preflights_and_replace_the_fields_of_the_app_server() {
    let routes = format!(
        "  - {{ name: shared, match: {{ path: \"/shared/{{user}}\" }}, {OWNED}, cors: {{ origins: [https://app.test], credentials: true, expose: [x-total] }} }}
  - {{ name: mine, match: {{ path: /mine }}, {OWNED}, cors: {{ origins: [https://app.test] }} }}"
    );
    let world = world_with(&routes, |name| {
        vec![Recorder::with(Arc::new(move |request, seen| {
            Box::pin(async move {
                remember(request, &seen).await;
                Response::builder().header("access-control-allow-origin", "*").body(whole(name)).unwrap()
            })
        }))]
    });
    let app = ("origin", "https://app.test");
    for proxy in [world.eu(), world.us()] {
        let asks = [app, ("access-control-request-method", "PUT"), ("access-control-request-headers", "x-a")];
        let preflight = send(proxy.http, http::Method::OPTIONS, "/shared/alice", &asks, whole(""));
        let fields = [
            "access-control-allow-origin",
            "access-control-allow-methods",
            "access-control-allow-headers",
            "access-control-allow-credentials",
        ];
        assert_eq!(
            fields.map(|name| preflight.headers[name].to_str().unwrap().to_owned()),
            ["https://app.test", "PUT", "x-a", "true"]
        );
        let evil = [("origin", "https://evil.test"), asks[1], asks[2]];
        let refused = send(proxy.http, http::Method::OPTIONS, "/shared/alice", &evil, whole(""));
        assert!(refused.headers.keys().all(|name| !name.as_str().starts_with("access-control")), "{:?}", refused.headers);
    }
    // A preflight names no user, so these requests have no home and are refused.
    for (origin, allowed) in [("https://app.test", Some("https://app.test")), ("https://evil.test", None)] {
        let asks = [("origin", origin), ("access-control-request-method", "PUT")];
        let preflight = send(world.us().http, http::Method::OPTIONS, "/mine", &asks, whole(""));
        let found = preflight.headers.get("access-control-allow-origin").map(|value| value.to_str().unwrap());
        assert_eq!((preflight.status, found), (StatusCode::NO_CONTENT, allowed));
    }
    world.eu().upstream().assert_no_requests();
    for proxy in [world.eu(), world.us()] {
        let answer = get(proxy.http, "/shared/alice", &[app]);
        let fields = ["access-control-allow-origin", "access-control-expose-headers", "vary"];
        assert_eq!(
            fields.map(|name| answer.headers[name].to_str().unwrap().to_owned()),
            ["https://app.test", "x-total", "origin"]
        );
        assert_eq!(answer.headers.get_all("access-control-allow-origin").iter().count(), 1);
        let other = get(proxy.http, "/shared/alice", &[("origin", "https://evil.test")]);
        assert!(!other.headers.contains_key("access-control-allow-origin"));
    }
}

#[test]
fn a_canary_gets_its_share_of_the_users_and_keeps_them() {
    let routes = format!(
        "  - {{ name: lists, match: {{ path: \"/lists/{{user}}\" }}, {OWNED}, split: [{{ service: app, weight: 70 }}, {{ service: next, weight: 30 }}] }}"
    );
    let rules = RULES.replace("routes:\n", &format!("routes:\n{routes}\n"));
    let rules = NAMES.into_iter().map(|name| (name, rules.clone())).collect();
    let table = (0..60).map(|user| format!("u{user},eu-west\n")).collect::<String>();
    let users = NAMES.into_iter().map(|name| (name, format!("user,home\n{table}"))).collect();
    // Only one region has the new version.
    let upstreams = Box::new(|name| match name {
        "eu-west" => vec![Recorder::start("old"), Recorder::start("new").of_service("next")],
        _ => vec![Recorder::start("old")],
    });
    let health = "{ path: /healthz, every: 20ms, timeout: 5s, rise: 1, fall: 1 }";
    let world = World::planned(Plan { rules, users, upstreams, health, ..Plan::default() });
    let versions = |proxy: &crate::support::Region| {
        (0..60).map(|user| get(proxy.http, &format!("/lists/u{user}"), &[]).text().to_owned()).collect::<Vec<_>>()
    };
    let first = versions(world.eu());
    let new = first.iter().filter(|version| *version == "new").count();
    assert!((6..=32).contains(&new), "{new} of 60");
    assert_eq!(first, versions(world.us()), "the same users, through whichever region");
    world.eu().upstream_of("next").crash();
    world.us().wait_for_service("eu-west", "next", false);
    assert_eq!(versions(world.us()), ["old"; 60], "a canary that is down takes no users");
}

#[test]
fn a_request_for_a_canary_that_crashed_reaches_the_other_service() {
    for (shares, crashed, left) in [
        ("[{ service: app, weight: 1 }, { service: next, weight: 1 }]", "next", "old"),
        ("[{ service: app, weight: 0 }, { service: next, weight: 1 }]", "app", "new"),
    ] {
        let route = format!("routes:\n  - {{ name: lists, match: {{ path: \"/lists/{{user}}\" }}, {OWNED}, split: {shares} }}\n");
        let rules = NAMES.into_iter().map(|name| (name, RULES.replace("routes:\n", &route))).collect();
        let table = (0..20).map(|user| format!("u{user},eu-west\n")).collect::<String>();
        let users = NAMES.into_iter().map(|name| (name, format!("user,home\n{table}"))).collect();
        let upstreams = Box::new(|_| vec![Recorder::start("old"), Recorder::start("new").of_service("next")]);
        let world = World::planned(Plan { rules, users, upstreams, ..Plan::default() });
        world.eu().upstream_of(crashed).crash();
        for user in 0..20 {
            let answer = post(world.us().http, &format!("/lists/u{user}"), &[], "body");
            assert_eq!((answer.status, answer.text()), (StatusCode::OK, left));
        }
    }
}

#[test]
fn a_route_may_keep_characters_in_paths_and_no_spelling_leads_out_of_it() {
    let world = world(
        "  - { name: admin, match: { path: \"/packages/admin/**\" }, data: public, home: [{ region: eu-west }], clients: { deny: [127.0.0.0/8] } }
  - { name: packages, match: { path: \"/packages/**\" }, data: public, home: [{ region: eu-west }], paths: { encoded_slash: keep, encoded_percent: keep, semicolon: keep } }
  - { name: objects, match: { path: \"/objects/{user}/**\" }, data: personal, home: [directory, refuse], paths: { encoded_slash: keep, semicolon: keep } }",
    );
    for proxy in [world.eu(), world.us()] {
        for (sent, received) in [
            ("/packages/@scope%2fname", "/packages/@scope%2Fname"),
            ("/packages/a%2Fb/c;v=1;w", "/packages/a%2Fb/c;v=1;w"),
            ("/packages/100%25/x%252Fy", "/packages/100%25/x%252Fy"),
            ("/objects/alice/a%2Fb;c", "/objects/alice/a%2Fb;c"),
        ] {
            assert_eq!(get(proxy.http, sent, &[]).text(), "eu-west", "{sent}");
            assert_eq!(world.eu().upstream().seen().last().unwrap().target, received);
        }
        let seen = world.eu().upstream().seen().len();
        for sent in [
            "/packages/admin%2Fusers",
            "/packages/admin;x/users",
            "/packages/admin%252Fusers",
            "/packages/admin;x%2Fusers",
            "/packages/admin%3Bx/users",
            "/packages/admin./users",
            "/packages/admin.%2Fusers",
            "/packages/%25/%252e%252e/%252e%252e/account/1",
            "/packages/..%255Caccount%255C1",
            "/packages/..%2Faccount%2F1",
            "/packages/%2e%2e%2faccount/1",
            "/packages/x%2F..%2F..%2Faccount/1",
            "/packages/..;/account/1",
            "/packages/..;x=1%2Faccount/1",
            "/packages/..%252Faccount%252F1",
            "/packages/%252e%252e/account/1",
            "/packages/%252e%252e%252faccount/1",
            "/packages/..%253B/account/1",
            "/packages/..%2F..%2F..%2Fx",
            "/objects/alice%2F..%2Fbob/1",
            "/objects/alice;x/1",
            "/objects/alice%2F1/2",
            "/objects/alice/100%25",
            "/users/alice/orders/a%2Fb",
            "/account/1;x",
        ] {
            let refused = get(proxy.http, sent, &[("x-user-id", "alice")]);
            assert_eq!((refused.status, refused.code().as_str()), (StatusCode::BAD_REQUEST, "request.malformed_path"), "{sent}");
        }
        assert_eq!(world.eu().upstream().seen().len(), seen);
    }
    world.us().upstream().assert_no_requests();
}

#[test]
fn bytes_outside_ascii_in_a_query_are_forwarded_as_they_are() {
    use std::io::{Read, Write};
    let world = World::start();
    for proxy in [world.eu(), world.us()] {
        let mut stream = std::net::TcpStream::connect(proxy.http).unwrap();
        stream.write_all(b"GET /users/alice/orders/1?q=\xc3\xa4 HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
        let target = world.eu().upstream().seen().last().unwrap().target.clone();
        assert_eq!(target.as_bytes(), b"/users/alice/orders/1?q=\xc3\xa4", "{target}");
        for refused in [&b"/users/alice/orders/\xc3\xa4"[..], b"/users/alice/orders/1?q=\xff"] {
            let request = [b"GET ", refused, b" HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"].concat();
            let mut stream = std::net::TcpStream::connect(proxy.http).unwrap();
            stream.write_all(&request).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&answer));
        }
    }
}
