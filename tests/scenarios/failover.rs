//! Failover: upstreams and regions that fail.

use std::sync::Arc;

use http::{Response, StatusCode};

use crate::faults::{Relay, behind_a_relay};
use crate::support::{Plan, RULES, Recorder, World, eventually, get, log, post, remember, whole};

const CHECKS: &str = "{ path: /healthz, every: 20ms, timeout: 5s, rise: 1, fall: 1 }";

#[test]
fn a_read_moves_within_its_clearance_and_a_write_does_not_move() {
    let world = World::planned(Plan { health: CHECKS, ..Plan::default() });
    world.us().upstream().crash();
    for region in [world.us(), world.eu(), world.jp()] {
        region.wait_for_health("us-east", "down");
    }
    // A transfer lets Americans' personal data be processed in the EU, and nowhere else.
    let read = get(world.us().http, "/users/bob/orders/1", &[]);
    assert_eq!(read.text(), "eu-west");
    let write = post(world.us().http, "/users/bob/orders/1", &[], "x");
    assert_eq!((write.status, write.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "failover.home_down"));
    assert!(write.headers.contains_key("retry-after"));
    assert_eq!(world.eu().upstream().seen().len(), 1, "only the read moved");
    world.assert_no_requests(&["ap-northeast"]);
    // alice's home is up, so her requests still go there.
    assert_eq!(get(world.us().http, "/users/alice/orders/1", &[]).text(), "eu-west");
}

#[test]
fn every_read_leaves_a_home_whose_app_server_was_killed_however_many_they_are() {
    // There are no health checks, so that each read meets the dead app server.
    let world = World::planned(Plan::default());
    world.us().upstream().crash();
    // Several times what a retry budget would allow: an attempt that reached no app server costs nothing that must be saved.
    for count in 0..500 {
        let read = get(world.eu().http, "/users/bob/orders/1", &[]);
        assert_eq!((read.status, read.text()), (StatusCode::OK, "eu-west"), "read {count}: {:?}", read.code());
    }
    let write = post(world.eu().http, "/users/bob/orders/1", &[], "");
    assert_eq!(write.code(), "upstream.unreachable", "a write is not sent to another region");
    assert_eq!(world.eu().upstream().seen().len(), 500);
    world.assert_no_requests(&["ap-northeast"]);
}

#[test]
fn an_app_server_that_accepts_no_connection_is_down_without_a_path_to_check() {
    // The default with shorter times: no path.
    let world = World::planned(Plan { health: "{ every: 20ms, timeout: 5s, rise: 1, fall: 1 }", ..Plan::default() });
    let of_service = || get(world.us().admin, "/readyz?service=app", &[]).status;
    assert_eq!(of_service(), StatusCode::OK);
    world.us().upstream().crash();
    for region in [world.us(), world.eu(), world.jp()] {
        region.wait_for_health("us-east", "down");
    }
    assert_eq!(of_service(), StatusCode::SERVICE_UNAVAILABLE);
    let status: serde_json::Value = serde_json::from_str(get(world.us().admin, "/status", &[]).text()).unwrap();
    let upstream = &status["services"][0]["upstreams"][0];
    assert_eq!(upstream["state"], "down");
    assert!(upstream["reason"].as_str().unwrap().starts_with("cannot connect to `127.0.0.1:"), "{upstream}");
    assert_eq!(get(world.us().http, "/users/bob/orders/1", &[]).text(), "eu-west");
    world.us().upstream().assert_no_requests();
}

#[test]
fn the_status_says_that_a_port_does_not_speak_tls() {
    let upstreams = |name| {
        let mut app = Recorder::start(name);
        app.entry = app.entry.replace("http:", "https:");
        vec![Recorder::start(name), app]
    };
    let health = "{ every: 20ms, timeout: 5s, rise: 1, fall: 1 }";
    let world = World::planned(Plan { upstreams: Box::new(upstreams), health, ..Plan::default() });
    let status = || get(world.eu().admin, "/status", &[]).text().to_owned();
    eventually("the status says why the check fails", || status().contains("this port does not speak TLS"));
}

#[test]
fn a_read_does_not_leave_its_clearance_when_its_home_is_down() {
    let world = World::planned(Plan { health: CHECKS, ..Plan::default() });
    world.eu().upstream().crash();
    world.us().wait_for_health("eu-west", "down");
    let read = get(world.us().http, "/users/alice/orders/1", &[]);
    assert_eq!((read.status, read.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "failover.all_down"));
    world.us().upstream().assert_no_requests();
    world.assert_no_requests(&["eu-west", "ap-northeast"]);
}

