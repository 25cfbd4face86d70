//! Services: the pools of app servers that a region has.

use http::StatusCode;

use crate::support::{Plan, RULES, Recorder, World, eventually, get, post};

const CHECKS: &str = "{ path: /healthz, every: 20ms, timeout: 5s, rise: 1, fall: 1 }";

/// The rules with two more routes, whose service is `api`.
fn rules() -> String {
    let routes = "routes:
  - { name: lists, match: { path: \"/users/{user}/lists/**\" }, service: api, data: personal, home: [directory, refuse], failover: { reads: nearest } }
  - { name: api, match: { path: \"/api/**\" }, service: api, data: restricted, home: [directory, refuse] }
";
    RULES.replace("routes:\n", routes)
}

/// A world in which `with_api` are the regions that have the service `api` beside `app`.
fn world_of(with_api: &'static [&'static str]) -> World {
    let names = [("eu-west", "api of eu-west"), ("us-east", "api of us-east"), ("ap-northeast", "api of ap-northeast")];
    let upstreams = move |name: &'static str| {
        let api = names.iter().find(|(region, _)| *region == name && with_api.contains(region));
        let api = api.map(|(_, answer)| Recorder::start(answer).of_service("api"));
        std::iter::once(Recorder::start(name)).chain(api).collect()
    };
    let rules = crate::support::NAMES.into_iter().map(|name| (name, rules())).collect();
    World::planned(Plan { upstreams: Box::new(upstreams), rules, health: CHECKS, ..Plan::default() })
}

const ALICE: [(&str, &str); 1] = [("x-user-id", "alice")];

#[test]
fn each_service_has_its_own_app_servers_here_and_in_other_regions() {
    let world = world_of(&["eu-west", "us-east"]);
    assert_eq!(get(world.eu().http, "/api/1", &ALICE).text(), "api of eu-west");
    assert_eq!(get(world.eu().http, "/account/1", &ALICE).text(), "eu-west");
    assert_eq!(get(world.us().http, "/users/alice/lists/1", &[]).text(), "api of eu-west");
    assert_eq!(get(world.us().http, "/users/alice/orders/1", &[]).text(), "eu-west");
    let paths = |service| world.eu().upstream_of(service).seen().iter().map(|seen| seen.target.clone()).collect::<Vec<_>>();
    assert_eq!(paths("api"), ["/api/1", "/users/alice/lists/1"]);
    assert_eq!(paths("app"), ["/account/1", "/users/alice/orders/1"]);
    world.us().upstreams.iter().for_each(Recorder::assert_no_requests);
}

#[test]
fn a_service_that_is_down_moves_its_own_reads_and_nothing_else() {
    let world = world_of(&["eu-west", "us-east"]);
    world.us().upstream_of("api").crash();
    for region in [world.us(), world.eu(), world.jp()] {
        region.wait_for_service("us-east", "api", false);
        region.wait_for_health("us-east", "up");
    }
    // A transfer lets Americans' personal data be processed in the EU.
    assert_eq!(get(world.us().http, "/users/bob/lists/1", &[]).text(), "api of eu-west");
    assert_eq!(get(world.jp().http, "/users/bob/lists/1", &[]).code(), "residency.carrier_not_cleared", "not through Japan");
    assert_eq!(get(world.eu().http, "/users/bob/lists/1", &[]).text(), "api of eu-west");
    let write = post(world.eu().http, "/users/bob/lists/1", &[], "x");
    assert_eq!((write.status, write.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "failover.home_down"));
    assert_eq!(get(world.eu().http, "/users/bob/orders/1", &[]).text(), "us-east", "the service `app` is up");
    assert_eq!(world.eu().upstream_of("api").seen().len(), 2, "only reads moved");
}

#[test]
fn a_region_without_the_service_is_never_tried() {
    let world = world_of(&["eu-west"]);
    assert_eq!(get(world.us().http, "/users/bob/lists/1", &[]).text(), "api of eu-west");
    let write = post(world.us().http, "/users/bob/lists/1", &[], "x");
    assert_eq!((write.status, write.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "failover.service_missing"));
    let chika = get(world.us().http, "/users/chika/lists/1", &[]);
    assert_eq!(chika.code(), "failover.service_missing", "no region of her jurisdiction has it");
    world.assert_no_requests(&["ap-northeast"]);
    world.us().upstreams.iter().for_each(Recorder::assert_no_requests);
    assert_eq!(world.eu().upstream_of("api").seen().len(), 1);
}

#[test]
fn a_reload_adds_a_service_to_a_running_region_and_removes_it() {
    let world = world_of(&["eu-west", "us-east"]);
    let file = &world.eu().config;
    let before = std::fs::read_to_string(file).unwrap();
    let api = format!("      api: {{ upstreams: [{}]", world.eu().upstream_of("api").entry);
    assert!(before.contains(&api));
    let third = Recorder::start("third");
    let with_third = before.replacen(&api, &format!("      third: [{}]\n{api}", third.entry), 1).replace(
        "routes:\n",
        "routes:\n  - { name: third, match: { path: \"/third/**\" }, service: third, data: restricted, home: [directory, refuse] }\n",
    );
    assert_eq!(get(world.eu().http, "/third/1", &ALICE).text(), "eu-west", "the last route matches");
    std::fs::write(file, &with_third).unwrap();
    world.eu().reload().unwrap();
    assert_eq!(get(world.eu().http, "/third/1", &ALICE).text(), "third");
    assert_eq!(get(world.eu().http, "/api/1", &ALICE).text(), "api of eu-west");
    let unused = with_third.replacen("service: third,", "service: fourth,", 1);
    std::fs::write(file, unused).unwrap();
    let refused = world.eu().reload().unwrap_err();
    assert!(refused.contains("routes[0].service: unknown service `fourth`"), "{refused}");
    assert_eq!(get(world.eu().http, "/third/1", &ALICE).text(), "third", "the previous configuration stays");
    std::fs::write(file, &before).unwrap();
    world.eu().reload().unwrap();
    assert_eq!(get(world.eu().http, "/third/1", &ALICE).text(), "eu-west");
    assert_eq!(third.seen().len(), 2);
    eventually("the third service has no metrics", || !world.eu().metrics().contains("upstream_up{service=\"third\""));
}
