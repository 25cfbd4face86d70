use super::*;
use bytes::BytesMut;
use std::time::Duration;

use crate::model::outcome::{Code, Rule};

fn limits() -> HeadLimits {
    let timeout = Duration::from_secs(3600);
    HeadLimits { bytes: 4096, fields: 20, target_bytes: 200, timeout, keep_alive: timeout }
}

/// The requests in `sent`, if it arrives in steps of `step` bytes: their targets and bodies. Then the code of the refusal, or
/// whether the last request is complete.
fn requests(sent: &[u8], step: usize) -> (Vec<(String, String)>, Result<bool, Code>) {
    let (mut bytes, mut seen, mut found) = (BytesMut::new(), 0, Vec::new());
    let mut pieces = sent.chunks(step);
    loop {
        let mut head = loop {
            match read_request(&mut bytes, &mut seen, &limits()) {
                Err(code) => return (found, Err(code)),
                Ok(Some(head)) => break head,
                Ok(None) => match pieces.next() {
                    Some(piece) => bytes.extend_from_slice(piece),
                    None => return (found, Ok(bytes.is_empty())),
                },
            }
        };
        found.push((head.parts.uri.to_string(), String::new()));
        loop {
            match head.body.decode(&mut bytes) {
                Err(_) => return (found, Err(Code::Malformed(Rule::Body))),
                Ok(Decoded::Ended) => break,
                Ok(Decoded::Data(data)) => found.last_mut().unwrap().1 += std::str::from_utf8(&data).unwrap(),
                Ok(Decoded::Trailers(trailers)) => found.last_mut().unwrap().1 += &format!("{trailers:?}"),
                Ok(Decoded::Incomplete) => match pieces.next() {
                    Some(piece) => bytes.extend_from_slice(piece),
                    None => return (found, Ok(false)),
                },
            }
        }
    }
}

fn assert_read(sent: &str, expected: &[(&str, &str)]) {
    for step in [1, 7, 5000] {
        let (found, outcome) = requests(sent.as_bytes(), step);
        let found: Vec<_> = found.iter().map(|(target, body)| (&**target, &**body)).collect();
        assert_eq!((&*found, outcome), (expected, Ok(true)), "{sent:?} in steps of {step}");
    }
}

fn assert_refused(sent: &str, code: Code) {
    for step in [1, 7, 5000] {
        assert_eq!(requests(sent.as_bytes(), step), (vec![], Err(code)), "{sent:?} in steps of {step}");
    }
}

#[test]
fn unambiguous_requests_are_read() {
    assert_read("GET / HTTP/1.1\r\nHost: a\r\n\r\n", &[("/", "")]);
    assert_read("GET / HTTP/1.0\r\n\r\n", &[("/", "")]);
    let two = "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET /y HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_read(two, &[("/x", "hello"), ("/y", "")]);
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n";
    assert_read(&format!("{chunked}GET /z HTTP/1.1\r\nHost: a\r\n\r\n"), &[("/", "hello{\"x\": \"y\"}"), ("/z", "")]);
    assert_read("\r\nGET / HTTP/1.1\r\nHost: a\r\nX-Latin: \u{e4}\r\n\r\n", &[("/", "")]);
}

