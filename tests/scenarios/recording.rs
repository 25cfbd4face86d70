//! The ledger: every cross-border movement has a line, which is written before the data moves.

use std::sync::Arc;

use http::{Response, StatusCode};

use crate::support::{NAMES, Plan, Recorder, World, get, post, remember, whole};

#[test]
fn the_line_is_on_disk_before_the_request_arrives() {
    // The owner's upstream responds with the number of lines in the ledgers of us-east and eu-west.
    let scratch = tempfile::tempdir().unwrap();
    let shared = scratch.path().to_owned();
    let plan = Plan {
        upstreams: Box::new(move |_| {
            let shared = shared.clone();
            vec![Recorder::with(Arc::new(move |request, seen| {
                let ledger = std::fs::read_to_string(shared.join("world")).unwrap_or_default();
                let lines = |name: &str| {
                    std::fs::read_to_string(format!("{ledger}/ledger-{name}/ledger.jsonl")).unwrap_or_default().lines().count()
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
    assert_eq!(get(world.us().http, "/users/alice/orders/1", &[]).text(), "1 1", "both ledgers were written first");
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
    assert_eq!(line["request"], answer["request"], "one request, one id on both sides");
}

#[test]
fn a_transfer_is_recorded_with_its_legal_basis() {
    let world =
        World::planned(Plan { health: "{ path: /healthz, every: 20ms, timeout: 5s, rise: 1, fall: 1 }", ..Plan::default() });
    world.us().upstream().crash();
    world.us().wait_for_health("us-east", "down");
    assert_eq!(get(world.us().http, "/users/bob/orders/1", &[]).text(), "eu-west");
    let line = &world.us().ledger(&world)[0];
    assert_eq!((&line["jurisdiction"], &line["bases"]), (&"us".into(), &serde_json::json!(["contract"])));
}

/// A world in which the ledger of `region` is on a full disk.
fn on_a_full_disk(region: &str) -> World {
    let mut world = World::prepare(&Plan::default());
    let folder = world.folder.path().join(format!("ledger-{region}"));
    std::fs::create_dir(&folder).unwrap();
    std::os::unix::fs::symlink("/dev/full", folder.join("ledger.jsonl")).unwrap();
    for index in 0..NAMES.len() {
        world.start_region(index).unwrap();
    }
    world.wait_until_measured();
    world
}

#[test]
fn a_full_disk_under_the_ledger_stops_what_needs_a_line_and_nothing_else() {
    let world = on_a_full_disk("us-east");
    for answer in [get(world.us().http, "/users/alice/orders/1", &[]), post(world.us().http, "/users/alice/orders/1", &[], "x")] {
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "ledger.unavailable"));
    }
    world.assert_saw_nothing(&["eu-west", "ap-northeast"]);
    assert!(world.us().sum_of("domicile_ledger_failures_total") >= 2.0);
    assert_eq!(get(world.us().http, "/users/bob/orders/1", &[]).text(), "us-east", "a local request needs no line");
    assert_eq!(get(world.us().http, "/feed/1", &[]).text(), "us-east");
}

#[test]
fn an_owner_that_cannot_record_gives_no_answer() {
    let world = on_a_full_disk("eu-west");
    let answer = get(world.us().http, "/users/alice/orders/1", &[]);
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "ledger.unavailable"));
    world.eu().upstream().assert_saw_nothing();
}
