use super::*;

fn route(host: &str, path: &str, methods: MethodSet) -> Route {
    let pattern = Pattern {
        hosts: vec![HostPattern::parse(host).unwrap()],
        paths: vec![PathPattern::parse(path).unwrap()],
        methods,
        conditions: Conditions::default(),
    };
    Route {
        name: path.into(),
        pattern,
        class: ClassId::new(0).unwrap(),
        service: ServiceId::new(0),
        chain: vec![],
        aliases: vec![],
        claim: None,
        failover: Failover::NEVER,
        keeps: KeptCharacters::NONE,
    }
}

fn find<'a>(table: &RouteTable, method: Method, host: &'a str, path: &'a str) -> (Option<usize>, Option<&'a str>) {
    let found = table.find(&Head { method, host, path, client: [192, 0, 2, 1].into(), fields: &NO_FIELDS });
    (found.id.map(RouteId::index), found.user)
}

#[test]
fn the_first_that_matches_decides() {
    let all = MethodSet::ALL;
    let table = RouteTable::build(vec![
        route("*.example.com", "/account/**", all),
        route("*", "/users/{user}/orders/**", all),
        route("*", "/feed/**", MethodSet::NONE.with(Method::Get)),
        route("api.example.com", "/feed/{item}", all),
        route("*", "/", all),
        route("*", "/users/me/orders", all),
    ]);
    let get = |host, path| find(&table, Method::Get, host, path);
    assert_eq!(get("api.example.com", "/account/1"), (Some(0), None));
    assert_eq!(get("api.example.com", "/account"), (Some(0), None));
    assert_eq!(get("example.com", "/account/1").0, None, "a domain is not a subdomain of itself");
    assert_eq!(get("notexample.com", "/account/1").0, None);
    assert_eq!(get("a.b.example.com", "/account/1").0, Some(0));
    assert_eq!(get("x", "/users/alice/orders/7"), (Some(1), Some("alice")));
    assert_eq!(get("x", "/users/me/orders").0, Some(1), "an earlier pattern wins over a later literal");
    assert_eq!(get("x", "/users//orders/7").0, None, "a placeholder does not match an empty segment");
    assert_eq!(get("api.example.com", "/feed/1").0, Some(2));
    assert_eq!(find(&table, Method::Post, "api.example.com", "/feed/1").0, Some(3));
    assert_eq!(find(&table, Method::Post, "api.example.com", "/feed/1/2").0, None);
    assert_eq!(get("x", "/").0, Some(4));
    assert_eq!(get("x", "/accounts").0, None);
    assert_eq!(get("x", "/users/me/orders/").0, get("x", "/users/me/orders").0, "a trailing slash does not bypass a rule");
}

#[test]
fn matching_agrees_with_trying_every_route_in_turn() {
    let mut random = fastrand::Rng::with_seed(7);
    let words = ["", "a", "b", "c", "{user}", "{x}"];
    let hosts = ["*", "a.test", "*.test", "b.a.test", "*.a.test"];
    for _ in 0..300 {
        let routes: Vec<Route> = (0..12)
            .map(|_| {
                let depth = random.usize(0..4);
                let mut path = String::new();
                let mut has_user = false;
                for _ in 0..depth {
                    let word = words[random.usize(1..words.len())];
                    let word = if word == "{user}" && std::mem::replace(&mut has_user, true) { "{x}" } else { word };
                    path = format!("{path}/{word}");
                }
                let path = if random.bool() { format!("{path}/**") } else { format!("{path}/").replace("//", "/") };
                let path = if path.len() > 1 && !path.ends_with("**") { path.trim_end_matches('/').into() } else { path };
                let methods = if random.bool() { MethodSet::ALL } else { MethodSet::NONE.with(Method::Get) };
                let mut route = route(hosts[random.usize(0..hosts.len())], &path, methods);
                if random.usize(..4) == 0 {
                    route.pattern.hosts.push(HostPattern::parse(hosts[random.usize(0..hosts.len())]).unwrap());
                    route.pattern.paths.push(PathPattern::parse(["/a/**", "/b", "/{x}/a"][random.usize(..3)]).unwrap());
                }
                route
            })
            .collect();
        let table = RouteTable::build(routes.clone());
        for _ in 0..40 {
            let host = ["a.test", "b.a.test", "x.a.test", "test", "other"][random.usize(0..5)];
            let path: String = (0..random.usize(1..4)).map(|_| format!("/{}", words[random.usize(1..4)])).collect();
            let path = if random.bool() { format!("{path}/") } else { path };
            let method = if random.bool() { Method::Get } else { Method::Post };
            let exact = Pattern {
                hosts: vec![HostPattern::parse(host).unwrap()],
                paths: vec![PathPattern::parse(&path).unwrap()],
                methods: MethodSet::NONE.with(method),
                conditions: Conditions::default(),
            };
            let slow =
                routes.iter().position(|route| route.pattern.covers_target_of(&exact) && route.pattern.methods.contains(method));
            assert_eq!(find(&table, method, host, &path).0, slow, "{method:?} {host}{path} in {routes:#?}");
        }
    }
}

#[test]
fn bad_patterns_say_what_would_be_right() {
    for bad in ["account", "/a/**/b", "/a*", "/{a", "/{}", "/{user}/{user}", "/a/../b", "/a b", "/ä"] {
        assert!(PathPattern::parse(bad).is_err(), "{bad}");
    }
    for bad in ["", "*.", "a b", "*example.com", "example.com:80"] {
        assert!(HostPattern::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_condition_lets_other_requests_pass_to_the_next_route() {
    let mut routes =
        vec![route("*", "/a/**", MethodSet::ALL), route("*", "/a/b", MethodSet::ALL), route("*", "/**", MethodSet::ALL)];
    let header = FieldCondition { name: "x-beta".into(), values: vec!["1".into()] };
    routes[0].pattern.conditions.headers.push(header);
    routes[1].pattern.conditions.query.push(FieldCondition { name: "v".into(), values: Vec::new() });
    let table = RouteTable::build(routes);
    assert_eq!((&*table.field_names.headers, &*table.field_names.query), (&["x-beta".into()][..], &["v".into()][..]));
    let client = [192, 0, 2, 1].into();
    let find = |path, fields: &Fields| {
        table.find(&Head { method: Method::Get, host: "a.test", path, client, fields }).id.map(RouteId::index)
    };
    let fields = |beta: &[&str], v: &[&str]| {
        let values = |values: &[&str]| values.iter().map(|value| value.as_bytes().into()).collect();
        Fields { headers: vec![("x-beta".into(), values(beta))], query: vec![("v".into(), values(v))] }
    };
    assert_eq!(
        [find("/a/b", &fields(&["1"], &[])), find("/a/b", &fields(&["2"], &["x"])), find("/a/b", &fields(&[], &[]))],
        [Some(0), Some(1), Some(2)]
    );
    assert_eq!([find("/a/c", &fields(&["1"], &[])), find("/b", &Fields::default())], [Some(0), Some(2)]);
    assert_eq!(find("/a/b", &NO_FIELDS), Some(2));
}
