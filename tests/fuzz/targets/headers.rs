//! Fields on their way to the next hop: nothing forged is left, in any spelling.

use domicile::decision::route::Method;
use domicile::proxy::headers::{rebuild, scrub_trailers};
use domicile::proxy::intake::{Identity, Intake};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::Target;

pub const HEADERS: Target = Target { name: "headers", words: WORDS, seeds, check, most: 1024 };

const WORDS: &[&[u8]] = &[
    b"x-forwarded-for: 6.6.6.6\n",
    b"X_Forwarded-For: 6.6.6.6\n",
    b"forwarded: for=6.6.6.6\n",
    b"connection: ",
    b"close, ",
    b"x-forwarded-proto",
    b"domicile-request: x\n",
    b"domicile_request: x\n",
    b"cf-ipcountry: DE\n",
    b"client-cert: :x:\n",
    b"te: trailers\n",
    b"upgrade: h2c\n",
    b"host: b\n",
    b"via: 1.1 x\n",
    b"cookie: a=b\n",
    b"_",
    b"-",
    b"\n",
    b": ",
];

fn intake() -> Intake {
    Intake {
        id: "id".into(),
        method: Method::Get,
        host: "a.test".into(),
        authority: "a.test".into(),
        path: "/".into(),
        is_read: true,
        is_preflight: false,
        upgrade: None,
        client: "192.0.2.1".parse().unwrap(),
        identity: Identity::default(),
        envelope: None,
        is_https: true,
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let seeds = [
        "accept: */*\nx-forwarded-for: 6.6.6.6\nconnection: x-a, keep-alive\nx-a: b\n",
        "te: trailers\nhost: a.test\nx_real_ip: 6.6.6.6\n",
        "domicile-request: forged\nvia: 1.0 a\n",
    ];
    seeds.map(|seed| seed.as_bytes().to_vec()).into()
}

fn check(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(line[colon + 1..].trim_ascii()))
        else {
            continue;
        };
        headers.append(name, value);
    }
    let mut trailers = headers.clone();
    let names: Vec<_> = headers.keys().cloned().collect();
    rebuild(&mut headers, &intake(), &HeaderValue::from_static("a.test"));
    let folded = |name: &HeaderName| name.as_str().replace('_', "-");
    for (name, value) in &headers {
        let is_ours =
            ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-request-id"].contains(&name.as_str());
        let plain = folded(name);
        let is_about_the_client = plain.starts_with("x-forwarded-")
            || plain.starts_with("domicile-")
            || plain.starts_with("cf-")
            || ["forwarded", "x-real-ip", "client-cert"].contains(&plain.as_str());
        assert!(is_ours || !is_about_the_client, "{name}: {value:?}");
        assert!(
            !["connection", "keep-alive", "upgrade", "transfer-encoding", "proxy-connection", "expect"].contains(&name.as_str()),
            "{name}"
        );
    }
    assert_eq!(headers.get_all("x-forwarded-for").iter().collect::<Vec<_>>(), ["192.0.2.1"]);
    assert_eq!(headers.get_all("forwarded").iter().count(), 1);
    // Nobody names away what others rely on.
    for kept in ["cookie", "authorization"] {
        assert_eq!(headers.contains_key(kept), names.iter().any(|name| name == kept), "{kept}");
    }
    scrub_trailers(&mut trailers, |_| false);
    for name in trailers.keys() {
        assert!(
            !["host", "content-length", "transfer-encoding", "connection", "cookie", "forwarded"]
                .contains(&folded(name).as_str()),
            "{name}"
        );
    }
}
