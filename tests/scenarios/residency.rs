//! Residency rules: a request is refused or redirected, or its response is withheld, and no other region sees it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};

use crate::support::{NAMES, Plan, RULES, Recorder, USERS, World, eventually, get, post, remember, whole};

#[test]
fn a_request_that_no_region_is_cleared_for_reaches_no_region() {
    let world = World::start();
    let answer = get(world.us().http, "/profile/me", &[("x-forwarded-for", "177.1.1.1")]);
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (451, "residency.nowhere_cleared"));
    assert_eq!(answer.headers["content-type"], "application/problem+json");
    assert_eq!(answer.headers["cache-control"], "no-store");
    assert!(answer.headers["link"].to_str().unwrap().contains("rel=\"blocked-by\""));
    for name in NAMES {
        assert!(!answer.text().contains(name), "the response names a region: {}", answer.text());
    }
    world.us().upstream().assert_no_requests();
    world.assert_no_requests(&["eu-west", "ap-northeast"]);
    let metrics = world.us().metrics();
    assert!(metrics.contains(r#"domicile_residency_refusals_total{class="personal",code="residency.nowhere_cleared",from="us-east",to="us-east"} 1"#), "{metrics}");
}

#[test]
fn a_browser_gets_a_page_and_a_program_gets_problem_details() {
    let world = World::start();
    const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    for (at, target, code) in
        [(world.us(), "/profile/me", "residency.nowhere_cleared"), (world.us(), "/account/1", "home.unresolved")]
    {
        let brazilian = ("x-forwarded-for", "177.1.1.1");
        let page = get(at.http, target, &[brazilian, ("accept", BROWSER)]);
        assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
        assert!(page.headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
        assert!(page.text().starts_with("<!doctype html>") && page.text().contains(code), "{}", page.text());
        assert!(NAMES.iter().all(|name| !page.text().contains(name)));
        for accept in ["application/json", "*/*", "application/json, text/html"] {
            let problem = get(at.http, target, &[brazilian, ("accept", accept)]);
            assert_eq!((problem.status, problem.code().as_str()), (page.status, code));
            assert_eq!(problem.headers["content-type"], "application/problem+json");
        }
    }
}

#[test]
fn a_request_for_restricted_data_is_redirected_home_and_reaches_no_region() {
    let world = World::start();
    let answer = post(world.us().http, "/account/1?x=y", &[("x-user-id", "alice")], "secret");
    assert_eq!(answer.status, StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(answer.headers["location"].to_str().unwrap(), format!("http://{}/account/1?x=y", world.eu().http));
    assert_eq!(answer.headers["cache-control"], "no-store");
    world.us().upstream().assert_no_requests();
    world.assert_no_requests(&["eu-west", "ap-northeast"]);
    let home = post(world.eu().http, "/account/1?x=y", &[("x-user-id", "alice")], "secret");
    assert_eq!(home.text(), "eu-west");
}

#[test]
fn a_redirect_never_echoes_a_host_from_the_request() {
    let world = World::start();
    let answer = crate::support::raw(
        world.us().http,
        b"GET /account/1 HTTP/1.1\r\nHost: evil.example\r\nX-User-Id: alice\r\nConnection: close\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 307") && !answer.contains("evil"), "{answer}");
}

#[test]
fn a_claimed_identity_does_not_unlock_restricted_data() {
    let world = World::start();
    let answer = get(world.eu().http, "/account/1", &[("cookie", "uid=alice")]);
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (451, "residency.evidence_too_weak"));
    world.eu().upstream().assert_no_requests();
}

#[test]
fn a_country_that_the_client_claims_itself_is_not_believed() {
    let world = World::start();
    let forged = [("cf-ipcountry", "DE"), ("x-geo-country", "DE"), ("x-forwarded-for", "177.1.1.1")];
    assert_eq!(get(world.us().http, "/profile/me", &forged).code(), "residency.nowhere_cleared");
    world.assert_no_requests(&["eu-west"]);
}

#[test]
fn the_owner_judges_again_and_a_stricter_policy_there_stops_the_body() {
    // us-east still has the old rule; in eu-west only regions of `eu` may carry personal data.
    let strict = RULES.replace("carried_by: [eu, us]", "carried_by: [eu]");
    let world = World::planned(Plan { rules: BTreeMap::from([("eu-west", strict)]), ..Plan::default() });
    let answer = post(world.us().http, "/users/alice/orders/1", &[], vec![b'x'; 1 << 20]);
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (451, "residency.carrier_not_cleared"));
    world.eu().upstream().assert_no_requests();
    assert_eq!(world.us().sum_of("domicile_border_bytes_total"), 0.0, "no byte of the body was sent");
    let read = get(world.us().http, "/users/alice/orders/1", &[]);
    assert_eq!((read.status.as_u16(), read.code().as_str()), (451, "residency.carrier_not_cleared"));
    world.eu().upstream().assert_no_requests();
}

