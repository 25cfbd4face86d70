//! The ledger has a line for every cross-border movement, which is written before the data moves.

use std::sync::Arc;

use http::{Method, Response, StatusCode};

use crate::support::{
    NAMES, Plan, Recorder, Region, USERS, World, eventually, get, log, post, remember, runtime, try_send, whole,
};

#[test]
fn the_line_is_on_disk_before_the_request_arrives() {
    // The owner's upstream responds with the number of movements in the ledgers of us-east and eu-west.
    let scratch = tempfile::tempdir().unwrap();
    let shared = scratch.path().to_owned();
    let plan = Plan {
        upstreams: Box::new(move |_| {
            let shared = shared.clone();
            vec![Recorder::with(Arc::new(move |request, seen| {
                let ledger = std::fs::read_to_string(shared.join("world")).unwrap_or_default();
                let lines = |name: &str| {
                    let text = std::fs::read_to_string(format!("{ledger}/ledger-{name}/ledger.jsonl")).unwrap_or_default();
                    text.matches("\"kind\":\"movement\"").count()
                };
                let text = format!("{} {}", lines("us-east"), lines("eu-west"));
                Box::pin(async move {
                    remember(request, &seen).await;
                    Response::new(whole(text))
                })
            }))]
        }),
        ..Plan::default()
    };
    let world = World::planned(plan);
    std::fs::write(scratch.path().join("world"), world.folder.path().to_str().unwrap()).unwrap();
    assert_eq!(get(world.us().http, "/users/alice/orders/1", &[]).text(), "1 1", "both lines precede the request");
    assert_eq!(get(world.us().http, "/users/alice/orders/1", &[]).text(), "2 2");
    assert_eq!(get(world.eu().http, "/users/alice/orders/1", &[]).text(), "2 2", "a request at home crosses no border");
    let line = &world.us().ledger(&world)[0];
    assert_eq!(
        (&line["what"], &line["from"], &line["to"], &line["route"]),
        (&"request".into(), &"us-east".into(), &"eu-west".into(), &"orders".into())
    );
    assert_eq!(line["user"].as_str().unwrap().len(), 32);
    assert!(!line.to_string().contains("alice"));
    let answer = &world.eu().ledger(&world)[0];
    assert_eq!((&answer["what"], &answer["from"], &answer["to"]), (&"answer".into(), &"eu-west".into(), &"us-east".into()));
    assert_eq!(line["request"], answer["request"], "both lines have the same request id");
    assert_eq!((&line["reported"], &answer["reported"]), (&false.into(), &false.into()), "the rule allows both");
}

#[test]
fn an_auditor_finds_the_lines_of_a_user_and_sums_up_a_period() {
    let world = World::planned(Plan::default());
    for path in ["/users/alice/orders/1", "/users/alice/orders/2", "/users/chika/orders/1"] {
        assert_eq!(get(world.us().http, path, &[]).status, 200);
    }
    eventually("the requests are settled", || world.us().settlements(&world).len() == 3);
    let audit = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_domicile"));
        let ledger = world.folder.path().join("ledger-us-east");
        let done = command.arg("audit").args(arguments).arg(ledger).env_remove("DOMICILE_CONFIG").output().unwrap();
        (done.status.code(), String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap())
    };
    let (code, alice, told) = audit(&["query", "--user", "alice"]);
    assert_eq!((code, alice.lines().count()), (Some(0), 2), "{alice} {told}");
    let ledger = std::fs::read_to_string(world.folder.path().join("ledger-us-east/ledger.jsonl")).unwrap();
    assert!(alice.lines().all(|line| ledger.lines().any(|whole| whole == line)), "the lines as they stand");
    assert!(told.contains("2 of "), "{told}");
    assert_eq!(audit(&["query", "--user", "nobody"]).1, "");
    assert_eq!(audit(&["query", "--rule", "personal.stays"]).1.lines().count(), 3);
    assert_eq!(audit(&["query", "--rule", "personal.transfers"]).1, "");
    let request = serde_json::from_str::<serde_json::Value>(alice.lines().next().unwrap()).unwrap()["request"].to_string();
    let whole = audit(&["query", "--request", request.trim_matches('"')]).1;
    assert_eq!(whole.lines().count(), 2, "a movement and its settlement: {whole}");
    assert_eq!(audit(&["query", "--kind", "movement", "--to", "eu-west", "--until", "2026-01-01"]).1, "", "a period before");

    let (_, subject, _) = audit(&["subject", "alice"]);
    let row = subject.lines().find(|line| line.starts_with("us-east")).unwrap_or_else(|| panic!("{subject}"));
    let fields: Vec<_> = row.split_whitespace().collect();
    assert_eq!(fields[..6], ["us-east", "eu-west", "request", "personal", "eu", "2"], "two movements: {subject}");
    assert_eq!(fields[9], "1", "of one user: {subject}");
    assert!(!ledger.contains("alice"), "no line names her");

    let (_, csv, _) = audit(&["report", "--format", "csv"]);
    assert!(csv.contains("us-east,eu-west,request,personal,eu,,,2,0,0,14,1,"), "{csv}");
    assert!(csv.contains("us-east,ap-northeast,request,personal,jp,,,1,0,0,12,1,"), "{csv}");
    let (_, page, _) = audit(&["report", "--format", "html"]);
    assert!(page.contains("<svg") && page.contains("the chain is whole"), "{page}");

    // A changed ledger is not reported on, nor one whose pseudonym key is lost.
    let file = world.folder.path().join("ledger-us-east/ledger.jsonl");
    std::fs::rename(file.with_file_name("pseudonym.key"), file.with_file_name("lost")).unwrap();
    let (code, _, told) = audit(&["query", "--user", "alice"]);
    assert!(code == Some(1) && told.contains("its pseudonym key is not"), "{told}");
    std::fs::write(&file, ledger.replacen("personal", "publicly", 1)).unwrap();
    let (code, report, told) = audit(&["report"]);
    assert!(code == Some(1) && report.is_empty() && told.contains("the ledger does not verify"), "{report} {told}");
}

