use http::Request;
use serde_json::Value;

use super::*;
use crate::engine::path::Slashes;
use crate::engine::path::canonical_path;
use crate::model::user::Proof;

#[test]
fn a_path_is_judged_and_forwarded_in_canonical_form() {
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
        assert_eq!(canonical_path(path, Slashes::Merge).as_deref(), Some(canonical), "{path}");
    }
}

#[test]
fn a_path_that_two_servers_may_read_differently_is_refused() {
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
        assert_eq!(canonical_path(path, Slashes::Merge), None, "{path}");
    }
}

#[test]
fn repeated_slashes_are_what_the_operator_says() {
    for (path, kept) in
        [("/a//b", "/a//b"), ("//a", "//a"), ("/a/", "/a/"), ("/a//", "/a//"), ("/a/.//b", "/a//b"), ("/a//../b", "/a/b")]
    {
        assert_eq!(canonical_path(path, Slashes::Keep).as_deref(), Some(kept), "{path}");
        let again = canonical_path(kept, Slashes::Keep);
        assert_eq!(again.as_deref(), Some(kept), "the canonical form is stable");
        assert_eq!(canonical_path(path, Slashes::Refuse).is_none(), path.contains("//"), "{path}");
    }
}

fn authority(uri: &str, hosts: &[&str]) -> Option<String> {
    let mut request = Request::get(uri);
    for host in hosts {
        request = request.header("host", *host);
    }
    target::authority_of(&request.body(()).unwrap().into_parts().0).map(|authority| authority.to_string())
}

#[test]
fn a_request_has_one_host_in_one_form() {
    assert_eq!(authority("/", &["API.Example.com.:8080"]).as_deref(), Some("api.example.com:8080"));
    assert_eq!(authority("http://a.test/", &["A.test:80"]).as_deref(), Some("a.test"));
    assert_eq!(authority("http://a.test:80/", &["A.test."]).as_deref(), Some("a.test:80"));
    assert_eq!(authority("https://a.test/", &["a.test:443"]).as_deref(), Some("a.test"));
    assert_eq!(authority("/", &["[2001:DB8::1]:80"]).as_deref(), Some("[2001:db8::1]:80"));
    assert_eq!(authority("/", &["a:0080"]).as_deref(), Some("a:80"));
    assert_eq!(authority("/", &["a:65535"]).as_deref(), Some("a:65535"));
    for host in ["a:+80", "a:-1", "a:65536", "a:", "[::1]:+80", "a:8 0", "a:0x50"] {
        assert_eq!(authority("/", &[host]), None, "{host}");
    }
    for hosts in [&[][..], &["a", "a"], &["u@a"], &["a/b"], &["a:x"], &[""], &["a b"], &["[::1"]] {
        assert_eq!(authority("/", hosts), None, "{hosts:?}");
    }
    assert_eq!(authority("http://a.test/", &["b.test"]), None);
    assert_eq!(authority("http://a.test/", &["a.test:81"]), None);
}

#[test]
fn the_hop_that_accepted_the_client_reports_its_scheme() {
    use AddressSource::{Forwarded, ProxyProtocol, XForwardedFor};
    let is_https = |source: &AddressSource, fields: &[(&str, &str)]| {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        let trust = vec!["10.0.0.0/8".parse().unwrap()];
        let settings = Settings { trust, source: source.clone(), keys: vec![] };
        client::client_used_https(&headers, client::find(&headers, "10.0.0.1".parse().unwrap(), &settings).1, &settings)
    };
    let (by_x, by_forwarded) = (("x-forwarded-proto", "http, https"), ("forwarded", "for=a;proto=http, for=b; Proto=\"HTTPS\""));
    assert!(is_https(&XForwardedFor, &[by_x]) && !is_https(&XForwardedFor, &[by_forwarded]));
    assert!(is_https(&Forwarded, &[by_forwarded]) && !is_https(&Forwarded, &[by_x]));
    assert!(!is_https(&Forwarded, &[("forwarded", "for=\"proto=https\";proto=http")]));
    assert!(!is_https(&Forwarded, &[("forwarded", "for=\"a;proto=https\";proto=http")]), "a parameter inside a quoted string");
    assert!(!is_https(&Forwarded, &[("forwarded", "for=1.1.1.1;proto=http;host=\"x, for=1.1.1.1;proto=https\"")]));
    assert!(!is_https(&Forwarded, &[("forwarded", "for=\"x, for=1.1.1.1;proto=https")]), "unmatched quotes");
    assert!(is_https(&Forwarded, &[("forwarded", "for=1.1.1.1;proto=http, for=\"[2001:db8::1]:4711\";proto=https,")]));
    assert!(is_https(&XForwardedFor, &[("x-forwarded-proto", "http, https, ,")]));
    assert!(!is_https(&XForwardedFor, &[("x-forwarded-proto", "https, http")]), "the element that the client wrote");
    assert!(!is_https(&ProxyProtocol, &[by_x, by_forwarded]));
    // Two trusted hops: the client connected to the farther one, which connected to the nearer one.
    assert!(is_https(&Forwarded, &[("forwarded", "for=1.1.1.1;proto=http, for=2.2.2.2;proto=https, for=10.0.0.2;proto=http")]));
    assert!(!is_https(&Forwarded, &[("forwarded", "for=1.1.1.1;proto=https, for=2.2.2.2;proto=http, for=10.0.0.2;proto=https")]));
    let chain = ("x-forwarded-for", "1.1.1.1, 2.2.2.2, 10.0.0.2");
    assert!(is_https(&XForwardedFor, &[chain, ("x-forwarded-proto", "http, https, http")]));
    assert!(is_https(&XForwardedFor, &[chain, ("x-forwarded-proto", "https")]), "only the farther hop wrote it");
    assert!(!is_https(&XForwardedFor, &[chain, ("x-forwarded-proto", "https, http, https")]));
}