#[test]
fn an_owner_whose_policy_is_not_known_yet_is_asked_before_it_gets_a_body() {
    let strict = RULES.replace("carried_by: [eu, us]", "carried_by: [eu]");
    let extra = "limits: { connect_timeout: 20s }\n".to_owned();
    let mut world = World::prepare(&Plan { rules: BTreeMap::from([("eu-west", strict)]), extra, ..Plan::default() });
    let index = |name: &str| NAMES.iter().position(|known| *known == name).unwrap();
    world.start_region(index("us-east")).unwrap();
    // The port of eu-west is bound, but its proxy does not run yet, so the request waits for the handshake.
    let address = world.us().http;
    let upload = std::thread::spawn(move || post(address, "/users/alice/orders/1", &[], vec![b'x'; 1 << 20]));
    eventually("the line for the crossing is written", || world.us().sum_of("domicile_ledger_lines_total") >= 1.0);
    world.start_region(index("eu-west")).unwrap();
    let answer = upload.join().unwrap();
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (451, "residency.carrier_not_cleared"));
    assert_eq!(world.us().sum_of("domicile_border_bytes_total"), 0.0, "no byte of the body was sent");
    world.eu().upstream().assert_no_requests();
}

#[test]
fn an_owner_with_another_user_table_is_asked_before_it_gets_a_body() {
    // In eu-west alice has moved to Japan; us-east has the old table.
    let moved = USERS.replace("alice,eu-west", "alice,ap-northeast");
    let world = World::planned(Plan { users: BTreeMap::from([("eu-west", moved)]), ..Plan::default() });
    let answer = post(world.us().http, "/users/alice/orders/1", &[], vec![b'x'; 1 << 20]);
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "peer.disagree"));
    assert_eq!(world.us().sum_of("domicile_border_bytes_total"), 0.0, "no byte of the body was sent");
    world.us().upstream().assert_no_requests();
    world.eu().upstream().assert_no_requests();
    world.assert_no_requests(&["ap-northeast"]);
}

#[test]
fn where_policies_differ_but_agree_on_the_request_it_passes() {
    let wider = RULES.replace("countries: [JP]", "countries: [JP, KR]");
    let world = World::planned(Plan { rules: BTreeMap::from([("eu-west", wider)]), ..Plan::default() });
    let answer = post(world.us().http, "/users/alice/orders/1", &[], "body");
    assert_eq!(answer.text(), "eu-west");
    let seen = world.eu().upstream().seen();
    assert_eq!((seen.len(), &seen[0].body[..]), (1, &b"body"[..]), "the bodiless exchange reached no upstream");
}

/// Upstreams that label their responses with a data class.
fn labelled(label: &'static str) -> Plan {
    Plan {
        upstreams: Box::new(move |_| {
            vec![Recorder::with(Arc::new(move |request, seen| {
                Box::pin(async move {
                    remember(request, &seen).await;
                    let mut response = Response::new(whole("the answer itself"));
                    response.headers_mut().insert("domicile-data-class", HeaderValue::from_static(label));
                    response
                })
            }))]
        }),
        ..Plan::default()
    }
}