#[test]
fn both_ledgers_settle_a_request_with_the_same_bytes() {
    let world = World::planned(Plan::default());
    assert_eq!(post(world.us().http, "/users/alice/orders/1", &[], "seven!!").text(), "eu-west");
    eventually("both regions have settled", || [world.us(), world.eu()].iter().all(|one| one.settlements(&world).len() == 1));
    let (us, eu) = (world.us().settlements(&world).remove(0), world.eu().settlements(&world).remove(0));
    let movement = &world.us().ledger(&world)[0];
    assert_eq!((&us["request"], &eu["request"]), (&movement["request"], &movement["request"]));
    for settled in [&us, &eu] {
        assert_eq!((&settled["request_bytes"], &settled["response_bytes"]), (&7.into(), &7.into()), "{settled}");
        assert_eq!((&settled["outcome"], &settled["status"]), (&"answered".into(), &200.into()), "{settled}");
        assert_eq!((&settled["served_by"], &settled["code"]), (&"eu-west".into(), &serde_json::Value::Null), "{settled}");
        assert_eq!(settled["movements"], 1);
    }
    assert_eq!(movement["rules"], serde_json::json!(["personal.stays"]), "alice's data may be in the EU");
    let answer = &world.eu().ledger(&world)[0];
    assert_eq!(answer["rules"], serde_json::json!(["personal.carried_by"]), "and us-east may carry it");
    // A request that crosses no border has no movement, and nothing to settle.
    assert_eq!(get(world.us().http, "/users/bob/orders/1", &[]).text(), "us-east");
    assert_eq!(get(world.us().http, "/users/alice/orders/2", &[]).text(), "eu-west");
    eventually("the second request is settled", || world.us().settlements(&world).len() == 2);
}

#[test]
fn the_ledger_says_how_requests_ended_that_were_not_answered() {
    let plan = Plan {
        upstreams: Box::new(|_| {
            vec![Recorder::with(Arc::new(|request, seen| {
                Box::pin(async move {
                    let hangs = request.uri().path().contains("hang");
                    remember(request, &seen).await;
                    if hangs { std::future::pending().await } else { Response::new(whole("ok")) }
                })
            }))]
        }),
        ..Plan::default()
    };
    let world = World::planned(plan);
    let waiting = runtime().spawn(try_send(world.us().http, Method::GET, "/users/alice/orders/hang", &[], whole("")));
    eventually("the app server has the request", || !world.eu().upstream().seen().is_empty());
    waiting.abort();
    let outcomes = |region: &Region| -> Vec<_> {
        region.settlements(&world).iter().map(|line| (line["outcome"].clone(), line["status"].clone())).collect()
    };
    let abandoned: (serde_json::Value, serde_json::Value) = ("abandoned".into(), serde_json::Value::Null);
    eventually("both regions know that the client has left", || {
        [world.us(), world.eu()].iter().all(|region| outcomes(region) == [abandoned.clone()])
    });
    world.eu().upstream().crash();
    let refused = post(world.us().http, "/users/alice/orders/1", &[], "x");
    assert_eq!(refused.code(), "upstream.unreachable");
    let expected = [abandoned, ("refused".into(), 502.into())];
    eventually("the refusal is settled", || outcomes(world.us()) == expected);
    let codes: Vec<_> = world.us().settlements(&world).iter().map(|line| line["code"].clone()).collect();
    assert_eq!(codes, [serde_json::Value::Null, "upstream.unreachable".into()]);
}