#[test]
pub fn a_region_that_vanishes_is_noticed_and_unowned_requests_move_on() {
    let mut world = World::start();
    assert_eq!(get(world.us().http, "/feed/1", &[]).text(), "us-east");
    let app = world.regions[0].app.take().unwrap();
    app.shut_down();
    world.us().wait_for_health("eu-west", "down");
    assert_eq!(get(world.us().http, "/users/alice/orders/1", &[]).code(), "failover.all_down");
    assert_eq!(get(world.us().http, "/feed/1", &[]).text(), "us-east");
}

#[test]
fn a_dead_upstream_is_passed_over_without_a_lost_request() {
    let world = World::planned(Plan {
        upstreams: Box::new(|name| vec![Recorder::start(name), Recorder::start(name)]),
        ..Plan::default()
    });
    world.eu().upstreams[0].crash();
    for _ in 0..20 {
        assert_eq!(
            post(world.eu().http, "/users/alice/orders/1", &[], "x").status,
            StatusCode::OK,
            "nothing was sent, so a write may try the next upstream"
        );
    }
    assert_eq!(world.eu().upstreams[1].seen().len(), 20);
}

#[test]
fn with_no_upstream_left_the_response_is_502_and_the_service_is_not_ready() {
    let world = World::planned(Plan { health: CHECKS, ..Plan::default() });
    world.eu().upstream().crash();
    let service = || get(world.eu().admin, "/readyz?service=app", &[]);
    eventually("the service is not ready", || service().status == StatusCode::SERVICE_UNAVAILABLE);
    assert!(service().text().contains("no upstream of the service `app` is up"));
    assert!(get(world.eu().admin, "/readyz?service=ap", &[]).text().contains("has no service `ap`"));
    assert_eq!(get(world.eu().admin, "/readyz", &[]).status, StatusCode::OK, "it still serves users of other regions");
    assert_eq!(get(world.eu().http, "/users/bob/orders/1", &[]).text(), "us-east");
    assert_eq!(get(world.eu().admin, "/livez", &[]).status, StatusCode::OK);

    let unchecked = World::start();
    unchecked.eu().upstream().crash();
    let answer = get(unchecked.eu().http, "/users/alice/orders/1", &[]);
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::BAD_GATEWAY, "upstream.unreachable"));
}

/// An upstream that reads a request and closes the connection, or never responds if `silent`.
fn broken(silent: bool) -> Recorder {
    Recorder::with(Arc::new(move |request, seen| {
        Box::pin(async move {
            remember(request, &seen).await;
            if silent {
                std::future::pending::<()>().await;
            }
            panic!("close the connection");
            #[expect(unreachable_code, reason = "gives the block its type")]
            Response::new(whole(""))
        })
    }))
}

#[test]
fn a_write_that_was_sent_is_never_sent_again() {
    let world = World::planned(Plan { upstreams: Box::new(|_| vec![broken(false), broken(false)]), ..Plan::default() });
    let write = post(world.eu().http, "/users/alice/orders/1", &[], "x");
    assert_eq!((write.status, write.code().as_str()), (StatusCode::BAD_GATEWAY, "upstream.bad_response"));
    let seen: usize = world.eu().upstreams.iter().map(|upstream| upstream.seen().len()).sum();
    assert_eq!(seen, 1);
    let read = get(world.eu().http, "/users/alice/orders/1", &[]);
    assert_eq!(read.status, StatusCode::BAD_GATEWAY);
    let seen: usize = world.eu().upstreams.iter().map(|upstream| upstream.seen().len()).sum();
    assert_eq!(seen, 3, "a read is retried once, on the other upstream");
}

/// App servers that hold every request until the semaphore has a permit. In us-east they close the connection then.
fn held(gate: &Arc<tokio::sync::Semaphore>) -> Box<dyn Fn(&'static str) -> Vec<Recorder>> {
    let gate = Arc::clone(gate);
    Box::new(move |name| {
        let gate = Arc::clone(&gate);
        vec![Recorder::with(Arc::new(move |request, seen| {
            let gate = Arc::clone(&gate);
            Box::pin(async move {
                remember(request, &seen).await;
                if name == "us-east" {
                    gate.acquire().await.unwrap().forget();
                    panic!("close the connection");
                }
                Response::new(whole(name))
            })
        }))]
    })
}