#[test]
fn an_answer_that_is_labelled_stricter_does_not_leave_its_region() {
    let world = World::planned(labelled("restricted"));
    let answer = get(world.us().http, "/users/alice/orders/1", &[]);
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (451, "residency.answer_not_cleared"));
    assert!(!answer.text().contains("itself"));
    let written = post(world.us().http, "/users/alice/orders/1", &[], "x");
    assert_eq!(written.code(), "residency.answer_withheld");
    assert!(written.text().contains("was carried out"), "{}", written.text());
    assert_eq!(world.eu().upstream().seen().len(), 2, "the write was carried out");
    let at_home = get(world.eu().http, "/users/alice/orders/1", &[]);
    assert_eq!(at_home.text(), "the answer itself");
}

#[test]
fn an_unknown_label_withholds_and_a_harmless_one_does_not() {
    assert_eq!(
        get(World::planned(labelled("medical")).us().http, "/users/alice/orders/1", &[]).code(),
        "residency.answer_not_cleared"
    );
    assert_eq!(get(World::planned(labelled("public")).us().http, "/users/alice/orders/1", &[]).text(), "the answer itself");
}

#[test]
fn report_only_mode_lets_a_request_pass_and_counts_it() {
    let report = RULES.replace("  restricted: { stays: home }", "  restricted: { stays: home, mode: report }");
    let world = World::planned(Plan { rules: NAMES.map(|name| (name, report.clone())).into(), ..Plan::default() });
    assert_eq!(get(world.us().http, "/account/1", &[("x-user-id", "alice")]).text(), "eu-west");
    assert_eq!(world.us().sum_of("domicile_residency_reported_total"), 1.0);
    assert_eq!(world.us().ledger(&world)[0]["reported"], true);
}

#[test]
fn report_only_mode_counts_a_request_that_ends_before_it_is_sent() {
    let report = RULES.replace("  restricted: { stays: home }", "  restricted: { stays: home, mode: report }");
    let world = World::planned(Plan {
        rules: NAMES.map(|name| (name, report.clone())).into(),
        health: "{ path: /healthz, every: 20ms, timeout: 5s, rise: 1, fall: 1 }",
        extra: "limits: { body: 1KiB }\n".into(),
        ..Plan::default()
    });
    let reported = || {
        let metrics = world.us().metrics();
        let line = r#"domicile_residency_reported_total{class="restricted",from="us-east",to="eu-west"} "#;
        metrics.lines().find_map(|text| text.strip_prefix(line).map(str::to_owned)).unwrap_or_default()
    };
    let large = || Bytes::from(vec![b'x'; 2000]);
    let write = |body: Bytes| post(world.us().http, "/account/1", &[("x-user-id", "alice")], body).code();
    assert_eq!((write(large()), reported()), ("request.body_too_large".into(), "1".into()), "before the first attempt");
    world.eu().upstream().crash();
    world.us().wait_for_health("eu-west", "down");
    assert_eq!((write("x".into()), reported()), ("failover.home_down".into(), "2".into()), "us-east may not carry the data");
    let at_home = post(world.us().http, "/account/1", &[("x-user-id", "bob")], large());
    assert_eq!((at_home.code(), reported()), ("request.body_too_large".into(), "2".into()), "the rules allow this");
    assert_eq!(world.us().sum_of("domicile_residency_reported_total"), 2.0);
}

/// A preflight of a browser for `method`.
fn preflight(region: &crate::support::Region, path: &str, method: &str, more: &[(&str, &str)]) -> crate::support::Answer {
    let fields = [("origin", "https://app.example.com"), ("access-control-request-method", method)];
    let fields = [&fields[..], more].concat();
    crate::support::send(region.http, http::Method::OPTIONS, path, &fields, whole(""))
}

