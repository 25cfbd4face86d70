//! Control at run time: status, drains, weights and log levels, by the command line over the Unix socket.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use http::{Method, StatusCode};

use crate::support::{NAMES, Plan, RULES, Recorder, Region, USERS, World, eventually, get, post, send, whole};

/// A world whose regions accept commands on Unix sockets.
fn with_sockets(plan: Plan) -> World {
    let world = World::prepare(&plan);
    for region in &world.regions {
        let text = std::fs::read_to_string(&region.config).unwrap();
        let socket = world.folder.path().join("{region}.sock");
        let admin = format!("admin: {{ address: \"{}\"", region.admin);
        assert!(text.contains(&admin));
        std::fs::write(&region.config, text.replace(&admin, &format!("{admin}, socket: \"{}\"", socket.display()))).unwrap();
    }
    let mut world = world;
    for index in 0..world.regions.len() {
        world.start_region(index).unwrap();
    }
    world.wait_until_measured();
    world
}

fn domicile(region: &Region, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_domicile"));
    let options = ["--config", region.config.to_str().unwrap()];
    command.args(&arguments[..1]);
    // The options belong to the subcommand, before its own subcommand.
    command.args(options).args(&arguments[1..]).env_remove("DOMICILE_CONFIG").output().unwrap()
}