#[test]
fn a_response_that_breaks_off_is_settled_as_interrupted() {
    use std::io::{Read, Write};
    let half = |name| {
        vec![if name == "eu-west" {
            Recorder::raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        } else {
            Recorder::start(name)
        }]
    };
    // The app server stalls until the idle timeout; or the client leaves first.
    for (limits, client_leaves) in [("limits: { idle_timeout: 200ms, body_rate: 0B }\n", false), ("", true)] {
        let world = World::planned(Plan { upstreams: Box::new(half), extra: limits.into(), ..Plan::default() });
        let mut client = std::net::TcpStream::connect(world.us().http).unwrap();
        client.write_all(b"GET /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let mut seen = String::new();
        while !seen.ends_with("\r\n\r\nhalf") {
            let mut part = [0; 1024];
            let length = client.read(&mut part).unwrap();
            seen += std::str::from_utf8(&part[..length]).unwrap();
        }
        if client_leaves {
            drop(client);
        }
        eventually("it is settled", || world.us().settlements(&world).len() == 1);
        let settled = world.us().settlements(&world).remove(0);
        let found = (&settled["outcome"], &settled["status"], &settled["response_bytes"]);
        assert_eq!(found, (&"interrupted".into(), &200.into(), &4.into()), "{settled}");
    }
}

#[test]
fn a_request_that_breaks_off_is_settled_as_interrupted_without_the_page_of_the_proxy() {
    use std::io::Write;
    let world = World::planned(Plan::default());
    let mut client = std::net::TcpStream::connect(world.us().http).unwrap();
    client.write_all(b"POST /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc").unwrap();
    eventually("the movement is recorded", || world.us().ledger(&world).iter().any(|line| line["kind"] == "movement"));
    drop(client);
    eventually("it is settled", || world.us().settlements(&world).len() == 1);
    let settled = world.us().settlements(&world).remove(0);
    assert_eq!((&settled["outcome"], &settled["response_bytes"]), (&"interrupted".into(), &0.into()), "{settled}");
}

#[test]
fn a_transfer_is_recorded_with_its_legal_basis() {
    let world =
        World::planned(Plan { health: "{ path: /healthz, every: 20ms, timeout: 5s, rise: 1, fall: 1 }", ..Plan::default() });
    world.us().upstream().crash();
    world.us().wait_for_health("us-east", "down");
    assert_eq!(get(world.us().http, "/users/bob/orders/1", &[]).text(), "eu-west");
    let metrics = world.us().metrics();
    let name = "transfer of personal data from us to eu (contract, DPA 7)";
    let ends = format!("domicile_transfer_expiry_timestamp_seconds{{transfer=\"{name}\"}} 4102444800");
    assert!(metrics.contains(&ends), "{metrics}");
    let line = &world.us().ledger(&world)[0];
    assert_eq!(
        (&line["jurisdiction"], &line["transfers"]),
        (&"us".into(), &serde_json::json!([{ "basis": "contract", "record": "DPA 7" }]))
    );
    assert_eq!(line["rules"], serde_json::json!(["personal.transfers"]));
    // The answer goes back to where the data is at home, for which no transfer is needed.
    let answer = world.eu().ledger(&world).into_iter().find(|line| line["what"] == "answer").unwrap();
    assert_eq!((&answer["rules"], &answer["transfers"]), (&serde_json::json!(["personal.stays"]), &serde_json::json!([])));
}

/// A world in which the ledger of `region` is on a full disk.
fn on_a_full_disk(region: &str) -> World {
    with_ledger_at("/dev/full", region)
}

/// A world in which the ledger of `region` is a link to this file.
fn with_ledger_at(file: &str, region: &str) -> World {
    let mut world = World::prepare(&Plan::default());
    let folder = world.folder.path().join(format!("ledger-{region}"));
    std::fs::create_dir(&folder).unwrap();
    std::os::unix::fs::symlink(file, folder.join("ledger.jsonl")).unwrap();
    // A ledger that exists has its key.
    std::fs::write(folder.join("pseudonym.key"), "0".repeat(64)).unwrap();
    for index in 0..NAMES.len() {
        world.start_region(index).unwrap();
    }
    world.wait_until_measured();
    world
}

#[test]
pub fn a_full_disk_under_the_ledger_stops_what_needs_a_line_and_nothing_else() {
    let world = on_a_full_disk("us-east");
    for answer in [get(world.us().http, "/users/alice/orders/1", &[]), post(world.us().http, "/users/alice/orders/1", &[], "x")] {
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "ledger.unavailable"));
    }
    world.assert_no_requests(&["eu-west", "ap-northeast"]);
    assert!(world.us().sum_of("domicile_ledger_failures_total") >= 2.0);
    assert_eq!(get(world.us().http, "/users/bob/orders/1", &[]).text(), "us-east", "a local request needs no ledger line");
    assert_eq!(get(world.us().http, "/feed/1", &[]).text(), "us-east");
}

