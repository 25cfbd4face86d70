//! The command line: what it prints, and its exit codes.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustls::client::danger::ServerCertVerifier as _;
use rustls_pki_types::pem::PemObject as _;

/// The smallest configuration, with a route that `check` reads an environment variable for.
const CONFIG: &str = r#"
region: eu
listen: [127.0.0.1:8080, { address: "127.0.0.1:9443", peers: true }]
jurisdictions: { eu: { countries: [EEA] }, us: { countries: [US] } }
regions:
  eu: { jurisdiction: eu, at: [52.52, 13.40], upstreams: ["${APP:-http://127.0.0.1:3000}"], gateway: "https://127.0.0.1:1" }
  us: { jurisdiction: us, at: [38.95, -77.45], upstreams: [http://127.0.0.1:3000], gateway: "https://127.0.0.1:2" }
peer_tls: { certificate: a.pem, key: a.key, authority: ca.pem }
audit: { directory: ledger }
data: { public: { stays: anywhere }, restricted: { stays: home } }
users: { key: [{ header: x-user-id }], directory: { file: users.csv } }
routes:
  - { name: account, match: { path: "/account/**" }, data: restricted, home: [directory, refuse] }
  - { name: rest, match: {}, data: public, home: [{ region: eu }] }
"#;

fn run(folder: &Path, arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_domicile"));
    command.args(arguments).current_dir(folder).env_remove("DOMICILE_CONFIG").env_remove("APP");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("d.yaml"), CONFIG).unwrap();
    folder
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn check_reads_standard_input_and_prints_mistakes_as_json() {
    let folder = folder();
    let valid = run(folder.path(), &["check", "--json", "--config", "-"], CONFIG);
    let report: serde_json::Value = serde_json::from_slice(&valid.stdout).unwrap();
    assert_eq!((valid.status.code(), &report["valid"], &report["file"]), (Some(0), &true.into(), &"standard input".into()));
    let broken = CONFIG.replace("data: restricted,", "data: restrictd,").replace("${APP:-", "${file:");
    let broken = run(folder.path(), &["check", "--json", "--config", "-"], &broken.replace("http://127.0.0.1:3000}", "app.url}"));
    let report: serde_json::Value = serde_json::from_slice(&broken.stdout).unwrap();
    assert_eq!((broken.status.code(), &report["valid"]), (Some(1), &false.into()));
    assert_eq!((&report["mistakes"][0]["line"], &report["mistakes"][0]["column"]), (&6.into(), &59.into()), "{report}");
    // Messages show the reference to a file instead of its content, which may be a secret.
    std::fs::write(folder.path().join("app.url"), "ftp://s3cret\n").unwrap();
    let secret =
        run(folder.path(), &["check", "--config", "-"], &CONFIG.replace("${APP:-http://127.0.0.1:3000}", "${file:app.url}"));
    let message = text(&secret.stderr);
    assert!(message.contains("`${file:app.url}` is not a valid") && !message.contains("s3cret"), "{message}");
    // Notes are shown beside mistakes, and folders that the process would miss are mistakes.
    let folders = CONFIG.to_owned() + "access_log: { output: { file: no/such/folder/access.log } }\n";
    let missing = run(folder.path(), &["check", "--files", "--json", "--config", "-"], &folders);
    let report: serde_json::Value = serde_json::from_slice(&missing.stdout).unwrap();
    let mistakes = report["mistakes"].to_string();
    assert!(mistakes.contains("`access_log.output.file`: the folder `no/such/folder` does not exist; create it"), "{report}");
    let run_on_input = run(folder.path(), &["run", "--config", "-"], CONFIG);
    assert_eq!(run_on_input.status.code(), Some(1));
    assert!(text(&run_on_input.stderr).contains("name a file instead of `-`"));
}

#[test]
fn check_warns_of_transfers_that_end_within_thirty_days() {
    let folder = folder();
    let rules = |until: jiff::civil::Date| {
        let of_home = "restricted: { stays: home";
        let transfer = format!("transfers: [{{ from: us, to: eu, basis: contract, record: SCC 2026-14, until: {until} }}]");
        CONFIG.replace(of_home, &format!("{of_home}, {transfer}"))
    };
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let said =
        |days: i64| text(&run(folder.path(), &["check", "--config", "-"], &rules(today + jiff::Span::new().days(days))).stdout);
    let ends = "note: the transfer of restricted data from us to eu (contract, SCC 2026-14) ends in";
    assert!(said(20).contains(ends), "{}", said(20));
    assert!(!said(40).contains("note: the transfer"), "{}", said(40));
    assert!(said(-1).contains("(contract, SCC 2026-14) has ended with"), "{}", said(-1));
}

#[test]
fn check_tells_what_changes_with_requests_that_explain_confirms() {
    let folder = folder();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("users.csv", "user,home\nof-eu,eu\nof-us,us\n");
    let new = CONFIG
        .replace("stays: home }", "stays: [eu] }")
        .replace("name: rest, match: {}, data: public", "name: all, match: {}, data: public");
    write("new.yaml", &new);
    let unchanged = run(folder.path(), &["check", "--config", "d.yaml", "--against", "d.yaml"], "");
    assert!(text(&unchanged.stdout).contains("compared with d.yaml: nothing differs"), "{}", text(&unchanged.stdout));
    let shown = text(&run(folder.path(), &["check", "--config", "new.yaml", "--against", "d.yaml"], "").stdout);
    assert!(shown.contains("data class restricted: data of users in us may also be processed in eu;"), "{shown}");
    let compared = run(folder.path(), &["check", "--json", "--config", "new.yaml", "--against", "d.yaml"], "");
    let report: serde_json::Value = serde_json::from_slice(&compared.stdout).unwrap();
    let examples: Vec<_> =
        report["differences"].as_array().unwrap().iter().map(|one| &one["example"]).filter(|found| found.is_object()).collect();
    assert!(examples.len() >= 2, "{report:#}");
    for example in examples {
        let say = |key: &str| example[key].as_str().unwrap();
        let (method, url) = say("request").split_once(' ').unwrap();
        let user = say("by").strip_prefix("a user whose home is ").map(|home| format!("of-{home}")).unwrap();
        for (file, expected) in [("d.yaml", say("before")), ("new.yaml", say("after"))] {
            let arguments =
                ["explain", "--config", file, "--region", say("at"), "--user", &user, "--expect", expected, method, url];
            let explained = run(folder.path(), &arguments, "");
            assert_eq!(explained.status.code(), Some(0), "{arguments:?}: {}", text(&explained.stderr));
        }
    }
    // Settings beside the policy change which facts a request has.
    write(
        "trust.yaml",
        &(CONFIG.to_owned()
            + "client_address: { trust: [10.0.0.0/8], from: x-forwarded-for }\nassert: [{ never: { data: restricted, of: eu, processed_in: us } }]\n"),
    );
    let shown = text(&run(folder.path(), &["check", "--config", "trust.yaml", "--against", "d.yaml"], "").stdout);
    for expected in [
        "client_address.trust: now 10.0.0.0/8; was no network",
        "client_address.from: now x-forwarded-for; was forwarded",
        "number of assertions: now 1; was 0",
    ] {
        assert!(shown.contains(expected), "{shown}");
    }
    let missing = run(folder.path(), &["check", "--config", "new.yaml", "--against", "none.yaml"], "");
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("none.yaml: cannot read this file"), "{}", text(&missing.stderr));
}

#[test]
fn a_case_in_the_file_is_judged_with_the_user_table() {
    let folder = folder();
    std::fs::write(folder.path().join("users.csv"), "user,home\nalice,us\n").unwrap();
    let case = |rest: &str| {
        let file = format!(
            "{CONFIG}assert:\n  - never: {{ data: restricted, of: eu, processed_in: us }}\n  - case: {{ request: GET https://a.test/account/1, user: alice, {rest} }}\n"
        );
        run(folder.path(), &["check", "--config", "-"], &file)
    };
    let holds = case("at: us, expect: us");
    assert!(text(&holds.stdout).contains("the assertion holds\nthe case is judged as expected"), "{}", text(&holds.stdout));
    assert!(case("at: us, down: us, expect: failover.home_down").status.success());
    assert!(case("at: us, claimed: true, expect: refuse residency.evidence_too_weak").status.success());
    let broken = case("expect: us");
    assert_eq!(broken.status.code(), Some(1));
    let told = text(&broken.stderr);
    let message = "assert[1].case: this case does not hold: expected `us`, found `refuse residency.carrier_not_cleared`";
    assert!(told.starts_with("-:17:11:") && told.contains(message) && told.contains("\n  directory "), "{told}");
    for (wrong, message) in [
        ("expect: us, from: 1.2.3", "assert[1].case.from: `1.2.3` is not a valid IP address"),
        ("at: mars, expect: us", "assert[1].case.at: unknown region `mars`"),
        ("from: 10.0.0.1", "assert[1].case: `expect` is missing"),
        ("expect: us, day: soon", "`soon` is not a valid date"),
        ("expect: us, down: mars", "unknown region `mars`"),
    ] {
        let told = text(&case(wrong).stderr);
        assert!(told.contains(message), "{wrong}: {told}");
    }
    std::fs::remove_file(folder.path().join("users.csv")).unwrap();
    assert!(text(&case("at: us, expect: us").stderr).contains("users.csv"), "the table must be there");
}

#[test]
fn replay_tells_which_logged_requests_another_policy_judges_differently() {
    let folder = folder();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    // us also carries restricted data; the others' home moves to us.
    let new = CONFIG
        .replace("restricted: { stays: home }", "restricted: { stays: [us] }")
        .replace("home: [{ region: eu }]", "home: [{ region: us }]");
    write("new.yaml", &new);
    let text_line = |rest: &str| format!("2026-11-28T10:00:00.000000Z  INFO domicile::request: request {rest} seconds=0.001\n");
    let json_line = |rest: &str| format!("{{\"timestamp\":\"2026-11-28T10:00:00.000000Z\",\"message\":\"request\",{rest}}}\n");
    let log = [
        text_line(
            r#"id="a1" client="81.2.69.0/24" user="5c93bd8c" method="GET" host="a.test" path="/account/1" route="account" class="restricted" home="eu" evidence="recorded" served_by="eu" verdict="proceed" status=200"#,
        ),
        json_line(
            r#""id":"a2","client":"81.2.69.0/24","method":"POST","host":"a.test","path":"/account/2","route":"account","home":"us","evidence":"recorded","served_by":"none","verdict":"refuse","code":"residency.carrier_not_cleared","status":451"#,
        ),
        text_line(
            r#"id="a3" client="81.2.69.0/24" method="GET" host="a.test" path="/" route="rest" home="eu" evidence="inferred" served_by="eu" verdict="proceed" status=200"#,
        ),
        // A region that only carries a request does not log its path.
        text_line(
            r#"id="a4" client="81.2.69.0/24" method="GET" route="account" home="eu" evidence="recorded" served_by="us" verdict="proceed" status=200"#,
        ),
        text_line(
            r#"id="a5" client="81.2.69.0/24" method="GET" route="account" home="none" served_by="none" verdict="refuse" code="rate.limited" status=429"#,
        ),
        text_line(
            r#"id="a6" peer="us" method="GET" route="account" home="eu" evidence="recorded" served_by="eu" verdict="proceed" status=200"#,
        ),
        text_line(
            r#"id="a7" client="81.2.69.0/24" method="GET" route="gone" home="eu" evidence="recorded" served_by="us" verdict="proceed" status=200"#,
        ),
        text_line(r#"id="a8" client="81.2.69.0/24" method="GET""#),
        "2026-11-28T10:00:00.000000Z  INFO domicile::cli::run: started\n".to_owned(),
    ];
    write("access.log", &log.concat());
    let replay = |file: &str, more: &[&str]| {
        let arguments = [&["replay", "--log", "access.log", "--config", file][..], more].concat();
        let done = run(folder.path(), &arguments, "");
        assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
        text(&done.stdout)
    };
    write(
        "url.yaml",
        &CONFIG
            .replace("restricted: { stays: home }", "restricted: { stays: home, carried_by: nobody }")
            .replace("gateway: \"https://127.0.0.1:2\" }", "gateway: \"https://127.0.0.1:2\", url: \"https://us.test\" }"),
    );
    let redirected = replay("url.yaml", &[]);
    assert!(redirected.contains("route account: no longer refused: 1"), "{redirected}");
    let report: serde_json::Value = serde_json::from_str(&replay("new.yaml", &["--json"])).unwrap();
    assert_eq!((&report["judged"], &report["left_out"], &report["other_lines"]), (&4.into(), &3.into(), &1.into()), "{report:#}");
    assert_eq!(report["incomplete"], 1);
    let found: Vec<_> = report["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| format!("{} {} {}", one["route"], one["change"], one["count"]))
        .collect();
    let expected =
        [r#""account" "newly refused" 2"#, r#""rest" "home moved" 1"#, r#""rest" "newly carried to another region" 1"#];
    assert_eq!(found, expected, "{report:#}");
    let shown = replay("new.yaml", &[]);
    assert!(
        shown.contains("  a1 GET a.test/account/1: home eu, refuse residency.home_not_cleared; was home eu, served by eu"),
        "{shown}"
    );
    assert!(
        shown.contains("  a4 GET route account: home eu, refuse residency.home_not_cleared; was home eu, served by us"),
        "{shown}"
    );
    // The policy that judged them changes nothing, although the log has no keys.
    let same = replay("d.yaml", &[]);
    assert!(same.contains("4 requests of eu judged under d.yaml") && same.contains("nothing changes"), "{same}");
    write("access.log", "x\n");
    let none = run(folder.path(), &["replay", "--log", "access.log", "--config", "d.yaml"], "");
    assert!(text(&none.stderr).contains("no line is about a request"), "{}", text(&none.stderr));
}

#[test]
fn the_matrix_has_the_counter_examples_of_broken_assertions() {
    let folder = folder();
    let file = CONFIG.to_owned() + "assert: [{ never: { data: public, of: eu, processed_in: us } }]\n";
    std::fs::write(folder.path().join("broken.yaml"), file).unwrap();
    let matrix = |file: &str, format: &str| run(folder.path(), &["check", "--config", file, "--matrix", format], "");
    let holds = matrix("d.yaml", "json");
    let page: serde_json::Value = serde_json::from_slice(&holds.stdout).unwrap();
    assert_eq!(holds.status.code(), Some(0));
    let rows = page["classes"].as_array().unwrap().iter().find(|class| class["name"] == "restricted").unwrap()["rows"].clone();
    assert_eq!(rows[0], serde_json::json!({ "users": "eu", "processed_in": ["eu"], "carried_by": ["eu"] }));
    assert_eq!(
        (&page["broken"], &page["routes"][0]["home"]),
        (&serde_json::json!([]), &serde_json::json!(["directory", "refuse"]))
    );
    let file = CONFIG.to_owned() + "assert: [{ case: { request: GET /account/1, expect: us } }]\n";
    std::fs::write(folder.path().join("case.yaml"), file).unwrap();
    std::fs::write(folder.path().join("users.csv"), "user,home\nalice,us\n").unwrap();
    for format in ["text", "json", "html"] {
        let broken = matrix("case.yaml", format);
        let said = text(&broken.stdout);
        assert!(broken.status.code() == Some(1) && said.contains("this case does not hold: expected `us`"), "{said}");
        let broken = matrix("broken.yaml", format);
        let said = text(&broken.stdout);
        assert_eq!(broken.status.code(), Some(1), "{said}");
        let story = if format == "html" {
            "<pre>assert[0] does not hold: a read of route `rest`"
        } else {
            "assert[0] does not hold: a read of route `rest`"
        };
        assert!(said.contains(story) && said.contains("restricted"), "{said}");
    }
}

#[test]
fn test_compares_decisions_with_the_expected_ones() {
    let folder = folder();
    let cases = r#"
about: the policy of the tests
people: { alice: { home: eu }, bob: { home: us } }
cases:
  - { it: "a traveller is served at home", at: us, ask: GET https://a.test/account/1, user: bob, expect: us }
  - { it: "nobody else carries restricted data", at: us, ask: GET /account/1, user: alice, expect: refuse residency.carrier_not_cleared }
  - { it: "a claimed key is not enough", ask: GET /account/1, user: alice, claimed: true, expect: residency.evidence_too_weak }
  - { it: "a home that is down refuses", ask: GET /account/1, user: alice, down: [eu], expect: failover.home_down, says: "eu is down" }
"#;
    std::fs::write(folder.path().join("cases.yaml"), cases).unwrap();
    let arguments = ["test", "--config", "d.yaml", "cases.yaml"];
    let passed = run(folder.path(), &arguments, "");
    assert_eq!(
        (passed.status.code(), text(&passed.stdout).as_str()),
        (Some(0), "4 cases, 0 wrong\n"),
        "{}",
        text(&passed.stderr)
    );
    std::fs::write(folder.path().join("cases.yaml"), cases.replace("expect: us }", "expect: eu }")).unwrap();
    let failed = run(folder.path(), &arguments, "");
    let report = text(&failed.stdout);
    assert_eq!(failed.status.code(), Some(1));
    assert!(report.contains("expected: eu\n  found:    proceed us\n") && report.ends_with("4 cases, 1 wrong\n"), "{report}");
    std::fs::write(folder.path().join("cases.yaml"), cases.replace("user: bob", "usr: bob")).unwrap();
    let unread = run(folder.path(), &arguments, "");
    assert!(text(&unread.stderr).contains("unknown field `usr`"), "{}", text(&unread.stderr));
}

#[test]
fn explain_fails_if_the_decision_is_not_the_expected_one() {
    let folder = folder();
    std::fs::write(folder.path().join("users.csv"), "user,home\nalice,eu\n").unwrap();
    let explain = |expected: &str| {
        let arguments = ["explain", "--config", "d.yaml", "--user", "alice", "--expect", expected, "GET", "/account/1"];
        run(folder.path(), &arguments, "")
    };
    assert_eq!(explain("eu").status.code(), Some(0));
    assert_eq!(explain("proceed eu").status.code(), Some(0));
    let wrong = explain("home.unresolved");
    assert_eq!(wrong.status.code(), Some(1));
    assert!(text(&wrong.stderr).contains("expected `home.unresolved`, found `proceed eu`"));
}

#[test]
fn a_region_is_added_to_the_trial_certificates_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let create = |regions: &[&str]| {
        let output = run(folder.path(), &[&["certificates", "--out", "certs"], regions].concat(), "");
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    let read = |name: &str| std::fs::read_to_string(folder.path().join("certs").join(name)).unwrap();
    create(&["eu", "us"]);
    let before = (read("peers-ca.pem"), read("eu.pem"));
    create(&["jp"]);
    assert_eq!((read("peers-ca.pem"), read("eu.pem")), before, "the others stay as they are");
    let certificate = |name: &str| rustls_pki_types::CertificateDer::from_pem_slice(read(name).as_bytes()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate("peers-ca.pem")).unwrap();
    let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
        roots.into(),
        std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
    );
    let verifier = verifier.build().unwrap();
    let verify = |name: &str, days: u64| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let at = rustls_pki_types::UnixTime::since_unix_epoch(now + std::time::Duration::from_secs(days * 86_400));
        let site = rustls_pki_types::ServerName::try_from("localhost").unwrap();
        verifier.verify_server_cert(&certificate(name), &[], &site, &[], at)
    };
    assert!(verify("site.pem", 0).is_ok() && verify("site.pem", 360).is_ok());
    assert!(verify("site.pem", 370).unwrap_err().to_string().contains("expired"));
    // The certificate of a region has no host, so that the chain is right if only the name is wrong.
    let added = verify("jp.pem", 0).unwrap_err().to_string();
    assert!(added.contains("not valid for"), "{added}");
}
