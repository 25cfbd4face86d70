//! Caller identity: only tokens and sealed cookies that verify prove a user.

use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine};
use http::{Method, Response, StatusCode};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::json;

use crate::support::{NAMES, Plan, RULES, Recorder, World, eventually, get, http2, read, remember, request, runtime, whole};

pub const SECRET: &[u8] = b"a shared secret of forty bytes or so....";

fn seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

pub fn token(user: &str, home: &str, secret: &[u8]) -> String {
    let claims = json!({ "iss": "https://id.test", "aud": "api", "exp": seconds() + 600, "sub": user, "home": home });
    format!("Bearer {}", encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(secret)).unwrap())
}

pub fn keys(secret: &[u8]) -> String {
    json!({ "keys": [{ "kty": "oct", "k": BASE64_URL_SAFE_NO_PAD.encode(secret) }] }).to_string()
}

/// A world that identifies users by tokens and by the sealed cookie (`hint`).
fn world() -> World {
    world_of(Plan::default())
}

fn world_of(plan: Plan) -> World {
    let keys_of_tokens = tempfile::NamedTempFile::new().unwrap().into_temp_path().keep().unwrap();
    let keys_of_seals = keys_of_tokens.with_extension("seal");
    std::fs::write(&keys_of_tokens, keys(SECRET)).unwrap();
    std::fs::write(&keys_of_seals, BASE64_STANDARD.encode([7; 32])).unwrap();
    let users = format!(
        "users:\n  token: {{ keys: \"{}\", issuer: \"https://id.test\", audience: api }}\n  hint: {{ keys: \"{}\", lifetime: 5m }}\n  key: [{{ token: sub }}, {{ cookie: uid }}]\n  directory: {{ file: \"FOLDER/users.csv\" }}",
        keys_of_tokens.display(),
        keys_of_seals.display()
    );
    let old = "users:\n  key: [{ header: x-user-id }, { cookie: uid }]\n  directory: { file: \"FOLDER/users.csv\" }";
    let rules = RULES.replace(old, &users).replace(
        "  - { name: rest,",
        "  - { name: signed, match: { path: \"/signed/**\" }, data: signed, home: [{ token: home }, refuse] }\n  - { name: rest,",
    );
    let rules = rules.replace(
        "  restricted: { stays: home }",
        "  restricted: { stays: home }\n  signed: { stays: home, needs: asserted, carried_by: anyone }",
    );
    World::planned(Plan { rules: NAMES.map(|name| (name, rules.clone())).into(), ..plan })
}

#[test]
fn an_operator_may_let_credentials_pass_that_only_the_app_reads() {
    let world = world();
    let fields = [("x-forwarded-for", "91.64.0.1"), ("authorization", "Basic dXNlcjpwYXNz")];
    assert_eq!(get(world.eu().http, "/profile/1", &fields).code(), "token.other_credential");
    let api_key = [("x-forwarded-for", "91.64.0.1"), ("x-api-key", "k")];
    assert_eq!(get(world.eu().http, "/profile/1", &api_key).code(), "token.other_credential");
    assert_eq!(get(world.eu().http, "/profile/1?access_token=k", &fields[..1]).code(), "token.other_credential");
    world.eu().upstream().assert_no_requests();
    let text = std::fs::read_to_string(&world.eu().config).unwrap();
    let ignoring = text.replace("audience: api", "audience: api, others: ignore");
    assert_ne!(ignoring, text);
    std::fs::write(&world.eu().config, ignoring).unwrap();
    world.eu().reload().unwrap();
    assert_eq!(get(world.eu().http, "/profile/1", &fields).text(), "eu-west");
    assert_eq!(world.eu().upstream().seen()[0].headers["authorization"], "Basic dXNlcjpwYXNz");
    // A token that does not verify is another matter, and a credential names no user.
    assert_eq!(get(world.eu().http, "/profile/1", &[("authorization", "Bearer x")]).code(), "token.unverified");
    assert_eq!(get(world.eu().http, "/account/1", &fields).code(), "home.unresolved");
}