#[test]
fn a_failover_follows_the_policy_of_its_own_moment() {
    for is_swapped in [false, true] {
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let plan = Plan { upstreams: held(&gate), ..Plan::default() };
        let world = World::planned(plan);
        std::thread::scope(|scope| {
            let address = world.us().http;
            let read = scope.spawn(move || get(address, "/users/bob/orders/1", &[]));
            eventually("the home's upstream has the read", || world.us().upstream().seen().len() == 1);
            if is_swapped {
                // The transfer that lets the read move to the EU ends while the home's upstream holds the request.
                let rules =
                    RULES.replace("transfers: [{ from: us, to: eu, basis: contract, record: DPA 7, until: 2099-12-31 }]", "");
                let index = world.regions.iter().position(|region| region.name == "us-east").unwrap();
                world.write_config(index, &Plan { rules: [("us-east", rules)].into(), ..Plan::default() });
                world.us().reload().unwrap();
                // The worker judges the open read again before it serves these requests.
                (0..3).for_each(|_| drop(get(address, "/account/1", &[])));
            }
            gate.add_permits(1);
            let answer = read.join().unwrap();
            if is_swapped {
                assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
                world.eu().upstream().assert_no_requests();
            } else {
                assert_eq!(answer.text(), "eu-west");
            }
        });
    }
}

#[test]
fn a_silent_upstream_is_given_up_in_time() {
    let world = World::planned(Plan {
        upstreams: Box::new(|_| vec![broken(true)]),
        extra: "limits: { response_timeout: 200ms }\n".into(),
        ..Plan::default()
    });
    let answer = get(world.eu().http, "/users/alice/orders/1", &[]);
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::GATEWAY_TIMEOUT, "upstream.timeout"));
}

#[test]
fn a_proxy_whose_upstream_is_itself_answers_502_for_the_loop() {
    let world = World::start();
    // The upstream of eu-west is its own listener.
    let mut text = std::fs::read_to_string(&world.eu().config).unwrap();
    text = text.replace(&world.eu().upstream().address.to_string(), &world.eu().http.to_string());
    std::fs::write(&world.eu().config, text).unwrap();
    world.eu().reload().unwrap();
    let answer = get(world.eu().http, "/users/alice/orders/1", &[]);
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::BAD_GATEWAY, "proxy.loop"));
    assert!(answer.headers["proxy-status"].to_str().unwrap().contains("proxy_loop_detected"));
    assert!(world.eu().sum_of("domicile_requests_total") <= 3.0);
}

#[test]
fn a_read_in_flight_leaves_a_home_that_freezes() {
    let _ = log();
    let rules = |timeout: &str| {
        let rules = RULES
            .replace("  personal:\n    stays: home", "  personal:\n    stays: [eu, us]")
            .replace("    needs: inferred\n", "");
        rules.replace("timeout: 5s", timeout)
    };
    let plan = Plan {
        rules: [("us-east", rules("timeout: 200ms")), ("eu-west", rules("timeout: 5s"))].into(),
        extra: "limits: { response_timeout: 1h, request_timeout: 1h }\n".into(),
        ..Plan::default()
    };
    let (world, freeze) = behind_a_relay(Relay::Freezing(([127, 0, 0, 1], 0).into()), &plan);
    world.wait_until_measured();
    assert_eq!(get(world.us().http, "/users/alice/orders/1", &[]).text(), "eu-west");
    freeze.notify_waiters();
    // Sent before the probes have noticed: the request waits at the frozen gateway until us-east knows that the region is down.
    let moved = get(world.us().http, "/users/alice/orders/2", &[]);
    assert_eq!(moved.text(), "us-east");
    // The connection was not lost, which takes longer: pings on it would have to stay unanswered first.
    let id = moved.headers["domicile-request-id"].to_str().unwrap();
    let is_lost = |line: &str| line.contains(id) && line.contains("no response from a peer");
    assert!(!log().lines().any(is_lost), "the request waited until its connection was lost");
    assert_eq!(world.eu().upstream().seen().len(), 1, "eu-west saw the first request only");
    world.us().wait_for_health("eu-west", "down");
    let change = "domicile_region_changes_total{region=\"eu-west\",state=\"down\"} 1";
    assert!(world.us().metrics().contains(change), "{}", world.us().metrics());
}
