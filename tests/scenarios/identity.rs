//! Who the caller is: what verifies counts, what does not is nobody.

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine};
use http::{Method, StatusCode};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::json;

use crate::support::{NAMES, Plan, RULES, World, eventually, get, http2, read, request, runtime, whole};

const SECRET: &[u8] = b"a shared secret of forty bytes or so....";

fn seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

fn token(user: &str, home: &str, secret: &[u8]) -> String {
    let claims = json!({ "iss": "https://id.test", "aud": "api", "exp": seconds() + 600, "sub": user, "home": home });
    format!("Bearer {}", encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(secret)).unwrap())
}

fn keys(secret: &[u8]) -> String {
    json!({ "keys": [{ "kty": "oct", "k": BASE64_URL_SAFE_NO_PAD.encode(secret) }] }).to_string()
}

/// A world whose users prove themselves by tokens, and are remembered by a sealed cookie.
fn world() -> World {
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
    World::planned(Plan { rules: NAMES.map(|name| (name, rules.clone())).into(), ..Plan::default() })
}

#[test]
fn a_verified_token_names_the_user_and_any_other_names_nobody() {
    let world = world();
    let ask = |authorization: &str| get(world.eu().http, "/account/1", &[("authorization", authorization)]);
    let sound = token("alice", "", SECRET);
    assert_eq!((ask(&sound).text(), ask(&sound).text()), ("eu-west", "eu-west"));
    for forged in [token("alice", "", b"another secret of forty bytes or more..."), "Bearer x".into(), String::new()] {
        assert_eq!(ask(&forged).code(), "home.unresolved", "{forged}");
    }
    // What cannot be verified gives way to what is merely claimed.
    let fields = [("authorization", "Bearer x"), ("cookie", "uid=alice")];
    assert_eq!(get(world.eu().http, "/account/1", &fields).code(), "residency.evidence_too_weak");
    let metrics = world.eu().metrics();
    assert!(metrics.contains("domicile_tokens_total{result=\"verified\"} 1"), "{metrics}");
    assert!(metrics.contains("domicile_tokens_total{result=\"remembered\"} 1"), "{metrics}");
    assert!(metrics.contains("domicile_tokens_total{result=\"bad_signature\"} 1"), "{metrics}");
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
    // An owner with other keys believes no word of it.
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
    assert!(world.eu().reload().unwrap_err().contains("the token keys of before are kept"));
    assert_eq!(ask(SECRET), StatusCode::OK);
    std::fs::write(&file, keys(new)).unwrap();
    eventually("the new keys count and the old do not", || ask(new) == StatusCode::OK && ask(SECRET) == StatusCode::FORBIDDEN);
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
    assert_eq!(world.eu().upstream().seen().last().unwrap().headers["cookie"], "a=b", "it is between the client and us");
    let (head, tail) = sealed.split_at(sealed.len() - 20);
    let forged = format!("{head}{}", tail.chars().rev().collect::<String>());
    assert_eq!(ask(&[("cookie", &forged)]).status, StatusCode::FORBIDDEN);
    // Another user's token, and another's claim, are stronger than a cookie that is not theirs.
    assert_ne!(ask(&[("cookie", sealed), ("authorization", &token("bob", "", SECRET))]).status, StatusCode::OK);
    assert_eq!(ask(&[("cookie", &format!("{sealed}; uid=bob"))]).code(), "residency.evidence_too_weak");
    assert_eq!(first.headers["cache-control"], "private", "nobody keeps it for others");
    // Who shows a token that proves nothing is nobody, whatever it has proven before.
    for bad in [token("alice", "", b"another secret that is long enough!"), "a.b.c".into()] {
        let bad = if bad.starts_with("Bearer") { bad } else { format!("Bearer {bad}") };
        assert_eq!(ask(&[("cookie", sealed), ("authorization", &bad)]).status, StatusCode::FORBIDDEN);
    }
    assert_eq!(get(world.eu().http, "/account/1", &[("cookie", sealed)]).status, StatusCode::FORBIDDEN, "nor is it taken there");
    // In the clear there is no cookie to give.
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
    // Alone, and beside the token that it was given for.
    for fields in [&[("cookie", &*sealed)][..], &[("cookie", &sealed), ("authorization", &alice)]] {
        let again = ask("/profile/1", fields);
        assert_eq!((again.text(), again.headers.get("set-cookie")), ("eu-west", None));
    }
    assert_eq!(lookups(), [1, 2], "it was not asked");
    // What needs a record, and what is another user's, is asked for.
    assert_eq!(ask("/account/1", &[("cookie", &sealed)]).text(), "eu-west");
    assert_eq!(ask("/users/bob/orders/1", &[("cookie", &sealed)]).text(), "us-east");
    assert_eq!(lookups(), [3, 2]);
    // A peer that knows better is stronger than the cookie.
    let sealed_of_bob = cookie_of(&ask("/profile/1", &[("authorization", &bob)]));
    move_to(world.us(), "bob", "ap-northeast");
    let before = world.us().upstream().seen().len();
    assert_eq!(ask("/profile/1", &[("cookie", &sealed_of_bob)]).code(), "peer.disagree");
    assert_eq!(lookups(), [5, 3], "asked again, and of the table");
    assert_eq!(world.us().upstream().seen().len(), before);
    // The table wins as soon as it says something else.
    move_to(world.us(), "alice", "us-east");
    move_to(world.eu(), "alice", "us-east");
    let moved = ask("/profile/1", &[("cookie", &sealed), ("authorization", &alice)]);
    assert_eq!(moved.text(), "us-east");
    assert_eq!(lookups(), [6, 3]);
    let renewed = cookie_of(&moved);
    assert_eq!(ask("/profile/1", &[("cookie", &renewed)]).text(), "us-east");
    assert_eq!(lookups(), [6, 4]);
    assert_eq!(ask("/profile/1", &[("cookie", &sealed)]).text(), "us-east", "an old cookie still proves who it is");
    assert_eq!(lookups(), [7, 4]);
}