#[test]
fn a_preflight_is_judged_as_the_request_that_it_asks_about() {
    let world = World::start();
    // The path names the user, so the preflight goes only to the region that would process the request.
    assert_eq!(preflight(world.us(), "/users/alice/orders/1", "PUT", &[]).text(), "eu-west");
    world.us().upstream().assert_no_requests();
    assert_eq!(preflight(world.us(), "/feed/1", "GET", &[]).text(), "us-east");
    // No app server receives a preflight about restricted data without a proven user.
    assert_eq!(preflight(world.us(), "/account/1?secret=x", "PUT", &[]).code(), "home.unresolved");
    assert_eq!(preflight(world.us(), "/account/1", "PUT", &[("cookie", "uid=alice")]).code(), "residency.evidence_too_weak");
    assert_eq!(preflight(world.us(), "/account/1", "PUT", &[("x-user-id", "alice")]).status, StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(world.us().upstream().seen().len(), 1, "only the preflight for the feed");
    assert_eq!(world.eu().upstream().seen().len(), 1, "only the preflight for the orders");
    // A preflight is not placed by a guess: the user of the request itself may live in another region.
    let guessed = preflight(world.us(), "/profile/1?secret=x", "PUT", &[("x-forwarded-for", "8.8.8.8")]);
    assert_eq!(guessed.code(), "residency.evidence_too_weak");
    assert_eq!(world.us().upstream().seen().len(), 1, "only the preflight for the feed");
    let star = crate::support::raw(world.us().http, b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(star.starts_with("HTTP/1.1 204") && star.to_lowercase().contains("allow: get"), "{star}");
    world.assert_no_requests(&["ap-northeast"]);
}

#[test]
fn a_preflight_of_a_configured_origin_is_answered_without_an_app_server() {
    let world = World::planned(Plan { extra: "cors: { origins: [https://app.example.com] }\n".into(), ..Plan::default() });
    for region in [world.us(), world.eu()] {
        let asked = [("access-control-request-headers", "x-a, content-type")];
        let answer = preflight(region, "/account/1?secret=x", "PUT", &asked);
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
        assert_eq!(answer.headers["access-control-allow-origin"], "https://app.example.com");
        assert_eq!(answer.headers["access-control-allow-methods"], "PUT");
        assert_eq!(answer.headers["access-control-allow-headers"], "x-a, content-type");
        assert_eq!(answer.headers["access-control-allow-credentials"], "true");
        region.upstream().assert_no_requests();
    }
    let malformed = preflight(world.us(), "/users/%C2%80/orders/1", "PUT", &[]);
    assert_eq!((malformed.status, malformed.code().as_str()), (StatusCode::BAD_REQUEST, "request.malformed_user"));
    let fields = [("origin", "https://evil.example"), ("access-control-request-method", "PUT")];
    let answer = crate::support::send(world.us().http, http::Method::OPTIONS, "/account/1", &fields, whole(""));
    assert_eq!(answer.code(), "home.unresolved");
    assert!(!answer.headers.contains_key("access-control-allow-origin"));
    world.us().upstream().assert_no_requests();
}

#[test]
fn uniform_refusals_hide_who_has_a_record_and_where() {
    let rules = RULES.replace("users:\n", "users:\n  uniform_refusals: true\n");
    let refusals = |rules: &str| {
        let world = World::planned(Plan { rules: NAMES.map(|name| (name, rules.to_owned())).into(), ..Plan::default() });
        // ap-northeast may not carry alice's data, and zoe has no record.
        let answers = ["/users/alice/orders/1", "/users/zoe/orders/1"].map(|path| {
            let answer = get(world.jp().http, path, &[]);
            let location = answer.headers.get("location").cloned();
            (answer.status, answer.code(), location)
        });
        world.assert_no_requests(&["eu-west", "us-east"]);
        // A caller with a proven key still gets a redirect.
        let proven = get(world.jp().http, "/account/1", &[("x-user-id", "alice")]);
        assert_eq!(proven.status, StatusCode::TEMPORARY_REDIRECT);
        answers
    };
    let [recorded, unknown] = refusals(&rules);
    assert_eq!(recorded, unknown);
    assert_eq!((recorded.0, &*recorded.1), (StatusCode::FORBIDDEN, "home.unresolved"));
    let [recorded, unknown] = refusals(RULES);
    assert_ne!(recorded, unknown, "without the option, the responses differ");
}