fn client(remote: &str, trust: &str, source: AddressSource, fields: &[(&str, &str)]) -> String {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
    }
    let settings = Settings { trust: vec![trust.parse().unwrap()], source, keys: vec![] };
    client::find(&headers, remote.parse().unwrap(), &settings).0.to_string()
}

#[test]
fn nobody_speaks_for_a_client_unless_trusted() {
    use AddressSource::{Forwarded, XForwardedFor};
    let xff = |remote, value| client(remote, "10.0.0.0/8", XForwardedFor, &[("x-forwarded-for", value)]);
    assert_eq!(xff("203.0.113.9", "1.1.1.1"), "203.0.113.9");
    assert_eq!(xff("10.0.0.1", "6.6.6.6, 1.1.1.1, 10.0.0.2"), "1.1.1.1", "the first address from the right that is not trusted");
    assert_eq!(xff("10.0.0.1", "6.6.6.6, junk, 10.0.0.2"), "10.0.0.2", "stops at a malformed element");
    assert_eq!(xff("10.0.0.1", "::ffff:81.2.69.142"), "81.2.69.142");
    assert_eq!(xff("::ffff:10.0.0.1", "1.1.1.1:4711"), "1.1.1.1");
    let forwarded = |value| client("10.0.0.1", "10.0.0.0/8", Forwarded, &[("forwarded", value)]);
    assert_eq!(forwarded("for=1.1.1.1;proto=https, for=10.0.0.3"), "1.1.1.1");
    assert_eq!(forwarded("for=\"[2001:db8::1]:80\""), "2001:db8::1");
    assert_eq!(forwarded("for=1.1.1.1, for=\"_hidden\""), "10.0.0.1");
    assert_eq!(forwarded("for=\"a, for=9.9.9.9\""), "10.0.0.1", "a quoted list is not an address");
    assert_eq!(forwarded("for=\"[::1]:4711\""), "::1");
    assert_eq!(forwarded("for=1.1.1.1;host=\"x, for=6.6.6.6\""), "1.1.1.1", "a quoted comma does not separate elements");
    assert_eq!(forwarded("host=\"x;for=6.6.6.6\";for=1.1.1.1"), "1.1.1.1", "a quoted semicolon does not separate parameters");
    assert_eq!(forwarded(r#"host="x\";for=6.6.6.6, \"";for=1.1.1.1"#), "1.1.1.1", "an escaped quote does not end the string");
    assert_eq!(forwarded("for=6.6.6.6, , for=1.1.1.1,, ,"), "1.1.1.1", "empty members are ignored");
    assert_eq!(forwarded("for=\"x, for=1.1.1.1"), "10.0.0.1", "a value with unmatched quotes is not used");
    assert_eq!(forwarded("for=\"x, for=\"[2001:db8::1]\""), "10.0.0.1");
    let lines = |left, right| client("10.0.0.1", "10.0.0.0/8", Forwarded, &[("forwarded", left), ("forwarded", right)]);
    assert_eq!(lines("for=\"x", "for=1.1.1.1"), "1.1.1.1", "a malformed value does not affect the values to its right");
    assert_eq!(lines("for=1.1.1.1, for=\"x", "for=10.0.0.2"), "10.0.0.2");
    assert_eq!(xff("10.0.0.1", "6.6.6.6, 1.1.1.1, , 10.0.0.2,"), "1.1.1.1", "empty members are ignored");
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
        "invalid bytes in another cookie do not hide the user"
    );
    headers.append("cookie", "uid=carol".parse().unwrap());
    assert_eq!(user::key(&headers, false, None, &keys), Err(Code::Malformed(Rule::User)), "a request must not name two users");
    headers.append("x-user-id", "mallory".parse().unwrap());
    assert_eq!(user::key(&headers, true, None, &keys), Err(Code::Malformed(Rule::User)));
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

/// The cases of realclientip-go: its selection strategies, applied to the addresses that this module reads.
#[test]
fn addresses_are_read_as_hops_write_them() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/client_ip_from_headers.json");
    let text = std::fs::read_to_string(file).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    let cases = document["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 106);
    let checked = cases.iter().filter(|case| check_strategy(case)).count();
    assert_eq!(checked, 98, "the other cases only test how that library is configured");
}

fn text_of<'c>(case: &'c Value, key: &str) -> &'c str {
    case[key].as_str().unwrap_or_default()
}

