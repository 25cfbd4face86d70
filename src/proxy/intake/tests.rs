use http::Request;

use super::*;
use crate::model::user::Proof;

#[test]
fn what_is_judged_is_what_is_forwarded() {
    for (path, canonical) in [
        ("/", "/"),
        ("/account/1", "/account/1"),
        ("/%61ccount/%2e%2e/account/1", "/account/1"),
        ("//account//1", "/account/1"),
        ("/x/../account/1/./", "/account/1/"),
        ("/x/..", "/"),
        ("/users/zo%c3%ab/%40", "/users/zo%C3%AB/@"),
        ("/orders%3aexport/%24batch", "/orders:export/$batch"),
        ("/a|b%7c", "/a%7Cb%7C"),
        ("/a%3bb", "/a%3Bb"),
        ("/.well-known/x", "/.well-known/x"),
    ] {
        assert_eq!(canonical_path(path).as_deref(), Some(canonical), "{path}");
    }
}

#[test]
fn what_two_servers_may_read_differently_is_refused() {
    for path in [
        "account",
        "*",
        "/a%2fb",
        "/a%2Fb",
        "/a%5cb",
        "/a\\b",
        "/a%00",
        "/a%0d%0a",
        "/%252e%252e/x",
        "/a%",
        "/a%4",
        "/a%zz",
        "/../x",
        "/a/../../x",
        "/a;b=c/d",
        "/%ff",
        "/%c0%ae",
        "/a%7f",
        "/a b",
    ] {
        assert_eq!(canonical_path(path), None, "{path}");
    }
}

fn host(uri: &str, hosts: &[&str]) -> Option<String> {
    let mut request = Request::get(uri);
    for host in hosts {
        request = request.header("host", *host);
    }
    target::host_of(&request.body(()).unwrap().into_parts().0)
}

#[test]
fn a_request_has_one_host_in_one_form() {
    assert_eq!(host("/", &["API.Example.com.:8080"]).as_deref(), Some("api.example.com"));
    assert_eq!(host("http://a.test/", &["A.test:80"]).as_deref(), Some("a.test"));
    assert_eq!(host("/", &["[2001:DB8::1]:80"]).as_deref(), Some("[2001:db8::1]"));
    for hosts in [&[][..], &["a", "a"], &["u@a"], &["a/b"], &["a:x"], &[""], &["a b"], &["[::1"]] {
        assert_eq!(host("/", hosts), None, "{hosts:?}");
    }
    assert_eq!(host("http://a.test/", &["b.test"]), None);
}

fn client(remote: &str, trust: &str, source: AddressSource, fields: &[(&str, &str)]) -> String {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
    }
    let settings = Settings { trust: vec![trust.parse().unwrap()], source, keys: vec![] };
    client::address(&headers, remote.parse().unwrap(), &settings).to_string()
}

#[test]
fn nobody_speaks_for_a_client_unless_trusted() {
    use AddressSource::{Forwarded, XForwardedFor};
    let xff = |remote, value| client(remote, "10.0.0.0/8", XForwardedFor, &[("x-forwarded-for", value)]);
    assert_eq!(xff("203.0.113.9", "1.1.1.1"), "203.0.113.9");
    assert_eq!(xff("10.0.0.1", "6.6.6.6, 1.1.1.1, 10.0.0.2"), "1.1.1.1", "from the right, to the first that is not ours");
    assert_eq!(xff("10.0.0.1", "6.6.6.6, junk, 10.0.0.2"), "10.0.0.2", "no further than can be read");
    assert_eq!(xff("10.0.0.1", "::ffff:81.2.69.142"), "81.2.69.142");
    assert_eq!(xff("::ffff:10.0.0.1", "1.1.1.1:4711"), "1.1.1.1");
    let forwarded = |value| client("10.0.0.1", "10.0.0.0/8", Forwarded, &[("forwarded", value)]);
    assert_eq!(forwarded("for=1.1.1.1;proto=https, for=10.0.0.3"), "1.1.1.1");
    assert_eq!(forwarded("for=\"[2001:db8::1]:80\""), "2001:db8::1");
    assert_eq!(forwarded("for=1.1.1.1, for=\"_hidden\""), "10.0.0.1");
    assert_eq!(forwarded("for=\"a, for=9.9.9.9\""), "10.0.0.1", "a comma in quotes separates nothing");
    let real = |fields| client("10.0.0.1", "10.0.0.0/8", AddressSource::Header("x-real-ip".parse().unwrap()), fields);
    assert_eq!(real(&[("x-real-ip", "1.1.1.1")]), "1.1.1.1");
    assert_eq!(real(&[("x-real-ip", "1.1.1.1"), ("x-real-ip", "2.2.2.2")]), "10.0.0.1");
}

#[test]
fn a_header_names_the_user_only_from_a_trusted_hop() {
    let keys = [KeySource::Header("x-user-id".parse().unwrap()), KeySource::Cookie("uid".into())];
    let mut headers = HeaderMap::new();
    headers.insert("x-user-id", "alice".parse().unwrap());
    headers.insert("cookie", "a=b; uid=bob".parse().unwrap());
    assert_eq!(user::key(&headers, true, None, &keys), Ok(Some(("alice".into(), Proof::Proven))));
    assert_eq!(user::key(&headers, false, None, &keys), Ok(Some(("bob".into(), Proof::Claimed))));
    headers.append("cookie", http::HeaderValue::from_bytes(b"x=\xe4; uid=bob").unwrap());
    assert_eq!(
        user::key(&headers, false, None, &keys),
        Ok(Some(("bob".into(), Proof::Claimed))),
        "odd bytes of another cookie hide nobody"
    );
    headers.append("cookie", "uid=carol".parse().unwrap());
    assert_eq!(user::key(&headers, false, None, &keys), Err(Code::RequestMalformed), "two users are one too many");
    headers.append("x-user-id", "mallory".parse().unwrap());
    assert_eq!(user::key(&headers, true, None, &keys), Err(Code::RequestMalformed));
}

#[test]
fn a_forged_name_is_stripped_in_every_spelling() {
    let settings = Settings {
        keys: vec![KeySource::Header("x-user-id".parse().unwrap())],
        source: AddressSource::Header("x-my-ip".parse().unwrap()),
        ..Settings::default()
    };
    for (trusted, kept) in [(false, 0), (true, 1)] {
        let mut headers = HeaderMap::new();
        for name in ["x-user-id", "x_user_id", "x-user_id", "x-my-ip", "x_my_ip"] {
            headers.insert(name.parse::<HeaderName>().unwrap(), "1".parse().unwrap());
        }
        strip_user_headers(&mut headers, trusted, &settings);
        assert_eq!(headers.len(), kept, "{headers:?}");
    }
}