#[test]
fn a_credential_that_only_the_app_reads_gets_no_response_that_is_labelled_stricter() {
    let labelled = |_: &'static str| {
        vec![Recorder::with(Arc::new(|request, seen| {
            Box::pin(async move {
                remember(request, &seen).await;
                let mut response = Response::new(whole("whose data is this?"));
                response.headers_mut().insert("domicile-data-class", "personal".parse().unwrap());
                response
            })
        }))]
    };
    let world = world_of(Plan { upstreams: Box::new(labelled), ..Plan::default() });
    let german = ("x-forwarded-for", "91.64.0.1");
    assert_eq!(get(world.eu().http, "/feed/1", &[german]).text(), "whose data is this?");
    for credential in ["Basic dXNlcjpwYXNz", "Bearer x"] {
        let answer = get(world.eu().http, "/feed/1", &[german, ("authorization", credential)]);
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (451, "residency.answer_not_cleared"), "{credential}");
    }
}

#[test]
fn a_verified_token_names_the_user_and_any_other_is_refused() {
    let world = world();
    let ask = |authorization: &str| get(world.eu().http, "/account/1", &[("authorization", authorization)]);
    let valid = token("alice", "", SECRET);
    assert_eq!((ask(&valid).text(), ask(&valid).text()), ("eu-west", "eu-west"));
    assert_eq!(ask("").code(), "home.unresolved", "an empty field presents no credential");
    let forged = token("alice", "", b"another secret of forty bytes or more...");
    for bad in [&*forged, "Bearer x", &format!("Bearer  {}", &valid[7..]), &format!("{valid}, Basic eA==")] {
        let answer = ask(bad);
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::UNAUTHORIZED, "token.unverified"), "{bad}");
        assert_eq!(answer.headers["www-authenticate"], "Bearer error=\"invalid_token\"");
    }
    // The `uid` cookie does not stand in for a token that does not verify.
    let fields = [("authorization", "Bearer x"), ("cookie", "uid=alice")];
    assert_eq!(get(world.eu().http, "/profile/1", &fields).code(), "token.unverified");
    let twice = [("authorization", &*valid), ("authorization", &*valid)];
    assert_eq!(get(world.eu().http, "/account/1", &twice).code(), "token.unverified");
    let basic = ask("Basic dXNlcjpwYXNz");
    assert_eq!((basic.status, basic.code().as_str()), (StatusCode::UNAUTHORIZED, "token.other_credential"));
    assert_eq!(world.eu().upstream().seen().len(), 2, "the app server saw only the requests with a valid token");
    // Data that stays `anywhere` is served, but a token that does not verify is removed from the request.
    assert_eq!(get(world.eu().http, "/feed/1", &[("authorization", &forged)]).text(), "eu-west");
    assert!(!world.eu().upstream().seen()[2].headers.contains_key("authorization"));
    assert_eq!(get(world.eu().http, "/feed/1", &[("authorization", "Basic eA==")]).text(), "eu-west");
    assert!(world.eu().upstream().seen()[3].headers.contains_key("authorization"));
    let metrics = world.eu().metrics();
    assert!(metrics.contains("domicile_tokens_total{result=\"verified\"} 1"), "{metrics}");
    assert!(metrics.contains("domicile_tokens_total{result=\"remembered\"} 1"), "{metrics}");
    assert!(metrics.contains("domicile_tokens_total{result=\"bad_signature\"} 2"), "{metrics}");
}