#[test]
fn a_line_that_cannot_be_synced_counts_as_not_written() {
    // `/dev/null` accepts every write, and has no disk to sync.
    let world = with_ledger_at("/dev/null", "us-east");
    let answer = get(world.us().http, "/users/alice/orders/1", &[]);
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "ledger.unavailable"));
    world.assert_no_requests(&["eu-west", "ap-northeast"]);
}

#[test]
fn a_request_whose_line_is_being_written_follows_its_user() {
    let world = World::start();
    assert_eq!(get(world.us().http, "/users/alice/orders/1", &[]).text(), "eu-west");
    let lines = crate::exits::movements(&world, world.us()).len();
    let file = world.folder.path().join("ledger-us-east/ledger.jsonl");
    let held = std::fs::File::open(&file).unwrap();
    held.lock().unwrap();
    let waiting = runtime().spawn(try_send(world.us().http, Method::GET, "/users/alice/orders/2", &[], whole("")));
    let is_judged = || world.us().metrics().contains("domicile_directory_lookups_total{result=\"found\"} 2");
    eventually("the request is judged, and waits for its line", is_judged);
    // alice moves while the line is being written.
    let users = USERS.replace("alice,eu-west", "alice,us-east");
    std::fs::write(world.folder.path().join("users-us-east.csv"), users).unwrap();
    world.us().reload().unwrap();
    held.unlock().unwrap();
    assert_eq!(runtime().block_on(waiting).unwrap().unwrap().text(), "us-east");
    assert_eq!(world.eu().upstream().seen().len(), 1, "the old home has only the first request");
    assert_eq!(crate::exits::movements(&world, world.us()).len(), lines + 1, "the line of the intention stays");
}

#[test]
pub fn an_owner_that_cannot_record_gives_no_answer() {
    let world = on_a_full_disk("eu-west");
    let answer = get(world.us().http, "/users/alice/orders/1", &[]);
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "ledger.unavailable"));
    world.eu().upstream().assert_no_requests();
}

#[test]
fn a_region_that_only_carries_logs_no_path_and_no_log_has_a_whole_address() {
    let _ = log();
    let world = World::start();
    let answer = get(world.us().http, "/users/alice/orders/secret-order", &[("x-forwarded-for", "81.2.69.142")]);
    assert_eq!(answer.text(), "eu-west");
    let redirected = get(world.us().http, "/account/secret-account", &[("x-user-id", "alice")]);
    assert_eq!(redirected.status, StatusCode::TEMPORARY_REDIRECT);
    // A preflight that would follow a guess, whether it is refused or not, must not leave its path either.
    let fields =
        [("origin", "https://app.example.com"), ("access-control-request-method", "PUT"), ("x-forwarded-for", "8.8.8.8")];
    let preflight = crate::support::send(world.us().http, Method::OPTIONS, "/profile/secret-profile", &fields, whole(""));
    assert_eq!(preflight.code(), "residency.evidence_too_weak");
    let id = world.eu().upstream().seen()[0].headers["x-request-id"].to_str().unwrap().to_owned();
    let of_request = || -> Vec<serde_json::Value> {
        let text = log();
        let all = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        all.filter(|line| line["id"] == *id).collect()
    };
    eventually("both proxies have logged the request", || of_request().len() == 2);
    let (owner, carrier): (Vec<_>, Vec<_>) = of_request().into_iter().partition(|line| line["peer"].is_string());
    assert_eq!(owner[0]["path"], "/users/{user}/orders/secret-order");
    assert_eq!((&carrier[0]["path"], &carrier[0]["route"]), (&serde_json::Value::Null, &"orders".into()));
    let are_logged = |all: &str| all.contains("residency.evidence_too_weak") && all.contains("\"verdict\":\"redirect\"");
    eventually("the other requests are logged", || are_logged(&log()));
    let all = log();
    assert!(!all.contains("secret-profile") && !all.contains("secret-account"));
    // A table that replaces another is logged with both counts.
    std::fs::write(world.folder.path().join("users-us-east.csv"), format!("{USERS}dora,us-east\n")).unwrap();
    world.us().reload().unwrap();
    let all = log();
    let folder = world.folder.path().to_str().unwrap();
    let is_table = |line: &&str| line.contains("user table loaded") && line.contains(folder);
    assert!(all.lines().find(is_table).is_some_and(|line| line.contains("\"users_before\":3,\"users\":4")), "{all}");
    for line in owner.iter().chain(&carrier) {
        assert_eq!(line["client"], "81.2.69.0/24");
        assert!(!line.to_string().contains("alice"), "{line}");
    }
}
