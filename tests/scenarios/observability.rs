//! Response fields, metrics, the access log and traces.

use http::{Method, StatusCode};

use crate::support::{Answer, Plan, RULES, Recorder, World, eventually, get, log, post, send, whole};

fn field<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers.get(name).map(|value| value.to_str().unwrap())
}

/// The line of a request in the access log of a region.
fn logged(id: &str, served_by_peer: bool) -> serde_json::Value {
    let mut found = None;
    eventually("the request is logged", || {
        let lines = log();
        let mut lines = lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        found = lines.find(|line| line["id"] == id && line["peer"].is_string() == served_by_peer);
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn every_response_has_the_id_by_which_its_request_is_logged() {
    let world = World::start();
    let cases = [
        (Method::GET, "/users/alice/orders/1", StatusCode::OK),
        (Method::GET, "/users/nobody/orders/1", StatusCode::FORBIDDEN),
        (Method::GET, "/a%2fb", StatusCode::BAD_REQUEST),
        (Method::OPTIONS, "*", StatusCode::NO_CONTENT),
    ];
    for (method, target, status) in cases {
        let answer = send(world.eu().http, method, target, &[("x-app", "1")], whole(""));
        assert_eq!(answer.status, status, "{target}");
        let id = field(&answer, "domicile-request-id").unwrap_or_else(|| panic!("{target} has no id"));
        assert_eq!(logged(id, false)["status"], status.as_u16(), "{target}");
    }
    // Through two regions, both log the same id.
    let answer = get(
        world.us().http,
        "/users/alice/orders/2",
        &[("user-agent", "test/1"), ("referer", "https://a.test/users/alice?token=1")],
    );
    let id = field(&answer, "domicile-request-id").unwrap();
    let (sender, owner) = (logged(id, false), logged(id, true));
    assert_eq!((&sender["served_by"], &owner["peer"]), (&"eu-west".into(), &"us-east".into()));
    assert_eq!(owner["upstream"], world.eu().upstream().address.to_string().as_str());
    assert!(sender["upstream"].is_null() && sender["upstream_seconds"].is_number() && owner["upstream_seconds"].is_number());
    assert_eq!(
        (&sender["protocol"], &owner["protocol"], &owner["tls"]),
        (&"HTTP/1.1".into(), &"HTTP/2".into(), &"TLSv1.3".into())
    );
    assert_eq!((&owner["host"], &owner["service"]), (&"app.example.com".into(), &"app".into()));
    assert_eq!((&owner["user_agent"], &owner["referer"]), (&"test/1".into(), &"https://a.test".into()));
    // us-east only carries this data, so that its log has nothing that the client says about it.
    assert!(sender["host"].is_null(), "{sender}");
    assert!(sender["path"].is_null() && sender["user_agent"].is_null() && sender["referer"].is_null(), "{sender}");
}

#[test]
fn a_client_sees_how_its_request_was_handled_if_the_operator_exposes_it() {
    let world = World::planned(Plan { extra: "expose: [192.0.2.0/24]\n".into(), ..Plan::default() });
    let ask = |client: &str, path: &str| get(world.us().http, path, &[("x-forwarded-for", client)]);
    let seen = ask("192.0.2.7", "/users/alice/orders/1");
    assert_eq!(field(&seen, "domicile-region"), Some("eu-west"));
    assert_eq!(field(&seen, "domicile-reason"), Some("recorded; home=eu-west"));
    assert_eq!(field(&seen, "proxy-status"), Some("domicile; next-hop=\"eu-west\"; received-status=200"));
    let timing = field(&seen, "server-timing").unwrap();
    assert!(timing.starts_with("domicile;dur=") && timing.contains(", upstream;dur="), "{timing}");
    let refused = ask("192.0.2.7", "/users/nobody/orders/1");
    assert_eq!(field(&refused, "domicile-reason"), Some("home.unresolved"));
    let names = ["domicile-region", "domicile-reason", "server-timing"];
    let other = ask("192.0.3.7", "/users/alice/orders/1");
    assert!(names.iter().all(|name| field(&other, name).is_none()), "{:?}", other.headers);
    assert!(field(&other, "domicile-request-id").is_some());
}

#[test]
fn a_uniform_refusal_exposes_nothing() {
    let rules = RULES.replace("users:\n", "users:\n  uniform_refusals: true\n");
    let plan = Plan { rules: [("us-east", rules)].into(), extra: "expose: everyone\n".into(), ..Plan::default() };
    let world = World::planned(plan);
    let refused = get(world.us().http, "/account/1", &[("cookie", "uid=alice")]);
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert!(field(&refused, "domicile-reason").is_none() && field(&refused, "domicile-region").is_none());
}

#[test]
fn metrics_show_statuses_bytes_upstream_times_and_reuse() {
    let world = World::start();
    for _ in 0..3 {
        assert_eq!(post(world.eu().http, "/users/alice/orders/1", &[], "12345").status, StatusCode::OK);
    }
    get(world.eu().http, "/users/nobody/orders/1", &[]);
    let (upstream, mut metrics) = (world.eu().upstream().address, String::new());
    let labels = format!("service=\"app\",upstream=\"{upstream}\"");
    for wanted in [
        "domicile_requests_total{home=\"eu-west\",route=\"orders\",served_by=\"eu-west\",status=\"2xx\",verdict=\"proceed\"} 3"
            .to_owned(),
        "domicile_requests_total{home=\"none\",route=\"orders\",served_by=\"none\",status=\"4xx\",verdict=\"refuse\"} 1"
            .to_owned(),
        "domicile_request_body_bytes_total{route=\"orders\"} 15".to_owned(),
        format!("domicile_upstream_response_seconds_count{{{labels}}} 3"),
        format!("domicile_upstream_connections_opened_total{{{labels}}} 1"),
    ] {
        eventually(&wanted, || {
            metrics = world.eu().metrics();
            metrics.contains(&wanted)
        });
    }
    assert!(metrics.contains("domicile_response_body_bytes_total{route=\"orders\"} "), "{metrics}");
}

#[test]
fn metrics_show_what_expires_and_which_policy_each_region_serves() {
    let rules = RULES.replace("home: [directory, geoip, refuse]", "home: [directory, refuse]");
    let aged = RULES.replace("countries: { BR: us-east } }", "countries: { BR: us-east }, max_age: 1d }");
    let rules = [("eu-west", aged.clone()), ("us-east", aged), ("ap-northeast", rules)];
    let world = World::planned(Plan { rules: rules.into(), ..Plan::default() });
    let metrics = world.eu().metrics();
    let value = |start: &str| {
        let line = metrics.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start} in {metrics}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let site = world.folder.path().join("site.pem");
    assert!(value(&format!("domicile_certificate_expiry_timestamp_seconds{{file=\"{}\"}}", site.display())) > now);
    assert!(value("domicile_geoip_database_expiry_timestamp_seconds ") < now, "the bundled database is older than a day");
    let status = get(world.eu().admin, "/status", &[]);
    let status = status.text();
    assert!(status.contains("the GeoIP database is older than `geoip.max_age`"), "{status}");
    assert!(value("domicile_reload_success_timestamp_seconds ") <= now);
    assert!(value("domicile_directory_changed_timestamp_seconds ") <= now);
    assert!(value("domicile_policy_since_timestamp_seconds{region=\"us-east\"}") <= now);
    let policy = |region: &str| {
        let start = "domicile_policy_info{policy=\"";
        let line = metrics.lines().find(|line| line.starts_with(start) && line.contains(&format!("region=\"{region}\"")));
        line.unwrap_or_else(|| panic!("{metrics}"))[start.len()..][..32].to_owned()
    };
    assert_eq!(policy("eu-west"), policy("us-east"));
    assert_ne!(policy("eu-west"), policy("ap-northeast"));
}

/// The spans that a collector has received.
fn spans_of(collector: &Recorder) -> Vec<opentelemetry_proto::tonic::trace::v1::Span> {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    let batches = collector.seen().into_iter().filter(|request| request.target == "/v1/traces");
    let batches = batches.map(|request| <ExportTraceServiceRequest as prost::Message>::decode(request.body).unwrap());
    let resources = batches.flat_map(|batch| batch.resource_spans);
    resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
}

fn attribute<'a>(span: &'a opentelemetry_proto::tonic::trace::v1::Span, name: &str) -> Option<&'a str> {
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    let found = span.attributes.iter().find(|attribute| attribute.key == name)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

#[test]
fn a_trace_crosses_regions_and_its_spans_reach_the_collector_of_each() {
    let collectors = [Recorder::start("collector"), Recorder::start("collector"), Recorder::start("collector")];
    let plan = Plan::default();
    let mut world = World::prepare(&plan);
    for (region, collector) in world.regions.iter().zip(&collectors) {
        let text = std::fs::read_to_string(&region.config).unwrap();
        let traces = format!("traces: {{ collector: \"http://{}\", sample: 0% }}\n", collector.address);
        std::fs::write(&region.config, text + &traces).unwrap();
    }
    for index in 0..world.regions.len() {
        world.start_region(index).unwrap();
    }
    world.wait_until_measured();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    // The tests are a trusted hop, which has sampled this trace.
    let answer = get(world.us().http, "/users/alice/orders/1?secret=1", &[("traceparent", &parent)]);
    assert_eq!(answer.text(), "eu-west");
    let untraced = get(world.us().http, "/users/alice/orders/2", &[]);
    assert_eq!(untraced.text(), "eu-west");
    let id = field(&answer, "domicile-request-id").unwrap();
    assert_eq!(logged(id, false)["trace"], trace);
    for collector in &collectors[..2] {
        eventually("the spans arrive", || spans_of(collector).len() == 2);
    }
    let (owner, sender) = (spans_of(&collectors[0]), spans_of(&collectors[1]));
    let server = |spans: &[opentelemetry_proto::tonic::trace::v1::Span]| {
        spans.iter().find(|span| span.name == "GET orders").cloned().unwrap()
    };
    let (first, second) = (server(&sender), server(&owner));
    assert!(sender.iter().chain(&owner).all(|span| hex::encode(&span.trace_id) == trace));
    assert_eq!(hex::encode(&first.parent_span_id), "00f067aa0ba902b7");
    let hop = sender.iter().find(|span| span.name == "region").unwrap();
    assert_eq!(hop.parent_span_id, first.span_id);
    // eu-west is in another jurisdiction, so that only the id of the trace crosses.
    assert_ne!(second.parent_span_id, hop.span_id);
    assert_eq!((attribute(&first, "domicile.served_by"), attribute(&first, "domicile.request_id")), (Some("eu-west"), Some(id)));
    let upstream = owner.iter().find(|span| span.name == "upstream").unwrap();
    assert_eq!(attribute(upstream, "server.address"), Some(world.eu().upstream().address.to_string().as_str()));
    let seen = &world.eu().upstream().seen()[0].headers["traceparent"];
    assert_eq!(seen.to_str().unwrap(), format!("00-{trace}-{}-01", hex::encode(&upstream.span_id)));
    let all = format!("{sender:?}{owner:?}");
    assert!(!all.contains("secret") && !all.contains("alice") && !all.contains("/users"), "{all}");
    assert!(spans_of(&collectors[2]).is_empty(), "ap-northeast had no request");
}