#[test]
fn a_claim_names_the_home_and_the_owner_verifies_it_again() {
    let world = world();
    let ask =
        |at: &crate::support::Region, home: &str| get(at.http, "/signed/1", &[("authorization", &token("zoe", home, SECRET))]);
    assert_eq!(ask(world.eu(), "us-east").text(), "us-east");
    assert_eq!(ask(world.us(), "us-east").text(), "us-east");
    assert_eq!(
        (ask(world.eu(), "atlantis").status, ask(world.eu(), "atlantis").code().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "home.unknown_region")
    );
    assert_eq!(get(world.eu().http, "/signed/1", &[]).code(), "home.unresolved");
    // An owner with other keys does not accept the claim.
    let text = std::fs::read_to_string(&world.us().config).unwrap();
    let file = text.split("token: { keys: \"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let other = format!("{file}.other");
    std::fs::write(&other, keys(b"another secret of forty bytes or more...")).unwrap();
    std::fs::write(&world.us().config, text.replace(&format!("\"{file}\""), &format!("\"{other}\""))).unwrap();
    world.us().reload().unwrap();
    let before = world.us().upstream().seen().len();
    assert_ne!(ask(world.eu(), "us-east").status, StatusCode::OK);
    assert_eq!(world.us().upstream().seen().len(), before);
}

#[test]
fn keys_are_read_again_and_bad_ones_are_not() {
    let world = world();
    let text = std::fs::read_to_string(&world.eu().config).unwrap();
    let file = text.split("token: { keys: \"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let new: &[u8] = b"a new shared secret, forty bytes or more";
    let ask = |secret: &[u8]| get(world.eu().http, "/account/1", &[("authorization", &token("alice", "", secret))]).status;
    std::fs::write(&file, "{}").unwrap();
    assert!(world.eu().reload().unwrap_err().contains("the previous token keys are kept"));
    assert_eq!(ask(SECRET), StatusCode::OK);
    std::fs::write(&file, keys(new)).unwrap();
    eventually("only the new keys are accepted", || ask(new) == StatusCode::OK && ask(SECRET) == StatusCode::UNAUTHORIZED);
}

#[test]
fn a_sealed_cookie_remembers_who_was_proven_and_serves_nobody_else() {
    let world = world();
    let ask = |fields: &[(&str, &str)]| {
        runtime().block_on(async {
            let mut sender = http2(&world, world.eu().https, "localhost").await;
            let request = request(Method::GET, "https://localhost/account/1", "", fields, whole(""));
            read(sender.send_request(request).await.unwrap()).await.unwrap()
        })
    };
    let first = ask(&[("authorization", &token("alice", "", SECRET))]);
    let cookie = first.headers["set-cookie"].to_str().unwrap().to_owned();
    assert!(cookie.starts_with("__Host-domicile-home=") && cookie.contains("; Secure; HttpOnly"), "{cookie}");
    assert!(!cookie.contains("alice") && !cookie.contains("eu-west"));
    let sealed = cookie.split(';').next().unwrap();
    let again = ask(&[("cookie", &format!("a=b; {sealed}"))]);
    assert_eq!((again.status, again.headers.get("set-cookie")), (StatusCode::OK, None));
    assert_eq!(world.eu().upstream().seen().last().unwrap().headers["cookie"], "a=b", "the sealed cookie is not forwarded");
    let (head, tail) = sealed.split_at(sealed.len() - 20);
    let forged = format!("{head}{}", tail.chars().rev().collect::<String>());
    assert_eq!(ask(&[("cookie", &forged)]).status, StatusCode::FORBIDDEN);
    // A token or a `uid` cookie of another user outranks the sealed cookie.
    assert_ne!(ask(&[("cookie", sealed), ("authorization", &token("bob", "", SECRET))]).status, StatusCode::OK);
    assert_eq!(ask(&[("cookie", &format!("{sealed}; uid=bob"))]).code(), "residency.evidence_too_weak");
    assert_eq!(first.headers["cache-control"], "private", "shared caches must not store the response");
    // A response with the data of another user sets no cookie: its record is not the caller's.
    let of_bob = runtime().block_on(async {
        let mut sender = http2(&world, world.eu().https, "localhost").await;
        let fields = [("authorization", &*token("alice", "", SECRET))];
        let request = request(Method::GET, "https://localhost/users/bob/orders/1", "", &fields, whole(""));
        read(sender.send_request(request).await.unwrap()).await.unwrap()
    });
    assert_eq!((of_bob.text(), of_bob.headers.get("set-cookie")), ("us-east", None));
    // A sealed cookie does not count if the request also has a token that does not verify.
    for bad in [token("alice", "", b"another secret that is long enough!"), "a.b.c".into()] {
        let bad = if bad.starts_with("Bearer") { bad } else { format!("Bearer {bad}") };
        assert_eq!(ask(&[("cookie", sealed), ("authorization", &bad)]).status, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(get(world.eu().http, "/account/1", &[("cookie", sealed)]).status, StatusCode::FORBIDDEN, "not over cleartext");
    // Responses over cleartext set no sealed cookie.
    let plain = get(world.eu().http, "/account/1", &[("authorization", &token("alice", "", SECRET))]);
    assert_eq!((plain.status, plain.headers.get("set-cookie")), (StatusCode::OK, None));
}

#[test]
fn a_sealed_cookie_saves_the_next_lookup_until_the_table_says_something_else() {
    let world = world();
    let ask = |path: &str, fields: &[(&str, &str)]| {
        runtime().block_on(async {
            let mut sender = http2(&world, world.eu().https, "localhost").await;
            let request = request(Method::GET, &format!("https://localhost{path}"), "", fields, whole(""));
            read(sender.send_request(request).await.unwrap()).await.unwrap()
        })
    };
    let lookups = || {
        let metrics = world.eu().metrics();
        ["found", "remembered"].map(|result| {
            let line = format!("domicile_directory_lookups_total{{result=\"{result}\"}} ");
            metrics.lines().find_map(|known| known.strip_prefix(&*line)).map_or(0, |count| count.parse().unwrap())
        })
    };
    let cookie_of = |answer: &crate::support::Answer| {
        let cookie = answer.headers["set-cookie"].to_str().unwrap();
        cookie.split(';').next().unwrap().to_owned()
    };
    let move_to = |region: &crate::support::Region, user: &str, home: &str| {
        let users = crate::support::USERS.lines().filter(|line| !line.starts_with(user));
        let users: String = users.map(|line| format!("{line}\n")).chain([format!("{user},{home}\n")]).collect();
        let file = region.config.with_file_name(format!("users-{}.csv", region.name));
        std::fs::write(file, users).unwrap();
        region.reload().unwrap();
    };
    let (alice, bob) = (token("alice", "", SECRET), token("bob", "", SECRET));
    let sealed = cookie_of(&ask("/profile/1", &[("authorization", &alice)]));
    assert_eq!(lookups(), [1, 0]);
    // The cookie alone, and together with the token of the same user.
    for fields in [&[("cookie", &*sealed)][..], &[("cookie", &sealed), ("authorization", &alice)]] {
        let again = ask("/profile/1", fields);
        assert_eq!((again.text(), again.headers.get("set-cookie")), ("eu-west", None));
    }
    assert_eq!(lookups(), [1, 2], "the cookie replaces the directory lookup");
    // A class that needs a record, and a path that names another user, cause a lookup.
    assert_eq!(ask("/account/1", &[("cookie", &sealed)]).text(), "eu-west");
    assert_eq!(ask("/users/bob/orders/1", &[("cookie", &sealed)]).text(), "us-east");
    assert_eq!(lookups(), [3, 2]);
    // If the peer's directory disagrees, the cookie does not decide.
    let sealed_of_bob = cookie_of(&ask("/profile/1", &[("authorization", &bob)]));
    move_to(world.us(), "bob", "ap-northeast");
    let before = world.us().upstream().seen().len();
    assert_eq!(ask("/profile/1", &[("cookie", &sealed_of_bob)]).code(), "peer.disagree");
    assert_eq!(lookups(), [4, 3], "a request is counted once, whether or not its second attempt asks the directory");
    assert_eq!(world.us().upstream().seen().len(), before);
    // A changed user table outranks the cookie at once.
    move_to(world.us(), "alice", "us-east");
    move_to(world.eu(), "alice", "us-east");
    let moved = ask("/profile/1", &[("cookie", &sealed), ("authorization", &alice)]);
    assert_eq!(moved.text(), "us-east");
    assert_eq!(lookups(), [5, 3]);
    let renewed = cookie_of(&moved);
    assert_eq!(ask("/profile/1", &[("cookie", &renewed)]).text(), "us-east");
    assert_eq!(lookups(), [5, 4]);
    assert_eq!(ask("/profile/1", &[("cookie", &sealed)]).text(), "us-east", "an old cookie still proves the user");
    assert_eq!(lookups(), [6, 4]);
    // After a change of the table, the cookie alone proves its user, and is not renewed: it would then never expire.
    move_to(world.eu(), "chika", "us-east");
    let renewed = ask("/profile/1", &[("cookie", &sealed)]);
    assert_eq!((renewed.text(), renewed.headers.get("set-cookie")), ("eu-west", None));
}