#[test]
fn every_ambiguous_framing_is_refused() {
    let with = |fields: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\nxxxxx");
    for fields in [
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: , chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding:",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5, 5",
        "Content-Length: +5",
        "Content-Length: 0x5",
        "Content-Length:",
        "Content-Length: 99999999999999999999",
        "Content_Length: 5",
        "Transfer_Encoding: chunked",
    ] {
        assert_refused(&with(fields), Code::Malformed(Rule::Length));
    }
    for fields in ["Content-Length : 5", "X: a\r\n b: folded", "X: a\0b", "X: a\rb", "X: \u{c}a", ": empty"] {
        assert_refused(&with(fields), Code::Malformed(Rule::Header));
    }
    assert_refused(&with("Host: b"), Code::Malformed(Rule::Host));
    assert_refused("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Code::Malformed(Rule::Length));
    assert_refused("GET / HTTP/1.1\r\n\r\n", Code::Malformed(Rule::Host));
    for head in ["GET / HTTP/1.1\nHost: a\n\n", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/2.0\r\nHost: a\r\n\r\n"] {
        assert_refused(head, Code::Malformed(Rule::Line));
    }
    assert_refused("GET /\r\nHost: a\r\n\r\n", Code::Malformed(Rule::Line));
    assert_refused("\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Code::Malformed(Rule::Line));
    assert_refused("GET x HTTP/1.1\r\nHost: a\r\n\r\n", Code::Malformed(Rule::Target));
    assert_refused("GET /ä HTTP/1.1\r\nHost: a\r\n\r\n", Code::Malformed(Rule::Target));
}

#[test]
fn oversized_heads_are_refused_with_their_own_codes() {
    let long = "a".repeat(5000);
    assert_refused(&format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"), Code::HeadTooLarge);
    assert_refused(&format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", &long[..300]), Code::TargetTooLong);
    assert_refused(&format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(30)), Code::HeadTooLarge);
}

#[test]
fn a_malformed_chunk_is_an_error_after_the_data_before_it() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (body, before) in [
        ("5\nhello\r\n0\r\n\r\n", ""),
        ("5\r\nhelloX", "hello"),
        ("0x5\r\n", ""),
        ("-1\r\n", ""),
        (" 5\r\n", ""),
        ("5 \r\n", ""),
        ("fffffffffffffffff\r\n", ""),
        ("5;a\x01\r\nhello", ""),
        ("0\r\nX : y\r\n\r\n", ""),
        ("\r\n", ""),
    ] {
        for step in [1, 5000] {
            let (found, outcome) = requests(format!("{head}{body}").as_bytes(), step);
            assert_eq!((found[0].1.as_str(), outcome), (before, Err(Code::Malformed(Rule::Body))), "{body:?}");
        }
    }
}

/// Reads the response to a request of the kind `asked`: the statuses of its heads, its body, and whether another request may follow;
/// `None` if the response is malformed or incomplete.
fn response(sent: &[u8], asked: RequestKind, step: usize) -> Option<(Vec<u16>, String, bool)> {
    let (mut bytes, mut reader, mut statuses) = (BytesMut::new(), ResponseReader::to(asked), Vec::new());
    let mut pieces = sent.chunks(step);
    let mut head = loop {
        match reader.read(&mut bytes).ok()? {
            Some(head) => {
                statuses.push(head.parts.status.as_u16());
                if head.opens_tunnel || !head.parts.status.is_informational() {
                    break head;
                }
            }
            None => bytes.extend_from_slice(pieces.next()?),
        }
    };
    let mut body = String::new();
    loop {
        match head.body.decode(&mut bytes).ok()? {
            Decoded::Ended => break,
            Decoded::Data(data) => body += std::str::from_utf8(&data).unwrap(),
            Decoded::Trailers(trailers) => body += &format!("{trailers:?}"),
            Decoded::Incomplete => match pieces.next() {
                Some(piece) => bytes.extend_from_slice(piece),
                None => head.body.close().ok()?,
            },
        }
    }
    pieces.for_each(|piece| bytes.extend_from_slice(piece));
    Some((statuses, body, head.keeps_alive && bytes.is_empty() && !head.opens_tunnel))
}

#[test]
fn unambiguous_responses_are_read() {
    use RequestKind::{Connect, Head, Other, Upgrade};
    for (asked, sent, statuses, body, is_free) in [
        (Other, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", &[200][..], "hello", true),
        (Other, "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", &[200], "", true),
        (
            Other,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
            &[200],
            "hello{\"x\": \"y\"}",
            true,
        ),
        (Other, "HTTP/1.0 200 OK\r\n\r\nuntil the end", &[200], "until the end", false),
        (Other, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx", &[200], "x", false),
        (Other, "HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 1\r\n\r\nx", &[200], "x", true),
        (Other, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", &[103, 204], "", true),
        (Head, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", &[200], "", true),
        (Head, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", &[200], "", true),
        (Other, "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", &[304], "", true),
        (Upgrade, "HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x01anything", &[101], "", false),
        (Connect, "HTTP/1.1 200 OK\r\n\r\nanything", &[200], "", false),
        // Blanks before the colon are removed.
        (Other, "HTTP/1.1 200 OK\r\nContent-Length \t: 2\r\n\r\nok", &[200], "ok", true),
        // Neither has a body, and a connection on which the server may send one is not used again.
        (Other, "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello", &[204], "", false),
        (Other, "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", &[204], "", false),
        (Other, "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", &[304], "", false),
    ] {
        for step in [1, 7, 5000] {
            let expected = Some((statuses.to_vec(), body.to_owned(), is_free));
            assert_eq!(response(sent.as_bytes(), asked, step), expected, "{sent:?} in steps of {step}");
        }
    }
}

#[test]
fn responses_with_ambiguous_framing_are_refused() {
    use RequestKind::{Connect, Other, Upgrade};
    for (asked, sent) in [
        (Other, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (Other, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
        (Other, "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello"),
        (Other, "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello"),
        (Other, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell"),
        (Other, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        (Other, "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (Other, "HTTP/1.1 200 OK\r\nX: a\r\n folded\r\nContent-Length: 0\r\n\r\n"),
        (Other, "HTTP/1.1 200 OK\r\nX: a\r\n folded: x\r\nContent-Length: 0\r\n\r\n"),
        (Other, "HTTP/1.1 200 OK\nContent-Length: 0\n\n"),
        (Other, "HTTP/1.1 2OO OK\r\nContent-Length: 0\r\n\r\n"),
        (Other, "HTTP/1.1 099 No\r\nContent-Length: 0\r\n\r\n"),
        (Other, "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"),
        (Other, "hello\r\n\r\n"),
        (Other, "HTTP/1.1 100 Continue\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        (Other, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"),
        (Upgrade, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"),
        (Upgrade, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\r\n"),
        (Upgrade, "HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 5\r\n\r\nhello"),
        (Connect, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        (Other, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n"),
        (Other, "HTTP/1.1 200 OK\r\nX\0: a\r\nContent-Length: 0\r\n\r\n"),
    ] {
        for step in [1, 7, 5000] {
            assert_eq!(response(sent.as_bytes(), asked, step), None, "{sent:?}");
        }
    }
    let flood = "HTTP/1.1 102 Processing\r\n\r\n".repeat(17) + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(response(flood.as_bytes(), Other, 5000), None);
    let large = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(70_000));
    assert_eq!(response(large.as_bytes(), Other, 5000), None);
}

#[test]
fn a_body_is_framed_as_its_head_says() {
    let data = |size: usize| bytes::Bytes::from(vec![b'x'; size]);
    let mut out = BytesMut::new();
    let mut chunked = BodyEncoder::Chunked { takes_trailers: true };
    for size in [1, 0, 16, 255] {
        assert_eq!(chunked.data(data(size), &mut out), Ok(None));
    }
    let large = chunked.data(data(70_000), &mut out).unwrap().expect("large data is not copied");
    assert_eq!((large.len(), chunked.after()), (70_000, &b"\r\n"[..]));
    let trailers = http::HeaderMap::from_iter([(http::header::ETAG, "y".parse().unwrap())]);
    chunked.end(Some(&trailers), &mut out).unwrap();
    let written = String::from_utf8(out.to_vec()).unwrap().replace(&"x".repeat(255), "(255)").replace(&"x".repeat(16), "(16)");
    assert_eq!(written, "1\r\nx\r\n10\r\n(16)\r\nff\r\n(255)\r\n11170\r\n0\r\netag: y\r\n\r\n");
    assert!(BodyEncoder::Length(5).data(data(6), &mut out).is_err(), "too many bytes");
    assert!(BodyEncoder::Length(5).end(None, &mut out).is_err(), "too few bytes");
    assert!(BodyEncoder::Empty.data(data(1), &mut out).is_err());
}