/// The library keeps zones, and this module drops them; an empty address is `None`.
fn address_of(text: &str) -> Option<IpAddr> {
    text.split('%').next().unwrap().parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

fn source_of(case: &Value) -> AddressSource {
    match text_of(case, "header_name").to_lowercase().as_str() {
        "forwarded" => AddressSource::Forwarded,
        "x-forwarded-for" => AddressSource::XForwardedFor,
        // The configuration already refuses a value that is not a header name.
        name => match name.parse() {
            Ok(name) => AddressSource::Header(name),
            Err(_) if case["constructor_error"] == true || name.is_empty() => AddressSource::Forwarded,
            Err(error) => panic!("{error}"),
        },
    }
}

fn headers_of(case: &Value) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, values) in case["headers"].as_object().into_iter().flatten() {
        for value in values.as_array().unwrap() {
            headers.append(name.parse::<HeaderName>().unwrap(), value.as_str().unwrap().parse().unwrap());
        }
    }
    headers
}

fn is_private(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_private() || v4.is_loopback() || v4.is_link_local() || matches!(v4.octets(), [198, 18..=19, ..]),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// Checks one case; returns whether it tests more than the library's own configuration.
fn check_strategy(case: &Value) -> bool {
    let (strategy, want) = (text_of(case, "strategy"), case["want"].as_str().and_then(address_of));
    if case["constructor_error"] == true && strategy != "ParseIPAddr" {
        return false;
    }
    let (source, headers) = (source_of(case), headers_of(case));
    // The nearest hop first.
    let hops = client::hops(&headers, &source);
    let public = |hop: &&Option<IpAddr>| hop.as_ref().is_some_and(|address| !is_private(address));
    let parsed = client::read_address(text_of(case, "ip_str"));
    match strategy {
        "RemoteAddrStrategy" => assert_eq!(client::read_address(text_of(case, "remote_addr")), want, "{case}"),
        "ParseIPAddr" => assert_eq!(parsed, want.filter(|want| !want.is_unspecified()), "{case}"),
        "isPrivateOrLocal" => {
            assert_eq!(parsed.is_some_and(|address| is_private(&address)), case["want"].as_bool().unwrap(), "{case}");
        }
        "parseForwardedListItem" => {
            assert_eq!(client::forwarded_for(text_of(case, "forwarded_item").as_bytes()), want, "{case}");
        }
        "forwardedHeaderRFCDeviations" => assert_eq!(hops.into_iter().rev().collect::<Vec<_>>(), deviations(case), "{case}"),
        "SingleIPHeaderStrategy" => assert_eq!(hops.first().copied().flatten(), want, "{case}"),
        "LeftmostNonPrivateStrategy" => assert_eq!(hops.iter().rev().find(public).copied().flatten(), want, "{case}"),
        "RightmostNonPrivateStrategy" => assert_eq!(hops.iter().find(public).copied().flatten(), want, "{case}"),
        "RightmostTrustedCountStrategy" => {
            let count = case["trusted_count"].as_u64().unwrap() as usize;
            assert_eq!(hops.get(count - 1).copied().flatten(), want, "{case}");
        }
        "RightmostTrustedRangeStrategy" => check_trusted_ranges(case, source, &headers, want),
        other => panic!("{other}"),
    }
    true
}

/// The addresses of a header on which the library deviates from RFC 7239. This module reads quoted strings as the RFC requires.
fn deviations(case: &Value) -> Vec<Option<IpAddr>> {
    match case["headers"]["Forwarded"][0].as_str() {
        Some("For=\"1.1.1.1, For=2.2.2.2, For=3.3.3.3\", For=\"4.4.4.4\"") => vec![None, address_of("4.4.4.4")],
        Some("For=\"1.1.1.1, For=2.2.2.2") => vec![None],
        Some("For=\"3.3.3.\\3\"") => vec![address_of("3.3.3.3")],
        _ => case["want"].as_array().unwrap().iter().map(|want| want.as_str().and_then(address_of)).collect(),
    }
}

fn check_trusted_ranges(case: &Value, source: AddressSource, headers: &HeaderMap, want: Option<IpAddr>) {
    // In a case without a remote address, the request comes from a trusted load balancer.
    let remote = client::read_address(text_of(case, "remote_addr"));
    let ranges = case["trusted_ranges"].as_array().cloned().unwrap_or_default();
    let network = |text: &str| text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    let mut trust: Vec<IpNet> =
        ranges.iter().filter_map(|range| network(range.as_str().unwrap())).map(canonical_network).collect();
    let load_balancer: IpAddr = "192.0.2.255".parse().unwrap();
    trust.push(load_balancer.into());
    let settings = Settings { trust: trust.clone(), source, keys: vec![] };
    let found = client::find(headers, remote.unwrap_or(load_balancer), &settings).0;
    match want {
        Some(want) => assert_eq!(found, want, "{case}"),
        // If the element that a trusted hop wrote is malformed, the result is the address of that hop.
        None => assert!(trust.iter().any(|network| network.contains(&found)), "{case}: {found}"),
    }
}