fn done(region: &Region, arguments: &[&str]) -> String {
    let output = domicile(region, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn refused(region: &Region, arguments: &[&str]) -> String {
    let output = domicile(region, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

fn status(region: &Region) -> serde_json::Value {
    serde_json::from_str(&done(region, &["status", "--json"])).unwrap()
}

#[test]
fn a_reload_that_breaks_its_own_assertion_changes_nothing() {
    let world = World::start();
    let asserts = "assert: [{ never: { data: public, processed_in: us } }]\nroutes:\n";
    let rules = NAMES.map(|name| (name, RULES.replace("routes:\n", asserts))).into();
    world.write_config(0, &Plan { rules, ..Plan::default() });
    let error = world.eu().reload().unwrap_err();
    assert!(error.contains("assert[0]: this assertion does not hold: a read of route `feed`"), "{error}");
    assert_eq!(get(world.eu().http, "/feed/1", &[]).text(), "eu-west");
    assert!(world.eu().metrics().contains("domicile_reloads_total{result=\"refused\"} 1"));
}

#[test]
fn status_shows_regions_upstreams_tables_and_certificates() {
    let world = with_sockets(Plan::default());
    let report = status(world.eu());
    assert_eq!(
        (&report["region"], &report["ready"], &report["directory"]["users"]),
        (&"eu-west".into(), &true.into(), &3.into())
    );
    let names: Vec<_> = report["regions"].as_array().unwrap().iter().map(|region| (&region["name"], &region["state"])).collect();
    assert_eq!(names.len(), 3);
    assert!(names.iter().all(|(_, state)| **state == "up"), "{names:?}");
    let upstream = &report["services"][0]["upstreams"][0];
    assert_eq!((&upstream["upstream"], &upstream["state"]), (&world.eu().upstream().address.to_string().into(), &"up".into()));
    let files = report["files"].as_array().unwrap();
    assert!(
        files.iter().any(|file| file["name"].as_str().unwrap().ends_with("site.pem") && file["days_left"].as_u64() > Some(0))
    );
    let screen = done(world.eu(), &["status"]);
    for part in
        ["region     eu-west, Domicile ", "process    ready; ", "upstream   app/", "directory  3 users", "geoip      database of"]
    {
        assert!(screen.contains(part), "{part} in {screen}");
    }
    // A refused reload is seen as well.
    let text = std::fs::read_to_string(&world.eu().config).unwrap();
    std::fs::write(&world.eu().config, text.replace("data: restricted", "data: restrictd")).unwrap();
    assert!(world.eu().reload().is_err());
    // The command line finds the process although the file has mistakes.
    let screen = done(world.eu(), &["status", "--ready"]);
    assert!(screen.contains("; REFUSED: ") && screen.contains("did you mean `restricted`?"), "{screen}");
    assert!(world.eu().metrics().contains("domicile_reload_last_successful 0"));
}

#[test]
fn a_drained_upstream_gets_nothing_new_until_the_drain_ends() {
    let plan = Plan { upstreams: Box::new(|name| vec![Recorder::start(name), Recorder::start(name)]), ..Plan::default() };
    let world = with_sockets(plan);
    let [one, two] = &world.eu().upstreams[..] else { panic!() };
    let ask = |times: usize| (0..times).for_each(|_| assert_eq!(get(world.eu().http, "/users/alice/orders/1", &[]).status, 200));
    let name = |upstream: &Recorder| format!("app/{}", upstream.address);
    assert!(done(world.eu(), &["upstream", "drain", &name(one)]).contains("drains"));
    ask(20);
    assert_eq!((one.seen().len(), two.seen().len()), (0, 20));
    // A reload does not end the drain.
    world.eu().reload().unwrap();
    ask(20);
    assert_eq!(one.seen().len(), 0);
    assert!(done(world.eu(), &["upstream", "drain", &name(two)]).contains("no other upstream of this service is up"));
    eventually("the region reports that it serves nothing", || {
        status(world.us())["regions"].to_string().contains("none of its upstreams is up")
    });
    world.eu().wait_for_health("eu-west", "down");
    let own = status(world.eu())["regions"].to_string();
    assert!(own.contains("none of its upstreams takes requests, and an operator drains some"), "{own}");
    assert_eq!(post(world.eu().http, "/users/alice/orders/1", &[], "x").status, StatusCode::SERVICE_UNAVAILABLE);
    done(world.eu(), &["upstream", "undrain", &name(one)]);
    done(world.eu(), &["upstream", "undrain", &name(two)]);
    eventually("the region serves again", || get(world.eu().http, "/users/alice/orders/1", &[]).status == 200);
    let before = (one.seen().len(), two.seen().len());
    done(world.eu(), &["upstream", "weight", &name(one), "1000"]);
    ask(30);
    assert!(one.seen().len() - before.0 >= 25, "{} and {}", one.seen().len(), two.seen().len());
    let weights: Vec<_> =
        status(world.eu())["services"][0]["upstreams"].as_array().unwrap().iter().map(|own| own["weight"].clone()).collect();
    assert_eq!(weights, [1000, 1]);
    assert!(refused(world.eu(), &["upstream", "weight", &name(one), "0"]).contains("is not a valid weight"));
    assert!(refused(world.eu(), &["upstream", "drain", "app/10.9.9.9:1"]).contains("it has "));
    assert!(refused(world.eu(), &["upstream", "drain", "ap/x"]).contains("no service `ap`; it has app"));
    let actions = || world.eu().ledger(&world).into_iter().filter(|line| line["kind"] == "action").collect::<Vec<_>>();
    eventually("every command has its line", || actions().len() >= 6);
    let actions = actions();
    let names: Vec<_> = actions.iter().map(|line| line["what"].as_str().unwrap()).collect();
    // What was refused has no line.
    let weighed = ["upstream_undrain", "upstream_undrain", "upstream_weight"];
    assert_eq!(names, [&["upstream_drain", "reload", "upstream_drain"][..], &weighed[..]].concat());
    assert_eq!(actions[0]["detail"], name(one));
}

#[test]
fn a_key_of_pseudonyms_is_replaced_and_destroyed_in_the_running_process() {
    let world = with_sockets(Plan::default());
    let ask = || assert_eq!(get(world.us().http, "/users/alice/orders/1", &[]).text(), "eu-west");
    let users = || -> Vec<_> {
        let lines = world.us().ledger(&world).into_iter().filter(|line| line["kind"] == "movement");
        lines.map(|line| line["user"].as_str().unwrap().to_owned()).collect()
    };
    let folder = world.folder.path().join("ledger-us-east");
    let found = || {
        let done = std::process::Command::new(env!("CARGO_BIN_EXE_domicile"))
            .args(["audit", "query", "--user", "alice"])
            .arg(&folder)
            .env_remove("DOMICILE_CONFIG")
            .output()
            .unwrap();
        String::from_utf8(done.stdout).unwrap().lines().count()
    };
    ask();
    let early = refused(world.us(), &["audit", "forget", "--until", "9000-01-01"]);
    assert!(early.contains("no key ended before 9000-01-02") && early.contains("`domicile audit rotate pseudonyms`"), "{early}");
    let rotated = done(world.us(), &["audit", "rotate", "pseudonyms"]);
    assert!(rotated.contains("pseudonym-until-") && folder.join("pseudonym.key").exists(), "{rotated}");
    ask();
    let (first, second) = (users()[0].clone(), users()[1].clone());
    assert!(first != second && found() == 2, "both keys find her lines");
    // The successor of a process has the new key.
    let forgotten = done(world.us(), &["audit", "forget", "--until", "9000-01-01"]);
    assert!(forgotten.contains("remove them from backups as well"), "{forgotten}");
    assert_eq!(found(), 1, "nobody can link the earlier line to her");
    ask();
    assert_eq!(users()[2], second);
    let actions: Vec<_> = world.us().ledger(&world).into_iter().filter(|line| line["kind"] == "action").collect();
    let names: Vec<_> = actions.iter().map(|line| line["what"].as_str().unwrap()).collect();
    assert_eq!(names, ["pseudonym_rotation", "forget"], "what was refused has no line");
    assert_eq!(actions[1]["detail"], "keys of pseudonyms that ended before 9000-01-02T00:00:00.000000Z");
    let verified =
        std::process::Command::new(env!("CARGO_BIN_EXE_domicile")).args(["audit", "verify"]).arg(&folder).output().unwrap();
    assert!(verified.status.success(), "the lines stay verifiable");
    let published = || get(world.us().admin, "/.well-known/domicile-ledger-key", &[]).text().to_owned();
    let before = published();
    assert!(done(world.us(), &["audit", "rotate", "signing-key"]).contains("is destroyed"));
    assert_ne!(published(), before);
    let verified =
        std::process::Command::new(env!("CARGO_BIN_EXE_domicile")).args(["audit", "verify"]).arg(&folder).output().unwrap();
    let told = String::from_utf8(verified.stdout).unwrap();
    let signed = told.lines().find(|line| line.contains("signed with the key")).unwrap_or_default();
    assert!(
        verified.status.success()
            && signed.starts_with("2 checkpoints, signed with the key ")
            && signed.matches(", ").count() == 3,
        "both keys: {told}"
    );
}

#[test]
fn a_reload_after_which_a_case_does_not_hold_changes_nothing() {
    let world = World::start();
    let asserts = "assert: [{ case: { request: GET /users/alice/orders/1, at: us-east, expect: eu-west } }]\nroutes:\n";
    let rules = NAMES.map(|name| (name, RULES.replace("routes:\n", asserts))).into();
    world.write_config(0, &Plan { rules, ..Plan::default() });
    world.eu().reload().unwrap();
    // alice moves, against what the file says.
    std::fs::write(world.folder.path().join("users-eu-west.csv"), USERS.replace("alice,eu-west", "alice,us-east")).unwrap();
    let error = world.eu().reload().unwrap_err();
    assert!(error.contains("assert[0].case: this case does not hold: expected `eu-west`, found `proceed us-east"), "{error}");
    assert_eq!(get(world.eu().http, "/users/alice/orders/1", &[]).text(), "eu-west", "the previous table stays");
}

#[test]
fn a_reload_that_changes_the_policy_is_in_the_ledger_in_words() {
    let world = World::start();
    let rules = NAMES.map(|name| (name, RULES.replace("carried_by: [eu, us]", "carried_by: [eu]"))).into();
    world.write_config(0, &Plan { rules, ..Plan::default() });
    world.eu().reload().unwrap();
    world.eu().reload().unwrap();
    // The changed file may have been noticed before the command.
    let actions = || world.eu().ledger(&world).into_iter().filter(|line| line["kind"] == "action").collect::<Vec<_>>();
    eventually("both reloads have their lines", || actions().len() >= 2);
    let (changed, unchanged): (Vec<_>, Vec<_>) = actions().into_iter().partition(|line| line.get("changes").is_some());
    let changes = changed[0]["changes"].to_string();
    assert!(changed.len() == 1 && !unchanged.is_empty(), "{changed:?} {unchanged:?}");
    assert!(changed[0]["detail"].as_str().unwrap().contains(" to "), "{changed:?}");
    assert!(changes.contains("data class personal: data of users in eu may no longer be carried through us-east"), "{changes}");
}

#[test]
fn a_drained_region_gets_only_what_no_other_region_may_serve() {
    let world = with_sockets(Plan::default());
    done(world.us(), &["region", "drain", "us-east"]);
    for region in [world.us(), world.eu(), world.jp()] {
        region.wait_for_health("us-east", "draining");
    }
    assert_eq!(get(world.us().http, "/users/bob/orders/1", &[]).text(), "eu-west");
    assert!(status(world.us())["regions"].to_string().contains("an operator drains it"));
    world.us().upstream().assert_no_requests();
    done(world.us(), &["region", "undrain", "us-east"]);
    for region in [world.us(), world.eu(), world.jp()] {
        region.wait_for_health("us-east", "up");
    }
    assert_eq!(get(world.us().http, "/users/bob/orders/1", &[]).text(), "us-east");
    // Another region is drained for this process alone.
    done(world.us(), &["region", "drain", "ap-northeast"]);
    world.us().wait_for_health("ap-northeast", "draining");
    assert!(world.eu().metrics().contains("domicile_region_health{region=\"ap-northeast\",state=\"up\"} 1"));
    assert!(refused(world.us(), &["region", "drain", "us-est"]).contains("the regions are "));
}

#[test]
fn commands_need_the_socket_and_a_confirmation() {
    let world = with_sockets(Plan::default());
    let socket = world.folder.path().join("eu-west.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let confirmed = [("domicile-command", "confirm")];
    let by_address = send(world.eu().admin, Method::POST, "/regions/drain?region=eu-west", &confirmed, whole(""));
    assert_eq!(by_address.status, StatusCode::FORBIDDEN);
    assert!(by_address.text().contains("this address accepts no commands"));
    let browser = [("domicile-command", "confirm"), ("origin", "http://evil.test:9901")];
    let from_page = send(world.eu().admin, Method::POST, "/reload", &browser, whole(""));
    assert!(from_page.status == StatusCode::FORBIDDEN && from_page.text().contains("not accepted from browsers"));
    assert!(refused(world.eu(), &["log", "level", "nonsense=nonsense=x"]).contains("this process has no log"));
    let without = World::start();
    assert!(
        refused(without.eu(), &["region", "drain", "eu-west"])
            .contains("the process accepts no commands; write `admin: { socket:")
    );
}
